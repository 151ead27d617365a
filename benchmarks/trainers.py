"""The two sides of `benchmarks/training.py`, each in a process of its own: onward's training stage and HF's Trainer.

    python benchmarks/trainers.py JOB.json
    python benchmarks/trainers.py --gemm bf16 SECONDS

Both read the same packed rows in the same order, with documents kept apart, and make the same updates. The last line
is flat JSON: the seconds between the ends of two steps, the losses, the peak of memory until the last step's end.
The Trainer needs accelerate, which `pip install .[bench]` brings.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from onward.batches import NO_TARGET
from onward.training.hardware import measure_matmul_peak
from onward.training.record import read_rows
from packed_rows import PackedRows, load_rows

LEARNING_RATE, BETAS, EPSILON, WEIGHT_DECAY, CLIP_NORM = 1e-4, (0.9, 0.95), 1e-8, 0.1, 1.0
"""The recipe's defaults."""
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Job:
    """What one side is to do.

    side: onward or hf. base: model folder. corpus: artifact of onward's `prepare`. rows: .npz of the same rows in the
    order of the steps. work: scratch folder. precision: fp32 or bf16. compiled: through torch.compile.
    """

    side: str
    base: str
    corpus: str
    rows: str
    work: str
    precision: str
    steps: int
    rows_per_step: int
    micro_batch: int
    sequence_tokens: int
    compiled: bool = False


@dataclass(frozen=True)
class Measured:
    """What one side took.

    step_seconds: from the end of a step to the end of the next, from the second step on; step_cpu_seconds: of the
    processor, all threads together. losses_nats: of every step.
    peak_bytes: resident memory of the process until the end of the last step; baseline_bytes: after the imports.
    """

    step_seconds: list[float]
    step_cpu_seconds: list[float]
    losses_nats: list[float]
    peak_bytes: int
    baseline_bytes: int


class Watch:
    """Notes the ends of steps, and the peak of memory until `close`.

    Linux's own high-water mark is read every 20 ms, so that one who resets it meanwhile loses nothing.
    """

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []
        self.baseline_bytes = self.peak_bytes = resident_bytes()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def step(self) -> None:
        """A step has ended."""
        self.ends.append((time.perf_counter(), time.process_time()))

    def close(self) -> None:
        """The last step has ended."""
        self._closed.set()
        self._thread.join()

    def measured(self, losses: list[float]) -> Measured:
        """Return what was noted."""
        wall, cpu = ([later - earlier for earlier, later in pairwise(ends)] for ends in zip(*self.ends, strict=True))
        return Measured(wall, cpu, losses, self.peak_bytes, self.baseline_bytes)

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, resident_bytes("VmHWM"))
            if self._closed.wait(_SAMPLE_SECONDS):
                self.peak_bytes = max(self.peak_bytes, resident_bytes("VmHWM"))
                return


def resident_bytes(field: str = "VmRSS") -> int:
    """Return the resident memory of this process (VmHWM: its peak since it was last reset); Linux only."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise SystemExit("this benchmark reads /proc/self/status, which only Linux has")


class StepProgress:
    """Receives the training stage's progress: one report for every step."""

    def __init__(self, watch: Watch, steps: int) -> None:
        self._watch, self._steps = watch, steps

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """The stage begins."""

    def advance(self, done: int, facts: str = "") -> None:
        """A step has ended."""
        self._watch.step()
        if len(self._watch.ends) == self._steps:
            self._watch.close()

    def note(self, text: str) -> None:
        """Something happened."""


def run_onward(job: Job) -> Measured:
    """Run onward's training stage as `onward train` does, its start-up checks included."""
    from onward.model.source import resolve
    from onward.recipe import Training
    from onward.training.loop import Loop  # noqa: F401
    from onward.training.train import train

    tokens = job.rows_per_step * job.sequence_tokens
    training = Training.model_validate(
        {
            **shared_settings(job),
            "micro_batch_sequences": job.micro_batch,
            "precision": job.precision,
            "gradient_checkpointing": "none",
            "sharding": "none",
            "compile": job.compiled,
            # One state, when all is measured.
            "checkpoint_tokens": 2 * job.steps * tokens,
            "checkpoint_seconds": None,
            "background_checkpoints": False,
        }
    )
    watch = Watch()
    folder = Path(job.work) / "run"
    progress = StepProgress(watch, job.steps)
    train(
        training,
        base=resolve(job.base),
        corpora={"domain": Path(job.corpus)},
        seed=0,
        run_folder=folder,
        progress=progress,
    )
    return watch.measured([row["loss_nats"] for row in read_rows(folder / "metrics.jsonl")])


