"""Measures beyond right and wrong, several models at once, several seeds: planted facts come out again."""

import dataclasses
import json
import re

import numpy as np
import pytest
from scipy.stats import binomtest
from scorings import pair, task_rows, text_rows, write

from onward.analysis import compare, compare_all, pooled, sentence
from onward.errors import UserError
from onward.evaluation.scores import ItemRow
from onward.statistics import sign_flip


def nats_rows(task: str, nats: np.ndarray, words: int | None = None, size: int | None = None) -> list[ItemRow]:
    return [
        ItemRow(task, None, f"t{i:04d}", f"t{i:04d}", nats=float(value), bytes=size, words=words)
        for i, value in enumerate(nats)
    ]


def test_any_measure_in_the_rows_is_compared(tmp_path):
    rows = [
        dataclasses.replace(row, right={"acc": True, "acc_bytes": False, "acc_mutual_info": i % 2 == 0})
        for i, row in enumerate(task_rows("openbookqa", [True] * 40))
    ]
    found = pair(tmp_path, rows, rows).differences
    assert [(row.metric, row.before) for row in found] == [("acc", 1), ("acc_bytes", 0), ("acc_mutual_info", 0.5)]


def test_scores_above_chance_are_on_their_own_scale(tmp_path):
    before, after = np.arange(400) < 200, np.arange(400) < 300
    row = pair(tmp_path, task_rows("piqa", before), task_rows("piqa", after), 0.5).find("piqa")
    assert row.adjusted == pytest.approx((0.0, 0.5))
    assert row.chance == 0.5


def test_passages_are_tested_whole(tmp_path):
    # Twenty passages of ten questions; in each all answers change together, 14 to right and 6 to wrong.
    turned = np.repeat(np.arange(20) < 14, 10)
    before, after = ~turned, turned
    rows = (task_rows("arc_easy", side, group_of=10) for side in (before, after))
    row = pair(tmp_path, *rows, chance=0.9).find("arc_easy")
    assert row.groups == 20
    assert row.p_mcnemar == pytest.approx(binomtest(60, 200).pvalue)
    assert row.p_value == pytest.approx(binomtest(6, 20).pvalue)
    assert (row.right_to_wrong, row.wrong_to_right) == (60, 140)
    assert row.verdict == "not distinguishable"
    alone = pair(tmp_path, *(task_rows("arc_easy", side) for side in (before, after)), chance=0.9).find("arc_easy")
    assert alone.p_value == alone.p_mcnemar
    assert alone.verdict == "gained"


def test_one_subject_alone_is_tested_by_its_items(tmp_path):
    before, after = np.arange(100) < 60, np.arange(100) < 80
    rows = (task_rows("mmlu_anatomy", side, group_of=100) for side in (before, after))
    row = pair(tmp_path, *rows).find("mmlu_anatomy")
    assert (row.groups, row.p_value, row.verdict) == (100, row.p_mcnemar, "gained")


def test_text_by_source(tmp_path):
    def rows(bits: dict[str, float]) -> list[ItemRow]:
        parts = [(name, text_rows("domain", value)) for name, value in bits.items()]
        return [
            dataclasses.replace(row, source=name, item=f"{name}{row.item}", group=f"{name}{row.group}")
            for name, part in parts
            for row in part
        ]

    comparison = pair(tmp_path, rows({"law": 2.0, "news": 2.0}), rows({"law": 1.7, "news": 2.1}))
    law, news = comparison.sources
    assert (law.source, law.items, law.verdict) == ("law", 40, "gained")
    assert (news.source, news.verdict, news.delta) == ("news", "lost", pytest.approx(0.1))
    assert sentence(law).startswith("Domain text, law: ")
    assert law.p_adjusted == 2 * law.p_value
    assert comparison.find("domain").items == 80
    one = pair(tmp_path, rows({"law": 2.0}), rows({"law": 1.7}))
    assert one.sources == ()


def test_a_perplexity_falls_when_a_model_gains(tmp_path):
    nats = np.random.default_rng(0).normal(3, 0.5, 200)
    right = task_rows("lambada_openai", np.arange(200) < 100)
    sides = [
        [dataclasses.replace(row, nats=float(value) - shift) for row, value in zip(right, nats, strict=True)]
        for shift in (0.0, 0.2)
    ]
    folders = [
        write(tmp_path / name, side, None, measures=("perplexity", "acc"))
        for name, side in zip("ab", sides, strict=True)
    ]
    acc, perplexity = compare(*folders, 300, 0).differences
    assert (acc.metric, acc.verdict, acc.adjusted) == ("acc", "not distinguishable", None)
    assert (perplexity.metric, perplexity.verdict) == ("perplexity", "gained")
    assert perplexity.before == pytest.approx(np.exp(nats.mean()))
    assert perplexity.after == pytest.approx(np.exp(nats.mean() - 0.2))
    assert perplexity.low < perplexity.delta < perplexity.high < 0
    assert "points" not in sentence(perplexity)


