"""The step `train`: from a base model and prepared corpora to the checkpoint at the end of each stage."""

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from onward.artifact import MANIFEST, Damage, disk_errors, find, locked, read_manifest
from onward.batches import plan_batches
from onward.errors import UserError
from onward.model.source import ModelSource
from onward.progress import Progress, Silent
from onward.recipe import Training
from onward.training.kept import is_whole
from onward.training.launch import count_gpus
from onward.training.record import recorded, undone_until
from onward.training.stages import COST_KNOBS, Stage, points_of, stages_of


def train(
    training: Training,
    *,
    base: ModelSource,
    corpora: Mapping[str, Path],
    seed: int,
    run_folder: Path,
    cache: Path | None = None,
    until_stage: int | None = None,
    until_step: int | None = None,
    at: Sequence[int] = (),
    progress: Progress | None = None,
    while_waiting: Callable[[], None] | None = None,
) -> tuple[Stage, ...]:
    """Train to the end of `until_stage` (from 1; None: the last), resuming from the newest checkpoint.

    until_step: stop when so many steps of the run are done and saved, wherever in a stage that is. at: token counts at
    which a model is written as well (`stages.points_of`); the training is the same with and without.

    corpora: artifacts by name: `domain`, every corpus that is replayed and the text of the Fisher information. seed: of
    training (`Recipe.training_seed`). cache: where artifacts are that runs share; None: nothing is shared.
    while_waiting: the domain may still be in the making, and this is called while a block of it is waited for (it
    raises when that is in vain). A stage's end that is damaged is made anew.
    Returns the stages that are complete. Raises UserError when an input differs from those the run was started with,
    Interrupted after a signal, once the state is saved.
    """
    progress = progress or Silent()
    stages = stages_of(training, seed, run_folder)
    due = stages[:until_stage]
    if until_step is not None:
        due = tuple(s for n, s in enumerate(due) if n == 0 or due[n - 1].steps < until_step)
    inputs = _inputs(training, base, corpora, seed, run_folder)

    def made_at(step: int) -> dict[str, Any]:
        return _inputs_at(inputs, stages, step)

    def tell(damage: Damage) -> None:
        progress.note(f"what a stage has left is damaged and made anew: {damage}")

    def is_made(place: Stage) -> bool:
        return is_whole(place.folder, tell) and find(place.folder, made_at(place.steps)) is not None

    end = due[-1].steps if until_step is None else min(due[-1].steps, until_step)
    points = tuple(point for point in points_of(training, at, seed, run_folder) if point.steps <= end)
    missing, lacking = (tuple(place for place in places if not is_made(place)) for places in (due, points))
    if not missing and not lacking:
        return due
    first, last = (choose((*missing, *lacking), key=lambda place: place.steps) for choose in (min, max))
    # After a model alone nothing is missing: the end of its stage is there, and stays as it is.
    end = last.steps if last in due else undone_until(run_folder, last.steps)
    stop = until_step if last in due else end
    # Imported when there is something to do: a run that is done needs no torch.
    from onward.training.loop import Loop
    from onward.training.ranks import joined
    from onward.training.session import Session

    checkpoints = run_folder / "checkpoints"
    with joined(needs_group=_may_shard(training)) as ranks, disk_errors(checkpoints), ExitStack() as opened:
        if ranks.is_first:
            opened.enter_context(locked(checkpoints))
        # An earlier stage may be missing while a later one is there: it is made anew from the states before it.
        session = Session(
            training, base, corpora, seed, run_folder, made_at, first.steps, ranks, progress, while_waiting, cache
        )
        record = opened.enter_context(recorded(run_folder, session.step, end)) if ranks.is_first else None
        session.begin(record)
        Loop(session, record, progress, points, lacking).run(due[: last.number], stop)
    return tuple(stage for stage in due if until_step is None or stage.steps <= until_step)


def _may_shard(training: Training) -> bool:
    """Whether one process alone may come to need a process group: FSDP2, which offloads, splits over one."""
    return training.sharding in ("zero2", "zero3") or training.offload is True or count_gpus() > 0


def _inputs(
    training: Training, base: ModelSource, corpora: Mapping[str, Path], seed: int, run_folder: Path
) -> dict[str, Any]:
    """What determines the weights at every step; speed and memory knobs are left out, they may change on resume."""
    settings = training.model_dump(mode="json")
    if training.schedule.horizon == "stage":
        settings.pop("stages")  # a later stage changes nothing before it: see `_inputs_at`
    for name in COST_KNOBS:
        settings.pop(name)
    settings.pop("seed")  # the seed that follows from it is an input itself
    if training.text == "domain":  # the only choice of older versions, whose checkpoints do not name it
        settings.pop("text")
    read, ewc = set(plan_batches(training, seed).corpora), training.forgetting.weighed
    if ewc is not None:
        read.add(ewc.text)
    named = _named_unread(run_folder, read) | {name: folder.name for name, folder in corpora.items() if name in read}
    return {"training": settings, "seed": seed, "base": base.fingerprint, "corpora": named}


def _named_unread(run_folder: Path, read: Set[str]) -> dict[str, str]:
    """The corpora without part in training that this run's manifests name: older versions put down all they were given.

    read: names of those that have a part. A run keeps to what its manifests say, whichever corpora it is given now.
    """
    for path in sorted((run_folder / "checkpoints").glob(f"*/{MANIFEST}")):
        with suppress(UserError):  # damaged: whoever reads this checkpoint says so
            manifest = read_manifest(path.parent)
            inputs = {} if manifest is None else manifest.made_from
            named = {name.partition(".")[2]: at for name, at in inputs.items() if name.startswith("corpora.")}
            return {name: at for name, at in named.items() if name not in read and at is not None}
    return {}


def _inputs_at(inputs: dict[str, Any], stages: tuple[Stage, ...], step: int) -> dict[str, Any]:
    """What determines the weights after `step` updates: the inputs and the ends of the stages begun by then."""
    begun = [stage.steps for n, stage in enumerate(stages) if n == 0 or stages[n - 1].steps < step]
    return {**inputs, "stage_ends": begun, "step": step}
