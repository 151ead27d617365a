"""How a model is made to fit: the knobs that change speed and memory, never the mathematics."""

from dataclasses import dataclass
from typing import Literal

Sharding = Literal["none", "zero2", "zero3"]


@dataclass(frozen=True)
class Strategy:
    """One way of fitting the training step into memory.

    sharding: none keeps everything on every rank (DDP when there are several); zero2 splits gradients and optimizer
    state, zero3 the weights too (FSDP2). offload: all three live in the machine's memory. checkpoint_every: blocks
    whose activations are recomputed: 0 none, 1 all, n every n-th. micro_batch: sequences per forward pass and rank.
    loss_chunk: positions whose logits exist at one time. compiled: the blocks go through torch.compile.
    """

    sharding: Sharding = "none"
    offload: bool = False
    checkpoint_every: int = 0
    micro_batch: int = 1
    loss_chunk: int = 1024
    compiled: bool = False
