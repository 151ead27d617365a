"""The knobs of forgetting: replay, pulls to the base, distillation from it, frozen parts and adapters."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from onward.recipe.quantities import Share, Tokens, format_share
from onward.recipe.section import Problem, Section, require_none

GENERAL, SELF = "general", "self"
"""Corpora that `replay` knows beside those of `corpora`: the recipe's general text, and samples of the base model."""
_SELF_SHARE = "5%"


def parse_replay(value: object) -> object:
    """Read `5%` as a share of general text, `self` as 5 % of the base's own samples; a mapping stays as it is."""
    if value is None or isinstance(value, Mapping):
        return value
    if value == SELF:
        return {SELF: _SELF_SHARE}
    if isinstance(value, str) and not value.strip()[:1].isdigit():
        raise ValueError(f"expected a share (5%), `{SELF}`, or shares by corpus ({{{GENERAL}: 5%, {SELF}: 2%}})")
    return {GENERAL: value}


def _shortest(replay: dict[str, Fraction]) -> Any:
    """Write a replay as recipes do: `5%` for general text alone."""
    if list(replay) == [GENERAL]:
        return format_share(replay[GENERAL])
    return {name: format_share(share) for name, share in replay.items()}


Replay = Annotated[
    dict[str, Share],
    BeforeValidator(parse_replay, json_schema_input_type=float | str | dict[str, float | str]),
    PlainSerializer(_shortest),
]


def replay_words(replayed: Mapping[str, Fraction]) -> str:
    """Say what is replayed: `5% general text`, `5% general text and 2% self`, `none`."""
    shown = [f"{format_share(share)} {'general text' if name == GENERAL else name}" for name, share in replayed.items()]
    return " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]])) or "none"


def remedy_words(forgetting: "Forgetting") -> str:
    """Say what pulls to the base beside replay, or keeps parts of it: `EWC 10 (200,000 tokens of general)`, `none`."""
    ewc, freeze, lora = forgetting.weighed, forgetting.freeze, forgetting.lora
    found = [] if ewc is None else [f"EWC {ewc.strength:g} ({ewc.tokens:,} tokens of {ewc.text})"]
    found += [f"L2-SP {forgetting.l2_sp:g}"] if forgetting.l2_sp else []
    found += [f"KL to the base {forgetting.kl:g}"] if forgetting.kl else []
    kept = [] if freeze is None or not freeze.embeddings else ["embeddings"]
    kept += [] if freeze is None or not freeze.blocks else [f"{freeze.blocks} blocks"]
    found += [f"{' and '.join(kept)} frozen"] if kept else []
    found += [] if lora is None else [f"LoRA of rank {lora.rank}, alpha {lora.alpha:g}"]
    return ", ".join(found) or "none"


def _section_or(value: object, expected: str) -> object:
    """Let a section, a mapping or null through; raises ValueError with what may be written for all else."""
    if value is None or isinstance(value, Mapping | Section):
        return value
    raise ValueError(f"expected {expected}, or null")


