"""Run by torchrun: trains a few steps with every remedy under every way of sharing, for `test_remedies_of_ranks`."""

import json
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ranks_parity import LENGTH, ROWS, batch_of
from safetensors.torch import save_file

from onward.batches import Batch
from onward.model.load import load_model
from onward.model.source import describe
from onward.recipe import Forgetting, Optimizer
from onward.training.learner import Learner
from onward.training.network import Rows
from onward.training.ranks import Ranks, joined, leave
from onward.training.strategy import Strategy

REPLAYED = ((1, 6), (0, 1, 2), (), (7,), (3,), tuple(range(ROWS)))
"""Replayed rows of each step: of both ranks, of one alone, of none."""
STRATEGIES = {
    "none": Strategy(micro_batch=2, loss_chunk=50),
    "zero2": Strategy(sharding="zero2", micro_batch=4, loss_chunk=50),
    "zero3": Strategy(sharding="zero3", checkpoint_every=1, micro_batch=2, loss_chunk=50),
    "offload": Strategy(sharding="zero3", offload=True, micro_batch=2, loss_chunk=50),
}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
REMEDIES: dict[str, dict[str, Any]] = {
    "blocks-frozen": {"freeze": {"embeddings": True, "blocks": 2}},
    "lora": {"lora": {"rank": 4, "learning_rate_ratio": 0.5}},
    "kl": {"kl": 3.0},
    "lora-kl-frozen": {"lora": {"rank": 4, "learning_rate_ratio": 0.5}, "kl": 3.0, "freeze": 1},
    "all-without-lora": {"kl": 3.0, "ewc": 2.0, "l2_sp": 0.5, "freeze": {"embeddings": True, "blocks": 1}},
}


@dataclass(frozen=True)
class Trained:
    """Loss and divergence of every step (None: nothing was replayed), and the weights that would be exported."""

    figures: list[tuple[float, float | None]]
    weights: dict[str, torch.Tensor]


def replaying(step: int) -> Batch:
    """The batch of a step, some of whose rows are replayed."""
    return replace(batch_of(step), replayed_B=np.isin(np.arange(ROWS), REPLAYED[step]))


def made_up_fisher(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of any size for every parameter."""
    random = torch.Generator().manual_seed(5)
    return {name: torch.rand(p.shape, generator=random) * 2 for name, p in load_model(folder).named_parameters()}


def trained(folder: Path, remedy: str, strategy: Strategy, ranks: Ranks, precision: str = "fp32") -> Trained:
    """Train a fresh model."""
    settings = Optimizer.model_validate({"learning_rate": 1e-2, "embedding_learning_rate": 2e-3})
    learner = Learner(
        describe(folder), settings, strategy, PRECISIONS[precision], ROWS * LENGTH, ranks,
        forgetting=Forgetting.model_validate(REMEDIES[remedy]), fisher=made_up_fisher(folder), seed=4,
    )  # fmt: skip
    assert all(block.training == bool(strategy.checkpoint_every) for block in learner.network.blocks)
    share = ROWS // ranks.world
    first = ranks.place.rank * share
    figures = []
    for step in range(len(REPLAYED)):
        batch = replaying(step)
        cuts = range(first, first + share, strategy.micro_batch)
        micro = [Rows.of(batch.rows(start, start + strategy.micro_batch)) for start in cuts]
        found = learner.update(micro, batch.labelled_tokens, rate=1e-2)
        assert found is not None
        divergence = None if found.kl_nats is None or found.kl_nats.isnan() else float(found.kl_nats)
        figures.append((float(found.loss_nats), divergence))
    return Trained(figures, learner.whole_weights(torch.float32))


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    figures = {}
    with joined(needs_group=True) as ranks:
        for name, strategy in STRATEGIES.items():
            for remedy, precision in product(REMEDIES, PRECISIONS):
                found = trained(folder, remedy, strategy, ranks, precision)
                figures[f"{name}-{remedy}-{precision}"] = found.figures
                if ranks.is_first:
                    save_file(found.weights, out / f"{name}-{remedy}-{precision}.safetensors")
        if ranks.is_first:
            (out / "figures.json").write_text(json.dumps(figures))
    leave(0)


if __name__ == "__main__":
    main()
