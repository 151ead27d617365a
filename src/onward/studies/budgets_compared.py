"""The study of tokens: what each further budget gains, and the efficiency inflection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, log10

import numpy as np

from onward.analysis.rows import LEAST_GROUPS
from onward.analysis.wording import number
from onward.batches import plan_batches
from onward.recipe import Training, format_tokens
from onward.reporting.content import Table
from onward.statistics import Interval
from onward.studies.budgets import trained_tokens
from onward.studies.inflection import Inflection, Marginal, inflection, marginal
from onward.studies.outcome import (
    INTERVAL,
    Measured,
    Outcome,
    as_numbers,
    change_texts,
    change_words,
    judged_on,
    listed,
    without_common_seed,
)
from onward.studies.plots import Course, courses_figure
from onward.studies.scored import Text
from onward.training.schedule import learning_rate

_RESAMPLES, _SEED = 2000, 0
CAPTION = (
    "Held-out bits per byte against the base over the tokens trained on, with 95 % intervals where there are "
    f"{LEAST_GROUPS} documents or more."
)


@dataclass(frozen=True)
class Look:
    """A budget that was looked at. tokens: trained until then, in whole steps; asked: what the recipe asks for.

    is_decayed: whether its training ends there with its learning rate below the peak.
    """

    tokens: int
    asked: int
    texts: Mapping[str, Text]
    is_decayed: bool


def outcome(found: Sequence[Measured], is_separate: bool) -> Outcome:
    """Return the table, the plot and the findings; found: the one training, or one for each budget."""
    looks = _looks(found)
    pieces = pieces_of({look.tokens: look.texts["domain"] for look in looks})
    rows, numbers = [], []
    for look, piece in zip(looks, pieces, strict=True):
        changes = {name: text.change(_RESAMPLES, _SEED) for name, text in look.texts.items()}
        general = changes.get("general")
        rows.append((format_tokens(look.tokens), *change_texts(changes["domain"]),
                     *(("", "") if general is None else change_texts(general)), *_gain_texts(piece.gain),
                     "yes" if look.is_decayed else "no"))  # fmt: skip
        numbers.append(
            {"tokens": look.tokens, "asked_tokens": look.asked, "decayed": look.is_decayed}
            | {"seeds": len(look.texts["domain"].numbers)}
            | as_numbers("domain", changes["domain"])
            | ({} if general is None else as_numbers("general", general))
            | {"gain_from_tokens": piece.start}
            | as_numbers("gain_per_100M", piece.gain)
        )
    headers = ("tokens", "domain", INTERVAL, "general", INTERVAL, "gain per 100M more", INTERVAL,
               "decayed")  # fmt: skip
    caption = "Change in bits per byte against the base; gain of the domain per 100M tokens since the row before"
    table = Table(caption, headers, (*(True for _ in headers[:-1]), False), tuple(rows))
    names = [name for name in ("domain", "general") if name in looks[0].texts]
    courses = [
        Course(f"{name} text", tuple((float(look.tokens), look.texts[name].change(_RESAMPLES, _SEED))
                                     for look in looks))
        for name in names
    ]  # fmt: skip
    figure = courses_figure(courses, CAPTION, "tokens trained on", is_tokens=True)
    sentences = (
        *(_inflection_words(pieces) if len(pieces) > 1 else _lone_words(pieces[0])),
        *_caveats(looks, is_separate),
        *judged_on(found),
        *without_common_seed(found),
    )
    return Outcome(_headline(looks[-1], pieces), sentences, table, tuple(numbers), figure)


def _looks(found: Sequence[Measured]) -> list[Look]:
    """Return what was looked at, in rising order: models between the steps of one training, and trainings' ends."""
    looks = []
    for each in found:
        training = each.recipe.training
        last = trained_tokens(training, each.tokens)
        for asked, texts in (each.points if len(found) == 1 else {each.tokens: each.texts}).items():
            tokens = trained_tokens(training, asked)
            looks.append(Look(tokens, asked, texts, tokens == last and _comes_down(training)))
    return sorted(looks, key=lambda look: look.tokens)


