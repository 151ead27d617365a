"""The study of remedies: domain gain against general loss, the Pareto front, and what can be told from it."""

from collections.abc import Sequence
from itertools import combinations
from statistics import mean
from typing import Any

from onward.reporting.content import Table
from onward.reporting.figures import Figure
from onward.statistics import Interval
from onward.studies.kinds import NONE, REPLAY
from onward.studies.outcome import (
    INTERVAL,
    PER_BYTE,
    Measured,
    Outcome,
    as_numbers,
    change_texts,
    change_words,
    common_words,
    difference_words,
    judged_on,
    listed,
    number_of,
    over_words,
    training_seconds,
    without_common_seed,
)
from onward.studies.pareto import Placed, place
from onward.studies.plots import Point, plane_figure
from onward.studies.scored import NO_VERDICT, told
from onward.studies.variants import BLEND, CONTROL

_RESAMPLES, _SEED = 2000, 0
_NAMED = 5
"""So many members a headline names."""
_Changes = dict[str, tuple[Interval, Interval]]
"""Changes of domain and general text by member."""


def caption_of(found: Sequence[Measured]) -> str:
    """Return the plot's caption, which names seeds only where there are several, and the control where there is one."""
    seeds = {len(each.runs) for each in found}
    over = "documents" if max(seeds) == 1 else "documents and seeds" if min(seeds) > 1 else (
        "documents, and seeds where there are several"
    )  # fmt: skip
    control = "; the control, a square, is no remedy and stands outside" if any(map(_is_control, found)) else ""
    return (
        f"Each member against the base, with 95 % intervals over {over}. The dashed line is the Pareto front of the "
        f"means; hollow marks cannot be told from it or have no verdict, grey ones stand behind it{control}."
    )


def _is_control(each: Measured) -> bool:
    return each.variant.family == CONTROL


def outcome(found: Sequence[Measured]) -> Outcome:
    """Return the table, the plot and the findings; found: members and blends."""
    changes = {each.variant.name: _changes(each) for each in found}
    tried = [each for each in found if not _is_control(each)]
    placed = {each.variant.name: Placed("control") for each in found}
    placed |= place({each.variant.name: each.texts for each in tried}, _RESAMPLES, _SEED)
    reference = reference_of(found, changes)
    order = sorted(found, key=lambda each: changes[each.variant.name][0].estimate)
    costs = costs_of(found)
    rows, numbers = [], []
    for each in order:
        name = each.variant.name
        domain, general = changes[name]
        stands = placed[name]
        cost = [f"{costs[name]:.2f} x" if name in costs else ""] if costs else []
        rows.append((each.variant.words, *change_texts(domain), *change_texts(general), str(len(each.runs)),
                     *cost, standing_words(each, stands, found)))  # fmt: skip
        numbers.append(
            {"member": name, "words": each.variant.words, "family": each.variant.family, "seeds": len(each.runs)}
            | {"domain_base": round(each.texts["domain"].base, 6), "general_base": round(each.texts["general"].base, 6)}
            | as_numbers("domain", domain)
            | as_numbers("general", general)
            | {"standing": stands.standing, "compared_with": stands.dominated_by}
            | ({"training_time_beside_none": round(costs[name], 3) if name in costs else None} if costs else {})
            | _beside(each, reference)
        )
    headers = ("member", "domain", INTERVAL, "general", INTERVAL, "seeds", *(["time"] if costs else []), "front")
    caption = "Change in bits per byte against the base; lower is better"
    caption += "; time of training beside no remedy" if costs else ""
    table = Table(caption, headers, (False, *(True for _ in headers[2:]), False), tuple(rows))
    points = _families(found, changes, reference)
    return Outcome(
        _headline(found, placed),
        (*_findings(found, changes, placed), *_lead(reference, points)),
        table,
        tuple(numbers),
        _figure(found, changes, placed),
        points,
        pairs_of(order),
    )


