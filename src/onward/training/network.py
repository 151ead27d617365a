"""The model as the training step sees it: packed rows in, the summed loss of the labelled tokens out.

Shapes: B rows, T positions, N = B x T positions, D hidden width.

Precision: master weights and their gradients are fp32. For bf16 the blocks' weights are cast once a step, so blocks
compute and keep activations in bf16; embeddings, head and loss accumulate in fp32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from onward.batches import NO_TARGET, Batch
from onward.errors import UserError
from onward.model.blocks import find_blocks, head_changes
from onward.model.shape import refuse_attention, unkept_attention
from onward.training.attention import ATTENTION
from onward.training.lean import keep_less
from onward.training.loss import Towards, summed_loss, summed_objective
from onward.training.strategy import Strategy

_LEAST_BOUNDS = 64


@dataclass(frozen=True)
class Rows:
    """A micro-batch as tensors, row after row in one flat sequence of N positions.

    ids_N, labels_N, positions_N: int64. bounds: int32, where each document piece starts (padding is a piece of its
    own), then N up to a length that is a power of two, so that shapes seldom change. longest: length of a row, which
    no piece exceeds. replayed: those rows again that hold replayed text; None: no row does, or nobody asks. towards:
    what these are drawn towards; None: nothing.
    """

    ids_N: torch.Tensor
    labels_N: torch.Tensor
    positions_N: torch.Tensor
    bounds: torch.Tensor
    longest: int
    replayed: "Replayed | None" = None
    towards: Towards | None = None

    @staticmethod
    def of(batch: Batch, pin: bool = False) -> "Rows":
        """Flatten a batch; pin: into memory that a GPU reads while the CPU goes on."""
        return Rows.cut(batch, 1, pin, replayed_apart=True)[0]

    @staticmethod
    def cut(batch: Batch, number: int, pin: bool, replayed_apart: bool) -> "tuple[Rows, ...]":
        """Flatten a batch into `number` micro-batches of equally many rows; its documents are looked through once.

        replayed_apart: copy the replayed rows of each, which a base that is computed beside the model reads.
        """
        rows, length = batch.ids_BT.shape
        assert rows % number == 0, "the batch was filled up"
        begins = np.empty(batch.documents_BT.shape, dtype=np.bool_)
        begins[:, 0] = True
        np.not_equal(batch.documents_BT[:, 1:], batch.documents_BT[:, :-1], out=begins[:, 1:])
        starts = np.flatnonzero(begins)
        positions = rows // number * length
        firsts = np.searchsorted(starts, np.arange(number + 1) * positions).tolist()
        arrays = (batch.ids_BT, batch.labels_BT, batch.positions_BT)
        flat = [torch.from_numpy(np.ascontiguousarray(array).reshape(number, -1)) for array in arrays]
        share = rows // number
        micro = []
        for n, parts in enumerate(zip(*flat, strict=True)):
            own = starts[firsts[n] : firsts[n + 1]]
            bounds = np.full(max(_LEAST_BOUNDS, 1 << len(own).bit_length()), positions, dtype=np.int32)
            np.subtract(own, n * positions, out=bounds[: len(own)], casting="unsafe")
            tensors = (*parts, torch.from_numpy(bounds))
            ids, labels, places, ends = [tensor.pin_memory() for tensor in tensors] if pin else tensors
            replayed = Replayed.of(batch.rows(n * share, (n + 1) * share), pin) if replayed_apart else None
            micro.append(Rows(ids, labels, places, ends, length, replayed))
        return tuple(micro)

    def to(self, device: torch.device) -> "Rows":
        """Return the rows on a device; copies from pinned memory do not wait."""
        tensors = (self.ids_N, self.labels_N, self.positions_N, self.bounds)
        ids, labels, positions, bounds = (tensor.to(device, non_blocking=True) for tensor in tensors)
        replayed = None if self.replayed is None else self.replayed.to(device)
        return Rows(ids, labels, positions, bounds, self.longest, replayed)

    def first(self) -> "Rows":
        """Return the first row as one document: what a rank computes that has nothing of its own to compute."""
        bounds = torch.full((_LEAST_BOUNDS,), self.longest, dtype=torch.int32, device=self.bounds.device)
        bounds[0] = 0
        here = slice(self.longest)
        return Rows(self.ids_N[here], self.labels_N[here], self.positions_N[here], bounds, self.longest)


@dataclass(frozen=True)
class Replayed:
    """The replayed rows of a micro-batch, by themselves, and which positions of theirs have a target.

    at_M: int64, those M positions counted in the micro-batch. within_M: the same ones counted in `rows`.
    """

    rows: Rows
    at_M: torch.Tensor
    within_M: torch.Tensor

    @staticmethod
    def of(batch: Batch, pin: bool = False) -> "Replayed | None":
        """Take the replayed rows out of a batch; None when there are none, or no position of theirs has a target."""
        chosen = np.flatnonzero(batch.replayed_B)
        if not len(chosen):
            return None
        length = batch.ids_BT.shape[1]
        row, place = np.nonzero(batch.labels_BT[chosen] != NO_TARGET)
        if not len(row):
            return None
        alone = Batch(
            batch.ids_BT[chosen],
            batch.labels_BT[chosen],
            batch.documents_BT[chosen],
            batch.positions_BT[chosen],
            np.zeros(len(chosen), dtype=np.bool_),
        )
        places = [torch.from_numpy(rows * length + place) for rows in (chosen[row], row)]
        at, within = [each.pin_memory() for each in places] if pin else places
        return Replayed(Rows.of(alone, pin), at, within)

    def to(self, device: torch.device) -> "Replayed":
        """Return them on a device."""
        at, within = (each.to(device, non_blocking=True) for each in (self.at_M, self.within_M))
        return Replayed(self.rows.to(device), at, within)


class Network(torch.nn.Module):
    """A causal LM of transformers, prepared for packed training.

    Raises UserError when the model's head or attention does what the packed step does not reproduce.
    """

    def __init__(self, model: Any, precision: torch.dtype, strategy: Strategy) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.casts_weights = precision != torch.float32
        """Whether this module casts the blocks' weights itself; FSDP2 does it where the weights are split."""
        self.loss_chunk = strategy.loss_chunk
        self._compiled = strategy.compiled
        self._scale, self._softcap = head_changes(model.config.get_text_config())
        _check_attention(model)
        model.set_attn_implementation(ATTENTION)
        model.config.use_cache = False
        # Neither dropout nor noise in routers: few-epoch pretraining does not use them, and the loss at step 0 must be
        # the base model's.
        model.eval()
        self.blocks: list[Any] = find_blocks(model)
        if strategy.checkpoint_every:
            _recompute(model, self.blocks, strategy.checkpoint_every)
        if strategy.compiled:
            for block in self.blocks:
                block.forward = torch.compile(block.forward)
        else:  # a compiler fuses these and chooses what to keep
            keep_less(model)

    @contextmanager
    def compute_weights(self) -> Iterator[None]:
        """Put casts of the blocks' weights in their place for forward and backward passes; gradients reach the masters.

        They stay until the block ends, since recomputed activations need them in the backward pass.
        """
        if not self.casts_weights:
            yield
            return
        swapped = []
        kept = {id(p) for p in self.model.get_input_embeddings().parameters()}
        try:
            for module in self.model.base_model.modules():
                for name, parameter in module._parameters.items():
                    if parameter is not None and id(parameter) not in kept and parameter.dtype != self.precision:
                        swapped.append((module, name, parameter))
                        module._parameters[name] = parameter.to(self.precision)
            yield
        finally:
            for module, name, parameter in swapped:
                module._parameters[name] = parameter

    def hidden(self, rows: Rows) -> torch.Tensor:
        """Return the last hidden states [N, D] of all positions, row after row.

        Padding is computed as one more document, so every micro-batch has the same shapes: with varying ones the
        allocator's memory grew to three times the need within a hundred steps.
        """
        embedded = self.model.get_input_embeddings()(rows.ids_N[None]).to(self.precision)
        out = self.model.base_model(
            inputs_embeds=embedded,
            position_ids=rows.positions_N[None],
            use_cache=False,
            document_bounds=rows.bounds,
            longest_document=rows.longest,
        )
        hidden: torch.Tensor = out.last_hidden_state[0].to(self.precision)
        return hidden

    def forward(self, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        """Return the sum over the labelled positions of their cross-entropy in nats; hidden_only: hidden states [N, D].

        Of rows that are drawn towards something: what is minimised, cross-entropy and divergence, fp32[3]. What wraps
        the network (DDP, FSDP2) sees calls of `forward` alone.
        """
        hidden = self.hidden(rows)
        if hidden_only:
            return hidden
        hidden = self.scaled(hidden)
        head = self.model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        settings = (self.loss_chunk, bias, self._softcap, self._compiled)
        if rows.towards is not None:
            return summed_objective(hidden, head.weight, rows.labels_N, *settings, rows.towards)
        return summed_loss(hidden, head.weight, rows.labels_N, *settings)

    def scaled(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return hidden states as the head is given them: some models scale their logits."""
        return hidden * self._scale if self._scale != 1.0 else hidden


def _check_attention(model: Any) -> None:
    config = model.config.get_text_config()
    refuse_attention(config.to_dict())
    if (
        not getattr(model, "_supports_attention_backend", False)
        or model.base_model is model
        or any(hasattr(module, "sinks") for module in model.modules())
    ):
        raise unkept_attention(config.model_type)


def _recompute(model: Any, blocks: list[Any], every: int) -> None:
    """Recompute the activations of every n-th block in the backward pass."""
    # transformers renamed it on the way through version 5
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "preserve_rng_state": False})
    for number, block in enumerate(blocks):
        if not isinstance(block, GradientCheckpointingLayer):
            got, todo = type(block).__name__, "write training.gradient_checkpointing: none"
            raise UserError("this model's blocks cannot be recomputed", "model.base", got, todo=todo)
        block.gradient_checkpointing = block.training = number % every == every - 1  # only what trains is recomputed
        for name, value in vars(block).items():
            if "drop" in name and isinstance(value, float):
                setattr(block, name, 0.0)


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """Return the compute type: for `auto` bf16 where the device multiplies it natively, fp32 otherwise.

    Raises UserError for bf16 on a GPU that has none (compute capability below 8.0): the attention kernel wants it.
    """
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted == "bf16" and device.type == "cuda" and not has_bf16:
        major, minor = torch.cuda.get_device_capability(device)
        got = f"bf16 on {torch.cuda.get_device_name(device)}, of compute capability {major}.{minor}"
        todo = "write training.precision: fp32, or auto, which is fp32 here"
        raise UserError("this GPU does not compute in bf16", "training.precision", got, "8.0 or higher", todo)
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bf16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if has_bf16 else torch.float32
    # A CPU multiplies bf16 faster than fp32 only in AMX tiles; elsewhere the conversion costs more than it saves.
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return torch.bfloat16 if device.type == "cpu" and has_tiles() else torch.float32
