import shutil
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, lcm
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.batches import NO_TARGET, Batches, BatchPlan, plan_batches, reading
from onward.batches.order import order_key, places_in_order
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.recipe import Training
from synthetic import write_corpus

LENGTH = 32
DOMAIN = [5, 70, 32, 3, 18, 40, 9, 9, 100, 2, 31]
GENERAL = [20, 64, 11, 7]


def opened(folder: Path, plan: BatchPlan) -> Batches:
    for name, lengths in (("domain", DOMAIN), ("general", GENERAL)):
        if not (folder / name).exists():
            write_corpus(folder / name, lengths, LENGTH, seed=len(lengths))
    return Batches(plan, [open_corpus(folder / name) for name in plan.corpora], padding_id=0)


def plan(replay: str = "1/4", sequences: int = 3, steps: int = 40) -> BatchPlan:
    share = Fraction(replay)
    return BatchPlan(LENGTH, sequences, (("general", share),) if share else (), seed=7, stage_steps=(steps,))


def test_steps_reach_the_budget_and_no_further() -> None:
    training = Training.model_validate({"stages": ["1M", "2.5M"], "batch_tokens": 100_000, "sequence_tokens": 2000})
    found = plan_batches(training, seed=0)
    assert (found.sequences_per_step, found.step_tokens, found.stage_steps) == (50, 100_000, (10, 25))


def test_every_token_of_an_epoch_comes_once_and_every_target_is_the_next_token(tmp_path: Path) -> None:
    whole = plan(replay="0", sequences=1, steps=200)
    batches = opened(tmp_path, whole)
    packing = open_corpus(tmp_path / "domain").packing
    epoch = [batches[step] for step in range(packing.num_sequences)]
    ids = np.concatenate([b.ids_BT[b.documents_BT >= 0] for b in epoch])
    stored = np.load(tmp_path / "domain" / "tokens-00000.npy")
    assert sorted(ids.tolist()) == sorted(stored.tolist())
    # Every token but the first of each document is a target exactly once, EOS included.
    labels = np.concatenate([b.labels_BT[b.labels_BT != NO_TARGET] for b in epoch])
    starts = np.cumsum([0, *DOMAIN[:-1]])
    assert sorted(labels.tolist()) == sorted(np.delete(stored, starts).tolist())
    assert (labels == 0).sum() == len(DOMAIN)


def test_no_target_crosses_a_border_and_positions_restart(tmp_path: Path) -> None:
    batches = opened(tmp_path, plan())
    for step in range(10):
        batch = batches[step]
        ends = (batch.ids_BT == 0) & (batch.documents_BT >= 0)
        assert (batch.labels_BT[ends] == NO_TARGET).all()
        assert (batch.labels_BT[batch.documents_BT < 0] == NO_TARGET).all()
        new = np.diff(batch.documents_BT, axis=1, prepend=-2) != 0
        assert (batch.positions_BT[new & (batch.documents_BT >= 0)] == 0).all()


@settings(max_examples=60, deadline=None)
@given(
    share=st.fractions(min_value=Fraction(1, 200), max_value=Fraction(1, 2)),
    sequences=st.integers(1, 7),
    first=st.integers(0, 300),
    window=st.integers(1, 60),
)
def test_the_replay_share_is_exact_in_every_window(share: Fraction, sequences: int, first: int, window: int) -> None:
    found = BatchPlan(LENGTH, sequences, (("general", share),), seed=0, stage_steps=(1000,))
    slots = window * sequences
    general = found.slots_of((first + window) * sequences)[1] - found.slots_of(first * sequences)[1]
    assert abs(general - share * slots) < 1


SHARES = st.lists(
    st.fractions(min_value=Fraction(1, 997), max_value=Fraction(1, 5), max_denominator=997), min_size=1, max_size=4
)


def mixed(
    *shares: Fraction, sequences: int = 3, steps: int = 1000, order: Literal["corpus", "blocks"] = "corpus"
) -> BatchPlan:
    replay = tuple((name, share) for name, share in zip("abcd", shares, strict=False))
    return BatchPlan(LENGTH, sequences, replay, seed=7, stage_steps=(steps,), order=order)


