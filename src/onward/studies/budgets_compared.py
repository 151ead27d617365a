"""The study of tokens: what each further budget gains, and the efficiency inflection."""

from collections.abc import Sequence
from math import floor, log10

import numpy as np

from onward.analysis.rows import LEAST_GROUPS
from onward.analysis.wording import number
from onward.recipe import format_tokens
from onward.reporting.content import Table
from onward.statistics import Interval
from onward.studies.inflection import Marginal, inflection, marginal
from onward.studies.outcome import (
    INTERVAL,
    Measured,
    Outcome,
    as_numbers,
    change_texts,
    change_words,
    judged_on,
    without_common_seed,
)
from onward.studies.plots import Course, courses_figure
from onward.studies.scored import Text

_RESAMPLES, _SEED = 2000, 0
CAPTION = (
    "Held-out bits per byte against the base over the tokens trained on, with 95 % intervals where there are "
    f"{LEAST_GROUPS} documents or more."
)


def outcome(found: Sequence[Measured], is_separate: bool) -> Outcome:
    """Return the table, the plot and the findings; found: the one training, or one for each budget."""
    points = _points(found)
    domain = {tokens: texts["domain"] for tokens, texts in points.items()}
    pieces = pieces_of(domain)
    decayed = _decayed(found, is_separate)
    rows, numbers = [], []
    for (tokens, texts), piece in zip(points.items(), pieces, strict=True):
        changes = {name: text.change(_RESAMPLES, _SEED) for name, text in texts.items()}
        general = changes.get("general")
        rows.append((format_tokens(tokens), *change_texts(changes["domain"]),
                     *(("", "") if general is None else change_texts(general)), *_gain_texts(piece.gain),
                     "yes" if tokens in decayed else "no"))  # fmt: skip
        numbers.append(
            {"tokens": tokens, "decayed": tokens in decayed, "seeds": len(texts["domain"].numbers)}
            | as_numbers("domain", changes["domain"])
            | ({} if general is None else as_numbers("general", general))
            | {"gain_from_tokens": piece.start}
            | as_numbers("gain_per_100M", piece.gain)
        )
    headers = ("tokens", "domain", INTERVAL, "general", INTERVAL, "gain per 100M more", INTERVAL,
               "decayed")  # fmt: skip
    caption = "Change in bits per byte against the base; gain of the domain per 100M tokens since the row before"
    table = Table(caption, headers, (*(True for _ in headers[:-1]), False), tuple(rows))
    names = ["domain", *(["general"] if "general" in next(iter(points.values())) else [])]
    courses = [
        Course(f"{name} text", tuple((float(tokens), texts[name].change(_RESAMPLES, _SEED)) for tokens, texts in
                                     points.items()))
        for name in names
    ]  # fmt: skip
    figure = courses_figure(courses, CAPTION, "tokens trained on", is_tokens=True)
    sentences = (
        *_inflection_words(pieces),
        *_caveats(points, decayed, is_separate),
        *judged_on(found),
        *without_common_seed(found),
    )
    return Outcome(_headline(points, pieces), sentences, table, tuple(numbers), figure)


def _points(found: Sequence[Measured]) -> dict[int, dict[str, Text]]:
    """The held-out texts by budget, in rising order."""
    points: dict[int, dict[str, Text]] = {}
    for each in found:
        looked_at = each.points if len(found) == 1 else {each.tokens: each.texts}
        points |= {tokens: dict(texts) for tokens, texts in looked_at.items()}
    return dict(sorted(points.items()))


def pieces_of(domain: dict[int, Text]) -> list[Marginal]:
    """Return the gain of each budget over the one before it; the first begins at the base."""
    pieces: list[Marginal] = []
    before: tuple[int, Text] | None = None
    for tokens, text in domain.items():
        if before is None:
            pieces.append(marginal(0, tokens, text.change(_RESAMPLES, _SEED)))
        else:
            pieces.append(marginal(before[0], tokens, text.beyond(before[1], _RESAMPLES, _SEED)))
        before = tokens, text
    return pieces


def _decayed(found: Sequence[Measured], is_separate: bool) -> set[int]:
    """The budgets at which the learning rate had come down."""
    if is_separate:
        return {each.tokens for each in found}
    training = found[0].recipe.training
    return set(training.stages) if training.schedule.horizon == "stage" else {training.stages[-1]}


def _gain_texts(gain: Interval) -> tuple[str, str]:
    """Write a gain per 100M tokens with three digits, as its size varies over decades."""
    if np.isnan(gain.low):
        return _three_digits(gain.estimate), "unknown"
    return _three_digits(gain.estimate), " to ".join(map(_three_digits, (gain.low, gain.high)))


def _three_digits(value: float) -> str:
    """Write a number with its sign and three digits or all before the point, never with an exponent."""
    places = max(0, 2 - floor(log10(abs(value)))) if value else 2
    return number(value, places, sign=True)


def _headline(points: dict[int, dict[str, Text]], pieces: Sequence[Marginal]) -> str:
    last = max(points)
    total = points[last]["domain"].change(_RESAMPLES, _SEED)
    found = inflection(pieces)
    if found is None:
        where = "has not halved by then"
    else:
        seems = "halves" if found.is_sure else "seems to halve"
        where = f"{seems} after {format_tokens(found.tokens)} tokens"
    return f"{format_tokens(last)} tokens change the domain by {change_words(total)}; the gain per token {where}."


def _inflection_words(pieces: Sequence[Marginal]) -> list[str]:
    first, last = pieces[0], pieces[-1]
    value, interval = _gain_texts(first.gain)
    sentences = [
        f"The first {format_tokens(first.end)} tokens gain {value} bits per byte per 100M tokens ({interval}), the "
        f"last piece, from {format_tokens(last.start)} to {format_tokens(last.end)}, {_gain_texts(last.gain)[0]} "
        f"({_gain_texts(last.gain)[1]})."
    ]
    found = inflection(pieces)
    if found is None:
        best = max(piece.gain.estimate for piece in pieces)
        why = "no piece gained anything, so there is nothing to halve" if best <= 0 else (
            "every piece gained at least half of what the best one before it did"
        )  # fmt: skip
        return [*sentences, f"The efficiency inflection is not reached: {why}."]
    sure = (
        "the whole interval of that gain is below half"
        if found.is_sure
        else "but that gain has no interval, so it may lie elsewhere"
        if np.isnan(found.after.gain.high)
        else "but the interval of that gain reaches half, so it may come later"
    )
    value, interval = _gain_texts(found.after.gain)
    return [
        *sentences,
        f"The efficiency inflection is at {format_tokens(found.tokens)} tokens: those up to "
        f"{format_tokens(found.after.end)} gain {value} ({interval}), less than half of "
        f"{_gain_texts(found.largest.gain)[0]}, the most that any piece before did; {sure}.",
    ]


def _caveats(points: dict[int, dict[str, Text]], decayed: set[int], is_separate: bool) -> list[str]:
    if is_separate:
        return ["Each budget is a training of its own, whose learning rate has come down at its end."]
    open_ = [tokens for tokens in points if tokens not in decayed]
    if not open_:
        return []
    return [
        f"The models of {', '.join(map(format_tokens, open_))} tokens were taken from a training that went on: their "
        "learning rate had not come down, and a training that ends there would be better. With --separate each is "
        "trained to its end."
    ]
