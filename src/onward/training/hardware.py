"""What a machine can do: peak arithmetic, memory and links, looked up for known GPUs or measured. Imports no torch."""

import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from onward.errors import UserError, nearest
from onward.training.launch import count_gpus

Kind = Literal["cpu", "cuda"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Hardware:
    """One kind of device, and how many of them train together.

    memory_bytes: of one device, as its driver reports it. Peaks are dense (no sparsity) FLOP/s of one device; None:
    not known. native_bf16: whether it multiplies bf16 in hardware. Bandwidths in bytes per second: of the device's own
    memory, of the link to the machine's memory and between devices (each in one direction); None: not known or none.
    """

    name: str
    kind: Kind
    count: int
    memory_bytes: int
    bf16_flops: float | None = None
    fp32_flops: float | None = None
    native_bf16: bool = False
    memory_bandwidth: float | None = None
    link_bandwidth: float | None = None
    peer_bandwidth: float | None = None

    def peak(self, precision: Precision) -> float | None:
        """Return the dense peak of one device at a precision, FLOP/s; None when it is not known."""
        return self.bf16_flops if precision == "bf16" else self.fp32_flops

    def precision(self, wanted: Literal["auto", "fp32", "bf16"]) -> Precision:
        """Return the precision a run takes: for auto bf16 where the device multiplies it natively."""
        return ("bf16" if self.native_bf16 else "fp32") if wanted == "auto" else wanted


_PCIE3, _PCIE4, _PCIE5 = 12.0, 25.0, 50.0
"""GB/s that copies from pinned memory reach over sixteen lanes, about four fifths of the nominal rate."""

# Name, names that the driver gives, GiB that CUDA reports (on cards with ECC less than is sold), dense bf16 TFLOP/s
# with fp32 accumulation (None: not native), fp32 TFLOP/s outside tensor cores, GB/s of memory, GB/s to the host, GB/s
# between devices (NVLink in one direction, else PCIe). From NVIDIA's data sheets and the white papers of Volta, Turing,
# Ampere (GA100, GA102), Ada, Hopper and Blackwell; where they print a rate "with sparsity", half of it. GeForce cards
# accumulate in fp32 at half the rate of the professional ones, which is what training does.
_Row = tuple[str, tuple[str, ...], float, float | None, float, float, float, float]
_GPUS: tuple[_Row, ...] = (
    ("b200", ("NVIDIA B200",), 178.0, 2250.0, 75.0, 7700.0, _PCIE5, 900.0),
    ("gh200", ("NVIDIA GH200 480GB",), 94.5, 989.4, 66.9, 4000.0, 350.0, 450.0),
    ("h200", ("NVIDIA H200",), 139.7, 989.4, 66.9, 4800.0, _PCIE5, 450.0),
    ("h200-nvl", ("NVIDIA H200 NVL",), 139.7, 835.5, 60.0, 4800.0, _PCIE5, 450.0),
    ("h100", ("NVIDIA H100 80GB HBM3",), 79.1, 989.4, 66.9, 3350.0, _PCIE5, 450.0),
    ("h100-pcie", ("NVIDIA H100 PCIe",), 79.1, 756.0, 51.2, 2039.0, _PCIE5, _PCIE5),
    ("h100-nvl", ("NVIDIA H100 NVL",), 93.0, 835.5, 60.0, 3938.0, _PCIE5, 300.0),
    ("h20", ("NVIDIA H20",), 95.0, 148.0, 44.0, 4000.0, _PCIE5, 450.0),
    ("a100-80gb", ("NVIDIA A100-SXM4-80GB",), 79.1, 312.0, 19.5, 2039.0, _PCIE4, 300.0),
    ("a100-40gb", ("NVIDIA A100-SXM4-40GB",), 39.4, 312.0, 19.5, 1555.0, _PCIE4, 300.0),
    ("a100-80gb-pcie", ("NVIDIA A100 80GB PCIe",), 79.1, 312.0, 19.5, 1935.0, _PCIE4, _PCIE4),
    ("a100-40gb-pcie", ("NVIDIA A100-PCIE-40GB",), 39.4, 312.0, 19.5, 1555.0, _PCIE4, _PCIE4),
    ("a30", ("NVIDIA A30",), 23.5, 165.0, 10.3, 933.0, _PCIE4, _PCIE4),
    ("a40", ("NVIDIA A40",), 44.4, 149.7, 37.4, 696.0, _PCIE4, _PCIE4),
    ("a10", ("NVIDIA A10",), 22.0, 125.0, 31.2, 600.0, _PCIE4, _PCIE4),
    ("a10g", ("NVIDIA A10G",), 22.0, 70.0, 35.0, 600.0, _PCIE4, _PCIE4),
    ("l4", ("NVIDIA L4",), 22.0, 121.0, 30.3, 300.0, _PCIE4, _PCIE4),
    ("l40", ("NVIDIA L40",), 44.4, 181.0, 90.5, 864.0, _PCIE4, _PCIE4),
    ("l40s", ("NVIDIA L40S",), 44.4, 362.0, 91.6, 864.0, _PCIE4, _PCIE4),
    ("t4", ("Tesla T4", "NVIDIA T4"), 14.6, None, 8.1, 320.0, _PCIE3, _PCIE3),
    ("v100-16gb", ("Tesla V100-SXM2-16GB",), 15.7, None, 15.7, 900.0, _PCIE3, 150.0),
    ("v100-32gb", ("Tesla V100-SXM2-32GB",), 31.7, None, 15.7, 900.0, _PCIE3, 150.0),
    ("rtx-a5000", ("NVIDIA RTX A5000",), 23.7, 111.1, 27.8, 768.0, _PCIE4, _PCIE4),
    ("rtx-a6000", ("NVIDIA RTX A6000",), 47.5, 154.8, 38.7, 768.0, _PCIE4, _PCIE4),
    ("rtx-6000-ada", ("NVIDIA RTX 6000 Ada Generation",), 47.5, 364.2, 91.1, 960.0, _PCIE4, _PCIE4),
    ("rtx-2080-ti", ("NVIDIA GeForce RTX 2080 Ti",), 10.7, None, 13.4, 616.0, _PCIE3, _PCIE3),
    ("rtx-3060", ("NVIDIA GeForce RTX 3060",), 11.6, 25.5, 12.7, 360.0, _PCIE4, _PCIE4),
    ("rtx-3080", ("NVIDIA GeForce RTX 3080",), 9.6, 59.5, 29.8, 760.0, _PCIE4, _PCIE4),
    ("rtx-3090", ("NVIDIA GeForce RTX 3090",), 23.6, 71.0, 35.6, 936.0, _PCIE4, _PCIE4),
    ("rtx-3090-ti", ("NVIDIA GeForce RTX 3090 Ti",), 23.6, 80.0, 40.0, 1008.0, _PCIE4, _PCIE4),
    ("rtx-4070", ("NVIDIA GeForce RTX 4070",), 11.6, 58.3, 29.1, 504.0, _PCIE4, _PCIE4),
    ("rtx-4080", ("NVIDIA GeForce RTX 4080",), 15.6, 97.5, 48.7, 717.0, _PCIE4, _PCIE4),
    ("rtx-4090", ("NVIDIA GeForce RTX 4090",), 23.6, 165.2, 82.6, 1008.0, _PCIE4, _PCIE4),
    ("rtx-5080", ("NVIDIA GeForce RTX 5080",), 15.5, 112.6, 56.3, 960.0, _PCIE5, _PCIE5),
    ("rtx-5090", ("NVIDIA GeForce RTX 5090",), 31.3, 209.5, 104.8, 1792.0, _PCIE5, _PCIE5),
)  # fmt: skip
_ALSO = {"a100": "a100-80gb", "v100": "v100-16gb", "h100-sxm": "h100", "a100-sxm": "a100-80gb"}
"""The kind that a name without its variant stands for."""
_COUNTED = re.compile(r"^\s*(?:(\d+)\s*[x*×]\s*)?(\S.*?)\s*$", re.IGNORECASE)


def known_hardware(name: str) -> Hardware:
    """Return the devices of a name such as `h100`, `8xh100` or `2x RTX 4090`.

    Raises UserError with the nearest names for one that is not in the table, and for a count of nothing.
    """
    match = _COUNTED.match(name)
    count, device = (int(match[1] or 1), match[2]) if match else (1, name)
    by_key = {_plain(row[0]): row for row in _GPUS} | {_plain(n): row for row in _GPUS for n in row[1]}
    by_key |= {_plain(alias): by_key[_plain(kind)] for alias, kind in _ALSO.items()}
    row = by_key.get(_plain(device))
    if row is None or count < 1:
        close = nearest(_plain(device), list(by_key))
        known = sorted({row[0] for row in _GPUS} | set(_ALSO))
        todo = f"did you mean {by_key[close][0]}?" if close and row is None else None
        expected = ", ".join(known) + "; several as 8xh100"
        raise UserError("this hardware is not known", "--hardware", name, expected, todo)
    return _of_row(row, count)


def this_machine(device: str | None = None, count: int | None = None) -> Hardware:
    """Return the hardware of this machine: its GPUs where it has any, else its processor.

    device: `cuda` or `cpu`; None chooses. count: devices (or processes on the CPU) that train together; None: all GPUs.
    A GPU is looked up by its driver's name and its memory asked of CUDA; the peaks of one that is not in the table, and
    of every CPU, are None: `measured` fills them in. Imports torch where there is a GPU.
    """
    if (device or ("cuda" if count_gpus() else "cpu")) == "cpu":
        return Hardware(_processor(), "cpu", count or 1, machine_memory_bytes(), native_bf16=_has_bf16_tiles())
    import torch

    facts = torch.cuda.get_device_properties(torch.cuda.current_device())
    number = count or torch.cuda.device_count()
    row = next((row for row in _GPUS if facts.name in row[1]), None)
    if row is None:
        # Compute capability 8.0 (Ampere) is the first with bf16 tensor cores.
        native = (facts.major, facts.minor) >= (8, 0)
        return Hardware(facts.name, "cuda", number, facts.total_memory, native_bf16=native)
    return replace(_of_row(row, number), memory_bytes=facts.total_memory)


def measured(hardware: Hardware, precision: Precision, seconds: float = 2.0) -> Hardware:
    """Return this machine's hardware with the peak at one precision measured where it is not known."""
    if hardware.peak(precision) is not None:
        return hardware
    peak = measure_matmul_peak(hardware.kind, precision, seconds)
    return replace(hardware, bf16_flops=peak) if precision == "bf16" else replace(hardware, fp32_flops=peak)


def measure_matmul_peak(device: Any = "cpu", precision: Precision = "bf16", seconds: float = 2.0) -> float:
    """Return the FLOP/s that a large square matrix product reaches on this machine, with torch's number of threads.

    The best over two sizes of the median over repetitions: 1,024 and 2,048 on a CPU, 4,096 and 8,192 on a GPU, large
    enough to hide starting a kernel and small enough for a few gigabytes. A product of n x n is 2 n^3 operations.
    seconds: about what it may take.
    """
    import torch

    device = torch.device(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    best = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (1024, 2048):
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)
        _seconds_of(a, b, out)  # chooses the kernel, allocates its workspace
        durations: list[float] = []
        until = time.perf_counter() + seconds / 2
        while len(durations) < 3 or (time.perf_counter() < until and len(durations) < 100):
            durations.append(_seconds_of(a, b, out))
        best = max(best, 2 * size**3 / median(durations))
    return best


def _seconds_of(a: Any, b: Any, out: Any) -> float:
    """One product, started and ended with the device idle."""
    import torch

    if a.device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        torch.mm(a, b, out=out)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3
    started = time.perf_counter()
    torch.mm(a, b, out=out)
    return time.perf_counter() - started


def machine_memory_bytes() -> int:
    """Return the memory this process may use: the machine's, or the smallest limit of a control group above it."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in control_group_memory())])


def control_group_memory(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> list[tuple[int, int]]:
    """Return (limit, used) in bytes of every control group above this process that limits memory, versions 1 and 2.

    Used counts what cannot be taken back: the page cache of files that are not active is left out, as the kernel gives
    it up before it kills. root and membership: where the kernel shows them.
    """
    found = []
    for folder, limit, used in _control_groups(root, membership):
        try:
            text = (folder / limit).read_text().strip()
            most = int(text) if text != "max" else None
            now = int((folder / used).read_text())
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        # Version 1 writes "no limit" as a number near 2^63.
        if most is not None and most < 2**60:
            idle = int(rows.get("total_inactive_file", rows.get("inactive_file", "0")))
            found.append((most, max(0, now - idle)))
    return found


def _control_groups(root: Path, membership: Path) -> list[tuple[Path, str, str]]:
    """The folders of this process's groups and of those above, with the names of their files of limit and use."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, names = root, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        inner = top / path.lstrip("/")
        # In a container the group's own folder may be the root of what is mounted.
        folders = [inner, *(p for p in inner.parents if p == top or top in p.parents)]
        found += [(folder, *names) for folder in dict.fromkeys([*folders, top])]
    return found


def _of_row(row: _Row, count: int) -> Hardware:
    name, _, memory, bf16, fp32, bandwidth, link, peer = row
    return Hardware(
        name=name,
        kind="cuda",
        count=count,
        memory_bytes=int(memory * 2**30),
        bf16_flops=None if bf16 is None else bf16 * 1e12,
        fp32_flops=fp32 * 1e12,
        native_bf16=bf16 is not None,
        memory_bandwidth=bandwidth * 1e9,
        link_bandwidth=link * 1e9,
        peer_bandwidth=peer * 1e9,
    )


def _plain(name: str) -> str:
    """`NVIDIA GeForce RTX 4090`, `rtx4090` and `RTX-4090` are one."""
    return re.sub(r"[^a-z0-9]|nvidia|geforce|tesla", "", name.lower())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        model = platform.processor() or platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def _has_bf16_tiles() -> bool:
    """Whether the processor multiplies bf16 in AMX tiles, where alone bf16 is faster than fp32 on a CPU."""
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
