"""Checkpoints on a disk that is full, or fills up: a message, and what was there before stays."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lone_checkpoints import ALONE, names, restored_step, saved
from ranks_checkpoint import open_checkpoints, plain, snapshot
from torch.distributed.checkpoint.filesystem import FileSystem

from onward.artifact import write_text
from onward.errors import UserError
from onward.training import checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def fill(free_bytes: int, place: Path) -> Path:
    """Leave only so much room on a disk."""
    file = place / "else"
    disk = os.statvfs(place)
    file.write_bytes(b"x" * (disk.f_bavail * disk.f_bsize - free_bytes))
    return file


@pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen", "met"])
def test_a_full_disk_is_an_error_that_leaves_the_older_checkpoints(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, foreseen: bool
) -> None:
    checkpoints = saved(small_disk / "run", 1)
    before = names(small_disk / "run")
    large = {"weights.w": torch.zeros(100_000)}
    if not foreseen:
        monkeypatch.setattr(checkpoint, "require_space", lambda *_: None)
    file = fill(200_000, small_disk)
    checkpoints.save("step-00000002", snapshot(2), large)
    with pytest.raises(UserError, match="the disk is full") as caught:
        checkpoints.wait()
    assert "MB free" in str(caught.value)
    assert ("MB for a checkpoint" in str(caught.value)) == foreseen
    assert names(small_disk / "run") == before
    assert restored_step(small_disk / "run") == 1
    file.unlink()
    saved(small_disk / "run", 2)
    assert restored_step(small_disk / "run") == 2


def export_zeros(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(400_000))


@pytest.mark.parametrize("foreseen", [True, False], ids=["foreseen", "met"])
def test_a_model_that_finds_no_room_leaves_nothing_and_the_older_one(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, foreseen: bool
) -> None:
    checkpoints = open_checkpoints(small_disk / "run", ALONE, False)
    place = small_disk / "models" / "tokens-000000100"
    checkpoints.write_model(place, 1, lambda folder: write_text(folder / "config.json", "{}"), 2)
    if not foreseen:
        monkeypatch.setattr(checkpoint, "require_space", lambda *_: None)
    file = fill(200_000, small_disk)
    with pytest.raises(UserError, match="the disk is full") as caught:
        checkpoints.write_model(place, 1, export_zeros, 400_000)
    assert ("0 MB for a model" in str(caught.value)) == foreseen
    assert names(small_disk / "models") == [place.name]
    assert names(place) == ["config.json", "manifest.json"]
    file.unlink()
    checkpoints.write_model(place, 1, export_zeros, 400_000)
    assert names(place) == ["manifest.json", "model.safetensors"]


def test_room_is_asked_for_a_model_before_anything_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that stands alone and of one at a stage's end, beside its state."""
    asked: list[int] = []

    def is_full(folder: Path, needed: int, what: str = "a checkpoint") -> None:
        assert list(folder.rglob("*.safetensors")) == []
        asked.append(needed)
        raise UserError("the disk is full", got=what)

    monkeypatch.setattr(checkpoint, "require_space", is_full)
    checkpoints = open_checkpoints(tmp_path, ALONE, False)
    with pytest.raises(UserError, match="a model"):
        checkpoints.write_model(tmp_path / "model", 1, export_zeros, 400_000)
    with pytest.raises(UserError, match="a checkpoint"):
        checkpoints.save("tokens-000000100", snapshot(1), plain(True), export_zeros, None, 400_000)
    assert asked == [400_000, 400_000 + sum(tensor.nbytes for tensor in plain(True).values())]
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_while_a_shard_is_written_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = saved(tmp_path, 1)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystem, "create_stream", no_space)
    checkpoints.save("step-00000002", snapshot(2), plain(True))
    with pytest.raises(UserError, match="the disk is full"):
        checkpoints.wait()
    assert names(tmp_path) == ["step-00000001"]
