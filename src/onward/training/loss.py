"""Cross-entropy from hidden states in chunks: the logits of a small model are its largest activation.

Where the base is distilled from (1606.09282), its divergence is formed in chunks too, at the positions it is asked for.

Shapes: N positions, M of them with a target in replayed rows, D hidden width, V vocabulary.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET

_ALIGNED = 64
"""Chunks are multiples of so many positions, which suits matrix units."""


@dataclass(frozen=True)
class Towards:
    """What KL(base || model) is measured against, at M positions: the base's hidden states and output weights.

    weight: nats of divergence count so many times. at_M: which of the N positions they are. The tensors have no
    gradients.
    """

    weight: float
    at_M: torch.Tensor
    hidden_MD: torch.Tensor
    head_VD: torch.Tensor
    bias_V: torch.Tensor | None


@dataclass(frozen=True)
class _Head:
    """Output weights as they are multiplied with, and what is done to the logits."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    softcap: float | None

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Multiply; the cap is not applied."""
        return F.linear(hidden_ND, self.weight_VD, self.bias_V)


@dataclass(frozen=True)
class _Gradients:
    """Gradients that are added up chunk by chunk; None where nobody wants one. Those of the head are fp32."""

    hidden_ND: torch.Tensor | None
    weight_VD: torch.Tensor | None
    bias_V: torch.Tensor | None

    @property
    def are_wanted(self) -> bool:
        return self.hidden_ND is not None or self.weight_VD is not None or self.bias_V is not None

    def add_to_head(self, gradient_NV: torch.Tensor, hidden_ND: torch.Tensor) -> None:
        """Add what a chunk's d loss / d logits gives weight and bias."""
        if self.weight_VD is not None:
            _accumulate(self.weight_VD, gradient_NV, hidden_ND)
        if self.bias_V is not None:
            self.bias_V.add_(gradient_NV.sum(dim=0, dtype=torch.float32))


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
        towards: Towards | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return objective, cross-entropy and divergence, and form the gradients of those inputs that want one."""
        computed = hidden_ND.dtype
        head = _Head(weight_VD.to(computed), None if bias_V is None else bias_V.to(computed), softcap)
        # Of a frozen head and of hidden states that no trained weight has made, no gradient is asked for.
        of_hidden, of_weight, of_bias = (needs_gradient and wanted for wanted in ctx.needs_input_grad[:3])
        gradients = _Gradients(
            torch.empty_like(hidden_ND) if of_hidden else None,
            torch.zeros_like(weight_VD, dtype=torch.float32) if of_weight else None,
            torch.zeros_like(bias_V, dtype=torch.float32) if of_bias and bias_V is not None else None,
        )
        total = _sum_losses(hidden_ND, labels_N, head, gradients, chunk, compiled)
        objective, divergence = total, torch.zeros_like(total)
        if towards is not None and len(towards.at_M):
            divergence = _sum_divergences(hidden_ND, head, towards, gradients, chunk)
            objective = total + towards.weight * divergence
        ctx.save_for_backward(gradients.hidden_ND, gradients.weight_VD, gradients.bias_V)
        ctx.weight_dtype = weight_VD.dtype
        if objective is total:
            total = total.clone()  # an output may not be another one
        ctx.mark_non_differentiable(total, divergence)
        return objective, total, divergence

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that the forward pass has formed."""
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        scale = upstream[0]
        return (
            None if grad_hidden is None else grad_hidden.mul_(scale),  # a CPU multiplies by the fp32 scale, not by bf16
            None if grad_weight is None else grad_weight.mul_(scale).to(ctx.weight_dtype),
            None if grad_bias is None else grad_bias * scale,
            *(None,) * 6,
        )


