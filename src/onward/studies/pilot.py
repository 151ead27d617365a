"""The study `pilot`: whether a short training falls, stays stable and fits, and what the whole would take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from onward.analysis import loss_curve
from onward.analysis.rows import LEAST_GROUPS
from onward.batches import plan_batches
from onward.errors import UserError
from onward.recipe import Recipe, Training, format_seconds, format_tokens
from onward.reporting.content import Table, size_text
from onward.reporting.figures import Figure, loss_figure
from onward.statistics import Interval
from onward.studies.outcome import PER_BYTE, Measured, Outcome, as_numbers, change_words, judged_on, listed
from onward.studies.scored import told
from onward.training.record import read_rows
from onward.training.schedule import learning_rate

_RESAMPLES, _SEED = 2000, 0
_FARTHEST = 4
"""A loss is projected to so many times the pilot's tokens at most: fits beyond miss (science of scaling curves)."""
_LEAST_STEPS = 10
_BEFORE = 16
"""Steps whose median a leap is measured from."""
_Rows = Sequence[Mapping[str, Any]]
"""The record of a training: steps or events."""
Go = "go"
Look = "look first"
OPEN = "cannot be told"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and whether it lets the whole training begin."""

    name: str
    value: str
    verdict: str


@dataclass(frozen=True)
class Slope:
    """A straight line through losses over the logarithm of tokens: nats per e-fold, with its interval."""

    slope: Interval
    level: float
    tokens: float

    def at(self, tokens: float) -> float:
        """Return the line's loss at so many tokens."""
        return self.level + self.slope.estimate * float(np.log(tokens / self.tokens))


def outcome(found: Sequence[Measured], whole: Recipe) -> Outcome:
    """Return the table, the plot and the findings; found: the pilot; whole: the recipe that it is a part of.

    All seeds are looked at. Raises UserError when the record of one of them is gone.
    """
    pilot = found[0]
    records = {seed: _steps(folder) for seed, folder in pilot.runs.items()}
    events = {seed: read_rows(folder / "events.jsonl") for seed, folder in pilot.runs.items()}
    rows = list(chain(*records.values()))
    slope = falling(*records.values())
    checks = [_falling(slope), _stability(records, events), *_held_out(pilot), _throughput(rows), _memory(rows)]
    seconds = projected_seconds(rows, whole)
    go = all(check.verdict != Look for check in checks)
    numbers: list[dict[str, Any]] = [
        {"check": check.name, "value": check.value, "verdict": check.verdict} for check in checks
    ]
    numbers.append({"check": "projection", "seconds": round(seconds, 1), "seeds": len(records)} | (
        {} if slope is None else as_numbers("nats_per_e_fold", slope.slope)))  # fmt: skip
    body = [(check.name, check.value, check.verdict) for check in checks]
    body.append(("training of the whole recipe", f"{format_seconds(seconds)} at this speed, scoring not counted", ""))
    caption = f"A pilot of {format_tokens(pilot.tokens)} tokens, {max(map(len, records.values()))} steps"
    caption += f" with each of {len(records)} seeds" if len(records) > 1 else ""
    table = Table(caption, ("check", "found", "verdict"), (False, False, False), tuple(body))
    against = [check.name for check in checks if check.verdict == Look]
    headline = "Go: the pilot shows nothing against the whole training." if go else (
        f"Look first: {listed(against)}."
    )  # fmt: skip
    return Outcome(
        headline,
        (*_findings(pilot, slope, seconds, whole), *judged_on(found)),
        table,
        tuple(numbers),
        _figure(next(iter(records.values())), len(records)),
    )


def _steps(folder: Path) -> _Rows:
    """Read the record of a training's steps; raises UserError when there is none."""
    path = folder / "metrics.jsonl"
    rows = read_rows(path)
    if not rows:
        todo = f"remove {folder} and call the study again, which trains it anew"
        raise UserError("the record of the pilot's steps is gone", str(path), "no step", "a row for each step", todo)
    return rows


def falling(*records: _Rows) -> Slope | None:
    """Fit a line through the losses of the last half of the steps over log tokens; None for fewer than ten of them.

    Least squares with Student's t: batches are drawn independently, so their losses scatter so about the course. Steps
    whose update was left out are not counted. records: of the seeds, which share the slope, each about its own mean.
    """
    halves = [half for half in map(_last_half, records) if len(half) >= _LEAST_STEPS]
    if not halves:
        return None
    from scipy.special import stdtrit

    xs = [np.log([row["tokens"] for row in half]) for half in halves]
    ys = [np.array([row["loss_nats"] for row in half]) for half in halves]
    x, y = (np.concatenate([each - each.mean() for each in values]) for values in (xs, ys))
    slope = float(x @ y / (x @ x))
    residuals = y - slope * x
    free = len(x) - len(halves) - 1
    error = float(np.sqrt(residuals @ residuals / free / (x @ x)))
    reach = float(stdtrit(free, 0.975)) * error
    level, place = (float(np.concatenate(values).mean()) for values in (ys, xs))
    return Slope(Interval(slope, slope - reach, slope + reach), level, float(np.exp(place)))