def test_rolling_tasks_have_bits_and_word_perplexity(tmp_path):
    nats = np.random.default_rng(0).normal(300, 30, 62)
    sides = [nats_rows("wikitext", nats * factor, words=100, size=500) for factor in (1.0, 1.1)]
    names = ("word_perplexity", "byte_perplexity", "bits_per_byte")
    folders = [write(tmp_path / name, side, None, measures=names) for name, side in zip("ab", sides, strict=True)]
    bits, words = compare(*folders, 300, 0).differences
    assert (bits.metric, words.metric) == ("bits_per_byte", "word_perplexity")
    assert bits.before == pytest.approx(nats.sum() / (62 * 500 * np.log(2)))
    assert words.after == pytest.approx(np.exp(1.1 * nats.sum() / (62 * 100)))
    assert bits.verdict == words.verdict == "lost"
    assert bits.p_value == words.p_value
    assert not bits.is_text


def test_letters_are_counted_and_a_favourite_scored(tmp_path):
    gold = np.array([0] * 10 + [1] * 20 + [2] * 30 + [3] * 40)

    def rows(picked: np.ndarray) -> list[ItemRow]:
        return [
            ItemRow(
                "mmlu",
                "law",
                f"q{i:03d}",
                f"g{i}",
                gold=int(g),
                predicted=int(p),
                right={"acc": bool(g == p)},
                logprobs=(0.0,) * 4,
            )
            for i, (g, p) in enumerate(zip(gold, picked, strict=True))
        ]

    comparison = pair(tmp_path, rows(np.zeros(100)), rows(np.array([3] * 40 + [1] * 60)))
    (letters,) = comparison.letters
    assert letters.options == ("A", "B", "C", "D")
    assert letters.gold == (10, 20, 30, 40)
    assert (letters.before, letters.after) == ((100, 0, 0, 0), (0, 60, 0, 40))
    assert (letters.constant_before, letters.constant_after) == (0.1, 0.2)
    assert pair(tmp_path, task_rows("arc_easy", [True] * 9), task_rows("arc_easy", [True] * 9)).letters == ()


def test_holm_is_over_all_models_compared(tmp_path):
    before = np.arange(300) < 210
    after = before.copy()
    after[210:219] = True
    after[0] = False  # 1 against 9: p = 0.021 alone
    base = write(tmp_path / "base", task_rows("piqa", before))
    one, two = (write(tmp_path / name, task_rows("piqa", after)) for name in ("one", "two"))
    alone = compare_all((base, one), None, 300, 0)
    both = compare_all((base, one, two), ("A", "B", "C"), 300, 0)
    assert alone.comparisons[0] == compare(base, one, 300, 0)
    assert alone.comparisons[0].find("piqa").verdict == "gained"
    assert [c.find("piqa").p_adjusted for c in both.comparisons] == [pytest.approx(2 * 22 / 1024)] * 2
    assert (both.base, [c.after for c in both.comparisons]) == ("A", ["B", "C"])
    three = compare_all((base, one, two, one), None, 300, 0)
    assert {c.find("piqa").verdict for c in three.comparisons} == {"not distinguishable"}
    assert three.comparisons[0].find("piqa").why == "p = 0.021 alone, 0.064 after Holm"
    assert three.comparisons[0].summary[0].endswith("(p = 0.021 alone, 0.064 after Holm).")


def test_comparisons_are_plain_json(tmp_path):
    rows = text_rows("domain", 2.0, 1) + task_rows("mmlu", np.arange(40) < 20)
    comparisons = compare_all((write(tmp_path / "a", rows), write(tmp_path / "b", rows)), None, 100, 0)
    found = json.loads(json.dumps(comparisons.as_json(), allow_nan=False))
    text, task = found["comparisons"][0]["differences"]
    assert text["low"] is None
    assert text["adjusted"] is None
    assert task["adjusted"] == pytest.approx([1 / 3, 1 / 3])
    assert found["comparisons"][0]["letters"][0]["constant_after"] == 0.25


def test_seeds_are_pooled(tmp_path):
    generator = np.random.default_rng(3)
    before = generator.random(600) < 0.4
    seeds = [np.where(generator.random(600) < 0.3, generator.random(600) < 0.8, before) for _ in range(3)]
    base = write(tmp_path / "base", task_rows("arc_easy", before) + text_rows("domain", 2.0))
    folders = [
        write(tmp_path / f"s{i}", task_rows("arc_easy", right) + text_rows("domain", 1.9 + 0.01 * i))
        for i, right in enumerate(seeds)
    ]
    found = pooled(base, folders)
    text, task = found.differences
    assert (found.before, found.after) == ("base", "3 seeds")
    assert text.seeds == pytest.approx([text.before - 0.1, text.before - 0.09, text.before - 0.08])
    assert (text.delta, text.verdict) == (pytest.approx(-0.09), "gained")
    assert task.after == pytest.approx(np.mean(seeds))
    assert task.delta == pytest.approx(np.mean(seeds) - before.mean())
    assert task.verdict == "gained"
    assert sentence(task).endswith(", 3 seeds: gained.")
    named = pooled(base, folders, "three", "start")
    assert (named.before, named.after, named.differences) == ("start", "three", found.differences)


