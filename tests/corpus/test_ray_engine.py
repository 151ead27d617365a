"""The engine on a real cluster of two nodes, on this machine, reachable from nowhere else."""

import gc
import importlib
import importlib.util
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from onward import __version__
from onward.corpus import engine, ray_engine
from onward.corpus.engine import in_order
from onward.corpus.ray_engine import ray_workers
from onward.errors import UserError

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the package ray is not installed"),
    pytest.mark.filterwarnings("ignore:.*subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*ray.*:FutureWarning"),
]
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with a core each; at the end nothing of them is left."""
    before = set(psutil.Process().children(recursive=True))
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets stand in it, whose paths must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the way to make Ray stay on 127.0.0.1
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        from ray.cluster_utils import Cluster

        head = {**NODE, "include_dashboard": False, "temp_dir": str(folder)}
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            nodes.add_node(**NODE)
            nodes.wait_for_nodes()
            yield nodes
        finally:
            nodes.shutdown()
            gc.collect()
            shutil.rmtree(folder, ignore_errors=True)
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=10)
    assert not alive


@pytest.fixture
def connected(cluster: Any) -> Iterator[Any]:
    import ray

    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()


def node_of(number: int) -> tuple[int, str, int]:
    import ray

    time.sleep(0.05)
    return number, ray.get_runtime_context().get_node_id() if ray.is_initialized() else "", os.getpid()


def test_results_come_in_order_from_the_cores_of_two_nodes(cluster: Any) -> None:
    results = list(in_order(range(23), node_of, ray_workers(cluster.address)))
    assert [number for number, _ in results] == [result[0] for _, result in results] == list(range(23))
    assert {result[2] for _, result in results[: engine.CHUNKS_ALONE]} == {os.getpid()}
    assert len({result[1] for _, result in results[engine.CHUNKS_ALONE :]}) == 2
    assert os.getpid() not in {result[2] for _, result in results[engine.CHUNKS_ALONE :]}


class KilledOnce:
    """Kills its worker at the first sight of a chunk."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, number: int) -> int:
        if number == 7 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), 9)
        return number


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), 9)
    return number


def refused(number: int) -> int:
    if number == 5:
        raise UserError("the text is wrong", where="a.txt:7", todo="mend it")
    return number


def large(number: int) -> tuple[str, np.ndarray]:
    """Return what is too large to come back at once, and so stays where it was made until it is fetched."""
    return node_of(number)[1], np.full(100_000, number)


def test_a_killed_worker_loses_nothing(connected: Any, tmp_path: Path) -> None:
    results = list(in_order(range(20), KilledOnce(tmp_path / "mark"), ray_workers(None)))
    assert (tmp_path / "mark").exists()
    assert results == [(n, n) for n in range(20)]


def test_a_machine_that_goes_loses_nothing(connected: Any) -> None:
    leaving = connected.add_node(**NODE)
    connected.wait_for_nodes()
    seen: list[str] = []
    numbers = []
    for number, (node, values) in in_order(range(60), large, ray_workers(None)):
        numbers.append(number)
        assert (values == number).all()
        seen.append(node)
        if leaving is not None and node == leaving.node_id:
            connected.remove_node(leaving, allow_graceful=False)
            leaving = None
    assert leaving is None, "the third node had work"
    assert numbers == list(range(60))


def test_workers_that_are_killed_again_and_again_are_explained(connected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_RETRIES", 0)
    monkeypatch.setattr(engine, "_RESTARTS", 1)
    with pytest.raises(UserError, match="killed again and again"):
        list(in_order(range(8), killed, ray_workers(None)))


def test_an_error_of_the_work_arrives_as_it_is(connected: Any) -> None:
    with pytest.raises(UserError, match="the text is wrong") as raised:
        list(in_order(range(8), refused, ray_workers(None)))
    assert type(raised.value) is UserError
    assert (raised.value.where, raised.value.todo) == ("a.txt:7", "mend it")


def test_a_machine_without_the_package_is_named(
    connected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def work(number):\n    return number\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    work = importlib.import_module("only_here").work
    with pytest.raises(UserError, match="lacks a package") as raised:
        list(in_order(range(5), work, ray_workers(None)))
    assert raised.value.got == "No module named 'only_here'"


def test_another_version_on_a_machine_is_refused() -> None:
    with pytest.raises(UserError, match="another version of onward") as raised:
        ray_engine._do_work([], "a key", "0.0.1", 7)
    assert (raised.value.got, raised.value.expected) == (__version__, "0.0.1")


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "head", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_is_not_there_is_explained(address: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(port=unused.getsockname()[1])
        started = time.monotonic()
        with pytest.raises(UserError, match="no Ray cluster answers") as raised:
            list(in_order(range(5), abs, ray_workers(address)))
    assert raised.value.where == address
    assert time.monotonic() - started < 30
