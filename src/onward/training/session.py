"""One rank's stay in a run: what it holds, how it fits, where it goes on, and what it leaves on disk."""

import gc
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from onward.batches import Batches, plan_batches
from onward.corpus.store import open_corpus
from onward.errors import RankError, UserError
from onward.model.heap import keep_freed_memory, return_freed_memory
from onward.model.load import export_model, stored_dtype
from onward.model.shape import read_shape
from onward.model.source import ModelSource
from onward.model.tokenizer import read_tokenizer
from onward.progress import Progress
from onward.recipe import Training
from onward.training.checkpoint import Checkpoints, Snapshot
from onward.training.checks import check_start, loss_of_documents
from onward.training.fisher import SEED, find_fisher, read_fisher
from onward.training.fitting import Choice, budget, choose, free_memory_bytes, remember, remembered, smaller
from onward.training.guard import GuardWindow
from onward.training.hardware import Hardware, Precision, machine_memory_bytes, measure_matmul_peak, this_machine
from onward.training.learner import Learner, is_out_of_memory
from onward.training.memory import correction
from onward.training.network import Rows, choose_precision
from onward.training.ranks import Ranks
from onward.training.record import Record
from onward.training.remedies import parts_of
from onward.training.stages import Stage
from onward.training.strategy import Strategy

_COMPILE_FLOPS = 2e15
"""Arithmetic of a run from which compiling pays on a CPU: an hour at half a teraflop per second."""
_PROBE_FLOPS = 1e13
"""Arithmetic of a run that takes a minute or so on a CPU: from there its peak is worth half a second's measurement."""
_TIGHT = 0.7
"""Share of the memory limit from which a CPU run measures before it begins."""
_CHECK_ROWS = 2
"""Rows of the first batch that the start-of-run checks read."""


