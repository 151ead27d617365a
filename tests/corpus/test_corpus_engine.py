import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from onward.corpus import engine
from onward.corpus.engine import in_order, processes
from onward.errors import UserError


def square(number: int) -> tuple[int, int]:
    time.sleep(0.02)
    return number * number, os.getpid()


class Killed:
    """Dies at every sight of a chunk, in a worker."""

    def __init__(self) -> None:
        self.caller = os.getpid()

    def __call__(self, number: int) -> int:
        time.sleep(0.02)
        if os.getpid() != self.caller:
            os.kill(os.getpid(), 9)
        return number


class KilledOnce:
    """Dies at its first sight of a chunk, in a worker."""

    def __init__(self, mark: Path) -> None:
        self.mark, self.caller = mark, os.getpid()

    def __call__(self, number: int) -> int:
        time.sleep(0.02)
        if os.getpid() != self.caller and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), 9)
        return number


def test_results_come_in_order_from_one_process_or_two() -> None:
    alone = list(in_order(range(200), square, processes(1)))
    together = list(in_order(range(200), square, processes(2)))
    assert [(n, result[0]) for n, result in together] == [(n, result[0]) for n, result in alone]
    assert {result[1] for _, result in alone} == {os.getpid()}
    assert {result[1] for _, result in together[: engine.CHUNKS_ALONE]} == {os.getpid()}
    workers = [result[1] for _, result in together]
    first = next(n for n, worker in enumerate(workers) if worker != os.getpid())
    assert os.getpid() not in workers[first:], "the caller works only until they have started"
    assert len(set(workers[first:])) == 2


def test_what_is_in_flight_is_bounded_and_an_early_end_is_clean() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = in_order(endless(), square, processes(2))
    for _ in range(150):
        done, (_, worker) = next(results)
    assert worker != os.getpid()
    results.close()
    assert done < taken <= done + 2 * engine.IN_FLIGHT


def test_a_failure_while_reading_is_the_callers() -> None:
    def broken() -> Iterator[int]:
        yield from range(10)
        raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        list(in_order(broken(), square, processes(2)))


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    results = list(in_order(range(200), KilledOnce(tmp_path / "mark"), processes(2)))
    assert (tmp_path / "mark").exists()
    assert results == [(n, n) for n in range(200)]


def test_workers_that_are_killed_again_and_again_are_explained() -> None:
    with pytest.raises(UserError, match="killed again and again"):
        list(in_order(range(2000), Killed(), processes(2)))


def test_a_chunk_of_a_quarter_gigabyte_holds_back_the_next_ones_only_until_it_is_done() -> None:
    results = list(in_order(range(300), square, processes(2), lambda n: 10**9 if n % 50 == 5 else 0))
    assert [n for n, _ in results] == list(range(300))


def test_workers_end_with_a_caller_that_is_killed() -> None:
    script = "import time\nfrom onward.corpus.engine import in_order, processes\n"
    script += "for n, _ in in_order(range(10**6), time.sleep, processes(2), lambda n: 0): print(n, flush=True)\n"
    script = script.replace("time.sleep,", "abs,")
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    children: list[psutil.Process] = []
    while len(children) < 2 or all(child.cpu_times().user < 0.05 for child in children[:2]):
        assert caller.stdout.readline()
        children = [c for c in psutil.Process(caller.pid).children() if "loky" in " ".join(c.cmdline())]
    caller.kill()
    caller.stdout.close()
    caller.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
