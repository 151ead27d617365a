"""Sorting: every document goes to exactly one end, in the order of reading, and the tally counts it there."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.corpus import blocks
from onward.corpus.blocks import BlockWriter
from onward.corpus.documents import WITHOUT_TEXT, Unreadable
from onward.corpus.duplicates.passages import Passages
from onward.corpus.duplicates.seen import COVERED, EXACT, NEAR, NONE, OTHER_SIDE, Matches, Seen
from onward.corpus.examine import Examined
from onward.corpus.histograms import Histograms
from onward.corpus.ledger import Count, Tally
from onward.corpus.packing import PackingMode
from onward.corpus.tables import LISTED_ROWS
from onward.corpus.tokens import token_dtype

SPLIT_TWIN = "same text on the other side of the held-out split"
"""Ledger rule for texts that would stand in training and held-out text both (only when duplicates are kept)."""
PASSAGES_KNOWN = "passages read before"
"""Ledger rule for documents put together from what was read, though like no single document."""
_FIELDS_SHOWN = 30
_KINDS = {EXACT: "same text", NEAR: "near", OTHER_SIDE: SPLIT_TWIN, COVERED: PASSAGES_KNOWN}

Rows = NDArray[np.int64]


class Sorter:
    """Writes documents to their ends, block by block: dropped, duplicate, contaminated, held out, kept.

    folder: where the corpus is made; finished blocks found there are gone on from. wanted_tokens: sorting is over when
    so many are kept. item_names: (task, item) of each benchmark item.
    """

    def __init__(
        self,
        folder: Path,
        *,
        vocabulary_size: int,
        sequence_tokens: int,
        packing: PackingMode,
        block_tokens: int,
        wanted_tokens: int | None,
        seen: Seen,
        item_names: Sequence[tuple[str, str]],
        action: str,
    ) -> None:
        self._folder = folder
        self._dtype = token_dtype(vocabulary_size)
        self._sequence_tokens, self._packing, self._block_tokens = sequence_tokens, packing, block_tokens
        self._wanted_tokens = wanted_tokens
        self._seen = seen
        self._item_names, self._action = item_names, action
        (folder / blocks.STATE).mkdir(exist_ok=True)
        states = blocks.finished_blocks(folder)
        self.number_of_blocks = len(states)
        self.tally = Tally()
        self.fields: dict[str, None] = {}
        self.histograms = Histograms()
        self.position: Any = None
        self._number = 0
        self._listed: dict[str, int] = {}
        if states:
            self._restore(states[-1])
        self._block: BlockWriter | None = None

    @property
    def is_full(self) -> bool:
        """Whether the wanted tokens are there."""
        return self._wanted_tokens is not None and self.tally.kept_tokens >= self._wanted_tokens

    def take(self, batches: Sequence[Examined], position: Any) -> None:
        """Sort a chunk's documents; the rest of the chunk counts as not read once the wanted tokens are there.

        position: where reading goes on after the chunk; kept with the block that ends here.
        """
        if self._block is None:
            self._block = BlockWriter(self._folder, self.number_of_blocks, self.tally.kept_tokens, self._dtype)
        for examined in batches:
            if not self.is_full:
                self._take(examined)
        self.position = position
        is_long = self._block.read_bytes >= blocks.LARGEST_READ_BYTES
        if self._block.kept_tokens >= self._block_tokens or is_long:
            self.finish_block()

    def _take(self, examined: Examined) -> None:
        begin, count = 0, len(examined.ids)
        while begin < count and not self.is_full:
            end = begin + self._prefix(examined, begin)
            self._sort(examined, slice(begin, end))
            begin = end
        read = count if not self.is_full else begin - 1  # the histograms below still take in the whole batch
        self._take_unreadable([record for before, record in examined.unreadable if before <= read])
        self.histograms.merge(examined.histograms)

    def finish_block(self) -> None:
        """End the block that is open, if any: from here on it outlives a kill."""
        if self._block is None:
            return
        packing = self._block.finish(self._sequence_tokens, self._packing)
        self._seen.finish_block(self._block.number)
        self.tally.sequences += packing.num_sequences
        self.tally.packed_tokens += packing.packed_tokens
        self.tally.padding_tokens += packing.padding_tokens
        blocks.save_state(self._folder, self._block.number, self._state())
        self.number_of_blocks += 1
        self._block = None

    def abandon(self) -> None:
        """Leave an unfinished block to the next start."""
        if self._block is not None:
            self._block.abandon()

    def _state(self) -> dict[str, Any]:
        return {
            "position": self.position,
            "number": self._number,
            "tally": asdict(self.tally),
            "listed": self._listed,
            "fields": list(self.fields),
            "histograms": self.histograms.as_json(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.position = state["position"]
        self._number = state["number"]
        self.tally = Tally.restored(state["tally"])
        self._listed = state["listed"]
        self.fields = dict.fromkeys(state["fields"])
        self.histograms = Histograms.restored(state["histograms"])

    def _prefix(self, examined: Examined, begin: int) -> int:
        """How many documents may be sorted at once without going beyond the wanted tokens, were all of them kept."""
        rest = len(examined.ids) - begin
        if self._wanted_tokens is None:
            return rest
        reached = examined.starts[begin + 1 :] - examined.starts[begin]
        missing = self._wanted_tokens - self.tally.kept_tokens
        return min(rest, int(np.searchsorted(reached, missing)) + 1)

    def _sort(self, examined: Examined, part: slice) -> None:
        """Sort some documents of a chunk."""
        assert self._block is not None
        numbers = np.arange(self._number, self._number + part.stop - part.start)
        self._number += len(numbers)
        alive = (examined.reason[part] < 0) & ~examined.contaminated[part]
        held_out = examined.held_out[part]
        passages = _passages_of(examined.passages, part)
        matches = self._seen.sort(examined.keys[part], numbers * 2 + held_out, alive, passages)
        first = part.start
        ends = {
            "dropped": np.flatnonzero(examined.reason[part] >= 0),
            "contaminated": np.flatnonzero((examined.reason[part] < 0) & examined.contaminated[part]),
            "repeated": np.flatnonzero(alive & (matches.kind != NONE)),
            "held_out": np.flatnonzero(alive & (matches.kind == NONE) & held_out),
            "kept": np.flatnonzero(alive & (matches.kind == NONE) & ~held_out),
        }
        sizes = examined.read_bytes[part]
        self.tally.read += _count(sizes)
        self._block.read_bytes += int(sizes.sum())
        self._drop(examined, ends["dropped"] + first, numbers[ends["dropped"]])
        self.tally.contaminated += _count(sizes[ends["contaminated"]])
        self._list_dropped(examined, ends["contaminated"] + first, numbers[ends["contaminated"]], "contaminated")
        self._repeated(examined, ends["repeated"], first, numbers, matches)
        self._hold_out(examined, ends["held_out"] + first, numbers[ends["held_out"]])
        self._keep(examined, ends["kept"] + first, numbers[ends["kept"]])
        rows = np.concatenate([ends["contaminated"], ends["kept"]]) + first
        self._touched(examined, set(rows.tolist()))

    def _drop(self, examined: Examined, rows: Rows, numbers: Rows) -> None:
        reasons = examined.reason[rows]
        for code in np.unique(reasons).tolist():
            chosen = reasons == code
            rule = examined.reasons[code]
            self.tally.drop(rule, _count(examined.read_bytes[rows[chosen]]))
            self._list_dropped(examined, rows[chosen], numbers[chosen], rule)

    def _list_dropped(self, examined: Examined, rows: Rows, numbers: Rows, rule: str) -> None:
        assert self._block is not None
        rows = self._still_listed(rule, rows)
        ids, sources, excerpts = _chosen(rows, examined.ids, examined.sources, examined.excerpts)
        self._block.dropped.add(numbers[: len(rows)], ids, sources, [rule] * len(rows), excerpts)

    def _still_listed(self, rule: str, rows: Rows) -> Rows:
        """Return the first of the rows that a table still takes: a rule that drops millions is not listed whole."""
        listed = self._listed.get(rule, 0)
        rows = rows[: max(0, LISTED_ROWS - listed)]
        self._listed[rule] = listed + len(rows)
        return rows

    def _repeated(self, examined: Examined, rows: Rows, first: int, numbers: Rows, matches: Matches) -> None:
        assert self._block is not None
        sizes = examined.read_bytes[rows + first]
        kinds = matches.kind[rows]
        self.tally.duplicate += _count(sizes[kinds == EXACT])
        self.tally.near_duplicate += _count(sizes[kinds == NEAR])
        for kind in (OTHER_SIDE, COVERED):
            if (kinds == kind).any():
                self.tally.drop(_KINDS[kind], _count(sizes[kinds == kind]))
        for kind, name in _KINDS.items():
            chosen = rows[kinds == kind] if kind == NEAR else self._still_listed(name, rows[kinds == kind])
            ids, sources, excerpts = _chosen(chosen + first, examined.ids, examined.sources, examined.excerpts)
            # The lowest bit of a value tells the side.
            has_one = (matches.of[chosen] >= 0) & (kind != COVERED)
            earlier = np.where(has_one, matches.of[chosen] >> 1, -1)
            facts = (earlier, matches.bands[chosen], excerpts, matches.share[chosen])
            self._block.duplicates.add(numbers[chosen], ids, sources, [name] * len(chosen), *facts)

    def _hold_out(self, examined: Examined, rows: Rows, numbers: Rows) -> None:
        assert self._block is not None
        self.tally.held_out += _count(examined.kept_bytes[rows])
        self._trimmed(examined, rows)
        for n, number in zip(rows.tolist(), numbers.tolist(), strict=True):
            text, group = examined.held_out_texts[n]
            row = (number, examined.ids[n], examined.sources[n], group, text, int(examined.kept_bytes[n]))
            self._block.held_out.add(int(examined.order[n]), row)

    def _keep(self, examined: Examined, rows: Rows, numbers: Rows) -> None:
        assert self._block is not None
        if not len(rows):
            return
        self._trimmed(examined, rows)
        sizes, starts = examined.kept_bytes[rows], examined.starts
        lengths = (starts[1:] - starts[:-1])[rows]
        first, last = int(starts[rows[0]]), int(starts[rows[-1] + 1])
        tokens = examined.tokens[first:last]
        if len(tokens) != int(lengths.sum()):  # some between them are not kept
            tokens = np.concatenate([examined.tokens[starts[n] : starts[n + 1]] for n in rows.tolist()])
        offset = self._block.append(np.ascontiguousarray(tokens), lengths)
        offsets = offset + np.cumsum(lengths) - lengths
        ids, sources = _chosen(rows, examined.ids, examined.sources)
        self._block.documents.add(numbers, ids, sources, offsets, lengths, sizes, examined.digest[rows])
        self.tally.kept += _count(sizes)
        self.tally.kept_tokens += len(tokens)

    def _trimmed(self, examined: Examined, rows: Rows) -> None:
        for rule, taken in examined.trimmed.items():
            if (found := taken[rows][taken[rows] > 0]).size:
                self.tally.trim(rule, _count(found))

    def _touched(self, examined: Examined, rows: set[int]) -> None:
        """List the items in these documents; those in a duplicate are gone with it."""
        assert self._block is not None
        touched = [t for t in examined.touched if t.document in rows]
        names = [self._item_names[t.item] for t in touched]
        ids, sources = _chosen([t.document for t in touched], examined.ids, examined.sources)
        self._block.contamination.add(
            [task for task, _ in names],
            [item for _, item in names],
            ids,
            sources,
            [t.score for t in touched],
            [self._action] * len(touched),
            [t.excerpt for t in touched],
        )

    def _take_unreadable(self, records: Sequence[Unreadable]) -> None:
        assert self._block is not None
        for record in records:
            count = Count(record.count, 0)
            self.tally.read += count
            self.tally.drop(record.reason, count)
            listed = len(self._still_listed(record.reason, np.zeros(record.count, dtype=np.int64)))
            places = list(islice(record.places(), listed))
            self._block.dropped.add([-1] * listed, places, places, [record.reason] * listed, [""] * listed)
            if record.reason not in WITHOUT_TEXT:
                self.tally.num_unreadable += record.count
                for place in places:
                    self.tally.name_place(place, record.reason)
            if len(self.fields) < _FIELDS_SHOWN:
                self.fields |= dict.fromkeys(record.fields)


def _passages_of(passages: Passages | None, part: slice) -> Passages | None:
    if passages is None:
        return None
    starts = passages.starts[part.start : part.stop + 1]
    return Passages(passages.keys[starts[0] : starts[-1]], starts - starts[0])


def _count(sizes: NDArray[np.int64]) -> Count:
    return Count(len(sizes), int(sizes.sum()))


def _chosen(rows: Rows | Sequence[int], *columns: list[str]) -> tuple[list[str], ...]:
    places = rows.tolist() if isinstance(rows, np.ndarray) else rows
    return tuple([column[n] for n in places] for column in columns)
