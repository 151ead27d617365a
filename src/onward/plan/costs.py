"""What training and scoring cost in time and room: arithmetic over what the machine does, with stated assumptions.

Times are ranges. Where nothing was measured they rest on the shares of the peak below, which other models on other
machines may miss; `onward plan --measure` replaces them by a few real steps.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from onward.artifact import Folders
from onward.batches import BatchPlan
from onward.errors import UserError
from onward.model.flops import evaluation_flops, training_flops
from onward.model.shape import ModelShape
from onward.plan.budget import checkpoint_bytes
from onward.plan.foresight import (
    DiskForesight,
    EvaluationForesight,
    Machine,
    Range,
    TextForesight,
    Timed,
    TrainingForesight,
)
from onward.recipe import Evaluation, Training
from onward.tasks.shots import split_shots
from onward.training.fitting import amount
from onward.training.hardware import Hardware
from onward.training.strategy import Sharding, Strategy

UTILISATION = {
    ("cuda", "bf16"): Range(0.25, 0.40, 0.50),
    ("cuda", "fp32"): Range(0.40, 0.60, 0.75),
    ("cpu", "bf16"): Range(0.06, 0.15, 0.25),
    ("cpu", "fp32"): Range(0.20, 0.40, 0.60),
}
"""Model FLOPs of training over the dense peak, one device, nothing recomputed.

cuda bf16: llm.c trains GPT-2 124M at 475k tokens/s on an H100, 0.38 of 989 TFLOP/s; PaLM 0.46 (arXiv 2204.02311).
cuda fp32: no tensor cores, so less waits for memory; an assumption. cpu: over a matrix product timed on the same
machine. bf16 in AMX tiles: 0.10 with 5M and 0.19 with 125M parameters on one core (5,077 and 333 tokens/s, a product at
1.4 TFLOP/s). fp32: 0.26 with 4M on a busy core, more is an assumption.
"""
NARROW = 512
"""Below this width a GPU waits for launches and memory more than it multiplies: the share of the peak falls with the
width (an assumption)."""
SCALING: dict[Sharding, Range] = {
    "none": Range(0.85, 0.93, 1.0),
    "zero2": Range(0.75, 0.88, 1.0),
    "zero3": Range(0.60, 0.80, 0.95),
}
"""What is left of a device's speed among several in one machine, by how they share the model (an assumption)."""
LAUNCH_SECONDS = Range(1e-4, 3e-4, 1e-3)
"""A GPU's time for one block, forward and backward, that no arithmetic explains: some hundred kernels of a few
microseconds (an assumption)."""
SCORING = Range(0.15, 0.40, 0.70)
"""Share of the fp32 peak in scoring: short rows, padding, tokenising between (an assumption)."""
SETTING_UP_SECONDS, REQUEST_SECONDS = Range(2.0, 5.0, 15.0), Range(3e-5, 1e-4, 2e-4)
"""Of scoring one model: to load it; to build, tokenise and record a request. lm-eval's prompts for the 127,961
requests of the seven tasks take 6 s, kept ones 1.4 s (`tasks.kept`)."""
DISK_TOO_SMALL = "the disk is too small for this run"
ALL_TRAINED = Range.exactly(1.0)
MEASURED_ERROR = 0.15
"""A few steps differ from thousands: clocks, other processes, longer documents."""


@dataclass(frozen=True)
class TaskSize:
    """A benchmark, zero-shot.

    bytes: of the requests' inputs in UTF-8, what they begin with alike counted once (the nodes of their prefix tree).
    """

    items: int
    requests: int
    bytes: int


TASK_SIZES = {
    "mmlu": TaskSize(14_042, 56_168, 5_688_456),
    "arc_easy": TaskSize(2_376, 9_501, 457_780),
    "arc_challenge": TaskSize(1_172, 9_374, 379_009),
    "hellaswag": TaskSize(10_042, 40_168, 7_301_766),
    "winogrande": TaskSize(1_267, 2_534, 140_601),
    "boolq": TaskSize(3_270, 6_540, 1_818_473),
    "piqa": TaskSize(1_838, 3_676, 360_507),
}
"""Counted over the benchmarks' original files with `onward.tasks.load_items`, lm-eval 0.4.13."""
_BYTES_PER_TOKEN = 4.0
"""Of English, where no text was looked at."""
HOST_BANDWIDTH = 20e9
"""Bytes a second of a machine's memory (an assumption)."""
_ROW_BYTES = 100
"""A row of items.parquet."""


