"""The engine on a Ray cluster: the same chunks, the same function, the same order, on the cores of many machines.

Chunks travel as the bytes that were read, so only the machine that reads needs to reach the text, and only that one
writes. What is sent is a task, not a call of an actor: when a worker or a machine is lost, Ray does its tasks again
on another, and makes anew those results that lay there and were not fetched.
"""

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from onward import __version__
from onward.corpus.engine import Pending, StartWorkers, WorkerLost, Workers
from onward.errors import UserError

_ANSWER_SECONDS = 10
"""A cluster that has not answered by then does not exist; Ray itself would ask for 14 minutes."""
_RETRIES = 3
"""So often does Ray do a task again whose worker or machine was lost, before `in_order` counts a loss."""
_SAME = "install the same version of onward, with the extra `ray`, on every machine of the cluster"

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def ray_workers(address: str | None) -> StartWorkers[Any, Any]:
    """Return what connects to a Ray cluster: `auto` or `HOST:PORT`; None starts one of this machine's cores alone.

    A connection that the process has already is used and left open. Raises UserError, when started, without the
    package `ray` and when no cluster answers.
    """

    @contextmanager
    def start(work: Callable[[Chunk], Result]) -> Iterator[Workers[Chunk, Result]]:
        ray = _ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            _connect(ray, address or "local")
        try:
            count = int(ray.cluster_resources().get("CPU", 0))
            if not count:
                raise UserError("this Ray cluster has no CPU to offer", address, todo="start nodes with --num-cpus")
            yield _RayWorkers(ray, count, work)
        finally:
            if is_ours:
                ray.shutdown()

    return start


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UserError("the engine `ray` needs the package ray", todo=_SAME) from None
    return ray


def _connect(ray: Any, address: str) -> None:
    import logging

    is_main = threading.current_thread() is threading.main_thread()
    terminated = signal.getsignal(signal.SIGTERM)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        _refuse_silence(address)
        ray.init(address, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        todo = "start one with `ray start --head` and give the address that it prints, or `auto` on one of its machines"
        got = str(error).split("\n")[0]
        raise UserError("no Ray cluster answers", address, got, todo=todo) from error
    finally:
        if is_main:  # Ray puts its own in the place of ours
            signal.signal(signal.SIGTERM, terminated)


def _refuse_silence(address: str) -> None:
    """Raise OSError when nobody listens at an address, ValueError when it is none."""
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ValueError("this is no HOST:PORT")
    socket.create_connection((host, int(port)), timeout=_ANSWER_SECONDS).close()


class _RayWorkers(Generic[Chunk, Result]):
    """The cores of a cluster; the work lies in its object store, once.

    count: the cores at the start. Those of machines that join later are used as far as chunks are in flight.
    """

    def __init__(self, ray: Any, count: int, work: Callable[[Chunk], Result]) -> None:
        self.count = count
        self._ray = ray
        self._work = ray.put(work)
        self._do = ray.remote(num_cpus=1, max_retries=_RETRIES)(_do_work)

    def send(self, chunk: Chunk) -> Pending[Result]:
        # Within a list the reference travels instead of the work, which a worker then fetches once.
        return _Sent(self._ray, self._do.remote([self._work], self._work.hex(), __version__, chunk))


class _Sent(Generic[Result]):
    """A chunk given to the cluster, as a reference to what will come of it."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def is_done(self) -> bool:
        return True  # a cluster's nodes are up; this machine has enough to do with reading for them

    def result(self) -> Result:
        try:
            result: Result = self._ray.get(self._reference)
        except self._ray.exceptions.RayTaskError as error:
            # What the work raised, as from a process of this machine, save where a machine could not even begin.
            raise _package_missing(error.cause) or error.cause from error
        except self._ray.exceptions.RayError as error:
            raise WorkerLost from error
        return result


def _package_missing(error: BaseException) -> UserError | None:
    """Explain the several errors by which Ray says that a worker could not import what was sent."""
    found = re.search(r"No module named '[\w.]+'", str(error))
    if found is None:
        return None
    return UserError("a machine of the cluster lacks a package", got=found[0], todo=_SAME)


_works: dict[str, Callable[[Any], Any]] = {}


def _do_work(references: list[Any], key: str, version: str, chunk: Any) -> Any:
    """Run in a worker, which stays for many chunks."""
    if key not in _works:
        if version != __version__:
            raise UserError(
                "a machine has another version of onward", socket.gethostname(), __version__, version, _SAME
            )
        import ray

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a task one core
        _works.clear()
        _works[key] = ray.get(references[0])
    return _works[key](chunk)
