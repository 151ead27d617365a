"""What the remedies against forgetting cost: text sampled from the base, the Fisher information, work of a step."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

from onward.artifact import read_manifest
from onward.batches import BatchPlan
from onward.corpus.preparation import Preparation
from onward.model.flops import evaluation_flops, training_flops
from onward.model.shape import ModelShape
from onward.model.source import ModelSource
from onward.plan.costs import HOST_BANDWIDTH, LAUNCH_SECONDS, UTILISATION, pairs_of
from onward.plan.foresight import Machine, Range, RemediesForesight, TextForesight
from onward.recipe import Ewc, Forgetting
from onward.training.remedies import FISHER_BYTES, parts_of

SAMPLING = Range(0.10, 0.30, 0.60)
"""Share of a CPU's fp32 peak in sampling. onward/tiny on one core: 0.35 in fp32, 0.45 of that peak in bf16 with AMX
(`benchmarks/generation.py`); more for larger models with AMX is not counted on."""
ADAPTERS_AT_WORST = 1.05
"""A step with adapters takes up to so many times one without: they save products and add many small ones, which at a
width of 192 outweighs it (1.04, `benchmarks/remedies.py`)."""
_FISHER_PASS_BYTES = 24
"""Moved for each weight and backward pass: the gradient is read and cleared, the fp64 sum of squares read and
written."""
_COUNTED_TOKENS = 1_000_000


def foresee_remedies(
    forgetting: Forgetting,
    shape: ModelShape,
    base: ModelSource,
    machine: Machine,
    fp32_flops: float,
    texts: Sequence[TextForesight],
    preparations: Mapping[str, Preparation],
    batches: BatchPlan,
    cores: int,
    cache: Path,
    is_split: bool,
) -> RemediesForesight:
    """Return what is made before training, with its time, and what a step takes beside one without remedies.

    fp32_flops: peak of a device. preparations: of the corpora by name. cores: of a CPU that computes. cache: where what
    runs share is looked for. is_split: whether training splits or offloads the weights.
    """
    by_role = {text.role: text for text in texts}
    to_sample = [text for text in texts if text.basis == "to be sampled"]
    seconds = [
        _sampling_seconds(text, shape, preparations[text.role], machine, fp32_flops, cores) for text in to_sample
    ]
    ewc, estimated = forgetting.weighed, None
    if ewc is not None and not _is_estimated(base, preparations[ewc.text], ewc, cache):
        # Where the weights are split every device computes every row; else they share the rows.
        dealt = 1 if is_split else machine.count
        text = by_role[ewc.text]  # a shorter one is read once
        ewc = ewc.model_copy(update={"tokens": max(1, min(ewc.tokens, ceil(text.tokens.value)))})
        estimated = fisher_seconds(ewc, shape, machine, fp32_flops, text.pairs_per_token, batches, dealt)
    return RemediesForesight(
        sampled_tokens=sum(map(_drawn, to_sample)),
        sampling_seconds=_total(seconds),
        fisher_text=None if estimated is None or ewc is None else ewc.text,
        fisher_tokens=0 if estimated is None or ewc is None else ewc.tokens,
        fisher_seconds=estimated,
        fisher_bytes=0 if estimated is None else FISHER_BYTES * shape.parameters,
        step_work=step_work(forgetting, shape, pairs_of(texts, batches)),
    )


def step_work(forgetting: Forgetting, shape: ModelShape, pairs_per_token: float) -> Range:
    """Return the arithmetic of a step relative to one in which everything is trained; 1 for pulls, which add to none.

    A forward pass, one back through what gradients pass, and a product for every weight that is trained, each of two
    operations a weight and token. KL adds the base's forward pass over the replayed share.
    """
    parts = parts_of(shape, forgetting)
    head = 2.0 * shape.vocabulary * shape.hidden
    blocks = 2.0 * shape.matmul_parameters - head
    whole = evaluation_flops(shape, _COUNTED_TOKENS, round(_COUNTED_TOKENS * pairs_per_token)) / _COUNTED_TOKENS
    attention = whole - blocks - head
    reached = 1 - parts.passive_blocks / shape.layers
    back = reached * (blocks + 2 * attention) + head
    if forgetting.lora is not None:
        work = whole + back + 6.0 * parts.trained  # each adapter forward, back, and its own gradients
    else:
        work = whole + back + blocks * parts.trained_inside / shape.block_parameters + head * parts.trains_head
    relative = round(work / (3 * whole) + base_work(forgetting), 6)
    if forgetting.lora is None:
        return Range.exactly(relative)
    worst = max(relative, ADAPTERS_AT_WORST + base_work(forgetting))
    return Range(relative, (relative + worst) / 2, worst)


def base_work(forgetting: Forgetting) -> float:
    """Return what of `step_work` is the base's: a forward pass, a third of a step, over the rows that KL looks at."""
    return float(forgetting.replay_share) / 3 if forgetting.kl else 0.0


