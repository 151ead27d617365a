"""How fast a GPU trains the MobileLLM shapes of 125M and 350M parameters, strategy by strategy, and HF's Trainer there.

    python benchmarks/gpu.py [--quick] [--shapes 125M,350M] [--minutes 7.5]

Steps of 131,072 tokens in rows of 2,048, packed documents as long as web pages, bf16 with fp32 master weights: the
training step itself (forward and backward passes over every micro-batch, clipping, fused AdamW), its batches on the
device already. MFU is the model's FLOPs (nothing that is computed twice counts twice) over the device's dense bf16
peak: that of the data sheet, and that of a large matrix product measured here. What would not begin within the minutes
is left out, and said. The last line is flat JSON. `--device cpu --tiny` runs every part on a small scale, for tests.
The Trainer needs accelerate, which `pip install .[bench]` brings.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from onward.errors import UserError
from onward.model.flops import training_flops
from onward.model.shape import ModelShape, read_shape
from onward.model.source import resolve
from onward.recipe import Optimizer
from onward.training.hardware import Precision, measure_matmul_peak, this_machine
from onward.training.launch import Place
from onward.training.learner import Learner
from onward.training.network import Rows
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from packed_rows import PackedRows, made_rows
from shapes import SHAPES, Shape, random_model
from trainers import BETAS, CLIP_NORM, EPSILON, LEARNING_RATE, WEIGHT_DECAY, Job, hf_trainer, trainer_arguments

_DISTINCT_STEPS = 2
"""Steps of different rows, taken in turn."""
_LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Scale:
    """Rows of a step and their length; steps before the timed ones, and those."""

    rows_per_step: int
    sequence_tokens: int
    warm_up: int
    steps: int

    @property
    def step_tokens(self) -> int:
        """Tokens of a step, padding included."""
        return self.rows_per_step * self.sequence_tokens


FULL, QUICK, TINY = Scale(64, 2048, 4, 12), Scale(64, 2048, 3, 5), Scale(4, 64, 2, 2)


@dataclass(frozen=True)
class Attempt:
    """One way of training. trainer: onward or hf. seconds: what it takes at most, its compilation included."""

    trainer: str
    checkpoint_every: int
    micro_batch: int
    compiled: bool
    seconds: float

    @property
    def name(self) -> str:
        """For the table and the keys."""
        recomputed = {0: "none", 1: "all"}.get(self.checkpoint_every, f"every_{self.checkpoint_every}")
        return f"{self.trainer}_{recomputed}_{self.micro_batch}{'_compiled' if self.compiled else ''}"


def attempts(scale: Scale) -> list[Attempt]:
    """Return what is tried, what matters most first; a micro-batch never has more rows than a step."""
    tried = [
        Attempt("onward", 0, 16, True, 60),
        Attempt("hf", 0, 16, False, 30),
        Attempt("onward", 0, 16, False, 25),
        Attempt("onward", 0, 32, True, 40),
        Attempt("onward", 2, 32, True, 50),
        Attempt("onward", 1, 64, True, 50),
        Attempt("onward", 0, 8, True, 40),
        Attempt("onward", 0, 64, True, 40),
        Attempt("hf", 0, 16, True, 150),
        Attempt("hf", 0, 32, False, 30),
        Attempt("onward", 1, 16, False, 25),
    ]
    if scale.rows_per_step >= 64:
        return tried
    small = [Attempt("onward", 0, 2, False, 0), Attempt("onward", 2, 2, False, 0), Attempt("hf", 0, 2, False, 0)]
    return [*small, Attempt("onward", 1, 4, False, 0)]


@dataclass(frozen=True)
class Outcome:
    """What an attempt reached. peak_bytes: allocated on the GPU (0 on a CPU). loss_nats: mean over all steps."""

    tokens_per_s: float
    peak_bytes: int
    loss_nats: float


@dataclass(frozen=True)
class Model:
    """A shape's folder with random weights, and its rows for all steps that differ."""

    name: str
    shape: ModelShape
    folder: Path
    rows: PackedRows
    scale: Scale

    @property
    def flops_per_token(self) -> float:
        """The model's floating-point operations, forward and backward."""
        return training_flops(self.shape, self.rows.ids_NT.size, self.rows.causal_pairs) / self.rows.ids_NT.size

    def step(self, number: int) -> tuple[int, int]:
        """Return the first row of a step and the one after its last."""
        first = number % _DISTINCT_STEPS * self.scale.rows_per_step
        return first, first + self.scale.rows_per_step


