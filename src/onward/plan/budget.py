"""What a run will need, computed before it is spent, and refused when it cannot work."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Literal

from onward.batches import BatchPlan, plan_batches
from onward.corpus.prepare import PreparedCorpus
from onward.errors import UserError, UserErrors
from onward.model.mobilellm import is_mobilellm
from onward.model.shape import refuse_attention
from onward.model.source import ModelSource
from onward.model.tokenizer import LoadedTokenizer
from onward.plan.foresight import Range
from onward.recipe import (
    SCORED,
    Corpus,
    Evaluation,
    Recipe,
    Training,
    format_share,
    format_tokens,
    replay_words,
    section_of,
)
from onward.reporting.drawing import token_text

_LEAST_SAMPLED_TOKENS = 20_000
"""Self-replay samples at least so much: fewer documents would measure nothing when a part is held out."""


@dataclass(frozen=True)
class TextNeed:
    """What training reads of a corpus: sequences needed, repetitions counted, and available; repetition: passes."""

    sequences_needed: int
    sequences_available: int
    repetition: float

    @staticmethod
    def of(needed: int, available: int) -> "TextNeed":
        """Return the need with the passes that follow."""
        return TextNeed(needed, available, needed / available if available else 0.0)


@dataclass(frozen=True)
class Plan:
    """Tokens, steps and repetition of a run.

    steps: cumulative at the end of each stage. replay_share: of all replayed corpora together; replay: what that is,
    in words. needed and available sequences per corpus; repetition = needed / available. other_texts: of the corpora
    beside domain and general text. disk_bytes: predicted size of checkpoints. parameters: of the base model, tied ones
    counted once.
    """

    stages: tuple[int, ...]
    steps: tuple[int, ...]
    sequence_tokens: int
    sequences_per_step: int
    step_tokens: int
    replay_share: str | None
    replay: str
    domain_sequences_needed: int
    domain_sequences_available: int
    domain_repetition: float
    general_sequences_needed: int
    general_sequences_available: int
    general_repetition: float
    other_texts: dict[str, TextNeed]
    parameters: int
    disk_bytes: int | None


def check_model(recipe: Recipe, base: ModelSource, tokenizer: LoadedTokenizer) -> None:
    """Refuse what the model cannot take: a sequence longer than its context, ids outside its vocabulary."""
    config = json.loads((base.folder / "config.json").read_bytes())
    config = config.get("text_config", config)
    problems = []
    context, length = config.get("max_position_embeddings"), recipe.training.sequence_tokens
    if context is not None and length > context:
        todo = f"set training.sequence_tokens to {context} or less"
        where = "training.sequence_tokens"
        problems.append(
            UserError("a sequence is longer than the model's context", where, str(length), f"at most {context}", todo)
        )
    rows = config.get("vocab_size")
    if rows is not None and tokenizer.vocabulary_size > rows:
        got = f"{tokenizer.vocabulary_size} ids in the tokenizer, {rows} embeddings in the model"
        todo = "use the tokenizer that belongs to this model"
        problems.append(UserError("the tokenizer does not fit the model", str(base.folder), got, todo=todo))
    if is_mobilellm(base.folder) and tokenizer.vocabulary_size != rows:
        got = f"{tokenizer.vocabulary_size} ids in the tokenizer, {rows} embeddings in the model"
        problems.append(UserError("this is not MobileLLM's tokenizer", str(base.folder), got))
    if problems:
        raise UserErrors(f"{recipe.name}: this model cannot run this recipe", problems)


def check_trainable(base: ModelSource) -> None:
    """Refuse a model that could be scored but not trained, before text is prepared or sampled for it."""
    config = json.loads((base.folder / "config.json").read_bytes())
    refuse_attention(config.get("text_config") or config)


def wanted_tokens(name: str, corpus: Corpus, recipe: Recipe) -> int:
    """How many kept tokens to prepare of a corpus of the recipe.

    What training reads once, what the Fisher information is estimated on and, where it is scored, enough documents to
    fill the held-out part.
    """
    passes, ewc = min(1.0, recipe.training.maximum_repetition), recipe.training.forgetting.weighed
    needed = ceil(_read_sequences(name, recipe) * recipe.training.sequence_tokens / passes)
    for_fisher = ewc.tokens if ewc is not None and ewc.text == name else 0
    for_held_out = _for_held_out(corpus, recipe.evaluation) if name in SCORED else 0
    return max(needed, for_fisher, for_held_out, 1)


def sampled_tokens(name: str, corpus: Corpus, recipe: Recipe) -> int | None:
    """How many tokens to sample of a corpus: the recipe's number, or what training needs; None: it is not sampled."""
    if corpus.self_replay is None or corpus.self_replay.tokens is not None:
        return None if corpus.self_replay is None else corpus.self_replay.tokens
    training, ewc = recipe.training, recipe.training.forgetting.weighed
    tokens = _read_sequences(name, recipe) * training.sequence_tokens / training.maximum_repetition
    tokens = max(tokens, ewc.tokens if ewc is not None and ewc.text == name else 0)
    if not corpus.held_out.sources:  # a part of the samples is held out and not replayed
        tokens /= 1 - float(corpus.held_out.share)
    # Short samples leave padding; a tenth more keeps the repetition under its cap.
    return max(ceil(tokens * 1.1), _LEAST_SAMPLED_TOKENS)


