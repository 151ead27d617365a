"""Several processes for one run: how they are started, and how each finds its place. Imports no torch."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onward.errors import UserError


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
    found = {"RANK": str(place.rank), "WORLD_SIZE": str(place.world), "LOCAL_RANK": str(place.local_rank)}
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


def check_gpus(wanted: int) -> None:
    """Refuse more GPUs than there are; raises UserError."""
    there = count_gpus()
    if wanted > there:
        todo = f"--gpus {there}" if there else "leave --gpus out, or train processes on the CPU with --processes"
        raise UserError(f"{wanted} GPUs were asked for", "--gpus", f"{there} in this machine", todo=todo)


def run_ranks(command: Sequence[str], processes: int) -> int:
    """Run `python -m onward <command>` as `processes` ranks of one machine by torchrun; return the exit status.

    torchrun ends every rank when one dies and prints which; its ports are on the loopback interface only. A user's
    error has been printed by the rank that met it.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    torchrun += ["--nproc-per-node", str(processes), "--max-restarts", "0", "-m", "onward"]
    # One thread each would be torchrun's choice; the cores are shared out instead.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    return subprocess.run([*torchrun, *command], env={**os.environ, "OMP_NUM_THREADS": threads}).returncode
