"""The corpus step: documents in; token shards, packing, held-out text and an exact ledger out, as one artifact."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from onward.artifact import Folders, building, find, fingerprint
from onward.corpus.documents import Item, no_field
from onward.corpus.engine import in_order
from onward.corpus.examine import Rules, chunked, examine
from onward.corpus.ledger import Ledger, Tally, read_ledger
from onward.corpus.packing import pack
from onward.corpus.self_replay import Generate, sampled_documents
from onward.corpus.sorting import Sorter
from onward.corpus.reading.sources import Inputs, find_inputs, read_source
from onward.errors import UserError, nearest
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Progress, Silent
from onward.recipe import Corpus, Quality, format_share

FORMAT = 1
"""Version of what this step writes; a new one makes old artifacts not match."""
HOPELESS_RECORDS = 1000
"""When so many records are read and none was readable, reading stops: the rest will be the same."""
_SECTIONS = {"domain": "corpus"}
_SILENT = Silent()


@dataclass(frozen=True)
class PreparedCorpus:
    """path: the artifact's folder (store.open_corpus reads it). ledger: where every document and token went."""

    path: Path
    fingerprint: str
    ledger: Ledger


@dataclass(frozen=True)
class _Job:
    """One call of `prepare`, its inputs listed. section: the recipe's name of the corpus, for messages."""

    corpus: Corpus
    tokenizer: LoadedTokenizer
    sequence_tokens: int
    wanted_tokens: int | None
    seed: int
    section: str
    training: tuple[Inputs, ...]
    held_out: tuple[Inputs, ...]


def prepare(
    corpus: Corpus,
    *,
    tokenizer: LoadedTokenizer,
    sequence_tokens: int,
    wanted_tokens: int | None,
    seed: int,
    folders: Folders,
    generate: Generate | None = None,
    model_fingerprint: str | None = None,
    workers: int | None = None,
    progress: Progress = _SILENT,
    label: str = "domain",
    only: Path | None = None,
) -> PreparedCorpus:
    """Prepare a corpus, or return at once when exactly this one is there.

    wanted_tokens: reading stops when so many are kept (None: all; `corpus.tokens` goes before it). generate and
    model_fingerprint: needed for self-replay. workers: processes, None for one per core; the outcome does not
    depend on it. label: `domain` or `general`. only: the corpus that a run began with; another one is refused before
    it is made, and what changed is named. Raises UserError for input that its owner can mend.
    """
    job = _Job(
        corpus,
        tokenizer,
        sequence_tokens,
        corpus.tokens or wanted_tokens,
        seed,
        _SECTIONS.get(label, label),
        tuple(map(find_inputs, corpus.sources)),
        tuple(map(find_inputs, corpus.held_out.sources)),
    )
    made_from = _made_from(job, model_fingerprint)
    if only is not None:
        find(only, made_from)
    name = fingerprint(made_from)
    folder = folders.cache / "corpora" / name
    if find(folder, made_from) is None:
        with building(folder, "corpus", made_from) as aside:
            _build(job, aside, generate, workers, progress)
    return PreparedCorpus(folder, name, read_ledger(folder))


def _made_from(job: _Job, model_fingerprint: str | None) -> Mapping[str, Any]:
    made_from: dict[str, Any] = {
        "format": FORMAT,
        "corpus": job.corpus.model_dump(mode="json", exclude={"tokens"}),
        "tokenizer": job.tokenizer.fingerprint,
        "sequence_tokens": job.sequence_tokens,
        "wanted_tokens": job.wanted_tokens,
        "inputs": {path: facts for inputs in job.training for path, facts in inputs.facts().items()},
        "held_out_inputs": {path: facts for inputs in job.held_out for path, facts in inputs.facts().items()},
    }
    if job.corpus.self_replay is not None:
        assert model_fingerprint is not None, "sampled text depends on the model"
        made_from |= {"model": model_fingerprint, "seed": job.seed}
    return made_from