def _is_number(value: object) -> bool:
    """Whether this is a number, or text that is one: YAML reads 1e-3 as text."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


class Ewc(Section):
    """Elastic weight consolidation (1612.00796): weights that matter for general text are pulled back to the base.

    After AdamW's update theta moves by the share w = min(1, rate x strength / rms x F) to the base's theta0. F is the
    diagonal Fisher information there, normalised to mean 1; rms is the root mean square of those base weights that are
    trained.
    """

    strength: float = Field(1.0, ge=0)
    """A weight of mean Fisher that AdamW pushes all the time stops one root mean square / strength from the base: the
    same for models of every size. Useful values span decades (2505.05946); 0 is off."""
    text: str = GENERAL
    """The corpus whose tokens the Fisher information is estimated on: `general`, `self`, or a name of `corpora`."""
    tokens: Tokens = 200_000
    """Read about so many of its tokens."""
    per: Literal["token", "sequence"] = "token"
    """Mean over tokens of squared gradients of their log-probabilities, or over documents of those of their sums."""
    estimator: Literal["signs", "exact"] = "signs"
    """signs: one backward pass a sequence, with a random sign at every summand, which is unbiased; exact: one for every
    token or document."""


class Freeze(Section):
    """Parts of the base that are not trained."""

    embeddings: bool = False
    """Keep the input embeddings, and the output embeddings where both are one."""
    blocks: Annotated[int, Field(ge=0)] | Literal["all"] = 0
    """Keep so many blocks, counted from the input."""


class Lora(Section):
    """Low-rank adapters on all linear layers of the blocks (2106.09685), by peft, merged into the exported model.

    Experts that transformers keeps in one tensor get none.
    """

    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    """An adapter's product counts alpha / rank times."""
    learning_rate_ratio: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Adapters learn at so many times `optimizer.learning_rate`: about ten (2405.09673)."""


class Forgetting(Section):
    """What keeps the general ability while the domain is learned: each alone or together."""

    replay: Replay | None = Field(default_factory=lambda: {GENERAL: Fraction(5, 100)})
    """Share of the packed sequences that is not domain text, exact in every window of steps: `5%` of `general`; `self`:
    5 % of samples of the base model; {general: 5%, self: 2%, NAME: 1%}: several, NAME of `corpora`; null: none."""
    ewc: Ewc | None = None
    """Pull weights back by how much they matter; a number is its strength; null: off."""
    l2_sp: float | None = Field(None, ge=0)
    """Pull all weights back alike (1802.01483): strength as of `ewc`, with a Fisher information of 1; null: off."""
    kl: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Add so many times KL(base || model) to the loss of every replayed token (1606.09282); null: off."""
    freeze: Freeze | None = None
    """What is not trained: a section, or `embeddings`, a number of blocks, `all`; null: everything is trained."""
    lora: Lora | None = None
    """Train adapters instead of the weights; null: off."""

    @property
    def replayed(self) -> dict[str, Fraction]:
        """Shares of the replayed corpora by name, in the order they are written in; none: empty."""
        return {} if self.replay is None else dict(self.replay)

    @property
    def replay_share(self) -> Fraction:
        """Share of the packed sequences that is replayed, of all corpora together."""
        return sum(self.replayed.values(), Fraction(0))

    @property
    def weighed(self) -> Ewc | None:
        """`ewc` where it pulls; None without it, and with a strength of 0, which is training without it."""
        return self.ewc if self.ewc is not None and self.ewc.strength > 0 else None

    @field_validator("replay")
    @classmethod
    def _leaves_domain(cls, replay: dict[str, Fraction] | None) -> dict[str, Fraction] | None:
        if replay is None:
            return None
        if not replay:
            raise ValueError("replay names no corpus; write null for none")
        if any(not 0 < share < 1 for share in replay.values()):
            raise ValueError("replay must be above 0% and below 100%; write null for none")
        if sum(replay.values()) >= 1:
            shares = " + ".join(map(format_share, replay.values()))
            raise ValueError(f"replay shares sum to {shares} = {format_share(sum(replay.values(), Fraction(0)))}: no "
                             "domain text is left")  # fmt: skip
        return replay

    @field_validator("ewc", mode="before")
    @classmethod
    def _strength(cls, value: object) -> object:
        if _is_number(value):
            return {"strength": value}
        return _section_or(value, "a strength (1.0), or {strength: 1.0, tokens: 200k}")

    @field_validator("l2_sp", "kl", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        if value is None or _is_number(value):
            return value
        raise ValueError("expected a number such as 0.1, or null")

    @field_validator("lora", mode="before")
    @classmethod
    def _adapters(cls, value: object) -> object:
        return _section_or(value, "{rank: 8}, {} (rank 16)")

    @field_validator("freeze", mode="before")
    @classmethod
    def _parts(cls, value: object) -> object:
        if value == "embeddings":
            return {"embeddings": True}
        if value == "all":
            return {"embeddings": True, "blocks": "all"}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"blocks": value}
        return _section_or(value, "embeddings, a number of blocks, all, or {embeddings: true, blocks: 4}")

    @model_validator(mode="after")
    def _leaves_something_to_train(self) -> Self:
        problems = []
        blocks_frozen = self.freeze is not None and self.freeze.blocks == "all"
        if self.lora is not None and blocks_frozen:
            what = "lora trains adapters in the blocks, and `freeze` keeps all: nothing is left to train"
            problems.append(Problem("freeze", what, "write `lora: null`, or freeze fewer blocks"))
        elif blocks_frozen and self.freeze is not None and self.freeze.embeddings:
            todo = "keep some blocks or the embeddings out of it"
            problems.append(Problem("freeze", "all is to be frozen: nothing is left to train", todo))
        if self.kl is not None and self.replay is None:
            what = "kl is measured on replayed text, and there is none"
            problems.append(Problem("kl", what, "set `replay`, or write `kl: null`"))
        if self.lora is not None and (self.ewc is not None or self.l2_sp is not None):
            what = "lora leaves the base's weights as they are: ewc and l2_sp have nothing to pull back"
            problems.append(Problem("lora", what, "write `lora: null`, or `ewc: null` and `l2_sp: null`"))
        require_none(problems)
        return self
