"""Norms and gated MLPs that keep less for the backward pass: the same functions, as autograd functions of their own.

Written out, an RMSNorm keeps its input in fp32 and its output once more, and a gated MLP its activation beside what it
came from: a tenth of a 125M model's memory at 2,048 tokens. What is kept here is what went in; the rest is computed
again from it, in passes that a CPU makes while the data are in its caches.
"""

from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

_PROBE_POSITIONS = 3


class _RmsNorm(torch.autograd.Function):
    """weight x (x / rms(x)), normalised in fp32 and rounded to x's type before the weight, as transformers does."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalise over the last dimension."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight_D, scale)
        return weight_D * wide.mul_(scale).to(x.dtype) if wide is not x else weight_D * (wide * scale)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """d x = scale (g w - n mean(g w n)) with n the normalised x; d weight = sum of g n, where it is trained."""
        x, weight_D, scale = ctx.saved_tensors
        gradient, grad_weight = upstream[0], None
        normalised = x.float() * scale
        if ctx.needs_input_grad[1]:
            over = tuple(range(x.ndim - 1))
            grad_weight = (gradient * normalised.to(x.dtype)).sum(over, dtype=torch.float32).to(weight_D.dtype)
        wide = (gradient * weight_D).float()
        inward = (wide * normalised).mean(-1, keepdim=True)
        grad_x = wide.sub_(normalised.mul_(inward)).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


class _GatedSilu(torch.autograd.Function):
    """silu(gate) x up."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Keep what went in; silu(gate) is cheap."""
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """d up = g silu(gate), d gate = g up silu'(gate)."""
        gate, up = ctx.saved_tensors
        gradient = upstream[0]
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)


def keep_less(model: Any) -> int:
    """Replace the forward pass of every norm and MLP that computes just these functions; return how many it was.

    A module is known by what it computes, not by its name alone: on a few random positions its own output and the
    replacement's must be equal to the bit, else it stays (norms that add one to the weight, other activations).
    """
    replaced = 0
    for module in model.modules():
        lean = _lean_norm(module) or _lean_mlp(module)
        if lean is not None and _agrees(module, lean[0], lean[1]):
            module.forward = lean[0]
            replaced += 1
    return replaced


def _lean_norm(module: torch.nn.Module) -> tuple[Any, int] | None:
    """Return the replacement of an RMSNorm of transformers, and its width."""
    epsilon = getattr(module, "variance_epsilon", None)
    weight = getattr(module, "weight", None)
    if "RMSNorm" not in type(module).__name__ or epsilon is None or weight is None or weight.ndim != 1:
        return None
    return partial(_normalised, module, epsilon), len(weight)


def _lean_mlp(module: torch.nn.Module) -> tuple[Any, int] | None:
    """Return the replacement of a gated MLP, and the width of its input."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    if any(part is None for part in parts) or not all(isinstance(part, torch.nn.Linear) for part in parts[:3]):
        return None
    return partial(_gated, module), parts[0].in_features  # type: ignore[union-attr]


# The weights are looked up when they are used: casts stand in their place during a step.
def _normalised(module: Any, epsilon: float, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = _RmsNorm.apply(x, module.weight, epsilon)  # type: ignore[no-untyped-call]
    return out


def _gated(module: Any, x: torch.Tensor) -> torch.Tensor:
    inner = _GatedSilu.apply(module.gate_proj(x), module.up_proj(x))  # type: ignore[no-untyped-call]
    out: torch.Tensor = module.down_proj(inner)
    return out


@torch.no_grad()
def _agrees(module: torch.nn.Module, lean: Any, width: int) -> bool:
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(0)  # the run's own random numbers are left alone
    x = torch.randn(1, _PROBE_POSITIONS, width, generator=generator).to(weight)
    try:
        return torch.equal(module(x), lean(x))
    except (RuntimeError, TypeError, ValueError):
        return False
