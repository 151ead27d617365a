"""Prefix trees: every token of every sequence stands in a row, what is shared stands there once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.model.prefix_tree import LEAST_SHARED, Row, rows_of, tree_tokens

SEQUENCES = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=24).map(tuple), min_size=1, max_size=30, unique=True
)


def read_back(row: Row) -> dict[int, tuple[int, ...]]:
    ids = np.array(row.ids)
    return {path.sequence: tuple(ids[path.last_positions(10_000)].tolist()) for path in row.paths}


@settings(deadline=None, max_examples=200)
@given(SEQUENCES, st.integers(8, 200))
def test_every_sequence_can_be_read_along_its_path(sequences: list[tuple[int, ...]], row_tokens: int) -> None:
    found: dict[int, tuple[int, ...]] = {}
    for row in rows_of(sequences, row_tokens):
        assert [s.span[0] for s in row.segments] == [0, *(s.span[1] for s in row.segments)][:-1], "segments cover it"
        found |= read_back(row)
        for segment in row.segments:
            assert segment.depth == sum(end - start for start, end in segment.before)
        places = row.places()
        for path in row.paths:
            positions = path.last_positions(10_000)
            assert places[positions].tolist() == list(range(len(positions)))
    assert found == dict(enumerate(sequences))


@settings(deadline=None, max_examples=100)
@given(SEQUENCES)
def test_the_bound_is_the_number_of_nodes(sequences: list[tuple[int, ...]]) -> None:
    assert tree_tokens(sequences) == len({s[: i + 1] for s in sequences for i in range(len(s))})


def test_one_row_computes_what_is_shared_once() -> None:
    shared = tuple(range(100, 140))
    sequences = [(*shared, 1, 2, 3), (*shared, 1, 4), (*shared, 5), (7, 8)]
    (row,) = rows_of(sequences, 1000)
    # Of the first two the one token after the shared part is common as well.
    assert len(row.ids) == tree_tokens(sequences) == 40 + 3 + 1 + 1 + 2


def test_short_common_beginnings_are_computed_again() -> None:
    start = tuple(range(LEAST_SHARED - 1))
    (row,) = rows_of([(*start, 50), (*start, 60)], 1000)
    assert len(row.ids) == 2 * LEAST_SHARED


@pytest.mark.parametrize(("shared_tokens", "rows"), [(0, 5), (100, 2)])
def test_a_row_grows_while_its_end_would_repeat_much(shared_tokens: int, rows: int) -> None:
    shared = tuple(range(1000, 1000 + shared_tokens))
    sequences = [(*shared, *(10 * i + j for j in range(100))) for i in range(10)]
    laid = list(rows_of(sequences, 200))
    assert len(laid) == rows
    assert max(len(row.ids) for row in laid) <= 4 * 200