def _sum_losses(
    hidden_ND: torch.Tensor, labels_N: torch.Tensor, head: _Head, gradients: _Gradients, chunk: int, compiled: bool
) -> torch.Tensor:
    """Return the sum of the cross-entropies, fp32; the gradients of the hidden states are written, others added to."""
    total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    # Chunks of one size: a compiled loss would be compiled again for a shorter last one.
    positions = hidden_ND.shape[0]
    pieces = -(-positions // chunk)
    chunk = min(chunk, -(-positions // pieces // _ALIGNED) * _ALIGNED) if chunk > _ALIGNED else chunk
    # One buffer for all chunks: fresh memory of this size costs a CPU more than the arithmetic on it.
    shape = (min(chunk, positions), head.weight_VD.shape[0])
    buffer = None if compiled else torch.empty(shape, dtype=torch.float32, device=hidden_ND.device)
    losses = _compiled_losses() if compiled else _losses
    for start in range(0, positions, chunk):
        hidden, labels = hidden_ND[start : start + chunk], labels_N[start : start + chunk]
        out = None if buffer is None else buffer[: len(labels)]
        loss, gradient = losses(head.logits(hidden), labels, head.softcap, gradients.are_wanted, out)
        total += loss
        if gradient is None:
            continue
        if gradients.hidden_ND is not None:
            torch.mm(gradient, head.weight_VD, out=gradients.hidden_ND[start : start + chunk])
        gradients.add_to_head(gradient, hidden)
    return total


def _sum_divergences(
    hidden_ND: torch.Tensor, head: _Head, towards: Towards, gradients: _Gradients, chunk: int
) -> torch.Tensor:
    """Return the sum of KL(base || model) over M positions, fp32; add its gradients, times its weight, to all."""
    computed = hidden_ND.dtype
    bias = None if towards.bias_V is None else towards.bias_V.to(computed)
    base = _Head(towards.head_VD.to(computed), bias, head.softcap)
    total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
    chunk = max(1, chunk // 2)  # two sets of logits at a time: no more memory than the losses take
    for start in range(0, len(towards.at_M), chunk):
        at = towards.at_M[start : start + chunk]
        hidden = hidden_ND[at]
        base_logits = base.logits(towards.hidden_MD[start : start + chunk].to(computed))
        divergence, gradient = _divergences(head.logits(hidden), base_logits, head.softcap, gradients.are_wanted)
        total += divergence
        if gradient is None:
            continue
        gradient = gradient.mul_(towards.weight).to(computed)
        if gradients.hidden_ND is not None:
            gradients.hidden_ND.index_add_(0, at, gradient @ head.weight_VD)
        gradients.add_to_head(gradient, hidden)
    return total


def _divergences(
    logits_MV: torch.Tensor, base_logits_MV: torch.Tensor, softcap: float | None, needs_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sum over positions of KL(base || model) in nats and d KL / d logits = p - p_base, both fp32."""
    slope = None
    if softcap is not None:
        curved = torch.tanh(logits_MV.float() / softcap)
        logits_MV, slope = curved * softcap, 1 - curved**2
        base_logits_MV = softcap * torch.tanh(base_logits_MV.float() / softcap)
    log_p = torch.log_softmax(logits_MV, dim=-1, dtype=torch.float32)
    log_base = torch.log_softmax(base_logits_MV, dim=-1, dtype=torch.float32)
    probabilities = log_base.exp()
    divergence = log_base.sub_(log_p).mul_(probabilities).sum()
    if not needs_gradient:
        return divergence, None
    gradient = log_p.exp_().sub_(probabilities)
    return divergence, gradient if slope is None else gradient.mul_(slope)


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
    differentiated once. What needs no gradient (a frozen head) costs none.

    Divide by the labelled tokens of the whole global batch, not of this part (contract 4).
    """
    return _summed(hidden_ND, weight_VD, labels_N, chunk, bias_V, softcap, compiled, None)[0]


def summed_objective(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    chunk: int,
    bias_V: torch.Tensor | None,
    softcap: float | None,
    compiled: bool,
    towards: Towards,
) -> torch.Tensor:
    """Return what is minimised, the sum of cross-entropies and that of divergences, in nats: fp32[3].

    The first is the second + weight x the third, and it alone has a gradient. The other arguments as in `summed_loss`.
    """
    return torch.stack(_summed(hidden_ND, weight_VD, labels_N, chunk, bias_V, softcap, compiled, towards))


def _summed(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    labels_N: torch.Tensor,
    chunk: int,
    bias_V: torch.Tensor | None,
    softcap: float | None,
    compiled: bool,
    towards: Towards | None,
) -> tuple[torch.Tensor, ...]:
    # Asked here: inside a custom function autograd is always off.
    needs_gradient = torch.is_grad_enabled()
    sums: tuple[torch.Tensor, ...] = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, bias_V, labels_N, chunk, softcap, compiled, needs_gradient, towards
    )
    return sums