def _read_sequences(name: str, recipe: Recipe) -> int:
    """How many sequences training reads of a corpus; of a domain that a control leaves out those that it would read."""
    needed = plan_batches(recipe.training, recipe.training_seed).needed_sequences()
    if name == "domain" and name not in needed:
        return sum(needed.values())
    return needed.get(name, 0)


def _for_held_out(corpus: Corpus, evaluation: Evaluation) -> int:
    if corpus.held_out.sources or not corpus.held_out.share or evaluation.held_out_tokens is None:
        return 0
    return floor(evaluation.held_out_tokens / corpus.held_out.share)


def plan_run(recipe: Recipe, parameters: int, trained: int, corpora: Mapping[str, PreparedCorpus]) -> Plan:
    """Compute the plan from the prepared corpora; raises UserError when a corpus would be repeated beyond its cap.

    parameters: of the base model; trained: of those and of adapters the ones that are trained (`parts_of`).
    """
    batches = plan_batches(recipe.training, recipe.training_seed)
    needed = batches.needed_sequences()
    available = {name: corpus.ledger.sequences for name, corpus in corpora.items()}
    _check_repetition(recipe.training, batches, available)
    texts = {name: TextNeed.of(needed.get(name, 0), number) for name, number in available.items()}
    domain, general = texts["domain"], texts.get("general", TextNeed.of(0, 0))
    forgetting = recipe.training.forgetting
    return Plan(
        stages=recipe.training.stages,
        steps=batches.stage_steps,
        sequence_tokens=batches.sequence_tokens,
        sequences_per_step=batches.sequences_per_step,
        step_tokens=batches.step_tokens,
        replay_share=format_share(forgetting.replay_share) if forgetting.replayed else None,
        replay=replay_words(forgetting.replayed),
        domain_sequences_needed=domain.sequences_needed,
        domain_sequences_available=domain.sequences_available,
        domain_repetition=domain.repetition,
        general_sequences_needed=general.sequences_needed,
        general_sequences_available=general.sequences_available,
        general_repetition=general.repetition,
        other_texts={name: text for name, text in texts.items() if name not in SCORED},
        parameters=parameters,
        disk_bytes=sum(checkpoint_bytes(recipe.training, parameters, trained, models_between(recipe))),
    )


def models_between(recipe: Recipe) -> int:
    """Return how many models are written and scored beside those of the stages' ends (`evaluation.at`)."""
    return len(set(recipe.evaluation.at) - set(recipe.training.stages))


