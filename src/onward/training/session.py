"""One process's stay in a run: the loop over steps, its checkpoints and its record."""

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from onward.batches import Batch, Batches, plan_batches
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.model.load import load_model
from onward.model.source import ModelSource
from onward.model.tokenizer import read_tokenizer
from onward.progress import Progress
from onward.recipe import Training
from onward.signals import Interrupted, StopRequest, stop_on_signals
from onward.training import checkpoint
from onward.training.checks import check_start
from onward.training.network import Network, choose_precision
from onward.training.optimizer import build_optimizer
from onward.training.record import Record
from onward.training.schedule import learning_rate
from onward.training.stages import Stage

_TRIM_STEPS = 10
"""Every so many steps a CPU run returns freed memory: it takes milliseconds and halves what the process holds."""
_CHECK_ROWS = 2
"""Rows of the first batch that the start-of-run checks read."""


class Session:
    """One process's stay in a run: the model, its optimizer and the place in the batches."""

    def __init__(
        self,
        training: Training,
        base: ModelSource,
        domain: Path,
        general: Path | None,
        seed: int,
        run_folder: Path,
        made_at: Callable[[int], dict[str, Any]],
        first_end: int,
        while_waiting: Callable[[], None] | None = None,
    ) -> None:
        self.training, self.base, self.run_folder, self.made_at = training, base, run_folder, made_at
        self.plan = plan_batches(training, seed)
        self.checkpoints = run_folder / "checkpoints"
        torch.manual_seed(seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = read_tokenizer(base.folder)
        corpora = [open_corpus(domain, while_waiting)]
        if self.plan.replay and general is not None:
            corpora.append(open_corpus(general))
        self.batches = Batches(self.plan, corpora, padding_id=self.tokenizer.eos_id)
        model = load_model(base, torch.float32, str(self.device))
        self.export_dtype = _stored_dtype(base)
        self.precision = choose_precision(training.precision, self.device)
        self.optimizer = build_optimizer(model, training.optimizer)
        chunk = _loss_chunk(training, model.get_output_embeddings().weight.shape[0], self.device)
        self.network = Network(model, self.precision, chunk, training.gradient_checkpointing)
        newest = checkpoint.newest(self.checkpoints, made_at, before=first_end)
        self.step = 0 if newest is None else checkpoint.load(newest, model, self.optimizer).step
        self.micro_batch = _micro_batch(training, self.plan.sequences_per_step)
        asked = training.checkpoint_tokens or training.stages[-1] // 20
        self.save_every = max(1, asked // self.plan.step_tokens)
        self.saved_at = time.monotonic()

    @contextmanager
    def open_record(self, last_step: int) -> Iterator[Record]:
        """Open the run's record, cut to this session's first step; steps after `last_step` stay."""
        record = Record(self.run_folder, self.step, last_step)
        try:
            yield record
        finally:
            record.close()

    def run(self, stages: tuple[Stage, ...], record: Record, progress: Progress) -> None:
        """Train until the last of `stages` is complete."""
        how = {"device": _device_name(self.device), "precision": str(self.precision).removeprefix("torch.")}
        record.event("resume" if self.step else "start", step=self.step, tokens=self._tokens, **how)
        if self.step == 0:
            first = self.batches[0].rows(0, min(_CHECK_ROWS, self.plan.sequences_per_step))
            found = check_start(self.network, first, self.tokenizer, self.precision)
            record.event("check", step=0, tokens=0, **asdict(found))
        progress.begin("train", stages[-1].steps * self.plan.step_tokens, "tokens")
        with _writer(self.training, self.run_folder) as board, stop_on_signals() as stop:
            for stage in stages:
                while self.step < stage.steps:
                    self._one_step(stage, record, progress, board, stop)
                    if self.step == stage.steps:
                        self._save(stage.folder, record, export=True)
                        record.event("stage_end", step=self.step, tokens=stage.tokens, folder=stage.folder.name)
                    elif self.step and (self._state_is_due() or stop.number is not None):
                        self._save(self.checkpoints / f"step-{self.step:08d}", record, export=False)
                    if stop.number is not None:
                        record.event("signal", step=self.step, tokens=self._tokens, number=stop.number)
                        raise Interrupted(stop.number, self.step)
        if self.step == self.plan.total_steps:
            record.event("finished", step=self.step, tokens=self._tokens)

    @property
    def _tokens(self) -> int:
        return self.step * self.plan.step_tokens

    def _state_is_due(self) -> bool:
        seconds = self.training.checkpoint_seconds
        late = seconds is not None and time.monotonic() - self.saved_at >= seconds
        return late or self.step % self.save_every == 0

    def _one_step(self, stage: Stage, record: Record, progress: Progress, board: Any, stop: StopRequest) -> None:
        """Make one update and record it; after a signal in its middle nothing is changed and the step stays due."""
        started = time.perf_counter()
        batch = self.batches[self.step]
        rate = learning_rate(
            self.step, self.training.optimizer.learning_rate, self.plan.stage_steps, self.training.schedule
        )
        updated = self._update(batch, rate, stop)
        if updated is None:
            return
        loss, norm = updated
        seconds = time.perf_counter() - started
        row: dict[str, Any] = {
            "step": self.step,
            "tokens": (self.step + 1) * self.plan.step_tokens,
            "stage": stage.number,
            "loss_nats": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "tokens_per_second": self.plan.step_tokens / seconds,
            "labelled_tokens": batch.labelled_tokens,
            "replay_sequences": int(batch.general_B.sum()),
            "memory_bytes": _memory_bytes(self.device),
            "seconds": seconds,
        }
        record.metrics(**row)
        if self.device.type == "cpu" and self.step % _TRIM_STEPS == 0:
            _return_freed_memory()
        if board is not None:
            for name in ("loss_nats", "learning_rate", "gradient_norm", "tokens_per_second"):
                board.add_scalar(name, row[name], row["tokens"])
        speed, memory = row["tokens_per_second"], row["memory_bytes"] / 1e9
        facts = f"loss {loss:.3f}  {speed:,.0f} tok/s  lr {rate:.1e}  {memory:.1f} GB"
        self.step += 1
        progress.advance(self.step * self.plan.step_tokens, facts)

    def _update(self, batch: Batch, rate: float, stop: StopRequest) -> tuple[float, float] | None:
        """One optimizer update over the global batch; returns the mean loss in nats and the gradient norm.

        Returns None, with no update made, when a signal came before the last micro-batch: a large step on a slow
        device outlasts the time that a scheduler leaves after SIGTERM.
        """
        labelled = batch.labelled_tokens
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(batch.ids_BT), self.micro_batch):
            if start and stop.number is not None:
                self.optimizer.zero_grad(set_to_none=True)
                return None
            with _memory_advice(self.device):
                part = self.network.summed_loss(batch.rows(start, start + self.micro_batch))
                (part / labelled).backward()  # type: ignore[no-untyped-call]
            total += part.detach().double()
        parameters = [p for p in self.network.model.parameters() if p.grad is not None]
        limit = self.training.optimizer.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit, foreach=True)
        loss = float(total) / labelled
        if not torch.isfinite(norm) or loss != loss:
            self._stop_for_bad_loss(loss, float(norm))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, float(norm)

    def _stop_for_bad_loss(self, loss: float, norm: float) -> None:
        names = ["domain", "general"]
        rows = ", ".join(f"{names[corpus]} sequence {n}" for corpus, n in self.batches.sequences(self.step)[:4])
        raise UserError(
            "the loss or the gradient is not a number; no update was made",
            f"step {self.step} ({rows}, ...)",
            f"loss {loss}, gradient norm {norm}",
            todo="lower training.optimizer.learning_rate, or look at these sequences; the last checkpoint is untouched",
        )

    def _save(self, folder: Path, record: Record, export: bool) -> None:
        cursor = checkpoint.Cursor(self.step, self.step * self.plan.step_tokens)
        export_to = (self.base.folder, self.export_dtype) if export else None
        checkpoint.save(folder, cursor, self.network.model, self.optimizer, self.made_at(self.step), export_to)
        self.saved_at = time.monotonic()
        checkpoint.prune(self.checkpoints, self.step, self.training.keep_checkpoints)
        record.event("checkpoint", step=self.step, tokens=cursor.tokens, folder=folder.name)


