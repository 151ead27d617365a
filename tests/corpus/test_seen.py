"""The disk-backed index against a plain dict that sorts one document at a time."""

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus.duplicates import passages, run_folder, runs
from onward.corpus.duplicates.passages import SAMPLED, Passages, needed_hits
from onward.corpus.duplicates.seen import COVERED, EXACT, NEAR, NONE, OTHER_SIDE, Matches, Seen
from onward.errors import UserError

Found = tuple[int, int, int, int, float]
Document = tuple[tuple[int, ...], bool, bool, tuple[int, ...]]
NOTHING: Found = (NONE, -1, -1, 0, 0.0)


@dataclass
class Plain:
    """The rule in a few lines. corpora: those of `against`, then this one."""

    exact: bool
    covered: Fraction | None = None
    corpora: list[dict[int, int]] = field(default_factory=lambda: [{}])
    read: set[int] = field(default_factory=set)

    def sort(self, keys: Sequence[int], value: int, passages: Sequence[int] = ()) -> Found:
        own = self.corpora[-1]
        found = [next(((c, known[key]) for c, known in enumerate(self.corpora) if key in known), None) for key in keys]
        same, bands = found[0], [match for match in found[1:] if match]
        if same and (self.exact or (same[1] ^ value) & 1):
            return self._match(EXACT if self.exact else OTHER_SIDE, same, 0)
        if bands:
            return self._match(NEAR, min(bands), bands.count(min(bands)))
        if self.covered is not None and not same:
            hits = sum(passage in self.read for passage in passages)
            if hits >= needed_hits(self.covered)[len(passages)]:
                return COVERED, -1, -1, 0, float(np.float32(hits / len(passages)))
        self.read.update(passages)
        for key, match in zip(keys, found, strict=True):
            if key and not match:
                own[key] = value
        return NOTHING

    def _match(self, kind: int, match: tuple[int, int], bands: int) -> Found:
        corpus, value = match
        is_own = corpus == len(self.corpora) - 1
        return (kind, value, -1, bands, 0.0) if is_own else (kind, ~value, corpus, bands, 0.0)


def rows(matches: Matches) -> list[Found]:
    columns = (matches.kind, matches.of, matches.corpus, matches.bands, matches.share)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@dataclass(frozen=True)
class Case:
    """Documents in chunks in blocks, and how the index is set up and interrupted."""

    exact: bool
    columns: int
    covered: Fraction | None
    blocks: list[list[list[Document]]]
    others: list[list[tuple[int, ...]]]
    restarts: set[int]
    recent_keys: int
    most_runs: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    columns = draw(st.integers(1, 4))
    # Few keys, some of them close together, some sharing a half, so that slots and pages collide.
    universe = [0, *range(1, 12), *(n << 32 for n in range(1, 6)), *(n << 32 | 3 for n in range(1, 6)), 2**64 - 1]
    keys = st.tuples(*[st.sampled_from(universe)] * columns)
    read = st.lists(st.sampled_from([n * SAMPLED for n in range(1, 30)]), max_size=8).map(tuple)
    document = st.tuples(keys, st.booleans(), st.sampled_from([True, True, True, False]), read)
    chunk = st.lists(document, max_size=6)
    return Case(
        exact=draw(st.booleans()),
        columns=columns,
        covered=draw(st.sampled_from([None, Fraction(1, 2), Fraction(9, 10)])),
        blocks=draw(st.lists(st.lists(chunk, max_size=4), max_size=7)),
        others=draw(st.lists(st.lists(keys, min_size=1, max_size=6), max_size=2)),
        restarts=draw(st.sets(st.integers(0, 6))),
        recent_keys=draw(st.sampled_from([1, 10, 1000])),
        most_runs=draw(st.integers(1, 3)),
    )


def array(keys: Sequence[tuple[int, ...]], columns: int) -> np.ndarray:
    return np.array(keys, dtype=np.uint64).reshape(len(keys), columns)


def other_corpus(folder: Path, documents: list[tuple[int, ...]], columns: int) -> Path:
    seen = Seen(folder / "work", columns)
    numbers = np.arange(len(documents)) * 2
    seen.sort(array(documents, columns), numbers, np.ones(len(documents), dtype=bool))
    seen.finish_block(0)
    seen.close(folder / "seen.npy")
    return folder / "seen.npy"


