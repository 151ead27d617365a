import os
from collections.abc import Iterator

import pytest

from onward.corpus import engine
from onward.corpus.engine import in_order
from onward.errors import UserError


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), 9)
    return number


def test_results_come_in_order_from_one_process_or_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WINDOW_CHUNKS", 4)
    alone = list(in_order(range(23), square, workers=1))
    together = list(in_order(range(23), square, workers=2))
    assert [(n, result[0]) for n, result in together] == [(n, result[0]) for n, result in alone]
    assert {result[1] for _, result in alone} == {os.getpid()}
    assert os.getpid() in {result[1] for _, result in together[: engine.CHUNKS_ALONE]}
    assert os.getpid() not in {result[1] for _, result in together[engine.CHUNKS_ALONE :]}


def test_what_is_in_flight_is_bounded_and_an_early_end_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "WINDOW_CHUNKS", 2)
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = in_order(endless(), square, workers=2)
    for _ in range(7):
        next(results)
    results.close()
    assert taken <= engine.CHUNKS_ALONE + 3 * 4


def test_a_failure_while_reading_is_the_callers() -> None:
    def broken() -> Iterator[int]:
        yield from range(10)
        raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        list(in_order(broken(), square, workers=2))


def test_a_killed_worker_is_explained() -> None:
    with pytest.raises(UserError, match="a worker process was killed"):
        list(in_order(range(8), killed, workers=2))
