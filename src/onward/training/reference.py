"""The base beside the model in training: what the divergence from it is measured against, on replayed rows alone."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from onward.model.load import load_model
from onward.model.source import ModelSource
from onward.training.frozen import keep_in_compute_type
from onward.training.loss import Towards
from onward.training.network import Network, Rows
from onward.training.parallel import needs_group, share_out_frozen
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy


class Reference:
    """A frozen copy of the base in the compute type, split over the ranks where the trained network is.

    weight: nats of KL(base || model) at a replayed token's position count so many times. The copy goes the same packed
    way as the network, without gradients.
    """

    def __init__(
        self, base: ModelSource, weight: float, precision: torch.dtype, strategy: Strategy, ranks: Ranks
    ) -> None:
        self._weight, self._ranks = weight, ranks
        self._is_split = needs_group(strategy)
        home = "cpu" if strategy.offload else str(ranks.device)
        # The number of replayed rows differs from one micro-batch to the next, and each would be compiled.
        self.network = Network(
            load_model(base, torch.float32, home), precision, replace(strategy, checkpoint_every=0, compiled=False)
        )
        self.network.requires_grad_(False)
        keep_in_compute_type(self.network, self._is_split)
        share_out_frozen(self.network, strategy, ranks)

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
