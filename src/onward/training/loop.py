"""The loop over steps: updates, record, saves, signals, and what the guard orders."""

import gc
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onward.errors import UserError
from onward.model.flops import training_flops
from onward.progress import Progress
from onward.recipe import Training
from onward.signals import Interrupted, stop_on_signals
from onward.training.guard import Finding, PlateauWatch, diagnose
from onward.training.learner import Measured, is_out_of_memory
from onward.training.loader import Loader, Step
from onward.training.memory import MemoryMeter
from onward.training.record import Record
from onward.training.schedule import learning_rate
from onward.training.session import Session
from onward.training.stages import Stage

_REMEMBERED_ROWS = 4096
"""Rows of the record that a diagnosis looks back on."""
_COLLECT_STEPS = 100
"""Every so many steps Python's garbage is collected; in between it would stop one rank while the others wait."""
_DISTANCE_STEPS = 10
"""How far the weights have gone from the base is measured every so many steps: it reads all of them twice."""
_GPU_CADENCE, _CPU_CADENCE = 10, 1
"""A GPU is asked for its losses every so many steps; asking waits for it. A CPU has them at once."""


@dataclass(frozen=True)
class _Pending:
    """A step whose figures are still on the device."""

    row: dict[str, Any]
    measured: Measured
    distance: torch.Tensor | None = None

    def figures(self) -> list[torch.Tensor]:
        """Loss, gradient norm, whether the update was left out, divergence and distance from the base, in fp64."""
        measured = self.measured
        missing = torch.full_like(measured.loss_nats, float("nan"))
        found = [measured.loss_nats, measured.gradient_norm, measured.left_out, measured.kl_nats, self.distance]
        return [missing if figure is None else figure.double() for figure in found]


class _Stopped(Exception):
    """A signal has come while text was waited for."""