@settings(max_examples=150, deadline=None)
@given(shares=SHARES, first=st.integers(0, 10**12), slots=st.integers(0, 5000))
def test_every_window_holds_the_share_of_every_corpus(shares: list[Fraction], first: int, slots: int) -> None:
    """The total to less than one sequence; each corpus to one more for every corpus that is split off before it."""
    found = mixed(*shares)
    counts = np.subtract(found.slots_of(first + slots), found.slots_of(first)).tolist()
    assert sum(counts) == slots
    assert min(counts) >= 0
    assert slots - counts[0] == (first + slots) * sum(shares) // 1 - first * sum(shares) // 1
    for level, (count, share) in enumerate(zip(counts, found.shares, strict=True)):
        assert abs(count - share * slots) < level + 1


@settings(max_examples=60, deadline=None)
@given(shares=SHARES, first=st.integers(0, 10**6))
def test_a_window_that_can_hold_the_shares_exactly_does(shares: list[Fraction], first: int) -> None:
    found = mixed(*shares)
    slots = lcm(*(share.denominator for share in found.shares))
    counts = np.subtract(found.slots_of(first + slots), found.slots_of(first)).tolist()
    assert counts == [share * slots for share in found.shares]


@settings(max_examples=60, deadline=None)
@given(shares=SHARES, first=st.integers(0, 10**12))
def test_every_slot_goes_to_one_corpus(shares: list[Fraction], first: int) -> None:
    found = mixed(*shares)
    for slot in range(first, first + 50):
        assert sorted(np.subtract(found.slots_of(slot + 1), found.slots_of(slot)).tolist()) == [*[0] * len(shares), 1]


def test_the_order_in_which_replayed_corpora_are_named_decides_nothing() -> None:
    shares = {"general": "5%", "self": "2%"}
    named = [dict(shares.items()), dict(reversed(shares.items()))]
    first, second = (plan_batches(Training.model_validate({"forgetting": {"replay": each}}), seed=3) for each in named)
    assert first == second


@pytest.mark.parametrize("slots", [100, 10**6, 10**30])
def test_shares_are_counted_in_integers_however_far_a_run_goes(slots: int) -> None:
    assert mixed(Fraction(29, 100), Fraction(1, 100)).slots_of(slots) == (
        slots * 70 // 100,
        slots * 29 // 100,
        slots // 100,
    )


@pytest.mark.parametrize("order", ["corpus", "blocks"])
def test_several_replayed_corpora_are_read_as_the_plan_counts_them(
    tmp_path: Path, order: Literal["corpus", "blocks"]
) -> None:
    found = mixed(Fraction(1, 10), Fraction(1, 5), Fraction(1, 30), sequences=5, steps=60, order=order)
    for seed, name in enumerate(found.corpora):
        write_corpus(tmp_path / name, DOMAIN * (seed + 1), LENGTH, seed=seed, block_documents=6)
    batches = Batches(found, [open_corpus(tmp_path / name) for name in found.corpora], padding_id=0)
    rows = [batches.sequences(step) for step in range(60)]
    assert Counter(name for step in rows for name, _ in step) == found.needed_sequences()
    assert found.needed_sequences() == {"domain": 200, "a": 30, "b": 60, "c": 10}
    for name in found.corpora:  # each in an order of its own: every sequence once before any comes again
        size = open_corpus(tmp_path / name).num_sequences
        read = [sequence for step in rows for corpus, sequence in step if corpus == name][:size]
        assert len(set(read)) == len(read)
    again = Batches(found, [open_corpus(tmp_path / name) for name in found.corpora], padding_id=0)
    for step in (59, 0, 31):  # resuming is an integer
        batch = again[step]
        assert again.sequences(step) == rows[step]
        assert batch.replayed_B.tolist() == [name != "domain" for name, _ in rows[step]]
        counted = Counter(name for name, _ in rows[step])
        assert again.count(step).replayed_sequences == tuple(counted[name] for name in "abc")


def test_the_replay_share_is_exact_to_the_token(tmp_path: Path) -> None:
    """All rows are as long, so that a window with the share of sequences has the share of tokens."""
    batches = opened(tmp_path, plan(replay="3/20", sequences=4, steps=40))
    for first in range(0, 30):
        window = [batches[step] for step in range(first, first + 5)]
        replayed = sum(batch.ids_BT[batch.replayed_B].size for batch in window)
        assert replayed * 20 == 3 * sum(batch.ids_BT.size for batch in window)


def test_a_control_reads_general_text_alone() -> None:
    content = {"stages": ["1M"], "batch_tokens": 100_000, "sequence_tokens": 2000, "text": "general"}
    found = plan_batches(Training.model_validate({**content, "forgetting": {"replay": None}}), seed=0)
    assert (found.corpora, found.shares) == (("general",), (1,))
    assert found.needed_sequences() == {"general": 500}


