"""Memory of a training step: predicted from the model's shape, measured while it runs, the one corrected by the other.

Bytes throughout.
"""

from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from onward.model.shape import ModelShape
from onward.recipe import Forgetting
from onward.training.hardware import Kind, Precision
from onward.training.remedies import Parts, parts_of
from onward.training.strategy import Strategy

_PROCESS = Path("/proc/self")
_FP32 = 4
"""Bytes of a master weight, a gradient and each of Adam's two moments."""
_BASELINE = {"cpu": 500 * 10**6, "cuda": 200 * 10**6}
"""A process that has imported torch and transformers (measured: 488 MB resident); cuBLAS's workspaces on a GPU."""
_HEAP_BYTES, _HEAP_SHARE = 130 * 10**6, 0.17
"""What glibc's heap holds in holes between tensors: a fixed part, and a share of what the step holds. Fitted to peaks
of the 5M and the 125M shape in fp32 and bf16, with and without recomputing (benchmarks/memory_prediction.py)."""
_KERNEL_BYTES = 65 * 10**6
"""Kernels that oneDNN has compiled for the shapes it met in bf16, with their workspaces: 40 to 75 MB on a CPU."""
_GATHERED_BLOCKS = 2
"""Blocks that FSDP2 has whole at one time: the one at work, and the next one on its way."""


@dataclass(frozen=True)
class MemoryUse:
    """What one rank holds at the peak of a training step, in bytes.

    weights: fp32 masters, and frozen ones in the compute type. cast: bf16 copies of the blocks' weights. gradients:
    fp32, with those still in bf16 on their way. optimizer: Adam's moments. activations: what the forward pass leaves
    for the backward one. logits: of the loss's chunk, with the gradients it forms. communication: gathered weights and
    buffers of reductions. baseline: the process before there is a model. heap: holes between tensors and compiled
    kernels, on a CPU. remedies: copies of the base that weights or outputs are drawn towards, and Fisher
    information. host: what offloading holds in the machine's memory instead; not part of the total.
    """

    weights: int
    cast: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    communication: int
    baseline: int
    heap: int = 0
    remedies: int = 0
    host: int = 0

    @property
    def total(self) -> int:
        """All that the device holds."""
        return sum(int(getattr(self, field.name)) for field in fields(self)) - self.host


def predict(
    shape: ModelShape,
    strategy: Strategy,
    *,
    sequence_tokens: int,
    world: int,
    kind: Kind,
    precision: Precision,
    micro_batches: int = 2,
    baseline_bytes: int | None = None,
    forgetting: Forgetting | None = None,
) -> MemoryUse:
    """Return the memory of one rank at the peak of a training step.

    sequence_tokens: length of a row. world: ranks. micro_batches: per step; from two on the gradients of those before
    are there while activations are at their most. baseline_bytes: what the process holds before it loads the model;
    None: the constant of this kind of device. forgetting: what is frozen, or kept of the base; None: nothing. Raises
    UserError when more blocks are to be frozen than there are.

    The step peaks in the loss of its last micro-batch, with all activations there, or at the end of the backward pass,
    with all gradients, or in the optimizer: the largest of the three is returned.
    """
    parts = parts_of(shape, forgetting)
    held = _state(shape, parts, strategy, world, kind, precision, micro_batches, baseline_bytes)
    positions = strategy.micro_batch * sequence_tokens
    width = 2 if precision == "bf16" else _FP32
    in_loss = replace(
        held,
        gradients=held.gradients if micro_batches > 1 else 0,
        activations=_activations(shape, parts, strategy, positions, width, kind),
        logits=_loss_bytes(shape, parts, min(strategy.loss_chunk, positions), positions, width),
    )
    backward_done = replace(held, gradients=_last_gradients(shape, parts, strategy, held, micro_batches))
    moments = (in_loss, backward_done, replace(held, cast=0))
    peak = max(moments, key=lambda use: use.total)
    return peak if kind == "cuda" else _in_heap(peak, strategy, precision)


