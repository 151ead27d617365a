from itertools import pairwise
from math import sqrt

import pytest

from onward.recipe import Schedule
from onward.training.schedule import learning_rate

PEAK = 1e-3


def curve(kind: str, stages: tuple[int, ...] = (100,), **settings: object) -> list[float]:
    schedule = Schedule.model_validate({"kind": kind, "warmup": "10%", "minimum": "10%", "cooldown": "20%"} | settings)
    return [learning_rate(step, PEAK, stages, schedule) for step in range(stages[-1])]


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant", "infinite"])
def test_warm_up_is_linear_and_reaches_the_peak(kind: str) -> None:
    rates = curve(kind)
    assert rates[:10] == pytest.approx([PEAK * (n + 1) / 10 for n in range(10)])
    assert max(rates) == pytest.approx(PEAK)


@pytest.mark.parametrize(("kind", "last"), [("cosine", 0.1), ("wsd", 0.1), ("infinite", 0.1), ("constant", 1.0)])
def test_the_last_step_is_at_the_minimum(kind: str, last: float) -> None:
    assert curve(kind)[-1] == pytest.approx(PEAK * last)


def test_wsd_is_constant_and_then_follows_one_minus_square_root() -> None:
    rates = curve("wsd", minimum="0%")
    assert set(rates[10:80]) == {PEAK}
    assert rates[85] == pytest.approx(PEAK * (1 - sqrt(5 / 19)))
    assert rates[-1] == 0


def test_infinite_holds_its_constant_between_descent_and_annealing() -> None:
    rates = curve("infinite", minimum="1%")
    plateau = rates[10 + 17 : 80]
    assert plateau == pytest.approx([PEAK * 0.1] * len(plateau))
    assert all(a > b for a, b in pairwise(rates[80:]))


def test_the_stage_horizon_decays_and_warms_again_in_every_stage() -> None:
    rates = curve("cosine", stages=(40, 100), horizon="stage")
    assert rates[39] == pytest.approx(PEAK * 0.1)
    assert rates[40] == pytest.approx(PEAK / 6)
    assert rates[:40] == curve("cosine", stages=(40,), horizon="stage"), "a later stage changes nothing before it"


def test_the_run_horizon_decays_once() -> None:
    assert curve("cosine", stages=(40, 100), horizon="run") == curve("cosine", stages=(100,), horizon="run")


def test_a_step_past_the_end_is_an_error() -> None:
    with pytest.raises(IndexError):
        learning_rate(100, PEAK, (100,), Schedule.model_validate({"horizon": "stage"}))


def test_very_short_runs_have_a_rate() -> None:
    for kind in ("cosine", "wsd", "infinite", "constant"):
        assert all(rate > 0 for rate in curve(kind, stages=(1,)) + curve(kind, stages=(3,)))
