"""The learning rate as a pure function of the step."""

from math import cos, pi, sqrt

from onward.recipe import Schedule


def horizon_of(step: int, stage_steps: tuple[int, ...], schedule: Schedule) -> tuple[int, int]:
    """Return first step and length of the horizon that `step` lies in: its stage, or the whole run."""
    if schedule.horizon == "run":
        return 0, stage_steps[-1]
    start = 0
    for end in stage_steps:
        if step < end:
            return start, end - start
        start = end
    raise IndexError(f"step {step} is past the last stage's end {stage_steps[-1]}")


def learning_rate(step: int, peak: float, stage_steps: tuple[int, ...], schedule: Schedule) -> float:
    """Return the learning rate of update `step` (from 0).

    Warm-up is linear and reaches the peak at its last step. cosine: half a cosine to minimum x peak. wsd: constant,
    then lr = minimum + (peak - minimum) (1 - sqrt(x)) with x from 0 to 1 over the cooldown (arXiv 2405.18392).
    infinite (arXiv 2403.08763): after warm-up a cosine over a quarter of the rest down to the geometric mean of
    peak and minimum, constant there, then the exponential annealing constant x (minimum/constant)^x.
    """
    start, length = horizon_of(step, stage_steps, schedule)
    n = step - start
    low = peak * float(schedule.minimum)
    warmup = round(float(schedule.warmup) * length)
    if n < warmup:
        return peak * (n + 1) / warmup
    cooldown = round(float(schedule.cooldown) * length)
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "cosine":
        return low + (peak - low) * (1 + cos(pi * _part(n - warmup, length - warmup))) / 2
    if schedule.kind == "wsd":
        into = n - (length - cooldown)
        return peak if into < 0 else low + (peak - low) * (1 - sqrt(_part(into, cooldown)))
    return _infinite(n - warmup, length - warmup, cooldown, peak, low)


def _infinite(n: int, length: int, cooldown: int, peak: float, low: float) -> float:
    constant = sqrt(peak * low) if low > 0 else peak / 10
    descent = (length - cooldown) // 4
    if n < descent:
        return constant + (peak - constant) * (1 + cos(pi * _part(n, descent))) / 2
    into = n - (length - cooldown)
    floor = low if low > 0 else constant / 100  # an exponential never reaches zero
    return float(constant if into < 0 else constant * (floor / constant) ** _part(into, cooldown))


def _part(n: int, length: int) -> float:
    """Position in a phase, 0 at its first step and 1 at its last."""
    return n / (length - 1) if length > 1 else 1.0
