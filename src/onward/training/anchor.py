"""The pull to the base's weights that follows an update of AdamW: L2-SP (1802.01483) and EWC (1612.00796), decoupled.

With theta0 the base's weights, F the Fisher information normalised to mean 1 and rate that of the parameter's group,

    theta <- lerp(theta, theta0, w),   w = min(1, rate x (lambda_ewc F + lambda_l2)),   lambda = strength / rms(theta0).

AdamW moves a weight by about `rate` a step at most, so one of mean Fisher that it pushes all the time comes to rest
where lambda x |theta - theta0| = 1: at one root mean square of the base's weights / strength, whatever the width. The
penalty (lambda / 2) sum F (theta - theta0)^2 has the gradient that this step goes along, but is not in the loss, where
Adam's second moment would divide its strength away (as it does with weight decay, 1711.05101). w below 1 cannot
overshoot, and w = 1 gives theta0 to the bit.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard

from onward.training.parallel import summed
from onward.training.ranks import Ranks

_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 26}
"""Weights pulled at once, which bounds what the arithmetic needs beside them: a CPU's cache, or 256 MiB of a GPU."""
_LARGEST = torch.finfo(torch.float32).max

Cut = tuple[int, int, int]
"""Number of a tensor in its list, and where a piece of it begins and ends when it is laid out flat."""


@dataclass(frozen=True)
class _Group:
    """One of the optimizer's groups on this rank.

    settings: the optimizer's own, whose `lr` is that of the step. cuts: pieces of the parameters that are pulled
    together. base, fisher: their base weights and Fisher information, cut in the same way.
    """

    settings: dict[str, Any]
    parameters: list[torch.Tensor]
    cuts: list[list[Cut]]
    base: list[list[torch.Tensor]]
    fisher: list[list[torch.Tensor]] | None

    def pieces(self) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor] | None]]:
        """Yield pieces of the parameters, as views, with their base weights and their Fisher information."""
        flat = [local_part(parameter).view(-1) for parameter in self.parameters]
        for number, cuts in enumerate(self.cuts):
            fisher = None if self.fisher is None else self.fisher[number]
            yield _cut(flat, cuts), self.base[number], fisher


