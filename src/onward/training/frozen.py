"""Parts of the base that are not trained: no gradient, no moments, and kept in the type that is computed in."""

from typing import Any

import torch

from onward.recipe import Forgetting
from onward.training.adapters import add_adapters
from onward.training.network import Network
from onward.training.remedies import blocks_frozen


def keep_parts(network: Network, forgetting: Forgetting, seed: int) -> None:
    """Freeze what the recipe freezes, and put adapters where it asks for them; to be done before sharing out.

    seed: of the adapters. Raises UserError for more blocks than there are, all of a tied model, or adapters without
    peft.
    """
    number = 0
    if forgetting.freeze is not None:
        number = blocks_frozen(forgetting, len(network.blocks), tied=_is_tied(network))
        for block in network.blocks[:number]:
            block.requires_grad_(False)
        if forgetting.freeze.embeddings:  # a tied head is the same parameter; a table of positions is one too
            for module in network.model.base_model.modules():
                if isinstance(module, torch.nn.Embedding):
                    module.requires_grad_(False)
    if forgetting.lora is not None:
        add_adapters(network.model, network.blocks[number:], forgetting.lora, seed)
    assert any(parameter.requires_grad for parameter in network.parameters()), "something is left to train"


def _is_tied(network: Network) -> bool:
    inputs, outputs = network.model.get_input_embeddings(), network.model.get_output_embeddings()
    return outputs is not None and outputs.weight is inputs.weight


@torch.no_grad()
def keep_in_compute_type(network: Network, is_split: bool) -> None:
    """Round what is frozen to the compute type, once: masters of more precision are for what is trained.

    is_split: FSDP2 will split the network; what stands between blocks and head then computes in fp32.
    """
    split_apart: set[int] = set()
    if is_split:
        inside = {id(parameter) for block in network.blocks for parameter in block.parameters()}
        split_apart = {id(p) for p in network.model.base_model.parameters()} - inside
    embeddings: list[Any] = [network.model.get_input_embeddings(), network.model.get_output_embeddings()]
    split_apart -= {id(parameter) for module in embeddings for parameter in module.parameters()}
    for parameter in network.parameters():
        if not parameter.requires_grad and id(parameter) not in split_apart and parameter.is_floating_point():
            parameter.data = parameter.data.to(network.precision)
