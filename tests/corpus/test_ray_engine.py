"""The engine on a real cluster of two nodes, on this machine, reachable from nowhere else."""

import gc
import importlib
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import psutil
import pytest
import zstandard
from cluster_work import KilledOnce, is_in_the_middle, is_seven, killed, large, node_of, refused

from onward import __version__
from onward.artifact import Folders, file_hash
from onward.corpus import engine, ray_engine
from onward.corpus.engine import in_order
from onward.corpus.ledger import Ledger
from onward.corpus.preparation import Items
from onward.corpus.prepare import prepare
from onward.corpus.ray_engine import ray_workers
from onward.corpus.reading import pieces
from onward.corpus.sorting import PASSAGES_KNOWN
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus
from onward.tasks import Question

pytestmark = [
    pytest.mark.timeout(300),  # on a busy machine
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the package ray is not installed"),
    pytest.mark.filterwarnings("ignore:.*subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*ray.*:FutureWarning"),
]
GENERAL_TEXT = Path(pieces.__file__).with_name("general_text.jsonl")
ASKED = (
    "Which of the following planets that go around the sun was the first to be found with a telescope by an astronomer?"
)
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core; at the end nothing of them is left."""
    before = set(psutil.Process().children(recursive=True))
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # sockets stand in it, whose paths must be short
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # the way to make Ray stay on 127.0.0.1
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_health_check_period_ms", "300")  # 3 s; five in vain and a machine counts as gone
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)  # Ray notes its address there
        bare = {"include_dashboard": False, "include_log_monitor": False, "no_monitor": True}
        head = {**NODE, **bare, "temp_dir": str(folder)}
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


@pytest.fixture(scope="module")
def connected(cluster: Any) -> Iterator[Any]:
    import ray

    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()


def test_results_come_in_order_from_the_cores_of_two_nodes(cluster: Any) -> None:
    terminated = signal.getsignal(signal.SIGTERM)
    results = list(in_order(range(23), node_of, ray_workers(cluster.address)))
    assert signal.getsignal(signal.SIGTERM) is terminated
    assert [number for number, _ in results] == [result[0] for _, result in results] == list(range(23))
    assert {result[2] for _, result in results[: engine.CHUNKS_ALONE]} == {os.getpid()}
    assert len({result[1] for _, result in results[engine.CHUNKS_ALONE :]}) == 2
    assert os.getpid() not in {result[2] for _, result in results[engine.CHUNKS_ALONE :]}


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "head", "ray://127.0.0.1:{port}"])
def test_a_cluster_that_is_not_there_is_explained(address: str) -> None:
    ray = pytest.importorskip("ray")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(port=unused.getsockname()[1])
        with pytest.raises(UserError, match="no Ray cluster answers") as raised:
            ray_engine._connect(ray, address)
    assert raised.value.where == address


def test_a_killed_worker_loses_nothing(connected: Any, tmp_path: Path) -> None:
    results = list(in_order(range(20), KilledOnce(int, is_seven, tmp_path / "mark"), ray_workers(None)))
    assert (tmp_path / "mark").exists()
    assert results == [(n, n) for n in range(20)]


def test_a_machine_that_goes_loses_nothing(connected: Any) -> None:
    """It goes with results that nobody has fetched: they are made again elsewhere."""
    leaving = connected.add_node(**NODE)
    connected.wait_for_nodes()
    left_at = 0

    def until_it_has_gone() -> Iterator[int]:
        yield from takewhile(lambda number: not left_at or number < left_at + 40, range(1000))

    numbers, from_it = [], 0
    for number, (node, values) in in_order(until_it_has_gone(), large, ray_workers(None)):
        numbers.append(number)
        assert (values == number).all()
        from_it += node == leaving.node_id
        if not left_at and from_it == 3:
            time.sleep(1)  # until all that is in flight is done
            connected.remove_node(leaving, allow_graceful=False)
            left_at = number
    assert 0 < left_at < 900
    assert numbers == list(range(left_at + 40))


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Records of shuffled words of real text; some repeat others in every way, one holds a benchmark item."""
    lines = GENERAL_TEXT.read_text(encoding="utf-8").splitlines()
    words = " ".join(json.loads(line)["text"] for line in lines).split()
    draw = random.Random(7)
    texts = ["\n".join(" ".join(draw.sample(words, 40)) + "." for _ in range(12)) for _ in range(300)]
    texts[90] = texts[10]
    texts[130] = texts[20] + "\nOne more line."
    texts[150] = "\n".join(line for n in (30, 40, 50) for line in texts[n].splitlines()[:4])
    texts[170] += f"\n{ASKED}"
    path = tmp_path / "data.jsonl.zst"
    records = "".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(texts))
    path.write_bytes(zstandard.ZstdCompressor().compress(records.encode()))
    return str(path)


def whole(data: str, place: Path, tokenizer: LoadedTokenizer, **engine: Any) -> tuple[Ledger, dict[str, str]]:
    """Prepare the data in blocks and small chunks; the ledger, and the hash of every file."""
    settings = {
        "held_out": {"share": "5%"},
        "block_tokens": 40_000,
        "sources": [{"path": data}],
        "duplicates": {"covered": "50%"},
    }
    items = Items({"made": 1}, lambda: {"asked": (Question("asked", "0", (ASKED,)),)})
    options: dict[str, Any] = {"tokenizer": tokenizer, "folders": Folders(place, place), "items": items, **engine}
    corpus = Corpus.model_validate(settings)
    prepared = prepare(corpus, sequence_tokens=100, wanted_tokens=None, seed=0, **options)
    files = (path for path in prepared.path.rglob("*") if path.is_file() and path.name != "manifest.json")
    return prepared.ledger, {path.relative_to(prepared.path).as_posix(): file_hash(path) for path in files}


def test_a_corpus_is_the_same_from_two_nodes_though_a_worker_is_killed(
    connected: Any, data: str, tmp_path: Path, tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CHUNK_BYTES", 20_000)
    ledger, expected = whole(data, tmp_path / "here", tiny_tokenizer, workers=1)
    ends = (ledger.duplicate, ledger.near_duplicate, ledger.dropped[PASSAGES_KNOWN], ledger.contaminated)
    assert [end.documents for end in ends] == [1, 1, 1, 1]
    assert len([name for name in expected if name.startswith("tokens-")]) > 2

    @contextmanager
    def start(work: Callable[[Any], Any]) -> Iterator[Any]:
        with ray_workers(None)(KilledOnce(work, is_in_the_middle, tmp_path / "mark")) as workers:
            yield workers

    assert whole(data, tmp_path / "there", tiny_tokenizer, start_workers=start) == (ledger, expected)
    assert (tmp_path / "mark").exists()


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
