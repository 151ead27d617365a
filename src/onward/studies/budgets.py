"""How long the trainings of a study are, and at which budgets the study of tokens looks."""

from fractions import Fraction
from itertools import pairwise

from onward.batches import plan_batches
from onward.errors import UserError
from onward.recipe import Recipe, Training, format_share, format_tokens

SHARES = {
    "pilot": Fraction(5, 100),
    "remedies": Fraction(7, 100),
    "domains": Fraction(20, 100),
    "sizes": Fraction(20, 100),
    "rates": Fraction(5, 100),
}
"""Default length of each training, as a share of the recipe's last stage."""
_LEAST_STEPS, _PILOT_STEPS = 40, 50
"""... and at least so many steps: in fewer, warm-up and decay leave no time to learn."""
_BUDGETS, _LEAST_POINT_STEPS = 8, 4
_LEAST_SHARE = Fraction(1, 1000)
"""Shares are told to a tenth of a per cent; one below that would read as none."""


def step_tokens(training: Training) -> int:
    """Return the tokens of a step, which hold whole sequences alone: not more than `batch_tokens`."""
    return plan_batches(training, seed=0).step_tokens  # the seed decides the order alone


def trained_tokens(training: Training, asked: int) -> int:
    """Return how many tokens are trained for a budget: it ends at the first step that reaches what was asked for.

    training: the member's own, since its batch decides; asked: where a stage of it ends or a model is taken from it.
    """
    step = step_tokens(training)
    return -(-asked // step) * step


def training_tokens(study: str, recipe: Recipe, asked: int | None) -> int:
    """Return the tokens of each training: those asked for, else `study.tokens`, else a share of the last stage.

    Raises UserError when that is less than a step.
    """
    last = recipe.training.stages[-1]
    given = asked if asked is not None or recipe.study is None else recipe.study.tokens
    step = step_tokens(recipe.training)
    if given is not None:
        if given < step:
            where = "study.tokens" if asked is None else "--tokens"
            raise UserError("the budget is shorter than a step", where, f"{given:,}", f"{step:,} or more tokens")
        return given
    if study not in SHARES:
        return last
    return min(last, max(int(last * SHARES[study]), (_PILOT_STEPS if study == "pilot" else _LEAST_STEPS) * step))


def budget_words(study: str, recipe: Recipe, tokens: int) -> str:
    """Say how long each training is, or from where to where the budgets of `tokens` are, and of what share that is.

    Where steps are whole at other counts, those stand beside what was asked for; not of `rates`, whose members differ
    in their batch.
    """
    exact = Fraction(tokens, recipe.training.stages[-1])
    share = f"under {format_share(_LEAST_SHARE)}" if exact < _LEAST_SHARE else (
        format_share(Fraction(round(1000 * exact), 1000))
    )  # fmt: skip
    ends = (looked_at(recipe, tokens)[0], tokens) if study == "tokens" else (tokens,)
    trained = tuple(trained_tokens(recipe.training, end) for end in ends)
    whole = "" if study == "rates" or trained == ends else f" (in whole steps {_range(trained)})"
    if study == "tokens":
        return f"budgets of {_range(ends)} tokens{whole}, up to {share} of the recipe's last stage"
    return f"{_range(ends)} tokens each{whole}, {share} of the recipe's last stage"


def _range(ends: tuple[int, ...]) -> str:
    return " to ".join(map(format_tokens, ends))


def looked_at(recipe: Recipe, last: int) -> tuple[int, ...]:
    """Return the cumulative budgets of the study of tokens: the recipe's, or up to eight that double up to `last`.

    None of the latter is below four steps. Raises UserError for budgets beyond the last one, for fewer than two, for
    one below a step, and for two that end at the same step.
    """
    given = () if recipe.study is None else recipe.study.budgets
    step = step_tokens(recipe.training)
    if given:
        return _checked(given, last, step)
    doubling = [last // 2**halvings for halvings in range(_BUDGETS)]
    found = tuple(sorted({tokens for tokens in doubling if tokens >= _LEAST_POINT_STEPS * step} | {last}))
    if len(found) < 2:
        got = f"{format_tokens(last)} tokens, {last // step} steps"
        todo = "lengthen the last stage, or name study.budgets"
        raise UserError("this training is too short to be looked at between", "training.stages", got, todo=todo)
    return found


def _checked(given: tuple[int, ...], last: int, step: int) -> tuple[int, ...]:
    """Return the budgets that a recipe names and the last, in rising order; raises UserError as `looked_at` says."""
    where = "study.budgets"
    if max(given) > last or len(set(given)) < 2:
        got, expected = ", ".join(map(format_tokens, given)), f"two or more, none above {format_tokens(last)}"
        raise UserError("these budgets cannot be compared in one training", where, got, expected)
    found = tuple(sorted({*given, last}))
    short = [format_tokens(tokens) for tokens in found if tokens < step]
    if short:
        raise UserError("a budget is shorter than a step", where, ", ".join(short), f"{step:,} or more tokens")
    alike = [f"{format_tokens(one)} and {format_tokens(other)}" for one, other in pairwise(found)
             if -(-one // step) == -(-other // step)]  # fmt: skip
    if alike:
        todo = f"name budgets a step ({step:,} tokens) or more apart; the training ends at {format_tokens(last)}"
        raise UserError("two budgets end at the same step", where, "; ".join(alike), todo=todo)
    return found
