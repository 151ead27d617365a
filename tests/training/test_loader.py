import shutil
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from math import ceil
from pathlib import Path

import pytest
import torch

from onward.batches import NO_TARGET, Batches, BatchPlan
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.training.launch import Place
from onward.training.loader import Loader, Step, micro_shape, rows_of_rank
from synthetic import write_corpus

LENGTH = 32
DOMAIN = [5, 70, 32, 3, 18, 40, 9, 9, 100, 2, 31]
CPU = torch.device("cpu")
PADDING = 300
"""An id that no document holds."""


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [t.name for t in threading.enumerate() if t.name == "onward-loader"] == []


def batches_of(folder: Path, sequences: int = 7, steps: int = 12, replay: str = "1/4") -> Batches:
    corpora = [write_corpus(folder / name, DOMAIN, LENGTH, seed) for seed, name in enumerate(("domain", "general"))]
    plan = BatchPlan(LENGTH, sequences, (("general", Fraction(replay)),), seed=7, stage_steps=(steps,))
    return Batches(plan, [open_corpus(corpus) for corpus in corpora], padding_id=PADDING)


def loader_of(batches: Batches, rank: int = 0, world: int = 1, micro_batch: int = 3, first_step: int = 0) -> Loader:
    return Loader(batches, Place(rank, world), micro_batch, first_step, CPU)


