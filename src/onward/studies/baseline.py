"""The study `baseline`: the base model on everything, before anything is trained."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

import numpy as np

from onward.analysis.difference import LOWER_IS_BETTER
from onward.analysis.paired import HELD_OUT, Items, Pair, Scored, read_scored
from onward.analysis.rows import LEAST_GROUPS, at_chance, below_chance, guessing, likelihoods
from onward.analysis.wording import decimals_for, number, percent, title
from onward.evaluation.scores import HeldOutScore, Measure, TaskScore
from onward.reporting.content import Table
from onward.statistics import Interval, bootstrap_ratio
from onward.studies.outcome import INTERVAL, PER_BYTE, Outcome, as_numbers, listed
from onward.studies.plots import Row, rows_figure
from onward.studies.scored import units

_NORMAL = 1.96
_RESAMPLES, _SEED = 2000, 0
CAPTION = "Task scores of the base above guessing, in percentage points, with 95 % intervals."
TEXT_CAPTION = (
    f"Held-out text of the base in bits per byte, with 95 % intervals where there are {LEAST_GROUPS} documents or more."
)
_AT, _ABOVE, _BELOW = "at chance", "above chance", "below chance"


@dataclass(frozen=True)
class Stands:
    """A measure of a task beside guessing. words: of task and measure; value: with its 95 % interval.

    guessing: the score of guessing, None where nothing is chosen or the items do not say what was right; said: `at
    chance`, `above chance`, `below chance`, empty without a score of guessing.
    """

    task: TaskScore
    measure: Measure
    value: Interval
    guessing: float | None
    said: str

    @property
    def words(self) -> str:
        """Name of task and measure: `BoolQ acc`."""
        return f"{title(self.task.task)} {self.measure.name}"

    @property
    def is_share(self) -> bool:
        """Whether it is a share of 1, to be shown as a percentage."""
        return self.measure.name not in LOWER_IS_BETTER


def outcome(scores: Path) -> Outcome:
    """Return the table, the plot and the findings; scores: the folder of the base's."""
    scored = read_scored(scores)
    texts = tuple(_held_to_floor(text, scored) for text in scored.scores.held_out)
    measures = [stands(task, each, scored.items[task.task]) for task in scored.scores.tasks for each in task.measures]
    rows = [(title(text.corpus), PER_BYTE, *_bits(text), "", f"{text.documents:,}", "") for text in texts]
    rows += [
        (title(each.task.task), each.measure.name, *_value_texts(each),
         "" if each.guessing is None else percent(each.guessing), f"{each.task.items:,}", each.said)
        for each in measures
    ]  # fmt: skip
    numbers = [
        {"name": text.corpus, "metric": PER_BYTE, "items": text.documents}
        | as_numbers("value", Interval(text.bits_per_byte, text.low, text.high))
        for text in texts
    ]
    numbers += [
        {"name": each.task.task, "metric": each.measure.name, "items": each.task.items, "chance": each.task.chance,
         "guessing": None if each.guessing is None else round(each.guessing, 6), "standing": each.said or None}
        | as_numbers("value", each.value)
        for each in measures
    ]  # fmt: skip
    headers = ("measure", "metric", "value", INTERVAL, "chance", "items", "")
    table = Table(f"{scored.scores.model} before any training", headers,
                  (False, False, True, True, True, True, False), tuple(rows))  # fmt: skip
    drawn = [_row(each, each.guessing) for each in measures if each.guessing is not None]
    figure = (
        rows_figure(drawn, CAPTION, ("below guessing", "above"), "points")
        if drawn
        else rows_figure(_text_rows(texts), TEXT_CAPTION, None, PER_BYTE)
    )
    return Outcome(_headline(texts), (*_texts_words(texts), *tasks_words(measures)), table, tuple(numbers), figure)


def _held_to_floor(text: HeldOutScore, scored: Scored) -> HeldOutScore:
    """Return a text without its interval where it has fewer groups than a verdict needs."""
    if units(scored.items[f"{HELD_OUT}{text.corpus}"].group) >= LEAST_GROUPS:
        return text
    return replace(text, low=float("nan"), high=float("nan"))


def _bits(text: HeldOutScore) -> tuple[str, str]:
    places = decimals_for(text.low, text.high)
    if text.low != text.low:
        return number(text.bits_per_byte, places), "unknown"
    return number(text.bits_per_byte, places), f"{number(text.low, places)} to {number(text.high, places)}"


def stands(task: TaskScore, measure: Measure, items: Items) -> Stands:
    """Return where a measure stands beside guessing, as a run's report takes it (`rows.at_chance`, `below_chance`)."""
    pair = Pair(task.task, task, items, items)
    value = _interval(pair, measure, items)
    if task.chance is None or measure.name not in items.right:
        return Stands(task, measure, value, None, "")
    said = _ABOVE
    if at_chance(pair, measure.name, items):
        said = _AT
    elif below_chance(pair, measure.name, items):
        said = _BELOW
    return Stands(task, measure, value, guessing(pair, measure.name, items), said)


