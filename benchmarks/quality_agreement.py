"""Do our quality rules decide as datatrove's filters of the same name? Document by document, rule by rule.

    python benchmarks/quality_agreement.py FOLDER            every document (about an hour for 400 MB: datatrove)
    python benchmarks/quality_agreement.py FOLDER --quick    a sample of every file, under a minute

FOLDER is searched for *.jsonl.zst with a field `text`. Needs the extra `bench` (datatrove, spaCy). Every filter of
datatrove runs restricted to one rule; its word splitting is done once for a document. What C4 leaves of a document is
compared as text. The last line is JSON.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onward.corpus.quality.judge import judge
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import split_words
from onward.recipe.quality import C4, FineWeb, GopherQuality, GopherRepetition, Quality

BATCH_CHARACTERS = 2_000_000
QUICK_CHARACTERS = 30_000
NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16, 5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}

Decisions = list[str | None]
"""For each document: None kept, a text when C4's rules left that of it, DROPPED when the rule speaks against it."""
DROPPED = "\0dropped"


@dataclass
class Agreement:
    """What became of one rule."""

    documents: int = 0
    dropped_theirs: int = 0
    dropped_ours: int = 0
    different: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Documents on which the two differ."""
        return len(self.different) / self.documents if self.documents else 0.0


def only(section: type[Any], **rules: Any) -> Any:
    """Return a family with these rules alone."""
    off = {name: None for name in section.model_fields if name != "short_line_characters"}
    return section(**{**off, **rules})


Pair = tuple[Quality, Callable[[], Any]]
"""Our family and what makes datatrove's filter, each with one rule alone."""


def pairs() -> dict[str, Pair]:
    """Return for every rule our family and datatrove's filter, each with this rule alone."""
    return gopher_quality_pairs() | gopher_repetition_pairs() | c4_pairs() | fineweb_pairs()


def gopher_quality_pairs() -> dict[str, Pair]:
    """Return the rules of Gopher on words and lines."""
    from datatrove.pipeline.filters import GopherQualityFilter

    def pair(ours: str, theirs: str, limit: float) -> Pair:
        names = GopherQualityFilter.__init__.__annotations__
        off = {name: None for name in names if name.startswith(("min_", "max_"))}
        section = GopherQuality.model_fields[ours].default
        mine = Quality(gopher_quality=only(GopherQuality, **{ours: section}))
        return mine, lambda: GopherQualityFilter(**{**off, theirs: limit})

    rules = {
        "too few words": pair("minimum_words", "min_doc_words", 50),
        "too many words": pair("maximum_words", "max_doc_words", 100_000),
        "short words": pair("minimum_mean_word_characters", "min_avg_word_length", 3),
        "long words": pair("maximum_mean_word_characters", "max_avg_word_length", 10),
        "hash signs": pair("maximum_hashes", "max_symbol_word_ratio", 0.1),
        "ellipses": pair("maximum_ellipses", "max_symbol_word_ratio", 0.1),
        "bullet lines": pair("maximum_bullet_lines", "max_bullet_lines_ratio", 0.9),
        "lines ending in an ellipsis": pair("maximum_ellipsis_lines", "max_ellipsis_lines_ratio", 0.3),
        "words without a letter": pair("minimum_words_with_letter", "max_non_alpha_words_ratio", 0.8),
        "too few stop words": pair("minimum_stop_words", "min_stop_words", 2),
    }
    return {f"gopher quality: {name}": rule for name, rule in rules.items()}