def checkpoint_bytes(training: Training, parameters: int, trained: int, between: int = 0) -> tuple[int, int]:
    """Return the bytes of all resumable states, and of the models at the ends of the stages and `between` them.

    A state holds what is trained, weights in fp32 and two moments; one more than is kept exists while a new one is
    written, and each stage's end keeps its own. A releasable model has all parameters, at most in fp32; between the
    stages' ends there is nothing else.
    """
    stages = len(training.stages)
    return 12 * trained * (training.keep_checkpoints + 1 + stages), 4 * parameters * (stages + between)


def check_domain(recipe: Recipe, domain: PreparedCorpus) -> None:
    """Refuse a budget larger than the domain text allows before general text is sampled for it, which takes longest."""
    batches = plan_batches(recipe.training, recipe.training_seed)
    _check_repetition(recipe.training, batches, {"domain": domain.ledger.sequences})


def _check_repetition(training: Training, batches: BatchPlan, sequences: Mapping[str, int]) -> None:
    texts = {role: Supply(Range.exactly(number), "prepared") for role, number in sequences.items()}
    found = too_short(texts, training, batches)
    if len(found) == 1:
        raise found[0]
    if found:
        raise UserErrors(f"{len(found)} texts are too short for this run", found)


@dataclass(frozen=True)
class Supply:
    """The packed sequences that a text gives, and how their number is known."""

    sequences: Range
    basis: Literal["prepared", "at most, by a sample", "to be sampled"]


def passes_too_often(sequences_needed: int, sequences: Range, cap: float) -> bool:
    """Whether a text is passed over more often than the cap even where it has as many sequences as it may have."""
    return sequences_needed > cap * floor(sequences.high)


def too_short(texts: Mapping[str, Supply], training: Training, batches: BatchPlan) -> list[UserError]:
    """Return what is wrong when a run passes over a text more often than the cap, with the budget that would work.

    texts: by the corpus's name. The budget is the one that works for all of them.
    """
    cap, length, problems = training.maximum_repetition, batches.sequence_tokens, []
    todo = f"{_shorter(texts, training, batches)}or raise training.maximum_repetition"
    for role, text in texts.items():
        wanted, available = batches.needed_sequences().get(role, 0), floor(text.sequences.high)
        if passes_too_often(wanted, text.sequences, cap):
            # Text to be sampled is too short only where the recipe fixes its length.
            more = f"leave out {section_of(role)}.self_replay.tokens" if text.basis == "to be sampled" else "add text"
            needed = f"{token_text(wanted * length)} tokens needed from {token_text(available * length)} {text.basis}"
            problem = UserError(
                "the token budget is larger than the text allows",
                f"training.stages, {section_of(role)}",
                f"{needed}: {wanted / max(available, 1):.1f} repetitions",
                f"at most {cap:g} repetitions",
                f"{more}, {todo}",
            )
            problems.append(problem)
    return problems


def _shorter(texts: Mapping[str, Supply], training: Training, batches: BatchPlan) -> str:
    """Name the longest run that works with every text, in whole steps; empty where none does."""

    def is_too_long(steps: int) -> bool:
        needed = batches.needed_sequences(steps)
        cap = training.maximum_repetition
        return any(needed.get(role, 0) > cap * floor(text.sequences.low) for role, text in texts.items())

    # A budget between two steps is rounded up to the next.
    steps = bisect_right(range(batches.total_steps), False, key=is_too_long) - 1
    if steps < 1:
        return ""
    budget = round_budget(steps * batches.step_tokens, training)
    end = -(-budget // batches.step_tokens)
    before = [tokens for tokens in training.stages if -(-tokens // batches.step_tokens) < end]
    stages = ", ".join(format_tokens(tokens) for tokens in (*before, budget))
    return f"end the last stage at {format_tokens(budget)} or less (training.stages: [{stages}]), "


def round_budget(tokens: int, training: Training) -> int:
    """Round a budget down to three digits, where it then still is at least a step of the run."""
    unit = 10 ** max(0, len(str(tokens)) - 3)
    rounded = tokens // unit * unit
    return rounded if rounded >= training.batch_tokens else tokens
