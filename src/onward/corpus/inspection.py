"""A look into a prepared corpus: what became of the text, how it is spread, and samples of every end to read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute

from onward.artifact import MANIFEST, building_place, read_manifest
from onward.corpus.blocks import block_name
from onward.corpus.inspected import (
    Cluster,
    Dropped,
    Example,
    Inspection,
    Measured,
    Packed,
    Passage,
    Removed,
    Repeats,
    Sample,
    TaskHits,
)
from onward.corpus.ledger import Ledger, read_ledger
from onward.corpus.packing import load_packing
from onward.corpus.samples import read_samples
from onward.corpus.survey import Choice, OriginTally, SpreadTally, batches, hosts, integers
from onward.corpus.tables import EXCERPT_CHARACTERS, FACTS_FILE, HELD_OUT_FILE
from onward.corpus.tokens import open_tokens
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer, read_saved_tokenizer

SHOWN_ORIGINS = 20
SHOWN_CLUSTERS = 10
_SAMPLE_TOKENS = 160
"""Tokens decoded of a kept document: enough for the excerpt in any tokenizer that spells no words out."""
_TEXT_ROWS = 256
"""Rows read at a time where they hold whole texts."""
_DOUBLING = (0, *(2**power for power in range(40)))
_QUARTERS = tuple(range(0, 1625, 25))
"""Bytes per token are counted in hundredths, shown in quarters up to 16."""
_HUNDREDTHS = 6400
_EXPECTED = "a prepared corpus, a run's folder with prepared corpora, or the recipe of such a run"
_EXACT, _NEAR = "same text", "near"


def inspect_corpus(folder: Path, samples: int = 3, seed: int = 0) -> Inspection:
    """Look into a prepared corpus; the same folder, samples and seed give the same result.

    samples: examples of kept documents, and of each rule, cluster and task. Memory stays at a few hundred megabytes
    whatever the size of the corpus. Raises UserError when `folder` is no prepared corpus of this version.
    """
    facts, made_from = _facts(folder)
    ledger = read_ledger(folder)
    look = _Look(folder, facts["blocks"], samples, seed)
    exact, near = (look.repeats(kind) for kind in (_EXACT, _NEAR))
    look.documents({number for counts in (exact, near) for number, _ in counts.largest})
    return Inspection(
        folder=str(folder),
        fingerprint=folder.name,
        ledger=ledger,
        engine=facts["tokenizer_engine"]["name"],
        engine_reason=facts["tokenizer_engine"]["reason"],
        blocks=facts["blocks"],
        lengths=look.lengths.spread(_DOUBLING),
        bytes_per_token=look.ratios.spread(_QUARTERS, 0.01),
        measures=tuple(
            Measured(rule, found["threshold"], found["is_maximum"], tuple(found["counts"]))
            for rule, found in facts["histograms"].items()
        ),
        sources=look.sources.origins(SHOWN_ORIGINS),
        domains=look.domains.origins(SHOWN_ORIGINS) if look.has_domains else None,
        exact=look.described(exact, ledger.duplicate.documents, ledger.duplicate.bytes),
        near=look.described(near, ledger.near_duplicate.documents, ledger.near_duplicate.bytes),
        contamination=look.contamination(tasks) if (tasks := made_from.get("items.tasks")) is not None else None,
        packing=look.packing(facts["packing"]),
        samples=read_samples(folder),
        kept=look.kept(),
        dropped=look.dropped(ledger),
    )


def find_corpora(place: str, runs: Path) -> dict[str, Path]:
    """Return the prepared corpora that `place` means, by name (`corpus` for a folder that is one).

    place: a corpus folder, a run's folder, or the recipe of a run. runs: where runs stand. Raises UserError when there
    is none.
    """
    path = Path(place).expanduser()
    if (path / "ledger.json").is_file():
        return {"corpus": path.absolute()}
    if building_place(path.absolute()).is_dir():
        todo = "run `onward prepare` again: it goes on where it stopped"
        raise UserError("this corpus is still being prepared, or its preparation was interrupted", place, todo=todo)
    run = path
    from onward.recipe.loading import PACKAGED

    if not path.exists() and not path.suffix and place not in PACKAGED:
        raise UserError("there is no such folder", place, expected=_EXPECTED)
    if not path.is_dir():
        from onward.recipe import load_recipe

        run = runs / load_recipe(place).name
    recorded = json.loads((run / "artifacts.json").read_bytes()) if (run / "artifacts.json").is_file() else {}
    corpora = {name: run / folder for name, folder in (recorded.get("corpora") or {}).items() if folder}
    if not corpora:
        raise UserError("there is no prepared corpus", str(run), expected=_EXPECTED, todo="onward prepare RECIPE")
    return corpora


def find_corpus(place: str, runs: Path) -> Path:
    """Return the one corpus that `place` means, as `find_corpora` does; raises UserError when there are several."""
    corpora = find_corpora(place, runs)
    if len(corpora) > 1:
        got = ", ".join(f"{name}: {folder}" for name, folder in corpora.items())
        raise UserError(
            "this run has several corpora", place, got, "one of them", "name the folder of the one you mean"
        )
    return next(iter(corpora.values()))


def can_be_inspected(folder: Path) -> bool:
    """Whether a folder is a whole corpus of this version."""
    try:
        _facts(folder)
    except UserError:
        return False
    return True


def _facts(folder: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return facts.json, and what the corpus was made from."""
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind != "corpus":
        raise UserError("this is not a prepared corpus", str(folder), expected=f"a folder with {MANIFEST} of a corpus")
    todo = f"remove {folder} and prepare it again"
    if FACTS_FILE not in manifest.files:
        raise UserError("this corpus was prepared by an older version", str(folder), todo=todo)
    missing = [name for name in manifest.files if not (folder / name).is_file()]
    if missing:
        raise UserError("files of this corpus are missing", str(folder), ", ".join(missing[:5]), todo=todo)
    return json.loads((folder / FACTS_FILE).read_bytes()), manifest.made_from


