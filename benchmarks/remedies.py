"""What each remedy against forgetting costs: time of a training step relative to one without, and bytes of state.

    python benchmarks/remedies.py [--quick] [--rounds 11] [--rows 20] [--tokens 256] [--threads 1] [--precision fp32]

The base is onward/tiny with made-up packed documents, of which every twentieth row is replayed (5 %). All learners
stand in memory at once and make one step each in turn, so what else the machine does meets all of them alike; time is
the processor's, and the ratio the median over rounds of a remedy's time over that of the plain step of its round. The
last line is one flat JSON object.
"""

import argparse
import json
import time
from dataclasses import replace
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from onward.batches import Batch
from onward.model.load import load_model
from onward.model.shape import read_shape
from onward.model.source import ModelSource, resolve
from onward.recipe import Forgetting, Optimizer
from onward.training.launch import Place
from onward.training.learner import Learner
from onward.training.memory import predict
from onward.training.network import Rows
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from packed_rows import made_rows

RATE = 1e-4
REMEDIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "kl": {"kl": 1.0},
    "ewc": {"ewc": 1.0},
    "l2_sp": {"l2_sp": 1.0},
    "ewc_l2_sp_kl": {"ewc": 1.0, "l2_sp": 1.0, "kl": 1.0},
    "freeze_embeddings": {"freeze": "embeddings"},
    "freeze_embeddings_half": {"freeze": {"embeddings": True, "blocks": 3}},
    "lora": {"lora": {}},
}


def learner_of(base: ModelSource, remedy: str, strategy: Strategy, precision: torch.dtype, tokens: int) -> Learner:
    """A learner with one remedy; its Fisher information is made up, since its values cost no time."""
    fisher = {name: torch.ones(p.shape) for name, p in load_model(base).named_parameters()}
    settings = Optimizer.model_validate({"learning_rate": RATE})
    ranks, forgetting = Ranks(Place(), torch.device("cpu")), Forgetting.model_validate(REMEDIES[remedy])
    return Learner(base, settings, strategy, precision, tokens, ranks, forgetting=forgetting, fisher=fisher)


def seconds_of_step(learner: Learner, batch: Batch, micro: list[Rows]) -> float:
    """Make one step and return the processor's time that it took, of all threads."""
    started = time.process_time()
    found = learner.update(micro, batch.labelled_tokens, RATE)
    assert found is not None
    assert found.left_out == 0
    return time.process_time() - started


def state_bytes(learner: Learner) -> int:
    """Weights, gradients, moments and what is kept of the base."""
    parameters = list(learner.model.parameters())
    total = sum(p.nbytes for p in parameters) + 3 * sum(p.nbytes for p in parameters if p.requires_grad)
    total += 0 if learner.anchor is None else learner.anchor.memory_bytes
    if learner.reference is not None:
        total += sum(p.nbytes for p in learner.reference.network.parameters())
    return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of small steps: does it work at all")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    asked = parser.parse_args()
    rounds, tokens = (2, 32) if asked.quick else (asked.rounds, asked.tokens)
    torch.set_num_threads(asked.threads)
    base, precision = resolve("onward/tiny", None), {"fp32": torch.float32, "bf16": torch.bfloat16}[asked.precision]
    shape = read_shape(base)
    packed = made_rows(shape.vocabulary, asked.rows, tokens)
    batch = replace(packed.batch(0, asked.rows), replayed_B=np.arange(asked.rows) % 20 == 0)
    strategy = Strategy(micro_batch=max(1, asked.rows // 2), loss_chunk=256)
    cuts = range(0, asked.rows, strategy.micro_batch)
    micro = [Rows.of(batch.rows(start, start + strategy.micro_batch)) for start in cuts]
    learners = {name: learner_of(base, name, strategy, precision, asked.rows * tokens) for name in REMEDIES}
    seconds: dict[str, list[float]] = {name: [] for name in REMEDIES}
    for number in range(rounds + 1):
        for name, learner in learners.items():
            taken = seconds_of_step(learner, batch, micro)
            if number:  # the first one allocates
                seconds[name].append(taken)
    facts: dict[str, float] = {"rounds": rounds, "tokens_per_step": asked.rows * tokens}
    print(f"{'remedy':24} {'s a step':>9} {'ratio':>6} {'quartiles':>13} {'state, MB':>10} {'predicted':>10}")
    for name, learner in learners.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        use = predict(
            shape, strategy, sequence_tokens=tokens, world=1, kind="cpu", precision=asked.precision,
            forgetting=Forgetting.model_validate(REMEDIES[name]),
        )  # fmt: skip
        state, foreseen = state_bytes(learner), use.weights + use.optimizer + use.remedies + use.optimizer // 2
        print(
            f"{name:24} {median(seconds[name]):9.3f} {median(ratios):6.2f} {f'{low:.2f} to {high:.2f}':>13} "
            f"{state / 1e6:10.1f} {foreseen / 1e6:10.1f}"
        )
        facts |= {f"{name}_step_seconds": median(seconds[name]), f"{name}_state_bytes": state}
        facts[f"{name}_time_ratio"] = median(ratios)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