def test_the_documented_example_of_pooling_prints_its_findings(tmp_path, monkeypatch, capsys, repository):
    rows = {"base": 2.0, "seed-0": 1.90, "seed-1": 1.91, "seed-2": 1.92}
    (tmp_path / "scores").mkdir()
    for name, bits in rows.items():
        write(tmp_path / "scores" / name, text_rows("domain", bits))
    monkeypatch.chdir(tmp_path)
    page = (repository / "docs/python-api.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pooled" in block)
    exec(compile(example, "docs/python-api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert ", 3 seeds: gained." in printed
    assert "1.9" in printed


def test_seeds_that_disagree_are_not_distinguishable(tmp_path):
    base = write(tmp_path / "base", text_rows("domain", 2.0))
    folders = [write(tmp_path / f"s{i}", text_rows("domain", bits)) for i, bits in enumerate((1.7, 1.9, 2.1))]
    alone = compare(base, folders[0], 300, 0).find("domain")
    assert alone.verdict == "gained"
    assert pooled(base, folders).find("domain").verdict == "not distinguishable"


def test_pooling_drops_items_that_any_seed_saw(tmp_path):
    rows = task_rows("arc_easy", np.arange(100) < 50)
    sides = [
        [dataclasses.replace(row, touched="report" if i == 50 + side else None) for i, row in enumerate(rows)]
        for side in range(2)
    ]
    folders = [write(tmp_path / f"s{i}", side) for i, side in enumerate(sides)]
    (clean,) = pooled(write(tmp_path / "base", rows), folders).without_touched
    assert (clean.items, clean.touched) == (98, 2)


def test_one_seed_is_refused(tmp_path):
    base = write(tmp_path / "base", text_rows("domain", 2.0))
    with pytest.raises(UserError, match="several seeds"):
        pooled(base, [base])


def test_the_test_of_text_is_of_its_groups(tmp_path):
    before, after = text_rows("domain", 2.0, 40, 4), text_rows("domain", 1.99, 40, 4)
    row = pair(tmp_path, before, after).find("domain")
    groups = np.array([r.group for r in sorted(before, key=lambda r: r.item)])
    sides = [np.array([r.nats for r in sorted(rows, key=lambda r: r.item)]) for rows in (before, after)]
    assert row.groups == 10
    assert row.p_value == sign_flip(*sides, groups, 9_999, 0)


def test_a_score_below_chance_is_said_to_be_so_and_never_at_chance(tmp_path):
    low, high, guess = (np.arange(1000) % 100 < share for share in (10, 60, 25))

    def found(before, after):
        comparison = pair(tmp_path, task_rows("sciq", before), task_rows("sciq", after))
        return comparison.find("sciq"), next(said for said in comparison.summary if "sciq" in said)

    row, said = found(low, low)
    assert (row.verdict, row.below_chance) == ("not distinguishable", (True, True))
    assert said.endswith("not distinguishable; both scores are below guessing, 25.0 %.")
    row, said = found(low, high)
    assert (row.verdict, row.below_chance) == ("gained", (True, False))
    assert said.endswith("gained; the score before is below guessing, 25.0 %.")
    row, said = found(guess, low)
    assert row.verdict == "lost"
    assert said.endswith("the score after is below guessing, 25.0 %.")
    row, said = found(guess, guess)
    assert (row.verdict, row.below_chance) == ("at chance", (False, False))
    assert "guessing" not in said


def test_below_chance_is_below_the_habit_of_picking_letters(tmp_path):
    """A habit of a letter that is seldom right scores 20 %: a few known items on top are above it, below 25 % still."""
    gold = np.arange(1000) % 10 % 4  # letters 0 and 1 are right in 30 %, 2 and 3 in 20 %

    def rows(picked):
        answers = zip(task_rows("mmlu", gold == picked), gold, picked, strict=True)
        return [dataclasses.replace(row, gold=int(g), predicted=int(p)) for row, g, p in answers]

    habit, wrong = rows(np.full(1000, 3)), rows((gold + 1) % 4)
    row = pair(tmp_path, habit, wrong).find("mmlu")
    assert (row.before, row.after) == pytest.approx((0.2, 0.0))
    assert row.below_chance == (False, True)
    able = rows(np.where((gold == 0) & (np.arange(1000) < 140), 0, 3))
    row = pair(tmp_path, able, wrong).find("mmlu")
    assert row.before == pytest.approx(0.242)
    assert row.below_chance == (False, True)
