"""Remedies under two ranks that share a model do what they do in one process. Over gloo on this machine."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from ranks_remedies import PRECISIONS, REMEDIES, STRATEGIES, Trained, trained
from safetensors.torch import load_file
from test_parallel import torchrun

from onward.model.load import load_model
from onward.training.launch import Place
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from synthetic import llama_config, write_model

FROZEN = {
    "blocks-frozen": ("model.embed_tokens.", "model.layers.0.", "model.layers.1."),
    "lora-kl-frozen": ("model.embed_tokens.", "model.norm.", "model.layers.0.", "model.layers.1.input_layernorm."),
    "all-without-lora": ("model.embed_tokens.", "model.layers.0."),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("remedies") / "model", llama_config(num_hidden_layers=3))


@cache
def alone(model: Path, remedy: str, precision: str = "fp32") -> Trained:
    """One process without any sharing."""
    strategy = Strategy(micro_batch=8, loss_chunk=1000)
    return trained(model, remedy, strategy, Ranks(Place(), torch.device("cpu")), precision)


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks have found and exported under every strategy."""
    out = tmp_path_factory.mktemp("ranks")
    torchrun("ranks_remedies.py", model, out)
    return out


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_do_what_one_process_does(strategy: str, remedy: str, model: Path, shared: Path) -> None:
    expected = alone(model, remedy)
    figures = json.loads((shared / "figures.json").read_text())[f"{strategy}-{remedy}-fp32"]
    for (loss, divergence), (loss_alone, divergence_alone) in zip(figures, expected.figures, strict=True):
        assert loss == pytest.approx(loss_alone, rel=0, abs=1e-5)
        assert divergence == (None if divergence_alone is None else pytest.approx(divergence_alone, rel=0, abs=1e-5))
    weights = load_file(shared / f"{strategy}-{remedy}-fp32.safetensors")
    assert weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_in_bf16_stay_by_one_process(strategy: str, remedy: str, model: Path, shared: Path) -> None:
    expected = alone(model, remedy, "bf16").figures
    figures = json.loads((shared / "figures.json").read_text())[f"{strategy}-{remedy}-bf16"]
    for (loss, divergence), (loss_alone, divergence_alone) in zip(figures, expected, strict=True):
        assert loss == pytest.approx(loss_alone, rel=0, abs=2e-3)
        assert divergence == (None if divergence_alone is None else pytest.approx(divergence_alone, rel=0, abs=2e-4))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("remedy", FROZEN)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_frozen_is_exported_as_it_was_to_the_bit(
    strategy: str, remedy: str, precision: str, model: Path, shared: Path
) -> None:
    weights = load_file(shared / f"{strategy}-{remedy}-{precision}.safetensors")
    kept = 0
    for name, tensor in load_model(model).named_parameters():
        is_frozen = name.startswith(FROZEN[remedy])
        kept += is_frozen
        assert torch.equal(weights[name], tensor) == (is_frozen or (remedy.startswith("lora") and "norm" in name)), name
    assert kept


def test_steps_replay_on_both_ranks_on_one_and_on_none(model: Path) -> None:
    divergences = [divergence for _, divergence in alone(model, "kl").figures]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[2] is None
    assert all(divergence is None or divergence >= 0 for divergence in divergences)
    assert max(divergence for divergence in divergences if divergence is not None) > 1e-3
