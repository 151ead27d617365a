"""What models have in common: decoder blocks, and what is done to the logits behind the output embeddings."""

import shutil
from typing import Any

import torch

from onward.errors import UserError

_COMPILE_FLOPS = 5e13
"""Less work than this is done before a compiler has gained what it took: 10 s, of which it saves a sixth to a third."""


def find_blocks(model: Any) -> list[Any]:
    """Return the model's decoder blocks in their order; raises UserError when there is no single list of them."""
    lists = [m for m in model.base_model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > 0]
    layers = model.config.get_text_config().num_hidden_layers
    found = [blocks for blocks in lists if len(blocks) == layers]
    if not found:
        got = f"{model.config.model_type}: no list of {layers} blocks"
        raise UserError("this model's blocks cannot be found", "model.base", got)
    return list(found[0])


def head_changes(config: Any) -> tuple[float, float | None]:
    """Return what a model does to its logits: a factor, and a cap c where it takes c tanh(logits / c).

    Cohere multiplies (logit_scale), Granite divides (logits_scaling), Falcon-H1 multiplies (lm_head_multiplier),
    Gemma 2 caps (final_logit_softcapping).
    """
    factor = float(getattr(config, "logit_scale", None) or 1.0)
    factor *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    factor /= float(getattr(config, "logits_scaling", None) or 1.0)
    return factor, getattr(config, "final_logit_softcapping", None)


def compile_blocks(model: Any, tokens: int) -> bool:
    """Compile the blocks of a model that is to score so many tokens on a CPU, if that pays; return whether it was done.

    Of the tiny base model it makes 0.13 s into 0.09, of MobileLLM-125M's shape 0.90 into 0.69 (bf16, one thread), and
    takes 9 to 11 s once. It changes scores as another order of additions does. Without a C++ compiler, for a model
    whose blocks are not to be found and on a GPU, where it was not tried, nothing is done.
    """
    flops = 2 * sum(parameter.numel() for parameter in model.parameters()) * tokens
    has_compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    if model.device.type != "cpu" or flops < _COMPILE_FLOPS or not has_compiler:
        return False
    try:
        blocks = find_blocks(model)
    except UserError:
        return False
    for block in blocks:
        block.compile(dynamic=True)
    return True


def undo_compiling(model: Any) -> None:
    """Let a model's blocks run as they are written."""
    for block in find_blocks(model):
        block._compiled_call_impl = None