def pairs_of(found: Sequence[Measured]) -> tuple[dict[str, Any], ...]:
    """Return how much more bits per byte each member takes than each that stands after it, paired by document and seed.

    seeds: of how many, those that both have. Members that share no seed have no interval (None).
    """
    return tuple(
        dict[str, Any](
            member=one.variant.name, beside=other.variant.name, seeds=len(one.runs.keys() & other.runs.keys())
        )
        | as_numbers("domain", one.texts["domain"].beyond(other.texts["domain"], _RESAMPLES, _SEED))
        | as_numbers("general", one.texts["general"].beyond(other.texts["general"], _RESAMPLES, _SEED))
        for one, other in combinations(found, 2)
    )


def costs_of(found: Sequence[Measured]) -> dict[str, float]:
    """Return the training time of members by name, relative to the one without a remedy; empty without such a record.

    Means over the seeds that have a record, of the seconds that steps took. Blends are of models that are trained
    already, and are left out.
    """
    trained = [each for each in found if each.variant.family != BLEND]
    seconds = {}
    for each in trained:
        took = [one for one in map(training_seconds, each.runs.values()) if one > 0]
        if took:
            seconds[each.variant.name] = mean(took)
    alone = [seconds.get(each.variant.name) for each in trained if each.variant.family == NONE]
    reference = next(filter(None, alone), None)
    return {} if reference is None else {name: took / reference for name, took in seconds.items()}


def reference_of(found: Sequence[Measured], changes: _Changes) -> Measured | None:
    """Return the member of replay whose two changes add up to the least; None without one."""
    members = [each for each in found if each.variant.family == REPLAY]
    return _best(members, changes) if members else None


def _beside(each: Measured, reference: Measured | None) -> dict[str, float | None]:
    """Return how much more bits per byte a member takes than the best of replay, as columns of the numbers."""
    if reference is None or each is reference:
        return {}
    domain, general = (
        each.texts[name].beyond(reference.texts[name], _RESAMPLES, _SEED) for name in ("domain", "general")
    )
    return as_numbers("domain_beside_replay", domain) | as_numbers("general_beside_replay", general)


def _changes(each: Measured) -> tuple[Interval, Interval]:
    domain, general = (each.texts[name].change(_RESAMPLES, _SEED) for name in ("domain", "general"))
    return domain, general


def standing_words(each: Measured, placed: Placed, found: Sequence[Measured]) -> str:
    """Say where a member stands: `front`, `behind replay 5 %`, `not distinguishable from replay 5 %`.

    What is judged on fewer seeds than either of two has says on how many.
    """
    if placed.dominated_by is None:
        return placed.standing
    other = next(other for other in found if other.variant.name == placed.dominated_by)
    words = {"behind": "behind", NO_VERDICT: "no verdict beside"}.get(placed.standing, "not distinguishable from")
    return f"{words} {other.variant.words}{common_words(each, other)}"


def _figure(found: Sequence[Measured], changes: _Changes, placed: dict[str, Placed]) -> Figure:
    points = []
    for each in found:
        domain, general = changes[each.variant.name]
        gain = Interval(-domain.estimate, -domain.high, -domain.low)
        kind = placed[each.variant.name].standing
        kind = "not distinguishable" if kind == NO_VERDICT else kind
        points.append(Point(each.variant.words, gain, general, kind.replace(" ", "-"), kind == "front"))
    return plane_figure(points, caption_of(found))


def _headline(found: Sequence[Measured], placed: dict[str, Placed]) -> str:
    names = [each.variant.words for each in found if placed[each.variant.name].standing == "front"]
    tried = sum(not _is_control(each) for each in found)
    are = "is" if len(names) == 1 else "are"
    which = f": {listed(names)}" if len(names) <= _NAMED else ""  # the paragraph names them all
    blends = " and blends" if any(each.variant.family == BLEND for each in found) else ""
    return f"{len(names)} of {number_of(tried, 'member')}{blends} {are} on the Pareto front{which}."


