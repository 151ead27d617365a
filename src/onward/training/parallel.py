"""How the ranks share a network: each has all of it (DDP), or a part of its state or of it all (FSDP2)."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from inspect import signature
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from onward.training.network import Network
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy


def needs_group(strategy: Strategy) -> bool:
    """Whether a process group is needed even for one process: FSDP2 splits over it."""
    return strategy.sharding != "none" or strategy.offload


def share_out(network: Network, strategy: Strategy, ranks: Ranks) -> torch.nn.Module:
    """Return the module that the training step calls: the network itself, DDP around it, or the network sharded.

    The network's blocks are sharded one by one; embeddings, last norm and head are one more part, kept in fp32.
    """
    if needs_group(strategy):
        _shard(network, strategy, ranks)
        return network
    if ranks.world == 1:
        return network
    device_ids = [ranks.device.index] if ranks.device.type == "cuda" else None
    # Buffers (rotary frequencies) never change; torch 2.13 has another name for leaving them alone.
    known = signature(DistributedDataParallel.__init__).parameters
    leave_buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    settings: dict[str, Any] = {"gradient_as_bucket_view": True, leave_buffers: False}
    return DistributedDataParallel(network, device_ids=device_ids, **settings)


def share_out_frozen(network: Network, strategy: Strategy, ranks: Ranks) -> None:
    """Split a network that nothing of is trained, where the one beside it is split; else every rank has all of it.

    Its blocks' weights go again after each forward pass: no backward pass is to come that needs them.
    """
    if needs_group(strategy):
        _shard(network, replace(strategy, sharding="zero3"), ranks)


def _shard(network: Network, strategy: Strategy, ranks: Ranks) -> None:
    mesh = DeviceMesh(ranks.device.type, list(range(ranks.world)))
    on_gpu = ranks.device.type == "cuda"
    offload = CPUOffloadPolicy(pin_memory=on_gpu) if strategy.offload else OffloadPolicy()
    # zero2 keeps the gathered weights until the backward pass; what is split is gradients and optimizer state.
    split_weights = strategy.sharding == "zero3" or strategy.offload
    compute = network.precision if network.precision != torch.float32 else None
    in_blocks = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
    network.casts_weights = False
    for block in network.blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=split_weights, mp_policy=in_blocks, offload_policy=offload)
    outside = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(network, mesh=mesh, reshard_after_forward=False, mp_policy=outside, offload_policy=offload)


def check_sharing(module: torch.nn.Module, strategy: Strategy, ranks: Ranks) -> dict[str, Any]:
    """Assert that the sharding asked for is the one that runs; return it in figures for the record."""
    parameters = list(module.parameters())
    split = [p for p in parameters if isinstance(p, DTensor)]
    held = sum(_local(p).numel() for p in parameters)
    whole = sum(p.numel() for p in parameters)
    if needs_group(strategy):
        assert len(split) == len(parameters), "a parameter is not sharded"
        assert all(p.device_mesh.size() == ranks.world and p.placements == (Shard(0),) for p in split)
        # Rows are dealt out whole: a rank holds at most one row of every tensor more than its share.
        rows = sum(p.numel() // max(1, p.shape[0]) for p in parameters)
        assert held <= whole / ranks.world + rows, f"this rank holds {held} of {whole} parameters"
        if strategy.offload:
            assert all(_local(p).device.type == "cpu" for p in parameters), "a parameter is not offloaded"
    else:
        assert not split, "a parameter is sharded"
        assert isinstance(module, DistributedDataParallel) == (ranks.world > 1)
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    counts = {"parameters": whole, "trained_parameters": trained, "parameters_of_this_rank": held}
    return {**asdict(strategy), "ranks": ranks.world, **counts}


def without_reduction(module: torch.nn.Module) -> Any:
    """Context in which a backward pass adds to this rank's gradients only: all but the last micro-batch of a step.

    Where gradients are sharded they are reduced every time, since keeping them whole is what sharding avoids.
    """
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def clip(parameters: list[torch.nn.Parameter], limit: float | None) -> torch.Tensor:
    """Clip the global gradient norm in place and return it (before clipping), on this rank's device."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm, foreach=True)
    return norm


def summed(value: torch.Tensor, ranks: Ranks) -> torch.Tensor:
    """Add up a small tensor over the ranks, in place."""
    if ranks.world > 1:
        dist.all_reduce(value)
    return value


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a parameter in full on every rank (collective when it is sharded)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(module: torch.nn.Module) -> bool:
    """Whether the module's state is split over the ranks."""
    return isinstance(module, FSDPModule)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