@dataclass(frozen=True)
class _Counted:
    """Duplicates of one kind, before the documents that stayed are known. largest: (number, removed)."""

    listed: int
    elsewhere: int
    clusters: int
    largest: tuple[tuple[int, int], ...]
    examples: Mapping[int, tuple[Removed, ...]]


class _Look:
    """The passes over the tables of one corpus, and what they gather."""

    def __init__(self, folder: Path, blocks: int, samples: int, seed: int) -> None:
        self._folder, self._blocks, self._samples, self._seed = folder, blocks, samples, seed
        self.lengths, self.ratios = SpreadTally(), SpreadTally()
        self.sources, self.domains = OriginTally(), OriginTally()
        self.has_domains = False
        self._kept = Choice(samples, seed)
        self._stayed: dict[int, tuple[bool, Mapping[str, Any]]] = {}
        self._tokenizer: LoadedTokenizer | None = None

    def documents(self, wanted: set[int]) -> None:
        """Pass over the kept documents; wanted: numbers of those whose row is needed."""
        columns = ("number", "id", "source", "offset", "length", "bytes")
        for batch in batches(self._paths("documents"), columns):
            lengths, sizes = integers(batch, "length"), integers(batch, "bytes")
            self.lengths.add(lengths, lengths)
            self.ratios.add(np.minimum(100 * sizes // np.maximum(lengths, 1), _HUNDREDTHS), lengths)
            self.sources.add(batch.column("source"), sizes, lengths)
            names = compute.coalesce(hosts(batch.column("id")), hosts(batch.column("source")))
            if names.null_count < len(names):
                self.has_domains = True
                self.domains.add(names, sizes, lengths)
            self._kept.offer(batch)
            self._remember(batch, wanted, False)
        if wanted - self._stayed.keys():
            texts = batches([self._folder / HELD_OUT_FILE], ("number", "id", "source", "text"), _TEXT_ROWS)
            for batch in texts:
                self._remember(batch, wanted, True)

    def kept(self) -> tuple[Sample, ...]:
        """Return the chosen documents, in the order of the corpus."""
        rows = sorted(self._kept.rows(), key=lambda row: int(row["number"]))
        return tuple(Sample(r["id"], r["source"], r["length"], r["bytes"], self._decoded(r)) for r in rows)

    def dropped(self, ledger: Ledger) -> tuple[Dropped, ...]:
        """Return what each rule dropped with examples, the rule with most documents first."""
        choice = Choice(self._samples, self._seed)
        for batch in batches(self._paths("dropped"), ("id", "source", "reason", "excerpt")):
            choice.offer(batch, batch.column("reason"))
        for batch in batches(self._paths("duplicates"), ("id", "source", "kind", "excerpt")):
            choice.offer(batch, batch.column("kind"))  # texts of the held-out side are dropped by a rule of that name
        counts = {**ledger.dropped, "contaminated": ledger.contaminated}
        ranked = sorted(counts.items(), key=lambda item: (-item[1].documents, item[0]))
        return tuple(
            Dropped(rule, count.documents, count.bytes, choice.seen.get(rule, 0), tuple(_examples(choice.rows(rule))))
            for rule, count in ranked
            if count.documents
        )

    def repeats(self, kind: str) -> _Counted:
        """Count the clusters of listed duplicates of one kind."""
        columns = ("id", "source", "kind", "of", "bands", "excerpt")

        def listed() -> Iterator[pa.RecordBatch]:
            for batch in batches(self._paths("duplicates"), columns):
                yield batch.filter(compute.equal(batch.column("kind"), kind))

        of = np.concatenate([np.zeros(0, dtype=np.int64), *(integers(batch, "of") for batch in listed())])
        numbers, sizes = np.unique(of[of >= 0], return_counts=True)
        order = np.lexsort((numbers, -sizes))[:SHOWN_CLUSTERS]
        largest = tuple(zip(numbers[order].tolist(), sizes[order].tolist(), strict=True))
        rows: dict[int, list[Removed]] = {number: [] for number, _ in largest}
        for batch in listed():  # again, so that only the clusters that are shown are held
            chosen = np.flatnonzero(np.isin(integers(batch, "of"), list(rows)))
            for row in batch.take(pa.array(chosen)).to_pylist():
                if len(rows[row["of"]]) < self._samples:
                    removed = Removed(row["id"], row["source"], row["bands"], _marked(row["excerpt"]))
                    rows[row["of"]].append(removed)
        examples = {number: tuple(found) for number, found in rows.items()}
        return _Counted(len(of), int((of < 0).sum()), len(numbers), largest, examples)

    def described(self, counted: _Counted, documents: int, size: int) -> Repeats:
        """Return the duplicates of one kind with the documents that stayed."""
        clusters = []
        for number, removed in counted.largest:
            is_held_out, row = self._stayed[number]
            excerpt = _marked(row["text"][:EXCERPT_CHARACTERS]) if is_held_out else self._decoded(row)
            examples = counted.examples[number]
            clusters.append(Cluster(row["id"], row["source"], is_held_out, excerpt, removed, examples))
        return Repeats(documents, size, counted.listed, counted.elsewhere, counted.clusters, tuple(clusters))

    def contamination(self, tasks: Sequence[str]) -> tuple[TaskHits, ...]:
        """Return what was found of the items of each task looked for, the task with most items first."""
        choice = Choice(self._samples, self._seed)
        items: dict[str, set[str]] = {task: set() for task in tasks}
        standing: dict[str, set[str]] = {task: set() for task in tasks}
        documents: dict[str, set[int]] = {task: set() for task in tasks}
        columns = ("task", "item", "id", "source", "score", "action", "excerpt")
        for batch in batches(self._paths("contamination"), columns):
            choice.offer(batch, batch.column("task"))
            rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            for task, item, name, source, _, action, _ in rows:
                items[task].add(item)
                documents[task].add(hash((name, source)))
                if action == "report":
                    standing[task].add(item)
        found = []
        for task in items:
            passages = tuple(_passages(choice.rows(task)))
            counts = (len(items[task]), len(standing[task]), len(documents[task]))
            found.append(TaskHits(task, *counts, passages))
        return tuple(sorted(found, key=lambda hits: (-hits.items, hits.task)))

    def packing(self, mode: str) -> Packed:
        """Return how documents lie in the sequences of all blocks."""
        pieces = cut = 0
        per_sequence = SpreadTally()
        for number in range(self._blocks):
            packing = load_packing(self._folder / block_name("packing", number, "npz"))
            counts = np.diff(packing.sequence_start)
            per_sequence.add(counts, counts)
            pieces += len(packing.piece_offset)
            ends = packing.piece_ends_document[np.argsort(packing.piece_offset)]
            begins = np.concatenate([np.ones(min(1, len(ends)), dtype=np.bool_), ends[:-1]])
            cut += int((begins & ~ends).sum())
        return Packed(mode, pieces, cut, per_sequence.spread((0, 1, 2, 3, *(2**power + 1 for power in range(2, 20)))))

    def _paths(self, kind: str) -> list[Path]:
        return [self._folder / block_name(kind, number, "parquet") for number in range(self._blocks)]

    def _remember(self, batch: pa.RecordBatch, wanted: set[int], is_held_out: bool) -> None:
        numbers = integers(batch, "number")
        found = batch.take(np.flatnonzero(np.isin(numbers, list(wanted))))
        self._stayed |= {row["number"]: (is_held_out, row) for row in found.to_pylist()}

    def _decoded(self, row: Mapping[str, Any]) -> str:
        """Return the beginning of a kept document, read from its tokens: what the model will see."""
        if self._tokenizer is None:
            self._tokenizer = read_saved_tokenizer(self._folder / "tokenizer")
        first = 0
        for number in range(self._blocks):
            tokens = open_tokens(self._folder / block_name("tokens", number, "npy"))
            if row["offset"] < first + len(tokens):
                begin = row["offset"] - first
                length = min(row["length"], _SAMPLE_TOKENS)
                text = self._tokenizer.decode(tokens[begin : begin + length].tolist())
                # A character may be cut between two of its tokens.
                return _marked(text.rstrip("\N{REPLACEMENT CHARACTER}"), length < row["length"])
            first += len(tokens)
        raise AssertionError(f"token {row['offset']} is beyond the corpus")


def _marked(text: str, is_cut: bool | None = None) -> str:
    """Return an excerpt that says by an ellipsis that the text goes on; None: it does when the excerpt is full."""
    goes_on = len(text) >= EXCERPT_CHARACTERS if is_cut is None else is_cut or len(text) > EXCERPT_CHARACTERS
    return text[:EXCERPT_CHARACTERS] + ("…" if goes_on else "")


def _examples(rows: Sequence[Mapping[str, Any]]) -> Iterator[Example]:
    for row in rows:
        yield Example(row["id"], row["source"], _marked(row["excerpt"]))


def _passages(rows: Sequence[Mapping[str, Any]]) -> Iterator[Passage]:
    for row in rows:
        yield Passage(row["item"], row["id"], row["source"], row["score"], row["action"], row["excerpt"])
