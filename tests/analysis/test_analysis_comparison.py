"""Comparisons of two scorings: facts planted in the items come out as differences and verdicts."""

import dataclasses

import numpy as np
import pytest
from scorings import artifact, pair, task_rows, text_rows, write

from onward.analysis import compare, headline, pooled, sentence
from onward.analysis.rows import unclear
from onward.errors import UserError
from onward.evaluation.scores import ItemRow
from onward.statistics import Interval


def test_text_gain_and_loss_with_their_numbers(tmp_path):
    before = text_rows("domain", 2.31) + text_rows("general", 1.5)
    after = text_rows("domain", 1.98) + text_rows("general", 1.6)
    comparison = pair(tmp_path, before, after)
    domain, general = comparison.find("domain"), comparison.find("general")
    assert domain.delta == pytest.approx(-0.33)
    assert (domain.verdict, general.verdict) == ("gained", "lost")
    assert domain.p_adjusted == 2 * domain.p_value == pytest.approx(2 / 10_000)
    assert domain.right_to_wrong is domain.p_mcnemar is None
    assert domain.items == 40
    assert (comparison.before, comparison.after) == ("before", "after")
    assert headline(comparison) == "The model gained on the domain, but general text became harder for it."


@pytest.mark.parametrize(("documents", "group_of"), [(7, 1), (40, 6)])
def test_a_handful_of_documents_gives_no_verdict(tmp_path, documents, group_of):
    comparison = pair(tmp_path, *(text_rows("domain", bits, documents, group_of) for bits in (2.31, 1.98)))
    assert comparison.find("domain").high < 0
    assert comparison.find("domain").verdict == "not distinguishable"
    assert comparison.summary[0].endswith("not distinguishable (fewer than 8 documents or groups of them).")


def test_bits_per_byte_is_total_over_total(tmp_path):
    rows = [
        ItemRow("held_out:domain", None, "a", "a", nats=8 * np.log(2), bytes=4),
        ItemRow("held_out:domain", None, "b", "b", nats=2 * np.log(2), bytes=6),
    ]
    assert pair(tmp_path, rows, rows).find("domain").before == pytest.approx(1.0)


def test_noise_on_text_is_not_distinguishable(tmp_path):
    before = text_rows("domain", 2.0)
    noise = np.random.default_rng(1).normal(0, 30, len(before))
    after = [dataclasses.replace(row, nats=row.nats + shift) for row, shift in zip(before, noise, strict=True)]
    assert pair(tmp_path, before, after).find("domain").verdict == "not distinguishable"


def test_groups_of_documents_widen_the_interval(tmp_path):
    generator = np.random.default_rng(2)
    shared = np.repeat(generator.normal(0, 200, 10), 10)

    def width(group_of: int) -> float:
        before = text_rows("domain", 2.0, 100, group_of)
        after = [dataclasses.replace(row, nats=row.nats + s) for row, s in zip(before, shared, strict=True)]
        found = pair(tmp_path, before, after).find("domain")
        return found.high - found.low

    assert width(10) > 2 * width(1)


def test_task_gain_counts_the_flips_and_agrees_with_the_rates(tmp_path):
    before = np.arange(400) % 2 == 0
    after = before | (np.arange(400) < 100)
    after[398] = False
    row = pair(tmp_path, task_rows("arc_easy", before), task_rows("arc_easy", after)).find("arc_easy")
    assert (row.right_to_wrong, row.wrong_to_right) == (1, 50)
    assert row.delta == pytest.approx(49 / 400)
    assert row.verdict == "gained"


def test_acc_norm_is_a_row_only_where_every_item_has_it(tmp_path):
    right = np.arange(40) % 2 == 0
    rows = task_rows("piqa", right, ~right) + task_rows("boolq", right)
    comparison = pair(tmp_path, rows, rows, 0.5)
    assert [(d.name, d.metric) for d in comparison.differences] == [
        ("piqa", "acc"),
        ("piqa", "acc_norm"),
        ("boolq", "acc"),
    ]


def test_holm_takes_back_what_many_tasks_would_find_by_chance(tmp_path):
    before = np.arange(300) < 210
    after = before.copy()
    after[210:219] = True
    after[0] = False  # 1 against 9: p = 0.021 alone
    names = [f"task{i}" for i in range(6)]
    first = [row for name in names for row in task_rows(name, before)]
    second = [row for name in names for row in task_rows(name, after if name == "task0" else before)]
    alone = pair(tmp_path, task_rows("task0", before), task_rows("task0", after)).find("task0")
    among = pair(tmp_path, first, second).find("task0")
    assert alone.p_value == among.p_value == pytest.approx(22 / 1024)
    assert alone.verdict == "gained"
    assert among.p_adjusted == pytest.approx(6 * 22 / 1024)
    assert among.verdict == "not distinguishable"


