"""What an inspection of a prepared corpus finds, as plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from onward.corpus.ledger import Ledger
from onward.corpus.samples import Samples
from onward.corpus.survey import Origins, Spread

ACTIONS = {"drop": "document dropped", "cut": "passage cut out", "report": "left in the text"}
"""What was done about a benchmark item, in words."""


@dataclass(frozen=True)
class Sample:
    """A kept document: its first characters, its tokens and bytes."""

    id: str
    source: str
    tokens: int
    bytes: int
    excerpt: str


@dataclass(frozen=True)
class Example:
    """A document that is not in the corpus any more, or a passage of one."""

    id: str
    source: str
    excerpt: str


@dataclass(frozen=True)
class Dropped:
    """What one rule dropped. listed: rows that the tables hold; examples are chosen among these."""

    rule: str
    documents: int
    bytes: int
    listed: int
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Removed:
    """A document removed as a duplicate. bands: equal bands of the signature, 0 for exact duplicates."""

    id: str
    source: str
    bands: int
    excerpt: str


@dataclass(frozen=True)
class Cluster:
    """Documents alike: the one that stayed (`id`; is_held_out: on the held-out side) and examples of those removed.

    removed: how many, among the rows that the tables list.
    """

    id: str
    source: str
    is_held_out: bool
    excerpt: str
    removed: int
    examples: tuple[Removed, ...]


@dataclass(frozen=True)
class Repeats:
    """Duplicates of one kind. documents: removed in all; listed: rows in the tables, which the rest describes.

    elsewhere: rows whose first reading is in another corpus. clusters: number of documents that stayed for others.
    largest: the clusters that most documents were removed from.
    """

    documents: int
    bytes: int
    listed: int
    elsewhere: int
    clusters: int
    largest: tuple[Cluster, ...]


@dataclass(frozen=True)
class Passage:
    """A benchmark item found in a document.

    score: share of the item's n-grams that the document holds. action: what was done (drop, cut, report).
    """

    item: str
    id: str
    source: str
    score: float
    action: str
    excerpt: str


@dataclass(frozen=True)
class TaskHits:
    """What was found of one task.

    items: how many different items; standing: those of them that still stand in the training text; documents: that
    held one. passages: examples.
    """

    task: str
    items: int
    standing: int
    documents: int
    passages: tuple[Passage, ...]


@dataclass(frozen=True)
class Measured:
    """What one quality rule measured. counts: documents by value, in equal bins from 0 to twice the threshold.

    The last count is of all larger values. is_maximum: larger values speak against a document.
    """

    rule: str
    threshold: float
    is_maximum: bool
    counts: tuple[int, ...]

    @property
    def beyond(self) -> int:
        """Documents on the threshold's wrong side; of a maximum, those that reach it as well."""
        middle = (len(self.counts) - 1) // 2
        return sum(self.counts[middle:] if self.is_maximum else self.counts[:middle])


@dataclass(frozen=True)
class Packed:
    """How documents lie in sequences. pieces: documents, and parts of those that were cut.

    pieces_per_sequence: its `documents` are sequences, its `tokens` pieces.
    """

    mode: str
    pieces: int
    cut_documents: int
    pieces_per_sequence: Spread


@dataclass(frozen=True)
class Inspection:
    """Everything `onward inspect` shows of a corpus; `as_json` is the same for machines.

    lengths: tokens of kept documents, BOS and EOS included. bytes_per_token: of each document, over those tokens.
    domains: None where neither ids nor sources are web addresses. contamination: None where nothing was looked for.
    samples: None where nothing was sampled from the base model.
    """

    folder: str
    fingerprint: str
    ledger: Ledger
    engine: str
    engine_reason: str
    blocks: int
    lengths: Spread
    bytes_per_token: Spread
    measures: tuple[Measured, ...]
    sources: Origins
    domains: Origins | None
    exact: Repeats
    near: Repeats
    contamination: tuple[TaskHits, ...] | None
    packing: Packed
    samples: Samples | None
    kept: tuple[Sample, ...]
    dropped: tuple[Dropped, ...]

    def as_json(self) -> dict[str, Any]:
        """Return plain values, the overall ratios among them."""
        tokens = self.ledger.kept_tokens
        ratio = {"bytes_per_kept_token": self.ledger.kept.bytes / tokens if tokens else None}
        measures = [{**asdict(measure), "beyond": measure.beyond} for measure in self.measures]
        return {**asdict(self), **ratio, "measures": measures}