@settings(max_examples=100, deadline=None)
@given(case=cases())
def test_it_sorts_as_a_dict_would_across_blocks_restarts_and_corpora(
    case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("seen")
    plain = Plain(case.exact, case.covered)
    against = []
    for n, documents in enumerate(case.others):
        other = Plain(True)
        for number, keys in enumerate(documents):
            other.sort(keys, 2 * number)
        plain.corpora.insert(n, other.corpora[-1])
        against.append(other_corpus(folder / f"other{n}", documents, case.columns))
    set_up: dict[str, Any] = {
        "exact": case.exact,
        "covered": case.covered,
        "against": against,
        "recent_keys": case.recent_keys,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "MOST_RUNS", case.most_runs)
        patch.setattr(passages, "SMALLEST_FILTER_BYTES", 1 << 14)
        patch.setattr(passages, "_LONGEST_BLOCK_KEYS", 1000)
        patch.setattr(os, "fsync", lambda _: None)  # half a minute of waiting
        seen = Seen(folder / "work", case.columns, **set_up)
        number = 0
        for block, chunks in enumerate(case.blocks):
            if block in case.restarts:  # a kill in the middle of the block before it is done again
                done = [value.copy() for value in plain.corpora], plain.read.copy()
                for chunk in chunks:
                    sort_both(seen, plain, chunk, case.columns, number)
                plain.corpora, plain.read = done
                if block % 2:  # the block was written, but not yet declared finished
                    seen.finish_block(block)
                seen.abandon()
                seen = Seen(folder / "work", case.columns, blocks=block, **set_up)
            for chunk in chunks:
                sort_both(seen, plain, chunk, case.columns, number)
                number += len(chunk)
            seen.finish_block(block)
        seen.close(folder / "seen.npy")
    pairs = np.load(folder / "seen.npy")
    assert pairs.dtype == np.uint64
    assert list(map(tuple, pairs.tolist())) == sorted(plain.corpora[-1].items())
    shutil.rmtree(folder)


def sort_both(seen: Seen, plain: Plain, chunk: list[Document], columns: int, at: int) -> None:
    values = [2 * n + held_out for n, (_, held_out, _, _) in enumerate(chunk, at)]
    alive = [is_alive for _, _, is_alive, _ in chunk]
    expected = [
        plain.sort(keys, value, read) if is_alive else NOTHING
        for (keys, _, is_alive, read), value in zip(chunk, values, strict=True)
    ]
    keys = array([document[0] for document in chunk], columns)
    starts = np.cumsum([0, *(len(document[3]) for document in chunk)])
    sampled = Passages(np.array([key for document in chunk for key in document[3]], dtype=np.uint64), starts)
    assert rows(seen.sort(keys, np.array(values, dtype=np.int64), np.array(alive, dtype=bool), sampled)) == expected


def test_a_restart_looks_as_thinly_as_if_there_had_been_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passages, "SMALLEST_FILTER_BYTES", 1 << 10)
    monkeypatch.setattr(passages, "LARGEST_FILTER_BYTES", 1 << 12)
    monkeypatch.setattr(passages, "_LONGEST_BLOCK_KEYS", 500)
    pool = np.random.default_rng(3).integers(1, 2**60, 50_000, dtype=np.uint64) * np.uint64(SAMPLED)
    shares = {}
    for restarts in (False, True):
        random = np.random.default_rng(4)
        seen = Seen(tmp_path / f"{restarts}", 1, covered=Fraction(1, 2))
        found, thin = [], []
        for block in range(30):
            if restarts and block % 3 == 1:
                seen.abandon()
                seen = Seen(tmp_path / f"{restarts}", 1, blocks=block, covered=Fraction(1, 2))
            keys = random.integers(1, 2**64, (10, 1), dtype=np.uint64)
            read = Passages(random.choice(pool[: 1500 * (block + 1)], 500), np.arange(0, 501, 50))
            values = np.arange(10 * block, 10 * block + 10) * 2
            found.append(rows(seen.sort(keys, values, np.ones(10, dtype=bool), read)))
            seen.finish_block(block)
            assert seen._passages is not None
            thin.append(seen._passages.thin)
        seen.abandon()
        shares[restarts] = found
        assert (thin[0], thin[-1]) == (1, 8)
    assert shares[True] == shares[False]
    assert {match[0] for match in shares[True][-1]} == {NONE, COVERED}


