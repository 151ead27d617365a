"""What studies say of odd results: scores below guessing, records that are gone, seeds that are not the same."""

from pathlib import Path

import pytest

from onward.evaluation.scores import HeldOutScore, ItemRow, Measure, Scores, TaskScore, write_scores
from onward.studies import baseline
from onward.studies.outcome import Outcome


def yes_or_no(
    yes_right: float, yes_picked: float, accuracy: float, items: int = 400
) -> tuple[TaskScore, list[ItemRow]]:
    """BoolQ, of which so many shares are rightly yes, are answered yes and are answered rightly."""
    gold = round(items * yes_right)
    both = round(items * (accuracy - 1 + yes_right + yes_picked) / 2)
    picked = [1] * both + [0] * (gold - both) + [1] * (round(items * yes_picked) - both)
    picked += [0] * (items - len(picked))
    rows = [
        ItemRow("boolq", None, f"{n}", f"{n}", gold=int(n < gold), predicted=answer, logprobs=(-1.0, -1.0),
                right={"acc": answer == int(n < gold)})
        for n, answer in enumerate(picked)
    ]  # fmt: skip
    share = sum(row.right["acc"] for row in rows if row.right) / items
    measure = Measure("acc", share, (share * (1 - share) / (items - 1)) ** 0.5)
    return TaskScore("boolq", items, items, "hash", 0, 0.5, (measure,), 0), rows


def last_words(nats: list[float]) -> tuple[TaskScore, list[ItemRow]]:
    """LAMBADA, where nothing is chosen: the nats of each last word, of which one is guessed rightly."""
    rows = [ItemRow("lambada_openai", None, f"{n}", f"{n}", right={"acc": not n}, logprobs=(-own,), nats=own, bytes=5)
            for n, own in enumerate(nats)]  # fmt: skip
    measures = Measure("perplexity", 27_000.0, 21_000.0, False), Measure("acc", 1 / len(nats), 1 / len(nats))
    return TaskScore("lambada_openai", len(nats), len(nats), "hash", 0, None, measures, 0), rows


def of_the_base(place: Path, *tasks: tuple[TaskScore, list[ItemRow]]) -> Outcome:
    nan = float("nan")
    text = HeldOutScore("domain", 2, 100, 400, 800.0, 2.89, nan, nan)
    rows = [ItemRow("held_out:domain", None, f"d{n}", f"d{n}", nats=400.0, bytes=200) for n in range(2)]
    scores = Scores("a model", (text,), tuple(task for task, _ in tasks), 1.0)
    place.mkdir(exist_ok=True)
    write_scores(place, scores, [*rows, *(row for _, own in tasks for row in own)])
    return baseline.outcome(place)


@pytest.mark.parametrize(
    ("yes_right", "yes_picked", "accuracy", "said", "guessing"),
    [
        (0.62, 0.9, 0.54, "below chance", "59.6 %"),
        (0.9, 0.2, 0.3, "above chance", "26.0 %"),
        (0.62, 1.0, 0.62, "at chance", "62.0 %"),
        (0.5, 0.5, 0.3, "below chance", "50.0 %"),
    ],
)
def test_the_base_stands_beside_the_guessing_that_a_report_takes(
    tmp_path: Path, yes_right: float, yes_picked: float, accuracy: float, said: str, guessing: str
) -> None:
    """Of always the same answer, and not of a coin: the score of the first is 4 points above a half and below it."""
    found = of_the_base(tmp_path, yes_or_no(yes_right, yes_picked, accuracy))
    row = found.table.rows[-1]
    assert (row[2], row[4], row[-1]) == (f"{100 * accuracy:.1f} %", guessing, said)
    assert (found.rows[-1]["standing"], found.rows[-1]["chance"]) == (said, 0.5)
    words = " ".join(found.findings)
    assert ("0 of 1 measure" if said == "at chance" else "1 of 1 measure") in words
    assert ("Worse than guessing: BoolQ acc." in words) == (said == "below chance")
    assert (f"as the base does: {guessing} on BoolQ acc." in words) == (guessing != "50.0 %")
    assert found.figure is not None
    colour = {"below chance": "lost", "above chance": "gained", "at chance": "not-distinguishable"}[said]
    assert f"mark {colour}" in found.figure.wide


def test_tasks_without_guessing_are_not_told_from_it(tmp_path: Path) -> None:
    words = last_words([6.0, 12.0] * 10)
    alone = of_the_base(tmp_path / "alone", words)
    assert alone.findings[-1] == (
        "No measure of tasks has a score of guessing to be told from: LAMBADA perplexity and LAMBADA acc."
    )
    beside = of_the_base(tmp_path / "beside", words, yes_or_no(0.5, 0.5, 0.9))
    assert beside.findings[1:] == (
        "1 of 1 measure of tasks can be told from guessing.",
        "Without a score of guessing: LAMBADA perplexity and LAMBADA acc.",
    )


def test_a_perplexity_has_no_negative_end_and_is_written_as_elsewhere(tmp_path: Path) -> None:
    found = of_the_base(tmp_path, last_words([6.0, 15.0] * 10))
    perplexity, accuracy = found.rows[-2:]
    assert 0 < perplexity["value_low"] < perplexity["value"] < perplexity["value_high"]
    assert (accuracy["value_low"], accuracy["value"]) == (0.0, 0.05)
    written, share = found.table.rows[-2:]
    assert written[2] == "27,000"
    assert "," in written[3]
    assert not any("-" in cell or "\N{MINUS SIGN}" in cell for cell in (*written, *share))
    assert share[2] == "5.0 %"