def main() -> None:
    """Measure what the arguments ask for, print a table and the line of JSON."""
    started = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="The first three attempts of each shape.")
    parser.add_argument("--shapes", help="Of 125M, 350M, 5M. [default: 125M,350M]")
    parser.add_argument("--minutes", type=float, default=7.5, help="Begin nothing that would end later. [default: 7.5]")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="A model of two layers, fp32 steps of 256 tokens.")
    arguments = parser.parse_args()
    try:
        device = find_device(arguments.device)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    scale = TINY if arguments.tiny else QUICK if arguments.quick else FULL
    shapes = (arguments.shapes or ("tiny" if arguments.tiny else "125M,350M")).split(",")
    precision: Precision = "bf16" if device.type == "cuda" else "fp32"
    hardware = this_machine(device.type)
    peak = measure_matmul_peak(device, precision, 0.2 if arguments.tiny else 3.0)
    print_machine(hardware.name, hardware.peak(precision), peak)
    facts: dict[str, float] = {"measured_peak_flop_per_s": peak}
    with tempfile.TemporaryDirectory(prefix="gpu-") as work:
        for number, name in enumerate(shapes):
            # The minutes are shared out: a later shape gets its part.
            until = started + 60 * arguments.minutes * (number + 1) / len(shapes)
            model = write_model(name, SHAPES[name], scale, Path(work) / name)
            found = dict(outcomes(model, device, precision, attempts(scale)[: 3 if arguments.quick else None], until))
            facts |= facts_of(model, found, hardware.peak(precision), peak)
    print(json.dumps({name: float(f"{value:.6g}") for name, value in facts.items()}))


def find_device(kind: str) -> torch.device:
    """Return the device; raises UserError where there is no such GPU, or one without bf16."""
    if kind == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        todo = "run this on a machine with an NVIDIA GPU and a CUDA build of torch; benchmarks/training.py is for CPUs"
        raise UserError("there is no GPU to measure", "benchmarks/gpu.py", f"torch {torch.__version__}", "CUDA", todo)
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        todo = "use an Ampere GPU or a later one"
        raise UserError("this GPU does not multiply bf16", "benchmarks/gpu.py", torch.cuda.get_device_name(), todo=todo)
    torch.cuda.set_device(0)
    return torch.device("cuda", 0)


