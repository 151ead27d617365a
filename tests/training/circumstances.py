"""What the tests of a run's misfortunes share: runs of `small_run`, what they leave, and commands that befall them.

Commands are forked children of this process, which has imported torch; only the ranks of torchrun import it anew.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import onward.cli
import small_run
from onward.artifact import Folders
from onward.pipeline import Run
from onward.training.network import Network, Rows
from onward.training.record import read_rows

FORK = multiprocessing.get_context("fork")
FORKS = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
CHANGES: dict[str, Any] = {
    "training__micro_batch_sequences": 5,  # two micro-batches a step
    "training__checkpoint_tokens": 960,  # a state after every second of the eight steps
}
FIGURES = ("step", "batch", "labelled_tokens", "loss_nats", "gradient_norm", "learning_rate", "applied")
Forward = Callable[[Network, Rows, bool], torch.Tensor]


class Notes:
    """A progress that keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, title: str, total: int | None, unit: str) -> None: ...
    def advance(self, done: int, facts: str = "") -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


def opened(inputs: Path, runs: Path, progress: Any = None, **changes: Any) -> Run:
    recipe = small_run.recipe(inputs, **CHANGES | changes)
    return Run(recipe, folders=Folders(inputs.parent / "cache", runs), progress=progress, workers=1)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in FIGURES} for row in read_rows(run / "metrics.jsonl")]


def losses(run: Path) -> list[float]:
    return [row["loss_nats"] for row in read_rows(run / "metrics.jsonl")]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "events.jsonl") if row["event"] == name]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in (folder / "state").glob("*.safetensors") for name, value in load_file(path).items()}


def assert_same(run: Path, reference: Path) -> None:
    """Every step's figures and the states at the ends of both stages are equal to the bit."""
    assert rows_of(run) == rows_of(reference)
    for name in ("tokens-000001920", "tokens-000003840"):
        mine, other = state(run / "checkpoints" / name), state(reference / "checkpoints" / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


def command(arguments: list[str], said: Path, prepare: Callable[[], None] | None) -> None:
    """The `onward` command in this process, as its entry point runs it."""
    with open(said, "w", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv, sys.stderr = ["onward", *arguments], open(2, "w", buffering=1, closefd=False)
    if prepare is not None:
        prepare()
    onward.cli.main()


def start(arguments: list[str], said: Path, prepare: Callable[[], None] | None = None) -> Any:
    child = FORK.Process(target=command, args=(arguments, said, prepare))
    child.start()
    return child


def ended(arguments: list[str], said: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run a command to its end and return its exit status."""
    child = start(arguments, said, prepare)
    child.join()
    return int(child.exitcode)


def command_line(name: str, inputs: Path, place: Path, *more: str, **changes: Any) -> list[str]:
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_run.content(inputs, **CHANGES | changes)), encoding="utf-8")
    cache, runs = str(inputs.parent / "cache"), str(place / "runs")
    return [name, str(recipe), "--cache", cache, "--runs", runs, "--workers", "1", *more]


def befalls(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Network, Rows, torch.Tensor], torch.Tensor]
) -> None:
    """Change the summed loss of training's forward passes, counted from 0; the checks at the start are left out."""
    forward: Forward = Network.forward
    calls = -1

    def changed(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        nonlocal calls
        loss = forward(self, rows, hidden_only)
        if hidden_only or not torch.is_grad_enabled():
            return loss
        calls += 1
        return change(calls, self, rows, loss)

    monkeypatch.setattr(Network, "forward", changed)
