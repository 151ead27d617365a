"""Which parameters are decayed, at which rate each learns, and how the second moment forgets."""

from typing import Any

import pytest
import torch

from onward.recipe import Optimizer
from onward.training.optimizer import build_optimizer, second_moment_decay, set_rate
from synthetic import llama_config


def settings(**changes: Any) -> Optimizer:
    return Optimizer.model_validate({"learning_rate": 1e-3} | changes)


def model_of(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config)


def group_of(model: Any, optimizer: torch.optim.AdamW) -> dict[str, dict[str, Any]]:
    """Each parameter's group by its name; every parameter is in exactly one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_matrices_are_decayed_and_norms_and_biases_are_not() -> None:
    from transformers import GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = model_of(config)
    groups = group_of(model, build_optimizer(model, settings(weight_decay=0.3), 1000))
    decayed = {name: group["weight_decay"] for name, group in groups.items()}
    assert decayed.pop("gpt_neox.layers.0.attention.query_key_value.bias") == 0
    assert decayed.pop("gpt_neox.final_layer_norm.weight") == 0
    assert decayed.pop("gpt_neox.embed_in.weight") == 0.3
    assert decayed.pop("gpt_neox.layers.0.mlp.dense_4h_to_h.weight") == 0.3
    shapes = dict(model.named_parameters())
    assert decayed
    assert all(decay == (0.3 if shapes[name].ndim > 1 else 0) for name, decay in decayed.items())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_input_and_output_embeddings_learn_at_their_own_rate(tied: bool) -> None:
    model = model_of(llama_config(tie_word_embeddings=tied))
    optimizer = build_optimizer(model, settings(embedding_learning_rate=2e-4), 1000)
    groups = group_of(model, optimizer)
    apart = {name for name, group in groups.items() if group["rate_ratio"] == pytest.approx(0.2)}
    assert apart == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert {group["rate_ratio"] for name, group in groups.items() if name not in apart} == {1.0}
    set_rate(optimizer, 5e-4)
    for name, group in groups.items():
        assert group["lr"] == pytest.approx(1e-4 if name in apart else 5e-4)


def test_without_a_rate_of_their_own_embeddings_learn_like_the_rest() -> None:
    model = model_of(llama_config())
    optimizer = build_optimizer(model, settings(), 1000)
    set_rate(optimizer, 7e-4)
    assert {group["lr"] for group in optimizer.param_groups} == {7e-4}
    assert len(optimizer.param_groups) == 2


def test_frozen_parameters_are_left_out() -> None:
    model = model_of(llama_config())
    model.model.norm.weight.requires_grad_(False)
    optimizer = build_optimizer(model, settings(), 1000)
    assert not any(p is model.model.norm.weight for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("step_tokens", [1000, 128_000, 10_000_000])
def test_the_second_moment_halves_in_so_many_tokens_whatever_the_batch(step_tokens: int) -> None:
    half_life = settings(second_moment_half_life="10M")
    steps = 10_000_000 / step_tokens
    assert second_moment_decay(half_life, step_tokens) ** steps == pytest.approx(0.5)
    assert second_moment_decay(settings(betas=(0.8, 0.97)), step_tokens) == 0.97


def test_the_recipes_settings_reach_adamw() -> None:
    model = model_of(llama_config())
    asked = settings(betas=(0.8, 0.9), second_moment_half_life=5000, epsilon=1e-6)
    for group in build_optimizer(model, asked, 1000).param_groups:
        assert group["betas"] == (0.8, pytest.approx(0.5**0.2))
        assert group["eps"] == 1e-6
        assert group["fused"] is True
        assert group["amsgrad"] is group["maximize"] is False


def test_both_moments_are_there_before_the_first_step_and_survive_it() -> None:
    model = model_of(llama_config())
    optimizer = build_optimizer(model, settings(), 1000)
    states = {name: optimizer.state[parameter] for name, parameter in model.named_parameters()}
    before = {}
    for name, parameter in model.named_parameters():
        state = states[name]
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
        assert state["step"] == 0
        for moment in ("exp_avg", "exp_avg_sq"):
            assert state[moment].shape == parameter.shape
            assert state[moment].dtype == torch.float32
            assert not state[moment].any()
        before[name] = state["exp_avg"]
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert optimizer.state[parameter]["exp_avg"] is before[name]
        assert before[name].flatten()[0].item() == pytest.approx(0.1)
        assert optimizer.state[parameter]["step"] == 1
