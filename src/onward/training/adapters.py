"""Low-rank adapters (2106.09685) on the linear layers of the blocks, by peft, and how they are merged at the end.

An adapted layer computes W x + (alpha / rank) B A x. B is 0 at first, so the model begins as the base.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from onward.errors import UserError
from onward.recipe import Lora

_NAME = "default"
"""What peft calls an adapter that is given no name."""
_WRAPPED = ".base_layer."
"""In the name of a parameter, says that peft has put its layer around the one that has it."""


@dataclass(frozen=True)
class Adapter:
    """The adapter of one layer: matrix, the name of the base's weight; its two factors' names; its factor.

    is_transposed: the layer keeps its weight as [in, out], as GPT-2's do.
    """

    matrix: str
    down: str
    up: str
    factor: float
    is_transposed: bool

    def merged(self, weight: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the base's weight with the adapter added, in fp32. tensors: whole, by name, on one device."""
        delta = tensors[self.up].float() @ tensors[self.down].float() * self.factor
        return weight.float() + (delta.T if self.is_transposed else delta)


def add_adapters(model: Any, blocks: Sequence[Any], lora: Lora, seed: int) -> None:
    """Put adapters on all linear layers of `blocks`; they alone are trained, everything else of `model` is frozen.

    blocks: some of the model's. seed: of the first factors; the run's own random numbers are left alone, and every rank
    that is given the same seed makes the same adapters. Raises UserError when there is nothing to adapt.
    """
    import peft

    among = torch.nn.ModuleList(blocks)
    wanted, transposed = _linear_layers(among)
    if not wanted:
        got = f"{len(blocks)} blocks that are not frozen, without a linear layer"
        raise UserError("there is nothing to put an adapter on", "training.forgetting.lora", got)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=wanted, fan_in_fan_out=transposed, lora_dropout=0.0
    )
    before = set(model.modules())
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Not the model: of some mixtures peft would then adapt tensors of experts instead of the layers it is told of.
        peft.inject_adapter_in_model(config, among, adapter_name=_NAME)
    for module in model.modules():
        if module not in before:  # the others stay as they are: blocks that are recomputed are in training mode
            module.training = False


def adapters_of(model: Any) -> tuple[Adapter, ...]:
    """Return the adapters of a model, in the order of its layers."""
    found = []
    for path, module in model.named_modules():
        if _NAME in getattr(module, "lora_A", {}):
            down, up = (f"{path}.{factor}.{_NAME}.weight" for factor in ("lora_A", "lora_B"))
            is_transposed = bool(getattr(module, "fan_in_fan_out", False))
            found.append(Adapter(f"{path}.weight", down, up, float(module.scaling[_NAME]), is_transposed))
    return tuple(found)


@contextmanager
def without_adapters(model: Any) -> Iterator[None]:
    """Let a model compute what it did before it was given adapters; one without any is left as it is.

    Not by peft's own switch, which also freezes the adapters and sets them free again: sharded ones may be gathered.
    """
    layers = [module for module in model.modules() if _NAME in getattr(module, "lora_A", {})]
    for layer in layers:
        layer.forward = layer.get_base_layer().forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is part of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def base_name(name: str) -> str:
    """Return what the base calls a parameter that `named_parameters` of the adapted model calls `name`."""
    return name.replace(_WRAPPED, ".")


def _linear_layers(blocks: torch.nn.ModuleList) -> tuple[list[str], bool]:
    """Return the names of the blocks' linear layers, and whether they keep their weights transposed."""
    from transformers.pytorch_utils import Conv1D

    found = {
        name: isinstance(module, Conv1D)
        for name, module in blocks.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }
    assert len(set(found.values())) <= 1, "all of a model's layers keep their weights alike"
    return list(found), any(found.values())
