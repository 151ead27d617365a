"""Train some steps twice, once in peace and once with kills, restarts and other numbers of ranks, and compare."""

import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from onward.artifact import MANIFEST, locked, write_text
from onward.batches import plan_batches
from onward.errors import UserError
from onward.pipeline import Run
from onward.pipeline.corpora import sampled
from onward.recipe import Recipe, section_of
from onward.training.launch import count_gpus
from onward.training.record import read_rows
from onward.verification.lives import Kill, live, plan_kills
from onward.verification.outcome import Life, Verification, paired, weights_apart

STEPS = 12
TOLERANCE_NATS = {"fp32": 1e-5, "bf16": 5e-3}
"""How far the losses of a step may lie apart when sums are made in another order: other ranks, another micro-batch."""


def verify_resume(
    run: Run | Recipe | str | Path,
    *,
    steps: int | None = None,
    kills: int = 3,
    ranks: Sequence[int] | None = None,
    seed: int = 0,
    tolerance_nats: float | None = None,
    keep: bool = False,
) -> Verification:
    """Train a recipe's first steps uninterrupted, and again with kills, and compare batches, losses and final weights.

    Both are `onward train` in a folder of their own under the run's, which is removed at the end unless `keep`; the
    run itself is not touched, its corpora are prepared where they are missing. steps: None: 12, or all there are.
    ranks: processes (GPUs where there are any) of one start after the other, in turns; None: 1, 2, 1 on a CPU, one and
    all GPUs otherwise. Where they differ the micro-batch is changed too. seed: of the moments of the kills.
    tolerance_nats: of the losses; None: 0 (equal bits) where one CPU process goes on alone, else by the precision.
    Raises UserError for what cannot be verified.
    """
    run = run if isinstance(run, Run) else Run(run)
    starts = _ranks(ranks)
    total = plan_batches(run.recipe.training, run.recipe.training_seed).total_steps
    steps = min(STEPS, total) if steps is None else steps
    if not 2 <= steps <= total:
        raise UserError("these steps cannot be trained twice", "--steps", str(steps), f"2 to {total}, the recipe's")
    began = time.monotonic()
    _ = run.plan  # the corpora, and the plan that refuses what cannot work
    with _scratch(run.folder / "verification", keep) as folder:
        trials = _Trials(run, folder, steps, random.Random(seed))
        return trials.verified(starts, kills, tolerance_nats, began)


def _ranks(asked: Sequence[int] | None) -> tuple[int, ...]:
    """Return the numbers of ranks, in turns; raises UserError for more GPUs than there are."""
    gpus = count_gpus()
    if asked is None:
        return ((1, gpus, 1) if gpus > 1 else (1,)) if gpus else (1, 2, 1)
    if not asked or min(asked) < 1:
        raise UserError("ranks are counted from one", "--ranks", ",".join(map(str, asked)), "1,2,1, say")
    if gpus and max(asked) > gpus:
        todo = "ask for no more, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to verify with CPU processes"
        raise UserError(f"{max(asked)} ranks were asked for", "--ranks", f"{gpus} GPUs in this machine", todo=todo)
    return tuple(asked)