def _micro_batch(training: Training, sequences: int) -> int:
    """Sequences per forward pass. auto: about 4,096 tokens, which measured fastest on CPU and is small on a GPU."""
    if isinstance(training.micro_batch_sequences, int):
        return min(training.micro_batch_sequences, sequences)
    return min(sequences, max(1, 4096 // training.sequence_tokens))


def _loss_chunk(training: Training, vocabulary: int, device: torch.device) -> int:
    """Positions per chunk of the loss. auto: fp32 logits of 8 MB on a CPU, 256 MB on a GPU.

    A CPU gains from logits that stay in its caches: 6.1k tok/s with 8 MB against 4.4k with 64 MB (3.9M parameters).
    """
    if isinstance(training.loss_chunk_tokens, int):
        return training.loss_chunk_tokens
    return max(16, (256 if device.type == "cuda" else 8) * 2**20 // (4 * vocabulary))


def _stored_dtype(base: ModelSource) -> torch.dtype:
    """The type in which the base model's weights are stored; the stages are written in the same."""
    from transformers import AutoConfig

    from onward.model.mobilellm import is_mobilellm

    if is_mobilellm(base.folder):
        return torch.float16
    stored = getattr(
        AutoConfig.from_pretrained(base.folder, local_files_only=True, trust_remote_code=False), "dtype", None
    )
    return stored if isinstance(stored, torch.dtype) else torch.float32


def _return_freed_memory() -> None:
    """Ask glibc to give freed memory back; documents of all lengths leave holes that it would keep. Else nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def _memory_advice(device: torch.device) -> Iterator[None]:
    """Turn a GPU's out-of-memory error into what its owner can do."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        todo = "lower training.micro_batch_sequences, or set training.gradient_checkpointing; then run again"
        raise UserError("the GPU's memory is full", str(device), str(error).split(".")[0], todo=todo) from error


def _memory_bytes(device: torch.device) -> int:
    """Peak of the step on a GPU (allocated); resident set after the step on a CPU."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    return int(psutil.Process().memory_info().rss)


@contextmanager
def _writer(training: Training, run_folder: Path) -> Iterator[Any]:
    """TensorBoard's writer when the recipe asks for it, else None."""
    if not training.tensorboard:
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
