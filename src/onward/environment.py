"""What a run ran on: versions, hardware, the command."""

import shlex
import sys
from pathlib import Path
from typing import Any


def describe_environment() -> dict[str, Any]:
    """Return what the run ran on: versions, hardware, the command."""
    import os
    import platform
    from datetime import UTC, datetime
    from importlib.metadata import version

    import psutil

    from onward import __version__

    return {
        "onward": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerator": _accelerator(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    """The first NVIDIA GPU's name as its driver tells it; torch, which would know too, takes seconds to import."""
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        lines = path.read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), path.parent.name)
    return None
