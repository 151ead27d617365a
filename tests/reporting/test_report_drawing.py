"""The few words of SVG: scales, ticks and labels."""

import re

import numpy as np
import pytest

from onward.analysis import Difference, loss_curve
from onward.reporting.drawing import Scale, shortened, text, text_width, tick_at, tick_text, ticks, token_text
from onward.reporting.figures import ForestRow, forest_figure, loss_figure, rate_text


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
    assert [rate_text(r) for r in (3e-4, 9.6e-4, 1e-3, 0.0)] == ["3e-4", "9.6e-4", "1e-3", "0"]


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


# Pixels at 12.5 px in bold DejaVu Sans, as a browser measures them.
@pytest.mark.parametrize(
    ("content", "measured"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 282.5),
        ("blended 25 % of self replay 5 %", 222.3),
        ("domain_with_underscores_x", 196.6),
        ("SHOUTED NAME", 113.2),
        ("\N{MINUS SIGN}0.00010", 67.4),
        ("illiliij", 34.3),
    ],
)
def test_a_text_is_about_as_wide_as_it_is_said_to_be(content, measured):
    assert measured <= text_width(content, 12.5) < 1.1 * measured


def test_chinese_is_as_wide_as_it_is_high():
    assert 4 * 12.5 <= text_width("法律文本", 12.5) < 4.4 * 12.5


def test_a_text_without_room_is_cut_in_its_middle():
    name = "/data/models/2026/of-the-law/final-model"
    assert shortened(name, 12.5, 1000) == name
    cut = shortened(name, 12.5, 150)
    first, last = cut.split("\N{HORIZONTAL ELLIPSIS}")
    assert name.startswith(first)
    assert name.endswith(last)
    assert len(first) - len(last) in (0, 1)
    assert 130 < text_width(cut, 12.5) <= 150
    assert len(shortened(name, 12.5, -10)) <= 3


def test_the_whole_of_a_cut_text_is_its_title():
    assert "<title>a &lt; b</title>a\N{HORIZONTAL ELLIPSIS}" in text(
        0, 0, "a\N{HORIZONTAL ELLIPSIS}", "", whole="a < b"
    )
    assert "<title>" not in text(0, 0, "a < b", "", whole="a < b")


def test_a_tick_at_the_edge_is_not_cut():
    places = [re.findall(r'x="([\d.]+)"', tick_at(x, 0, "+0.0001", 380))[0] for x in (5, 200, 375)]
    half = text_width("+0.0001", 11.5) / 2
    assert [float(place) for place in places] == pytest.approx([half, 200, 380 - half], abs=0.1)


def changed(name: str, delta: float) -> Difference:
    values = {"before": 0.5, "after": 0.5 + delta, "delta": delta, "low": delta - 0.02, "high": delta + 0.02}
    ps = {"p_value": 0.01, "p_adjusted": 0.02, "verdict": "gained", "items": 100}
    return Difference(name, "acc_norm", **values, **ps, right_to_wrong=3, wrong_to_right=5)


@pytest.mark.parametrize("name", ["arc_easy", "mmlu_continuation@5", "questions-of-my-own-on-the-law-of-2026"])
def test_names_of_tasks_end_before_what_stands_beside_them(name):
    rows = [ForestRow(stage, changed(name, delta)) for stage, delta in (("65.5M", -0.3), ("131M", -0.28))]
    figure = forest_figure([*rows, ForestRow("131M", changed("piqa", 0.1))], text_rows=False)
    for picture in (figure.wide, figure.narrow):
        rights, lefts = {}, {}
        for x, y, kind, anchor, words in re.findall(
            r'<text x="([\d.]+)" y="([\d.]+)" class="([^"]*)" text-anchor="(\w+)">(?:<title>[^<]*</title>)?([^<]*)<',
            picture,
        ):
            if kind == "name":
                rights[y] = float(x) + 6.5 * len(words)
            elif anchor == "end":
                lefts.setdefault(y, float(x) - 6.5 * len(words))
        assert rights
        assert all(rights[y] < lefts[y] for y in rights)
        if picture is figure.wide:
            assert max(rights.values()) < min(float(x) for x in re.findall(r'cx="([\d.]+)"', picture))


def test_no_line_runs_through_the_name_of_a_task_on_a_narrow_screen():
    picture = forest_figure([ForestRow("65.5M", changed("arc_easy", delta)) for delta in (-0.3, 0.1)], False).narrow
    lines = re.findall(r'y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)" class="(?:zero|grid)"', picture)
    names = [float(y) for y in re.findall(r'y="([\d.]+)" class="name"', picture)]
    assert lines
    assert names
    assert not any(float(top) < y and float(bottom) > y - 9 for y in names for top, bottom in lines)


def test_the_unit_of_the_loss_stands_above_the_names_of_early_stages():
    rows = [{"tokens": t, "loss_nats": 3.0, "learning_rate": 1e-3, "labelled_tokens": 1, "stage": 1} for t in (1, 999)]
    figure = loss_figure(loss_curve(rows), (200, 1000))
    for picture in (figure.wide, figure.narrow):
        unit = re.findall(r'y="([\d.]+)"[^>]*>loss, nats', picture)
        stages = re.findall(r'y="([\d.]+)"[^>]*>stage ', picture)
        assert len(stages) == 2
        assert all(float(stage) - float(unit[0]) > 12 for stage in stages)


def test_ticks_of_a_constant_loss_are_not_cut():
    rows = [{"tokens": t, "loss_nats": 3.0, "learning_rate": 0.0, "labelled_tokens": 1} for t in range(1, 9)]
    for picture in (loss_figure(loss_curve(rows), (8,)).wide, loss_figure(loss_curve(rows), (8,)).narrow):
        found = re.findall(r'<text x="([\d.]+)"[^>]*class="tick" text-anchor="end">([^<]*)<', picture)
        assert "3.0000" in [words for _, words in found]
        assert all(float(x) > 6.5 * len(words) for x, words in found)
