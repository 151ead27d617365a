"""What watches over the loss: leaps whose updates are left out, the reason when a run is stopped, and plateaus.

Pure logic over recorded figures. Which updates are left out follows from the losses before them alone, so a run that
was interrupted leaves out the same ones.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite, isnan, sqrt
from statistics import fmean, median, variance
from typing import Any, Literal

from onward.recipe import Guard, Schedule
from onward.training.schedule import horizon_of

_NORMAL = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""
_LONGEST_CADENCE = 64
"""Losses may become known so many steps late at most."""

Row = Mapping[str, Any]
"""A row of metrics.jsonl as `read_rows` gives it, where what is not a number is NaN; `step`, `stage`, `loss_nats`,
`gradient_norm`, `learning_rate` and `applied` are read."""


@dataclass(frozen=True)
class Finding:
    """A step whose update was left out, and what follows.

    deviations: how far the loss lay above the median of the steps before, in robust standard deviations; None when it
    is not a number or they did not vary.
    """

    step: int
    kind: Literal["not_a_number", "spike"]
    action: Literal["skip", "rollback", "stop"]
    words: str
    deviations: float | None = None


class GuardWindow:
    """The losses of the last good steps, and the steps that were left out among them."""

    def __init__(self, settings: Guard) -> None:
        self._settings = settings
        self._good: deque[tuple[int, float]] = deque(maxlen=settings.window_steps + _LONGEST_CADENCE)
        self._left_out: deque[int] = deque(maxlen=settings.patience)

    @classmethod
    def of(cls, settings: Guard, facts: Mapping[str, Any] | None) -> "GuardWindow":
        """Return the window that `facts` describe, as they stand in a checkpoint; None: a new one."""
        window = cls(settings)
        if facts is not None:
            window._good.extend((int(step), float(loss)) for step, loss in facts["good"])
            window._left_out.extend(int(step) for step in facts["left_out"])
        return window

    def facts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, as JSON."""
        return {"good": [list(pair) for pair in self._good], "left_out": list(self._left_out)}

    def limit(self, step: int, cadence: int = 1) -> float:
        """Return the loss in nats above which the update of `step` is left out; infinite while too little is known.

        cadence: losses become known every so many steps, so only those before its last multiple are looked at,
        whether later ones happen to be known or not.
        """
        assert 1 <= cadence <= _LONGEST_CADENCE
        settings = self._settings
        before = self._before(step // cadence * cadence)
        if settings.spike is None or len(before) < ceil(settings.window_steps / 4):
            return inf
        middle, deviation = _middle_and_deviation(before)
        return middle + max(settings.spike_deviations * deviation, settings.spike_nats)

    def observe(self, step: int, loss: float, gradient_norm: float, applied: bool) -> Finding | None:
        """Take note of a step, in the order of steps; says what follows when its update was left out."""
        is_number = isfinite(loss) and isfinite(gradient_norm)
        if applied:
            assert is_number, "an update from what is not a number"
            self._good.append((step, loss))
            return None
        self._left_out.append(step)
        since = step - self._settings.window_steps
        number = sum(earlier > since for earlier in self._left_out)
        action = self._settings.spike or "skip"
        ending = {
            "skip": "its update was left out",
            "rollback": "training goes back to the last checkpoint and leaves the batches since out",
            "stop": "training stops",
        }[action]
        if number >= self._settings.patience:
            action, ending = "stop", f"{number} updates within {self._settings.window_steps} steps were left out"
        if not is_number:
            return Finding(step, "not_a_number", action, f"{_not_a_number(loss, gradient_norm)}; {ending}")
        what, deviations = self._leap(step, loss)
        return Finding(step, "spike", action, f"{what}; {ending}", deviations)

    def _before(self, step: int) -> list[float]:
        """The losses of the last good steps before a step, a window of them at most."""
        return [loss for number, loss in self._good if number < step][-self._settings.window_steps :]

    def _leap(self, step: int, loss: float) -> tuple[str, float | None]:
        before = self._before(step)
        if not before:
            return f"the loss leapt to {loss:.3f} nats", None
        middle, deviation = _middle_and_deviation(before)
        what = f"the loss leapt to {loss:.3f} nats from a median of {middle:.3f} over {len(before)} steps"
        return what, (loss - middle) / deviation if deviation else None


def _middle_and_deviation(losses: Sequence[float]) -> tuple[float, float]:
    """Median, and 1.4826 x median absolute deviation: half of the losses could be wrong and neither would move far."""
    middle = median(losses)
    return middle, _NORMAL * median(abs(loss - middle) for loss in losses)


def _not_a_number(loss: float, gradient_norm: float) -> str:
    for what, value in (("loss", loss), ("gradient norm", gradient_norm)):
        if not isfinite(value):
            return f"the {what} is {'not a number' if isnan(value) else 'infinite'}"
    raise AssertionError("both are numbers")


_LEAD_STEPS = 8
"""The gradient norm just before a leap is the median over so many steps ..."""
_GROWTH = 3.0
"""... and grew when it is so many times that of the steps before. Instability announces itself in the norm (arXiv
2312.16903); where norms vary by a third from step to step, chance made it 2.2 times at most in 100,000 trials."""


def diagnose(rows: Sequence[Row]) -> str:
    """Say, from the rows recorded up to a stop, what most likely made the guard leave updates out, and what to do.

    In the terms of arXiv 2504.09687, whose signatures of failure are data, tokenising and learning rate.
    """
    bad = [row for row in rows if not row["applied"]]
    if not bad:
        return "no update was left out"
    good = [row for row in rows if row["applied"]]
    last_run = _last_run(rows)
    before = [row for row in good if row["step"] < last_run[0]["step"]]
    if not before:
        return (
            "tokenising or model: it was so from the first step on; compare model.base, its tokenizer and the "
            "start-of-run check in events.jsonl"
        )
    rate = f"{before[-1]['learning_rate']:.1e}"
    growth = _norm_growth(before)
    if growth is not None and growth >= _GROWTH:
        return (
            f"learning rate: the gradient norm had grown {growth:.1f}-fold in the {_LEAD_STEPS} steps before "
            f"(rate {rate}); lower training.optimizer.learning_rate or lengthen training.schedule.warmup"
        )
    steps = ", ".join(str(row["step"]) for row in bad[-5:])
    if len(last_run) == 1:
        return (
            f"data: single batches (steps {steps}) amid good ones; look at the sequences that events.jsonl names for "
            "them, and filter such text"
        )
    if all(isfinite(row["loss_nats"]) for row in last_run):
        return (
            f"data or learning rate: from step {last_run[0]['step']} on the loss stayed up on every batch; either the "
            "text changes there (if that is meant, set training.guard.spike: null), or the update before it did harm: "
            f"lower training.optimizer.learning_rate (rate {rate})"
        )
    return (
        f"learning rate: from step {last_run[0]['step']} on no batch gave a number, so the weights themselves are too "
        f"large; lower training.optimizer.learning_rate (rate {rate}), or set training.precision: fp32"
    )


def _last_run(rows: Sequence[Row]) -> list[Row]:
    """The last rows in a row whose updates were left out."""
    run: list[Row] = []
    for row in reversed(rows):
        if not row["applied"]:
            run.append(row)
        elif run:
            break
    return run[::-1]


def _norm_growth(good: Sequence[Row]) -> float | None:
    """How many times the usual gradient norm of the steps before the last few good ones theirs is; None: too few."""
    norms = [float(row["gradient_norm"]) for row in good[-64:]]
    if len(norms) < 2 * _LEAD_STEPS:
        return None
    usual = median(norms[:-_LEAD_STEPS])
    return median(norms[-_LEAD_STEPS:]) / usual if usual > 0 else None


_FIRST_LOOK = 0.25
"""No look before this share of the horizon: after re-warming the loss may rise at first (arXiv 2403.08763), and the
general text's recovers from its initial dip later (the stability gap, arXiv 2406.14833)."""
_NEXT_LOOK = 1.25
"""Each look waits for so many times the steps of the one before: at most seven a horizon."""
_PARTS = 10
"""A quarter is cut into so many parts, whose means vary as the quarter's does, neighbouring steps alike or not (the
method of batch means)."""
_LEAST_STEPS = 4 * _PARTS * 4
_T = 2.878
"""Student's t, one-sided 0.5 %, for 2 x 10 - 2 degrees of freedom."""
_WORTH_NATS = 0.005
"""A fall by less between two quarters of the steps is none. A 220M model was still falling by 0.0144 nats with each
e-fold of its tokens from 0.9 to 10.8 billion (card of BEE-spoke-data/smol_llama-220M-GQA-fineweb_edu); that is 0.0048
between the last two quarters."""


class PlateauWatch:
    """Notices, once a stage, that the loss has ceased to fall although the learning rate is high.

    The mean loss of the last quarter of the steps since warm-up is compared with that of the quarter before. The
    notice comes when the fall is less than 0.005 nats with 99.5 % confidence, so few steps or a noisy loss give no
    notice instead of a false one. Of simulated runs that fall like a 220M model on web text one in fifty is mistaken
    at most, whatever the schedule; of those whose loss stands still most are noticed within 8,000 steps.
    """

    def __init__(self) -> None:
        self._start = -1
        self._losses: list[float] = []
        self._next_look = 0
        self._noticed_stage: int | None = None

    def observe(self, row: Row, stage_steps: tuple[int, ...], schedule: Schedule) -> str | None:
        """Take note of a recorded step, in the order of steps; returns the notice's words when there is one."""
        step = int(row["step"])
        start, length = horizon_of(step, stage_steps, schedule)
        if start != self._start:
            self._start, self._losses = start, []
            self._next_look = ceil(_FIRST_LOOK * length)
        if not _is_high(step - start, length, schedule) or not row["applied"]:
            return None
        self._losses.append(float(row["loss_nats"]))
        if step - start + 1 < self._next_look or len(self._losses) < _LEAST_STEPS:
            return None
        self._next_look = ceil(_NEXT_LOOK * (step - start + 1))
        if self._noticed_stage == row["stage"]:
            return None
        words = _plateau(self._losses)
        if words is not None:
            self._noticed_stage = int(row["stage"])
        return words


def _is_high(n: int, length: int, schedule: Schedule) -> bool:
    """Whether step n of a horizon lies behind warm-up and before the learning rate has come down."""
    if n < round(float(schedule.warmup) * length):
        return False
    if schedule.kind == "constant":
        return True
    # A cosine is at half its height in the middle; the other two begin their cooldown late.
    return n < (length // 2 if schedule.kind == "cosine" else length - round(float(schedule.cooldown) * length))


def _plateau(losses: Sequence[float]) -> str | None:
    """Return the words of a notice when the loss has not fallen from the third quarter to the last, else None."""
    quarter = len(losses) // 4
    earlier, later = losses[-2 * quarter : -quarter], losses[-quarter:]
    fall = fmean(earlier) - fmean(later)
    error = sqrt(_squared_error(earlier) + _squared_error(later))
    if fall + _T * error >= _WORTH_NATS:
        return None
    course = f"the loss has not fallen for {2 * quarter} steps ({fmean(earlier):.3f} nats, then {fmean(later):.3f})"
    if fall < -_T * error:
        advice = "it rises, so look at the learning rate first, then at the data"
    elif fmean(losses[:quarter]) - fmean(later) < _WORTH_NATS:
        advice = (
            "nor since warm-up: look at the learning rate (too low?), the data (known to the base?), the tokenising"
        )
    else:
        advice = "it fell before: look at the data (all of it learned, or repeated?), then at the learning rate"
    return f"{course}; {advice}"


def _squared_error(losses: Sequence[float]) -> float:
    """The squared standard error of a mean of losses in their order, by the means of its parts."""
    size = len(losses) // _PARTS
    return variance(fmean(losses[n * size : (n + 1) * size]) for n in range(_PARTS)) / _PARTS
