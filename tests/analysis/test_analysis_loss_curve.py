"""The curve of the figure keeps the run's facts while it drops points."""

import numpy as np
import pytest

from onward.analysis import loss_curve


def rows(losses: list[float | None], weight: int = 10) -> list[dict[str, float | None]]:
    return [
        {"tokens": (i + 1) * 100, "loss_nats": loss, "learning_rate": 1e-3, "labelled_tokens": weight}
        for i, loss in enumerate(losses)
    ]


def test_a_long_run_becomes_a_few_hundred_points_with_the_same_mean():
    losses = list(np.random.default_rng(0).normal(3, 1, 10_000))
    curve = loss_curve(rows(losses))
    assert len(curve.tokens) == 300
    assert curve.loss.mean() == pytest.approx(np.mean(losses), abs=0.01)
    assert curve.smooth.std() < curve.loss.std() / 2


def test_a_straight_line_stays_where_it_is():
    curve = loss_curve(rows(list(np.linspace(4, 2, 200))))
    inner = slice(20, -20)
    np.testing.assert_allclose(curve.smooth[inner], curve.loss[inner], atol=1e-6)


def test_steps_weigh_by_their_labelled_tokens():
    many, few = rows([2.0] * 400, weight=30), rows([4.0] * 400, weight=10)
    mixed = [row for both in zip(many, few, strict=True) for row in both]
    assert loss_curve(mixed).loss.mean() == pytest.approx(2.5, abs=0.05)
    assert loss_curve(mixed[:200]).smooth[100] == pytest.approx(2.5, abs=0.05)


def test_steps_without_a_finite_loss_are_counted_and_left_out():
    curve = loss_curve(rows([3.0, None, float("nan"), 2.0]))
    assert curve.skipped == 2
    assert list(curve.loss) == [3.0, 2.0]


def test_no_step_is_no_curve_and_one_step_is_a_point():
    assert loss_curve([]) is None
    assert loss_curve(rows([None])) is None
    assert list(loss_curve(rows([3.0])).smooth) == [3.0]
