"""The Pareto front of the study of remedies, and which members cannot be told from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onward.statistics import Interval
from onward.studies.scored import NO_VERDICT, Text, told

Standing = Literal["front", "not distinguishable", "behind", "no verdict", "control"]


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say which points no other one dominates: none is as low in both coordinates and lower in one."""
    order = sorted(range(len(points)), key=lambda n: points[n])
    found = [False] * len(points)
    lowest = float("inf")
    for place, number in enumerate(order):
        x, y = points[number]
        if place and points[order[place - 1]] == (x, y):
            found[number] = found[order[place - 1]]  # equal points stand or fall together
        elif y < lowest:
            found[number], lowest = True, y
    return found


_SAYING: tuple[Standing, ...] = ("behind", "not distinguishable", NO_VERDICT)
"""What a comparison says, the most first."""


@dataclass(frozen=True)
class Placed:
    """Where a member stands. dominated_by: the member of the front it is compared with, None on the front itself.

    domain, general: how much more bits per byte it takes than that one.
    """

    standing: Standing
    dominated_by: str | None = None
    domain: Interval | None = None
    general: Interval | None = None


def place(texts: Mapping[str, Mapping[str, Text]], resamples: int, seed: int) -> dict[str, Placed]:
    """Place members, by name, by the changes of domain and general text: lower is better in both.

    The front is that of the mean changes. A member off it is behind when a member of the front dominates it and one of
    the two paired differences excludes zero; where that holds of none, it is not distinguishable from the front, and
    there is no verdict where a difference has no interval. Means are over the seeds that each has, differences over
    those in common, on which a member that is better in one of the two is not behind.
    """
    points = [tuple(_mean(text[corpus]) for corpus in ("domain", "general")) for text in texts.values()]
    names = list(texts)
    flags = on_front([(x, y) for x, y in points])
    front = [name for name, flag in zip(names, flags, strict=True) if flag]
    at = dict(zip(names, points, strict=True))
    found = {}
    for name in names:
        if name in front:
            found[name] = Placed("front")
            continue
        above = [other for other in front if all(a <= b for a, b in zip(at[other], at[name], strict=True))]
        compared = [_compared(texts[name], texts[other], other, resamples, seed) for other in above]
        found[name] = min(compared, key=lambda each: _SAYING.index(each.standing))
    return found


def _mean(text: Text) -> float:
    return float(sum(text.of_seeds()) / len(text.numbers))


def _compared(mine: Mapping[str, Text], theirs: Mapping[str, Text], other: str, resamples: int, seed: int) -> Placed:
    domain, general = (mine[corpus].beyond(theirs[corpus], resamples, seed) for corpus in ("domain", "general"))
    said = {told(domain), told(general)}
    standing: Standing = NO_VERDICT if NO_VERDICT in said else "not distinguishable"
    if "worse" in said and "better" not in said:
        standing = "behind"
    return Placed(standing, other, domain, general)
