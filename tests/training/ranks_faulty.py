"""Stands in for Python in a rank of torchrun (PYTHON_EXEC): puts a fault into the network, then runs as asked.

FAULT: JSON; `rank` and what befalls it: `most_rows` (the memory is full for more rows than that), or `dies_in_step` (it
is killed in that step of its life, counted from 1; `once` is a file that it leaves behind).
"""

import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any


def put_in(fault: dict[str, Any]) -> None:
    """Wrap the network's forward pass."""
    import torch

    from onward.training.learner import Learner
    from onward.training.network import Network, Rows

    forward, update, steps = Network.forward, Learner.update, 0

    def dying(self: Learner, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        return update(self, *arguments)

    def faulty(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        if len(rows.ids_N) > fault.get("most_rows", sys.maxsize) * rows.longest:
            raise torch.OutOfMemoryError("made up: tried to allocate")
        if steps == fault.get("dies_in_step"):
            Path(fault["once"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, rows, hidden_only)

    Network.forward, Learner.update = faulty, dying  # type: ignore[method-assign]


def main() -> None:
    wanted = json.loads(os.environ["FAULT"])
    arguments = sys.argv[1:]
    assert arguments[:3] == ["-u", "-m", "onward"]
    if os.environ.get("RANK") == str(wanted["rank"]):
        put_in(wanted)
    sys.argv = arguments[2:]
    runpy.run_module("onward", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
