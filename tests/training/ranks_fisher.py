"""Run by torchrun: Fisher information and pulls to the base under several ways of sharing, for their tests."""

import sys
from pathlib import Path

import torch
from ranks_parity import LENGTH, ROWS, batch_of
from safetensors.torch import save_file

from onward.model.source import describe
from onward.recipe import Ewc, Optimizer
from onward.training.anchor import Anchor
from onward.training.fisher import find_fisher, read_fisher
from onward.training.learner import Learner
from onward.training.network import Rows
from onward.training.ranks import Ranks, joined, leave
from onward.training.strategy import Strategy

STEPS = 4
KINDS = [(per, estimator) for per in ("token", "sequence") for estimator in ("exact", "signs")]
STRATEGIES = {
    "none": Strategy(loss_chunk=50),
    "zero2": Strategy(sharding="zero2", loss_chunk=50),
    "zero3": Strategy(sharding="zero3", checkpoint_every=1, loss_chunk=50),
    "offload": Strategy(sharding="zero3", offload=True, loss_chunk=50),
}


def fisher(model: Path, corpus: Path, cache: Path, kind: tuple[str, str], strategy: Strategy, ranks: Ranks) -> Path:
    """The artifact of a kind (`per`, `estimator`) over the whole corpus."""
    ewc = Ewc.model_validate({"per": kind[0], "estimator": kind[1]})
    return find_fisher(describe(model), corpus, cache, ewc, 7, strategy, ranks)


def pulled(
    model: Path, information: Path, strategy: Strategy, ranks: Ranks, strength: float = 1.0
) -> dict[str, torch.Tensor]:
    """The weights after some steps with both pulls, and `distance` and `rms` of the anchor."""
    settings = Optimizer.model_validate({"learning_rate": 1e-2, "embedding_learning_rate": 2e-3})
    learner = Learner(describe(model), settings, strategy, torch.float32, ROWS * LENGTH, ranks)
    parameters = dict(learner.model.named_parameters())
    fisher = read_fisher(information)
    anchor = Anchor(learner.optimizer, parameters, ranks, l2_sp=0.5 * strength, ewc=2 * strength, fisher=fisher)
    share = ROWS // ranks.world
    for step in range(STEPS):
        batch = batch_of(step)
        rows = Rows.of(batch.rows(ranks.place.rank * share, (ranks.place.rank + 1) * share))
        found = learner.update([rows], batch.labelled_tokens, 1e-2)
        assert found is not None
        anchor.pull(found.left_out)
    weights = learner.whole_weights(torch.float32)
    return weights | {"distance": anchor.distance().cpu(), "rms": torch.tensor(anchor.rms, dtype=torch.float64)}


def main() -> None:
    model, corpus, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    with joined(needs_group=True) as ranks:
        for name, strategy in STRATEGIES.items():
            for kind in KINDS:
                artifact = fisher(model, corpus, out / name, kind, strategy, ranks)
            weights = pulled(model, artifact, strategy, ranks)
            if ranks.is_first:
                save_file(weights, out / f"{name}.safetensors")
    leave(0)


if __name__ == "__main__":
    main()