def test_two_guesses_are_at_chance_even_when_the_guesses_changed(tmp_path):
    before = np.arange(1000) % 100 < 23
    after = np.arange(1000) % 100 >= 73
    row = pair(tmp_path, task_rows("mmlu", before), task_rows("mmlu", after)).find("mmlu")
    assert row.verdict == "at chance"
    scored = [(np.arange(1000) < 300, chance) for chance in (0.25, 0.3)]
    rows = [pair(tmp_path, task_rows("sciq", right), task_rows("sciq", right), chance) for right, chance in scored]
    assert [row.find("sciq").verdict for row in rows] == ["not distinguishable", "at chance"]


def test_a_change_of_the_favourite_letter_is_no_gain(tmp_path):
    gold = np.array([0] * 220 + [1] * 250 + [2] * 250 + [3] * 280)

    def rows(favourite: int, skill: float) -> list[ItemRow]:
        picked = np.where(np.random.default_rng(5).random(1000) < skill, gold, favourite)
        answers = task_rows("mmlu", gold == picked)
        return [
            dataclasses.replace(row, gold=int(g), predicted=int(p))
            for row, g, p in zip(answers, gold, picked, strict=True)
        ]

    habit = pair(tmp_path, rows(0, 0.0), rows(3, 0.0)).find("mmlu")
    assert habit.delta == pytest.approx(0.06)
    assert habit.p_adjusted < 0.01
    assert habit.low > 0
    assert habit.verdict == "at chance"
    assert pair(tmp_path, rows(0, 0.0), rows(0, 0.1)).find("mmlu").verdict == "gained"


def test_a_change_of_each_subjects_favourite_letter_is_no_gain(tmp_path):
    # In each of twenty subjects another letter is right in 40 of 100 items: the one that the model has come to favour.
    subject, place = np.repeat(np.arange(20), 100), np.tile(np.arange(100), 20)
    gold = np.where(place < 40, subject, subject + 1 + place % 3) % 4

    def rows(favourite: np.ndarray, skill: float) -> list[ItemRow]:
        picked = np.where(np.random.default_rng(5).random(2000) < skill, gold, favourite % 4)
        answers = zip(task_rows("mmlu", gold == picked), subject, gold, picked, strict=True)
        return [
            dataclasses.replace(row, subject=f"s{s:02d}", group=f"s{s:02d}", gold=int(g), predicted=int(p))
            for row, s, g, p in answers
        ]

    habit = pair(tmp_path, rows(subject + 1, 0.0), rows(subject, 0.0)).find("mmlu")
    assert habit.delta == pytest.approx(0.2)
    assert habit.p_adjusted < 0.001
    assert habit.low > 0
    assert habit.verdict == "at chance"
    assert pair(tmp_path, rows(subject, 0.0), rows(subject, 0.1)).find("mmlu").verdict == "gained"


def test_a_score_that_leaves_chance_is_a_gain(tmp_path):
    before, after = np.arange(1000) < 250, np.arange(1000) < 400
    assert pair(tmp_path, task_rows("mmlu", before), task_rows("mmlu", after)).find("mmlu").verdict == "gained"


def test_a_verdict_needs_both_the_test_and_the_interval():
    assert unclear(Interval(0.02, 0.01, 0.03), 99, 0.03, 0.2, False) == "p = 0.03 alone, 0.2 after Holm"
    assert unclear(Interval(0.02, -0.01, 0.05), 99, 0.001, 0.001, False) == "the interval holds zero"
    assert unclear(Interval(0.02, float("nan"), float("nan")), 1, 0.001, 0.001, False) == "one item has no interval"
    assert unclear(Interval(-0.02, -0.03, -0.01), 99, 0.001, 0.001, False) is None
    assert unclear(Interval(-0.02, -0.03, -0.01), 7, 0.01, 0.01, True) == "fewer than 8 documents or groups of them"


def test_the_order_of_the_items_does_not_matter(tmp_path):
    before, after = text_rows("domain", 2.0), text_rows("domain", 1.8)
    straight = pair(tmp_path, before, after)
    assert pair(tmp_path, before, after[::-1]) == straight


def test_the_same_scores_show_no_difference(tmp_path):
    rows = text_rows("domain", 2.0) + task_rows("arc_easy", np.arange(100) < 60)
    comparison = pair(tmp_path, rows, rows)
    assert {d.delta for d in comparison.differences} == {0.0}
    assert {d.verdict for d in comparison.differences} == {"not distinguishable"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[1:], "only before"),
        (lambda rows: [*rows, dataclasses.replace(rows[0], item="new")], "new"),
        (lambda rows: [dataclasses.replace(rows[0], bytes=1), *rows[1:]], "bytes differs"),
        (lambda rows: rows + task_rows("piqa", [True]), "piqa"),
    ],
)
def test_other_items_are_refused_and_named(tmp_path, change, words):
    rows = text_rows("domain", 2.0)
    with pytest.raises(UserError, match="not scored on the same items") as caught:
        pair(tmp_path, rows, change(rows))
    assert words in str(caught.value)


