"""How fast onward trains, and in how much memory, side by side with Hugging Face's Trainer.

    python benchmarks/training.py [DATA] [--quick] [--shapes 5M,125M] [--threads 1,2] [--precision auto,fp32]

The same model with random weights, the same packed rows in the same order with documents kept apart (transformers'
own mask from position_ids), the same AdamW, the same precision, no recomputation. Each side runs in a process of its
own, in turn (ours, theirs, ours, theirs): onward's whole training stage and the Trainer's `train()`. A step is timed
from the end of the one before, and the median counts; the processor's seconds are given too, which other processes
blur less. Peak memory is that of the whole process until the last step's end, imports included. Rows have 2,048 tokens
of FineWeb-Edu's pages or of textbooks where DATA has them, else of made text. The last line is flat JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from onward.model.flops import training_flops
from onward.model.shape import read_shape
from onward.recipe import Training
from onward.training.network import choose_precision
from packed_rows import TEXTS, PackedRows, first_rows, read_documents, write_base, write_corpus
from shapes import SHAPES
from trainers import Job, Measured, shared_settings

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SIDES = ("onward", "hf")


@dataclass(frozen=True)
class Size:
    """How one shape is measured: rows of a step, of a micro-batch, their length, steps, and those not timed.

    probe_seconds: how long the matrix product is measured before each round.
    """

    rows_per_step: int
    micro_batch: int
    sequence_tokens: int
    steps: int
    warm_up: int
    probe_seconds: float


SIZES = {"tiny": Size(2, 1, 64, 3, 1, 0.2), "5M": Size(2, 2, 2048, 20, 4, 3.0), "125M": Size(1, 1, 2048, 8, 2, 3.0)}
QUICK = {"tiny": SIZES["tiny"], "5M": Size(2, 2, 2048, 9, 3, 1.0), "125M": Size(1, 1, 2048, 3, 1, 1.0)}


@dataclass(frozen=True)
class Bench:
    """A shape's files: model, corpus, rows of every step."""

    shape: str
    text: str
    size: Size
    folder: Path
    base: Path
    corpus: Path
    rows: PackedRows

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations of a step: the model's own, nothing recomputed."""
        return training_flops(read_shape(self.base), self.rows.ids_NT.size, self.rows.causal_pairs) / self.size.steps


@dataclass(frozen=True)
class Comparison:
    """Both sides in one setting; medians over the rounds.

    tokens_per_s: padding and unlabelled ones included; tokens_per_cpu_s: for a second of the processor, which other
    processes on a busy machine blur less. peak_mb: whole process; net_mb: less what the imports took.
    gemm_fraction: model FLOPs per second over those of a large matrix product, same precision and threads.
    """

    name: str
    tokens_per_s: tuple[float, float]
    tokens_per_cpu_s: tuple[float, float]
    labelled_share: float
    peak_mb: tuple[float, float]
    net_mb: tuple[float, float]
    gemm_fraction: tuple[float, float]
    loss_difference_nats: float

    @property
    def ratio(self) -> float:
        """Onward's speed over the Trainer's."""
        return self.tokens_per_s[0] / self.tokens_per_s[1]

    @property
    def memory_ratio(self) -> float:
        """Onward's peak over the Trainer's, whole processes."""
        return self.peak_mb[0] / self.peak_mb[1]