def fisher_seconds(
    ewc: Ewc,
    shape: ModelShape,
    machine: Machine,
    fp32_flops: float,
    pairs_per_token: float,
    batches: BatchPlan,
    dealt: int = 1,
) -> Range:
    """Return the time of estimating the Fisher information: packed rows one at a time, forward and back, in fp32.

    fp32_flops: peak of a device. dealt: to how many devices the rows are dealt out. `exact` per token goes back through
    the document once for each of its tokens.
    """
    flops = training_flops(shape, ewc.tokens, round(ewc.tokens * pairs_per_token))
    if ewc.estimator == "exact" and ewc.per == "token":
        length = max(1.0, min(float(batches.sequence_tokens), 2 * pairs_per_token - 1))
        flops = round(flops * (1 + 2 * length) / 3)
    seconds = Range.exactly(flops / fp32_flops / dealt).divided_by(UTILISATION[machine.kind, "fp32"])
    each = {"signs": float(batches.sequence_tokens), "exact": 1.0 if ewc.per == "token" else 2 * pairs_per_token - 1}
    passes = ceil(ewc.tokens / max(1.0, each[ewc.estimator]) / dealt)
    if machine.kind == "cuda":
        return seconds.plus(LAUNCH_SECONDS.times(shape.layers * passes))
    return seconds.plus(Range.exactly(passes * _FISHER_PASS_BYTES * shape.parameters / HOST_BANDWIDTH))


def _is_estimated(base: ModelSource, text: Preparation, ewc: Ewc, cache: Path) -> bool:
    """Whether the Fisher information is there from an earlier run; never while its text is not prepared."""
    from onward.training.fisher import fisher_place

    if read_manifest(text.folder) is None:
        return False
    return read_manifest(fisher_place(base, text.folder, cache, ewc)[0]) is not None


def _sampling_seconds(
    text: TextForesight, shape: ModelShape, preparation: Preparation, machine: Machine, fp32_flops: float, cores: int
) -> Range:
    """Return the time of sampling a text, by one process: a token of many documents at a time."""
    from onward.model.generate import MOST_ROWS, SMALL_PARAMETERS

    section = preparation.corpus.self_replay
    assert section is not None, "only such text is sampled"
    tokens = _drawn(text)
    flops = evaluation_flops(shape, _COUNTED_TOKENS, round(_COUNTED_TOKENS * text.pairs_per_token)) / _COUNTED_TOKENS
    if machine.kind == "cpu":
        peak = fp32_flops / (cores if shape.parameters < SMALL_PARAMETERS else 1)
        return Range.exactly(tokens * flops / peak).divided_by(SAMPLING)
    rows = min(MOST_ROWS["cuda"], ceil(tokens / section.document_tokens))
    # A third of a block's launches, forward alone; arithmetic is little beside them.
    computing = Range.exactly(tokens * flops / machine.peak_flops)
    return LAUNCH_SECONDS.times(shape.layers / 3 * tokens / rows).plus(computing)


def _drawn(text: TextForesight) -> float:
    """Tokens to be drawn from the base for a text, those that are held out among them."""
    return text.tokens.value / text.kept_share


def _total(parts: Sequence[Range]) -> Range | None:
    """Add up; None for nothing."""
    total = Range.exactly(0.0)
    for part in parts:
        total = total.plus(part)
    return total if parts else None
