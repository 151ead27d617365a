"""AdamW with decay on matrices only, its embeddings' own rate, and a second moment that forgets by tokens."""

from typing import Any

import torch

from onward.recipe import Optimizer
from onward.training.adapters import is_adapter


def second_moment_decay(settings: Optimizer, step_tokens: int) -> float:
    """Return beta2: the recipe's, or the one that halves a gradient's weight in so many tokens.

    beta2 = 0.5^(step_tokens / half-life), so that it follows the batch size as beta2' = beta2^(B'/B) (2507.07101).
    """
    half_life = settings.second_moment_half_life
    return settings.betas[1] if half_life is None else float(0.5 ** (step_tokens / half_life))


def build_optimizer(model: Any, settings: Optimizer, step_tokens: int, adapter_ratio: float = 1.0) -> torch.optim.AdamW:
    """Return AdamW over the model's parameters that are trained, with its moments allocated.

    Norms and biases (one dimension) are not decayed; adapters are, as all matrices, which draws their product to zero
    and the model to the base. A group's `rate_ratio` is its share of the scheduled learning rate: that of input and
    output embeddings may differ from the rest, and that of adapters is `adapter_ratio`.
    """
    embeddings = [*model.get_input_embeddings().parameters(), *model.get_output_embeddings().parameters()]
    apart = {id(parameter) for parameter in embeddings}
    ratio = (settings.embedding_learning_rate or settings.learning_rate) / settings.learning_rate
    groups: dict[tuple[float, float], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim > 1 else 0.0
            share = ratio if id(parameter) in apart else adapter_ratio if is_adapter(name) else 1.0
            groups.setdefault((decay, share), []).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": list_, "weight_decay": decay, "rate_ratio": share} for (decay, share), list_ in groups.items()],
        lr=settings.learning_rate,
        betas=(settings.betas[0], second_moment_decay(settings, step_tokens)),
        eps=settings.epsilon,
        fused=True,
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of this step for every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate_ratio"]
