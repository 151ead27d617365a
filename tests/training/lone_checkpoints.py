"""Checkpoints of a run of one process, for the tests of them: saved, found and restored."""

from pathlib import Path

import torch
from ranks_checkpoint import is_as_expected, open_checkpoints, plain, snapshot

from onward.training.checkpoint import Checkpoints
from onward.training.launch import Place
from onward.training.ranks import Ranks

ALONE = Ranks(Place(), torch.device("cpu"))


def saved(folder: Path, *steps: int, keep: int = 9, background: bool = True) -> Checkpoints:
    """Checkpoints of a run of one process after saves at these steps."""
    checkpoints = open_checkpoints(folder, ALONE, background, keep)
    for step in steps:
        checkpoints.save(f"step-{step:08d}", snapshot(step), plain(True))
    checkpoints.wait()
    return checkpoints


def restored_step(folder: Path, before: int = 99) -> int | None:
    """The step that a new process would go on from, its tensors checked."""
    tensors = plain(False)
    found = open_checkpoints(folder, ALONE, False).restore(tensors, before, lambda _: None)
    if found is None:
        return None
    assert is_as_expected(tensors)
    assert found == snapshot(found.step)
    return found.step


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
