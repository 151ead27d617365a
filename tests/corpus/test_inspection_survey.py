"""The tallies of a survey, against counting everything at once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from onward.corpus.survey import BATCH_ROWS, Choice, OriginTally, Spread, SpreadTally, batches, hosts, integers


@pytest.mark.parametrize("seed", range(5))
def test_a_spread_counts_in_any_parts_what_is_counted_at_once(seed):
    chance = np.random.default_rng(seed)
    values = chance.lognormal(4, 1.5, 3000).astype(np.int64)
    tokens = chance.integers(1, 900, 3000)
    lower = (0, 1, 8, 64, 512, 4096, 10**9)
    tally = SpreadTally()
    for part in np.array_split(np.arange(3000), 7):
        tally.add(values[part], tokens[part])
    tally.add(values[:0], tokens[:0])
    spread = tally.spread(lower, unit=0.5)
    edges = [edge * 2 for edge in spread.lower]
    assert set(edges) <= set(lower)
    assert spread.documents == tuple(np.histogram(values, [*edges, np.inf])[0])
    assert spread.tokens == tuple(np.histogram(values, [*edges, np.inf], weights=tokens)[0])
    assert sum(spread.documents) == 3000
    exact = np.quantile(values, [share for share, _ in spread.quantiles], method="inverted_cdf")
    assert [value for _, value in spread.quantiles] == pytest.approx(exact * 0.5)


def test_nothing_spreads_nowhere():
    assert SpreadTally().spread((0, 1, 2)) == Spread((), (), (), ())


def test_few_names_are_counted_exactly():
    tally, expected = OriginTally(), Counter()
    for n in range(10):
        names = [f"n{k % (n + 1)}" for k in range(20)] + [None]
        tokens = np.arange(21) + n
        expected.update({name: 0 for name in names if name})
        for name, count in zip(names, tokens.tolist(), strict=True):
            if name:
                expected[name] += count
        tally.add(pa.array(names), tokens * 3, tokens)
    origins = tally.origins(4)
    assert [(row.name, row.tokens) for row in origins.rows] == sorted(expected.items(), key=lambda i: (-i[1], i[0]))[:4]
    assert all(row.bytes == 3 * row.tokens for row in origins.rows)
    assert (origins.distinct, origins.missed_tokens) == (10, 0)


def test_of_many_names_the_heaviest_stay_right_within_the_bound():
    chance = np.random.default_rng(3)
    tally, expected = OriginTally(held=50), Counter()
    for _ in range(40):
        places = chance.zipf(1.4, 400) % 5000
        tokens = chance.integers(1, 10, 400)
        for place, count in zip(places.tolist(), tokens.tolist(), strict=True):
            expected[f"n{place}"] += count
        tally.add(pa.array([f"n{place}" for place in places]), tokens, tokens)
    origins = tally.origins(10)
    assert origins.missed_tokens > 0
    assert origins.distinct < len(expected)
    assert [row.name for row in origins.rows[:3]] == [name for name, _ in expected.most_common(3)]
    for row in origins.rows:
        assert expected[row.name] - origins.missed_tokens <= row.tokens <= expected[row.name]
        assert row.tokens > origins.missed_tokens


def test_names_that_what_was_missed_could_outweigh_are_not_named():
    tally = OriginTally(held=5)
    for n in range(0, 100, 10):
        tally.add(pa.array([f"n{k}" for k in range(n, n + 10)]), np.ones(10, np.int64), np.ones(10, np.int64))
    assert tally.origins(10).rows == ()


def test_a_choice_is_the_same_for_a_seed_and_takes_any_row():
    names = pa.array([f"rule {n % 3}" for n in range(90)])
    batch = pa.RecordBatch.from_arrays([pa.array(range(90))], names=["n"])

    def chosen(seed: int, part: int) -> dict[str, list[int]]:
        choice = Choice(4, seed)
        for start in range(0, 90, part):
            choice.offer(batch.slice(start, part), names.slice(start, part))
        assert choice.seen == {f"rule {n}": 30 for n in range(3)}
        return {name: [row["n"] for row in choice.rows(name)] for name in ("rule 0", "rule 1", "rule 2", "none")}

    assert chosen(1, 90) == chosen(1, 7)
    found = chosen(1, 90)
    assert found["none"] == []
    assert all(len(set(found[f"rule {n}"])) == 4 for n in range(3))
    assert all(value % 3 == 1 for value in found["rule 1"])
    counts = Counter(n for seed in range(600) for n in chosen(seed, 45)["rule 2"])
    assert len(counts) == 30
    assert 40 < min(counts.values()) <= max(counts.values()) < 130  # 80 expected, 8.3 the standard deviation


def test_hosts_of_addresses():
    found = hosts(
        pa.array(["https://www.A.org/x?y", "http://u:p@b.com:80", "HTTPS://c.de#d", "e.org/x", "<urn:1>", None])
    )
    assert found.to_pylist() == ["a.org", "b.com", "c.de", None, None, None]


def test_batches_are_small_and_follow_each_other(tmp_path: Path):
    for name, rows in (("a", 70_000), ("b", 0), ("c", 5)):
        table = pa.table({"n": pa.array(range(rows), pa.int64()), "other": pa.array(["x"] * rows)})
        parquet.write_table(table, tmp_path / name, row_group_size=100_000)
    found = list(batches([tmp_path / name for name in "abc"], ["n"]))
    assert max(len(batch) for batch in found) == BATCH_ROWS
    assert all(batch.schema.names == ["n"] for batch in found)
    assert np.concatenate([integers(batch, "n") for batch in found]).tolist() == [*range(70_000), *range(5)]