def _interval(pair: Pair, measure: Measure, items: Items) -> Interval:
    """The 95 % interval of a measure: of what is made of nats by resampling them, else of a share.

    Perplexities are skewed: their ends are those of the nats, so that none is negative.
    """
    of_nats = next((each for each in likelihoods(pair) if each.metric == measure.name), None)
    if of_nats is not None:
        found = bootstrap_ratio(items.nats, of_nats.size, items.group, _RESAMPLES, _SEED)
        ends = np.array([found.low, found.high])
        low, high = (ends if of_nats.scale is None else of_nats.scale(ends)).tolist()
        return Interval(measure.value, low, high)
    if measure.stderr is None or measure.stderr != measure.stderr:
        return Interval(measure.value, float("nan"), float("nan"))
    return _of_share(measure.value, measure.stderr, len(items))


def _of_share(share: float, stderr: float, items: int) -> Interval:
    """Wilson's interval (1927, doi:10.1080/01621459.1927.10502953), of as many items as the standard error stands for.

    It ends within 0 and 1, and has a width where none of some items was right.
    """
    count = 1 + share * (1 - share) / stderr**2 if stderr > 0 else items
    pull = _NORMAL**2 / count
    middle = (share + pull / 2) / (1 + pull)
    reach = sqrt(pull * share * (1 - share) + pull**2 / 4) / (1 + pull)
    return Interval(share, max(0.0, middle - reach), min(1.0, middle + reach))


def _value_texts(each: Stands) -> tuple[str, str]:
    """Write a value and its interval as a run's report does: shares as percentages."""
    places = decimals_for(each.value.low, each.value.high)
    value, low, high = (
        percent(end) if each.is_share else number(end, places)
        for end in (each.value.estimate, each.value.low, each.value.high)
    )
    return value, "unknown" if each.value.low != each.value.low else f"{low} to {high}"


def _row(each: Stands, guessing: float) -> Row:
    above = Interval(*(100 * (end - guessing) for end in (each.value.estimate, each.value.low, each.value.high)))
    kind = {_ABOVE: "gained", _BELOW: "lost"}.get(each.said, "not-distinguishable")
    ends = "" if above.low != above.low else f" ({number(above.low, 1, True)} to {number(above.high, 1, True)})"
    return Row(title(each.task.task), each.measure.name, above, f"{number(above.estimate, 1, True)}{ends}", kind)


def _text_rows(texts: tuple[HeldOutScore, ...]) -> list[Row]:
    return [
        Row(title(text.corpus), "", Interval(text.bits_per_byte, text.low, text.high), " (".join(_bits(text)) + ")",
            "not-distinguishable")
        for text in texts
    ]  # fmt: skip


def _headline(texts: tuple[HeldOutScore, ...]) -> str:
    parts = [f"{title(text.corpus).lower()} {_bits(text)[0]}" for text in texts]
    return f"Before training, in {PER_BYTE}: {', '.join(parts)}."


def _texts_words(texts: tuple[HeldOutScore, ...]) -> list[str]:
    parts = [f"{title(text.corpus).lower()} {_bits(text)[0]} ({_bits(text)[1]}), {text.documents:,} documents"
             for text in texts]  # fmt: skip
    return [f"Held-out text in {PER_BYTE}, with 95 % intervals over documents: {'; '.join(parts)}."]


def tasks_words(measures: Sequence[Stands]) -> list[str]:
    """Say which measures of tasks can be told from guessing, and what guessing is where options are letters."""
    if not measures:
        return ["No tasks were asked for (evaluation.tasks)."]
    chosen = [each for each in measures if each.said]
    others = [each.words for each in measures if not each.said]
    if not chosen:
        return [f"No measure of tasks has a score of guessing to be told from: {listed(others)}."]
    sentences = [_told_words(chosen)]
    below = [each.words for each in chosen if each.said == _BELOW]
    sentences += [f"Worse than guessing: {listed(below)}."] if below else []
    habits = [
        f"{percent(each.guessing)} on {each.words}"
        for each in chosen
        if each.guessing is not None and each.task.chance is not None
        and percent(each.guessing) != percent(each.task.chance)
    ]  # fmt: skip
    if habits:
        sentences.append(
            f"Where every item has the same options, chance is that of picking each as often as the base does: "
            f"{listed(habits)}."
        )
    sentences += [f"Without a score of guessing: {listed(others)}."] if others else []
    return sentences


def _told_words(chosen: Sequence[Stands]) -> str:
    at_guessing = [each.words for each in chosen if each.said == _AT]
    count = f"{len(chosen)} measures" if len(chosen) > 1 else "1 measure"
    if not at_guessing:
        return f"{len(chosen)} of {count} of tasks can be told from guessing."
    if len(at_guessing) == len(chosen):
        return (
            f"0 of {count} of tasks can be told from guessing: a change there would say nothing until it leaves chance."
        )
    return f"{len(at_guessing)} of {count} of tasks cannot be told from guessing: {listed(at_guessing)}."
