"""The ledger: where every document, byte and token went. Integers, exact (contract 1 of the design)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import orjson

from onward.artifact import write_json

FILE = "ledger.json"
NAMED_PLACES = 20
"""How many unreadable records are named; the rest are counted, and listed in the dropped tables."""


@dataclass(frozen=True)
class Count:
    """documents, and bytes of their text in UTF-8 (0 for a record whose text could not be read)."""

    documents: int = 0
    bytes: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.documents + other.documents, self.bytes + other.bytes)


@dataclass(frozen=True)
class Ledger:
    """What became of everything that was read.

    dropped: by rule. duplicate (the same normalised text), near_duplicate, contaminated, held_out, kept: the other
    ends of a document. trimmed: by rule, bytes taken out of documents that were kept or held out, and how many
    documents that touched. kept_tokens: with BOS and EOS. unreadable: the first places, as `path:line: reason`.
    """

    read: Count
    dropped: dict[str, Count]
    duplicate: Count
    contaminated: Count
    held_out: Count
    kept: Count
    kept_tokens: int
    packed_tokens: int
    cut_tokens: int
    padding_tokens: int
    sequences: int
    sequence_tokens: int
    unreadable: tuple[str, ...]
    near_duplicate: Count = Count()
    trimmed: dict[str, Count] = field(default_factory=dict)

    def check(self) -> None:
        """Assert that nothing is missing and nothing is counted twice."""
        ends = sum((count for _, count in self._ends()), Count())
        taken_out = sum(count.bytes for count in self.trimmed.values())
        assert self.read.documents == ends.documents, f"read {self.read}, accounted for {ends}"
        assert self.read.bytes == ends.bytes + taken_out, f"read {self.read}, accounted for {ends} + {taken_out} bytes"
        assert self.kept_tokens == self.packed_tokens + self.cut_tokens, "kept tokens = packed + cut"
        places = self.sequences * self.sequence_tokens
        assert self.packed_tokens + self.padding_tokens == places, "packed + padding = sequences x length"
        values = (self.kept_tokens, self.packed_tokens, self.cut_tokens, self.padding_tokens, self.sequences)
        assert min(values) >= 0, "no negative counts"

    def rows(self) -> list[tuple[str, int, int]]:
        """Return (end, documents, bytes) for display: read first, then every end that holds something, kept last."""
        shown = [(name, count) for name, count in self._ends() if count.documents or name == "kept"]
        shown[-1:-1] = sorted(self.trimmed.items())
        return [(name, count.documents, count.bytes) for name, count in [("read", self.read), *shown]]

    def save(self, folder: Path) -> None:
        """Write ledger.json."""
        write_json(folder / FILE, asdict(self))

    def _ends(self) -> list[tuple[str, Count]]:
        ends = [*sorted(self.dropped.items()), ("duplicate", self.duplicate), ("near-duplicate", self.near_duplicate)]
        return [*ends, ("contaminated", self.contaminated), ("held out", self.held_out), ("kept", self.kept)]


_COUNTS = ("read", "duplicate", "near_duplicate", "contaminated", "held_out", "kept")
_BY_RULE = ("dropped", "trimmed")


def read_ledger(folder: Path) -> Ledger:
    """Read ledger.json of a prepared corpus."""
    content = _with_counts(orjson.loads((folder / FILE).read_bytes()))
    return Ledger(**{**content, "unreadable": tuple(content["unreadable"])})


def _with_counts(content: dict[str, Any]) -> dict[str, Any]:
    """Turn the mappings of a JSON file into counts again."""
    counts = {name: Count(**content[name]) for name in _COUNTS if name in content}
    rules = {name: {rule: Count(**c) for rule, c in content[name].items()} for name in _BY_RULE if name in content}
    return {**content, **counts, **rules}


@dataclass
class Tally:
    """The ledger while it is being written."""

    read: Count = Count()
    dropped: dict[str, Count] = field(default_factory=dict)
    duplicate: Count = Count()
    near_duplicate: Count = Count()
    contaminated: Count = Count()
    held_out: Count = Count()
    kept: Count = Count()
    trimmed: dict[str, Count] = field(default_factory=dict)
    kept_tokens: int = 0
    packed_tokens: int = 0
    padding_tokens: int = 0
    sequences: int = 0
    num_unreadable: int = 0
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def restored(cls, content: dict[str, Any]) -> Self:
        """Return the tally that `asdict` turned into `content`."""
        return cls(**_with_counts(content))

    def drop(self, rule: str, count: Count) -> None:
        """Count documents that a rule dropped."""
        self.dropped[rule] = self.dropped.get(rule, Count()) + count

    def trim(self, rule: str, count: Count) -> None:
        """Count bytes that a rule took out of documents."""
        self.trimmed[rule] = self.trimmed.get(rule, Count()) + count

    def name_place(self, where: str, reason: str) -> None:
        """Remember where a record could not be read."""
        if len(self.unreadable) < NAMED_PLACES:
            self.unreadable.append(f"{where}: {reason}")

    def losses(self) -> Iterator[str]:
        """Describe every end but `kept`, the largest first."""
        ends = {
            **self.dropped,
            "duplicate": self.duplicate,
            "near-duplicate": self.near_duplicate,
            "contaminated": self.contaminated,
            "held out": self.held_out,
        }
        for name, count in sorted(ends.items(), key=lambda item: -item[1].documents):
            if count.documents:
                yield f"{name}: {count.documents:,} of {self.read.documents:,}"

    def close(self, sequence_tokens: int) -> Ledger:
        """Return the finished ledger; packing cuts nothing, so kept tokens that it lacks fail the check."""
        shared = {item.name for item in fields(Ledger)} & {item.name for item in fields(Tally)}
        content = {name: getattr(self, name) for name in sorted(shared)}
        content |= {name: dict(sorted(content[name].items())) for name in _BY_RULE}
        content["unreadable"] = tuple(self.unreadable)
        ledger = Ledger(**content, cut_tokens=0, sequence_tokens=sequence_tokens)
        ledger.check()
        return ledger
