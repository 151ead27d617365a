"""Predicted against measured peak memory of the training step on this machine's CPU, over strategies.

    python benchmarks/memory_prediction.py [--quick] [--shapes 5M,125M] [--threads 1]

Each case runs in a process of its own: random weights, rows of documents of all lengths, the same step as `onward
train`. Measured is the peak resident memory from the built optimizer to the last step; predicted is what
`onward.training.memory.predict` says beforehand, given what the process held before it built the model.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEQUENCE_TOKENS = 2048


@dataclass(frozen=True)
class Case:
    """One strategy of one shape. rows: sequences of a micro-batch. chunk: positions whose logits exist at one time."""

    shape: str
    precision: str
    checkpoint_every: int
    chunk: int
    rows: int
    micro_batches: int = 2

    @property
    def name(self) -> str:
        """As the table prints it."""
        recompute = {0: "none", 1: "all"}.get(self.checkpoint_every, f"every {self.checkpoint_every}.")
        return f"{self.shape:>5} {self.precision} {recompute:>8} {self.chunk:>6} {self.rows:>4} {self.micro_batches:>5}"


@dataclass(frozen=True)
class Measured:
    """Bytes of one case: predicted, the peak by the end of the first and of the last step, parts of the prediction."""

    predicted_bytes: int
    first_bytes: int
    last_bytes: int
    parts: dict[str, int]

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_bytes / self.last_bytes - 1


def cases(shapes: list[str], quick: bool) -> Iterator[Case]:
    """None, half and all recomputed; small and large chunks; fp32 and bf16; one and two micro-batches."""
    for shape in shapes:
        rows = 2 if shape == "5M" else 1
        for precision in ("bf16", "fp32"):
            yield Case(shape, precision, 0, 256, rows)
            yield Case(shape, precision, 1, 256, rows)
            if not quick:
                yield Case(shape, precision, 2, 256, rows)
                yield Case(shape, precision, 0, 2048, rows)
                yield Case(shape, precision, 1, 2048, rows)
                yield Case(shape, precision, 0, 256, rows, micro_batches=1)


def measure(case: Case, steps: int) -> Measured:
    """Train a few steps in this process."""
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  (the baseline holds the libraries)

    from onward.model.heap import keep_freed_memory, return_freed_memory
    from onward.model.shape import shape_of
    from onward.recipe import Optimizer
    from onward.training.memory import MemoryMeter, predict
    from onward.training.network import Network
    from onward.training.optimizer import build_optimizer
    from onward.training.parallel import clip
    from onward.training.strategy import Strategy
    from shapes import SHAPES, random_model

    if case.checkpoint_every:
        return_freed_memory()
    else:
        keep_freed_memory()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    meter = MemoryMeter("cpu")
    baseline = meter.read().allocated
    model = random_model(SHAPES[case.shape], SEQUENCE_TOKENS)
    shape = shape_of(model.config.to_dict())
    assert shape is not None
    strategy = Strategy(checkpoint_every=case.checkpoint_every, micro_batch=case.rows, loss_chunk=case.chunk)
    use = predict(
        shape, strategy, sequence_tokens=SEQUENCE_TOKENS, world=1, kind="cpu", precision=case.precision,  # type: ignore[arg-type]
        micro_batches=case.micro_batches, baseline_bytes=baseline,
    )  # fmt: skip
    network = Network(model, torch.bfloat16 if case.precision == "bf16" else torch.float32, strategy)
    optimizer = build_optimizer(model, Optimizer(), 100_000)  # type: ignore[call-arg]
    parameters = list(network.parameters())
    random, peaks = np.random.default_rng(0), []
    meter.reset()
    for _ in range(steps):
        with network.compute_weights():
            for _ in range(case.micro_batches):
                network(_rows(random, case.rows, shape.vocabulary)).div(1000).backward()
            clip(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        peaks.append(meter.read().peak)
    return Measured(use.total, peaks[0], peaks[-1], asdict(use))


def _rows(random: np.random.Generator, rows: int, vocabulary: int) -> Any:
    """Rows of log-normal documents, as web pages are (median 400 tokens)."""
    from onward.batches import Batch
    from onward.training.network import Rows

    ids = random.integers(0, vocabulary, (rows, SEQUENCE_TOKENS))
    positions, documents = np.zeros_like(ids), np.zeros_like(ids)
    for row in range(rows):
        start = number = 0
        while start < SEQUENCE_TOKENS:
            end = min(SEQUENCE_TOKENS, start + 8 + int(random.lognormal(np.log(400), 1.0)))
            positions[row, start:end], documents[row, start:end] = np.arange(end - start), number
            start, number = end, number + 1
    return Rows.of(Batch(ids, np.roll(ids, -1, axis=1), documents, positions, np.zeros(rows, dtype=np.bool_)))


def in_a_process(case: Case, steps: int) -> Measured:
    """Measure a case in a fresh process, so that it inherits no heap."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--steps", str(steps)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the 5M shape and four cases, about a minute")
    parser.add_argument("--shapes", default=None, help="5M,125M")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(asdict(measure(Case(**json.loads(options.case)), options.steps))))
        return
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    shapes = (options.shapes or ("5M" if options.quick else "5M,125M")).split(",")
    print("shape precision recompute chunk rows micro-batches: predicted MB, measured MB, error")
    errors = []
    for case in cases(shapes, options.quick):
        found = in_a_process(case, options.steps or (3 if case.shape != "5M" else 4 if options.quick else 8))
        errors.append(found.error)
        first = f"after one step {found.first_bytes / 1e6:,.0f}"
        print(
            f"{case.name}: {found.predicted_bytes / 1e6:>6,.0f} {found.last_bytes / 1e6:>6,.0f} {found.error:>+7.1%}"
            f"  ({first})", flush=True,
        )  # fmt: skip
    largest = max(errors, key=abs)
    print(json.dumps({"cases": len(errors), "largest_error_of_peak_memory": round(largest, 4)}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
