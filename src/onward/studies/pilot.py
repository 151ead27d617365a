"""The study `pilot`: whether a short training falls, stays stable and fits, and what the whole would take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import median
from typing import Any

import numpy as np

from onward.analysis import loss_curve
from onward.analysis.rows import LEAST_GROUPS
from onward.recipe import Recipe, format_seconds, format_tokens
from onward.reporting.content import Table, size_text
from onward.reporting.figures import Figure, loss_figure
from onward.statistics import Interval
from onward.studies.outcome import PER_BYTE, Measured, Outcome, as_numbers, change_words, judged_on, listed
from onward.studies.scored import told
from onward.training.record import read_rows

_RESAMPLES, _SEED = 2000, 0
_FARTHEST = 4
"""A loss is projected to so many times the pilot's tokens at most: fits beyond miss (science of scaling curves)."""
_LEAST_STEPS = 10
_BEFORE = 16
"""Steps whose median a leap is measured from."""
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
    """Return the table, the plot and the findings; found: the pilot; whole: the recipe that it is a part of."""
    pilot = found[0]
    seed, folder = next(iter(pilot.runs.items()))
    rows, events = read_rows(folder / "metrics.jsonl"), read_rows(folder / "events.jsonl")
    slope = falling(rows)
    checks = [_falling(slope), _stability(rows, events), *_held_out(pilot), _throughput(rows), _memory(rows)]
    seconds = projected_seconds(rows, whole)
    go = all(check.verdict != Look for check in checks)
    numbers: list[dict[str, Any]] = [
        {"check": check.name, "value": check.value, "verdict": check.verdict} for check in checks
    ]
    numbers.append({"check": "projection", "seconds": round(seconds, 1), "seed": seed} | (
        {} if slope is None else as_numbers("nats_per_e_fold", slope.slope)))  # fmt: skip
    body = [(check.name, check.value, check.verdict) for check in checks]
    body.append(("training of the whole recipe", f"{format_seconds(seconds)} at this speed, scoring not counted", ""))
    table = Table(f"A pilot of {format_tokens(pilot.tokens)} tokens, {len(rows)} steps", ("check", "found", "verdict"),
                  (False, False, False), tuple(body))  # fmt: skip
    figure = _figure(rows)
    against = [check.name for check in checks if check.verdict == Look]
    headline = "Go: the pilot shows nothing against the whole training." if go else (
        f"Look first: {listed(against)}."
    )  # fmt: skip
    return Outcome(
        headline, (*_findings(pilot, slope, seconds, whole), *judged_on(found)), table, tuple(numbers), figure
    )


def falling(rows: Sequence[Mapping[str, Any]]) -> Slope | None:
    """Fit a line through the losses of the last half of the steps over log tokens; None for fewer than ten of them.

    Least squares with Student's t: batches are drawn independently, so their losses scatter so about the course. Steps
    whose update was left out are not counted.
    """
    good = [row for row in rows if row["applied"] and isfinite(row["loss_nats"])]
    half = good[len(good) // 2 :]
    if len(half) < _LEAST_STEPS:
        return None
    from scipy.special import stdtrit

    x = np.log([row["tokens"] for row in half])
    y = np.array([row["loss_nats"] for row in half])
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    free = len(x) - 2
    error = float(np.sqrt(residuals @ residuals / free / (centred @ centred)))
    reach = float(stdtrit(free, 0.975)) * error
    return Slope(Interval(slope, slope - reach, slope + reach), float(y.mean()), float(np.exp(x.mean())))


def projected_seconds(rows: Sequence[Mapping[str, Any]], whole: Recipe) -> float:
    """Return what training the whole recipe takes at the pilot's median speed."""
    return float(whole.training.stages[-1] / median(row["tokens_per_second"] for row in rows))


def _falling(slope: Slope | None) -> Check:
    if slope is None:
        return Check("loss", f"fewer than {2 * _LEAST_STEPS} steps say nothing of its course", Look)
    words = change_words(slope.slope).replace(PER_BYTE, "nats per e-fold of tokens in the last half")
    low, high = slope.slope.low, slope.slope.high
    # An interval that holds zero is no sign against it: the held-out text then decides.
    return Check("loss", words, Go if high < 0 else Look if low > 0 else OPEN)


def _stability(rows: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> Check:
    left_out = sum(not row["applied"] for row in rows)
    rollbacks = sum(event["event"] == "rollback" for event in events)
    value = f"{left_out} updates left out, {rollbacks} rollbacks; the largest leap is {largest_leap(rows):.2f} nats"
    value += f" above the median of up to {_BEFORE} steps before"
    return Check("stability", value, Look if left_out or rollbacks else Go)


def largest_leap(rows: Sequence[Mapping[str, Any]], window: int = _BEFORE) -> float:
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


def _throughput(rows: Sequence[Mapping[str, Any]]) -> Check:
    speeds = [row["tokens_per_second"] for row in rows]
    shares = [row["model_flops_utilisation"] for row in rows if row.get("model_flops_utilisation") is not None]
    used = f", {median(shares):.0%} of the device's peak" if shares else ""
    return Check("throughput", f"{median(speeds):,.0f} tokens/s{used}", "")


def _memory(rows: Sequence[Mapping[str, Any]]) -> Check:
    return Check("memory", size_text(max(int(row.get("memory_bytes") or 0) for row in rows)), "")


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    curve = loss_curve(rows)
    if curve is None:
        return None
    # Steps are whole, so that more may be trained than was asked for.
    drawn = loss_figure(curve, (int(rows[-1]["tokens"]),))
    return Figure("plot", drawn.caption, drawn.wide, drawn.narrow)


def _findings(pilot: Measured, slope: Slope | None, seconds: float, whole: Recipe) -> tuple[str, ...]:
    last, tokens = whole.training.stages[-1], pilot.tokens
    sentences = [
        f"Training {format_tokens(last)} tokens would take {format_seconds(seconds)} at the pilot's median speed, "
        "without scoring and preparing."
    ]
    if slope is None:
        return (*sentences, "The loss is not projected from so few steps.")
    reach = min(last, _FARTHEST * tokens)
    sentences.append(
        f"The line through the last half of the pilot's losses comes to {slope.at(reach):.2f} nats at "
        f"{format_tokens(reach)} tokens. It is a rough guide: the pilot's learning rate had come down to its end, and "
        f"the whole training's will still be high there."
    )
    if last > reach:
        sentences.append(
            f"The whole training is {last / tokens:.0f} times as long as the pilot; beyond {_FARTHEST} times "
            "no loss is projected, since extrapolation that far misses."
        )
    return tuple(sentences)