def gopher_repetition_pairs() -> dict[str, Pair]:
    """Return the rules of Gopher on what is repeated within a document."""
    from datatrove.pipeline.filters import GopherRepetitionFilter

    def pair(ours: str, **theirs: Any) -> Pair:
        off: dict[str, Any] = dict.fromkeys(
            ("dup_line_frac", "dup_para_frac", "dup_line_char_frac", "dup_para_char_frac")
        )
        off |= {"top_n_grams": (), "dup_n_grams": ()}
        mine = Quality(gopher_repetition=only(GopherRepetition, **{ours: GopherRepetition.model_fields[ours].default}))
        return mine, lambda: GopherRepetitionFilter(**{**off, **theirs})

    rules = {
        "duplicate paragraphs": pair("maximum_duplicate_paragraphs", dup_para_frac=0.3),
        "characters in duplicate paragraphs": pair("maximum_duplicate_paragraph_characters", dup_para_char_frac=0.2),
        "duplicate lines": pair("maximum_duplicate_lines", dup_line_frac=0.3),
        "characters in duplicate lines": pair("maximum_duplicate_line_characters", dup_line_char_frac=0.2),
    }
    for n, limit in NGRAMS.items():
        if n <= 4:
            rules[f"most frequent {n}-gram"] = pair(f"maximum_top_{n}gram", top_n_grams=((n, limit),))
        else:
            rules[f"duplicate {n}-grams"] = pair(f"maximum_duplicate_{n}grams", dup_n_grams=((n, limit),))
    return {f"gopher repetition: {name}": rule for name, rule in rules.items()}


def c4_pairs() -> dict[str, Pair]:
    """Return the rules of C4, one by one and all at once."""
    from datatrove.pipeline.filters import C4QualityFilter

    def pair(ours: str, **theirs: Any) -> Pair:
        switches = ("remove_citations", "filter_no_terminal_punct", "filter_lorem_ipsum", "filter_javascript")
        off: dict[str, Any] = dict.fromkeys((*switches, "filter_curly_bracket", "filter_policy"), False)
        off |= dict.fromkeys(("min_num_sentences", "min_words_per_line", "max_word_length"), -1)
        mine = Quality(c4=only(C4, **{ours: C4.model_fields[ours].default}))
        return mine, lambda: C4QualityFilter(**{**off, **theirs})

    return {
        "c4: terminal punctuation": pair("terminal_punctuation", filter_no_terminal_punct=True),
        "c4: words in a line": pair("minimum_line_words", min_words_per_line=3),
        "c4: long words": pair("maximum_word_characters", max_word_length=1000),
        "c4: javascript": pair("no_javascript", filter_javascript=True),
        "c4: policy": pair("no_policy_phrases", filter_policy=True),
        "c4: citations": pair("no_citations", remove_citations=True),
        "c4: lorem ipsum": pair("no_lorem_ipsum", filter_lorem_ipsum=True),
        "c4: curly bracket": pair("no_curly_bracket", filter_curly_bracket=True),
        "c4: too few sentences": pair("minimum_sentences", min_num_sentences=5),
        "c4: all rules": (Quality(c4=C4()), C4QualityFilter),  # type: ignore[call-arg]
    }


def fineweb_pairs() -> dict[str, Pair]:
    """Return the rules of FineWeb on lines."""
    from datatrove.pipeline.filters import FineWebQualityFilter

    def pair(ours: str, **theirs: float) -> Pair:
        off = {"line_punct_thr": 0, "short_line_thr": 1, "char_duplicates_ratio": 1, "new_line_ratio": float("inf")}
        mine = Quality(fineweb=only(FineWeb, **{ours: FineWeb.model_fields[ours].default}))
        return mine, lambda: FineWebQualityFilter(**{**off, **theirs})

    rules = {
        "lines without punctuation": pair("minimum_punctuated_lines", line_punct_thr=0.12),
        "mostly short lines": pair("maximum_short_lines", short_line_thr=0.67),
        "characters in duplicate lines": pair("maximum_duplicate_line_characters", char_duplicates_ratio=0.01),
        "line feeds": pair("maximum_line_feeds", new_line_ratio=0.3),
    }
    return {f"fineweb: {name}": rule for name, rule in rules.items()}


