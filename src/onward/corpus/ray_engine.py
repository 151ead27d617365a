"""The engine on a Ray cluster: the same chunks, the same function, the same order, on the cores of many machines.

Chunks travel as the bytes that were read, so only the machine that reads needs to reach the text, and only that one
writes. Ray itself runs a task again when its worker or its machine is lost.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from onward.corpus.engine import Pending, StartWorkers, WorkerLost, Workers
from onward.errors import UserError

Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


def ray_workers(address: str | None) -> StartWorkers[Any, Any]:
    """Return what connects to a Ray cluster: `auto`, `HOST:PORT`, `ray://HOST:PORT`; None starts one on this machine.

    A connection that the process has already is used and left open. Raises UserError, when started, without the
    package `ray` and when no cluster answers.
    """

    @contextmanager
    def start(work: Callable[[Chunk], Result]) -> Iterator[Workers[Chunk, Result]]:
        ray = _ray()
        is_ours = not ray.is_initialized()
        if is_ours:
            _connect(ray, address)
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
        todo = "pip install 'onward[ray]' on every machine of the cluster"
        raise UserError("the engine `ray` needs the package ray", todo=todo) from None
    return ray


def _connect(ray: Any, address: str | None) -> None:
    import logging

    try:
        ray.init(
            address, logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False if not address else None
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        todo = "start one with `ray start --head`, and give the address that it prints"
        got = str(error).split("\n")[0]
        raise UserError("no Ray cluster answers", address or "this machine", got, todo=todo) from error


class _RayWorkers(Generic[Chunk, Result]):
    """The cores of a cluster; the work lies in its object store, once."""

    def __init__(self, ray: Any, count: int, work: Callable[[Chunk], Result]) -> None:
        self.count = count
        self._ray = ray
        self._work = ray.put(work)
        self._do = ray.remote(num_cpus=1, max_retries=-1)(_do_work)

    def send(self, chunk: Chunk) -> Pending[Result]:
        # Within a list the reference travels instead of the work, which a worker then fetches once.
        return _Sent(self._ray, self._do.remote([self._work], self._work.hex(), chunk))


class _Sent(Generic[Result]):
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def result(self) -> Result:
        try:
            result: Result = self._ray.get(self._reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLost from error
        return result


_works: dict[str, Callable[[Any], Any]] = {}


def _do_work(references: list[Any], key: str, chunk: Any) -> Any:
    """Run in a worker, which stays for many chunks."""
    if key not in _works:
        import os

        import ray

        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Ray gives a task one core
        _works.clear()
        _works[key] = ray.get(references[0])
    return _works[key](chunk)
