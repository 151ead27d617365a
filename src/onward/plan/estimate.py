"""The step `plan`: a recipe in, everything that its run will need out, before anything is spent."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, floor

from onward.artifact import Folders
from onward.batches import BatchPlan, plan_batches
from onward.corpus.preparation import Preparation
from onward.errors import UserError
from onward.evaluation.cloze.making import FEWEST
from onward.model.shape import ModelShape, read_shape
from onward.model.source import ModelSource
from onward.plan.budget import Supply, check_trainable, models_between, round_budget, too_short
from onward.plan.costs import (
    disk_problems,
    foresee_disk,
    foresee_evaluation,
    foresee_training,
    most_cloze_items,
    pairs_of,
)
from onward.plan.fit import foresee_memory
from onward.plan.foresight import DiskForesight, EvaluationForesight, Foresight, Machine, TextForesight
from onward.plan.measure import time_steps
from onward.plan.remedies import foresee_remedies
from onward.plan.texts import foresee_text
from onward.progress import Progress, Silent
from onward.recipe import (
    SCORED,
    Recipe,
    Training,
    format_seconds,
    format_share,
    format_tokens,
    replay_words,
    section_of,
)
from onward.training.hardware import Hardware, Precision, known_hardware, measured, this_machine
from onward.training.launch import count_gpus
from onward.training.remedies import parts_of
from onward.training.schedule import learning_rate

_CURVE_POINTS = 400
_LONG_SECONDS = 3 * 86_400.0
"""A run without a GPU that takes longer is one that few people mean."""
_NIGHT_SECONDS = 10 * 3600.0
_SILENT = Silent()


@dataclass(frozen=True)
class _Here:
    """The machine as the arithmetic wants it: with the peaks that were looked up or measured."""

    hardware: Hardware
    machine: Machine
    precision: Precision
    fp32_flops: float


def foresee(
    recipe: Recipe,
    *,
    base: ModelSource,
    preparations: Mapping[str, Preparation],
    folders: Folders,
    hardware: str | None = None,
    devices: int = 1,
    measure: bool = False,
    workers: int | None = None,
    progress: Progress = _SILENT,
) -> Foresight:
    """Return what a run will need, with every problem found; `Foresight.check` raises them.

    preparations: of the corpora by name; what is prepared already is read off, of the rest a sample is. hardware: a
    machine that is not here (`8xh100`), None: this one, with `devices` GPUs (or processes) training together. measure:
    time a few real steps here. workers: processes that prepare text, None: one per core. Raises UserError when the
    model or a source cannot be read, or the hardware is not known.
    """
    if measure and hardware is not None:
        todo = "leave --hardware out to measure this machine, or --measure to plan for the other"
        raise UserError("only this machine can be measured", "--measure", f"--hardware {hardware}", todo=todo)
    shape, batches = read_shape(base), plan_batches(recipe.training, recipe.training_seed)
    here = _machine(recipe.training, hardware, devices)
    texts, problems = _texts(recipe.training, preparations, batches, workers or _cores(), progress)
    memory, problem = foresee_memory(
        recipe.training, shape, here.hardware, here.precision, batches, is_here=here.machine.here
    )
    problems += [each for each in (problem, _untrainable(base)) if each is not None]
    problems += [_no_held_out(text) for text in texts if text.role in SCORED and not text.held_out_tokens]
    strategy = None if memory.chosen is None else memory.strategies[memory.chosen].strategy
    forgetting = recipe.training.forgetting
    remedies = foresee_remedies(
        forgetting,
        shape,
        base,
        here.machine,
        here.fp32_flops,
        texts,
        preparations,
        batches,
        _cores(),
        folders.cache,
        is_split=strategy is not None and (strategy.sharding != "none" or strategy.offload),
    )
    timed, training = None, None
    if strategy is not None:
        pairs = pairs_of(texts, batches)
        if measure:
            timed = time_steps(
                base, shape, recipe.training, strategy, here.precision, batches, pairs, devices, progress
            )
        training = foresee_training(
            here.machine, here.hardware, shape, batches, pairs, strategy, timed, remedies.step_work
        )
    evaluation, disk = _scoring_and_disk(recipe, shape, here, batches, texts, remedies.fisher_bytes, folders)
    if here.machine.here:
        problems += disk_problems(disk, folders)
    foresight = Foresight(
        name=recipe.name,
        model=base.name,
        parameters=shape.parameters,
        machine=here.machine,
        texts=tuple(texts),
        stages=recipe.training.stages,
        steps=batches.stage_steps,
        sequence_tokens=batches.sequence_tokens,
        sequences_per_step=batches.sequences_per_step,
        replay_share=format_share(forgetting.replay_share) if forgetting.replayed else None,
        replay=replay_words(forgetting.replayed),
        maximum_repetition=recipe.training.maximum_repetition,
        curve=rate_curve(recipe.training, batches.stage_steps),
        memory=memory,
        timed=timed,
        training=training,
        remedies=remedies,
        evaluation=evaluation,
        disk=disk,
        notes=(),
        problems=tuple(problems),
    )
    return replace(foresight, notes=(*_text_notes(texts, recipe), *_machine_notes(foresight, shape, recipe.training)))


def _scoring_and_disk(
    recipe: Recipe,
    shape: ModelShape,
    here: _Here,
    batches: BatchPlan,
    texts: list[TextForesight],
    fisher: float,
    folders: Folders,
) -> tuple[EvaluationForesight, DiskForesight]:
    """Return what scoring takes, and what the run writes."""
    scored, between = [text for text in texts if text.role in SCORED], models_between(recipe)
    models = 1 + len(batches.stage_steps) + between
    evaluation = foresee_evaluation(recipe.evaluation, shape, here.fp32_flops, scored, models, between)
    trained = parts_of(shape, recipe.training.forgetting).trained
    run_folder = folders.runs / recipe.name
    disk = foresee_disk(recipe.training, shape.parameters, trained, texts, evaluation, folders, run_folder, fisher)
    return evaluation, disk


def _texts(
    training: Training,
    preparations: Mapping[str, Preparation],
    batches: BatchPlan,
    workers: int,
    progress: Progress,
) -> tuple[list[TextForesight], list[UserError]]:
    """Look at every corpus, and at whether it is enough; sampled text is made to measure unless the recipe fixes it."""
    texts: list[TextForesight] = []
    problems: list[UserError] = []
    supplies: dict[str, Supply] = {}
    needed = batches.needed_sequences()
    for role, preparation in preparations.items():
        text, found = foresee_text(preparation, role, needed.get(role, 0), workers, progress)
        texts.append(text)
        problems += found
        if not found:
            supplies[role] = Supply(text.sequences, "at most, by a sample" if text.basis == "estimated" else text.basis)
    return texts, problems + too_short(supplies, training, batches)


def rate_curve(training: Training, stage_steps: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
    """Return (step, learning rate) over the whole run, every stage's first and last step among them."""
    total = stage_steps[-1]
    steps = set(range(0, total, ceil(total / _CURVE_POINTS))) | {total - 1}
    steps |= {step for end in stage_steps for step in (end - 1, end) if step < total}
    peak = training.optimizer.learning_rate
    return tuple((step, learning_rate(step, peak, stage_steps, training.schedule)) for step in sorted(steps))


