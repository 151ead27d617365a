"""What a verification found: every life of the interrupted run, every step of both runs side by side, the verdict."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_GROUP_BYTES = 1 << 28
"""Of each run's final state so much is held at one time."""


@dataclass(frozen=True)
class Life:
    """One start of the interrupted run, up to its death or to the end.

    ranks: processes that trained. micro_batch: sequences per forward pass; None: as the recipe says. first_step: where
    it went on. last_step: steps of the run that were recorded when it ended. killed: which processes were killed, `all`
    or `one rank`; None when it came to the end. while_saving: it was killed with a checkpoint half written.
    """

    ranks: int
    micro_batch: int | None
    first_step: int
    last_step: int
    killed: str | None
    while_saving: bool


@dataclass(frozen=True)
class StepPair:
    """A step as the uninterrupted run made it and as the interrupted one did, in this order.

    life: which of the lives (from 0) made the interrupted run's. Losses are means over the labelled tokens in nats.
    """

    step: int
    life: int
    same_batch: bool
    labelled_tokens: tuple[int, int]
    losses_nats: tuple[float, float]

    @property
    def loss_difference_nats(self) -> float:
        """How far the losses lie apart; infinite when one is not a number."""
        first, second = self.losses_nats
        return abs(first - second) if isfinite(first) and isfinite(second) else float("inf")


@dataclass(frozen=True)
class WeightsApart:
    """How far two final states lie apart.

    largest: the largest difference of a weight. relative: the Euclidean length of all weights' differences over that of
    the weights. same_bits: whether weights and both moments of the optimizer are equal to the bit.
    """

    largest: float
    relative: float
    same_bits: bool


@dataclass(frozen=True)
class Verification:
    """The result of `verify_resume`.

    tolerance_nats: how far losses may lie apart; 0 asks for equal bits everywhere. interval_steps: steps from one
    checkpoint to the next. lost_steps: per kill, how many recorded steps had to be made again.
    """

    recipe: str
    device: str
    precision: str
    steps: int
    interval_steps: int
    tolerance_nats: float
    lives: tuple[Life, ...]
    pairs: tuple[StepPair, ...]
    weights: WeightsApart
    seconds: float

    @property
    def kills(self) -> int:
        """How many times the run was killed."""
        return sum(life.killed is not None for life in self.lives)

    @property
    def kills_while_saving(self) -> int:
        """How many kills left a checkpoint half written."""
        return sum(life.while_saving for life in self.lives)

    @property
    def lost_steps(self) -> tuple[int, ...]:
        """Per kill, the recorded steps that had to be made again."""
        lives = zip(self.lives, self.lives[1:], strict=False)
        return tuple(max(0, life.last_step - following.first_step) for life, following in lives)

    @property
    def loss_difference_nats(self) -> float:
        """The largest difference between the losses of a step."""
        return max(pair.loss_difference_nats for pair in self.pairs)

    @property
    def same_batches(self) -> bool:
        """Whether every step read the same tokens, and as many of them labelled."""
        return all(pair.same_batch and pair.labelled_tokens[0] == pair.labelled_tokens[1] for pair in self.pairs)

    @property
    def same_bits(self) -> bool:
        """Whether all losses and the final state are equal to the bit."""
        return self.weights.same_bits and all(pair.losses_nats[0] == pair.losses_nats[1] for pair in self.pairs)

    @property
    def agrees(self) -> bool:
        """The verdict: the same batches, and losses within the tolerance or, where that is 0, equal bits."""
        if not self.same_batches:
            return False
        return self.loss_difference_nats <= self.tolerance_nats if self.tolerance_nats else self.same_bits

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON, what follows from it included."""
        names = ("kills", "kills_while_saving", "lost_steps", "loss_difference_nats", "same_batches", "same_bits")
        found = asdict(self) | {name: getattr(self, name) for name in (*names, "agrees")}
        return found | {"lost_steps": list(self.lost_steps)}


def paired(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], lives: Sequence[Life], steps: int
) -> tuple[StepPair, ...]:
    """Lay the recorded rows of two runs side by side; raises RuntimeError when a step is not in both exactly once."""
    for which, rows in (("uninterrupted", first), ("interrupted", second)):
        recorded = [row["step"] for row in rows]
        if recorded != list(range(steps)):
            raise RuntimeError(f"the {which} run recorded the steps {recorded} instead of 0 to {steps - 1} once each")
    pairs = []
    for one, other in zip(first, second, strict=True):
        step = one["step"]
        made_by = max(number for number, life in enumerate(lives) if life.first_step <= step)
        pairs.append(
            StepPair(
                step,
                made_by,
                one["batch"] == other["batch"],
                (one["labelled_tokens"], other["labelled_tokens"]),
                (one["loss_nats"], other["loss_nats"]),
            )
        )
    return tuple(pairs)


def weights_apart(first: Path, second: Path) -> WeightsApart:
    """Compare the states of two checkpoints of any numbers of ranks, some tensors at a time."""
    import torch

    largest = squares = total = 0.0
    same_bits = True
    for one, other in zip(_groups(first), _groups(second), strict=True):
        for name in one:
            same_bits = same_bits and torch.equal(one[name], other[name])
            if name.startswith("weights."):
                apart = (one[name] - other[name]).double()
                largest = max(largest, float(apart.abs().max())) if apart.numel() else largest
                squares += float(apart.square().sum())
                total += float(one[name].double().square().sum())
    return WeightsApart(largest, (squares / total) ** 0.5 if total else 0.0, same_bits)


def _groups(checkpoint: Path) -> "Iterator[dict[str, torch.Tensor]]":
    """The tensors of a checkpoint by name, in order, at most 256 MB (or one tensor) at a time."""
    import torch
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    from onward.training.state import read_pieces

    state = checkpoint / "state"
    stored: dict[str, Any] = HuggingFaceStorageReader(str(state)).read_metadata().state_dict_metadata
    group: dict[str, torch.Tensor] = {}
    held = 0
    for name in sorted(stored):
        tensor = torch.empty(stored[name].size, dtype=stored[name].properties.dtype)
        if group and held + tensor.nbytes > _GROUP_BYTES:
            read_pieces(state, group, None)
            yield group
            group, held = {}, 0
        group[name] = tensor
        held += tensor.nbytes
    if group:
        read_pieces(state, group, None)
        yield group