def _findings(found: Sequence[Measured], changes: _Changes, placed: dict[str, Placed]) -> tuple[str, ...]:
    """The paragraph: without a remedy, the front, the control, and what limits it all."""
    sentences = []
    alone = [each for each in found if each.variant.family == NONE]
    for each in alone:
        domain, general = changes[each.variant.name]
        which = f" ({each.variant.words})" if len(alone) > 1 else ""
        sentences.append(
            f"Without a remedy{which} the domain text changes by {change_words(domain)}, general text by "
            f"{change_words(general)}."
        )
    sentences.append(_front_words(found, placed))
    sentences += [_control(each, changes[each.variant.name]) for each in found if _is_control(each)]
    seeds = sorted({len(each.runs) for each in found})
    number = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    number += " seed" if number == "1" else " seeds"
    sentences.append(
        f"Intervals are of 95 %, of {number}, over {over_words(found)}. Each is for itself: among "
        f"{number_of(len(found), 'row')} of the table one in twenty misses by chance. A change below zero is a gain."
    )
    return (*sentences, *_unequal_seeds(found), *judged_on(found), *without_common_seed(found))


def _unequal_seeds(found: Sequence[Measured]) -> list[str]:
    """Say what is over which seeds where some of them failed for some members alone."""
    if len({frozenset(each.runs) for each in found}) == 1:
        return []
    return [
        "Members differ in the seeds that were made: changes and the front are of the means over those that each has, "
        "differences over those that two have in common, and over documents alone where that is one."
    ]


def _lead(reference: Measured | None, points: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Say what the kinds are compared with, or why they are not."""
    if reference is None:
        return ("No member replays general text alone, so there is none to compare the kinds with.",)
    words = "Of each kind the member is taken whose two changes add up to the least. Beside "
    return (f"{words}{reference.variant.words}, the one of replay, in {PER_BYTE}:",) if points else ()


def _front_words(found: Sequence[Measured], placed: dict[str, Placed]) -> str:
    words = {each.variant.name: each.variant.words for each in found}
    parts = []
    for standing, said in (
        ("front", "on the front of the means"),
        ("not distinguishable", "not distinguishable from it"),
        ("behind", "behind it"),
        (NO_VERDICT, "without a verdict, for want of intervals"),
    ):
        names = [words[name] for name, each in placed.items() if each.standing == standing]
        if standing == NO_VERDICT and not names:
            continue
        parts.append(f"{said}: {listed(names) if names else 'no member'}")
    return f"{parts[0][:1].upper()}{parts[0][1:]}; {'; '.join(parts[1:])}."


def _best(members: Sequence[Measured], changes: _Changes) -> Measured:
    """The member whose two changes add up to the least."""
    return min(members, key=lambda each: sum(change.estimate for change in changes[each.variant.name]))


def _families(found: Sequence[Measured], changes: _Changes, best: Measured | None) -> tuple[tuple[str, str], ...]:
    """Compare the best member of each kind with the best of replay, on the same documents and seeds."""
    if best is None:
        return ()
    by_family: dict[str, list[Measured]] = {}
    for each in found:
        by_family.setdefault(each.variant.family, []).append(each)
    points = []
    for family, members in by_family.items():
        if family in (REPLAY, NONE, CONTROL):
            continue
        mine = _best(members, changes)
        domain, general = (
            mine.texts[name].beyond(best.texts[name], _RESAMPLES, _SEED) for name in ("domain", "general")
        )
        verdict = _verdict(told(domain), told(general))
        words = f"domain {difference_words(domain)}, general {difference_words(general)}: {verdict}"
        words += common_words(mine, best)
        points.append((mine.variant.words, words))
    return tuple(points)


def _verdict(domain: str, general: str) -> str:
    """Say both comparisons in one: `worse on the domain, not distinguishable on general text`."""
    if domain == general:
        return "not distinguishable from it on either" if domain == "not distinguishable" else f"{domain} on both"
    return f"{domain} on the domain, {general} on general text"


def _control(each: Measured, change: tuple[Interval, Interval]) -> str:
    return (
        f"The control, the same schedule on general text alone, changes the domain by {change_words(change[0])} and "
        f"general text by {change_words(change[1])}. What it gains on the domain, if anything, others do not owe to "
        "the domain's text."
    )
