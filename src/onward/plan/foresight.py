"""What a run is foreseen to need: numbers with the range that they may be off by, and what speaks against the run."""

from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from onward.errors import UserError, UserErrors
from onward.training.strategy import Strategy


@dataclass(frozen=True)
class Range:
    """An estimate and the interval it is believed to lie in; low = value = high where it is known."""

    low: float
    value: float
    high: float

    @staticmethod
    def exactly(value: float) -> "Range":
        """Return a known number."""
        return Range(value, value, value)

    @property
    def is_exact(self) -> bool:
        """Whether the number is known."""
        return self.low == self.high

    def times(self, factor: float) -> "Range":
        """Return the range in another unit; factor: not negative."""
        return Range(self.low * factor, self.value * factor, self.high * factor)

    def divided_by(self, divisor: "Range") -> "Range":
        """Return the quotient, both ends at their worst; divisor: above zero."""
        return Range(self.low / divisor.high, self.value / divisor.value, self.high / divisor.low)

    def plus(self, other: "Range") -> "Range":
        """Return the sum."""
        return Range(self.low + other.low, self.value + other.value, self.high + other.high)

    def at_most(self, limit: float) -> "Range":
        """Return the range cut off at a limit."""
        return Range(min(self.low, limit), min(self.value, limit), min(self.high, limit))


@dataclass(frozen=True)
class SourceForesight:
    """What one source of a corpus gives.

    stored_bytes: of its files, None where a server does not tell. documents, tokens: kept ones, were it read whole.
    sampled_documents: how many were read to find out; None where all of it is prepared. read_tokens: what reading
    takes of it before the wanted tokens are there, or its end.
    """

    path: str
    files: int
    stored_bytes: int | None
    documents: Range
    tokens: Range
    sampled_documents: int | None
    read_tokens: Range


@dataclass(frozen=True)
class TextForesight:
    """What a corpus gives and what the run asks of it.

    role: the corpus's name: domain, general, or another that is replayed. basis: prepared (exact), estimated (from a
    sample of the files), or to be sampled (by the base model). documents, tokens: kept, up to the wanted tokens.
    kept_share: of the text's bytes; of text to be sampled what is not held out. sequences: packed. passes: how often
    training reads it. pairs_per_token: causal pairs of positions over tokens, the mean length a position looks back
    over, itself included. losses: what drops most documents, in words. prepare_seconds: None where nothing is left to
    prepare, or its time is not known. disk_bytes: what is still to be written. held_out_tokens: of the text that may be
    scored.
    """

    role: str
    basis: Literal["prepared", "estimated", "to be sampled"]
    sources: tuple[SourceForesight, ...]
    sampled_documents: int
    documents: Range
    tokens: Range
    kept_share: float
    bytes_per_token: float
    sequences: Range
    sequences_needed: int
    tokens_needed: int
    passes: Range
    pairs_per_token: float
    losses: tuple[str, ...]
    prepare_seconds: Range | None
    disk_bytes: float
    held_out_tokens: float


@dataclass(frozen=True)
class Machine:
    """What the run is planned for. here: whether it is this machine. peak_flops: of one device, dense, for precision.

    memory_bytes: of one device, None where it is not known. peak_from: where the peak comes from.
    """

    name: str
    kind: str
    count: int
    here: bool
    precision: str
    peak_flops: float
    peak_from: str
    memory_bytes: int | None


@dataclass(frozen=True)
class StrategyForesight:
    """One way of fitting the step into memory. bytes: predicted peak by part, for one device.

    relative_time: of a step, against the fastest.
    """

    strategy: Strategy
    peak_bytes: int
    parts: dict[str, int]
    fits: bool
    relative_time: float


@dataclass(frozen=True)
class MemoryForesight:
    """Ways to fit, fastest first. budget_bytes: what one device may give. chosen: place of the one that will run."""

    budget_bytes: int
    strategies: tuple[StrategyForesight, ...]
    chosen: int | None


@dataclass(frozen=True)
class Timed:
    """A few real steps on this machine. step_seconds: of a whole global batch: its micro-batches and the update."""

    step_seconds: Range
    peak_bytes: int
    micro_batches: int


