"""Checkpoints: everything needed to go on exactly, written in the background, verified before it is trusted.

A checkpoint is an artifact `step-00000012/` or `tokens-000400M/`. Its state/ folder holds the ranks' safetensors files
and cursor.json; a stage's end has a releasable model/ too. The first rank keeps the folder in order; what it decides
or meets, all ranks decide and meet.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from onward.artifact import building, building_place, disk_errors, write_json
from onward.errors import UserError
from onward.training.kept import Found, newest, prune, require_space
from onward.training.ranks import Ranks
from onward.training.state import (
    Piece,
    copies,
    file_numbers,
    missing_files,
    own_pieces,
    read_pieces,
    stored_names,
    total_bytes,
    write_pieces,
)

T = TypeVar("T")
_STATE, _CURSOR = "state", "cursor.json"
_PATIENCE = timedelta(hours=1)
"""How long the ranks' writing threads wait for each other; the first one writes the model and reads all files again."""


@dataclass(frozen=True)
class Snapshot:
    """What a run is at the end of a step: steps done, tokens read (padding included), optimizer updates made.

    facts: JSON: the guard's window, the strategy, the number of ranks, the device, the precision.
    """

    step: int
    tokens: int
    updates: int
    facts: dict[str, Any]


@dataclass(frozen=True)
class _Save:
    """A checkpoint to be written: this rank's pieces, the file that each tensor goes to, the size of it all."""

    folder: Path
    snapshot: Snapshot
    pieces: dict[str, Piece]
    numbers: dict[str, int]
    size_bytes: int
    export: Callable[[Path], None] | None
    then: Callable[[], None] | None