def _last_half(rows: _Rows) -> _Rows:
    good = [row for row in rows if row["applied"] and isfinite(row["loss_nats"])]
    return good[len(good) // 2 :]


def projected_seconds(rows: _Rows, whole: Recipe) -> float:
    """Return what training the whole recipe takes at the pilot's median speed."""
    return float(whole.training.stages[-1] / median(row["tokens_per_second"] for row in rows))


def _falling(slope: Slope | None) -> Check:
    if slope is None:
        return Check("loss", f"fewer than {2 * _LEAST_STEPS} steps say nothing of its course", Look)
    words = change_words(slope.slope).replace(PER_BYTE, "nats per e-fold of tokens in the last half")
    low, high = slope.slope.low, slope.slope.high
    # An interval that holds zero is no sign against it: the held-out text then decides.
    return Check("loss", words, Go if high < 0 else Look if low > 0 else OPEN)


def _stability(records: Mapping[int, _Rows], events: Mapping[int, _Rows]) -> Check:
    """Judge all seeds, by their numbers: one of them that is not stable is a sign against the whole."""
    left_out = {seed: sum(not row["applied"] for row in rows) for seed, rows in records.items()}
    rollbacks = {seed: sum(event["event"] == "rollback" for event in rows) for seed, rows in events.items()}
    value = f"{_counted(left_out, 'updates left out')}, {_counted(rollbacks, 'rollbacks')}; "
    value += f"the largest leap is {max(map(largest_leap, records.values())):.2f} nats"
    value += f" above the median of up to {_BEFORE} steps before"
    return Check("stability", value, Look if any((*left_out.values(), *rollbacks.values())) else Go)


def _counted(by_seed: Mapping[int, int], what: str) -> str:
    """Count over seeds, and name those of several that there are any of: `10 updates left out (seed 1)`."""
    seeds = [f"seed {seed}" for seed, count in by_seed.items() if count]
    named = f" ({listed(seeds)})" if seeds and len(by_seed) > 1 else ""
    return f"{sum(by_seed.values())} {what}{named}"


def largest_leap(rows: _Rows, window: int = _BEFORE) -> float:
    """Return by how many nats a step's loss lay above the median of the (up to) `window` before it, at most."""
    losses = [row["loss_nats"] for row in rows if isfinite(row["loss_nats"])]
    leaps = [loss - median(losses[max(0, n - window) : n]) for n, loss in enumerate(losses) if n >= window // 4]
    return float(max([0.0, *leaps]))


def _held_out(pilot: Measured) -> list[Check]:
    checks = []
    for name, text in pilot.texts.items():
        change = text.change(_RESAMPLES, _SEED)
        verdict = (Go if told(change) == "better" else Look) if name == "domain" else ""
        few = f", fewer than {LEAST_GROUPS} documents" if text.groups < LEAST_GROUPS else ""
        checks.append(Check(f"held-out {name} text", change_words(change) + few, verdict))
    return checks


def _throughput(rows: _Rows) -> Check:
    speeds = [row["tokens_per_second"] for row in rows]
    shares = [row["model_flops_utilisation"] for row in rows if row.get("model_flops_utilisation") is not None]
    used = f", {median(shares):.0%} of the device's peak" if shares else ""
    return Check("throughput", f"{median(speeds):,.0f} tokens/s{used}", "")


def _memory(rows: _Rows) -> Check:
    return Check("memory", size_text(max(int(row.get("memory_bytes") or 0) for row in rows)), "")


def _figure(rows: _Rows, seeds: int = 1) -> Figure | None:
    """Draw the losses of one seed; seeds: how many there are."""
    curve = loss_curve(rows)
    if curve is None:
        return None
    # Steps are whole, so that more may be trained than was asked for.
    drawn = loss_figure(curve, (int(rows[-1]["tokens"]),))
    first = f" Of the first of {seeds} seeds." if seeds > 1 else ""
    return Figure("plot", drawn.caption + first, drawn.wide, drawn.narrow)


def _findings(pilot: Measured, slope: Slope | None, seconds: float, whole: Recipe) -> tuple[str, ...]:
    last, tokens = whole.training.stages[-1], pilot.tokens
    sentences = [
        f"Training {format_tokens(last)} tokens would take {format_seconds(seconds)} at the pilot's median speed, "
        "without scoring and preparing."
    ]
    if slope is None:
        return (*sentences, "The loss is not projected from so few steps.")
    reach = min(last, _FARTHEST * tokens)
    guide = f"It is a rough guide{_rates_words(pilot.recipe.training, whole.training, reach)}."
    sentences.append(
        f"The line through the last half of the pilot's losses comes to {slope.at(reach):.2f} nats at "
        f"{format_tokens(reach)} tokens. {guide}"
    )
    if last > reach:
        sentences.append(
            f"The whole training is {last / tokens:.0f} times as long as the pilot; beyond {_FARTHEST} times "
            "no loss is projected, since extrapolation that far misses."
        )
    return tuple(sentences)


def _rates_words(pilot: Training, whole: Training, tokens: int) -> str:
    """Say how the learning rate of the whole lies above that at the pilot's end, `tokens` into it, if it does."""
    ended, there = round(100 * _share_of_peak(pilot, pilot.stages[-1])), round(100 * _share_of_peak(whole, tokens))
    if there <= ended:
        return ""
    return (
        f": the pilot's learning rate had come down to {ended} % of its peak, and the whole training's will still be "
        f"at {there} % there"
    )


def _share_of_peak(training: Training, tokens: int) -> float:
    """Return the learning rate of the step that reaches so many tokens, as a share of the peak."""
    plan = plan_batches(training, seed=0)  # the seed decides the order alone
    step = min(-(-tokens // plan.step_tokens), plan.stage_steps[-1]) - 1
    return learning_rate(step, 1.0, plan.stage_steps, training.schedule)
