"""The base beside the model in training: what the divergence from it is measured against, on replayed rows alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.distributed as dist

from onward.model.load import load_model
from onward.model.source import ModelSource
from onward.training.adapters import without_adapters
from onward.training.frozen import keep_in_compute_type
from onward.training.loss import Towards
from onward.training.network import Network, Rows
from onward.training.parallel import needs_group, share_out_frozen
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy


def frozen_copy(base: ModelSource, precision: torch.dtype, strategy: Strategy, ranks: Ranks) -> Network:
    """Load the base once more, in the compute type, split over the ranks where the trained network is."""
    home = "cpu" if strategy.offload else str(ranks.device)
    # The number of replayed rows differs from one micro-batch to the next, and each would be compiled.
    network = Network(
        load_model(base, torch.float32, home), precision, replace(strategy, checkpoint_every=0, compiled=False)
    )
    network.requires_grad_(False)
    keep_in_compute_type(network, needs_group(strategy))
    share_out_frozen(network, strategy, ranks)
    return network


class Reference:
    """The base in the compute type, going the same packed way as the network, without gradients.

    network: a `frozen_copy`, or the trained network itself where it has adapters and nothing else is trained: without
    them it is the base. weight: nats of KL(base || model) at a replayed token's position count so many times.
    """

    def __init__(self, network: Network, weight: float, strategy: Strategy, ranks: Ranks) -> None:
        self.network, self._weight, self._ranks = network, weight, ranks
        self._is_split = needs_group(strategy)
        self._is_compiled = strategy.compiled

    def takes_part(self, micro: Sequence[Rows]) -> list[bool]:
        """Return in which micro-batches of a step this rank has to ask for `towards`.

        Where the copy is split that is wherever any rank's has a replayed row: each holds a part of the weights.
        Collective then.
        """
        flags = [rows.replayed is not None for rows in micro]
        if not self._is_split or self._ranks.world == 1:
            return flags
        shared = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=self._ranks.control)
        return [bool(flag) for flag in shared.tolist()]

    @torch.no_grad()
    def towards(self, rows: Rows) -> Towards:
        """Return what the replayed rows of a micro-batch are measured against; without any, at no position."""
        replayed = rows.replayed
        with without_adapters(self.network.model), self._as_written():
            hidden = self.network.scaled(self.network(rows.first() if replayed is None else replayed.rows, True))
        within = torch.zeros(0, dtype=torch.int64, device=hidden.device) if replayed is None else replayed.within_M
        head = self.network.model.get_output_embeddings()
        return Towards(
            self._weight,
            within if replayed is None else replayed.at_M,
            hidden[within],
            head.weight,
            getattr(head, "bias", None),
        )

    @contextmanager
    def _as_written(self) -> Iterator[None]:
        """Leave compiled blocks uncompiled: each number of replayed rows would be compiled."""
        if not self._is_compiled:
            yield
            return
        with torch.compiler.set_stance("force_eager"):
            yield
