"""The checks before the first update pass on what is right and name what is wrong."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from onward.batches import Batch, Batches, BatchPlan
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.model.load import load_model
from onward.model.source import describe
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.recipe import Optimizer
from onward.training.checks import StartChecks, check_start, loss_of_documents
from onward.training.launch import Place
from onward.training.learner import Learner
from onward.training.network import Rows
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from synthetic import llama_config, write_corpus, write_model

LENGTH = 48
LENGTHS = [5, 11, 20, 7, 13, 16, 9, 8, 100, 12, 15, 17, 6, 21]
ALONE = Ranks(Place(), torch.device("cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Weights that are large enough for attention to move the loss.
    return write_model(tmp_path_factory.mktemp("model") / "model", llama_config(initializer_range=0.2))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> LoadedTokenizer:
    return read_tokenizer(folder)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Rows of whole and cut documents and padding; the first row holds several."""
    found = first_batch(tmp_path_factory.mktemp("corpus"), LENGTHS, 4).rows(1, 4)
    assert found.documents_BT[0].max() > 0
    return found


def first_batch(folder: Path, lengths: list[int], sequences: int) -> Batch:
    corpus = write_corpus(folder / "corpus", lengths, LENGTH)
    plan = BatchPlan(LENGTH, sequences, (), seed=1, stage_steps=(1,))
    return Batches(plan, [open_corpus(corpus)], padding_id=0)[0]


def prepared(folder: Path, precision: torch.dtype = torch.float32) -> Learner:
    return Learner(describe(folder), Optimizer.model_validate({}), Strategy(loss_chunk=16), precision, 1000, ALONE)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_right_start_passes_and_gives_its_figures(
    folder: Path, tokenizer: LoadedTokenizer, batch: Batch, precision: torch.dtype
) -> None:
    base_loss_nats = loss_of_documents(load_model(folder), batch)
    found = check_start(prepared(folder, precision), base_loss_nats, batch, tokenizer, precision)
    assert found.base_loss_nats == base_loss_nats
    assert found.packed_loss_nats == pytest.approx(base_loss_nats, rel=1e-5 if precision == torch.float32 else 1e-2)
    assert found.isolation_difference == 0
    assert found.documents_ended == (batch.labels_BT == 0).sum() > 0
    assert found.labelled_tokens == batch.labelled_tokens


def check(learner: Learner, batch: Batch, tokenizer: LoadedTokenizer, base_loss_nats: float) -> StartChecks:
    return check_start(learner, base_loss_nats, batch, tokenizer, torch.float32)


def packed_loss(learner: Learner, batch: Batch) -> float:
    return float(learner.evaluate(Rows.of(batch))) / batch.labelled_tokens


def test_documents_that_see_each_other_are_noticed(
    folder: Path, tokenizer: LoadedTokenizer, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = prepared(folder)
    base_loss_nats = packed_loss(learner, batch)
    hidden = learner.network.hidden

    def leaking(rows: Rows) -> torch.Tensor:
        row_starts = torch.arange(0, len(rows.ids_N) + 1, LENGTH, dtype=torch.int32)
        return hidden(replace(rows, bounds=row_starts))

    monkeypatch.setattr(learner.network, "hidden", leaking)
    with pytest.raises(UserError, match="not the base model's"):
        check(learner, batch, tokenizer, base_loss_nats)
    # Even where the loss happens to be the same.
    with pytest.raises(UserError, match="see each other"):
        check(learner, batch, tokenizer, packed_loss(learner, batch))


def test_a_leak_from_one_row_into_the_next_is_noticed(
    folder: Path, tokenizer: LoadedTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every document fills its row, so only the border between the rows can leak.
    batch = first_batch(tmp_path, [LENGTH * 4], 2)
    learner = prepared(folder)
    assert check(learner, batch, tokenizer, packed_loss(learner, batch)).isolation_difference == 0
    hidden = learner.network.hidden

    def mixing(rows: Rows) -> torch.Tensor:
        states = hidden(rows)
        return states + 0.1 * torch.roll(states, LENGTH, dims=0)

    monkeypatch.setattr(learner.network, "hidden", mixing)
    with pytest.raises(UserError, match="see each other"):
        check(learner, batch, tokenizer, packed_loss(learner, batch))


def test_a_document_without_others_has_none_to_be_isolated_from(
    folder: Path, tokenizer: LoadedTokenizer, tmp_path: Path
) -> None:
    batch = first_batch(tmp_path, [LENGTH * 4], 1)
    learner = prepared(folder)
    assert check(learner, batch, tokenizer, packed_loss(learner, batch)).isolation_difference is None


@pytest.mark.parametrize("loss", [float("nan"), 1.001, 0.999])
def test_another_loss_than_the_base_models_is_noticed(
    folder: Path, tokenizer: LoadedTokenizer, batch: Batch, loss: float
) -> None:
    learner = prepared(folder)
    with pytest.raises(UserError, match="not the base model's"):
        check(learner, batch, tokenizer, loss * packed_loss(learner, batch))


def test_a_missing_end_of_text_is_noticed(folder: Path, tokenizer: LoadedTokenizer, batch: Batch) -> None:
    without = replace(batch, ids_BT=np.maximum(batch.ids_BT, 1))
    with pytest.raises(UserError, match="without the end-of-text token"):
        check(prepared(folder), without, tokenizer, 5.5)


def test_a_beginning_of_text_inside_a_document_is_noticed(
    folder: Path, tokenizer: LoadedTokenizer, batch: Batch
) -> None:
    ids_BT = batch.ids_BT.copy()
    ids_BT[(batch.positions_BT > 0) & (ids_BT == 7)] = 8
    learner, with_bos = prepared(folder), replace(tokenizer, bos_id=7)
    clean = replace(batch, ids_BT=ids_BT)
    assert check(learner, clean, with_bos, packed_loss(learner, clean))
    row, position = np.argwhere((batch.positions_BT > 0) & (batch.labels_BT > 0))[0]
    ids_BT[row, position] = 7
    with pytest.raises(UserError, match="beginning-of-text token stands inside"):
        check(learner, replace(batch, ids_BT=ids_BT), with_bos, 5.5)
