import json
from collections.abc import Sequence
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.recipe import Guard, Schedule
from onward.training.guard import Finding, GuardWindow, PlateauWatch, diagnose

Losses = Sequence[float]


def guard(**knobs: Any) -> Guard:
    return Guard.model_validate({"window_steps": 32, **knobs})


def curve(
    steps: int, noise: float, per_e_fold: float = 0.024, likeness: float = 0.0, bump: float = 0.0, seed: int = 0
) -> list[float]:
    """A loss that falls by so much with each e-fold of the steps.

    noise: its standard deviation; likeness: correlation of a step's noise with the last one's. bump: how far the loss
    rises in the first twelfth of the steps, as re-warming makes it. The fall of 0.024 is that of the card of
    BEE-spoke-data/smol_llama-220M-GQA-fineweb_edu between 157M and 472M tokens.
    """
    draw = np.random.default_rng(seed)
    step = np.arange(steps)
    error = draw.normal(0, noise * np.sqrt(1 - likeness**2), steps)
    for n in range(1, steps):
        error[n] += likeness * error[n - 1]
    risen = bump * np.exp(-(((step - 0.08 * steps) / (0.05 * steps)) ** 2))
    return list(3.0 - per_e_fold * np.log1p(step / 100) + risen + error)


def watched(losses: Losses, window: GuardWindow, first: int = 0, cadence: int = 1) -> list[Finding]:
    """What the guard finds when losses above its limit, and what is not a number, are left out."""
    found = []
    for step, loss in enumerate(losses, start=first):
        applied = bool(loss <= window.limit(step, cadence))
        finding = window.observe(step, float(loss), 1.0, applied)
        assert (finding is None) == applied
        if finding is not None:
            found.append(finding)
    return found


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5], ids=["large batches", "small batches", "single sequences"])
def test_noisy_falling_losses_leap_in_no_run(noise: float) -> None:
    for seed in range(40):
        losses = curve(600, noise, likeness=0.3, bump=0.3, seed=seed)
        assert watched(losses, GuardWindow(guard(window_steps=64))) == []


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_every_leap_is_found_and_nothing_else(noise: float) -> None:
    for seed in range(20):
        losses = curve(400, noise, seed=seed)
        leaps = sorted(np.random.default_rng(seed).choice(np.arange(40, 400), 4, replace=False).tolist())
        for step in leaps:
            losses[step] += 0.6 + 14 * noise
        found = watched(losses, GuardWindow(guard(patience=5)))
        assert [finding.step for finding in found] == leaps
        assert {finding.kind for finding in found} == {"spike"}
        assert all(finding.deviations is None or finding.deviations > 10 for finding in found)


def test_nothing_leaps_before_a_quarter_of_the_window_is_known() -> None:
    window = GuardWindow(guard())
    for step in range(8):
        assert window.limit(step) == inf
        window.observe(step, 3.0, 1.0, True)
    assert window.limit(8) == 3.5


@pytest.mark.parametrize(("loss", "norm"), [(nan, 1.0), (3.0, nan), (inf, 1.0), (3.0, inf), (nan, nan)])
@pytest.mark.parametrize("spike", ["skip", "rollback", "stop", None])
def test_what_is_not_a_number_is_found_at_any_step(loss: float, norm: float, spike: str | None) -> None:
    for good in (0, 3, 50):
        window = GuardWindow(guard(spike=spike))
        for step in range(good):
            assert window.observe(step, 3.0, 1.0, True) is None
        found = window.observe(good, loss, norm, False)
        assert found is not None
        assert (found.step, found.kind, found.action) == (good, "not_a_number", spike or "skip")
        assert "loss is" in found.words or "gradient norm is" in found.words


def test_without_a_watch_over_leaps_the_limit_is_infinite() -> None:
    window = GuardWindow(guard(spike=None))
    assert watched([3.0] * 40 + [30.0], window) == []