def shared_settings(job: Job) -> dict[str, Any]:
    """Return the part of the training section that decides what is computed."""
    tokens = job.rows_per_step * job.sequence_tokens
    return {
        "stages": [job.steps * tokens],
        "sequence_tokens": job.sequence_tokens,
        "batch_tokens": tokens,
        "optimizer": {
            "learning_rate": LEARNING_RATE,
            "betas": BETAS,
            "epsilon": EPSILON,
            "weight_decay": WEIGHT_DECAY,
            "clip_norm": CLIP_NORM,
        },
        "schedule": {"kind": "constant", "warmup": 0},
        "forgetting": {"replay": None},
    }


class TrainerRows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Packed rows as HF's Trainer takes them.

    Without an attention mask transformers keeps apart what `position_ids` counts anew; `shift_labels` are labels that
    are the next tokens already, as its padding-free collators give them, so that both sides have the same targets.
    """

    def __init__(self, rows: PackedRows) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows.ids_NT)

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        labels = torch.from_numpy(self._rows.labels_NT[n])
        return {
            "input_ids": torch.from_numpy(self._rows.ids_NT[n]),
            "position_ids": torch.from_numpy(self._rows.positions_NT[n]),
            # Only counted, in some versions from the second on: every target once.
            "labels": torch.nn.functional.pad(labels, (1, 0), value=NO_TARGET),
            "shift_labels": labels,
        }


def trainer_arguments(job: Job, device: str, logging_steps: int = 1) -> Any:
    """Return what a user of HF's Trainer would set for this job; nothing is saved or reported."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(Path(job.work) / "hf"),
        per_device_train_batch_size=job.micro_batch,
        gradient_accumulation_steps=job.rows_per_step // job.micro_batch,
        max_steps=job.steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPSILON,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=CLIP_NORM,
        bf16=job.precision == "bf16",
        torch_compile=job.compiled,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=logging_steps,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )


def hf_trainer(model: Any, rows: PackedRows, arguments: Any, at_step_end: Callable[[int], None]) -> Any:
    """Return a Trainer that calls `at_step_end(steps done)` after every step and prints nothing."""
    from transformers import PrinterCallback, Trainer, TrainerCallback

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            at_step_end(state.global_step)

    trainer = Trainer(model=model, args=arguments, train_dataset=TrainerRows(rows), callbacks=[Ends()])
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_hf(job: Job) -> Measured:
    """Train by HF's Trainer."""
    # What is imported before the watch begins is the baseline; transformers imports a name when it is first asked for.
    from transformers import AutoModelForCausalLM, LlamaForCausalLM, Trainer  # noqa: F401

    watch = Watch()
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=torch.float32, attn_implementation="sdpa")

    def at_step_end(step: int) -> None:
        watch.step()
        if step == job.steps:
            watch.close()

    trainer = hf_trainer(model, load_rows(Path(job.rows)), trainer_arguments(job, "cpu"), at_step_end)
    trainer.train()
    return watch.measured([row["loss"] for row in trainer.state.log_history if "loss" in row])


def main() -> None:
    """Do the job that is asked for and print what it took."""
    if sys.argv[1] == "--gemm":
        peak = measure_matmul_peak("cpu", "bf16" if sys.argv[2] == "bf16" else "fp32", float(sys.argv[3]))
        print(json.dumps({"flop_per_s": peak}))
        return
    job = Job(**json.loads(Path(sys.argv[1]).read_bytes()))
    measured = {"onward": run_onward, "hf": run_hf}[job.side](job)
    print(json.dumps(asdict(measured)))


if __name__ == "__main__":
    main()
