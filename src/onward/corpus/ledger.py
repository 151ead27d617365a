"""The ledger: where every document, byte and token went. Integers, exact (contract 1 of the design)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from onward.artifact import write_json

FILE = "ledger.json"
NAMED_PLACES = 20
"""How many unreadable records are named; the rest are counted, and listed in dropped.parquet."""


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

    dropped: by rule. duplicate, contaminated, held_out, kept: the other ends of a document. kept_tokens: with
    BOS and EOS. unreadable: the first places, as `path:line: reason`.
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

    def check(self) -> None:
        """Assert that nothing is missing and nothing is counted twice."""
        ends = sum(self.dropped.values(), self.duplicate + self.contaminated + self.held_out + self.kept)
        assert self.read == ends, f"read {self.read}, accounted for {ends}"
        assert self.kept_tokens == self.packed_tokens + self.cut_tokens, "kept tokens = packed + cut"
        places = self.sequences * self.sequence_tokens
        assert self.packed_tokens + self.padding_tokens == places, "packed + padding = sequences x length"
        values = (self.kept_tokens, self.packed_tokens, self.cut_tokens, self.padding_tokens, self.sequences)
        assert min(values) >= 0, "no negative counts"

    def rows(self) -> list[tuple[str, int, int]]:
        """Return (end, documents, bytes) for display: read first, then every end that holds something, kept last."""
        ends = [*sorted(self.dropped.items()), ("duplicate", self.duplicate), ("contaminated", self.contaminated)]
        ends += [("held out", self.held_out), ("kept", self.kept)]
        shown = [(name, count) for name, count in ends if count.documents or name == "kept"]
        return [(name, count.documents, count.bytes) for name, count in [("read", self.read), *shown]]

    def save(self, folder: Path) -> None:
        """Write ledger.json."""
        write_json(folder / FILE, asdict(self))


def read_ledger(folder: Path) -> Ledger:
    """Read ledger.json of a prepared corpus."""
    content = orjson.loads((folder / FILE).read_bytes())
    for name in ("read", "duplicate", "contaminated", "held_out", "kept"):
        content[name] = Count(**content[name])
    content["dropped"] = {rule: Count(**count) for rule, count in content["dropped"].items()}
    content["unreadable"] = tuple(content["unreadable"])
    return Ledger(**content)


@dataclass
class Tally:
    """The ledger while it is being written."""

    read: Count = Count()
    dropped: dict[str, Count] = field(default_factory=dict)
    duplicate: Count = Count()
    contaminated: Count = Count()
    held_out: Count = Count()
    kept: Count = Count()
    kept_tokens: int = 0
    num_unreadable: int = 0
    unreadable: list[str] = field(default_factory=list)

    def drop(self, rule: str, size_bytes: int) -> None:
        """Count a document that a rule dropped."""
        self.dropped[rule] = self.dropped.get(rule, Count()) + Count(1, size_bytes)

    def name_place(self, where: str, reason: str) -> None:
        """Remember where a record could not be read."""
        self.num_unreadable += 1
        if len(self.unreadable) < NAMED_PLACES:
            self.unreadable.append(f"{where}: {reason}")

    def losses(self) -> Iterator[str]:
        """Describe every end but `kept`, the largest first."""
        ends = {**self.dropped, "duplicate": self.duplicate, "held out": self.held_out}
        for name, count in sorted(ends.items(), key=lambda item: -item[1].documents):
            if count.documents:
                yield f"{name}: {count.documents:,} of {self.read.documents:,}"

    def close(self, sequences: int, sequence_tokens: int, packed_tokens: int, padding_tokens: int) -> Ledger:
        """Return the finished ledger; packing cuts nothing, so kept tokens that it lacks fail the check."""
        ledger = Ledger(
            read=self.read,
            dropped=dict(sorted(self.dropped.items())),
            duplicate=self.duplicate,
            contaminated=self.contaminated,
            held_out=self.held_out,
            kept=self.kept,
            kept_tokens=self.kept_tokens,
            packed_tokens=packed_tokens,
            cut_tokens=0,
            padding_tokens=padding_tokens,
            sequences=sequences,
            sequence_tokens=sequence_tokens,
            unreadable=tuple(self.unreadable),
        )
        ledger.check()
        return ledger
