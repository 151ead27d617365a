"""What the corpora of a run give: exactly where they are prepared, estimated from a sample of their files elsewhere."""

from collections.abc import Iterable
from math import ceil
from pathlib import Path

import numpy as np
from pyarrow import parquet

from onward.artifact import read_manifest
from onward.corpus.blocks import block_name
from onward.corpus.ledger import Ledger, read_ledger
from onward.corpus.making import nothing_kept
from onward.corpus.packing import load_packing
from onward.corpus.preparation import Preparation
from onward.corpus.reading import builtin
from onward.corpus.reading.formats import COMPRESSIONS, TABLES
from onward.corpus.reading.inputs import Inputs
from onward.corpus.tokens import token_dtype
from onward.errors import UserError
from onward.plan.foresight import Range, SourceForesight, TextForesight
from onward.plan.sample import Sample, SourceSample, pairs_per_token, take_sample
from onward.progress import Progress
from onward.recipe import format_share

_LOSSES = 3
_BLOCKS_LOOKED_AT = 8
"""Packings of a prepared corpus that are read for the lengths of its documents: over 100M tokens."""
_SLOWER = 1.5
"""Preparing takes up to so much longer than the sample: workers share a disk, and benchmark items are looked for."""


def foresee_text(
    preparation: Preparation, role: str, needed_sequences: int, workers: int, progress: Progress
) -> tuple[TextForesight, list[UserError]]:
    """Return what a corpus gives, and what is wrong with the text itself.

    needed_sequences: those that training reads of it, repetitions counted. workers: processes that will prepare it.
    Raises UserError when reading a file fails.
    """
    if read_manifest(preparation.folder) is not None:
        return _prepared(preparation, role, needed_sequences), []
    if not preparation.training:
        return _to_be_sampled(preparation, role, needed_sequences), []
    sample = take_sample(preparation, progress)
    return _estimated(preparation, role, needed_sequences, workers, sample), _problems(preparation, sample)


def _prepared(preparation: Preparation, role: str, needed: int) -> TextForesight:
    ledger = read_ledger(preparation.folder)
    tokens, length = ledger.kept_tokens, preparation.sequence_tokens
    passes = needed / ledger.sequences if ledger.sequences else 0.0
    return TextForesight(
        role=role,
        basis="prepared",
        sources=_prepared_sources(preparation),
        sampled_documents=ledger.read.documents,
        documents=Range.exactly(ledger.kept.documents),
        tokens=Range.exactly(tokens),
        kept_share=ledger.kept.bytes / max(ledger.read.bytes, 1),
        bytes_per_token=ledger.kept.bytes / max(tokens, 1),
        sequences=Range.exactly(ledger.sequences),
        sequences_needed=needed,
        tokens_needed=needed * length,
        passes=Range.exactly(passes),
        pairs_per_token=_prepared_pairs(preparation.folder),
        losses=_losses(_ledger_losses(ledger)),
        prepare_seconds=None,
        disk_bytes=0.0,
        held_out_tokens=ledger.held_out.bytes / max(ledger.kept.bytes, 1) * tokens,
    )


def _ledger_losses(ledger: Ledger) -> Iterable[str]:
    ends = [row for row in ledger.rows() if row[0] not in ("read", "kept", *ledger.trimmed)]
    for name, documents, _ in sorted(ends, key=lambda row: -row[1]):
        yield f"{name}: {documents:,} of {ledger.read.documents:,}"


