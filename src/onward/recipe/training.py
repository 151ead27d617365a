"""The knobs of training: stages, batches, optimizer, schedule, what it may take of the machine and what guards it."""

from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from onward.recipe.forgetting import Forgetting
from onward.recipe.quantities import Seconds, Share, Tokens, parse_bytes
from onward.recipe.section import Problem, Section, require_none


class Schedule(Section):
    """The learning rate over steps, a pure function of the step."""

    kind: Literal["cosine", "wsd", "constant", "infinite"] = "cosine"
    """cosine; wsd: constant, then a 1-sqrt cooldown (2405.18392); constant; infinite (2403.08763)."""
    horizon: Literal["stage", "run"] = "stage"
    """stage: decay to the end of every stage and re-warm, so each stage's checkpoint is releasable; run: decay once."""
    warmup: Share = Fraction(2, 100)
    """Linear warm-up over this share of the horizon."""
    minimum: Share = Fraction(1, 10)
    """Final learning rate as a share of the peak."""
    cooldown: Share = Fraction(2, 10)
    """wsd and infinite: share of the horizon spent in the final cooldown or annealing."""


class Optimizer(Section):
    """AdamW; no weight decay on norms and biases."""

    learning_rate: float = Field(1e-4, gt=0)
    """Peak learning rate; 3e-5 to 3e-4 for 100M-1B models and 0.4-1B tokens."""
    embedding_learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of the input and output embeddings; null: that of everything else."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the first and second moment."""
    second_moment_half_life: Tokens | None = None
    """Half-life of the second moment in tokens (10M), from which its decay rate follows for every batch size: beta2 =
    0.5^(batch / half-life) (2507.07101); null: the second of `betas`."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled weight decay towards zero."""
    clip_norm: float | None = Field(1.0, gt=0)
    """Clip the global gradient norm here; null: off."""


class Guard(Section):
    """What watches over the loss while it trains."""

    spike: Literal["skip", "rollback", "stop"] | None = "skip"
    """What follows a step whose loss leaps: leave its update out; go back to the last checkpoint and leave it out; stop
    with a diagnosis; null: nothing. A loss or gradient that is not a number is never applied."""
    spike_deviations: float = Field(10.0, gt=0)
    """A leap: so many robust standard deviations (1.4826 x median absolute deviation) above the window's median ..."""
    spike_nats: float = Field(0.5, gt=0)
    """... and at least so many nats above it."""
    window_steps: int = Field(64, ge=8)
    """The steps before, from which median and deviation come; a quarter of them must be there."""
    patience: int = Field(5, ge=1)
    """So many updates left out within a window stop the run with a diagnosis."""


class Training(Section):
    """How the model is trained."""

    stages: tuple[Tokens, ...] = (400_000_000, 1_000_000_000)
    """Cumulative tokens at the end of each stage; each end leaves a releasable checkpoint."""
    sequence_tokens: int = Field(2000, ge=8)
    """Length of a packed sequence."""
    batch_tokens: Tokens = 128_000
    """Tokens of a step (global batch), rounded down to whole sequences."""
    micro_batch_sequences: int | Literal["auto"] = "auto"
    """Sequences per forward pass; it changes speed and memory, never the mathematics."""
    maximum_repetition: float = Field(4.0, gt=0)
    """How often a source may be passed over; up to 4 is about as good as fresh text (Muennighoff et al.)."""
    optimizer: Optimizer = Optimizer()  # type: ignore[call-arg]
    """AdamW's settings."""
    schedule: Schedule = Schedule()
    """The learning-rate curve."""
    seed: int | None = Field(None, ge=0)
    """Seed of the order of the sequences and of what training draws; null: the recipe's."""
    text: Literal["domain", "general"] = "domain"
    """What is trained on beside what is replayed. general: general text alone, the same steps without the domain: the
    control that tells what more training by itself does (with `forgetting.replay: null`)."""
    forgetting: Forgetting = Forgetting()  # type: ignore[call-arg]
    """Remedies against forgetting."""
    order: Literal["corpus", "blocks"] = "corpus"
    """corpus: sequences in one random order over all the text; blocks: block after block, random within each, so that
    training may start on the first finished block (`onward run --stream`)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Compute precision; master weights are always fp32. auto: bf16 where the device computes it natively."""
    memory: Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)] | Literal["auto"] = "auto"
    """What one GPU (or the machine, without one) may give to training: `16GB`, or all it has; where the knobs below say
    auto, the fastest combination that fits is taken, and a run that meets the limit goes on with the next."""
    sharding: Literal["auto", "none", "zero2", "zero3"] = "auto"
    """How several GPUs share the model: none (each has all of it), zero2 (gradients and optimizer state are split),
    zero3 (weights too)."""
    offload: bool | Literal["auto"] = "auto"
    """Keep weights, gradients and optimizer state in the machine's memory instead of the GPU's: slow, and fits."""
    gradient_checkpointing: Annotated[int, Field(ge=1)] | Literal["auto", "none", "all"] = "auto"
    """Recompute the activations of no block, all, or every n-th in the backward pass: less memory, more time."""
    compile: bool | Literal["auto"] = "auto"
    """Compile the model's blocks with torch.compile. auto: on a GPU, and on a CPU for runs of hours."""
    guard: Guard = Guard()  # type: ignore[call-arg]
    """What watches over the loss."""
    loss_chunk_tokens: int | Literal["auto"] = "auto"
    """Positions whose logits exist at one time; it changes speed and memory, never the mathematics."""
    checkpoint_tokens: Tokens | None = None
    """Save a resumable state every so many tokens; null: twenty times per run."""
    checkpoint_seconds: Seconds | None = 1800.0
    """Save also when so long has passed since the last state (30m); null: by tokens only."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many resumable states between stage ends are kept."""
    background_checkpoints: bool | Literal["auto"] = "auto"
    """Write checkpoints while training goes on, from a copy; a kill while one is written costs up to two intervals
    instead of one. auto: on a GPU, where the copy fits easily."""
    tensorboard: bool = False
    """Also write TensorBoard files (needs the `tensorboard` package)."""

    @field_validator("stages")
    @classmethod
    def _increasing(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if not stages or any(later <= earlier for earlier, later in pairwise(stages)):
            raise ValueError("stages are cumulative: at least one, each larger than the one before (400M, 1B)")
        return stages

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object) -> object:
        """`true` and `false` stand for all and none."""
        return {True: "all", False: "none"}[value] if isinstance(value, bool) else value

    @field_validator("micro_batch_sequences", "loss_chunk_tokens")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("at least one, or auto")
        return value

    @model_validator(mode="after")
    def _whole_steps(self) -> Self:
        problems = []
        step_tokens = self.batch_tokens // self.sequence_tokens * self.sequence_tokens
        if step_tokens == 0:
            problems.append(
                f"batch_tokens ({self.batch_tokens}) holds no whole sequence of {self.sequence_tokens} tokens"
            )
        else:
            steps = [-(-tokens // step_tokens) for tokens in self.stages]
            if any(later <= earlier for earlier, later in pairwise(steps)):
                problems.append(f"two stages end at the same step of {step_tokens} tokens")
        if self.stages[0] < step_tokens:
            problems.append(f"the first stage ({self.stages[0]} tokens) is shorter than a step ({step_tokens})")
        if self.schedule.kind in ("wsd", "infinite") and self.schedule.warmup + self.schedule.cooldown > 1:
            problems.append("schedule: warm-up and cooldown together are more than the whole")
        require_none([Problem("", what) for what in problems])
        return self