def _state(
    shape: ModelShape,
    parts: Parts,
    strategy: Strategy,
    world: int,
    kind: Kind,
    precision: Precision,
    micro_batches: int,
    baseline_bytes: int | None,
) -> MemoryUse:
    """What is there all through the step: weights, moments, gradients, casts, and what sharing needs."""
    whole = parts.trained * _FP32
    is_split = strategy.sharding != "none" or strategy.offload
    by = world if is_split else 1
    width = 2 if precision == "bf16" else _FP32
    share, frozen = -(-whole // by), -(-parts.frozen * width // by)
    reference = -(-shape.parameters * width // by) if parts.has_reference else 0
    copies = parts.base_copies * share + reference
    communication = 0
    if is_split:
        # Blocks are gathered in the compute precision, embeddings and head in fp32 for the whole step; a block's
        # gradients are reduced in fp32.
        block = shape.block_parameters // shape.layers
        gathers_all = strategy.sharding == "zero2" and not strategy.offload
        blocks = shape.layers if gathers_all else min(_GATHERED_BLOCKS, shape.layers)
        communication = blocks * block * width + _GATHERED_BLOCKS * block * _FP32 + shape.embedding_parameters * _FP32
        if parts.has_reference:  # its blocks are gathered one after the other, its embeddings stay
            communication += _GATHERED_BLOCKS * block * width + shape.embedding_parameters * width
    elif world > 1 and micro_batches > 1:
        communication = whole  # DDP's buckets, while the gradients of earlier micro-batches stand beside them
    is_away = strategy.offload and kind == "cuda"
    return MemoryUse(
        weights=0 if is_away else share + frozen,
        cast=0 if is_split or precision == "fp32" else 2 * parts.trained_inside,
        gradients=0 if is_away else share,
        optimizer=0 if is_away else 2 * share,
        activations=0,
        logits=0,
        communication=communication,
        baseline=_BASELINE[kind] if baseline_bytes is None else baseline_bytes,
        remedies=0 if is_away else copies,
        host=4 * share + frozen + copies if is_away else 0,
    )


def _last_gradients(shape: ModelShape, parts: Parts, strategy: Strategy, held: MemoryUse, micro_batches: int) -> int:
    """Gradients at the end of a backward pass.

    Those of cast weights wait in bf16, since autograd runs the casts, the oldest nodes, last; a tied embedding's come
    from the loss and from the look-up, both in fp32.
    """
    embedding = shape.vocabulary * shape.hidden * _FP32 if parts.trains_head else 0
    waiting = 2 * parts.trained_inside if held.cast else 0
    if micro_batches > 1 or strategy.sharding != "none":
        return held.gradients + waiting + 2 * embedding
    return max(held.gradients + (embedding if shape.tied else 0), waiting + 2 * embedding)


def _activations(shape: ModelShape, parts: Parts, strategy: Strategy, positions: int, width: int, kind: Kind) -> int:
    """What the forward pass leaves: whole blocks or, where they are recomputed, their inputs and one block at work.

    Blocks that no gradient reaches leave nothing.
    """
    block = _saved_per_position(shape, width, kind, strategy.compiled) + width * parts.adapter_width
    layers = shape.layers - parts.passive_blocks
    recomputed = layers // strategy.checkpoint_every if strategy.checkpoint_every else 0
    # The input of the first block is the embeddings, which nobody else keeps.
    per_position = (layers - recomputed) * block + recomputed * width * shape.hidden
    per_position += block if recomputed else 0
    per_position += (_FP32 + 2 * width) * shape.hidden + 2 * width * shape.head_dim
    return positions * per_position


def _saved_per_position(shape: ModelShape, width: int, kind: Kind, compiled: bool) -> int:
    """Bytes that autograd saves in one block for each position (read off autograd's saved tensors; see the tests).

    A norm keeps what goes in and a scale, and the projections behind it what comes out; SDPA keeps q, k, v, its output
    and an fp32 log-sum-exp, and the output projection a copy of that output; a gated MLP keeps gate, up and their
    product (`lean`). On a GPU one kernel for all documents keeps q, k, v and its output, which needs no copy.
    Compiled blocks compute elementwise steps again: an estimate of what they keep, to be corrected by a measurement.
    """
    hidden, inner = shape.hidden, shape.intermediate
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    in_attention = (2 if kind == "cuda" else 3) * q + 2 * k
    if compiled:
        return width * (4 * hidden + 2 * q + in_attention + (3 if shape.gated else 2) * inner) + _FP32 * shape.heads
    # Gemma's norms add one to the weight and its MLP has another activation: both are computed as written.
    is_gemma = shape.model_type.startswith("gemma")
    in_mlp = ((4 if is_gemma else 3) if shape.gated else 2) * inner
    if shape.model_type == "gpt_neox":
        # Layer norms are one operation; v is a view that keeps q and k of the projection.
        norms = width * (shape.norms + 1) * hidden
        in_attention += 3 * q - k
    elif is_gemma:  # the scale is applied in fp32, and two norms' outputs are only added
        norms = shape.norms * 2 * _FP32 * hidden + (shape.norms // 2) * width * hidden
    else:
        norms = shape.norms * (2 * width * hidden + _FP32)
    if shape.qk_norm:
        norms += (2 * _FP32 if is_gemma else width) * (q + k)
    return norms + width * (in_attention + in_mlp) + _FP32 * shape.heads


def _loss_bytes(shape: ModelShape, parts: Parts, chunk: int, positions: int, width: int) -> int:
    """The loss at its peak: fp32 probabilities and two chunks of logits (in bf16 a third, in the order that the product
    wants), fp32 gradient of the head, and in bf16 a cast of the head and the product that is added to its gradient; the
    gradient of the hidden states. Divergences from the base take two logits and three numbers in fp32, of half a chunk.
    """
    logits = chunk * shape.vocabulary * (_FP32 + (3 if width == 2 else 2) * width)
    head = shape.vocabulary * shape.hidden * (_FP32 + (4 if width == 2 else 0)) if parts.trains_head else 0
    return logits + head + positions * shape.hidden * width


def _in_heap(use: MemoryUse, strategy: Strategy, precision: Precision) -> MemoryUse:
    """Add what a CPU's heap holds beside the tensors; where activations are recomputed, freed memory is given back."""
    kernels = _KERNEL_BYTES if precision == "bf16" else 0
    holes = 0 if strategy.checkpoint_every else _HEAP_BYTES + int(_HEAP_SHARE * (use.total - use.baseline))
    return replace(use, heap=kernels + holes)


_UNCERTAIN = ("activations", "logits", "communication", "heap")


def corrected(use: MemoryUse, factor: float) -> MemoryUse:
    """Return a prediction whose uncertain parts are scaled by a measured factor.

    Weights, moments and gradients are known to the byte; activations, logits, communication and the heap are not.
    """
    return replace(use, **{name: int(getattr(use, name) * factor) for name in _UNCERTAIN})


def correction(use: MemoryUse, measured_bytes: int) -> float:
    """Return the factor by which a measured peak says that the uncertain parts of its prediction are off.

    At least a tenth: what is certain may have been predicted too high.
    """
    uncertain = sum(int(getattr(use, name)) for name in _UNCERTAIN)
    return max(0.1, (measured_bytes - (use.total - uncertain)) / uncertain) if uncertain else 1.0


@dataclass(frozen=True)
class MemoryReading:
    """Bytes at one moment.

    allocated: by tensors on a GPU, resident on a CPU. reserved: held from the driver, or resident again. peak: the most
    that was allocated since the meter was reset.
    """

    allocated: int
    reserved: int
    peak: int


class MemoryMeter:
    """Reads how much memory this process uses on its device.

    device: a torch.device, or `cpu`. process: where the kernel shows this process (Linux). Where the peak cannot be
    reset (it is written to clear_refs, which some containers forbid), it is the most since the process began; where
    the kernel shows none, that of the readings.
    """

    def __init__(self, device: Any, process: Path = _PROCESS) -> None:
        self._cuda = device if getattr(device, "type", str(device).split(":")[0]) == "cuda" else None
        self._process = process
        self._seen = 0

    def reset(self) -> None:
        """Begin a new peak."""
        self._seen = 0
        if self._cuda is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._cuda)
            return
        with suppress(OSError):
            (self._process / "clear_refs").write_text("5")

    def read(self) -> MemoryReading:
        """Return the bytes now, and the most since the last reset. On a GPU it does not wait for the device."""
        if self._cuda is not None:
            import torch

            facts = torch.cuda.memory_stats(self._cuda)
            names = ("allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak")
            return MemoryReading(*(int(facts.get(name, 0)) for name in names))
        resident = int(psutil.Process().memory_info().rss)
        self._seen = max(self._seen, resident, self._high_water_mark() or 0)
        return MemoryReading(resident, resident, self._seen)

    def _high_water_mark(self) -> int | None:
        """VmHWM of the process, None where the kernel does not show it."""
        try:
            lines = (self._process / "status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
        except (OSError, StopIteration):
            return None