_CLOZE_BYTES, _CLOZE_MOST_BYTES = 2500, 10e6
"""Held-out text that gives a question, at best (1 to 2.5 MB each: legal 2,500 bytes, medical 3,200, technical 5,500,
textbooks 6,400), and how much of it is looked at."""


def most_cloze_items(text: TextForesight) -> int:
    """Return about how many questions the held-out part of a text can give at most (`evaluation.cloze`)."""
    held_out = text.held_out_tokens * (text.bytes_per_token or _BYTES_PER_TOKEN)
    return ceil(min(held_out, _CLOZE_MOST_BYTES) / _CLOZE_BYTES)


def cloze_size(items: int) -> TaskSize:
    """Return the size of so many questions made from the domain's text (`evaluation.cloze`).

    Two sets of some 400 from textbooks had 933 and 973 bytes an item, of which 680 stand before the gap. Making them
    scores them once more with the base, which is not counted.
    """
    return TaskSize(items, 4 * items, 950 * items)


def pairs_of(texts: Sequence[TextForesight], batches: BatchPlan) -> float:
    """Return causal pairs per token of the mixture."""
    by_role = {text.role: text.pairs_per_token for text in texts}
    return sum(float(share) * by_role[name] for name, share in zip(batches.corpora, batches.shares, strict=True))


def utilisation(machine: Machine, shape: ModelShape, strategy: Strategy) -> Range:
    """Return the share of the peak that training reaches by assumption, all devices together.

    Recomputing every n-th block repeats a third of its share of the arithmetic.
    """
    share = UTILISATION[machine.kind, machine.precision]
    if machine.kind == "cuda" and shape.hidden < NARROW:
        share = Range(share.low * shape.hidden / NARROW / 2, share.value * shape.hidden / NARROW, share.high)
    if strategy.checkpoint_every:
        share = share.times(1 / (1 + 1 / (3 * strategy.checkpoint_every)))
    if machine.count == 1:
        return share
    lost = SCALING[strategy.sharding]
    return Range(share.low * lost.low, share.value * lost.value, share.high * lost.high)


def offload_seconds(hardware: Hardware, parameters: int, micro_batches: int) -> Range:
    """Return what offloading adds to a step at most: weights come twice a micro-batch, gradients go once, 4 bytes each.

    AdamW in the machine's memory moves 28 bytes per parameter at some 20 GB/s. Transfers overlap with computing, so it
    may be as little as half.
    """
    if hardware.link_bandwidth is None:
        return Range.exactly(0.0)
    each = parameters / hardware.count
    moved = 12 * each * micro_batches / hardware.link_bandwidth + 28 * each / HOST_BANDWIDTH
    return Range(moved / 2, moved, moved * 1.5)


def foresee_training(
    machine: Machine,
    hardware: Hardware,
    shape: ModelShape,
    plan: BatchPlan,
    pairs_per_token: float,
    strategy: Strategy,
    timed: Timed | None,
    work: Range = ALL_TRAINED,
) -> TrainingForesight:
    """Return the time of all steps: model FLOPs / (peak x share), or what a few real steps took.

    work: of a step beside one in which everything is trained (`remedies.step_work`). Model FLOPs are those of the
    latter in any case, as in a run's records.
    """
    flops = training_flops(shape, plan.step_tokens, round(plan.step_tokens * pairs_per_token))
    peak = machine.peak_flops * machine.count
    if timed is None:
        seconds = Range.exactly(flops / peak).divided_by(utilisation(machine, shape, strategy))
        micro_batches = ceil(plan.sequences_per_step / machine.count / strategy.micro_batch)
        if machine.kind == "cuda":
            seconds = seconds.plus(LAUNCH_SECONDS.times(shape.layers * micro_batches))
        seconds = Range(seconds.low * work.low, seconds.value * work.value, seconds.high * work.high)
        if strategy.offload:
            seconds = seconds.plus(offload_seconds(hardware, shape.parameters, micro_batches))
    else:
        seconds = timed.step_seconds
    return TrainingForesight(
        basis="estimated" if timed is None else "measured",
        step_flops=float(flops),
        utilisation=Range.exactly(flops / peak).divided_by(seconds),
        tokens_per_second=Range.exactly(plan.step_tokens).divided_by(seconds),
        seconds=seconds.times(plan.total_steps),
        stage_seconds=tuple(seconds.times(steps) for steps in plan.stage_steps),
    )