def texts(steps: list[Step]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Ids and labels of the rows with a target, sorted, of the micro-batches of some ranks of one step."""
    rows = []
    for step in steps:
        for micro in step.micro:
            ids_BT, labels_BT = micro.ids_N.view(-1, LENGTH), micro.labels_N.view(-1, LENGTH)
            pairs = zip(ids_BT.tolist(), labels_BT.tolist(), strict=True)
            rows += [(tuple(ids), tuple(labels)) for ids, labels in pairs if set(labels) != {NO_TARGET}]
    return sorted(rows)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_the_ranks_together_read_each_row_once_in_micro_batches_of_one_shape(
    tmp_path: Path, world: int, micro_batch: int
) -> None:
    batches = batches_of(tmp_path)
    readers = [opened(batches, rank, world, micro_batch) for rank in range(world)]
    for step, of_ranks in enumerate(zip(*readers, strict=True)):
        whole = batches[step]
        expected = zip(whole.ids_BT.tolist(), whole.labels_BT.tolist(), strict=True)
        assert texts(list(of_ranks)) == sorted((tuple(ids), tuple(labels)) for ids, labels in expected)
        shapes = {(len(found.micro), micro.ids_N.shape) for found in of_ranks for micro in found.micro}
        assert len(shapes) == 1
        (number, (positions,)) = shapes.pop()
        assert positions <= micro_batch * LENGTH
        assert number == ceil(ceil(7 / world) / micro_batch), "no more micro-batches than are needed"
    assert step == len(batches) - 1


def opened(batches: Batches, rank: int, world: int, micro_batch: int) -> list[Step]:
    with loader_of(batches, rank, world, micro_batch) as loader:
        return list(loader)


@pytest.mark.parametrize("apart", [True, False])
def test_replayed_rows_are_read_apart_where_they_are_asked_for(tmp_path: Path, apart: bool) -> None:
    batches = batches_of(tmp_path)
    with Loader(batches, Place(), 3, 0, CPU, replayed_apart=apart) as loader:
        steps = [loader.step(0), *(loader.step(number) for number in (5, 6))]
        loader.restart(1, micro_batch=2)
        steps.append(loader.step(1))
    for step in steps:
        found = [micro.replayed.rows.ids_N for micro in step.micro if micro.replayed is not None]
        rows = [tuple(ids) for each in found for ids in each.view(-1, LENGTH).tolist()]
        whole = batches[step.step]
        assert whole.replayed_B.any()
        assert rows == ([tuple(ids) for ids in whole.ids_BT[whole.replayed_B].tolist()] if apart else [])


def test_rows_that_fill_up_a_micro_batch_have_no_target(tmp_path: Path) -> None:
    with loader_of(batches_of(tmp_path, sequences=5), rank=0, world=2, micro_batch=3) as loader:
        micro = loader.step(0).micro  # 2 rows for this rank, 3 for the other
    assert len(micro) == 1
    last = slice(2 * LENGTH, 3 * LENGTH)
    assert (micro[0].labels_N[last] == NO_TARGET).all()
    assert (micro[0].ids_N[last] == PADDING).all()
    assert 2 * LENGTH in micro[0].bounds.tolist(), "it is a document of its own"


def test_every_rank_knows_the_counts_of_the_whole_step(tmp_path: Path) -> None:
    batches = batches_of(tmp_path)
    for rank in range(3):
        for found in opened(batches, rank, 3, 2):
            whole = batches[found.step]
            assert found.labelled_tokens == whole.labelled_tokens
            assert found.tokens == (whole.documents_BT >= 0).sum()
            assert found.causal_pairs == batches.causal_pairs(found.step)
            assert found.replay_sequences == whole.replayed_B.sum()


def test_the_digest_is_the_same_however_the_rows_are_shared_out(tmp_path: Path) -> None:
    batches = batches_of(tmp_path)
    alone = [found.digest for found in opened(batches, 0, 1, 3)]
    assert all(0 <= digest < 2**63 for digest in alone)
    assert len(set(alone)) == len(alone)
    for world, micro_batch in ((2, 1), (5, 3)):
        of_ranks = [opened(batches, rank, world, micro_batch) for rank in range(world)]
        assert [sum(f.digest for f in found) % 2**63 for found in zip(*of_ranks, strict=True)] == alone


@pytest.mark.parametrize("first_step", [0, 4, 11])
def test_reading_begins_at_any_step(tmp_path: Path, first_step: int) -> None:
    batches = batches_of(tmp_path)
    with loader_of(batches, first_step=first_step) as loader:
        found = list(loader)
    assert [step.step for step in found] == list(range(first_step, 12))
    assert found[0].labelled_tokens == batches.labelled_tokens(first_step)


def test_after_a_retreat_the_same_step_comes_again_in_smaller_micro_batches(tmp_path: Path) -> None:
    with loader_of(batches_of(tmp_path, sequences=8), micro_batch=4) as loader:
        loader.step(0)
        before = loader.step(1)
        loader.restart(1, micro_batch=2)
        again, following = loader.step(1), loader.step(2)
    assert (len(before.micro), len(again.micro), len(following.micro)) == (2, 4, 4)
    assert texts([before]) == texts([again])
    assert before.digest == again.digest


def test_a_step_out_of_turn_is_read_anew(tmp_path: Path) -> None:
    batches = batches_of(tmp_path)
    with loader_of(batches) as loader:
        assert [loader.step(n).step for n in (0, 1, 0, 7, 8)] == [0, 1, 0, 7, 8]
        with pytest.raises(IndexError):
            loader.step(12)


def test_no_more_than_depth_steps_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_of(tmp_path)
    begun, read = threading.Semaphore(0), []
    honest = batches.read

    def noted(step: int, start: int, stop: int) -> object:
        read.append(step)
        begun.release()
        return honest(step, start, stop)

    monkeypatch.setattr(batches, "read", noted)
    with Loader(batches, Place(), 3, 0, CPU, depth=2) as loader:
        for _ in range(3):
            assert begun.acquire(timeout=30)
        assert not begun.acquire(timeout=0.1)
        assert read == [0, 1, 2], "two are ready and one is waiting for room"
        loader.step(0)
        assert begun.acquire(timeout=30)
        assert read == [0, 1, 2, 3]


def test_what_the_thread_meets_surfaces_at_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_of(tmp_path)
    honest: Callable[..., object] = batches.read
    broken = True

    def failing(step: int, start: int, stop: int) -> object:
        if step == 2 and broken:
            raise OSError("the disk is gone")
        return honest(step, start, stop)

    monkeypatch.setattr(batches, "read", failing)
    with loader_of(batches) as loader:
        assert [loader.step(n).step for n in (0, 1)] == [0, 1]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                loader.step(2)
        assert loader.step(3).step == 3
        broken = False
        assert [loader.step(n).step for n in (2, 3)] == [2, 3]


def growing(folder: Path, ask: Callable[[], None]) -> tuple[Batches, Callable[[int], None]]:
    """Batches over a corpus of which no block but the first is there, and what brings another."""
    whole = write_corpus(folder / "whole", DOMAIN * 3, LENGTH, block_documents=8)
    aside = folder / ".grown.building"
    (aside / "state").mkdir(parents=True)

    def bring(number: int) -> None:
        for name in (f"tokens-{number:05d}.npy", f"packing-{number:05d}.npz"):
            shutil.copy(whole / name, aside / name)
        (aside / f"state/block-{number:05d}.json").write_text("{}")

    bring(0)
    plan = BatchPlan(LENGTH, 2, (), seed=7, stage_steps=(500,), order="blocks")
    return Batches(plan, [open_corpus(folder / "grown", ask)], padding_id=0), bring


def test_text_that_is_being_prepared_is_waited_for(tmp_path: Path) -> None:
    waiting = threading.Event()
    batches, bring = growing(tmp_path, waiting.set)
    with Loader(batches, Place(), 3, 0, CPU, depth=500) as loader:
        assert waiting.wait(30)
        bring(1)
        there = next(step for step in range(500) if not batches.is_ready(step))
        assert [loader.step(n).step for n in range(there)] == list(range(there))


def test_a_loader_closes_while_text_is_waited_for(tmp_path: Path) -> None:
    waiting = threading.Event()
    batches, _ = growing(tmp_path, waiting.set)
    with Loader(batches, Place(), 3, 0, CPU, depth=500):
        assert waiting.wait(30)


def test_text_that_will_never_come_is_an_error_at_its_step(tmp_path: Path) -> None:
    def fail() -> None:
        raise UserError("the process that prepares the text ended")

    batches, _ = growing(tmp_path, fail)
    number = 0
    with loader_of(batches) as loader, pytest.raises(UserError, match="prepares the text ended"):
        for number in range(500):
            loader.step(number)
    assert 0 < number < 500


def test_the_caller_may_give_up_waiting(tmp_path: Path) -> None:
    class Enough(Exception):
        pass

    def give_up() -> None:
        raise Enough

    batches, bring = growing(tmp_path, lambda: None)
    number = 0
    with loader_of(batches) as loader:
        with pytest.raises(Enough):
            for number in range(500):
                loader.step(number, while_waiting=give_up)
        bring(1)
        assert loader.step(number).step == number


@pytest.mark.parametrize(("sequences", "world"), [(7, 1), (7, 3), (64, 6), (2, 3)])
def test_shares_of_the_ranks_are_neighbours_and_differ_by_one_at_most(sequences: int, world: int) -> None:
    shares = [rows_of_rank(sequences, rank, world) for rank in range(world)]
    assert [row for share in shares for row in share] == list(range(sequences))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for micro_batch in (1, 2, 5, 64):
        number, rows = micro_shape(sequences, world, micro_batch)
        assert rows <= micro_batch
        assert number * rows >= max(map(len, shares))
        assert (number - 1) * micro_batch < max(map(len, shares))
        assert number * (rows - 1) < max(map(len, shares)), "as few rows of padding as can be"


def test_a_loader_closes_in_the_middle_of_a_long_run(tmp_path: Path) -> None:
    with loader_of(batches_of(tmp_path, steps=10**9), first_step=10**6) as loader:
        assert loader.step(10**6).step == 10**6


def test_micro_batches_hold_their_own_memory(tmp_path: Path) -> None:
    """What has been handed out must not change when the thread reads on."""
    with loader_of(batches_of(tmp_path)) as loader:
        first = loader.step(0)
        before = [micro.ids_N.tolist() for micro in first.micro]
        for number in range(1, 12):
            loader.step(number)
    assert all(ids == micro.ids_N.tolist() for ids, micro in zip(before, first.micro, strict=True))