class Checkpoints:
    """The checkpoints of a run, as each of its ranks sees them; every method is collective over the ranks.

    made_at: the inputs that determine the weights after so many steps. keep: how many resumable states (`step-*`)
    stay; stage ends (`tokens-*`) all do. background: write from a copy, in a thread with a process group of its own.
    The caller keeps other runs out of `folder`: what a killed one has left half made is removed here.
    """

    def __init__(
        self, folder: Path, made_at: Callable[[int], Mapping[str, Any]], ranks: Ranks, keep: int, background: bool
    ) -> None:
        self._folder, self._made_at, self._ranks, self._keep = folder, made_at, ranks, keep
        self._background = background
        self._writers = ranks
        if background and ranks.control is not None:
            self._writers = replace(ranks, control=dist.new_group(backend="gloo", timeout=_PATIENCE))
        self._thread: Thread | None = None
        self._failure: BaseException | None = None
        self._looked: tuple[int, Found] | None = None
        if ranks.is_first:
            for left in folder.glob(".*.building"):
                shutil.rmtree(left)

    def save(
        self,
        name: str,
        snapshot: Snapshot,
        tensors: Mapping[str, torch.Tensor],
        export: Callable[[Path], None] | None = None,
        then: Callable[[], None] | None = None,
        export_bytes: int = 0,
    ) -> None:
        """Write a checkpoint; in the background, return as soon as `tensors` may change. Waits for the one before.

        tensors: by name, plain or DTensor, on any device; every rank gives its own part. export: called with the
        folder on the first rank, to write about `export_bytes` more into it. then: called on the first rank when the
        checkpoint is complete. Both are called in the thread that writes. Raises UserError, the older checkpoints
        untouched, when the disk is full or the ranks do not share a folder; in the background, the next `save` or
        `wait` does.
        """
        self.wait()
        self._looked = None
        place = self._ranks.place
        pieces = own_pieces(tensors, place.rank, place.world)
        numbers = file_numbers(tensors, place.world)
        size = total_bytes(tensors) + export_bytes
        save = _Save(self._folder / name, snapshot, pieces, numbers, size, export, then)
        if not self._background:
            self._write(save)
            return
        save = replace(save, pieces=copies(pieces))
        copied = None
        if self._ranks.device.type == "cuda":
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        self._thread = Thread(target=self._write_aside, args=(save, copied), name="checkpoint")
        self._thread.start()

    def write_model(self, folder: Path, step: int, export: Callable[[Path], None], export_bytes: int = 0) -> None:
        """Make an artifact of this step's model at `folder`, with no state to go on from; return when it is there.

        export, export_bytes: as in `save`. Raises UserError, on every rank, when the disk is full; what is at `folder`
        stays then, and nothing is left beside it.
        """

        def write() -> None:
            try:
                with building(folder, "model", self._made_at(step)) as aside:
                    require_space(aside, export_bytes, "a model")
                    export(aside)
            except BaseException:  # a full disk gets its space back
                shutil.rmtree(building_place(folder), ignore_errors=True)
                raise

        _together(self._ranks, write if self._ranks.is_first else _nothing)

    def wait(self) -> None:
        """Return when nothing is being written; raises, on every rank, what the writing thread met."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def exists_before(self, step: int) -> bool:
        """Whether there is a good checkpoint of fewer steps; its verification serves the next `restore` too."""
        found = self._look(step)
        self._looked = (step, found)
        return found.folder is not None

    def restore(self, tensors: Mapping[str, torch.Tensor], before: int, warn: Callable[[str], None]) -> Snapshot | None:
        """Load the newest good checkpoint of fewer than `before` steps into `tensors`, in place; None if none is.

        Good is one whose files have the sizes and checksums of its manifest. A damaged one is named to `warn`, on the
        first rank, and the one before is taken. It may come from any number of ranks and any sharding. Raises
        UserError, naming the field, when it was made from other inputs.
        """
        self.wait()
        found = self._looked[1] if self._looked is not None and self._looked[0] == before else self._look(before)
        self._looked = None
        for damage in found.damages if self._ranks.is_first else ():
            warn(f"a checkpoint is damaged and passed over: {damage}")
        if found.folder is None:
            return None
        state = found.folder / _STATE
        if not all(self._ranks.gather(state.is_dir())):
            raise _not_shared(found.folder, "a rank does not see it")
        superfluous = sorted(stored_names(state) - tensors.keys())
        if superfluous:  # an earlier version trained more of the same recipe
            todo = "finish the run with the version that began it, or choose another run name"
            got = f"{len(superfluous)} tensors that are not trained now, {superfluous[0]} for one"
            raise UserError("this checkpoint is of another training", str(found.folder), got, todo=todo)
        read_pieces(state, tensors, self._ranks.control)
        content = json.loads((state / _CURSOR).read_bytes())
        return Snapshot(content["step"], content["tokens"], content["updates"], content["facts"])

    def _look(self, before: int) -> Found:
        """Let the first rank find the newest good checkpoint of fewer than `before` steps."""

        def look() -> Found:
            return newest(self._folder, self._made_at, before) if self._ranks.is_first else Found(None, ())

        return _together(self._ranks, look)[0]

    def _write_aside(self, save: _Save, copied: torch.cuda.Event | None) -> None:
        try:
            if copied is not None:
                # A new thread begins on the first GPU, and would take memory there.
                torch.cuda.set_device(self._ranks.device)
                copied.synchronize()
                with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]  # training is not waited for
                    self._write(save)
            else:
                self._write(save)
        except BaseException as error:  # told by the next `wait`
            self._failure = error

    def _write(self, save: _Save) -> None:
        """Write a checkpoint in three acts, each of which succeeds on every rank or on none."""
        aside = building_place(save.folder)
        state = aside / _STATE
        ranks = self._writers
        with ExitStack() as held:

            def begin() -> None:
                held.enter_context(building(save.folder, "checkpoint", self._made_at(save.snapshot.step)))
                state.mkdir()
                require_space(aside, save.size_bytes)

            def write() -> dict[str, int]:
                with disk_errors(save.folder):
                    return write_pieces(state, save.pieces, save.numbers, ranks.place.rank, ranks.control)

            def complete() -> None:
                missing = missing_files(state, written)
                if missing:
                    raise _not_shared(aside, f"{missing[0]} is not there")
                snapshot = save.snapshot
                facts = {"tokens": snapshot.tokens, "updates": snapshot.updates, "facts": snapshot.facts}
                write_json(state / _CURSOR, {"step": snapshot.step, **facts})
                if save.export is not None:
                    save.export(aside)
                held.close()
                prune(self._folder, snapshot.step, self._keep)
                if save.then is not None:
                    save.then()

            try:
                _together(ranks, begin if ranks.is_first else _nothing)
                written = _together(ranks, write)
                _together(ranks, complete if ranks.is_first else _nothing)
            except BaseException:
                if ranks.is_first:  # a full disk gets its space back
                    shutil.rmtree(aside, ignore_errors=True)
                raise


def _nothing() -> None:
    """What the other ranks do while the first one works."""


def _together(ranks: Ranks, action: Callable[[], T]) -> list[T]:
    """Run `action` on every rank and return all results; when one fails, raise what it met on every rank."""
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    outcomes = ranks.gather((result, None if failure is None else _portable(failure, ranks.place.rank)))
    if failure is not None:
        raise failure
    for _, told in outcomes:
        if told is not None:
            raise told
    return [outcome for outcome, _ in outcomes]  # type: ignore[misc]


def _portable(error: Exception, rank: int) -> Exception:
    """Return an exception that crosses to another process; the traceback is printed where it was raised."""
    return error if isinstance(error, UserError) else RuntimeError(f"rank {rank} met {type(error).__name__}: {error}")


def _not_shared(folder: Path, got: str) -> UserError:
    todo = "put the runs (--runs) on a file system that all machines of the run share"
    return UserError("the ranks do not share one folder of checkpoints", str(folder), got, todo=todo)