@contextmanager
def _scratch(folder: Path, keep: bool) -> Iterator[Path]:
    """An empty folder that no other verification of this run uses; kept when something fails, too."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
        if not keep:
            shutil.rmtree(folder)


class _Trials:
    """The two trainings of a recipe's first steps, each in a folder of runs of its own."""

    def __init__(self, run: Run, folder: Path, steps: int, chosen: random.Random) -> None:
        self.run, self.folder, self.steps, self.chosen = run, folder, steps, chosen
        self.interval = max(1, steps // 6)
        self.recipe = folder / "recipe.yaml"
        write_text(self.recipe, yaml.safe_dump(self._content(), sort_keys=False, allow_unicode=True))

    def verified(self, starts: tuple[int, ...], kills: int, tolerance_nats: float | None, began: float) -> Verification:
        """Train twice and compare."""
        progress, whole, broken = self.run.progress, self._folder("uninterrupted"), self._folder("interrupted")
        progress.begin("uninterrupted", self.steps, "steps")
        live(self._command("uninterrupted", 1, None), whole, self.folder / "uninterrupted.log", None, self.chosen)
        rows = read_rows(whole / "metrics.jsonl")
        progress.advance(self.steps)
        micro_batches = self._micro_batches(_last(whole, self.steps), starts)
        step_seconds = median(row["seconds"] for row in rows)
        planned = plan_kills(kills, self.steps, self.interval, step_seconds, self.chosen)
        progress.begin("interrupted", self.steps, "steps")
        lives = self._lives(starts, micro_batches, planned)
        begun = next(row for row in read_rows(whole / "events.jsonl") if row["event"] == "start")
        if tolerance_nats is None:
            is_alone = {*starts} == {1} and len({*micro_batches}) == 1 and not count_gpus()
            tolerance_nats = 0.0 if is_alone else TOLERANCE_NATS[begun["precision"]]
        return Verification(
            recipe=self.run.recipe.name,
            device=begun["device"],
            precision=begun["precision"],
            steps=self.steps,
            interval_steps=self.interval,
            tolerance_nats=tolerance_nats,
            lives=lives,
            pairs=paired(rows, read_rows(broken / "metrics.jsonl"), lives, self.steps),
            weights=weights_apart(_last(whole, self.steps), _last(broken, self.steps)),
            seconds=time.monotonic() - began,
        )

    def _lives(
        self, starts: tuple[int, ...], micro_batches: tuple[int | None, ...], kills: list[Kill]
    ) -> tuple[Life, ...]:
        """Start, be killed, start again with other ranks and another micro-batch, until the last step is saved."""
        folder = self._folder("interrupted")
        lives: list[Life] = []
        turns = zip(cycle(starts), cycle(micro_batches), strict=False)
        for number, (kill, (ranks, micro_batch)) in enumerate(zip([*kills, None], turns, strict=False)):
            command = self._command("interrupted", ranks, micro_batch)
            ending = live(command, folder, self.folder / f"interrupted-{number}.log", kill, self.chosen)
            begun = [row["step"] for row in read_rows(folder / "events.jsonl") if row["event"] in ("start", "resume")]
            reached = len(read_rows(folder / "metrics.jsonl"))
            killed = ("all" if kill.whole or ranks == 1 else "one rank") if kill and ending.was_killed else None
            lives.append(Life(ranks, micro_batch, begun[-1], reached, killed, ending.while_saving))
            where = f"killed at step {reached}" if killed else "ended"
            self.run.progress.advance(reached, f"{ranks} rank{'s' * (ranks > 1)}, {where}")
            if not ending.was_killed:
                break
        return tuple(lives)

    def _content(self) -> dict[str, Any]:
        """The recipe of both trainings: the run's own, on the corpora it has, saving often and by steps alone."""
        recipe, run = self.run.recipe, self.run
        content = recipe.model_dump(mode="json")
        training = recipe.training
        step_tokens = training.batch_tokens // training.sequence_tokens * training.sequence_tokens
        content["training"] |= {"checkpoint_tokens": self.interval * step_tokens, "checkpoint_seconds": None}
        content["training"]["tensorboard"] = False
        content["model"]["revision"] = run.base.revision
        # A run that has got a stage more stays on the text that was prepared for fewer.
        prepared = json.loads((run.folder / "artifacts.json").read_bytes())["prepared_for"]
        for name, corpus in recipe.texts().items():
            text = corpus.model_dump(mode="json") | {"tokens": corpus.tokens or prepared[name]}
            if corpus.self_replay is not None:
                text["self_replay"]["tokens"] = prepared[sampled(name)]
            section, _, key = section_of(name).partition(".")
            content[section] = {**content[section], key: text} if key else text
        return content

    def _command(self, name: str, ranks: int, micro_batch: int | None) -> list[str]:
        command = ["train", str(self.recipe), "--until-step", str(self.steps)]
        command += ["--cache", str(self.run.folders.cache), "--runs", str(self.folder / name)]
        if ranks > 1:
            command += ["--gpus" if count_gpus() else "--processes", str(ranks)]
        if micro_batch is not None:
            command += ["--set", f"training.micro_batch_sequences={micro_batch}"]
        return command

    def _folder(self, name: str) -> Path:
        return self.folder / name / self.run.recipe.name

    def _micro_batches(self, checkpoint: Path, starts: tuple[int, ...]) -> tuple[int | None, ...]:
        """The micro-batches of the starts, in turns: that of the uninterrupted run and, where ranks change, another."""
        if {*starts} == {1}:
            return (None,)
        cursor = json.loads((checkpoint / "state" / "cursor.json").read_bytes())
        whole = int(cursor["facts"]["strategy"]["micro_batch"])
        rows = plan_batches(self.run.recipe.training, self.run.recipe.training_seed).sequences_per_step
        other = whole // 2 if whole > 1 else min(2, rows)
        return (whole, other) if other != whole else (None,)


def _last(folder: Path, steps: int) -> Path:
    """The checkpoint after so many steps; raises RuntimeError when it is not there."""
    for manifest in (folder / "checkpoints").glob(f"*/{MANIFEST}"):
        if json.loads(manifest.read_bytes())["made_from"].get("step") == steps:
            return manifest.parent
    raise RuntimeError(f"no checkpoint after {steps} steps in {folder / 'checkpoints'}")
