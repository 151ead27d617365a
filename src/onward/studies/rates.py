"""The study of rates: learning rates and batch sizes in short runs."""

from collections.abc import Sequence

from onward.analysis.rows import LEAST_GROUPS
from onward.recipe import format_tokens
from onward.reporting.content import Table
from onward.studies.budgets import trained_tokens
from onward.studies.outcome import (
    INTERVAL,
    PER_BYTE,
    Measured,
    Outcome,
    as_numbers,
    change_texts,
    change_words,
    difference_words,
    judged_on,
    listed,
    rate_words,
    without_common_seed,
)
from onward.studies.plots import Course, courses_figure
from onward.studies.scored import NO_VERDICT, told

_RESAMPLES, _SEED = 2000, 0
_LEAD = f"Beside the best, its neighbours in rate and batch, in {PER_BYTE}:"
CAPTION = (
    "Held-out domain text against the base, by peak learning rate and batch size, with 95 % intervals where there are "
    f"{LEAST_GROUPS} documents or more."
)


def _length(found: Sequence[Measured]) -> str:
    """Say how long the trainings are: as asked for, and in the whole steps of the batches where those are longer."""
    asked = found[0].tokens
    trained = sorted({trained_tokens(each.recipe.training, each.tokens) for each in found})
    whole = " to ".join(dict.fromkeys(map(format_tokens, (trained[0], trained[-1]))))
    return f"{format_tokens(asked)} tokens" + ("" if trained == [asked] else f" (in whole steps {whole})")


def outcome(found: Sequence[Measured]) -> Outcome:
    """Return the table, the plot and the findings."""
    changes = {each.variant.name: each.texts["domain"].change(_RESAMPLES, _SEED) for each in found}
    best = min(found, key=lambda each: changes[each.variant.name].estimate)
    rows, numbers = [], []
    for each in found:
        own = changes[each.variant.name]
        behind = each.texts["domain"].beyond(best.texts["domain"], _RESAMPLES, _SEED)
        verdict = "best" if each is best else told(behind)
        general = each.texts["general"].change(_RESAMPLES, _SEED) if "general" in each.texts else None
        rows.append((rate_words(_rate(each)), each.variant.family, *change_texts(own),
                     *(("", "") if general is None else change_texts(general)),
                     *(("", "") if each is best else change_texts(behind)), verdict))  # fmt: skip
        numbers.append(
            {
                "learning_rate": _rate(each),
                "batch_tokens": each.recipe.training.batch_tokens,
                "tokens": trained_tokens(each.recipe.training, each.tokens),
                "seeds": len(each.runs),
            }
            | as_numbers("domain", own)
            | ({} if general is None else as_numbers("general", general))
            | as_numbers("behind_best", behind)
            | {"verdict": verdict}
        )
    headers = ("learning rate", "batch", "domain", INTERVAL, "general", INTERVAL, "beside the best",
               INTERVAL, "")  # fmt: skip
    caption = f"Change in bits per byte after {_length(found)}; lower is better"
    table = Table(caption, headers, (*(True for _ in headers[:-1]), False), tuple(rows))
    sizes = sorted({each.recipe.training.batch_tokens for each in found})
    courses = [
        Course(f"batch {format_tokens(size)}", tuple((_rate(each), changes[each.variant.name]) for each in found
                                                     if each.recipe.training.batch_tokens == size))
        for size in sizes
    ]  # fmt: skip
    figure = courses_figure(courses, CAPTION, "peak learning rate", is_tokens=False)
    is_judged = any(row["verdict"] not in ("best", NO_VERDICT) for row in numbers)
    lead = "Best" if is_judged or len(found) == 1 else "No verdict; lowest"
    headline = f"{lead} of {len(found)}: learning rate {_words(best)}, {change_words(changes[best.variant.name])}."
    points = _beside(found, best)
    findings = (*_findings(found, best), *([_LEAD] if points else []))
    return Outcome(headline, findings, table, tuple(numbers), figure, points)


def _rate(each: Measured) -> float:
    return each.recipe.training.optimizer.learning_rate


def _words(each: Measured) -> str:
    return f"{rate_words(_rate(each), is_prose=True)} with batches of {each.variant.family}"


def neighbours(best: Measured, found: Sequence[Measured]) -> list[Measured]:
    """Return the members beside the best one: the next rates of its batch, the next batches of its rate."""
    rates = sorted({_rate(each) for each in found})
    sizes = sorted({each.recipe.training.batch_tokens for each in found})

    def place(each: Measured) -> tuple[int, int]:
        return rates.index(_rate(each)), sizes.index(each.recipe.training.batch_tokens)

    own = place(best)
    return [each for each in found if sum(abs(a - b) for a, b in zip(own, place(each), strict=True)) == 1]


def _findings(found: Sequence[Measured], best: Measured) -> tuple[str, ...]:
    sentences = []
    if "general" in best.texts:
        general = best.texts["general"].change(_RESAMPLES, _SEED)
        said = {
            "better": "easier",
            "worse": "harder",
            "not distinguishable": "not distinguishable from before",
            NO_VERDICT: NO_VERDICT,
        }[told(general)]
        sentences.append(f"General text changes by {change_words(general)} at the best: {said}.")
    verdicts = [
        (each, told(each.texts["domain"].beyond(best.texts["domain"], _RESAMPLES, _SEED)))
        for each in found
        if each is not best
    ]
    if any(verdict != NO_VERDICT for _, verdict in verdicts):
        alike = [_words(each) for each, verdict in verdicts if verdict == "not distinguishable"]
        sentences.append(f"Not distinguishable from the best: {listed(alike) if alike else 'none'}.")
    rates = sorted({_rate(each) for each in found})
    if len(rates) > 1 and _rate(best) in (rates[0], rates[-1]):
        end = "lowest" if _rate(best) == rates[0] else "highest"
        sentences.append(f"The best rate is the {end} that was tried: try further rates before trusting it.")
    sentences.append(
        "Short runs favour high rates and small batches, since steps are what they lack: for a longer run take the "
        "best rate or the one below it."
    )
    return (*sentences, *judged_on(found), *without_common_seed(found, _words))


def _beside(found: Sequence[Measured], best: Measured) -> tuple[tuple[str, str], ...]:
    """Compare the best member's neighbours with it, on the same documents and seeds."""
    points = []
    for each in neighbours(best, found):
        behind = each.texts["domain"].beyond(best.texts["domain"], _RESAMPLES, _SEED)
        points.append((_words(each), f"domain {difference_words(behind)}: {told(behind)}"))
    return tuple(points)
