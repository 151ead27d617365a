"""A whole recipe: its sections, and what must hold between them."""

import re
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from onward.recipe.forgetting import GENERAL, SELF, Forgetting
from onward.recipe.section import Problem, Section, require_none
from onward.recipe.sections import Corpus, Evaluation, HeldOut, Model, SelfReplay
from onward.recipe.study import Study
from onward.recipe.training import Training

SAMPLES = Corpus(self_replay=SelfReplay(), quality=None, held_out=HeldOut(share="1%"))  # type: ignore[call-arg, arg-type]
"""The corpus `self` where the recipe does not write it: the base model's samples, without rules made for web pages."""
DOMAIN = "domain"
SCORED = (DOMAIN, GENERAL)
"""The corpora whose held-out text is scored."""


def section_of(corpus: str) -> str:
    """Return where a recipe describes a corpus of the run: `corpus`, `general`, `corpora.NAME`."""
    return {DOMAIN: "corpus", GENERAL: "general"}.get(corpus, f"corpora.{corpus}")


class Recipe(Section):
    """A whole run: corpus and model in, adapted model and before/after out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its folder."""
    seed: int = Field(0, ge=0)
    """Seed of every random choice: the order of sequences, sampling, bootstrap."""
    model: Model
    """The base model."""
    corpus: Corpus
    """The domain text."""
    general: Corpus | None = None
    """General text: replayed in training, and its held-out part measures forgetting."""
    corpora: dict[str, Corpus] = Field(default_factory=dict)
    """More text to replay, by the name that `training.forgetting.replay` gives it; `self` (samples of the base model)
    is there without being written, and may be written to change how it is sampled."""
    training: Training = Training()  # type: ignore[call-arg]
    """How it is trained."""
    evaluation: Evaluation = Evaluation()  # type: ignore[call-arg]
    """What is scored before and after."""
    study: Study | None = None
    """What `onward study` varies; a run does not read it; null: each study's own choice."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        if self.corpus.self_replay is not None:
            problems.append(Problem("corpus.self_replay", "only text to replay can be sampled from the base model"))
        if self.corpus.duplicates is not None and "domain" in self.corpus.duplicates.against:
            what = "`domain` is this corpus itself; it is for the other corpora"
            problems.append(Problem("corpus.duplicates.against", what))
        problems += self._problems_of_replay(self.training.forgetting, "training.forgetting")
        if self.training.text == GENERAL:
            if self.general is None:
                todo = "add it, or write `training.text: domain`"
                problems.append(Problem("training.text", "there is no `general` text", todo))
            if self.training.forgetting.replay is not None:
                what = "`training.text: general` trains on general text alone"
                problems.append(Problem("training.forgetting.replay", what, "write `replay: null`"))
        for name, forgetting in ({} if self.study is None else self.study.remedies).items():
            problems += self._problems_of_replay(forgetting, f"study.remedies.{name}")
        last = self.training.stages[-1]
        outside = [tokens for tokens in self.evaluation.at if not 0 < tokens <= last]
        if outside:
            got = ", ".join(f"{tokens:,}" for tokens in outside)
            what = f"{got} tokens; the run goes from 1 to {last:,} (training.stages)"
            problems.append(Problem("evaluation.at", what))
        require_none(problems)
        return self

    @property
    def training_seed(self) -> int:
        """Seed of training: of the order of the sequences and of what it draws; the corpora depend on `seed`."""
        return self.seed if self.training.seed is None else self.training.seed

    def texts(self) -> dict[str, Corpus]:
        """Return the corpora that a run prepares, by name: the domain, general text, what else training reads."""
        names = [GENERAL, *self.training.forgetting.replayed]
        weighed = self.training.forgetting.weighed
        names += [] if weighed is None else [weighed.text]
        found = {name: self.replayed_corpus(name) for name in names}
        return {DOMAIN: self.corpus} | {name: corpus for name, corpus in found.items() if corpus is not None}

    def tasks(self) -> tuple[str, ...]:
        """Return the tasks whose items are scored or looked for in a text, each once."""
        looked_for = [corpus.contamination.tasks or () for corpus in self.texts().values() if corpus.contamination]
        return tuple(dict.fromkeys([*self.evaluation.tasks, *(task for tasks in looked_for for task in tasks)]))

    def replayed_corpus(self, name: str) -> Corpus | None:
        """Return the corpus that `replay` knows by a name, None when there is none."""
        if name == GENERAL:
            return self.general
        return self.corpora.get(name) or (SAMPLES if name == SELF else None)

    def _problems_of_replay(self, forgetting: Forgetting, where: str) -> list[Problem]:
        """Find corpora that are named and not there."""
        # `replay: 5%` is short for general text: its name does not stand in the recipe.
        named = [(f"{where}.replay{'' if name == GENERAL else f'.{name}'}", name) for name in forgetting.replayed]
        named += [] if forgetting.weighed is None else [(f"{where}.ewc.text", forgetting.weighed.text)]
        problems = []
        for key, name in named:
            if self.replayed_corpus(name) is not None:
                continue
            known = [*([] if self.general is None else [GENERAL]), SELF, *(key for key in self.corpora if key != SELF)]
            what, todo = f"there is no corpus `{name}`", f"there are: {', '.join(known)}"
            if name == GENERAL and key.endswith(".replay"):
                what, todo = "there is no `general` text to replay", "add it or write `replay: null`"
            elif name == GENERAL:
                what = "there is no `general` text to estimate the Fisher information on"
                todo = f"add it, or name another: {', '.join(known)}"
            problems.append(Problem(key, what, todo))
        return problems

    @field_validator("corpora")
    @classmethod
    def _names_are_free(cls, corpora: dict[str, Corpus]) -> dict[str, Corpus]:
        taken = {*SCORED, "sampled"} & corpora.keys()
        if taken:
            raise ValueError(f"`{min(taken)}` means something else already; choose another name")
        odd = [name for name in corpora if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)]
        if odd:
            raise ValueError(f"`{odd[0]}` is no name of a corpus: letters, digits, `-` and `_` (fineweb, web-2020)")
        return corpora