@pytest.mark.parametrize(("spike_nats", "spike_deviations", "limit"), [(0.5, 1.0, 3.5), (0.01, 10.0, 3.0 + 0.14826)])
def test_a_leap_exceeds_both_the_deviations_and_the_nats(
    spike_nats: float, spike_deviations: float, limit: float
) -> None:
    window = GuardWindow(guard(spike_nats=spike_nats, spike_deviations=spike_deviations))
    watched([2.99, 3.0, 3.01, 3.0 - 0.01, 3.0, 3.0 + 0.01] * 6 + [3.0], window)
    assert window.limit(37) == pytest.approx(limit)


def test_half_of_a_window_may_be_wrong_and_the_limit_stays_near() -> None:
    window = GuardWindow(guard())
    for step, loss in enumerate([3.0] * 17 + [90.0] * 15):
        window.observe(step, loss, 1.0, True)
    assert window.limit(32) < 4


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), stop=st.integers(1, 149), cadence=st.sampled_from([1, 4, 10]))
def test_a_resumed_run_leaves_out_what_an_uninterrupted_one_does(seed: int, stop: int, cadence: int) -> None:
    losses = np.array(curve(150, 0.05, seed=seed))
    losses[np.random.default_rng(seed).choice(150, 6, replace=False)] += 2
    losses[seed % 150] = nan
    whole, first = GuardWindow(guard()), GuardWindow(guard())
    expected = watched(losses.tolist(), whole, cadence=cadence)
    before = watched(losses[:stop].tolist(), first, cadence=cadence)
    second = GuardWindow.of(guard(), json.loads(json.dumps(first.facts())))
    after = watched(losses[stop:].tolist(), second, first=stop, cadence=cadence)
    assert before + after == expected
    assert second.facts() == whole.facts()
    assert second.limit(150, cadence) == whole.limit(150, cadence)


def test_losses_that_come_late_do_not_move_the_limit_of_their_cadence() -> None:
    early, late = GuardWindow(guard()), GuardWindow(guard())
    losses = curve(60, 0.1)
    for step in range(57):
        early.observe(step, losses[step], 1.0, True)  # a save has read the figures of steps 50 to 56 too
        if step < 50:
            late.observe(step, losses[step], 1.0, True)
    assert early.limit(57, cadence=10) == late.limit(57, cadence=10) == late.limit(50, cadence=10)
    assert early.limit(57, cadence=1) != early.limit(57, cadence=10)


@pytest.mark.parametrize("spike", ["skip", "rollback", None])
def test_patience_ends_when_so_many_updates_are_left_out_within_a_window(spike: str | None) -> None:
    window = GuardWindow(guard(spike=spike, patience=3))
    actions = []
    for step in range(120):
        is_bad = step in (10, 20, 59, 70, 91, 92, 93)  # within 32 steps: 2, 2, then 70, 91 and 92
        finding = window.observe(step, nan if is_bad else 3.0, 1.0, not is_bad)
        actions += [(step, finding.action)] if finding else []
    first = spike or "skip"
    assert actions == [(10, first), (20, first), (59, first), (70, first), (91, first), (92, "stop"), (93, "stop")]


def rows(losses: Losses, norms: Losses | None = None, bad: Sequence[int] = ()) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "stage": 1,
            "loss_nats": loss,
            "gradient_norm": 1.0 if norms is None else norms[step],
            "learning_rate": 3e-4,
            "applied": step not in bad,
        }
        for step, loss in enumerate(losses)
    ]


def test_a_stop_from_the_first_step_on_points_to_the_tokenizer() -> None:
    assert diagnose(rows([nan] * 5, bad=range(5))).startswith("tokenising or model")


def test_a_gradient_norm_that_grew_before_the_leap_points_to_the_learning_rate() -> None:
    norms = [1.0] * 60 + [3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0] + [20.0] * 3
    found = diagnose(rows([3.0] * 68 + [9.0] * 3, norms, bad=range(68, 71)))
    assert found.startswith("learning rate: the gradient norm had grown")
    assert "3.0e-04" in found


def test_norms_that_vary_as_usual_point_to_no_learning_rate() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        norms = np.exp(draw.normal(0, 0.33, 80)).tolist()
        assert not diagnose(rows([3.0] * 79 + [9.0], norms, bad=[79])).startswith("learning rate")


def test_single_bad_batches_point_to_the_data_and_name_their_steps() -> None:
    found = diagnose(rows([3.0] * 80, bad=[30, 50, 79]))
    assert found.startswith("data: single batches (steps 30, 50, 79)")


