from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus.packing import Packing, load_packing, pack


def lengths(maximum: int = 40) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(1, maximum), max_size=60)


def bins_by_hand(pieces: list[int], capacity: int, best: bool) -> int:
    """Best-fit or first-fit decreasing, one piece at a time."""
    rooms: list[int] = []
    for length in sorted(pieces, reverse=True):
        fitting = [n for n, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda n: rooms[n]) if best else fitting[0]] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


def pieces_of(documents: list[int], capacity: int) -> list[int]:
    return [min(capacity, length - at) for length in documents for at in range(0, length, capacity)]


@given(lengths(), st.integers(1, 16))
@settings(max_examples=300)
def test_nothing_is_lost_or_doubled_and_every_sequence_fits(documents: list[int], capacity: int) -> None:
    packing = pack(np.array(documents, dtype=np.int64), capacity)
    covered = np.zeros(sum(documents), dtype=np.int64)
    ends = []
    for n in range(packing.num_sequences):
        offsets, sizes, is_end = packing.sequence(n)
        assert 0 < sizes.sum() <= capacity
        for offset, size, end in zip(offsets, sizes, is_end, strict=True):
            covered[offset : offset + size] += 1
            ends += [offset + size] * bool(end)
    assert (covered == 1).all()
    assert sorted(ends) == np.cumsum(documents).tolist()
    assert packing.packed_tokens == sum(documents)
    assert packing.packed_tokens + packing.padding_tokens == packing.num_sequences * capacity


@given(lengths(), st.integers(2, 24))
@settings(max_examples=300)
def test_only_long_documents_are_cut_and_the_count_is_best_fit_decreasing(documents: list[int], capacity: int) -> None:
    packing = pack(np.array(documents, dtype=np.int64), capacity)
    pieces = pieces_of(documents, capacity)
    assert sorted(packing.piece_length.tolist()) == sorted(pieces)
    assert packing.num_sequences == bins_by_hand(pieces, capacity, best=True)


@given(st.lists(st.integers(10, 60), max_size=60))
@settings(max_examples=200)
def test_no_more_sequences_than_first_fit_decreasing(documents: list[int]) -> None:
    # Johnson 1974: with no piece under a sixth of the capacity best fit never needs more; smaller ones may differ.
    packing = pack(np.array(documents, dtype=np.int64), 60)
    assert packing.num_sequences <= bins_by_hand(documents, 60, best=False)


def test_a_realistic_corpus_is_packed_tightly_and_fast(tmp_path: Path) -> None:
    documents = np.maximum(1, np.random.default_rng(0).lognormal(6.3, 1.2, 100_000)).astype(np.int64)
    packing = pack(documents, 2000)
    assert packing.padding_tokens < 0.001 * packing.packed_tokens
    packing.save(tmp_path)
    again = load_packing(tmp_path)
    assert isinstance(again, Packing)
    assert again.sequence_tokens == 2000
    for name in ("sequence_start", "piece_offset", "piece_length", "piece_ends_document"):
        assert (getattr(again, name) == getattr(packing, name)).all()
        assert getattr(again, name).dtype == getattr(packing, name).dtype


def test_no_documents_make_no_sequences() -> None:
    assert pack(np.array([], dtype=np.int64), 100).num_sequences == 0