def test_other_settings_are_refused(tmp_path):
    rows = task_rows("mmlu", [True, False])
    before, after = write(tmp_path / "a", rows), write(tmp_path / "b", rows, fewshot=5)
    with pytest.raises(UserError) as caught:
        compare(before, after, 100, 0)
    assert "5-shot" in str(caught.value)
    with pytest.raises(UserError):
        compare(before, write(tmp_path / "b", rows, items_hash="other"), 100, 0)


def test_other_precision_is_refused_where_it_is_known(tmp_path):
    rows = text_rows("domain", 2.0)
    fine, coarse = (artifact(tmp_path / name, rows, precision=name) for name in ("fp32", "bf16"))
    with pytest.raises(UserError, match="scored in different precision") as caught:
        compare(fine, coarse, 100, 0)
    assert (caught.value.got, caught.value.expected) == ("bf16", f"fp32, as in {fine}")
    assert caught.value.where == str(coarse)
    assert "--precision fp32" in caught.value.todo
    with pytest.raises(UserError, match="scored in different precision"):
        pooled(coarse, [coarse, fine])
    for old in (write(tmp_path / "bare", rows), artifact(tmp_path / "silent", rows, model="m")):
        assert compare(fine, old, 100, 0).find("domain").delta == compare(old, coarse, 100, 0).find("domain").delta == 0


def test_sentences_are_plain_words(tmp_path):
    comparison = pair(tmp_path, text_rows("domain", 2.31), text_rows("domain", 1.98))
    domain = dataclasses.replace(comparison.find("domain"), before=2.31, after=1.98, low=-0.352, high=-0.309)
    expected = "Domain text: 2.31 → 1.98 bits per byte (−0.33, 95 % interval −0.35 to −0.31): gained."
    assert sentence(domain) == expected
    right = np.arange(400) < 200
    task = pair(tmp_path, task_rows("boolq", right), task_rows("boolq", right), 0.9).summary[0]
    assert task.startswith("BoolQ (acc): 50.0 % → 50.0 % of 400 items (0.0 points, 95 % interval 0.0 to 0.0, p = 1.0")


def with_touched(rows: list[ItemRow], touched: dict[str, str]) -> list[ItemRow]:
    return [dataclasses.replace(row, touched=touched.get(row.item)) for row in rows]


def test_a_gain_on_touched_items_alone_is_none_without_them(tmp_path):
    before = np.arange(400) % 2 == 0
    after = before | (np.arange(400) < 100)
    touched = {f"q{i:05d}": "report" if i < 30 else "drop" for i in range(100)}
    sides = [
        with_touched(task_rows("arc_easy", right), touched) + task_rows("mmlu", before) for right in (before, after)
    ]
    comparison = pair(tmp_path, *sides)
    whole = comparison.find("arc_easy")
    (clean,) = comparison.without_touched
    assert (whole.verdict, whole.items, whole.touched) == ("gained", 400, 0)
    assert (clean.verdict, clean.items, clean.touched, clean.seen) == ("not distinguishable", 300, 100, 30)
    assert (clean.before, clean.after) == (0.5, 0.5)
    assert comparison.clean(whole) is clean
    assert comparison.clean(comparison.find("mmlu")) is None
    assert comparison.summary[-1] == sentence(clean)
    assert "ARC easy (acc) without 100 items found in the text, 30 of them left in training: 50.0 %" in sentence(clean)


def test_holm_without_touched_items_is_over_the_same_family(tmp_path):
    before = np.arange(400) % 2 == 0
    after = before | (np.arange(400) < 60)
    plain = [task_rows(name, before) for name in ("boolq", "piqa")]
    sides = [task_rows("arc_easy", right) + plain[0] + plain[1] for right in (before, after)]
    sides[1][399] = dataclasses.replace(sides[1][399], touched="drop")
    comparison = pair(tmp_path, *sides)
    (clean,) = comparison.without_touched
    assert clean.items == 399
    assert clean.p_adjusted == pytest.approx(3 * clean.p_value)
    assert "without 1 item found in the text, none left in training" in sentence(clean)


def test_a_task_of_nothing_but_touched_items_has_no_second_row(tmp_path):
    rows = task_rows("arc_easy", np.arange(40) % 2 == 0)
    all_touched = with_touched(rows, {row.item: "report" for row in rows})
    assert pair(tmp_path, all_touched, all_touched).without_touched == ()
    assert "all left in training" in sentence(
        dataclasses.replace(pair(tmp_path, rows, rows).differences[0], touched=2, seen=2)
    )
