"""The runs of a corpus that is being made: added block by block, merged when they are many, whole after any kill."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from onward.corpus.duplicates.runs import Pairs, Run, flush_folder, merge_runs, open_runs, write_run
from onward.errors import UserError

MOST_RUNS = 12
"""A key that is there is looked for in about half of them. With 8, merging would write every key 3.5 times among 200
blocks and 6.6 times among 2,000; with 12 it is 3.0 and 4.6 times, with 16 2.6 and 3.7 times."""
_NAME = re.compile(r"seen-(\d{5,})-(\d{5,})(?:-(\d{3,}))?\.npy")


@dataclass(frozen=True)
class _Piece:
    """A run and the blocks it belongs to: keys of `first` to `last`, all of them when `part` is None (merged)."""

    first: int
    last: int
    part: int | None
    run: Run


class RunFolder:
    """The runs in `folder`, whose first `blocks` blocks outlive a kill; files of later ones are removed.

    Merged runs replace others only when those are of blocks that outlive a kill, and the others are removed only when
    the merged one is on the disk, so whatever moment a kill comes, the runs of every finished block are there.
    Raises UserError when those of a finished block are missing.
    """

    def __init__(self, folder: Path, blocks: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        names = _tidy(folder, blocks)
        runs = open_runs(folder / name for name, _ in names)
        self._pieces = [_Piece(*numbers, run) for (_, numbers), run in zip(names, runs, strict=True)]

    @property
    def runs(self) -> Sequence[Run]:
        """Every run; no two of them share a key."""
        return [piece.run for piece in self._pieces]

    def add(self, block: int, size: int, pieces: Iterable[Pairs]) -> None:
        """Write a run of a block that is not finished yet: `size` pairs, sorted."""
        part = sum(piece.first == block for piece in self._pieces)
        path = self._folder / f"seen-{block:05d}-{block:05d}-{part:03d}.npy"
        write_run(path, size, pieces)
        flush_folder(self._folder)
        self._pieces.append(_Piece(block, block, part, Run(path)))

    def finish(self, block: int) -> None:
        """Make sure that the block has a run, and merge some of those of earlier blocks when there are many."""
        if all(piece.first != block for piece in self._pieces):
            self.add(block, 0, [])
        if len(self._pieces) <= MOST_RUNS:
            return
        durable = [piece for piece in self._pieces if piece.last < block]
        begin, size = len(durable), 0
        while begin and (
            len(durable) - begin < 2  # fewer would be no merge
            or durable[begin - 1].run.size <= size
            or durable[begin - 1].last == durable[begin].first  # a block is merged whole
        ):
            begin -= 1
            size += durable[begin].run.size
        if len(durable) - begin >= 2:
            self._merge(durable[begin:])

    def merge_all(self, path: Path) -> None:
        """Write all pairs, sorted, to one file."""
        merge_runs(self.runs, path)

    def close(self) -> None:
        """Close every file."""
        for piece in self._pieces:
            piece.run.close()

    def _merge(self, pieces: Sequence[_Piece]) -> None:
        first, last = pieces[0].first, pieces[-1].last
        path = self._folder / f"seen-{first:05d}-{last:05d}.npy"
        aside = path.with_suffix(".tmp")
        merge_runs([piece.run for piece in pieces], aside)
        aside.rename(path)
        flush_folder(self._folder)
        at = self._pieces.index(pieces[0])
        self._pieces[at : at + len(pieces)] = [_Piece(first, last, None, Run(path))]
        for piece in pieces:
            piece.run.close()
        for piece in pieces:
            piece.run.path.unlink()


_Numbers = tuple[int, int, int | None]


def _tidy(folder: Path, blocks: int) -> list[tuple[str, _Numbers]]:
    """Return the names of the runs of the first blocks in order, and remove whatever else a kill has left."""
    found: dict[str, _Numbers] = {}
    for path in [*folder.glob("seen-*.npy"), *folder.glob("seen-*.tmp")]:
        match = _NAME.fullmatch(path.name)
        if match is None or int(match[2]) >= blocks:
            path.unlink()
        else:
            found[path.name] = int(match[1]), int(match[2]), None if match[3] is None else int(match[3])
    merged = [numbers for numbers in found.values() if numbers[2] is None]
    for name, (first, last, part) in list(found.items()):
        wider = (other for other in merged if other[0] <= first and last <= other[1])
        if any(other != (first, last, part) for other in wider):
            (folder / name).unlink()
            del found[name]
    ordered = sorted(found.items(), key=lambda item: (item[1][0], item[1][2] or 0))
    covered = {block for _, (first, last, _) in ordered for block in range(first, last + 1)}
    if missing := set(range(blocks)) - covered:
        got, todo = f"none for block {min(missing)}", "remove this folder and run again; the corpus will be made anew"
        raise UserError("the index of finished work is not whole", str(folder), got, todo=todo)
    return ordered