def _cores() -> int:
    """Return how many processes prepare text where nothing is said."""
    from loky import cpu_count

    return int(cpu_count())


def _machine(training: Training, name: str | None, devices: int) -> _Here:
    hardware = known_hardware(name) if name is not None else this_machine(None, devices)
    precision = hardware.precision(training.precision)
    known = hardware.peak(precision) is not None
    if name is None:
        hardware = measured(measured(hardware, precision, 1.0), "fp32", 1.0)
    peak, fp32 = hardware.peak(precision), hardware.peak("fp32")
    if peak is None:  # asked for bf16 where there is none: computed through fp32, and no faster
        peak = fp32
    assert peak is not None
    assert fp32 is not None, "every known device has one"
    machine = Machine(
        name=hardware.name,
        kind=hardware.kind,
        count=hardware.count,
        here=name is None,
        precision=precision,
        peak_flops=peak,
        peak_from="data sheet" if known or name is not None else "a matrix product timed here",
        memory_bytes=hardware.memory_bytes,
    )
    return _Here(hardware, machine, precision, fp32)


def _untrainable(base: ModelSource) -> UserError | None:
    try:
        check_trainable(base)
    except UserError as error:
        return error
    return None


def _no_held_out(text: TextForesight) -> UserError:
    """What scoring would stop with, after the text was prepared."""
    section = section_of(text.role)
    todo = f"raise {section}.held_out.share, give {section}.held_out.sources, or more documents"
    return UserError(f"no {text.role} text would be held out to score", f"{section}.held_out", "0 tokens", todo=todo)