def main() -> None:
    """Measure what the arguments ask for, print a table and the line of JSON."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--quick", action="store_true", help="The 5M shape on one thread, once: under a minute.")
    parser.add_argument("--shapes", help="Of tiny, 5M, 125M. [default: 5M,125M]")
    parser.add_argument("--threads", help=f"Threads of each side. [default: 1 and all cores, {cores}]")
    parser.add_argument("--precision", default="auto", help="Of auto, bf16, fp32. [default: auto]")
    parser.add_argument("--text", default="web", help=f"Of {', '.join(TEXTS)}. [default: web]")
    parser.add_argument("--rounds", type=int, help="Rounds, of which the medians count. [default: 2]")
    parser.add_argument("--compile", action="store_true", help="Compile on both sides.")
    parser.add_argument("--work", type=Path, help="Scratch folder. [default: a temporary one]")
    arguments = parser.parse_args()
    quick = arguments.quick
    shapes = (arguments.shapes or ("5M" if quick else "5M,125M")).split(",")
    threads = [int(n) for n in (arguments.threads or ("1" if quick else f"1,{cores}")).split(",")]
    precisions = [resolved(name) for name in arguments.precision.split(",")]
    rounds = arguments.rounds or (1 if quick else 2)
    found = []
    with tempfile.TemporaryDirectory(prefix="training-", dir=arguments.work) as folder:
        for shape, text in ((shape, text) for shape in shapes for text in arguments.text.split(",")):
            size = (QUICK if quick else SIZES)[shape]
            bench = prepare_bench(arguments.data, Path(folder) / f"{shape}-{text}", shape, text, size)
            print(f"\n{shape}, {text}: {bench.rows.pieces_per_row:.1f} document pieces in a row", flush=True)
            for precision, count in (
                (precision, count) for precision in precisions for count in dict.fromkeys(threads)
            ):
                found.append(compare(bench, precision, count, rounds, arguments.compile))
                print_comparison(found[-1])
    print(json.dumps(facts_of(found)))


def resolved(precision: str) -> str:
    """Return the precision that `auto` means on this machine's CPU, as the training stage chooses it."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[choose_precision(precision, torch.device("cpu"))]


def prepare_bench(data: Path, folder: Path, shape: str, text: str, size: Size) -> Bench:
    """Write model and corpus; the tokenizer is made from all texts, the rows come from one of them."""
    folder.mkdir()
    base = folder / "base"
    documents = {name: read_documents(data, name) for name in TEXTS}
    write_base(base, SHAPES[shape], size.sequence_tokens, [text for part in documents.values() for text in part])
    corpus = write_corpus(folder / "text", base, size.sequence_tokens, documents[text])
    job = job_of(size, base, corpus, folder, "fp32")
    rows = first_rows(corpus, Training.model_validate(shared_settings(job)))
    rows.save(folder / "rows.npz")
    return Bench(shape, text, size, folder, base, corpus, rows)


def job_of(size: Size, base: Path, corpus: Path, folder: Path, precision: str) -> Job:
    """Return the job of onward's side."""
    counts = (size.steps, size.rows_per_step, size.micro_batch, size.sequence_tokens)
    return Job("onward", str(base), str(corpus), str(folder / "rows.npz"), str(folder), precision, *counts)


def compare(bench: Bench, precision: str, threads: int, rounds: int, compiled: bool) -> Comparison:
    """Measure both sides in turn."""
    job = job_of(bench.size, bench.base, bench.corpus, bench.folder, precision)
    measured: dict[str, list[Measured]] = {side: [] for side in SIDES}
    peaks = []
    for _ in range(rounds):
        peaks.append(gemm_peak(precision, threads, bench.size.probe_seconds))
        for side in SIDES:
            measured[side].append(run_side(replace(job, side=side, compiled=compiled), threads))
    step_tokens = bench.size.rows_per_step * bench.size.sequence_tokens
    timed = slice(bench.size.warm_up - 1, None)

    def both(of: Callable[[Measured], list[float]]) -> tuple[float, float]:
        ours, theirs = (median(value for one in measured[side] for value in of(one)) for side in SIDES)
        return ours, theirs

    seconds = both(lambda one: one.step_seconds[timed])
    losses = zip(*(one.losses_nats for side in SIDES for one in measured[side]), strict=True)
    text = "" if bench.text == TEXTS[0] else f"_{bench.text}"
    return Comparison(
        name=f"{bench.shape.lower()}{text}_{precision}_{threads}_thread{'' if threads == 1 else 's'}",
        tokens_per_s=(step_tokens / seconds[0], step_tokens / seconds[1]),
        tokens_per_cpu_s=both(lambda one: [step_tokens / taken for taken in one.step_cpu_seconds[timed]]),
        labelled_share=bench.rows.labelled_tokens / bench.rows.ids_NT.size,
        peak_mb=both(lambda one: [one.peak_bytes / 1e6]),
        net_mb=both(lambda one: [(one.peak_bytes - one.baseline_bytes) / 1e6]),
        gemm_fraction=both(
            lambda one: [bench.flops_per_step / taken / median(peaks) for taken in one.step_seconds[timed]]
        ),
        loss_difference_nats=max(max(step) - min(step) for step in losses),
    )