def _comes_down(training: Training) -> bool:
    """Whether a training of one stage takes its last step below the peak: not with a constant learning rate."""
    steps = plan_batches(training, seed=0).stage_steps
    return learning_rate(steps[-1] - 1, 1.0, steps, training.schedule) < 1.0


def pieces_of(domain: Mapping[int, Text]) -> list[Marginal]:
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


def _gain_texts(gain: Interval) -> tuple[str, str]:
    """Write a gain per 100M tokens with three digits, as its size varies over decades."""
    if np.isnan(gain.low):
        return _three_digits(gain.estimate), "unknown"
    return _three_digits(gain.estimate), " to ".join(map(_three_digits, (gain.low, gain.high)))


def _three_digits(value: float) -> str:
    """Write a number with its sign and three digits or all before the point, never with an exponent."""
    places = max(0, 2 - floor(log10(abs(value)))) if value else 2
    return number(value, places, sign=True)


def _headline(last: Look, pieces: Sequence[Marginal]) -> str:
    total = last.texts["domain"].change(_RESAMPLES, _SEED)
    found = inflection(pieces)
    if len(pieces) < 2:
        said = "no other budget was made to compare their gain with"
    elif found is None:
        said = "the gain per token has not halved by then"
    else:
        seems = "halves" if found.is_sure else "seems to halve"
        said = f"the gain per token {seems} after {format_tokens(found.tokens)} tokens"
    return f"{format_tokens(last.tokens)} tokens change the domain by {change_words(total)}; {said}."


def _lone_words(piece: Marginal) -> list[str]:
    value, interval = _gain_texts(piece.gain)
    return [
        f"The {format_tokens(piece.end)} tokens gain {value} bits per byte per 100M tokens ({interval}). With a single "
        "budget there is nothing to compare that with, so whether the gain halves cannot be told."
    ]


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
    value, interval = _gain_texts(found.after.gain)
    return [
        *sentences,
        f"The efficiency inflection is at {format_tokens(found.tokens)} tokens: those up to "
        f"{format_tokens(found.after.end)} gain {value} ({interval}), less than half of "
        f"{_gain_texts(found.largest.gain)[0]}, the most that any piece before did; {_how_sure(found)}.",
        *([] if found.again is None else [_again_words(found.again)]),
    ]


def _how_sure(found: Inflection) -> str:
    if found.is_below_half:
        return "the whole interval of that gain is below half"
    if np.isnan(found.after.gain.high):
        return "but that gain has no interval, so it may lie elsewhere"
    return "but the interval of that gain reaches half, so it may come later"


def _again_words(again: Marginal) -> str:
    value, interval = _gain_texts(again.gain)
    return (
        f"The piece from {format_tokens(again.start)} to {format_tokens(again.end)} tokens gains {value} ({interval}) "
        "all the same, at least half of the most that any piece before it did: the gain does not stay below half, and "
        "where it halves is not sure."
    )


def _caveats(looks: Sequence[Look], is_separate: bool) -> list[str]:
    """Say what of the learning rate goes into the comparison: of one training, or of each budget's own."""
    still = listed([format_tokens(look.tokens) for look in looks if not look.is_decayed])
    is_constant = not any(look.is_decayed for look in looks)
    if is_separate:
        if is_constant:
            return ["Each budget is a training of its own; the recipe's learning rate comes down in none of them."]
        at_its_end = "whose learning rate has come down at its end"
        return [f"Each budget is a training of its own, {at_its_end}{f', but for {still} tokens' if still else ''}."]
    stages = "One training of a single stage takes the place of the recipe's stages"
    if is_constant:
        return [
            f"{stages}. Its learning rate comes down nowhere: a training that ends at a budget differs from one that "
            "goes on in its warm-up at most."
        ]
    models, their = ("model", "its") if " and " not in still else ("models", "their")
    were = "was" if models == "model" else "were"
    return [
        f"{stages}, so that its learning rate comes down once, at its end. The {models} of {still} tokens {were} taken "
        f"from it as it went on: {their} learning rate had not come down, and a training that ends there may be better "
        "or worse. With --separate each is trained to its end."
    ]