def _text_notes(texts: list[TextForesight], recipe: Recipe) -> list[str]:
    notes, cap = [], recipe.training.maximum_repetition
    for text in texts:
        if text.passes.value > 0 and text.passes.low <= cap < text.passes.high:
            notes.append(
                f"{text.role}: too short, perhaps: {text.passes.low:.1f} to {text.passes.high:.1f} passes by the "
                f"sample, {cap:g} allowed; `onward prepare` will tell"
            )
        if any(not source.tokens.is_exact for source in text.sources):
            seen = f"{text.sampled_documents:,} documents"
            notes.append(f"{text.role}: estimated from {seen}; duplicates were looked for only among these")
        notes += [
            f"{text.role}: {source.path} is not read: the wanted tokens are there before it (corpus.tokens)"
            for source in text.sources
            if source.tokens.value > 0 and source.read_tokens.high == 0
        ]
    if recipe.general is None:
        notes.append("forgetting is not measured: only the held-out part of `general` tells, and there is none")
    wanted, most = recipe.evaluation.cloze or 0, most_cloze_items(texts[0])
    if most < wanted:
        few = "; with fewer than 40 the run would end before training" if most < 2 * FEWEST else ""
        notes.append(
            f"evaluation.cloze: {wanted:,} questions are asked for, and the held-out text of the domain gives at most "
            f"some {most:,}{few}; hold more text out (corpus.held_out.share) for more"
        )
    if recipe.evaluation.tasks and any(text.basis == "estimated" for text in texts):
        notes.append("items of the benchmarks were not looked for in the sample; few documents hold any")
    return notes


def _machine_notes(foresight: Foresight, shape: ModelShape, settings: Training) -> list[str]:
    notes, machine, training = [], foresight.machine, foresight.training
    if machine.here and machine.kind == "cuda" and count_gpus() > machine.count:
        notes.append(f"this machine has {count_gpus()} GPUs; planned for {machine.count} (--gpus)")
    if training is not None and machine.kind == "cpu" and training.seconds.value > _LONG_SECONDS:
        night = foresight.step_tokens * floor(_NIGHT_SECONDS / training.seconds.value * foresight.steps[-1])
        budget = format_tokens(round_budget(night, settings))
        pilot = f"; a pilot of {budget} tokens takes a night (training.stages)" if night else ""
        notes.append(
            f"there is no GPU here, and without one training takes about {format_seconds(training.seconds.value)}; "
            f"`--hardware h100` says what one would take{pilot}"
        )
    if machine.precision == "fp32" and machine.kind == "cuda":
        notes.append("this GPU does not multiply bf16 natively, or the recipe wants fp32: tensor cores are not used")
    context = shape.context_tokens
    if context is not None and foresight.sequence_tokens < context // 4:
        notes.append(
            f"sequences of {foresight.sequence_tokens:,} tokens use little of the model's context of {context:,}"
        )
    if foresight.evaluation.unknown_tasks:
        notes.append(f"tasks of unknown size come on top of scoring: {', '.join(foresight.evaluation.unknown_tasks)}")
    return notes
