"""Training as processes of its own, which are let live to the end or killed at a moment of choice."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from onward.errors import UserError
from onward.training.record import read_rows

_LOOK_SECONDS = 0.005
"""How often the record and the folder of a process that is to be killed are looked at."""
_SAVE_SECONDS = 0.05
"""A kill during a save comes within so long after the save has begun."""
_PATIENCE_SECONDS = 60.0
"""So long after the death of a rank the others must have gone; torchrun gives them 30 seconds."""
_SAID_LINES = 15
_TORCHRUN = "torch.distributed.run"


@dataclass(frozen=True)
class Kill:
    """When a process is killed: after it has recorded `after_step`, in the next save or so many seconds later.

    whole: all processes at once, as when the power fails; else one rank, which the others have to notice.
    """

    after_step: int
    in_save: bool
    seconds: float
    whole: bool


@dataclass(frozen=True)
class Ending:
    """How a process ended: killed by plan or not, and whether that left a checkpoint half written."""

    was_killed: bool
    while_saving: bool


def plan_kills(number: int, steps: int, interval: int, step_seconds: float, chosen: random.Random) -> list[Kill]:
    """Spread kills over the steps at random, every second one into a save.

    A save follows every `interval` steps; the last step has nothing after it to be killed in.
    """
    kills = []
    for count, after in enumerate(sorted(chosen.randrange(max(1, steps - interval)) for _ in range(number))):
        in_save = count % 2 == 1
        seconds = chosen.uniform(0, _SAVE_SECONDS if in_save else step_seconds)
        kills.append(Kill(after, in_save, seconds, whole=chosen.random() < 0.5))
    return kills


def live(arguments: Sequence[str], run_folder: Path, log: Path, kill: Kill | None, chosen: random.Random) -> Ending:
    """Run `onward <arguments>`, which trains in `run_folder`, to its end or until it is killed; no process is left.

    Raises UserError when it is refused (exit code 2) and RuntimeError when it fails otherwise, with what it said.
    """
    begun = _starts(run_folder)
    with open(log, "ab") as said, _started(arguments, said) as process:
        if kill is not None and _wait_for(kill, process, run_folder, begun):
            _kill(process, kill, chosen)
            return Ending(True, any((run_folder / "checkpoints").glob(".*.building")))
        status = process.wait()
    if status == 0:
        return Ending(False, False)
    text = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SAID_LINES:])
    if status == 2:
        raise UserError("the training that was to be verified did not run", str(log), text)
    raise RuntimeError(f"the training ended with status {status}; {log} says:\n{text}")


@contextmanager
def _started(arguments: Sequence[str], said: IO[bytes]) -> "Iterator[subprocess.Popen[bytes]]":
    """Start the command, and leave none of its processes behind when the block ends, however that comes."""
    command = [sys.executable, "-m", "onward", *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    try:
        yield process
    finally:
        _end(_tree(process.pid))
        process.wait()


def _wait_for(kill: Kill, process: "subprocess.Popen[bytes]", run_folder: Path, begun: int) -> bool:
    """Wait for the moment of a kill; False when the process ended before it."""
    metrics, checkpoints = run_folder / "metrics.jsonl", run_folder / "checkpoints"
    is_past = False
    while process.poll() is None:
        if not is_past and _starts(run_folder) > begun:  # before that the record is the one of an earlier life
            rows = read_rows(metrics)
            is_past = bool(rows) and rows[-1]["step"] >= kill.after_step
        if is_past and (not kill.in_save or any(checkpoints.glob(".*.building"))):
            with suppress(subprocess.TimeoutExpired):
                process.wait(kill.seconds)
            return process.poll() is None
        time.sleep(_LOOK_SECONDS)
    return False


def _starts(run_folder: Path) -> int:
    events = read_rows(run_folder / "events.jsonl")
    return sum(row["event"] in ("start", "resume") for row in events)


def _kill(process: "subprocess.Popen[bytes]", kill: Kill, chosen: random.Random) -> None:
    """Kill the whole tree of processes at once, or one of several ranks, and see all others go.

    Raises RuntimeError when a rank outlives the one that was killed.
    """
    tree = _tree(process.pid)
    ranks = [other for other in tree if _TORCHRUN in _command(other.parent())]
    if kill.whole or not ranks:
        _end(tree)
        return
    with suppress(psutil.NoSuchProcess):
        chosen.choice(ranks).kill()
    process.poll()
    _, left = psutil.wait_procs(tree, timeout=_PATIENCE_SECONDS)
    if left:
        _end(left)
        raise RuntimeError(f"{_PATIENCE_SECONDS:.0f} s after the death of a rank others still ran: {left}")


def _tree(number: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        first = psutil.Process(number)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_PATIENCE_SECONDS)


def _command(process: psutil.Process | None) -> list[str]:
    try:
        return [] if process is None else list(process.cmdline())
    except psutil.Error:
        return []
