"""What benchmark items look like to a scan: rules by which an item counts as standing in a text, as arrays.

All rules compare words in lower case, words of nothing but punctuation and symbols left out, so that neither case nor
punctuation nor line breaks hide an item. Of an item (`Question`) are looked for:

1. long texts (`ngram_words` words or more: a passage, a question with its options, a sentence with its right ending,
   a question alone): any of their n-grams. GPT-3 (arXiv 2005.14165, appendix C) and lm-evaluation-harness: 13 words.
2. short complete texts of WHOLE_WORDS words or more, and short questions that end in a question mark: the whole.
   GPT-3 takes n down to the 5th percentile of a benchmark's lengths, but not below 8, for spurious matches.
3. other short questions and unfinished sentences ("The speed of sound in air depends on", which is also how a textbook
   begins one) of QUESTION_WORDS words or more, and those that several items ask: the whole, with the right answer
   within ANSWER_WINDOW_WORDS words after it. As allenai/decon, which wants the answer near wherever there is one.

n-grams that more than MOST_ITEMS items share are boilerplate of the benchmark ("... according to ordinary moral
standards in the US as of 2020") and are not looked for; templates and few-shot examples are not part of a `Question`.
GPT-3 leaves out n-grams found in more than 10 documents of the training text instead, which no single pass can know.
What is shorter than these rules reach is not found: 167 of the seven tasks' 34,007 items.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onward.corpus.contamination.ngrams import RunTable, run_keys, run_table
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import SYMBOLS, Words, split_words
from onward.recipe import Contamination
from onward.tasks.questions import Question

WHOLE_WORDS = 8
QUESTION_WORDS = 5
ANSWER_WINDOW_WORDS = 40
"""From the end of a question to the begin of its answer: three other options of a dozen words may stand between."""
MOST_ITEMS = 10
"""A passage of BoolQ has up to ten questions; above that there is boilerplate only (82 n-grams of the seven tasks)."""

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class ShortTexts:
    """Texts that are looked for as a whole.

    anchors: runs of QUESTION_WORDS words, for each text its rarest, owned by the text's number. words: uint64[], those
    of text t are words[starts[t]:starts[t + 1]]. answers, answer_starts: the same of the answer that must follow
    (none where the text is enough). offset: int32[texts], words before the anchor. item: int32[texts].
    """

    anchors: RunTable
    words: Hashes
    starts: NDArray[np.int32]
    answers: Hashes
    answer_starts: NDArray[np.int32]
    offset: NDArray[np.int32]
    item: NDArray[np.int32]


@dataclass(frozen=True)
class ItemIndex:
    """Everything a scan needs: arrays, which travel to other processes as they are (39 MB for the seven tasks).

    names: (task, item id) by item number. ngrams: owned by numbers of long texts. text_item, text_ngrams: int32[long
    texts], the item of each and how many n-grams it has. minimum_overlap: hits with a smaller score are left out.
    """

    names: tuple[tuple[str, str], ...]
    ngrams: RunTable
    text_item: NDArray[np.int32]
    text_ngrams: NDArray[np.int32]
    short: ShortTexts
    minimum_overlap: float


@dataclass(frozen=True)
class _Text:
    """A text to look for. answer: words that must follow, empty for none."""

    item: int
    words: Hashes
    answer: Hashes


_NONE: Hashes = np.empty(0, dtype=np.uint64)


def build_index(items: Mapping[str, Iterable[Question]], rules: Contamination) -> ItemIndex:
    """Build the index of all items of all tasks."""
    questions = [question for task in items.values() for question in task]
    texts = _texts(questions)
    long = [text for text in texts if len(text.words) >= rules.ngram_words]
    short = [text for text in texts if len(text.words) < rules.ngram_words]
    ngrams, text_ngrams = _ngrams(long, rules.ngram_words)
    return ItemIndex(
        tuple((question.task, question.id) for question in questions),
        ngrams,
        np.array([text.item for text in long], dtype=np.int32),
        text_ngrams,
        _short_texts(short),
        float(rules.minimum_overlap),
    )


def spoken(words: Words) -> tuple[Hashes, NDArray[np.int64], NDArray[np.int64]]:
    """Leave out the words of nothing but symbols.

    Returns folded hashes uint64[n], the place of each among `words` int64[n], and int64[documents + 1], where the
    words of each document begin.
    """
    places = np.flatnonzero(words.kind != SYMBOLS)
    return words.folded[places], places, np.searchsorted(places, words.starts)


def _texts(questions: Sequence[Question]) -> list[_Text]:
    """Cut what the items say into words, and say which of it needs the answer after it."""
    answers = _words([question.answer or "" for question in questions])
    complete = [(item, text) for item, question in enumerate(questions) for text in question.texts]
    complete_words = _words([text for _, text in complete])
    texts = [_Text(item, words, _NONE) for (item, _), words in zip(complete, complete_words, strict=True)]
    asked = [(item, question.asked) for item, question in enumerate(questions) if question.asked]
    asked_words = _words([text for _, text in asked])
    times: dict[bytes, int] = {}
    for words in asked_words:
        times[words.tobytes()] = times.get(words.tobytes(), 0) + 1
    for (item, text), words in zip(asked, asked_words, strict=True):
        alone = len(words) >= WHOLE_WORDS and text.rstrip().endswith("?") and times[words.tobytes()] == 1
        texts.append(_Text(item, words, _NONE if alone else answers[item]))
    return texts


def _words(texts: Sequence[str]) -> list[Hashes]:
    folded, _, starts = spoken(split_words(batch_of(texts)))
    return [folded[starts[n] : starts[n + 1]] for n in range(len(texts))]


def _ngrams(texts: Sequence[_Text], ngram_words: int) -> tuple[RunTable, NDArray[np.int32]]:
    keys = [np.unique(run_keys(text.words, ngram_words)) for text in texts]
    sizes = [len(found) for found in keys]
    flat = np.concatenate([_NONE, *keys])
    owners = np.repeat(np.arange(len(texts), dtype=np.int32), sizes)
    items = np.array([text.item for text in texts], dtype=np.int32)
    own = ~np.isin(flat, _boilerplate(flat, items[owners]))
    text_ngrams = np.bincount(owners[own], minlength=len(texts)).astype(np.int32)
    return run_table(ngram_words, flat[own], owners[own]), text_ngrams


def _boilerplate(keys: Hashes, items: NDArray[np.int32]) -> Hashes:
    """Return the keys that more than MOST_ITEMS items have; keys, items: [pairs], a pair may stand there twice."""
    order = np.lexsort((items, keys))
    keys, items = keys[order], items[order]
    fresh = np.ones(len(keys), dtype=bool)
    fresh[1:] = (keys[1:] != keys[:-1]) | (items[1:] != items[:-1])
    distinct, counts = np.unique(keys[fresh], return_counts=True)
    common: Hashes = distinct[counts > MOST_ITEMS]
    return common


def _short_texts(texts: Iterable[_Text]) -> ShortTexts:
    kept = [text for text in texts if len(text.words) >= (QUESTION_WORDS if len(text.answer) else WHOLE_WORDS)]
    runs = [run_keys(text.words, QUESTION_WORDS) for text in kept]
    distinct, counts = np.unique(np.concatenate([_NONE, *runs]), return_counts=True)
    offset = [int(counts[np.searchsorted(distinct, found)].argmin()) for found in runs]
    anchors = np.array([found[at] for found, at in zip(runs, offset, strict=True)], dtype=np.uint64)
    return ShortTexts(
        run_table(QUESTION_WORDS, anchors, np.arange(len(kept), dtype=np.int32)),
        np.concatenate([_NONE, *(text.words for text in kept)]),
        _starts(len(text.words) for text in kept),
        np.concatenate([_NONE, *(text.answer for text in kept)]),
        _starts(len(text.answer) for text in kept),
        np.array(offset, dtype=np.int32),
        np.array([text.item for text in kept], dtype=np.int32),
    )


def _starts(sizes: Iterable[int]) -> NDArray[np.int32]:
    return np.cumsum([0, *sizes], dtype=np.int32)