def run_side(job: Job, threads: int) -> Measured:
    """Do one side's job in a process of its own."""
    with tempfile.TemporaryDirectory(dir=job.work) as work:
        file = Path(work) / "job.json"
        file.write_text(json.dumps(asdict(replace(job, work=work))), encoding="utf-8")
        return Measured(**run_script([str(file)], threads))


def gemm_peak(precision: str, threads: int, seconds: float) -> float:
    """Return the FLOP/s of a large matrix product in a process of its own."""
    return float(run_script(["--gemm", precision, str(seconds)], threads)["flop_per_s"])


def run_script(arguments: list[str], threads: int) -> dict[str, Any]:
    """Run `trainers.py` on so many threads and return its last line; its errors end this benchmark."""
    script = str(Path(__file__).with_name("trainers.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, script, *arguments], env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(arguments)}:\n{done.stderr[-4000:]}")
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def print_comparison(found: Comparison) -> None:
    """Print both sides in one setting."""
    print(f"\n{found.name}   {'onward':>10} {'HF Trainer':>10} {'ratio':>7}")
    pairs = {
        "tokens/s": (found.tokens_per_s, 0),
        "labelled tokens/s": ([speed * found.labelled_share for speed in found.tokens_per_s], 0),
        "tokens per CPU second": (found.tokens_per_cpu_s, 0),
        "peak memory, MB": (found.peak_mb, 0),
        "less the imports, MB": (found.net_mb, 0),
        "of GEMM peak, %": ([100 * share for share in found.gemm_fraction], 1),
    }
    for label, ((ours, theirs), digits) in pairs.items():
        print(f"{label:<{len(found.name)}}   {ours:>10,.{digits}f} {theirs:>10,.{digits}f} {ours / theirs:>7.2f}")
    print(f"largest difference of a step's loss: {found.loss_difference_nats:.1e} nats", flush=True)


def facts_of(found: list[Comparison]) -> dict[str, float]:
    """Return the flat figures; those without a setting in their name are the worst over all settings."""
    facts = {
        "ratio_vs_hf_trainer": min(one.ratio for one in found),
        "peak_memory_ratio": max(one.memory_ratio for one in found),
        "max_loss_difference_nats": max(one.loss_difference_nats for one in found),
        "fraction_of_gemm_peak": min(one.gemm_fraction[0] for one in found),
    }
    for one in found:
        facts[f"ratio_vs_hf_trainer_{one.name}"] = one.ratio
        facts[f"cpu_time_ratio_{one.name}"] = one.tokens_per_cpu_s[0] / one.tokens_per_cpu_s[1]
        facts[f"peak_memory_ratio_{one.name}"] = one.memory_ratio
        facts[f"peak_memory_less_imports_ratio_{one.name}"] = one.net_mb[0] / one.net_mb[1]
        facts[f"fraction_of_gemm_peak_{one.name}"] = one.gemm_fraction[0]
        facts[f"loss_difference_nats_{one.name}"] = one.loss_difference_nats
        for side, speed, peak in zip(SIDES, one.tokens_per_s, one.peak_mb, strict=True):
            facts[f"{side}_tokens_per_s_{one.name}"] = speed
            facts[f"{side}_peak_memory_mb_{one.name}"] = peak
    return {name: float(f"{value:.5g}") for name, value in facts.items()}


if __name__ == "__main__":
    main()