def _losses(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(text for text, _ in zip(texts, range(_LOSSES), strict=False))


def _prepared_pairs(folder: Path) -> float:
    paths = sorted(folder.glob(block_name("packing", 0, "npz").replace("00000", "*")))[:_BLOCKS_LOOKED_AT]
    lengths = [load_packing(path).piece_length.astype(np.int64) for path in paths]
    return pairs_per_token(np.concatenate([np.zeros(0, dtype=np.int64), *lengths]))


def _prepared_sources(preparation: Preparation) -> tuple[SourceForesight, ...]:
    """Count what each source gave by the files that the kept documents name."""
    counts: dict[str, tuple[int, int]] = {}
    for path in sorted(preparation.folder.glob(block_name("documents", 0, "parquet").replace("00000", "*"))):
        table = parquet.read_table(path, columns=["source", "length"])
        grouped = table.group_by("source").aggregate([("length", "sum"), ("length", "count")])
        columns = (grouped.column(name).to_pylist() for name in ("source", "length_count", "length_sum"))
        for name, documents, tokens in zip(*columns, strict=True):
            before = counts.get(name, (0, 0))
            counts[name] = (before[0] + documents, before[1] + tokens)
    found = []
    for inputs in preparation.training:
        names = (
            {inputs.source.path} if inputs.source.path.startswith(builtin.PREFIX) else {f.path for f in inputs.files}
        )
        documents, tokens = (sum(counts.get(name, (0, 0))[place] for name in names) for place in (0, 1))
        of_tokens = Range.exactly(tokens)
        found.append(
            SourceForesight(
                inputs.source.path,
                len(inputs.files),
                _stored(inputs),
                Range.exactly(documents),
                of_tokens,
                None,
                of_tokens,
            )
        )
    return tuple(found)


def _stored(inputs: Inputs) -> int | None:
    sizes = [file.size_bytes for file in inputs.files]
    return None if any(size is None for size in sizes) else sum(size or 0 for size in sizes)


def _to_be_sampled(preparation: Preparation, role: str, needed: int) -> TextForesight:
    """Foresee text that the base model will write: as many tokens as the recipe says, in documents of one length."""
    section = preparation.corpus.self_replay
    assert section is not None, "a corpus has sources or is sampled"
    assert section.tokens is not None, "the pipeline gives an open budget its number"
    share = 0.0 if preparation.held_out else float(preparation.corpus.held_out.share)
    tokens, length = section.tokens * (1 - share), preparation.sequence_tokens
    if preparation.wanted_tokens is not None:  # sampling ends when these are there
        tokens = min(tokens, float(preparation.wanted_tokens))
    sequences = Range.exactly(tokens / length)
    piece = min(section.document_tokens, length)
    return TextForesight(
        role=role,
        basis="to be sampled",
        sources=(),
        sampled_documents=0,
        documents=Range.exactly(ceil(tokens / section.document_tokens)),
        tokens=Range.exactly(tokens),
        kept_share=1 - share,
        bytes_per_token=0.0,
        sequences=sequences,
        sequences_needed=needed,
        tokens_needed=needed * length,
        passes=Range.exactly(needed / sequences.value if tokens else 0.0),
        pairs_per_token=(piece + 1) / 2,
        losses=(),
        prepare_seconds=None,
        disk_bytes=tokens * token_dtype(preparation.tokenizer.vocabulary_size).itemsize,
        held_out_tokens=section.tokens * share or _held_out_elsewhere(preparation, 0.0),
    )


def _estimated(preparation: Preparation, role: str, needed: int, workers: int, sample: Sample) -> TextForesight:
    wanted, tally, length = preparation.wanted_tokens, sample.tally, preparation.sequence_tokens
    sources = _filled_up(sample.sources, wanted)
    whole = _total(source.tokens for source in sample.sources)
    tokens = whole if wanted is None else whole.at_most(wanted)
    documents = _total(source.documents for source in sample.sources)
    text = _total(source.text_bytes for source in sample.sources)
    sequences = tokens.times(1 / (length * sample.fill)) if sample.fill else Range.exactly(0.0)
    read_share = tokens.value / whole.value if whole.value else 1.0
    seconds = text.value * read_share * sample.seconds_per_byte / workers
    ratio = tally.kept.bytes / max(tally.kept_tokens, 1)
    held_out = tally.held_out.bytes / max(tally.kept.bytes, 1) * tokens.value
    return TextForesight(
        role=role,
        basis="estimated",
        sources=sources,
        sampled_documents=tally.read.documents,
        documents=documents.times(read_share),
        tokens=tokens,
        kept_share=tally.kept.bytes / max(tally.read.bytes, 1),
        bytes_per_token=ratio,
        sequences=sequences,
        sequences_needed=needed,
        tokens_needed=needed * length,
        passes=Range.exactly(needed).divided_by(sequences) if sequences.low else Range.exactly(0.0),
        pairs_per_token=sample.pairs_per_token,
        losses=_losses(tally.losses()),
        prepare_seconds=Range(seconds, seconds * (1 + _SLOWER) / 2, seconds * _SLOWER),
        disk_bytes=tokens.value * sample.disk_bytes_per_token,
        held_out_tokens=held_out or _held_out_elsewhere(preparation, ratio),
    )


def _total(parts: Iterable[Range]) -> Range:
    """Add up; the errors of the sources add up as well, since what makes one sample unlike its whole makes others."""
    total = Range.exactly(0.0)
    for part in parts:
        total = total.plus(part)
    return total


def _filled_up(samples: tuple[SourceSample, ...], wanted: int | None) -> tuple[SourceForesight, ...]:
    """Share the wanted tokens out over the sources, which are read one after the other."""
    found, before = [], Range.exactly(0.0)
    for sample in samples:
        taken = sample.tokens
        if wanted is not None:
            low, value, high = (max(0.0, wanted - given) for given in (before.high, before.value, before.low))
            taken = Range(min(taken.low, low), min(taken.value, value), min(taken.high, high))
        before = before.plus(sample.tokens)
        found.append(
            SourceForesight(
                sample.inputs.source.path,
                len(sample.inputs.files),
                sample.stored_bytes,
                sample.documents,
                sample.tokens,
                sample.read_documents,
                taken,
            )
        )
    return tuple(found)


def _held_out_elsewhere(preparation: Preparation, bytes_per_token: float) -> float:
    """Return about how many tokens held-out text of its own sources has."""
    files = [file for inputs in preparation.held_out for file in inputs.files]
    packed = (*COMPRESSIONS, *TABLES)
    content = sum((file.size_bytes or 0) * (3 if file.path.endswith(packed) else 1) for file in files)
    return content / (bytes_per_token or 4.0)


def _problems(preparation: Preparation, sample: Sample) -> list[UserError]:
    """Say what would end the preparation: nothing kept, or too much that cannot be read."""
    tally, section = sample.tally, preparation.section
    where = f"{section}.sources: {', '.join(source.path for source in preparation.corpus.sources)}"
    limit = preparation.corpus.maximum_unreadable
    if tally.num_unreadable > limit * tally.read.documents:
        got = f"{tally.num_unreadable:,} of the first {tally.read.documents:,}: {'; '.join(tally.unreadable[:3])}"
        known = f"the fields are {', '.join(sample.fields)}; " if sample.fields else ""
        todo = f"{known}name the one that holds the text (`text: ...`), mend the files, or raise "
        todo += f"{section}.maximum_unreadable"
        return [UserError("too many records cannot be read", where, got, f"at most {format_share(limit)}", todo)]
    if not tally.kept.documents:
        return [nothing_kept("no document of a sample would be left to train on", preparation, tally)]
    return []