def write_model(name: str, shape: Shape, scale: Scale, folder: Path) -> Model:
    """Write random weights, and make the rows."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    random_model(shape, scale.sequence_tokens).save_pretrained(folder)
    rows = made_rows(shape.vocab_size, _DISTINCT_STEPS * scale.rows_per_step, scale.sequence_tokens)
    return Model(name, read_shape(folder), folder, rows, scale)


def outcomes(
    model: Model, device: torch.device, precision: Precision, tried: list[Attempt], until: float
) -> Iterator[tuple[Attempt, Outcome]]:
    """Make every attempt that fits into the time and into memory; say of the others why not."""
    print(f"\n{model.name}, {model.shape.parameters / 1e6:.0f}M parameters")
    for attempt in tried:
        left = until - time.monotonic()
        if left < attempt.seconds:
            print(
                f"{attempt.name:<34} left out: {left:.0f} s are left, {attempt.seconds:.0f} may be needed", flush=True
            )
            continue
        run = measure_onward if attempt.trainer == "onward" else measure_hf
        try:
            outcome = run(model, attempt, device, precision)
        except torch.OutOfMemoryError:
            print(f"{attempt.name:<34} does not fit into memory", flush=True)
            continue
        except ImportError as error:
            print(f"{attempt.name:<34} left out: {error}", flush=True)
            continue
        finally:
            release(device)
        speed, megabytes = outcome.tokens_per_s, outcome.peak_bytes / 1e6
        print(
            f"{attempt.name:<34} {speed:>12,.0f} tokens/s {megabytes:>9,.0f} MB   loss {outcome.loss_nats:.3f}",
            flush=True,
        )
        yield attempt, outcome


def release(device: torch.device) -> None:
    """Give back what an attempt has left on the device."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Clock:
    """Times the steps after the warm-up; the device is waited for at the two ends only."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        self._scale, self._device = scale, device
        self._begun = self._ended = 0.0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def step(self, done: int) -> None:
        """So many steps are done."""
        if done == self._scale.warm_up:
            self._begun = self._now()
        elif done == self._scale.warm_up + self._scale.steps:
            self._ended = self._now()

    def outcome(self, loss_nats: float) -> Outcome:
        """Return what was measured."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else 0
        return Outcome(self._scale.steps * self._scale.step_tokens / (self._ended - self._begun), peak, loss_nats)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def measure_onward(model: Model, attempt: Attempt, device: torch.device, precision: Precision) -> Outcome:
    """Make onward's own updates; the losses are read when all is done."""
    chunk = max(16, _LOGITS_BYTES // (4 * model.shape.vocabulary))
    strategy = Strategy(
        checkpoint_every=attempt.checkpoint_every,
        micro_batch=attempt.micro_batch,
        loss_chunk=chunk,
        compiled=attempt.compiled,
    )
    settings = Optimizer(
        learning_rate=LEARNING_RATE, betas=BETAS, epsilon=EPSILON, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
    )  # type: ignore[call-arg]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    ranks = Ranks(Place(), device)
    clock = Clock(model.scale, device)
    learner = Learner(resolve(str(model.folder)), settings, strategy, dtype, model.scale.step_tokens, ranks)
    steps = [micro_batches(model, number, attempt.micro_batch, device) for number in range(_DISTINCT_STEPS)]
    labelled = [model.rows.batch(*model.step(number)).labelled_tokens for number in range(_DISTINCT_STEPS)]
    losses = []
    for number in range(model.scale.warm_up + model.scale.steps):
        chosen = number % _DISTINCT_STEPS
        measured = learner.update(steps[chosen], labelled[chosen], LEARNING_RATE)
        assert measured is not None, "nothing cancels it"
        losses.append(measured.loss_nats)
        clock.step(number + 1)
    return clock.outcome(float(torch.stack(losses).mean()))


def micro_batches(model: Model, number: int, size: int, device: torch.device) -> list[Rows]:
    """Return a step's micro-batches on the device."""
    first, last = model.step(number)
    return [Rows.of(model.rows.batch(row, row + size)).to(device) for row in range(first, last, size)]


def measure_hf(model: Model, attempt: Attempt, device: torch.device, precision: Precision) -> Outcome:
    """Train by HF's Trainer as its users do; it too reads the losses when all is done."""
    from transformers import AutoModelForCausalLM

    scale = model.scale
    total = scale.warm_up + scale.steps
    work = str(model.folder.parent)
    counts = (total, scale.rows_per_step, attempt.micro_batch, scale.sequence_tokens, attempt.compiled)
    job = Job("hf", str(model.folder), "", "", work, precision, *counts)
    clock = Clock(scale, device)
    network = AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32, attn_implementation="sdpa")
    arguments = trainer_arguments(job, device.type, logging_steps=total)
    trainer = hf_trainer(network, model.rows, arguments, clock.step)
    trainer.train()
    return clock.outcome([row["loss"] for row in trainer.state.log_history if "loss" in row][-1])


def print_machine(name: str, known: float | None, measured: float) -> None:
    """Print what the figures are of."""
    import transformers

    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}")
    sheet = "not in the table" if known is None else f"{known / 1e12:,.1f} TFLOP/s"
    print(f"dense peak: {sheet}; a large matrix product here: {measured / 1e12:,.1f} TFLOP/s")


def facts_of(model: Model, found: dict[Attempt, Outcome], known: float | None, measured: float) -> dict[str, float]:
    """Print the MFU of every attempt; return the flat figures, the best of each trainer among them."""
    facts: dict[str, float] = {}
    shape = model.name.lower()
    for attempt, outcome in found.items():
        reached = outcome.tokens_per_s * model.flops_per_token
        name = f"{shape}_{attempt.name}"
        facts[f"{name}_tokens_per_s"] = outcome.tokens_per_s
        facts[f"{name}_mfu_of_measured_peak"] = reached / measured
        facts[f"{name}_peak_memory_mb"] = outcome.peak_bytes / 1e6
        facts[f"{name}_loss_nats"] = outcome.loss_nats
        of_sheet = ""
        if known is not None:
            facts[f"{name}_mfu"] = reached / known
            of_sheet = f"MFU {100 * reached / known:.1f} %, "
        print(f"{attempt.name:<34} {of_sheet}{100 * reached / measured:.1f} % of the measured peak")
    best = {
        trainer: max((one.tokens_per_s for tried, one in found.items() if tried.trainer == trainer), default=None)
        for trainer in ("onward", "hf")
    }
    if best["onward"] and best["hf"]:
        facts[f"ratio_vs_hf_trainer_{shape}"] = best["onward"] / best["hf"]
        print(f"onward's best over HF Trainer's best: {best['onward'] / best['hf']:.2f}")
    return facts


if __name__ == "__main__":
    main()
