"""Several processes for one run: how they are started, and how each finds its place. Imports no torch."""

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NamedTuple, Never

from onward.errors import UserError

STATUS_FILE = "ONWARD_STATUS_FILE"
"""Environment variable: where a failing rank leaves its exit status; torchrun's own is always 1."""
_WORDS = ".words"
"""Ending of the file beside it, with what that rank says."""
USER_ERROR = 2
"""The exit status of a rank that has said what its owner can mend (`onward.command.user_errors`)."""
_PATIENCE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
"""How many seconds torchrun waits for ranks that were told to end before it kills them. Its own 30 are not enough for a
long step and a save. A variable, not the option of torch 2.13: an older torch does not know it, and goes on as ever."""
_TORCHRUN = "torch.distributed.run"


@dataclass(frozen=True)
class Place:
    """This process among those of its run: its number and theirs, over all machines and on this one."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def is_first(self) -> bool:
        """The first rank prepares, records and reports; there is one in every run."""
        return self.rank == 0


def find_place(environment: Mapping[str, str] | None = None) -> Place:
    """Return this process's place as torchrun or srun tells it; alone when started by hand.

    Inside a Slurm allocation only a job step (srun) has tasks of one run; the batch script itself is one process.
    """
    env = os.environ if environment is None else environment
    if "TORCHELASTIC_RUN_ID" in env or {"RANK", "WORLD_SIZE"} <= env.keys():
        world = int(env["WORLD_SIZE"])
        rank = int(env["RANK"])
        return Place(rank, world, int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", world)))
    world = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if world == 1:
        return Place()
    local_world = int(env.get("SLURM_STEP_TASKS_PER_NODE", str(world)).split("(")[0].split(",")[0])
    return Place(int(env["SLURM_PROCID"]), world, int(env["SLURM_LOCALID"]), local_world)


def meeting_point(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables with which torch.distributed finds the other ranks (MASTER_ADDR and the like).

    srun sets none of them: the first machine of the step is the address, the port follows from the job's number.
    """
    env = os.environ if environment is None else environment
    place = find_place(env)
    found = {"RANK": str(place.rank), "WORLD_SIZE": str(place.world)}
    found |= {"LOCAL_RANK": str(place.local_rank), "LOCAL_WORLD_SIZE": str(place.local_world)}
    if "MASTER_ADDR" in env:
        return found | {"MASTER_ADDR": env["MASTER_ADDR"], "MASTER_PORT": env.get("MASTER_PORT", "29500")}
    job = int(env.get("SLURM_JOB_ID", "0")) + int(env.get("SLURM_STEP_ID", "0"))
    address = first_host(env["SLURM_STEP_NODELIST"]) if "SLURM_STEP_NODELIST" in env else "127.0.0.1"
    return found | {"MASTER_ADDR": address, "MASTER_PORT": str(20_000 + job % 20_000)}


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu[03-05,9],login` -> `gpu03`."""
    match = re.match(r"^([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,]*)", nodes)
    assert match is not None, f"a node list of Slurm: {nodes!r}"
    return f"{match[1]}{match[2] or ''}{match[3]}"


def count_gpus() -> int:
    """Return how many NVIDIA GPUs this machine shows, CUDA_VISIBLE_DEVICES respected, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() and name.strip() != "-1"])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*/information")))


def processes_asked_for(gpus: int | None, processes: int | None) -> int:
    """Return how many ranks `--gpus` or `--processes` ask for; raises UserError for more GPUs than there are."""
    if gpus is not None and processes is not None:
        todo = "leave one out: a rank trains on a GPU or on the CPU"
        raise UserError("both GPUs and CPU processes were asked for", "--gpus, --processes", todo=todo)
    if gpus is not None and gpus > count_gpus():
        there = count_gpus()
        todo = f"--gpus {there}" if there else "leave --gpus out, or train in CPU processes with --processes"
        raise UserError(f"{gpus} GPUs were asked for", "--gpus", f"{there} in this machine", todo=todo)
    if processes is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return gpus or processes or 1


class Ending(NamedTuple):
    """How ranks ended: 0, or the exit status of the first that failed, and what it said of why ("": nothing)."""

    status: int
    words: str = ""


class RanksEnded(Exception):
    """The ranks of a run ended before it was done, and have printed why; its words are those of the first."""

    def __init__(self, ending: Ending) -> None:
        self.status = ending.status
        super().__init__(ending.words or f"the ranks ended with status {ending.status}; what they met is printed above")


def run_ranks(command: Sequence[str], processes: int) -> Ending:
    """Run `onward <command>` as `processes` ranks of this machine by torchrun; return how they ended.

    torchrun ends every rank when one dies, with its traceback; it adds nothing to what a rank says of a UserError. Its
    ports are on the loopback interface only. SIGTERM and Ctrl-C are passed on, and every rank saves first.
    """
    torchrun = [sys.executable, "-m", __name__, _TORCHRUN, "--standalone", "--local-addr", "127.0.0.1"]
    torchrun += ["--nproc-per-node", str(processes), "--max-restarts", "0", "-m", "onward"]
    # torchrun would give each rank one thread; the cores are shared out instead.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    with TemporaryDirectory(prefix="onward-") as folder:
        told = Path(folder) / "status"
        environment = {**_PATIENCE, **os.environ, "OMP_NUM_THREADS": threads, STATUS_FILE: str(told)}
        # A session of its own: a Ctrl-C reaches the ranks once, through torchrun, and not also from the terminal.
        launched = subprocess.Popen(
            [*torchrun, *command], env=environment, start_new_session=True, preexec_fn=_end_with_the_parent
        )
        with _passed_on(launched):
            status = launched.wait()
        return Ending(_told(told) or status, _words(told))


def tell_words(words: str) -> None:
    """Leave what a failing rank says for the process that started the ranks; the first one counts."""
    path = os.environ.get(STATUS_FILE)
    if path is not None:
        with suppress(FileExistsError, FileNotFoundError), open(path + _WORDS, "x", encoding="utf-8") as file:
            file.write(words)


def _words(path: Path) -> str:
    """Return what a failing rank has said, an empty text when none has."""
    with suppress(FileNotFoundError):
        return Path(f"{path}{_WORDS}").read_text(encoding="utf-8", errors="replace")
    return ""


def tell_status(status: int) -> None:
    """Leave a failing rank's exit status for the process that started the ranks; the first one counts."""
    path = os.environ.get(STATUS_FILE)
    if path is not None and status:
        with suppress(FileExistsError, FileNotFoundError), open(path, "x") as file:
            file.write(str(status))


def _told(path: Path) -> int:
    """Return the exit status that a failing rank has left, 0 when none has."""
    with suppress(FileNotFoundError, ValueError):  # a rank that was killed while it wrote has said nothing
        return int(path.read_text())
    return 0


def another_has_said(seconds: float = 2.0) -> bool:
    """Whether another rank has said what its owner can mend, so that what this one meets is only the consequence.

    Waits a moment for a rank to tell how it ended, since it closes its connections first.
    """
    path = os.environ.get(STATUS_FILE)
    until = time.monotonic() + seconds
    while path is not None and not _told(Path(path)) and time.monotonic() < until:
        time.sleep(0.05)
    return path is not None and _told(Path(path)) == USER_ERROR


def _torchrun(arguments: Sequence[str]) -> Never:
    """Be torchrun, but without its report and traceback where the ranks have said all that there is to say."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    path = Path(os.environ[STATUS_FILE])
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):  # a filter serves its own logger alone, not those below it
            logging.getLogger(name).addFilter(lambda record: _told(path) != USER_ERROR)
    try:
        main(list(arguments))
    except ChildFailedError:
        if _told(path) != USER_ERROR:
            raise
    except SignalException:
        if _told(path) <= 1:  # no rank has said how it ended, or one has crashed
            raise
    sys.exit(_told(path))


def _end_with_the_parent() -> None:
    """Ask Linux to end this process when the one that started it is killed; torchrun then ends its ranks."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def _passed_on(launched: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Hand SIGTERM and SIGINT over to a process while it is waited for."""

    def hand_over(number: int, frame: FrameType | None) -> None:
        launched.send_signal(number)

    try:
        before = {number: signal.signal(number, hand_over) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: the owner of the process handles signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if launched.poll() is None:
            launched.terminate()
            launched.wait()


if __name__ == "__main__":
    assert sys.argv[1] == _TORCHRUN, "named for those who look for it in a list of processes"
    _torchrun(sys.argv[2:])