class Loop:
    """Trains a session to the end of its stages.

    points: where a model is written on the way. missing: those whose model is not there yet.
    """

    def __init__(
        self,
        session: Session,
        record: Record | None,
        progress: Progress,
        points: tuple[Stage, ...] = (),
        missing: tuple[Stage, ...] = (),
    ) -> None:
        self.session, self.record, self.progress, self.points = session, record, progress, points
        self.missing = list(missing)
        self.ranks, self.training, self.plan = session.ranks, session.training, session.plan
        self.on_gpu = self.ranks.device.type == "cuda"
        self.cadence = _GPU_CADENCE if self.on_gpu else _CPU_CADENCE
        self.meter = MemoryMeter(self.ranks.device)
        self.plateau = PlateauWatch()
        asked = self.training.checkpoint_tokens or self.training.stages[-1] // 20
        self.save_every = max(1, asked // self.plan.step_tokens)
        self.saved_at = self.flushed_at = time.monotonic()
        self.pending: list[_Pending] = []
        self.rollback: Finding | None = None
        self.rows: deque[dict[str, Any]] = deque([] if record is None else record.before, maxlen=_REMEMBERED_ROWS)
        for row in self.rows:
            self.plateau.observe(row, self.plan.stage_steps, self.training.schedule)

    def run(self, stages: tuple[Stage, ...], until_step: int | None = None) -> None:
        """Train until the last of `stages` is complete; raises Interrupted after a signal, once the state is saved.

        until_step: end after so many steps already, their state saved.
        """
        session, self.until_step = self.session, until_step
        self.progress.begin("train", stages[-1].steps * self.plan.step_tokens, "tokens")
        with (
            tensorboard(self.training, self.session.run_folder, self.record is not None) as self.board,
            stop_on_signals(insistent=self.ranks.world == 1) as self.stop,
            collected_rarely(),
            Loader(
                session.batches,
                self.ranks.place,
                session.strategy.micro_batch,
                session.step,
                self.ranks.device,
                replayed_apart=session.learner.reference is not None,
            ) as self.loader,
        ):
            try:
                for stage in stages:
                    while session.step < min(stage.steps, until_step or stage.steps):
                        self._advance(stage)
            finally:
                session.checkpoints.wait()
            if session.step == self.plan.total_steps:
                self._event("finished")

    def _advance(self, stage: Stage) -> None:
        """Make one step and what is due after it."""
        session = self.session
        if self._made(stage):
            session.step += 1
        ended, saves = session.step == stage.steps, False
        # Several ranks look at every step, together: a signal reaches them at different moments.
        if session.step % self.cadence == 0 or ended or self.ranks.world > 1 or self.stop.number is not None:
            number, late = self._agreed()
            saves = bool(session.step) and (self._state_is_due(late) or number is not None)
        else:
            number = None
            saves = self._state_is_due(False)
        settles = ended or saves or session.step % self.cadence == 0
        if settles or self._models_are_due():
            self._flush()
        # Not as soon as it is ordered: the batches that are left out must not depend on where models are written.
        if settles and self.rollback is not None:
            self._roll_back(self.rollback)
            self.rollback = None
        # Before the state of this step is saved: a kill in between has the step made again, and the model with it.
        if self.rollback is None:
            self._write_models()
        if ended or saves:
            session.save(self.record, stage if ended else None)
            self.saved_at = time.monotonic()
        if number is not None:
            session.checkpoints.wait()
            self._event("signal", number=number)
            raise Interrupted(number, session.step)

    def _made(self, stage: Stage) -> bool:
        """Make the update of this step; False when a signal came in its middle and nothing was changed."""
        session = self.session
        step = self._read()
        if step is None:
            return False
        rate = learning_rate(
            step.step, self.training.optimizer.learning_rate, self.plan.stage_steps, self.training.schedule
        )
        limit = session.guard.limit(step.step, self.cadence)
        cancelled = (lambda: self.stop.number is not None) if self.ranks.world == 1 else None
        measured, full = None, ""
        try:
            measured = session.learner.update(step.micro, step.labelled_tokens, rate, limit, cancelled)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            full = str(error) or type(error).__name__
        if full:  # outside the handler, whose traceback keeps the graph of the failed pass
            session.retreat(full, self.record)
            self.loader.restart(session.step, session.strategy.micro_batch)
            return self._made(stage)
        if measured is None:
            return False
        session.learner.updates += 1  # corrected when the step's figures are read: an update may have been left out
        row = {
            "step": step.step,
            "tokens": (step.step + 1) * self.plan.step_tokens,
            "stage": stage.number,
            "learning_rate": rate,
            "labelled_tokens": step.labelled_tokens,
            "replay_sequences": step.replay_sequences,
            "text_tokens": step.tokens,
            "batch": step.digest,
            "model_flops": training_flops(session.shape, step.tokens, step.causal_pairs),
        }
        anchor, distance = session.learner.anchor, None
        if anchor is not None and step.step % _DISTANCE_STEPS == _DISTANCE_STEPS - 1:
            distance = anchor.distance()
        self.pending.append(_Pending(row, measured, distance))
        return True

    def _read(self) -> Step | None:
        """Return the batch of this step, None when a signal came while its text was waited for."""

        def look() -> None:
            if self.stop.number is not None and self.ranks.world == 1:
                raise _Stopped

        try:
            return self.loader.step(self.session.step, look)
        except _Stopped:
            return None

    def _agreed(self) -> tuple[int | None, bool]:
        """Return the signal that any rank has met, and whether the first one's clock says that a state is due."""
        seconds = self.training.checkpoint_seconds
        late = seconds is not None and time.monotonic() - self.saved_at >= seconds
        if self.ranks.world == 1:
            return self.stop.number, late
        flags = torch.tensor([self.stop.number or 0, int(late and self.ranks.is_first)])
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self.ranks.control)
        number, due = flags.tolist()
        return number or None, bool(due)

    def _state_is_due(self, late: bool) -> bool:
        return late or self.session.step % self.save_every == 0 or self.session.step == self.until_step

    def _flush(self) -> None:
        """Read the figures of the steps since the last time from the device, record them, let the guard look."""
        if not self.pending:
            return
        taken, self.pending = self.pending, []
        values = torch.stack([torch.stack(pending.figures()) for pending in taken]).tolist()
        digests = self._digests([p.row["batch"] for p in taken])
        now = time.monotonic()
        seconds, self.flushed_at = (now - self.flushed_at) / len(taken), now
        reading = self.meter.read()
        self.meter.reset()
        memory = {
            "memory_bytes": reading.peak, "allocated_bytes": reading.allocated, "reserved_bytes": reading.reserved
        }  # fmt: skip
        self.session.learner.updates -= sum(bool(left_out) for _, _, left_out, *_ in values)
        for pending, digest, (loss, norm, left_out, divergence, distance) in zip(taken, digests, values, strict=True):
            row = pending.row | {"batch": f"{digest:016x}", "loss_nats": loss, "gradient_norm": norm}
            row["applied"] = not left_out
            # Not a number: the step has no replayed token, or the distance was not measured after it.
            if self.session.learner.reference is not None:
                row["kl_nats"] = None if isnan(divergence) else divergence
            if self.session.learner.anchor is not None:
                row["distance_from_base"] = None if isnan(distance) else distance
            self._note(row, seconds, memory)
            finding = self.session.guard.observe(row["step"], loss, norm, not left_out)
            if finding is not None:
                self._tell(finding)
                if finding.action == "rollback" and self.rollback is None:
                    self.rollback = finding
        if self.session.step % _COLLECT_STEPS == 0:
            gc.collect()

    def _digests(self, own: list[int]) -> list[int]:
        """Add up the ranks' digests of their rows: the same for any number of ranks."""
        if self.ranks.world > 1:
            digests = torch.tensor(own, dtype=torch.int64)
            dist.all_reduce(digests, group=self.ranks.control)
            own = digests.tolist()
        return [digest % 2**63 for digest in own]

    def _note(self, row: dict[str, Any], seconds: float, memory: dict[str, int]) -> None:
        """Complete a step's row, write it and show it."""
        row["seconds"] = seconds
        row["tokens_per_second"] = self.plan.step_tokens / seconds
        row["labelled_tokens_per_second"] = row["labelled_tokens"] / seconds
        flops = row.pop("model_flops") / seconds / self.ranks.world
        row["model_flops_per_second"] = flops
        peak = self.session.peak_flops
        row["model_flops_utilisation"] = None if peak is None else flops / peak
        row |= memory
        self.rows.append(row)
        if self.record is None:
            return
        self.record.metrics(**row)
        if self.board is not None:
            for name in ("loss_nats", "learning_rate", "gradient_norm", "tokens_per_second"):
                self.board.add_scalar(name, row[name], row["tokens"])
        speed = f"{row['tokens_per_second']:,.0f} tok/s"
        if row["model_flops_utilisation"] is not None:
            speed += f"  {row['model_flops_utilisation']:.0%} MFU"
        rate, held = f"lr {row['learning_rate']:.1e}", f"{memory['memory_bytes'] / 1e9:.1f} GB"
        self.progress.advance(row["tokens"], f"loss {row['loss_nats']:.3f}  {speed}  {rate}  {held}")
        notice = self.plateau.observe(row, self.plan.stage_steps, self.training.schedule)
        if notice is not None:
            self._event("plateau", words=notice)
            self.progress.note(notice)

    def _tell(self, finding: Finding) -> None:
        """Record what the guard found; raises UserError, with a diagnosis, where it orders to stop."""
        chosen = self.session.batches.sequences(finding.step)
        sequences = [f"{corpus} sequence {number}" for corpus, number in chosen]
        self._event(
            "update_left_out", at=finding.step, kind=finding.kind, action=finding.action, words=finding.words,
            sequences=sequences,
        )  # fmt: skip
        self.progress.note(f"step {finding.step}: {finding.words}")
        if finding.action == "stop":
            got = finding.words
            where = f"step {finding.step} ({', '.join(sequences[:4])}, ...)"
            todo = f"{diagnose(list(self.rows))}; the last checkpoint is untouched"
            raise UserError("the loss is not a number or leaps, and its updates were left out", where, got, todo=todo)

    def _roll_back(self, finding: Finding) -> None:
        """Take the weights of the last checkpoint, and go on after the steps made since, whose batches are left out.

        The models written since hold updates that are no more: they are written again, with the weights taken.
        """
        session, reached, guard = self.session, self.session.step, self.session.guard
        session.checkpoints.wait()
        if session.restored_before(finding.step + 1):
            self._event("rollback", to=session.step, batches_left_out=reached - session.step)
            undone = [point for point in self.points if session.step < point.steps <= reached]
            self.missing = [*undone, *(point for point in self.missing if point not in undone)]
            session.guard, session.step = guard, reached

    def _models_are_due(self) -> bool:
        return any(point.steps <= self.session.step for point in self.missing)

    def _write_models(self) -> None:
        """Write the models of the points that are reached; the guard has judged every step up to there."""
        due = [point for point in self.missing if point.steps <= self.session.step]
        self.missing = [point for point in self.missing if point not in due]
        for point in due:
            self.session.write_model(point)
            self._event("model", folder=point.folder.name)

    def _event(self, name: str, **facts: Any) -> None:
        if self.record is not None:
            self.record.event(name, step=self.session.step, tokens=self.session.tokens, **facts)


@contextmanager
def collected_rarely() -> Iterator[None]:
    """Keep Python's garbage collector from stopping the loop at moments of its own choice."""
    was = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


@contextmanager
def tensorboard(training: Training, run_folder: Path, is_recorded: bool) -> Iterator[Any]:
    """TensorBoard's writer when the recipe asks for it, else None."""
    if not training.tensorboard or not is_recorded:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        todo = "pip install 'onward[tensorboard]', or write tensorboard: false"
        raise UserError("TensorBoard is not installed", "training.tensorboard", todo=todo) from None
    writer = SummaryWriter(str(run_folder / "tensorboard"))
    try:
        yield writer
    finally:
        writer.close()