def _build(job: _Job, folder: Path, generate: Generate | None, workers: int | None, progress: Progress) -> None:
    for path in (path for inputs in (*job.training, *job.held_out) for path in inputs.skipped):
        progress.note(f"{path}: not read, its suffix is none of a text's")
    progress.begin(f"preparing {job.section}", job.wanted_tokens, "tokens")
    with Sorter(folder, job.tokenizer.vocabulary_size, job.wanted_tokens, job.corpus.exact_duplicates) as sorter:
        _sort_all(job, sorter, generate, workers, progress)
    _refuse_unreadable(sorter.tally, sorter.fields, job)
    _refuse_nothing_kept(sorter.tally, job)
    packing = pack(sorter.document_lengths(), job.sequence_tokens)
    packing.save(folder)
    ledger = sorter.tally.close(
        packing.num_sequences, packing.sequence_tokens, packing.packed_tokens, packing.padding_tokens
    )
    ledger.save(folder)
    if not ledger.held_out.documents:
        progress.note(f"{job.section}: no document fell into the held-out share; raise {job.section}.held_out.share")


def _sort_all(job: _Job, sorter: Sorter, generate: Generate | None, workers: int | None, progress: Progress) -> None:
    """Sort held-out text from elsewhere, then the training text."""
    share = job.corpus.held_out.share
    if job.held_out:
        # Chosen by hand to be scored: the rules for training text do not apply, but its texts are known from here on.
        _sort(_read(job.held_out), _rules(job, Fraction(1), None), sorter, job, workers, progress)
        share = Fraction(0)
    items = _read(job.training)
    if job.corpus.self_replay is not None:
        assert generate is not None, "self-replay needs a model to sample from"
        items = chain(items, sampled_documents(job.corpus.self_replay, generate, job.tokenizer, job.seed))
    _sort(items, _rules(job, share, job.corpus.quality), sorter, job, workers, progress)


def _rules(job: _Job, share: Fraction, quality: Quality | None) -> Rules:
    corpus = job.corpus
    return Rules(quality, share, job.tokenizer, corpus.maximum_unknown_tokens, corpus.minimum_bytes_per_token)


def _read(inputs: tuple[Inputs, ...]) -> Iterator[Item]:
    return chain.from_iterable(map(read_source, inputs))


def _sort(
    items: Iterator[Item], rules: Rules, sorter: Sorter, job: _Job, workers: int | None, progress: Progress
) -> None:
    """Read, examine and sort until the items or the wanted tokens are at an end."""
    tally, started, before = sorter.tally, time.perf_counter(), sorter.tally.read.bytes
    with closing(in_order(chunked(items), partial(examine, rules=rules), workers)) as results:
        for chunk, examined in results:
            sorter.take(chunk, examined)
            if tally.num_unreadable == tally.read.documents >= HOPELESS_RECORDS:
                _refuse_unreadable(tally, sorter.fields, job)
            rate = (tally.read.bytes - before) / 1e6 / (time.perf_counter() - started)
            progress.advance(tally.kept_tokens, f"{tally.read.documents:,} documents  {rate:.1f} MB/s")
            if sorter.is_full:
                return


def _refuse_unreadable(tally: Tally, fields: Mapping[str, None], job: _Job) -> None:
    """Raise UserError when more records are unreadable than the recipe allows."""
    limit = job.corpus.maximum_unreadable
    if tally.num_unreadable <= limit * tally.read.documents:
        return
    for source in (*job.corpus.sources, *job.corpus.held_out.sources):
        if tally.dropped.get(no_field(source.text)) == tally.read:
            close = nearest(source.text, list(fields)) or next(iter(fields), None)
            raise UserError(
                f"no record has the field `{source.text}`",
                tally.unreadable[0].rpartition(": unreadable")[0],
                f"fields: {', '.join(fields) or 'none'}",
                todo=f"name the field that holds the document: `text: {close}`" if close else None,
            )
    share = format_share(Fraction(round(1000 * tally.num_unreadable / tally.read.documents), 1000))
    raise UserError(
        "too many records cannot be read",
        "; ".join(tally.unreadable[:5]),
        f"{tally.num_unreadable:,} of {tally.read.documents:,} ({share})",
        f"at most {format_share(limit)}",
        f"mend or remove them, or raise {job.section}.maximum_unreadable; fewer are counted and passed over",
    )


def _refuse_nothing_kept(tally: Tally, job: _Job) -> None:
    """Raise UserError, with what dropped the documents, when none is left to train on."""
    if tally.kept.documents:
        return
    where = f"{job.section}.sources: {', '.join(source.path for source in job.corpus.sources)}"
    todo = f"loosen what dropped them, e.g. {job.section}.quality: none" if tally.dropped else "give more documents"
    got = "; ".join(tally.losses()) or "no record at all"
    raise UserError("no document is left to train on", where, got, todo=todo)
