"""The making of a cloze benchmark, from held-out text to an artifact."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onward.artifact import file_hash, make_once, read_manifest
from onward.errors import UserError
from onward.evaluation.cloze.artifact import KIND, ClozeItem, write_cloze
from onward.evaluation.cloze.checks import check
from onward.evaluation.cloze.ngrams import NGrams
from onward.evaluation.cloze.selection import Material, choose, propose
from onward.evaluation.cloze.terms import Stream, find_terms
from onward.evaluation.cloze.training_text import sample_training_text
from onward.evaluation.cloze.words import Document, Vocabulary, cut, read_document
from onward.model.source import ModelSource
from onward.progress import Progress, Silent

_TODO = "hold more text out (corpus.held_out.share), or leave the cloze out (evaluation.cloze: null)"
_METHOD = 1
"""Raised when the same inputs would make other items."""
TRAINING_TOKENS = 2_000_000
"""Training text that is counted beside the held-out text."""
HELD_OUT_CHARACTERS = 10_000_000
"""Held-out text that is looked at."""
FEWEST = 40
"""Items below which no score says anything: the 95 % interval is then 30 points wide."""


def cloze_made_from(held_out: Path, *, base: ModelSource, items: int, seed: int) -> dict[str, Any]:
    """Return all that determines the items made from held-out text: a Parquet file, or the corpus folder it is in."""
    file = _file(held_out)
    manifest = read_manifest(file.parent) if file.is_file() else None
    if not file.is_file():
        raise UserError(
            "there is no held-out text to make cloze items of", str(file), todo="run `onward prepare` first"
        )
    text = manifest.fingerprint if manifest is not None and manifest.kind == "corpus" else file_hash(file)
    return {"method": _METHOD, "held_out": text, "base": base.fingerprint, "items": items, "seed": seed}


def make_cloze(
    held_out: Path, *, base: ModelSource, items: int, seed: int, folder: Path, progress: Progress | None = None
) -> Path:
    """Make up to `items` cloze items of held-out text into the artifact at `folder`; made before, it is left alone.

    held_out: held_out.parquet of a prepared corpus, whose training text is sampled too, or another Parquet file with
    columns id, group and text. Where another process is making the same, it is waited for. Raises UserError when there
    is too little text, and when the base model is at chance or above the ceiling on the items.
    """
    made_from, told = cloze_made_from(held_out, base=base, items=items, seed=seed), progress or Silent()

    def wait() -> None:
        told.note("another process makes the same cloze questions: waiting for it")

    def make(aside: Path) -> None:
        made, facts = _make(held_out, base, items, seed, told)
        write_cloze(aside, made, facts | {"held_out": made_from["held_out"], "base": base.name})

    make_once(folder, KIND, made_from, make, wait)
    return folder


def _make(
    held_out: Path, base: ModelSource, wanted: int, seed: int, progress: Progress
) -> tuple[list[ClozeItem], dict[str, Any]]:
    """Return the items, checked, and the facts about how they came about."""
    import numpy as np

    rejected: Counter[str] = Counter()
    material, facts = _read(held_out, seed, progress)
    generator = np.random.default_rng(seed)
    proposals = propose(material, wanted, generator, rejected, progress)
    items = choose(proposals, material, wanted, generator, rejected)
    _require_enough(items, wanted, held_out, rejected)
    facts |= {
        "items": len(items),
        "documents": len({item.document for item in items}),
        "groups": len({item.group for item in items}),
        "kinds": dict(Counter(item.kind for item in items).most_common()),
        "terms": len({item.choices[item.gold] for item in items}),
        "proposed": len(proposals),
        "rejected": dict(rejected.most_common()),
    }
    if len(items) < wanted:
        progress.note(f"{len(items)} cloze items could be made of the held-out text, {wanted} were asked for")
    return items, facts | check(items, base, held_out, seed, progress)


def _read(held_out: Path, seed: int, progress: Progress) -> tuple[Material, dict[str, Any]]:
    """Read and count the held-out text and a sample of the training text."""
    import numpy as np

    vocabulary = Vocabulary()
    documents = list(_documents(held_out, vocabulary))
    progress.begin("counting words for cloze items", None, "words")
    training = _training_text(held_out, seed)
    texts = [document.pieces for document in documents] + cut(vocabulary, training)
    if not texts:
        raise UserError("there is no held-out text to make cloze items of", str(held_out), "0 documents", todo=_TODO)
    stream = Stream.of(vocabulary, texts)
    progress.advance(len(stream.surfaces))
    folded_of = np.array(vocabulary.folded, dtype=np.int32)
    folded = [folded_of[pieces] for pieces in texts]
    terms = find_terms(vocabulary, stream)
    ngrams = NGrams(folded, vocabulary.num_folded)
    facts = {
        "held_out_documents": len(documents),
        "training_documents": len(training),
        "words_counted": len(stream.surfaces),
        "terms_found": len(terms.texts),
    }
    return Material(documents, folded[: len(documents)], folded_of, terms, ngrams), facts


def _documents(held_out: Path, vocabulary: Vocabulary) -> Iterator[Document]:
    """Yield documents from the front of the held-out text, a stable random sample, up to HELD_OUT_CHARACTERS."""
    import pyarrow.parquet as pq

    file, size = _file(held_out), 0
    with pq.ParquetFile(file) as table:
        columns = [name for name in ("id", "source", "group", "text") if name in table.schema_arrow.names]
        if missing := {"id", "text"} - set(columns):
            raise UserError("held-out text lacks a column", str(file), expected=", ".join(sorted(missing)))
        for batch in table.iter_batches(256, columns=columns):
            for row in batch.to_pylist():
                yield read_document(
                    vocabulary, row["id"], row.get("source"), row.get("group") or row["id"], row["text"]
                )
                size += len(row["text"])
                if size >= HELD_OUT_CHARACTERS:
                    return


def _training_text(held_out: Path, seed: int) -> list[str]:
    """Return a sample of the corpus around the held-out text; nothing where it stands alone."""
    folder = _file(held_out).parent
    manifest = read_manifest(folder)
    is_corpus = manifest is not None and manifest.kind == "corpus" and (folder / "tokenizer").is_dir()
    return sample_training_text(folder, TRAINING_TOKENS, seed) if is_corpus else []


def _file(held_out: Path) -> Path:
    return held_out / "held_out.parquet" if held_out.is_dir() else held_out


def _require_enough(items: Sequence[ClozeItem], wanted: int, held_out: Path, rejected: Counter[str]) -> None:
    fewest = min(FEWEST, wanted)
    if len(items) < fewest:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in rejected.most_common(3))
        got = f"{len(items)} items" + (f" ({reasons})" if reasons else "")
        raise UserError(
            "too few cloze items can be made of this held-out text", str(held_out), got, f"{fewest} or more", _TODO
        )