def test_the_rows_follow_the_interleaving_and_the_need_is_counted(tmp_path: Path) -> None:
    found = plan(replay="1/4", sequences=3, steps=40)
    batches = opened(tmp_path, found)
    rows = [row for step in range(40) for row in batches.sequences(step)]
    assert Counter(name for name, _ in rows) == found.needed_sequences() == {"domain": 90, "general": 30}
    assert [b.replayed_B.tolist() for b in (batches[0], batches[1])] == [[False, False, False], [True, False, False]]


def test_with_one_replayed_corpus_the_batches_are_those_of_every_version_before(tmp_path: Path) -> None:
    """Slot s is general where floor(s x share) grows; the keys count the corpora from 0: what old runs resume with."""
    found = plan(replay="3/10", sequences=3, steps=40)
    batches = opened(tmp_path, found)
    slots, sizes = iter(range(120)), [open_corpus(tmp_path / name).num_sequences for name in found.corpora]
    for step in range(40):
        for row, (name, sequence) in enumerate(batches.sequences(step)):
            slot = next(slots)
            before = slot * 3 // 10
            corpus = (slot + 1) * 3 // 10 - before
            epoch, nth = divmod(before if corpus else slot - before, sizes[corpus])
            place = places_in_order(np.array([nth]), sizes[corpus], order_key(7, corpus, epoch, 0))
            assert (found.corpora[corpus], place[0]) == (name, sequence), (step, row)


