"""Memory of a training step: predicted from the model's shape, measured while it runs, and the one corrected by the other.

Letters: P parameters, N positions of a micro-batch, D hidden width, Q and K widths of queries and keys, I inner width of
the MLP, V vocabulary.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from onward.model.shape import ModelShape
from onward.training.hardware import Kind, Precision
from onward.training.strategy import Strategy

_FP32 = 4
"""Bytes of a master weight, a gradient and each of Adam's two moments."""


@dataclass(frozen=True)
class MemoryUse:
    """What one rank holds at the peak of a training step, in bytes.

    weights: fp32 masters. cast: bf16 copies of the blocks' weights. gradients: fp32, with those still in bf16 on their
    way. optimizer: Adam's moments. activations: what the forward pass leaves for the backward one. logits: of one chunk,
    with what the loss keeps. communication: gathered weights and buffers of reductions. baseline: the process before
    there is a model. host: what offloading holds in the machine's memory instead; not part of the total.
    """

    weights: int
    cast: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    communication: int
    baseline: int
    host: int = 0

    @property
    def total(self) -> int:
        """All that the device holds."""
        return sum(getattr(self, field.name) for field in fields(self)) - self.host


def predict(
    shape: ModelShape,
    strategy: Strategy,
    *,
    sequence_tokens: int,
    world: int,
    kind: Kind,
    precision: Precision,
    attention: Literal["documents"] = "documents",
    micro_batches: int = 2,
    baseline_bytes: int | None = None,
) -> MemoryUse:
    """Return the memory of one rank at the peak of a training step.

    sequence_tokens: length of a row. world: ranks. micro_batches: per step; from two on the gradients of those before
    are there while activations are at their most. baseline_bytes: what the process holds before it loads the model;
    None: the constant of this kind of device.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class MemoryReading:
    """Bytes at one moment. allocated: by tensors on a GPU, resident on a CPU. reserved: held from the driver, or
    resident again. peak: the most since the meter was reset."""

    allocated: int
    reserved: int
    peak: int


class MemoryMeter:
    """Reads how much memory this process uses on its device."""

    def __init__(self, device: Any) -> None: ...

    def reset(self) -> None:
        """Begin a new peak."""

    def read(self) -> MemoryReading:
        """Return the bytes now, and the most since the last reset."""
        raise NotImplementedError


def corrected(use: MemoryUse, factor: float) -> MemoryUse:
    """Return a prediction whose uncertain parts (activations and logits) are scaled by a measured factor."""
    raise NotImplementedError


def correction(use: MemoryUse, measured_bytes: int) -> float:
    """Return the factor by which a measured peak says that the uncertain parts of its prediction are off."""
    raise NotImplementedError
