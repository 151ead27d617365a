from typing import Any

import pytest

from onward.model.flops import causal_pairs, evaluation_flops, training_flops
from onward.model.shape import ModelShape, shape_of

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def shape(**changes: Any) -> ModelShape:
    found = shape_of(CONFIG | changes)
    assert found is not None
    return found


@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_pairs_are_those_that_a_mask_lets_through(window: int | None) -> None:
    lengths = [1, 7, 3, 20]
    allowed = [
        (query, key)
        for length in lengths
        for query in range(length)
        for key in range(query + 1)
        if window is None or query - key < window
    ]
    assert causal_pairs(lengths, window) == len(allowed)


def test_flops_are_those_that_torch_counts_without_the_masked_half() -> None:
    """torch counts every multiply-add of the matrix products; unmasked attention of one document has L^2 pairs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import LlamaConfig, LlamaForCausalLM

    length = 24
    settings = {key: value for key, value in CONFIG.items() if key != "model_type"}
    model = LlamaForCausalLM(LlamaConfig(**settings, attn_implementation="eager"))
    with FlopCounterMode(display=False) as counter:
        ids = torch.arange(length)[None]
        model(input_ids=ids, labels=ids).loss.backward()
    every_pair = training_flops(shape(), length, length * length)
    assert counter.get_total_flops() == pytest.approx(every_pair, rel=0.001)


def test_a_tied_head_counts_once_and_an_untied_one_costs_the_same() -> None:
    tied, untied = shape(tie_word_embeddings=True), shape()
    assert training_flops(tied, 100, 0) == training_flops(untied, 100, 0)
    assert tied.parameters < untied.parameters


def test_windows_clip_the_pairs_of_their_layers_only() -> None:
    sizes = {"model_type": "gemma3_text", "sliding_window": 8, "sliding_window_pattern": 2, "head_dim": 8}
    per_pair = 12 * 4 * 8
    without = training_flops(shape(**sizes), 1000, 0)
    assert training_flops(shape(**sizes), 1000, 500_500) - without == per_pair * (500_500 + 8 * 1000)


def test_a_forward_pass_is_a_third() -> None:
    assert 3 * evaluation_flops(shape(), 1000, 500_500) == training_flops(shape(), 1000, 500_500)
