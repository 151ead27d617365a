"""Cross-entropy from hidden states in chunks: the logits of a small model are its largest activation.

Shapes: N positions, D hidden width, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET


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
        for start in range(0, hidden_ND.shape[0], chunk):
            hidden, labels = hidden_ND[start : start + chunk], labels_N[start : start + chunk]
            logits = F.linear(hidden, weight, bias).float()
            labelled = labels != NO_TARGET
            labels = labels.clamp(min=0)
            # All in place: a second buffer of the logits' size costs more in fresh memory than in arithmetic.
            logits.sub_(logits.amax(dim=-1, keepdim=True))
            target = logits.gather(1, labels[:, None]).squeeze(1)
            exponentials = logits.exp_()
            normaliser = exponentials.sum(dim=-1)
            total += ((normaliser.log() - target) * labelled).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            # d loss / d logits = softmax - one-hot
            gradient = exponentials.div_(normaliser[:, None])
            gradient[torch.arange(len(labels), device=labels.device), labels] -= 1.0
            gradient[~labelled] = 0.0
            narrow = gradient.to(computed)
            grad_hidden[start : start + chunk] = narrow @ weight
            grad_weight += narrow.T @ hidden
            if grad_bias is not None:
                grad_bias += gradient.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass has formed."""
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = upstream[0]
        return (
            grad_hidden * scale.to(grad_hidden.dtype),
            (grad_weight * scale).to(ctx.weight_dtype),
            None if grad_bias is None else grad_bias * scale,
            None,
            None,
            None,
        )


def summed_loss(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    chunk: int,
    bias_V: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum of the cross-entropies in nats (fp32 log-sum-exp) over the positions that have a target.

    labels_N: NO_TARGET where a position has none; it adds nothing to the sum nor to the gradients.

    Divide by the labelled tokens of the whole global batch, not of this part (contract 4).
    """
    # Asked here: inside a custom function autograd is always off.
    needs_gradient = torch.is_grad_enabled()
    total: torch.Tensor = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, chunk, needs_gradient)  # type: ignore[no-untyped-call]
    return total
