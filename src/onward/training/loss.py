"""Cross-entropy from hidden states in chunks: the logits of a small model are its largest activation.

Shapes: N positions, D hidden width, V vocabulary.
"""

from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET

_ALIGNED = 64
"""Chunks are multiples of so many positions, which suits matrix units."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of the token losses; gradients are formed chunk by chunk in the forward pass, so no logits survive it."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        chunk: int,
        softcap: float | None,
        compiled: bool,
        needs_gradient: bool,
    ) -> torch.Tensor:
        """Sum the losses and form the gradients of hidden states, output weights and bias."""
        computed = hidden_ND.dtype
        weight = weight_VD.to(computed)
        bias = None if bias_V is None else bias_V.to(computed)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        grad_hidden = torch.empty_like(hidden_ND) if needs_gradient else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_gradient else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs_gradient and bias_V is not None else None
        # Chunks of one size: a compiled loss would be compiled again for a shorter last one.
        positions = hidden_ND.shape[0]
        pieces = -(-positions // chunk)
        chunk = min(chunk, -(-positions // pieces // _ALIGNED) * _ALIGNED) if chunk > _ALIGNED else chunk
        # One buffer for all chunks: fresh memory of this size costs a CPU more than the arithmetic on it.
        shape = (min(chunk, hidden_ND.shape[0]), weight_VD.shape[0])
        buffer = None if compiled else torch.empty(shape, dtype=torch.float32, device=hidden_ND.device)
        losses = _compiled_losses() if compiled else _losses
        for start in range(0, hidden_ND.shape[0], chunk):
            hidden, labels = hidden_ND[start : start + chunk], labels_N[start : start + chunk]
            out = None if buffer is None else buffer[: len(labels)]
            loss, gradient = losses(F.linear(hidden, weight, bias), labels, softcap, needs_gradient, out)
            total += loss
            if gradient is None or grad_hidden is None or grad_weight is None:
                continue
            torch.mm(gradient, weight, out=grad_hidden[start : start + chunk])
            _accumulate(grad_weight, gradient, hidden)
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0, dtype=torch.float32)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass has formed."""
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = upstream[0]
        return (
            grad_hidden.mul_(scale),  # a CPU multiplies by the fp32 scale, not by its bf16 rounding
            grad_weight.mul_(scale).to(ctx.weight_dtype),
            None if grad_bias is None else grad_bias * scale,
            None,
            None,
            None,
            None,
            None,
        )


def _losses(
    logits_NV: torch.Tensor,
    labels_N: torch.Tensor,
    softcap: float | None,
    needs_gradient: bool,
    buffer_NV: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the summed loss of a chunk and d loss / d logits = softmax - one-hot, both from an fp32 softmax.

    buffer_NV: fp32, for the probabilities. The gradient has the logits' type.
    """
    computed, slope = logits_NV.dtype, None
    if softcap is not None:
        curved = torch.tanh(logits_NV.float() / softcap)
        logits_NV, slope = curved * softcap, 1 - curved**2
    labelled = labels_N != NO_TARGET
    targets = labels_N.clamp(min=0)[:, None]
    largest, at_largest = logits_NV.max(dim=-1, keepdim=True)
    # One fused kernel in fp32. log-sum-exp = the largest logit - log of its probability, which is never below 1/V.
    if buffer_NV is None:
        probabilities = torch.softmax(logits_NV, dim=-1, dtype=torch.float32)
    else:
        probabilities = torch.softmax(logits_NV, dim=-1, dtype=torch.float32, out=buffer_NV)
    # Logits are subtracted first, which is exact where both are large.
    behind = largest.float() - logits_NV.gather(1, targets).float()
    loss = ((behind - probabilities.gather(1, at_largest).log()).squeeze(1) * labelled).sum()
    if not needs_gradient:
        return loss, None
    gradient = probabilities.scatter_add_(1, targets, probabilities.new_full(targets.shape, -1.0))
    if slope is not None:
        gradient = gradient * slope
    if buffer_NV is None or slope is not None:
        return loss, (gradient * labelled[:, None]).to(computed)
    return loss, torch.mul(gradient, labelled[:, None], out=logits_NV)  # the logits are done with


@cache
def _compiled_losses() -> Any:
    return torch.compile(_losses)


def _accumulate(total_VD: torch.Tensor, gradient_NV: torch.Tensor, hidden_ND: torch.Tensor) -> None:
    """Add gradient' x hidden to the fp32 total."""
    if gradient_NV.dtype == torch.float32:
        total_VD.addmm_(gradient_NV.T, hidden_ND)
    else:
        total_VD += gradient_NV.T @ hidden_ND


def summed_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    chunk: int,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    compiled: bool = False,
) -> torch.Tensor:
    """Return the sum of the cross-entropies in nats (fp32 log-sum-exp) over the positions that have a target.

    labels_N: NO_TARGET where a position has none; it adds nothing to the sum nor to the gradients. softcap: the
    logits are softcap x tanh(logits / softcap). compiled: fuse what happens to the logits with torch.compile. May be
    differentiated once.

    Divide by the labelled tokens of the whole global batch, not of this part (contract 4).
    """
    # Asked here: inside a custom function autograd is always off.
    needs_gradient = torch.is_grad_enabled()
    total: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, labels_N, chunk, softcap, compiled, needs_gradient
    )
    return total
