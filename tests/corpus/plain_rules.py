"""The quality rules in plain Python, given the words: slow and short, to check the compiled ones against."""

import math
import re
from collections import Counter

from onward.corpus.text.batch import batch_of
from onward.corpus.text.characters import SENTENCE_END, flags
from onward.corpus.text.words import IS_CATEGORY_P, IS_PUNCTUATION, IS_SENTENCE_END, LETTERS, split_words
from onward.recipe.quality import C4

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
SENTENCE_ENDS = {chr(code) for code, flag in enumerate(flags()) if flag & SENTENCE_END}
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")


def words_of(text: str) -> list[tuple[str, int, int]]:
    """Words with their kind and marks, by the word rule."""
    words, raw = split_words(batch_of([text])), text.encode()
    columns = (words.begin.tolist(), words.end.tolist(), words.kind.tolist(), words.marks.tolist())
    return [(raw[low:high].decode(), kind, marks) for low, high, kind, marks in zip(*columns, strict=True)]


def share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def again(parts: list[str]) -> list[str]:
    """The parts that occurred before."""
    seen: set[str] = set()
    return [part for part in parts if part in seen or seen.add(part)]  # type: ignore[func-returns-value]


def paper(text: str) -> dict[str, float]:
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    words = [word for word, _, _ in words_of(text)]
    return {
        "quality: too few lines": len(lines),
        "quality: mostly short lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "quality: repeated lines": share(len(again(lines)), len(lines)),
        "quality: characters in repeated lines": share(sum(map(len, again(lines))), len(text)),
        "quality: repeated 5-grams": share(repeated(words, 5), len(text)),
    }


def gopher_quality(text: str) -> dict[str, float]:
    words = words_of(text)
    counted = [word for word, _, marks in words if not marks & IS_PUNCTUATION]
    lines = [line.strip() for line in text.splitlines()]
    mean = share(sum(map(len, counted)), len(counted))
    values = {
        "too few words": len(counted),
        "too many words": len(counted),
        "short words": mean,
        "long words": mean,
        "hash signs": share(text.count("#"), len(words)),
        "ellipses": share(text.count("...") + text.count("…"), len(words)),
        "bullet lines": share(sum(line.startswith(("-", "•")) for line in lines), len(lines)),
        "lines ending in an ellipsis": share(sum(line.endswith(("...", "…")) for line in lines), len(lines)),
        "words without a letter": share(sum(kind == LETTERS for _, kind, _ in words), len(words)),
        "too few stop words": len(STOP_WORDS & {word for word, _, _ in words}),
    }
    return {f"gopher quality: {name}": value for name, value in values.items()}


def gopher_repetition(text: str) -> dict[str, float]:
    words = [word for word, _, _ in words_of(text)]
    paragraphs, lines = re.split("\n{2,}", text.strip()), re.split("\n+", text)
    values = {
        "duplicate paragraphs": share(len(again(paragraphs)), len(paragraphs)),
        "characters in duplicate paragraphs": share(sum(map(len, again(paragraphs))), len(text)),
        "duplicate lines": share(len(again(lines)), len(lines)),
        "characters in duplicate lines": share(sum(map(len, again(lines))), len(text)),
    }
    values |= {f"most frequent {n}-gram": share(most_frequent(words, n), len(text)) for n in range(2, 5)}
    values |= {f"duplicate {n}-grams": share(repeated(words, n), len(text)) for n in range(5, 11)}
    return {f"gopher repetition: {name}": value for name, value in values.items()}


def most_frequent(words: list[str], n: int) -> int:
    """Length times count of the most frequent n-gram, of several the first."""
    counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
    if not counts:
        return 0
    ngram, count = max(counts.items(), key=lambda item: item[1])
    return len(" ".join(ngram)) * count


def repeated(words: list[str], n: int) -> int:
    """Characters of n-grams seen before, read in order and on behind each."""
    seen: set[tuple[str, ...]] = set()
    characters = at = 0
    while at + n <= len(words):
        ngram = tuple(words[at : at + n])
        if ngram in seen:
            characters += sum(map(len, ngram))
            at += n
        else:
            seen.add(ngram)
            at += 1
    return characters


def fineweb(text: str) -> dict[str, float]:
    lines = [line for line in text.split("\n") if line.strip()]
    ending = sum(line[-1] in SENTENCE_ENDS for line in lines)
    visible = len(text) - text.count("\n")
    values = {
        "lines without punctuation": share(ending, len(lines)) if lines else 0.0,
        "mostly short lines": share(sum(len(line) <= 30 for line in lines), len(lines)),
        "characters in duplicate lines": share(sum(map(len, again(lines))), visible),
        "line feeds": share(text.count("\n"), len(words_of(text))),
    }
    return {f"fineweb: {name}": value for name, value in values.items()}


def sentences(line: str) -> int:
    """A sentence begins with the line and with the word behind an end, unless that is punctuation."""
    number, is_over = 1, False
    for _, _, marks in words_of(line):
        if is_over and not marks & (IS_CATEGORY_P | IS_SENTENCE_END):
            number, is_over = number + 1, False
        elif marks & IS_SENTENCE_END:
            is_over = True
    return number


def c4(text: str, rules: C4) -> tuple[str, set[str]]:
    """What is left of a text, and the rules that drop it."""
    left, dropped = [], set()
    for whole in text.splitlines():
        words, line = whole.split(), whole.strip()
        if rules.maximum_word_characters and any(len(word) > rules.maximum_word_characters for word in words):
            continue
        if rules.no_citations:
            line = re.sub(r"\[[0-9]*]|\[edit]|\[citation needed]", "", line)
        ends_well = line.endswith((".", "?", "!", '"', "'")) and not line.endswith("...")
        if (rules.terminal_punctuation and not ends_well) or len(words) < (rules.minimum_line_words or 0):
            continue
        small = "".join(c.lower() if c.isascii() else c for c in line)
        if rules.no_lorem_ipsum and "lorem ipsum" in small:
            dropped.add("c4: lorem ipsum")
        if rules.no_javascript and "javascript" in small:
            continue
        if rules.no_curly_bracket and "{" in line:
            dropped.add("c4: curly bracket")
        if rules.no_policy_phrases and POLICY.search(small):
            continue
        left.append(line)
    if rules.minimum_sentences and sum(map(sentences, left)) < rules.minimum_sentences:
        dropped.add("c4: too few sentences")
    after = "\n".join(left).strip()
    return after, dropped if after else dropped | {"c4: no lines left"}
