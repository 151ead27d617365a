from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET, Batch, Batches, BatchPlan
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.model.load import load_model
from onward.model.tokenizer import read_tokenizer
from onward.training.checks import check_start
from onward.training.network import Network
from synthetic import llama_config, write_corpus, write_model

LENGTH = 48


def first_batch(folder: Path, sequences: int = 4) -> Batch:
    corpus = folder / "corpus"
    if not corpus.exists():
        write_corpus(corpus, [5, 70, 32, 3, 18, 40, 9, 9, 100, 2, 31, 47], LENGTH)
    plan = BatchPlan(LENGTH, sequences, Fraction(0), seed=1, stage_steps=(10,))
    return Batches(plan, [open_corpus(corpus)], padding_id=0)[0]


def architectures() -> list[Any]:
    from transformers import Gemma3TextConfig, GPTNeoXConfig, Qwen3Config

    small: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0}
    return [
        pytest.param(llama_config(), id="llama-tied"),
        pytest.param(llama_config(tie_word_embeddings=False), id="llama-untied"),
        pytest.param(Qwen3Config(**small, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True), id="qwen3"),
        pytest.param(GPTNeoXConfig(**small), id="gpt-neox"),
        pytest.param(
            Gemma3TextConfig(**small, num_key_value_heads=1, head_dim=8, sliding_window=8, pad_token_id=0), id="gemma3"
        ),
    ]


@pytest.mark.parametrize("config", architectures())
def test_packed_loss_is_the_models_own_loss_on_each_document_alone(tmp_path: Path, config: Any) -> None:
    folder = write_model(tmp_path / "model", config)
    batch = first_batch(tmp_path)
    network = Network(load_model(folder), torch.float32, loss_chunk_tokens=16, checkpointing=False)
    found = check_start(network, batch, read_tokenizer(folder), torch.float32)
    assert found.packed_loss_nats == pytest.approx(found.base_loss_nats, rel=1e-5)
    assert found.isolation_difference < 1e-6
    assert found.documents_ended > 0


@pytest.mark.parametrize("micro", [1, 3, 4])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_do_not_depend_on_the_cut_into_micro_batches(tmp_path: Path, micro: int, checkpointing: bool) -> None:
    folder = write_model(tmp_path / "model")
    batch = first_batch(tmp_path)

    def gradients(rows: int, recompute: bool) -> dict[str, torch.Tensor]:
        network = Network(load_model(folder), torch.float32, 16, recompute)
        for start in range(0, 4, rows):
            (network.summed_loss(batch.rows(start, start + rows)) / batch.labelled_tokens).backward()
        return {name: p.grad for name, p in network.model.named_parameters() if p.grad is not None}

    whole, cut = gradients(4, False), gradients(micro, checkpointing)
    assert whole.keys() == cut.keys()
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-4, atol=1e-7)


def test_the_whole_batchs_gradient_is_that_of_the_mean_over_its_labelled_tokens(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    batch = first_batch(tmp_path, sequences=2)
    network = Network(load_model(folder), torch.float32, 16, False)
    (network.summed_loss(batch) / batch.labelled_tokens).backward()
    plain = load_model(folder)
    losses = []
    for row in range(2):
        for piece in range(batch.documents_BT[row].max() + 1):
            inside = batch.documents_BT[row] == piece
            logits = plain(input_ids=torch.from_numpy(batch.ids_BT[row][inside])[None]).logits[0]
            labels = torch.from_numpy(batch.labels_BT[row][inside])
            losses.append(
                F.cross_entropy(logits, labels, ignore_index=NO_TARGET, reduction="none")[labels != NO_TARGET]
            )
    torch.cat(losses).mean().backward()
    for (name, a), (_, b) in zip(network.model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


def test_the_start_check_notices_documents_that_see_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "model")
    batch = first_batch(tmp_path)
    network = Network(load_model(folder), torch.float32, 16, False)
    hidden = network.hidden

    def leaking(b: Batch) -> torch.Tensor:
        together = np.where(b.documents_BT >= 0, 0, -1)
        return hidden(Batch(b.ids_BT, b.labels_BT, together, b.positions_BT, b.general_B))

    monkeypatch.setattr(network, "hidden", leaking)
    with pytest.raises(UserError, match=r"not the base model's|see each other"):
        check_start(network, batch, read_tokenizer(folder), torch.float32)


def test_the_start_check_notices_a_leak_from_one_row_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model(tmp_path / "model")
    # Every document fills its row, so only the border between the rows can leak.
    corpus = write_corpus(tmp_path / "long", [LENGTH * 4], LENGTH)
    plan = BatchPlan(LENGTH, 2, Fraction(0), seed=1, stage_steps=(1,))
    batch = Batches(plan, [open_corpus(corpus)], padding_id=0)[0]
    network = Network(load_model(folder), torch.float32, 16, False)
    tokenizer = read_tokenizer(folder)
    assert check_start(network, batch, tokenizer, torch.float32).isolation_difference == 0
    alone = batch.rows(0, 1)
    assert check_start(network, alone, tokenizer, torch.float32).isolation_difference is None
    hidden = network.hidden

    def mixing(b: Batch) -> torch.Tensor:
        states = hidden(b)
        return states + 0.1 * torch.roll(states, LENGTH, dims=0)

    monkeypatch.setattr(network, "hidden", mixing)
    monkeypatch.setattr("onward.training.checks._loss_of_documents", lambda *_: _mean_loss(network, batch))
    with pytest.raises(UserError, match="see each other"):
        check_start(network, batch, tokenizer, torch.float32)


def _mean_loss(network: Network, batch: Batch) -> float:
    return float(network.summed_loss(batch)) / batch.labelled_tokens


def test_the_start_check_notices_a_missing_end_of_text(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    batch = first_batch(tmp_path)
    without = Batch(
        np.maximum(batch.ids_BT, 1), batch.labels_BT, batch.documents_BT, batch.positions_BT, batch.general_B
    )
    network = Network(load_model(folder), torch.float32, 16, False)
    with pytest.raises(UserError, match="without the end-of-text token"):
        check_start(network, without, read_tokenizer(folder), torch.float32)


def test_a_head_that_changes_its_logits_is_refused(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=30.0, pad_token_id=0,
    )  # fmt: skip
    folder = write_model(tmp_path / "model", config)
    with pytest.raises(UserError, match="final_logit_softcapping"):
        Network(load_model(folder), torch.float32, 16, False)