def test_many_keys_on_many_pages_are_found_again(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    keys = random.integers(1, 2**64, (60_000, 2), dtype=np.uint64)
    values = np.arange(60_000) * 2
    alive = np.ones(60_000, dtype=bool)
    seen = Seen(tmp_path / "work", 2, recent_keys=10_000)
    for block, part in enumerate(np.split(np.arange(60_000), 30)):
        assert not seen.sort(keys[part], values[part], alive[part]).kind.any()
        assert (seen.sort(keys[part], values[part] + 1, alive[part]).of == values[part]).all()
        seen.finish_block(block)
    seen.abandon()
    assert len(list((tmp_path / "work").iterdir())) <= run_folder.MOST_RUNS + 1
    again = Seen(tmp_path / "work", 2, blocks=30)
    matches = again.sort(keys, values + 120_000, alive)
    assert (matches.kind == EXACT).all()
    assert (matches.of == values).all()
    keys[:, 0] = random.integers(1, 2**64, 60_000, dtype=np.uint64)
    matches = again.sort(keys, values + 120_000, alive)
    assert (matches.kind == NEAR).all()
    assert (matches.of == values).all()
    assert (matches.bands == 1).all()
    again.abandon()


def test_the_first_of_several_other_corpora_counts(tmp_path: Path) -> None:
    corpora = [[(5, 2)], [(7, 8), (1, 2)]]
    against = [other_corpus(tmp_path / f"{n}", documents, 2) for n, documents in enumerate(corpora)]
    seen = Seen(tmp_path / "work", 3, against=against)
    matches = seen.sort(array([(9, 1, 2), (9, 1, 3)], 3), np.array([0, 2]), np.ones(2, dtype=bool))
    seen.abandon()
    assert rows(matches) == [(NEAR, ~0, 0, 1, 0.0), (NEAR, ~2, 1, 1, 0.0)]


def test_a_text_that_may_be_kept_twice_is_not_covered_by_itself(tmp_path: Path) -> None:
    seen = Seen(tmp_path, 1, exact=False, covered=Fraction(1, 2))
    read = Passages(np.arange(1, 101, dtype=np.uint64) * SAMPLED, np.array([0, 100]))
    keys, alive = array([(1,), (1,), (1,), (2,)], 1), np.ones(1, dtype=bool)
    kinds = [seen.sort(keys[n : n + 1], np.array([value]), alive, read).kind[0] for n, value in enumerate((0, 2, 5, 6))]
    seen.abandon()
    assert kinds == [NONE, NONE, OTHER_SIDE, COVERED]


def test_the_merged_file_does_not_depend_on_blocks_or_memory(tmp_path: Path) -> None:
    keys = np.random.default_rng(2).integers(1, 2**64, (20_000, 3), dtype=np.uint64)
    contents = set()
    for blocks, recent_keys in ((1, 1 << 20), (7, 5_000), (25, 100)):
        seen = Seen(tmp_path / f"{blocks}", 3, recent_keys=recent_keys)
        for block, part in enumerate(np.array_split(np.arange(20_000), blocks)):
            seen.sort(keys[part], part * 2, np.ones(len(part), dtype=bool))
            seen.finish_block(block)
        seen.close(tmp_path / "seen.npy")
        contents.add((tmp_path / "seen.npy").read_bytes())
    assert len(contents) == 1
    assert len(np.load(tmp_path / "seen.npy")) == 60_000


def fill(folder: Path, blocks: int) -> None:
    seen = Seen(folder, 1, recent_keys=100)
    for block in range(blocks):
        part = np.arange(100 * block, 100 * block + 100)
        seen.sort(part.astype(np.uint64)[:, None] + 1, part * 2, np.ones(100, dtype=bool))
        seen.finish_block(block)
    seen.abandon()


@pytest.mark.parametrize("stop", ["rename", "unlink"])
def test_a_kill_while_runs_are_merged_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    blocks = run_folder.MOST_RUNS
    fill(tmp_path, blocks)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, stop, killed)
        seen = Seen(tmp_path, 1, blocks=blocks)
        with pytest.raises(KeyboardInterrupt):
            seen.finish_block(blocks)
        seen.abandon()
    keys = np.arange(1, 100 * blocks + 1, dtype=np.uint64)[:, None]
    seen = Seen(tmp_path, 1, blocks=blocks)
    assert len(seen.sort(keys, np.arange(len(keys)), np.ones(len(keys), dtype=bool)).kind.nonzero()[0]) == len(keys)
    assert not list(tmp_path.glob("*.tmp"))
    assert sum(run.size for run in seen._folder.runs) == 100 * blocks
    seen.abandon()


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    fill(tmp_path, 3)
    for path in tmp_path.glob("seen-00001-*"):
        path.unlink()
    with pytest.raises(UserError, match="the index of finished work is not whole") as caught:
        Seen(tmp_path, 1, blocks=3)
    assert caught.value.got == "none for block 1"


def test_missing_passages_of_a_block_are_named(tmp_path: Path) -> None:
    seen = Seen(tmp_path, 1, covered=Fraction(1, 2))
    seen.finish_block(0)
    seen.abandon()
    (tmp_path / "passages-00000.keys").unlink()
    with pytest.raises(UserError, match="the index of finished work is not whole") as caught:
        Seen(tmp_path, 1, blocks=1, covered=Fraction(1, 2))
    assert caught.value.where == str(tmp_path / "passages-00000.keys")


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (None, "No such file"),
        (b"nothing of ours", "magic"),
        (b"short", "its size is not what its header says"),
        (b"other", r"an array float64\[3\]"),
    ],
)
def test_a_damaged_index_of_another_corpus_is_named(tmp_path: Path, content: bytes | None, got: str) -> None:
    path = tmp_path / "seen.npy"
    if content == b"short":
        runs.write_run(path, 3, [np.zeros((2, 2), dtype=np.uint64)])
    elif content == b"other":
        np.save(path, np.zeros(3))
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="an index of documents cannot be read") as caught:
        Seen(tmp_path / "work", 1, against=[path])
    assert caught.value.where == str(path)
    assert caught.value.got is not None
    assert re.search(got, caught.value.got)


def test_an_index_that_shrinks_under_us_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    run = runs.Run(next(tmp_path.glob("seen-*")))
    run.find(np.array([5], dtype=np.uint64))
    with open(run.path, "r+b") as file:
        file.truncate(700)
    with pytest.raises(UserError, match="ends early"):
        run.find(np.array([5], dtype=np.uint64))
    run.close()
