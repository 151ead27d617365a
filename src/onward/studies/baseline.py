"""The study `baseline`: the base model on everything, before anything is trained."""

from dataclasses import replace
from pathlib import Path

from onward.analysis.paired import HELD_OUT, Items, Pair, Scored, read_scored
from onward.analysis.rows import LEAST_GROUPS, at_chance
from onward.analysis.wording import decimals_for, number, percent, title
from onward.evaluation.scores import HeldOutScore, Measure, TaskScore
from onward.reporting.content import Table
from onward.statistics import Interval
from onward.studies.outcome import INTERVAL, PER_BYTE, Outcome, as_numbers, listed
from onward.studies.plots import Row, rows_figure
from onward.studies.scored import units

_NORMAL = 1.96
CAPTION = "Task scores of the base above guessing, in percentage points, with 95 % intervals."
TEXT_CAPTION = (
    f"Held-out text of the base in bits per byte, with 95 % intervals where there are {LEAST_GROUPS} documents or more."
)


def outcome(scores: Path) -> Outcome:
    """Return the table, the plot and the findings; scores: the folder of the base's."""
    scored = read_scored(scores)
    texts = tuple(_held_to_floor(text, scored) for text in scored.scores.held_out)
    rows, numbers, drawn, at_guessing = [], [], [], []
    for text in texts:
        rows.append((title(text.corpus), PER_BYTE, *_bits(text), "", f"{text.documents:,}", ""))
        numbers.append({"name": text.corpus, "metric": PER_BYTE, "items": text.documents} | as_numbers(
            "value", Interval(text.bits_per_byte, text.low, text.high)))  # fmt: skip
    for task in scored.scores.tasks:
        for measure in task.measures:
            guesses = _guesses(task, measure, scored.items[task.task])
            said = "" if guesses is None else "at chance" if guesses else "above chance"
            if not guesses and task.chance is not None and measure.value < task.chance:
                said = "below chance"
            rows.append((title(task.task), measure.name, *_measure(task, measure), f"{task.items:,}", said))
            interval = _interval(measure)
            numbers.append({"name": task.task, "metric": measure.name, "items": task.items, "chance": task.chance,
                            "standing": said or None} | as_numbers("value", interval))  # fmt: skip
            if task.chance is not None:
                drawn.append(_row(task, measure, interval, said))
                at_guessing += [f"{title(task.task)} {measure.name}"] if guesses else []
    headers = ("measure", "metric", "value", INTERVAL, "chance", "items", "")
    table = Table(f"{scored.scores.model} before any training", headers,
                  (False, False, True, True, True, True, False), tuple(rows))  # fmt: skip
    figure = (
        rows_figure(drawn, CAPTION, ("below guessing", "above"), "points")
        if drawn
        else rows_figure(_text_rows(texts), TEXT_CAPTION, None, PER_BYTE)
    )
    sentences = (*_texts_words(texts), *_tasks_words(scored.scores.tasks, at_guessing, len(drawn)))
    return Outcome(_headline(texts), sentences, table, tuple(numbers), figure)


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


def _interval(measure: Measure) -> Interval:
    """The 95 % interval of a measure by its standard error."""
    reach = float("nan") if measure.stderr is None else _NORMAL * measure.stderr
    return Interval(measure.value, measure.value - reach, measure.value + reach)


def _measure(task: TaskScore, measure: Measure) -> tuple[str, str, str]:
    interval = _interval(measure)
    if task.chance is None:
        ends = "" if interval.low != interval.low else f"{interval.low:.3f} to {interval.high:.3f}"
        return f"{measure.value:.3f}", ends, ""
    ends = "" if interval.low != interval.low else f"{percent(interval.low)} to {percent(interval.high)}"
    return percent(measure.value), ends, percent(task.chance)


def _guesses(task: TaskScore, measure: Measure, items: Items) -> bool | None:
    """Whether a score cannot be told from guessing; None where nothing is chosen, or the items do not say."""
    if task.chance is None or measure.name not in items.right:
        return None
    return at_chance(Pair(task.task, task, items, items), measure.name, items)


def _row(task: TaskScore, measure: Measure, interval: Interval, said: str) -> Row:
    assert task.chance is not None
    above = Interval(*(100 * (end - task.chance) for end in (interval.estimate, interval.low, interval.high)))
    kind = {"above chance": "gained", "below chance": "lost"}.get(said, "not-distinguishable")
    ends = "" if above.low != above.low else f" ({number(above.low, 1, True)} to {number(above.high, 1, True)})"
    return Row(title(task.task), measure.name, above, f"{number(above.estimate, 1, True)}{ends}", kind)


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


def _tasks_words(tasks: tuple[TaskScore, ...], at_guessing: list[str], chosen: int) -> list[str]:
    if not tasks:
        return ["No tasks were asked for (evaluation.tasks)."]
    if not at_guessing:
        return [f"All {chosen} measures of tasks can be told from guessing."]
    if len(at_guessing) == chosen:
        return [
            f"None of the {chosen} measures of tasks can be told from guessing: a change of theirs would say nothing "
            "until it leaves chance."
        ]
    return [f"{len(at_guessing)} of {chosen} measures of tasks cannot be told from guessing: {listed(at_guessing)}."]
