"""The stages of a run: where each ends and where its checkpoint is."""

from collections.abc import Sequence
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


def points_of(training: Training, at: Sequence[int], seed: int, run_folder: Path) -> tuple[Stage, ...]:
    """List the counts of tokens at which a model is written beside the ends of the stages, in their order.

    Each ends at the first step that reaches its tokens; its number is that of the stage it lies in. Its folder holds
    the model alone. What is the end of a stage needs no second model and is left out.
    """
    plan = plan_batches(training, seed)
    found = []
    for tokens in sorted(set(at) - set(training.stages)):
        steps = -(-tokens // plan.step_tokens)
        number = next(n for n, end in enumerate(plan.stage_steps, start=1) if steps <= end)
        found.append(Stage(number, tokens, steps, run_folder / "models" / f"tokens-{stage_name(tokens)}"))
    return tuple(found)


def stage_name(tokens: int) -> str:
    """Name a cumulative budget for folders, exactly: 400000000 -> `000400M`, 655360 -> `000655360`."""
    return f"{tokens // 10**6:06d}M" if tokens % 10**6 == 0 else f"{tokens:09d}"
