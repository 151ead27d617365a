"""Killed at any moment of any stage, the same command goes on and ends with the same bits.

Runs are forked children of a parent that has imported torch, so a kill and a restart cost tenths of a second.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import onward
import onward.terminal
import small_run
from onward.artifact import Folders, read_manifest
from onward.cli import main
from onward.terminal import Terminal
from onward.training.record import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

FORK = multiprocessing.get_context("fork")
LIVES = (8, 30, 60)
"""Changes on disk after which an attempt is dead at the latest: short lives meet the steps that change little, long
ones get past the end of a stage, which takes about thirty."""
CHANGES: dict[str, Any] = {
    "training__stages": [4800, 9600],
    "corpus__tokens": "1M",
    "general__tokens": "1M",
    "evaluation__held_out_tokens": 8000,
}
"""Somewhat more work than the smallest run has, so that there are moments to be killed at."""


class Announce:
    """Progress that writes the title of every step into a pipe."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def begin(self, title: str, total: int | None, unit: str) -> None:
        self.pipe.send((title, time.monotonic()))

    def advance(self, done: int, facts: str = "") -> None: ...
    def note(self, text: str) -> None: ...


def work(inputs: Path, place: Path, progress: Any = None) -> None:
    recipe = small_run.recipe(inputs, **CHANGES)
    onward.run(recipe, folders=Folders(place / "cache", place / "runs"), workers=1, progress=progress)


def start(target: Callable[..., object], *arguments: Any) -> tuple[Any, Connection]:
    """Fork a child whose last argument is a progress that announces itself through the returned pipe."""
    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=target, args=(*arguments, Announce(writer)))
    child.start()
    writer.close()
    return child, reader


def titles(reader: Connection) -> list[tuple[str, float]]:
    found = []
    try:
        while True:
            found.append(reader.recv())
    except EOFError:
        return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    place = small_run.write_inputs(tmp_path_factory.mktemp("kill") / "inputs")
    small_run.write_texts(place / "domain.jsonl", 150, seed=1)
    small_run.write_texts(place / "general.jsonl", 60, seed=2)
    work(place, place.parent / "warm")  # what is imported here is imported by no child
    return place


@pytest.fixture(scope="module")
def reference(inputs: Path) -> tuple[Path, list[tuple[str, float]]]:
    """A run that nobody interrupts, and its steps: title and seconds."""
    place = inputs.parent / "reference"
    child, reader = start(work, inputs, place)
    begun = titles(reader)
    child.join()
    assert child.exitcode == 0
    ends = [*(moment for _, moment in begun[1:]), begun[-1][1] + 0.1]
    return place, [(title, end - moment) for (title, moment), end in zip(begun, ends, strict=True)]


def reached(place: Path) -> str:
    """The stage that a run is in, by what lies on its disk."""
    run = place / "runs/small"
    if len(list(place.glob("cache/corpora/[!.]*/manifest.json"))) < 2:
        return "prepare"
    if not list(place.glob("cache/scores/[!.]*/manifest.json")):
        return "base scores"
    for stage in ("tokens-000004800", "tokens-000009600"):
        if not (run / "checkpoints" / stage / "manifest.json").exists():
            saving = list((run / "checkpoints").glob(".*.building"))
            return "checkpoint" if saving else "train"
        if not (run / "scores" / stage / "manifest.json").exists():
            return "stage scores"
    return "report"


_TIMES_AND_PATHS = ("environment.json", "events.jsonl", "artifacts.json", "recipe.yaml", "scored_on.json")


def facts(place: Path) -> dict[str, Any]:
    """All that a run leaves, but times, speeds and the paths it lies under."""
    found: dict[str, Any] = {}
    kept = ("step", "tokens", "stage", "loss_nats", "learning_rate", "gradient_norm", "labelled_tokens")
    # An empty lock file may be left by a kill in the instant after the rename; it locks nothing.
    for path in sorted(p for p in place.rglob("*") if p.is_file() and p.suffix != ".lock"):
        name = path.relative_to(place).as_posix()
        if path.name == "manifest.json":
            manifest = read_manifest(path.parent)
            assert manifest is not None
            found[name] = (manifest.fingerprint, manifest.made_from, sorted(manifest.files))
        elif path.name == "results.json":
            content = json.loads(path.read_bytes())
            found[name] = (content["held_out"], content["tasks"])
        elif path.name == "metrics.jsonl":
            found[name] = [[row[key] for key in kept] for row in read_rows(path)]
        elif "/report/" in name or path.name in _TIMES_AND_PATHS:
            found[name] = None  # its being there is all
        else:
            found[name] = small_run.content_hash(path)
    return found


def assert_same(place: Path, reference: Path) -> None:
    mine, other = facts(place), facts(reference)
    assert mine.keys() == other.keys(), "the same files, and no part of one is left"
    different = [name for name in mine if mine[name] != other[name]]
    assert not different


