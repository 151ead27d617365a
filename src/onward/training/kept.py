"""The checkpoints that are kept on disk: which is the newest good one, which may go, whether another has room."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.artifact import MANIFEST, Damage, find, find_damage, read_manifest, remove
from onward.errors import UserError

_STATE_NAME = re.compile(r"step-\d+")


@dataclass(frozen=True)
class Found:
    """The checkpoint to go on from, if any, and what is wrong with newer ones."""

    folder: Path | None
    damages: tuple[Damage, ...]


def require_space(folder: Path, needed: int, what: str = "a checkpoint") -> None:
    """Raise UserError when the disk of `folder` has less than `needed` bytes left for `what`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        todo = "free some space, lower training.keep_checkpoints, or choose another place with --runs"
        got, expected = f"{free / 1e6:.0f} MB free", f"{needed / 1e6:.0f} MB for {what}"
        raise UserError("the disk is full", str(folder), got, expected, f"{todo}; finished work is kept")


def newest(folder: Path, made_at: Callable[[int], Mapping[str, Any]], before: int) -> Found:
    """Find the good checkpoint of the most steps, but fewer than `before`, and the damaged ones that are newer.

    Raises UserError, naming the field, when one was made from other inputs than `made_at(step)`, or is of the format
    before state/ was written by torch.distributed.checkpoint.
    """
    places = [path.parent for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith(".")]
    steps = {place: _steps_of(place) for place in places}
    damages: list[Damage] = []
    # One whose number of steps cannot be read any more is looked at first: it is damaged.
    ranked = [(before if known is None else known, place) for place, known in steps.items()]
    earlier = [(rank, place) for rank, place in ranked if rank < before or steps[place] is None]
    for step, place in sorted(earlier, key=lambda found: (found[0], found[1].name), reverse=True):
        if (place / "state" / "weights.safetensors").exists():
            todo = "finish the run with the version that began it, or choose another run name"
            raise UserError("this checkpoint was written by an earlier version of onward", str(place), todo=todo)
        if find(place, made_at(step), damages.append) is not None:
            return Found(place, tuple(damages))
    return Found(None, tuple(damages))


def is_whole(folder: Path, damaged: Callable[[Damage], None]) -> bool:
    """Whether a complete checkpoint is here whose files have the sizes of its manifest; `damaged` is told otherwise.

    Checksums are left out: this is asked of every stage at every start, and what is gone on from is verified by
    `newest`.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        damaged(Damage(folder / MANIFEST, str(error.got), "a manifest"))
        return False
    damage = None if manifest is None else find_damage(folder, manifest, checksums=False)
    if damage is not None:
        damaged(damage)
    return manifest is not None and damage is None


def _steps_of(place: Path) -> int | None:
    """Return the steps of a checkpoint, None when its manifest is damaged and its name does not tell."""
    if _STATE_NAME.fullmatch(place.name):
        return _number(place)
    try:
        manifest = read_manifest(place)
        return None if manifest is None else int(manifest.made_from["step"])
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _number(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


def _states(folder: Path) -> list[Path]:
    """Return the resumable states, whole or half removed, by their steps."""
    return sorted(path for path in folder.glob("step-*") if _STATE_NAME.fullmatch(path.name))


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` resumable states (`step-*`) up to `step`; stage ends (`tokens-*`) stay.

    Later states stay too: while an earlier stage is made anew they are not this session's.
    """
    states = _states(folder)
    complete = [path for path in states if (path / MANIFEST).exists() and _number(path) <= step]
    for path in complete[:-keep]:
        remove(path)
    for path in states:  # those of a removal that was killed
        if not (path / MANIFEST).exists():
            remove(path)