def test_each_epoch_takes_every_sequence_once_in_another_order(tmp_path: Path) -> None:
    batches = opened(tmp_path, plan(replay="0", sequences=1, steps=60))
    size = open_corpus(tmp_path / "domain").num_sequences
    order = [batches.sequences(step)[0][1] for step in range(3 * size)]
    epochs = [order[n * size : (n + 1) * size] for n in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_general_text_too_comes_once_before_any_of_it_comes_again(tmp_path: Path) -> None:
    batches = opened(tmp_path, plan(replay="1/4", sequences=3, steps=60))
    size = open_corpus(tmp_path / "general").num_sequences
    order = [sequence for step in range(60) for corpus, sequence in batches.sequences(step) if corpus == "general"]
    assert len(order) > 2 * size > 4
    assert sorted(order[:size]) == sorted(order[size : 2 * size]) == list(range(size))


@pytest.mark.parametrize("micro", [1, 2, 5])
def test_a_batch_depends_on_the_step_alone(tmp_path: Path, micro: int) -> None:
    forward = opened(tmp_path, plan(sequences=5))
    seen = [forward[step] for step in range(12)]
    again = opened(tmp_path, plan(sequences=5))
    for step in (11, 3, 7, 0):  # any order, any start
        batch = again[step]
        parts = [batch.rows(start, start + micro) for start in range(0, 5, micro)]
        for name in ("ids_BT", "labels_BT", "documents_BT", "positions_BT", "replayed_B"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            assert np.array_equal(joined, getattr(seen[step], name))


def test_a_step_past_the_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        opened(tmp_path, plan(steps=4))[4]


def test_in_block_order_every_epoch_takes_each_block_once_and_shuffles_it_anew(tmp_path: Path) -> None:
    corpus = open_corpus(write_corpus(tmp_path / "blocks", DOMAIN * 3, LENGTH, block_documents=8))
    by_blocks = BatchPlan(LENGTH, 1, (), seed=7, stage_steps=(500,), order="blocks")
    batches = Batches(by_blocks, [corpus], padding_id=0)
    size = corpus.num_sequences
    epochs = [[batches.sequences(step)[0][1] for step in range(n * size, (n + 1) * size)] for n in range(3)]
    borders = [0]
    while borders[-1] < size:
        borders.append(borders[-1] + corpus.place(borders[-1]).size)
    assert len(borders) == 6
    for epoch in epochs:
        for first, end in pairwise(borders):
            assert sorted(epoch[first:end]) == list(range(first, end))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_a_corpus_in_the_making_gives_the_same_batches(tmp_path: Path) -> None:
    """Blocks appear one by one, each only when a batch waits for it; at the end the folder is renamed into place."""
    whole = write_corpus(tmp_path / "whole", DOMAIN * 3, LENGTH, block_documents=8)
    aside = tmp_path / ".grown.building"
    (aside / "state").mkdir(parents=True)
    waiting = 0

    def grow() -> None:
        nonlocal waiting
        number, waiting = waiting, waiting + 1
        if number < 5:
            for name in (f"tokens-{number:05d}.npy", f"packing-{number:05d}.npz"):
                shutil.copy(whole / name, aside / name)
            (aside / f"state/block-{number:05d}.json").write_text("{}")
        else:
            shutil.copytree(whole, aside, dirs_exist_ok=True)
            aside.rename(tmp_path / "grown")

    by_blocks = BatchPlan(LENGTH, 2, (), seed=7, stage_steps=(500,), order="blocks")
    growing = Batches(by_blocks, [open_corpus(tmp_path / "grown", grow)], padding_id=0)
    finished = Batches(by_blocks, [open_corpus(whole)], padding_id=0)
    seen = []
    for step in range(60):
        found, expected = growing[step], finished[step]
        assert (found.ids_BT == expected.ids_BT).all()
        assert (found.labels_BT == expected.labels_BT).all()
        assert growing.count(step) == finished.count(step)
        seen.append(waiting)
    assert seen[0] == 1, "the first batch needs the first block alone"
    assert seen[-1] == 6
    assert sorted(set(seen)) == [1, 2, 3, 4, 5, 6]


def test_a_corpus_that_proves_too_short_is_refused_when_its_cap_is_reached(tmp_path: Path) -> None:
    corpus = open_corpus(write_corpus(tmp_path / "short", DOMAIN, LENGTH))
    capped = BatchPlan(LENGTH, 1, (), 7, (500,), "blocks", maximum_repetition=1.5)
    batches = Batches(capped, [corpus], padding_id=0)
    allowed = ceil(1.5 * corpus.num_sequences)
    assert batches[allowed - 1]
    with pytest.raises(UserError, match="too short"):
        batches[allowed]


def test_the_cap_may_be_reached_in_the_middle_of_a_step(tmp_path: Path) -> None:
    corpus = open_corpus(write_corpus(tmp_path / "short", DOMAIN, LENGTH))
    step = corpus.num_sequences // 2 + 1  # in the second pass; its second row is one too many
    cap = (2 * step + 0.5) / corpus.num_sequences
    batches = Batches(BatchPlan(LENGTH, 2, (), 7, (500,), "blocks", maximum_repetition=cap), [corpus], 0)
    assert batches.read(step, 0, 1)
    with pytest.raises(UserError, match="too short"):
        batches.count(step)


@pytest.mark.parametrize("size", [1, 2, 3, 11, 64, 1000])
def test_an_order_is_a_permutation_of_any_size(size: int) -> None:
    found = places_in_order(np.arange(size), size, order_key(7, 0, 0))
    assert sorted(found.tolist()) == list(range(size))


def test_an_order_is_the_same_in_every_release() -> None:
    """A run that is gone on with after an update must meet the batches that it had not yet seen."""
    assert places_in_order(np.arange(11), 11, order_key(7, 0, 1)).tolist() == [4, 1, 9, 5, 2, 10, 8, 7, 3, 0, 6]
    assert places_in_order(np.arange(3), 10**12, order_key(7, 0, 1)).tolist() == [
        254843993998,
        674440835639,
        131397284389,
    ]


def test_any_place_of_an_order_is_found_without_the_others() -> None:
    key = order_key(7, 1, 2)
    whole = places_in_order(np.arange(1000), 1000, key)
    assert [places_in_order(np.array([n]), 1000, key)[0] for n in range(0, 1000, 37)] == whole[::37].tolist()


def test_orders_of_other_keys_are_shuffled_evenly_and_independently() -> None:
    """Chi-squared over the cells of a table: what stands where, beside what, and where it goes in the next epoch."""
    size, orders = 6, 4000
    found, following = (
        np.array([places_in_order(np.arange(size), size, order_key(seed, 0, epoch)) for seed in range(orders)])
        for epoch in (0, 1)
    )
    everywhere = np.tile(np.arange(size), orders)
    for name, first, second, cells in (
        ("item at a place", everywhere, found.ravel(), size**2),
        ("item at the first place in two epochs", found[:, 0], following[:, 0], size**2),
        ("item after an item", found[:, :-1].ravel(), found[:, 1:].ravel(), size * (size - 1)),
    ):
        seen = np.zeros((size, size))
        np.add.at(seen, (first, second), 1)
        expected = len(first) / cells
        chi_squared = ((seen[seen > 0] - expected) ** 2 / expected).sum()
        assert (seen > 0).sum() == cells, name
        assert chi_squared < cells + 5 * np.sqrt(2 * cells), name


@pytest.mark.parametrize("replay", ["0", "1/4"])
@pytest.mark.parametrize("order", ["corpus", "blocks"])
def test_some_rows_of_a_step_are_those_of_the_whole_step(tmp_path: Path, replay: str, order: str) -> None:
    batches = opened(tmp_path, replace(plan(replay, sequences=7), order=order))
    for step in (0, 5, 39):
        whole = batches[step]
        for start, stop in ((0, 7), (2, 5), (6, 7), (3, 3)):
            some = batches.read(step, start, stop)
            for name in ("ids_BT", "labels_BT", "documents_BT", "positions_BT", "replayed_B"):
                assert np.array_equal(getattr(some, name), getattr(whole, name)[start:stop]), name


def test_a_rank_reads_the_tokens_of_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = opened(tmp_path, plan(sequences=5))
    read: list[int] = []

    def note(tokens: object, first_token: int, packing: object, sequences: list[int], *rest: object) -> None:
        read.append(len(sequences))

    monkeypatch.setattr(reading, "fill_rows", note)
    batches.read(3, 1, 3)
    assert sum(read) == 2


@pytest.mark.parametrize("replay", ["0", "1/4"])
def test_a_step_is_counted_from_the_index_as_it_is_in_the_arrays(tmp_path: Path, replay: str) -> None:
    batches = opened(tmp_path, plan(replay, sequences=4))
    for step in range(12):
        batch = batches[step]
        inside = batch.documents_BT >= 0
        assert batches.labelled_tokens(step) == batch.labelled_tokens
        assert batches.tokens(step) == inside.sum()
        assert batches.causal_pairs(step) == (batch.positions_BT[inside] + 1).sum()
        assert sum(batches.count(step).replayed_sequences) == batch.replayed_B.sum()


@pytest.mark.parametrize("kind", ["uint16", "uint32"])
def test_rows_are_what_a_plain_loop_over_the_pieces_gives(tmp_path: Path, kind: str) -> None:
    folder = write_corpus(tmp_path / "corpus", DOMAIN * 3, LENGTH, block_documents=8)
    for path in folder.glob("tokens-*.npy"):
        np.save(path, np.load(path).astype(kind) + (0 if kind == "uint16" else 2**20))
    corpus = open_corpus(folder)
    batches = Batches(plan("0", sequences=2, steps=30), [corpus], padding_id=5)
    for step in range(30):
        batch = batches[step]
        for row, (_, sequence) in enumerate(batches.sequences(step)):
            offsets, lengths, ends = corpus.sequence(sequence)
            ids, labels, positions, documents = [], [], [], []
            for piece, (offset, length, is_end) in enumerate(zip(offsets, lengths, ends, strict=True)):
                tokens = corpus.read(int(offset), int(length) + (not is_end)).astype(int).tolist()
                ids += tokens[:length]
                labels += [*tokens[1:], NO_TARGET] if is_end else tokens[1:]
                positions += range(length)
                documents += [piece] * length
            room = LENGTH - len(ids)
            assert batch.ids_BT[row].tolist() == ids + [5] * room
            assert batch.labels_BT[row].tolist() == labels + [NO_TARGET] * room
            assert batch.positions_BT[row].tolist() == positions + [0] * room
            assert batch.documents_BT[row].tolist() == documents + [-1] * room


def test_text_that_is_not_there_yet_is_asked_for_without_waiting(tmp_path: Path) -> None:
    whole = write_corpus(tmp_path / "whole", DOMAIN * 3, LENGTH, block_documents=8)
    aside = tmp_path / ".grown.building"
    (aside / "state").mkdir(parents=True)
    asked = 0

    def bring(number: int) -> None:
        for name in (f"tokens-{number:05d}.npy", f"packing-{number:05d}.npz"):
            shutil.copy(whole / name, aside / name)
        (aside / f"state/block-{number:05d}.json").write_text("{}")

    def ask() -> None:
        nonlocal asked
        asked += 1

    bring(0)
    by_blocks = BatchPlan(LENGTH, 1, (), seed=7, stage_steps=(500,), order="blocks")
    batches = Batches(by_blocks, [open_corpus(tmp_path / "grown", ask)], padding_id=0)
    there = next(step for step in range(500) if not batches.is_ready(step))
    assert asked == 1, "whether it is in vain is asked each time that it is not there"
    bring(1)
    assert batches.is_ready(there)
    assert batches[there]
    assert asked == 1
