"""What befalls a run from outside: signals, a full disk, damage to what it has saved."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from circumstances import FORKS, Notes, assert_same, command_line, ended, events, opened, rows_of

import onward.terminal
import onward.training.checkpoint as checkpoint
from onward.artifact import read_manifest
from onward.terminal import Terminal
from onward.training.network import Network, Rows

pytestmark = FORKS


def saved_steps(run: Path) -> set[int]:
    """The steps of the complete checkpoints, whatever their names: the end of a stage has one of its own."""
    manifests = [read_manifest(place) for place in (run / "checkpoints").iterdir() if place.is_dir()]
    return {manifest.made_from["step"] for manifest in manifests if manifest is not None}


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_step() -> None:
    """SIGTERM in the first of the two micro-batches of a step."""
    forward, calls = Network.forward, 0

    def terminating(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        nonlocal calls
        calls += not hidden_only and self.training and torch.is_grad_enabled()
        if calls == 7:
            terminate()
        return forward(self, rows, hidden_only)

    Network.forward = terminating  # type: ignore[method-assign]


def in_a_save() -> None:
    """SIGTERM after the tensors of the first checkpoint were written, before it is complete."""
    write, calls = checkpoint.write_pieces, 0

    def terminating(*arguments: Any) -> Any:
        nonlocal calls
        written = write(*arguments)
        calls += 1
        if calls == 1:
            terminate()
        return written

    checkpoint.write_pieces = terminating


def in_an_evaluation() -> None:
    """SIGTERM in the middle of the scoring of a stage, with a part of it done."""

    class Terminating(Terminal):
        stage_is_trained = False

        def begin(self, title: str, total: int | None, unit: str) -> None:
            super().begin(title, total, unit)
            self.stage_is_trained = self.stage_is_trained or title == "train"

        def advance(self, done: int, facts: str = "") -> None:
            super().advance(done, facts)
            if self.stage_is_trained and self._title.startswith("scoring"):
                terminate()

    onward.terminal.Terminal = Terminating  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "prepare", "background"),
    [
        ("train", in_a_step, True),
        ("train", in_a_save, False),
        ("train", in_a_save, True),
        ("run", in_an_evaluation, True),
    ],
    ids=["step", "save", "background-save", "evaluation"],
)
def test_sigterm_ends_it_with_143_and_the_same_command_goes_on_to_the_same_bits(
    inputs: Path, reference: Path, tmp_path: Path, name: str, prepare: Callable[[], None], background: bool
) -> None:
    arguments = command_line(name, inputs, tmp_path, training__background_checkpoints=background)
    said, run = tmp_path / "said", tmp_path / "runs" / "small"
    assert ended(arguments, said, prepare) == 128 + signal.SIGTERM, said.read_text()
    assert "Traceback" not in said.read_text()
    assert not list(run.glob("checkpoints/.*")), "nothing half made is left"
    if prepare is in_an_evaluation:
        assert "stopped by SIGTERM; nothing finished is lost" in said.read_text()
    else:
        reached = 3 if prepare is in_a_step else len(rows_of(run))
        assert f"stopped by SIGTERM at step {reached};" in said.read_text()
        assert reached in saved_steps(run)
    assert ended(arguments, said) == 0, said.read_text()
    assert_same(run, reference)
    if name == "run":
        for results in reference.glob("scores/*/results.json"):
            mine = json.loads((run / results.relative_to(reference)).read_bytes())
            assert mine["held_out"] == json.loads(results.read_bytes())["held_out"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB in memory where the checkpoints go; the record of the run lies elsewhere."""
    place = tmp_path / "runs" / "small" / "checkpoints"
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fills_up(ballast: Path, when: int) -> Callable[[], None]:
    """Fill the disk before the files of a checkpoint are written."""

    def prepare() -> None:
        write, calls = checkpoint.write_pieces, 0

        def filling(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == when:
                with open(ballast, "wb", buffering=0) as file:
                    while True:
                        try:
                            file.write(bytes(4096))
                        except OSError:
                            break
            return write(*arguments)

        checkpoint.write_pieces = filling

    return prepare


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_a_full_disk_ends_it_as_a_users_error_and_it_goes_on_when_there_is_space(
    inputs: Path, reference: Path, small_disk: Path, tmp_path: Path, background: bool
) -> None:
    arguments = command_line("train", inputs, tmp_path, training__background_checkpoints=background)
    said, run, ballast = tmp_path / "said", tmp_path / "runs" / "small", small_disk / "ballast"
    assert ended(arguments, said, fills_up(ballast, when=3)) == 2, said.read_text()
    text = said.read_text()
    assert "error: the disk is full" in text
    assert "free some space" in text
    assert "Traceback" not in text
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "step-00000002", "tokens-000001920"]
    ballast.unlink()
    assert ended(arguments, said) == 0, said.read_text()
    assert_same(run, reference)


def damage_flip(folder: Path) -> Path:
    path = next(iter((folder / "state").glob("*.safetensors")))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return path


def damage_cut(folder: Path) -> Path:
    path = folder / "state" / "cursor.json"
    path.write_bytes(path.read_bytes()[:-3])
    return path


@pytest.mark.parametrize("damage", [damage_flip, damage_cut], ids=["flipped-bit", "cut"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_gone_on_from(
    inputs: Path, reference: Path, tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    notes = Notes()
    run = opened(inputs, tmp_path, notes)
    run.train(until_step=6)
    damaged = damage(run.folder / "checkpoints" / "step-00000006")
    run.train()
    (said,) = [note for note in notes.notes if "damaged" in note]
    assert str(damaged) in said
    assert [event["step"] for event in events(run.folder, "resume")] == [4]
    assert "training goes on after step 4" in notes.notes
    assert_same(run.folder, reference)
