"""How much memory this process uses on its device, and how its heap treats what is freed."""

import ctypes
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

_PROCESS = Path("/proc/self")


@dataclass(frozen=True)
class MemoryReading:
    """Bytes at one moment.

    allocated: by tensors on a GPU, resident on a CPU. reserved: held from the driver, or resident again. peak: the most
    that was allocated since the meter was reset.
    """

    allocated: int
    reserved: int
    peak: int


class MemoryMeter:
    """Reads how much memory this process uses on its device.

    device: a torch.device, or `cpu`. process: where the kernel shows this process (Linux). Where the peak cannot be
    reset (it is written to clear_refs, which some containers forbid), it is the most since the process began; where
    the kernel shows none, that of the readings.
    """

    def __init__(self, device: Any, process: Path = _PROCESS) -> None:
        self._cuda = device if getattr(device, "type", str(device).split(":")[0]) == "cuda" else None
        self._process = process
        self._seen = 0

    def reset(self) -> None:
        """Begin a new peak."""
        self._seen = 0
        if self._cuda is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        with suppress(OSError):
            (self._process / "clear_refs").write_text("5")

    def read(self) -> MemoryReading:
        """Return the bytes now, and the most since the last reset. On a GPU it does not wait for the device."""
        if self._cuda is not None:
            import torch

            facts = torch.cuda.memory_stats(self._cuda)
            names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak")
            return MemoryReading(*(int(facts.get(name, 0)) for name in names))
        resident = int(psutil.Process().memory_info().rss)
        self._seen = max(self._seen, resident, self._high_water_mark() or 0)
        return MemoryReading(resident, resident, self._seen)

    def _high_water_mark(self) -> int | None:
        """VmHWM of the process, None where the kernel does not show it."""
        try:
            lines = (self._process / "status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            return None


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt (malloc.h)."""


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step; returns whether it does.

    By default every large tensor is mapped and unmapped, or the heap's end given back, again and again: the kernel
    clears the same pages in every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
