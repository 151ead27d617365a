"""What a Fisher information looks like: how few weights hold it, and of which kind they are."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

_LARGEST = 0.01
"""The share of the weights that is asked for how much it holds."""
_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Held:
    """What some of the weights hold.

    weights: how many there are. share: theirs of the total. mean: over them; over all it is 1.
    share_of_largest: what the largest 1 % of them hold of theirs.
    """

    weights: int
    share: float
    mean: float
    share_of_largest: float


def describe_fisher(model: torch.nn.Module, information: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return what all weights hold, and those of each kind: embeddings, attention, MLP, norms, other.

    information: fp32 on the CPU by parameter name, normalised to mean 1.
    """
    kinds: dict[str, list[torch.Tensor]] = {}
    for name, tensor in information.items():
        kinds.setdefault(kind_of(model, name), []).append(tensor)
    total = sum(float(tensor.sum(dtype=torch.float64)) for tensor in information.values())
    held = {kind: asdict(_held(tensors, total)) for kind, tensors in sorted(kinds.items())}
    return {"all": asdict(_held(list(information.values()), total)), "kinds": held}


def kind_of(model: torch.nn.Module, name: str) -> str:
    """Return the kind of a parameter: by the classes of the modules it lies in, from the innermost."""
    *path, _ = name.split(".")
    holder = model.get_submodule(".".join(path))
    if "Norm" in type(holder).__name__:
        return "norms"
    outputs = getattr(model, "get_output_embeddings", lambda: None)()
    if isinstance(holder, torch.nn.Embedding) or holder is outputs:
        return "embeddings"
    for depth in range(len(path), 0, -1):
        within = type(model.get_submodule(".".join(path[:depth]))).__name__.lower()
        if "attention" in within:
            return "attention"
        if any(word in within for word in ("mlp", "feedforward", "experts", "moe")):
            return "mlp"
    return "other"


def _held(tensors: list[torch.Tensor], total: float) -> Held:
    own = sum(float(tensor.sum(dtype=torch.float64)) for tensor in tensors)
    weights = sum(tensor.numel() for tensor in tensors)
    return Held(weights, own / total, own / weights, share_of_largest(tensors))


def share_of_largest(tensors: Iterable[torch.Tensor], largest: float = _LARGEST) -> float:
    """Return what the largest so many of non-negative fp32 numbers hold of their sum.

    Counted in classes of 2^-7 of their size, so that nothing has to be sorted or copied: the first 16 bits of a
    positive fp32 number are its exponent and 7 digits. In the class where the limit lies its mean stands for all.
    """
    counts = torch.zeros(1 << 15, dtype=torch.float64)
    sums = torch.zeros(1 << 15, dtype=torch.float64)
    for tensor in tensors:
        for piece in torch.split(tensor.reshape(-1), _AT_ONCE):
            classes = piece.view(torch.int32) >> 16
            counts += torch.bincount(classes, minlength=1 << 15)
            sums += torch.bincount(classes, weights=piece.double(), minlength=1 << 15)
    counts, sums = counts.flip(0), sums.flip(0)
    left = (largest * counts.sum() - (counts.cumsum(0) - counts)).clamp(min=0)
    taken = torch.where(counts > 0, (left / counts.clamp(min=1)).clamp(max=1), 0.0)
    return float((sums * taken).sum() / sums.sum()) if sums.any() else 0.0