class Anchor:
    """Keeps the base's trainable weights, this rank's part of them, and pulls towards them.

    To be made when the model has been loaded and shared out, before a checkpoint is restored: what the parameters of
    `optimizer` hold at this moment is theta0. parameters: the model's by name. l2_sp, ewc: strengths, None or 0: no
    such pull; with none of both the weights are kept for `distance` alone. fisher: needed for ewc, whole tensors by
    parameter name, normalised to mean 1. Collective where the parameters are sharded.
    """

    @torch.no_grad()
    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, torch.Tensor],
        ranks: Ranks,
        *,
        l2_sp: float | None = None,
        ewc: float | None = None,
        fisher: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert trained, "there is something to train"
        self._ranks = ranks
        self._is_sharded = isinstance(trained[0], DTensor)
        assert all(isinstance(parameter, DTensor) == self._is_sharded for parameter in trained), "sharded alike"
        self._device = trained[0].device
        names = {id(parameter): name for name, parameter in parameters.items()}
        given = fisher if ewc else None
        assert not ewc or given is not None, "ewc weighs with the Fisher information"
        self._groups = [_keep(group, names, given) for group in optimizer.param_groups if group["params"]]
        self._base_squares = self._over_ranks(sum(_squares(each) for group in self._groups for each in group.base))
        weights = float(self._over_ranks(sum(local_part(parameter).numel() for parameter in trained)))
        self.rms = (float(self._base_squares) / weights) ** 0.5
        """Root mean square of the base's trainable weights, those of all ranks together."""
        assert self.rms > 0, "the base's weights are not all 0"
        # Infinity x 0 would be no number, for weights without Fisher information or a learning rate of 0.
        self._l2, self._ewc = (min((strength or 0.0) / self.rms, _LARGEST) for strength in (l2_sp, ewc))

    @property
    def memory_bytes(self) -> int:
        """Memory for this rank's part of the base's weights and of the Fisher information."""
        kept = [each for group in self._groups for each in (*group.base, *(group.fisher or ()))]
        return sum(piece.numel() * piece.element_size() for pieces in kept for piece in pieces)

    @torch.no_grad()
    def pull(self, left_out: torch.Tensor) -> None:
        """Pull the parameters by one step of their groups' learning rates; to be called after `optimizer.step()`.

        left_out: scalar, 1 when the update was not made, and then the weights stay as they are; read on the device,
        without waiting for it.
        """
        if not (self._l2 or self._ewc):
            return
        # An offloaded model's weights are on the CPU, where AdamW has waited for it already.
        kept = 1 - left_out.to(self._device, torch.float32)
        for group in self._groups:
            rate = float(group.settings["lr"])
            alike, by_fisher = (kept * (rate * strength) for strength in (self._l2, self._ewc))
            for weights, base, fisher in group.pieces():
                if fisher is None:
                    share = [alike.clamp(max=1.0)] * len(weights)
                else:
                    share = list(torch._foreach_mul(fisher, by_fisher))
                    if self._l2:
                        torch._foreach_add_(share, alike)
                    torch._foreach_clamp_max_(share, 1.0)
                torch._foreach_lerp_(weights, base, share)

    @torch.no_grad()
    def distance(self) -> torch.Tensor:
        """Return |theta - theta0| / |theta0| over all trainable weights, a scalar on the device; collective."""
        moved = sum(
            _squares(torch._foreach_sub(weights, base)) for group in self._groups for weights, base, _ in group.pieces()
        )
        return (self._over_ranks(moved) / self._base_squares).sqrt()

    def _over_ranks(self, value: torch.Tensor | int) -> torch.Tensor:
        """Add up a scalar over ranks that hold parts; ranks that hold all have it already."""
        scalar = torch.as_tensor(value, dtype=torch.float64).to(self._ranks.device)
        return summed(scalar, self._ranks) if self._is_sharded else scalar


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a parameter, detached: all of it, or its shard."""
    part = tensor.detach()
    return part.to_local() if isinstance(part, DTensor) else part


def local_part_of_whole(whole: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Cut the part that this rank holds of a parameter `like` out of a tensor that every rank has whole."""
    assert whole.shape == like.shape, f"{tuple(whole.shape)} is not {tuple(like.shape)}"
    if not isinstance(like, DTensor):
        return whole
    assert like.placements == (Shard(0),), "FSDP2 deals out rows"
    parts = whole.chunk(like.device_mesh.size(), dim=0)
    rank = like.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else whole[:0]


def _keep(settings: dict[str, Any], names: Mapping[int, str], fisher: Mapping[str, torch.Tensor] | None) -> _Group:
    """Copy what a group of parameters and their Fisher information hold, cut into pieces."""
    parameters: list[torch.Tensor] = settings["params"]
    flat = [local_part(parameter).view(-1) for parameter in parameters]
    cuts = list(_cuts([len(each) for each in flat], _AT_ONCE[flat[0].device.type]))
    base = [each.float().clone() for each in flat]
    weighed = None
    if fisher is not None:
        own = [local_part_of_whole(fisher[names[id(parameter)]], parameter) for parameter in parameters]
        # A copy also of a CPU's: it may be a part of a file that is mapped into memory.
        weighed = [each.reshape(-1).to(to.device, torch.float32, copy=True) for each, to in zip(own, flat, strict=True)]
    return _Group(
        settings,
        parameters,
        cuts,
        [_cut(base, each) for each in cuts],
        None if weighed is None else [_cut(weighed, each) for each in cuts],
    )


def _cuts(lengths: list[int], limit: int) -> Iterator[list[Cut]]:
    """Cut tensors of these lengths into pieces, and gather pieces up to `limit` numbers together."""
    gathered: list[Cut] = []
    room = limit
    for number, length in enumerate(lengths):
        start = 0
        while start < length:
            stop = min(length, start + room)
            gathered.append((number, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield gathered
                gathered, room = [], limit
    if gathered:
        yield gathered


def _cut(flat: list[torch.Tensor], cuts: list[Cut]) -> list[torch.Tensor]:
    return [flat[number][start:stop] for number, start, stop in cuts]


def _squares(pieces: list[torch.Tensor] | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the sum of the squares of all elements, in fp64: a scalar on the pieces' device."""
    return torch.stack(torch._foreach_norm(list(pieces))).double().square().sum()