def test_a_loss_that_stays_up_points_to_a_change_of_the_text_or_a_harmful_update() -> None:
    assert diagnose(rows([3.0] * 60 + [4.0] * 5, bad=range(60, 65))).startswith("data or learning rate: from step 60")


def test_weights_that_overflow_point_to_the_learning_rate() -> None:
    found = diagnose(rows([3.0] * 60 + [nan] * 5, bad=range(60, 65)))
    assert found.startswith("learning rate: from step 60 on no batch gave a number")


SCHEDULES = {kind: Schedule.model_validate({"kind": kind}) for kind in ("cosine", "wsd", "infinite", "constant")}


def noticed(losses: Losses, schedule: Schedule, stage_steps: tuple[int, ...] | None = None) -> list[tuple[int, str]]:
    watch = PlateauWatch()
    stage_steps = stage_steps or (len(losses),)
    found = []
    for row in rows(losses):
        row["stage"] = 1 + sum(row["step"] >= end for end in stage_steps)
        words = watch.observe(row, stage_steps, schedule)
        found += [(row["step"], words)] if words else []
    return found


@pytest.mark.parametrize("kind", list(SCHEDULES))
@pytest.mark.parametrize("likeness", [0.0, 0.5], ids=["independent", "alike"])
def test_of_a_hundred_falling_curves_three_at_most_are_called_plateaus(kind: str, likeness: float) -> None:
    false = sum(bool(noticed(curve(2500, 0.035, 0.03, likeness, seed=n), SCHEDULES[kind])) for n in range(100))
    assert false <= 3


@pytest.mark.parametrize("steps", [60, 200, 500], ids=str)
def test_few_steps_and_a_noisy_loss_give_no_false_notice(steps: int) -> None:
    false = sum(bool(noticed(curve(steps, 0.1, 0.05, 0.2, seed=n), SCHEDULES["wsd"])) for n in range(100))
    assert false <= 3


def test_the_rise_after_rewarming_is_no_plateau() -> None:
    false = sum(bool(noticed(curve(2000, 0.035, 0.03, bump=0.2, seed=n), SCHEDULES["wsd"])) for n in range(100))
    assert false <= 3


@pytest.mark.parametrize("kind", ["wsd", "constant"])
def test_of_a_hundred_losses_that_stand_still_ninety_at_least_are_noticed(kind: str) -> None:
    found = [noticed(curve(8000, 0.035, per_e_fold=0.0, seed=n), SCHEDULES[kind]) for n in range(30)]
    assert sum(map(bool, found)) >= 27
    assert sum("nor since warm-up" in words[0][1] for words in found if words) >= 25


def test_a_loss_that_rises_is_noticed_soon_and_points_to_the_learning_rate_first() -> None:
    ((step, words),) = noticed(curve(1000, 0.035, per_e_fold=-0.5), SCHEDULES["wsd"])
    assert step < 500
    assert "learning rate first" in words


def test_a_loss_that_fell_and_then_stands_points_to_the_data() -> None:
    falling, standing = curve(400, 0.01, per_e_fold=0.3), [2.5] * 3600
    standing = (np.array(standing) + np.random.default_rng(1).normal(0, 0.01, 3600)).tolist()
    ((_, words),) = noticed(falling + standing, SCHEDULES["constant"])
    assert "it fell before: look at the data" in words


def test_a_plateau_is_told_once_a_stage() -> None:
    losses = curve(6000, 0.01, per_e_fold=0.0)
    found = noticed(losses, SCHEDULES["constant"], (3000, 6000))
    assert len(found) == 2
    assert found[0][0] < 3000 <= found[1][0]


@pytest.mark.parametrize(("kind", "last"), [("cosine", 1500), ("wsd", 2400), ("infinite", 2400)])
def test_a_loss_that_stands_only_while_the_rate_comes_down_is_no_plateau(kind: str, last: int) -> None:
    losses = curve(3000, 0.01, per_e_fold=0.5)
    losses[last:] = [losses[last]] * (3000 - last)
    assert noticed(losses, SCHEDULES[kind]) == []
