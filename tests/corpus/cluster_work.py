"""Work that is sent to the workers of a cluster; they import this module, so it imports little."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onward.errors import UserError


def node_of(number: int) -> tuple[int, str, int]:
    """The number, the node and the process that had it."""
    import ray

    time.sleep(0.05)
    return number, ray.get_runtime_context().get_node_id() if ray.is_initialized() else "", os.getpid()


def large(number: int) -> tuple[str, Any]:
    """The node, and what is too large to come back at once: it stays where it was made until it is fetched."""
    return node_of(number)[1], np.full(100_000, number)


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), 9)
    return number


def refused(number: int) -> int:
    if number == 5:
        raise UserError("the text is wrong", where="a.txt:7", todo="mend it")
    return number


@dataclass(frozen=True)
class KilledOnce:
    """Does the work, but kills its process the first time that it sees such a chunk."""

    work: Callable[[Any], Any]
    is_fatal: Callable[[Any], bool]
    mark: Path

    def __call__(self, chunk: Any) -> Any:
        if self.is_fatal(chunk) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), 9)
        return self.work(chunk)


def is_seven(number: int) -> bool:
    return number == 7


def is_in_the_middle(task: Any) -> bool:
    return bool(task.position["at"]["record"] > 150)
