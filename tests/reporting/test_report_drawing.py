"""The few words of SVG: scales, ticks and labels."""

import numpy as np
import pytest

from onward.analysis import loss_curve
from onward.reporting.drawing import Scale, tick_text, ticks, token_text
from onward.reporting.figures import loss_figure, rate_text


@pytest.mark.parametrize(
    ("low", "high", "about", "expected"),
    [(0, 10, 5, [0, 2, 4, 6, 8, 10]), (-0.4, 0.1, 5, [-0.4, -0.3, -0.2, -0.1, 0, 0.1]), (2.31, 2.38, 3, [2.35])],
)
def test_ticks_are_round_and_inside(low, high, about, expected):
    found = ticks(low, high, about)
    assert set(expected) <= set(found)
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)


@pytest.mark.parametrize("seed", range(20))
def test_any_range_has_a_readable_number_of_ticks_with_different_texts(seed):
    generator = np.random.default_rng(seed)
    low = generator.normal() * 10.0 ** generator.integers(-3, 6)
    found = ticks(low, low + 10.0 ** generator.uniform(-4, 6), 5)
    assert 2 <= len(found) <= 7
    assert len({tick_text(value, found) for value in found}) == len(found)


def test_tick_texts():
    assert tick_text(-0.2, [-0.2, 0.0, 0.2], sign=True) == "−0.2"
    assert tick_text(0.0, [-0.2, 0.0, 0.2], sign=True) == "0.0"
    assert tick_text(10.0, [0.0, 10.0, 20.0], sign=True) == "+10"
    assert [token_text(n) for n in (0, 950, 655_360, 400e6, 1e9, 1.25e12)] == [
        "0",
        "950",
        "655k",
        "400M",
        "1B",
        "1.25T",
    ]
    assert [rate_text(r) for r in (3e-4, 9.6e-4, 1e-3)] == ["3e-4", "9.6e-4", "1e-3"]


def test_a_scale_holds_values_within_the_axis():
    scale = Scale(0, 10, 100, 0)
    assert (scale(0), scale(10), scale(5)) == (100, 0, 50)
    assert (scale(-5), scale(99)) == (100, 0)


def test_stage_labels_do_not_overlap_and_stages_ahead_are_not_drawn():
    rows = [
        {"tokens": t, "loss_nats": 3.0, "learning_rate": 1e-3, "labelled_tokens": 1, "stage": 1} for t in range(1, 1001)
    ]
    figure = loss_figure(loss_curve(rows), (490, 500, 1000, 5000))
    for picture in (figure.wide, figure.narrow):
        assert picture.count('class="stage"') == 3
        assert "stage 3" in picture
        assert "stage 2" in picture
        assert "stage 1" not in picture
        assert "stage 4" not in picture


def test_one_step_with_a_constant_loss_can_be_drawn():
    rows = [{"tokens": 1000, "loss_nats": 2.5, "learning_rate": 0.0, "labelled_tokens": 1}]
    assert "2.50" in loss_figure(loss_curve(rows), (1000,)).wide