def their_decisions(texts: Iterable[str], filters: dict[str, Any]) -> dict[str, Decisions]:
    """Let every filter decide on every text; sentences are split once for each line of a document."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import c4_filters

    decisions: dict[str, Decisions] = {name: [] for name in filters}
    split, sentences = c4_filters.split_into_sentences, {}

    def split_once(line: str, language: str) -> list[str]:
        if line not in sentences:
            sentences[line] = split(line, language)
        return sentences[line]

    c4_filters.split_into_sentences = split_once
    try:
        for text in texts:
            sentences.clear()
            for name, rule in filters.items():
                document = Document(text=text, id="")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # the mean of no words
                    result = rule.filter(document)
                decisions[name].append(_theirs(name, text, document.text, result))
    finally:
        c4_filters.split_into_sentences = split
    return decisions


def _theirs(name: str, text: str, left: str, result: bool | tuple[bool, str]) -> str | None:
    """Read a filter's answer; one threshold of datatrove's serves hash signs, looked at first, and ellipses."""
    if result is not True:
        assert isinstance(result, tuple)
        is_other = (name.endswith("hash signs") and "ellipsis" in result[1]) or (
            name.endswith("quality: ellipses") and "hashes" in result[1]
        )
        return None if is_other else DROPPED
    return None if left == text else left


def our_decisions(texts: list[str], qualities: dict[str, Quality]) -> dict[str, Decisions]:
    """Judge every text by every rule alone."""
    batch = batch_of(texts)
    words = split_words(batch)
    decisions: dict[str, Decisions] = {}
    for name, quality in qualities.items():
        judgement = judge(batch, words, quality)
        dropped = [judgement.reasons[reason] if reason >= 0 else None for reason in judgement.reason.tolist()]
        # datatrove keeps a document of which no line is left; we say so and drop it.
        nothing = [reason == "c4: no lines left" for reason in dropped]
        decisions[name] = [
            (None if text == "" else "") if nothing[n] else DROPPED if dropped[n] else judgement.trimmed.get(n)
            for n, text in enumerate(texts)
        ]
    return decisions


def read_texts(path: Path, is_quick: bool) -> Iterator[str]:
    """Yield the texts of a file, or documents of moderate length spread over it."""
    import zstandard

    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        texts = [json.loads(line)["text"] for line in stream.read().split(b"\n") if line]
    if is_quick:
        texts = [text for text in texts if len(text) < QUICK_CHARACTERS / 2] or texts[:1]
        step = max(1, sum(map(len, texts)) // QUICK_CHARACTERS)
        texts = texts[::step]
    yield from texts


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group texts for the compiled rules."""
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if sum(map(len, batch)) > BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def compare(texts: list[str], where: str, table: dict[str, Agreement]) -> None:
    """Add the decisions on these texts to the table."""
    rules = pairs()
    theirs = their_decisions(texts, {name: make() for name, (_, make) in rules.items()})
    ours = our_decisions(texts, {name: quality for name, (quality, _) in rules.items()})
    for name in rules:
        agreement = table.setdefault(name, Agreement())
        agreement.documents += len(texts)
        agreement.dropped_theirs += theirs[name].count(DROPPED)
        agreement.dropped_ours += ours[name].count(DROPPED)
        both = enumerate(zip(theirs[name], ours[name], strict=True))
        agreement.different += [f"{where}:{n}" for n, (their, our) in both if their != our]


def main(arguments: list[str]) -> None:
    """Compare, print the table, and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    paths = sorted(options.folder.rglob("*.jsonl.zst"))
    if not paths:
        sys.exit(f"no *.jsonl.zst in {options.folder}")
    table: dict[str, Agreement] = {}
    begun, characters = time.perf_counter(), 0
    for path in paths:
        for batch in batches(read_texts(path, options.quick)):
            compare(batch, path.name, table)
            characters += sum(map(len, batch))
        if not options.quick:
            print(f"{path.name}: {sum(len(row.different) for row in table.values())} disagreements so far")
    print(f"{'rule':55} {'documents':>9} {'datatrove':>9} {'ours':>9} {'differ':>7} {'share':>8}")
    for name, row in table.items():
        counts = f"{row.documents:9,} {row.dropped_theirs:9,} {row.dropped_ours:9,} {len(row.different):7,}"
        print(f"{name:55} {counts} {row.share:8.3%}")
    worst = max(table, key=lambda name: table[name].share)
    summary = {
        "documents": table[worst].documents,
        "text_megacharacters": round(characters / 1e6, 2),
        "rules": len(table),
        "disagreements": sum(len(row.different) for row in table.values()),
        "worst_rule": worst,
        "worst_share": round(table[worst].share, 6),
        "seconds": round(time.perf_counter() - begun, 1),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main(sys.argv[1:])
