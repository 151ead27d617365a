"""Run by torchrun: trains the same steps under every strategy and writes their losses, for `test_parallel`."""

import itertools
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onward.batches import NO_TARGET, Batch
from onward.model.source import describe
from onward.recipe import Optimizer
from onward.training.learner import Learner
from onward.training.network import Rows
from onward.training.ranks import Ranks, joined, leave
from onward.training.strategy import Strategy

STEPS, ROWS, LENGTH = 20, 8, 48
SHARING = (("none", False), ("zero2", False), ("zero3", False), ("zero3", True))


def strategies() -> list[Strategy]:
    """Every way of sharing, each with and without checkpointing and accumulation."""
    return [
        Strategy(sharding=sharding, offload=offload, checkpoint_every=every, micro_batch=micro, loss_chunk=50)  # type: ignore[arg-type]
        for (sharding, offload), every, micro in itertools.product(SHARING, (0, 1, 2), (4, 2))
        if every < 2 or micro == 2
    ]


def batch_of(step: int) -> Batch:
    """A batch of random documents, other ones at every step, some rows with padding at their ends."""
    random = np.random.default_rng(step)
    ids = random.integers(1, 9, (ROWS, LENGTH))  # of few tokens, so that there is something to learn
    documents, positions = np.zeros_like(ids), np.zeros_like(ids)
    labels = np.roll(ids, -1, axis=1)
    for row in range(ROWS):
        cut, end = sorted(random.integers(5, LENGTH + 1, 2))
        documents[row, cut:], documents[row, end:] = 1, -1
        positions[row, :cut], positions[row, cut:end] = np.arange(cut), np.arange(end - cut)
        labels[row, [cut - 1, end - 1, -1]] = NO_TARGET
        labels[row, end:] = NO_TARGET
    return Batch(ids, labels, documents, positions, np.zeros(ROWS, dtype=bool))


def losses(folder: Path, strategy: Strategy, ranks: Ranks, precision: torch.dtype = torch.float32) -> list[float]:
    """Train a fresh model under a strategy and return the loss of every step."""
    settings = Optimizer.model_validate({"learning_rate": 1e-2, "embedding_learning_rate": 2e-3})
    learner = Learner(describe(folder), settings, strategy, precision, ROWS * LENGTH, ranks)
    share = ROWS // ranks.world
    first = ranks.place.rank * share
    measured = []
    for step in range(STEPS):
        batch = batch_of(step)
        cuts = range(first, first + share, strategy.micro_batch)
        micro = [Rows.of(batch.rows(start, start + strategy.micro_batch)) for start in cuts]
        found = learner.update(micro, batch.labelled_tokens, rate=1e-2 * (step + 1) / STEPS)
        assert found is not None
        measured.append(float(found.loss_nats))
    return measured


def main() -> None:
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    found: list[dict[str, Any]] = []
    with joined(needs_group=True) as ranks:
        for strategy in strategies():
            losses_of = losses(folder, strategy, ranks)
            found += [{"strategy": asdict(strategy), "losses": losses_of}]
        if ranks.is_first:
            out.write_text(json.dumps({"world": ranks.world, "runs": found}))
    leave(0)


if __name__ == "__main__":
    main()
