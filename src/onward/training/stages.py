"""The stages of a run: where each ends and where its checkpoint is."""

from dataclasses import dataclass
from pathlib import Path

from onward.batches import plan_batches
from onward.recipe import Training

COST_KNOBS = (
    "micro_batch_sequences",
    "memory",
    "sharding",
    "offload",
    "compile",
    "background_checkpoints",
    "gradient_checkpointing",
    "loss_chunk_tokens",
    "checkpoint_tokens",
    "checkpoint_seconds",
    "keep_checkpoints",
    "tensorboard",
    "maximum_repetition",
)
"""Fields of `training` that alter what a run costs, not what it computes; they may change between two starts."""


@dataclass(frozen=True)
class Stage:
    """The end of a stage: cumulative tokens asked for, updates done, the checkpoint's folder."""

    number: int
    tokens: int
    steps: int
    folder: Path

    @property
    def model(self) -> Path:
        """The plain Hugging Face folder of this stage."""
        return self.folder / "model"


def stages_of(training: Training, seed: int, run_folder: Path) -> tuple[Stage, ...]:
    """List the stages of a run and where their checkpoints are or will be."""
    plan = plan_batches(training, seed)
    return tuple(
        Stage(number, tokens, steps, run_folder / "checkpoints" / f"tokens-{stage_name(tokens)}")
        for number, (tokens, steps) in enumerate(zip(training.stages, plan.stage_steps, strict=True), start=1)
    )


def stage_name(tokens: int) -> str:
    """Name a cumulative budget for folders, exactly: 400000000 -> `000400M`, 655360 -> `000655360`."""
    return f"{tokens // 10**6:06d}M" if tokens % 10**6 == 0 else f"{tokens:09d}"
