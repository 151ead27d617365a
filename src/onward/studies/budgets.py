"""How long the trainings of a study are, and at which budgets the study of tokens looks."""

from fractions import Fraction

from onward.errors import UserError
from onward.recipe import Recipe, format_share, format_tokens

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


def training_tokens(study: str, recipe: Recipe, asked: int | None) -> int:
    """Return the tokens of each training: those asked for, else `study.tokens`, else a share of the last stage.

    Raises UserError when that is less than a step.
    """
    last = recipe.training.stages[-1]
    given = asked or (None if recipe.study is None else recipe.study.tokens)
    step = recipe.training.batch_tokens // recipe.training.sequence_tokens * recipe.training.sequence_tokens
    if given is not None:
        if given < step:
            where = "study.tokens" if asked is None else "--tokens"
            raise UserError("the budget is shorter than a step", where, f"{given:,}", f"{step:,} or more tokens")
        return given
    if study not in SHARES:
        return last
    return min(last, max(int(last * SHARES[study]), (_PILOT_STEPS if study == "pilot" else _LEAST_STEPS) * step))


def budget_words(study: str, recipe: Recipe, tokens: int) -> str:
    """Say how long each training is, and what share of the recipe's that is."""
    share = format_share(Fraction(round(1000 * tokens / recipe.training.stages[-1]), 1000))
    return f"{format_tokens(tokens)} tokens each, {share} of the recipe's last stage"


def looked_at(recipe: Recipe, last: int) -> tuple[int, ...]:
    """Return the cumulative budgets of the study of tokens: the recipe's, or up to eight that double up to `last`.

    None is below four steps. Raises UserError for budgets beyond the last one, and for fewer than two.
    """
    given = () if recipe.study is None else recipe.study.budgets
    if given:
        beyond = [tokens for tokens in given if tokens > last]
        if beyond or len(set(given)) < 2:
            got, expected = ", ".join(map(format_tokens, given)), f"two or more, none above {format_tokens(last)}"
            raise UserError("these budgets cannot be compared in one training", "study.budgets", got, expected)
        return tuple(sorted({*given, last}))
    step = recipe.training.batch_tokens // recipe.training.sequence_tokens * recipe.training.sequence_tokens
    doubling = [last // 2**halvings for halvings in range(_BUDGETS)]
    found = tuple(sorted({tokens for tokens in doubling if tokens >= _LEAST_POINT_STEPS * step} | {last}))
    if len(found) < 2:
        got = f"{format_tokens(last)} tokens, {last // step} steps"
        todo = "lengthen the last stage, or name study.budgets"
        raise UserError("this training is too short to be looked at between", "training.stages", got, todo=todo)
    return found