@dataclass(frozen=True)
class TrainingForesight:
    """What training costs.

    step_flops: model FLOPs of a step, recomputation not counted. utilisation: of the peak. tokens_per_second: over all
    places of a step. stage_seconds: cumulative, at the end of each stage. basis: estimated, or measured.
    """

    basis: Literal["estimated", "measured"]
    step_flops: float
    utilisation: Range
    tokens_per_second: Range
    seconds: Range
    stage_seconds: tuple[Range, ...]


@dataclass(frozen=True)
class RemediesForesight:
    """What the remedies against forgetting cost beside the rows that are replayed.

    sampled_tokens: to be drawn from the base model, sampling_seconds: how long that takes, None without them.
    fisher_tokens: of `fisher_text`, which the Fisher information is yet to be estimated on; 0 and None where it is not
    wanted or there; fisher_bytes: on disk, in the cache. step_work: arithmetic of a step beside one in which everything
    is trained and nothing else done.
    """

    sampled_tokens: float
    sampling_seconds: Range | None
    fisher_text: str | None
    fisher_tokens: int
    fisher_seconds: Range | None
    step_work: Range
    fisher_bytes: int = 0


@dataclass(frozen=True)
class EvaluationForesight:
    """What scoring costs. models: the base, one of each stage, and those of `evaluation.at`. requests, tokens: of one.

    unknown_tasks: those whose size is not known beforehand; they come on top. between: how many of the models are those
    of `evaluation.at`. cloze_items: as many as the held-out text can give of those wanted.
    """

    models: int
    requests: int
    tokens: float
    seconds: Range
    unknown_tasks: tuple[str, ...]
    between: int
    cloze_items: int
    cloze_wanted: int = 0


@dataclass(frozen=True)
class DiskForesight:
    """What will be written. corpora, fisher, checkpoints, models, scores: bytes. free: by the place that holds them."""

    corpora: float
    checkpoints: float
    models: float
    scores: float
    free: dict[str, int]
    fisher: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.corpora + self.fisher + self.checkpoints + self.models + self.scores


@dataclass(frozen=True)
class Foresight:
    """All that is foreseen of a run.

    stages: cumulative tokens, steps: cumulative. replay: in words. maximum_repetition: most passes over a text. curve:
    (step, learning rate), every border of a stage among them. memory, training, evaluation: None where nothing can be
    said, which `problems` or `notes` explain. problems: what makes the run impossible, each with a way out.
    """

    name: str
    model: str
    parameters: int
    machine: Machine
    texts: tuple[TextForesight, ...]
    stages: tuple[int, ...]
    steps: tuple[int, ...]
    sequence_tokens: int
    sequences_per_step: int
    replay_share: str | None
    replay: str
    maximum_repetition: float
    curve: tuple[tuple[int, float], ...]
    memory: MemoryForesight | None
    timed: Timed | None
    training: TrainingForesight | None
    remedies: RemediesForesight
    evaluation: EvaluationForesight
    disk: DiskForesight
    notes: tuple[str, ...]
    problems: tuple[UserError, ...]

    @property
    def step_tokens(self) -> int:
        """Places of a step."""
        return self.sequences_per_step * self.sequence_tokens

    def check(self) -> None:
        """Raise UserError when the run cannot work, with every problem at once."""
        if len(self.problems) == 1:
            raise self.problems[0]
        if self.problems:
            raise UserErrors(f"{self.name}: {len(self.problems)} reasons why this run cannot work", [*self.problems])

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values; seconds, bytes and tokens are plain numbers."""
        return {field.name: _as_json(getattr(self, field.name)) for field in fields(self)}


def _as_json(value: Any) -> Any:
    match value:
        case UserError():
            facts = (value.what, value.where, value.got, value.expected, value.todo)
            return dict(zip(("what", "where", "got", "expected", "do"), facts, strict=True))
        case tuple() | list():
            return [_as_json(inner) for inner in value]
        case dict():
            return {key: _as_json(inner) for key, inner in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _as_json(getattr(value, field.name)) for field in fields(value)}
    return value