class Session:
    """A rank's model, optimizer, batches and checkpoints, and its place in the run.

    first_end: the step at which the first stage that is missing ends; the newest checkpoint before it is gone on from.
    corpora: artifacts by name, those of the batches and others. cache: where artifacts are shared between runs.
    while_waiting: called while a block of text that is still in the making is waited for.
    """

    def __init__(
        self,
        training: Training,
        base: ModelSource,
        corpora: Mapping[str, Path],
        seed: int,
        run_folder: Path,
        made_at: Callable[[int], dict[str, Any]],
        first_end: int,
        ranks: Ranks,
        progress: Progress,
        while_waiting: Callable[[], None] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.training, self.base, self.run_folder = training, base, run_folder
        self.ranks, self.progress, self.corpora, self.cache = ranks, progress, corpora, cache
        self.seed = seed
        self.plan = plan_batches(training, seed)
        torch.manual_seed(seed)
        self.tokenizer = read_tokenizer(base.folder)
        first, *replayed = (corpora[name] for name in self.plan.corpora)
        opened = [open_corpus(first, while_waiting), *map(open_corpus, replayed)]
        self.batches = Batches(self.plan, opened, padding_id=self.tokenizer.eos_id)
        self.precision = choose_precision(training.precision, ranks.device)
        self.shape = read_shape(base.folder)
        self.hardware: Hardware = this_machine(ranks.device.type)
        self.checkpoints = Checkpoints(
            run_folder / "checkpoints", made_at, ranks, training.keep_checkpoints, self._writes_in_background()
        )
        here = ranks.place.local_world
        self._free_bytes = free_memory_bytes(self.hardware.kind)
        self._budget = budget(training.memory, self.hardware, self._free_bytes, here)
        self.choice = self._choose()
        self.strategy: Strategy = self.choice.strategy
        self.guard = GuardWindow.of(training.guard, None)
        self.step = 0
        self.base_loss_nats: float | None = None
        _ = self.peak_flops  # measured, where it has to be, while memory is free
        self._fisher = self._find_fisher()
        self.learner = self._learner(look=self._begins_at_base(first_end))
        self._first_end = first_end
        self.restored_before(first_end)

    def _choose(self, factor: float = 1.0) -> Choice:
        """Choose how the model is made to fit; the first rank decides for all. factor: a probe's correction."""
        choice = choose(
            self.training,
            self.shape,
            hardware=self.hardware,
            world=self.ranks.world,
            rows_per_rank=-(-self.plan.sequences_per_step // self.ranks.world),
            precision=self.precision_name,
            budget_bytes=min(self.ranks.gather(self._budget)),
            free_bytes=self._free_bytes,
            compiled=self._compiles(),
            factor=factor,
        )
        retreated = remembered(self.run_folder / "checkpoints", self.training, self.hardware, self.ranks.world)
        if retreated is not None:
            use = next((option.use for option in choice.table if option.strategy == retreated), choice.use)
            choice = replace(choice, strategy=retreated, use=use)
        return self.ranks.agree(choice)

    def _compiles(self) -> bool:
        """Whether the blocks are compiled: on a CPU it gains a tenth and takes half a minute and a C++ compiler."""
        if self.training.compile != "auto":
            return self.training.compile
        if self.hardware.kind == "cuda":
            return True
        return self._planned_flops > _COMPILE_FLOPS and any(shutil.which(name) for name in ("c++", "g++", "clang++"))

    @property
    def precision_name(self) -> Precision:
        """`bf16` or `fp32`."""
        return "bf16" if self.precision == torch.bfloat16 else "fp32"

    @cached_property
    def peak_flops(self) -> float | None:
        """Dense matrix multiplication FLOP/s of one rank's device: looked up, or measured where it is not known.

        None for a run that is hardly longer than the measurement.
        """
        known = self.hardware.peak(self.precision_name)
        if known is not None or self._planned_flops < _PROBE_FLOPS:
            return known
        return _measured_peak(self.ranks.device.type, self.precision_name)

    @property
    def _planned_flops(self) -> float:
        return 6.0 * self.shape.matmul_parameters * self.training.stages[-1]

    def _writes_in_background(self) -> bool:
        """Whether checkpoints are written from a copy: on a GPU, if that copy takes a tenth of the memory at most.

        A CPU that writes does not train meanwhile, and a kill may cost a second interval.
        """
        wanted = self.training.background_checkpoints
        if wanted != "auto":
            return wanted
        copied = 12 * parts_of(self.shape, self.training.forgetting).trained
        fits = self.hardware.kind == "cuda" and copied <= machine_memory_bytes() // 10
        return self.ranks.agree(fits)

    def _begins_at_base(self, first_end: int) -> bool:
        return not self.checkpoints.exists_before(first_end)

    def _learner(self, look: bool = False) -> Learner:
        if self.ranks.device.type == "cpu":  # who recomputes is short of memory, and gives back what is freed
            (return_freed_memory if self.strategy.checkpoint_every else keep_freed_memory)()
        first = self.batches.read(0, 0, self._check_rows) if look else None

        def look_at_base(model: Any) -> None:
            assert first is not None
            self.base_loss_nats = loss_of_documents(model, first)

        return Learner(
            self.base,
            self.training.optimizer,
            self.strategy,
            self.precision,
            self.plan.step_tokens,
            self.ranks,
            look_at_base if look else None,
            forgetting=self.training.forgetting,
            fisher=None if self._fisher is None else read_fisher(self._fisher),
            seed=self.seed,
        )

    def _find_fisher(self) -> Path | None:
        """Return the Fisher information that `ewc` weighs with, made now where it is missing; None without `ewc`."""
        ewc = self.training.forgetting.weighed
        if ewc is None:
            return None
        cache = self.run_folder if self.cache is None else self.cache
        return find_fisher(
            self.base, self.corpora[ewc.text], cache, ewc, SEED, self.strategy, self.ranks, self.progress
        )

    @property
    def _check_rows(self) -> int:
        return min(_CHECK_ROWS, self.plan.sequences_per_step)

    @property
    def tokens(self) -> int:
        """Tokens read so far, padding included."""
        return self.step * self.plan.step_tokens

    def restored_before(self, step: int) -> bool:
        """Go back to the newest good checkpoint with fewer than `step` steps; False when there is none."""
        tensors = self.learner.tensors()
        snapshot = self.checkpoints.restore(tensors, step, self.progress.note)
        if snapshot is None:
            return False
        self.step = snapshot.step
        self.learner.set_updates(snapshot.updates)
        self.guard = GuardWindow.of(self.training.guard, snapshot.facts.get("guard"))
        return True

    def begin(self, record: Record | None) -> None:
        """Record how the run goes on, and verify data, loss and isolation before its first update.

        Raises UserError when a check fails.
        """
        self._probe(record)
        facts = {"device": self.hardware.name, "precision": self.precision_name, **self.learner.sharing}
        if record is not None:
            event = "resume" if self.step else "start"
            if self.step:
                self.progress.note(f"training goes on after step {self.step:,}")
            record.event(event, step=self.step, tokens=self.tokens, predicted_bytes=self.choice.use.total, **facts)
        if self.step or self.base_loss_nats is None:
            return
        first = self.batches.read(0, 0, self._check_rows)
        found = check_start(self.learner, self.base_loss_nats, first, self.tokenizer, self.precision)
        if record is not None:
            record.event("check", step=0, tokens=0, **asdict(found))

    def _probe(self, record: Record | None) -> None:
        """Measure two passes of a micro-batch and choose again if the prediction was off.

        On a GPU that takes a moment; on a CPU it is done where the prediction is near the limit.
        """
        use, limit = self.choice.use, self.choice.budget_bytes
        if self.hardware.kind == "cpu" and use.total < _TIGHT * limit:
            return
        rows_of_step = -(-self.plan.sequences_per_step // self.ranks.world)
        rows = Rows.of(self.batches.read(self.step, 0, min(self.strategy.micro_batch, self.plan.sequences_per_step)))
        measured, full = 0, ""
        try:
            measured = self.learner.probe(rows, passes=1 if rows_of_step <= self.strategy.micro_batch else 2)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            full = str(error) or type(error).__name__
        if full:
            self.retreat(full, record)
            return
        measured = max(self.ranks.gather(measured))
        factor = correction(use, measured)
        if record is not None:
            facts = {"predicted_bytes": use.total, "measured_bytes": measured, "limit_bytes": limit, "factor": factor}
            record.event("probe", step=self.step, tokens=self.tokens, **facts)
        choice = self._choose(factor)
        self.choice, was = choice, self.strategy
        if choice.strategy == was:
            return
        self.progress.note(f"measured {measured / 1e9:.1f} GB: going on with {_difference(was, choice.strategy)}")
        self.strategy = choice.strategy
        del self.learner
        self._clear()
        self.learner = self._learner()
        self.restored_before(self._first_end)

    def save(self, record: Record | None, stage: Stage | None = None) -> None:
        """Write a checkpoint, in the background where that fits; stage: its end, with a releasable model."""
        name = f"step-{self.step:08d}" if stage is None else stage.folder.name
        facts = {"guard": self.guard.facts(), "strategy": asdict(self.strategy), "ranks": self.ranks.world}
        facts |= {"precision": self.precision_name, "device": self.hardware.name}
        snapshot = Snapshot(self.step, self.tokens, self.learner.updates, facts)
        tokens = self.tokens

        def written() -> None:
            if record is not None:
                record.event("checkpoint", step=snapshot.step, tokens=tokens, folder=name)
                if stage is not None:
                    record.event("stage_end", step=snapshot.step, tokens=stage.tokens, folder=name)

        export, size = (None, 0) if stage is None else (self._export(), self._model_bytes())
        self.checkpoints.save(name, snapshot, self.learner.tensors(), export, written, size)

    def write_model(self, point: Stage) -> None:
        """Write the weights of now as the model of a point, beside the checkpoints; every rank takes part."""
        self.checkpoints.write_model(point.folder, point.steps, self._export(), self._model_bytes())

    def _export(self) -> Callable[[Path], None]:
        """Take a copy of the weights now, and return what writes it as a plain Hugging Face folder."""
        dtype = stored_dtype(self.base)
        weights = self.learner.whole_weights(dtype)
        model, base = self.learner.model, self.base.folder
        return lambda folder: export_model(model, base, folder / "model", dtype, weights)

    def _model_bytes(self) -> int:
        """How large the weights are that `_export` writes, those of all ranks together."""
        return self.learner.exported_parameters * stored_dtype(self.base).itemsize

    def retreat(self, full: str, record: Record | None) -> None:
        """Go on with less memory after an error that said it was `full`.

        The step that failed is made again, with the same mathematics. Raises UserError when nothing is left to give
        up; and with several ranks, whose others wait in the middle of a step, or a sharded model, which the failed
        pass has left half gathered: then the next start knows.
        """
        nxt = smaller(self.strategy, self.training, kind=self.hardware.kind, world=self.ranks.world)
        if nxt is None:
            todo = "a smaller model, shorter training.sequence_tokens, or a device with more memory"
            got = full.split("\n")[0][:200]
            raise UserError(
                "the memory is full, and nothing is left to give up", str(self.ranks.device), got, todo=todo
            )
        if record is not None:
            record.event("retreat", step=self.step, tokens=self.tokens, was=asdict(self.strategy), now=asdict(nxt))
        with suppress(OSError):  # several ranks may meet the limit at once, and write the same
            remember(self.run_folder / "checkpoints", nxt, self.training, self.hardware, self.ranks.world)
        if self.ranks.world > 1 or self.learner.is_sharded:
            got = f"rank {self.ranks.place.rank}: {full}".split("\n")[0][:200]
            todo = "run the same command again: it begins with less, and goes on from the last checkpoint"
            raise RankError("the memory is full", str(self.ranks.device), got, todo=todo)
        self.progress.note(f"the memory is full; going on with {_difference(self.strategy, nxt)}")
        same_model = replace(nxt, micro_batch=self.strategy.micro_batch, loss_chunk=self.strategy.loss_chunk)
        was, self.strategy = self.strategy, nxt
        if same_model == was:
            self.learner.use(nxt)
        else:
            self._rebuild()

    def _rebuild(self) -> None:
        """Carry weights and moments over into a model under another strategy, through the machine's memory."""
        kept = {name: tensor.detach().cpu().clone() for name, tensor in self.learner.tensors().items()}
        updates = self.learner.updates
        del self.learner
        self._clear()
        self.learner = self._learner()
        self.learner.take(kept, updates)

    def _clear(self) -> None:
        """Give the memory of a model that is no more back before another one is built."""
        gc.unfreeze()  # the loop keeps the collector from looking at what was there when it began
        gc.collect()
        if self.ranks.device.type == "cuda":
            torch.cuda.empty_cache()


def _difference(was: Strategy, now: Strategy) -> str:
    """Say what another strategy does otherwise."""
    before, after = asdict(was), asdict(now)
    return ", ".join(f"{name} {after[name]} (was {before[name]})" for name in after if before[name] != after[name])


@cache
def _measured_peak(device: str, precision: Precision) -> float:
    return measure_matmul_peak(device, precision, seconds=0.5)
