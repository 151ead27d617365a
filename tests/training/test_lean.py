"""Norms and MLPs that keep less give the same outputs and gradients, and leave alone what they do not compute."""

from typing import Any

import pytest
import torch

from onward.training.lean import keep_less
from synthetic import llama_config


def models(config: Any) -> tuple[Any, Any]:
    """The same random model twice."""
    from transformers import AutoModelForCausalLM

    pair = []
    for _ in range(2):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            if "norm" in name:  # ones would hide a weight that is left out
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        pair.append(model.eval())
    return pair[0], pair[1]


def run(model: Any, precision: torch.dtype) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Hidden states, gradients of all parameters, and the bytes that autograd saves."""
    saved: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model = model.to(precision)
    torch.manual_seed(5)
    ids = torch.randint(1, 257, (1, 40))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    (out.float() * torch.randn_like(out.float())).sum().backward()
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, sum(saved.values())


def qwen3() -> Any:
    from transformers import Qwen3Config

    small: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128}
    return Qwen3Config(**small, bos_token_id=0, eos_token_id=0)


# Two norms and an MLP a block, Qwen 3's two norms of queries and keys, and the last norm.
@pytest.mark.parametrize(
    ("config", "number"), [(llama_config(), 2 * 3 + 1), (qwen3(), 2 * 5 + 1)], ids=["llama", "qwen3"]
)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_outputs_are_the_same_bits_and_gradients_the_same(config: Any, number: int, precision: torch.dtype) -> None:
    plain, lean = models(config)
    assert keep_less(lean) == number
    expected, gradients, much = run(plain, precision)
    out, found, less = run(lean, precision)
    assert torch.equal(out, expected)
    assert found.keys() == gradients.keys()
    near = 1e-5 if precision == torch.float32 else 3e-2
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=near, atol=near * largest, msg=name)
    assert less < 0.85 * much


def test_what_computes_something_else_stays_as_it_is() -> None:
    from transformers import Gemma3TextConfig

    small: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 128}
    gemma, _ = models(Gemma3TextConfig(**small, pad_token_id=0, bos_token_id=0, eos_token_id=0))
    assert keep_less(gemma) == 0
    gelu, _ = models(llama_config(hidden_act="gelu"))
    assert keep_less(gelu) == 2 * 2 + 1, "the norms only"


def test_gradients_are_those_of_the_written_out_functions_in_double_precision() -> None:
    from onward.training.lean import _GatedSilu, _RmsNorm

    torch.manual_seed(1)
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(_GatedSilu.apply, (gate, up))
    x, weight, upstream = torch.randn(7, 6), torch.rand(6), torch.randn(7, 6)
    leaves = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    _RmsNorm.apply(*leaves, 1e-2).backward(upstream)
    exact = [tensor.double().requires_grad_() for tensor in (x, weight)]
    normalised = exact[0] / (exact[0].pow(2).mean(-1, keepdim=True) + 1e-2).sqrt()
    (exact[1] * normalised).backward(upstream.double())
    for leaf, reference in zip(leaves, exact, strict=True):
        torch.testing.assert_close(leaf.grad.double(), reference.grad, rtol=1e-5, atol=1e-6)