def kill_in(inputs: Path, place: Path, title: str, delay: float) -> str | None:
    """Run, and kill some time after the step has begun; return the stage reached, None when the run ended before."""
    child, reader = start(work, inputs, place)
    try:
        while reader.recv()[0] != title:
            pass
        time.sleep(delay)
    except EOFError:
        pass
    child.kill()
    child.join()
    reader.close()
    return reached(place) if child.exitcode == -signal.SIGKILL else None


def test_killed_some_time_into_each_step_it_ends_with_the_same_bits(
    inputs: Path, reference: tuple[Path, list[tuple[str, float]]], tmp_path: Path
) -> None:
    expected, steps = reference
    chosen = random.Random(20240607)
    hits: list[str | None] = []
    for title, seconds in steps:
        # A step that is over is not announced again: the first of a title is always the one that is due. The end of
        # its time is left out, or it would be over too often before the kill comes.
        hits.append(kill_in(inputs, tmp_path, title, chosen.uniform(0, 0.6 * seconds)))
    work(inputs, tmp_path)
    assert_same(tmp_path, expected)
    assert {"prepare", "base scores", "stage scores"} <= set(hits)
    assert {"train", "checkpoint"} & set(hits)


def work_until(inputs: Path, place: Path, changes: int, progress: Any) -> None:
    """Run, and die of SIGKILL before the nth change on disk: a file opened for writing, renamed, made, removed."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        changing = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if event == "open" and isinstance(arguments[2], int):
            changing = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if changing and str(place) in str(arguments[0]):
            count += 1
            if count == changes:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(inputs, place, progress)


def test_killed_between_any_two_changes_on_disk_it_ends_with_the_same_bits(
    inputs: Path, reference: tuple[Path, list[tuple[str, float]]], tmp_path: Path
) -> None:
    expected, _ = reference
    chosen = random.Random(8)
    hits: list[str] = []
    while len(hits) < 100:
        child, reader = start(work_until, inputs, tmp_path, chosen.randint(1, chosen.choice(LIVES)))
        child.join()
        reader.close()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        hits.append(reached(tmp_path))
    assert_same(tmp_path, expected)
    assert 20 <= len(hits) < 100
    assert {"prepare", "base scores", "checkpoint", "stage scores", "report"} <= set(hits)


def command(arguments: list[str], errors: Path, progress: Announce) -> None:
    """The `onward` command in this process, as its entry point runs it."""
    sys.argv, sys.stderr = ["onward", *arguments], open(errors, "w", buffering=1)

    class Announced(Terminal):
        def begin(self, title: str, total: int | None, unit: str) -> None:
            super().begin(title, total, unit)
            progress.begin(title, total, unit)

        def advance(self, done: int, facts: str = "") -> None:
            super().advance(done, facts)
            progress.begin(f"in {self._title}", None, "")

    onward.terminal.Terminal = Announced  # type: ignore[misc]
    main()


def command_line(inputs: Path, place: Path) -> list[str]:
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_run.content(inputs, **CHANGES)), encoding="utf-8")
    return ["run", str(recipe), "--cache", str(place / "cache"), "--runs", str(place / "runs"), "--workers", "1"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("title", ["preparing general", "scoring held-out domain text", "in train"])
def test_a_signal_in_any_step_ends_it_cleanly(
    inputs: Path,
    reference: tuple[Path, list[tuple[str, float]]],
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    title: str,
) -> None:
    expected, _ = reference
    arguments, errors = command_line(inputs, tmp_path), tmp_path / "errors"
    child, reader = start(command, arguments, errors)
    while reader.recv()[0] != title:
        pass
    os.kill(child.pid, number)
    child.join()
    said = errors.read_text(encoding="utf-8")
    assert child.exitcode == code, said
    assert "Traceback" not in said
    if title == "in train":
        assert f"stopped by {number.name} at step" in said
    elif number == signal.SIGINT:
        assert "run the same command to go on" in said
    visible = [p for p in tmp_path.rglob("*") if p.is_dir() and not any(part.startswith(".") for part in p.parts)]
    artifacts = [p for p in visible if p.parent.name in ("corpora", "scores", "checkpoints")]
    assert all((p / "manifest.json").exists() for p in artifacts)
    for name in ("errors", "recipe.yaml"):
        (tmp_path / name).unlink()
    work(inputs, tmp_path)
    assert_same(tmp_path, expected)


def test_two_processes_do_not_train_the_same_run(inputs: Path, tmp_path: Path) -> None:
    arguments = command_line(inputs, tmp_path)
    first, reader = start(command, arguments, tmp_path / "first")
    while reader.recv()[0] != "in train":
        pass
    os.kill(first.pid, signal.SIGSTOP)
    second, _ = start(command, arguments, tmp_path / "second")
    second.join()
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert (first.exitcode, second.exitcode) == (0, 2)
    said = (tmp_path / "second").read_text(encoding="utf-8")
    assert "another process is making this" in said
    assert str(tmp_path / "runs/small/checkpoints") in said
    assert "Traceback" not in said