def foresee_evaluation(
    evaluation: Evaluation,
    shape: ModelShape,
    peak_flops: float,
    texts: Sequence[TextForesight],
    models: int,
    between: int = 0,
) -> EvaluationForesight:
    """Return the time of scoring: tasks, cloze and held-out text, forward passes in fp32 on one device.

    peak_flops: of the device in fp32. models: how many are scored, those `between` the stages' ends among them.
    """
    ratio = texts[0].bytes_per_token or _BYTES_PER_TOKEN
    sizes = {task: TASK_SIZES.get(split_shots(task)[0]) for task in evaluation.tasks}
    known = {task: size for task, size in sizes.items() if size is not None}
    parts = [
        (size, min(1.0, (evaluation.limit or size.items) / size.items), split_shots(task)[1] or 0)
        for task, size in known.items()
    ]
    cloze_items = min(evaluation.cloze or 0, most_cloze_items(texts[0]))
    if cloze_items:  # the limit is for the tasks alone
        parts.append((cloze_size(cloze_items), 1.0, 0))
    requests, tokens, pairs = 0, 0.0, 0.0
    for size, share, shots in parts:
        length = size.bytes / ratio / size.items
        requests += ceil(size.requests * share)
        # Examples are computed once for a row of some ten questions or more (`model.prefix_tree`), and seen by each.
        tokens += size.items * share * length * (1 + shots / 10)
        pairs += size.items * share * length * length * (0.5 + shots)
    for text in texts:
        scored = min(text.held_out_tokens, evaluation.held_out_tokens or text.held_out_tokens)
        tokens += scored
        pairs += scored * text.pairs_per_token
    flops = evaluation_flops(shape, round(tokens), round(pairs))
    each = Range.exactly(flops / peak_flops).divided_by(SCORING)
    each = each.plus(SETTING_UP_SECONDS).plus(REQUEST_SECONDS.times(requests))
    return EvaluationForesight(
        models=models,
        requests=requests,
        tokens=tokens,
        seconds=each.times(models),
        unknown_tasks=tuple(task for task in evaluation.tasks if task not in known),
        between=between,
        cloze_items=cloze_items,
        cloze_wanted=evaluation.cloze or 0,
    )


def foresee_disk(
    training: Training,
    parameters: int,
    trained: int,
    texts: Sequence[TextForesight],
    evaluation: EvaluationForesight,
    folders: Folders,
    run_folder: Path,
    fisher: float = 0.0,
) -> DiskForesight:
    """Return what is still to be written, and what is free where it goes.

    parameters, trained: of the base model, and those that are trained, adapters included. fisher: bytes of the Fisher
    information that is yet to be estimated. Checkpoints and models that
    the run has already are not counted again.
    """
    checkpoints, models = checkpoint_bytes(training, parameters, trained, evaluation.between)
    written = (path for name in ("checkpoints", "models") for path in (run_folder / name).rglob("*"))
    there = sum(path.stat().st_size for path in written if path.is_file())
    remaining = max(0, checkpoints + models - there) / (checkpoints + models)
    return DiskForesight(
        corpora=sum(text.disk_bytes for text in texts),
        fisher=fisher,
        checkpoints=checkpoints * remaining,
        models=models * remaining,
        scores=float(evaluation.models * evaluation.requests * _ROW_BYTES),
        free={str(folder): shutil.disk_usage(_existing(folder)).free for folder in (folders.cache, folders.runs)},
    )


def disk_problems(disk: DiskForesight, folders: Folders) -> list[UserError]:
    """Say where there is too little room: corpora and Fisher information go into the cache, all else into the run."""
    needed: dict[int, tuple[float, list[str]]] = {}
    run = disk.checkpoints + disk.models + disk.scores
    for folder, size in ((folders.cache, disk.corpora + disk.fisher), (folders.runs, run)):
        device = _existing(folder).stat().st_dev
        before, places = needed.get(device, (0.0, []))
        needed[device] = (before + size, [*places, str(folder)])
    problems = []
    for size, places in needed.values():
        free = disk.free[places[0]]
        if size > free:
            got, expected = f"{amount(free)} free", f"about {amount(size)}"
            todo = f"free {amount(size - free)}, lower training.keep_checkpoints, or write elsewhere (--cache, --runs)"
            problems.append(UserError(DISK_TOO_SMALL, " and ".join(places), got, expected, todo))
    return problems


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that is there."""
    return next(place for place in (folder, *folder.parents) if place.exists())
