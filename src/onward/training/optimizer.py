"""AdamW with decay on matrices only."""

from typing import Any

import torch

from onward.recipe import Optimizer


def build_optimizer(model: Any, settings: Optimizer) -> torch.optim.AdamW:
    """Return AdamW over the model's parameters; norms and biases (one dimension) are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )
