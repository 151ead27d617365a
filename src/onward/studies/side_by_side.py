"""The studies of domains and sizes: the same recipe over several corpora or base models, side by side."""

from collections.abc import Sequence
from itertools import combinations

from onward.analysis.wording import number, percent
from onward.recipe import format_tokens
from onward.reporting.content import Table
from onward.statistics import Interval
from onward.studies.budgets import trained_tokens
from onward.studies.outcome import (
    INTERVAL,
    Measured,
    Outcome,
    as_numbers,
    change_texts,
    change_words,
    common_words,
    difference_words,
    judged_on,
    listed,
    over_words,
    without_common_seed,
)
from onward.studies.plots import Row, rows_figure
from onward.studies.scored import NO_VERDICT, told

_RESAMPLES, _SEED = 2000, 0
_SIDES = ("easier", "harder")
CAPTION = "Change of held-out bits per byte against each base, with 95 % intervals."
_KINDS = {
    "better": "gained",
    "worse": "lost",
    "not distinguishable": "not-distinguishable",
    NO_VERDICT: "not-distinguishable",
}


def outcome(found: Sequence[Measured], study: str, not_made: Sequence[str] = ()) -> Outcome:
    """Return the table, the plot and the findings; study: `domains` or `sizes`.

    not_made: the words of members that belong to the study and could not be made.
    """
    rows, numbers, drawn = [], [], []
    small = min(found, key=lambda each: each.variant.at or 0.0) if study == "sizes" else None
    for each in found:
        texts = each.texts
        domain = texts["domain"].change(_RESAMPLES, _SEED)
        general = texts["general"].change(_RESAMPLES, _SEED) if "general" in texts else None
        per = per_million(domain, each), per_ratio(domain, each)
        rows.append((each.variant.words, f"{each.parameters:,}", f"{trained(each) / each.parameters:.2g}",
                     number(texts["domain"].base, 3), *change_texts(domain),
                     percent(-domain.estimate / texts["domain"].base),
                     *(("", "") if general is None else change_texts(general)), *(f"{value:.3g}" for value in per),
                     str(len(each.runs))))  # fmt: skip
        numbers.append(
            {"member": each.variant.name, "parameters": each.parameters, "tokens": trained(each)}
            | {"seeds": len(each.runs), "domain_base": round(texts["domain"].base, 6)}
            | as_numbers("domain", domain)
            | ({} if general is None else as_numbers("general", general))
            | ({} if small is None or each is small else as_numbers("domain_beside_smallest", _beyond(each, small)))
            | {"gain_per_1M_tokens": round(per[0], 6), "gain_per_token_per_parameter": round(per[1], 6)}
        )
        drawn += [Row(each.variant.words, name, change, change_words(change).replace(" bits per byte", ""),
                      _KINDS[told(change)]) for name, change in (("domain", domain), ("general", general))
                  if change is not None]  # fmt: skip
    headers = (
        "domain" if study == "domains" else "base", "parameters", "tokens per parameter", "base", "change",
        INTERVAL, "gain", "general", INTERVAL, "gain per 1M tokens", "gain per token per parameter",
        "seeds",
    )  # fmt: skip
    caption = f"Held-out bits per byte after {format_tokens(trained(found[0]))} tokens; lower is better"
    table = Table(caption, headers, (False, *(True for _ in headers[1:])), tuple(rows))
    figure = rows_figure(drawn, CAPTION, _SIDES, "bits per byte")
    sentences = _findings(found, study, not_made)
    return Outcome(_headline(found, study, not_made), sentences, table, tuple(numbers), figure)


def trained(each: Measured) -> int:
    """Return the tokens of the training in whole steps, which are more than its budget where this is none."""
    return trained_tokens(each.recipe.training, each.tokens)


def per_million(domain: Interval, each: Measured) -> float:
    """Return the gain in bits per byte per million tokens trained."""
    return -domain.estimate / trained(each) * 1e6


def per_ratio(domain: Interval, each: Measured) -> float:
    """Return the gain in bits per byte for each token per parameter, the paper's measure of a budget."""
    return -domain.estimate / (trained(each) / each.parameters)


def _change(each: Measured) -> Interval:
    return each.texts["domain"].change(_RESAMPLES, _SEED)


def _headline(found: Sequence[Measured], study: str, not_made: Sequence[str]) -> str:
    better = [each.variant.words for each in found if told(_change(each)) == "better"]
    what = "domains" if study == "domains" else "sizes"
    names = f": {listed(better)}" if better else ""
    lacking = f"; {listed(list(not_made))} {'was' if len(not_made) == 1 else 'were'} not made" if not_made else ""
    unknown = sum(told(_change(each)) == NO_VERDICT for each in found)
    if unknown == len(found):
        return f"There is no verdict on any of {len(found)} {what}: too few held-out documents{lacking}."
    without = f"; {unknown} without a verdict" if unknown else ""
    return f"The domain text became easier in {len(better)} of {len(found)} {what}{names}{without}{lacking}."


def _findings(found: Sequence[Measured], study: str, not_made: Sequence[str]) -> tuple[str, ...]:
    by_ratio = sorted(found, key=lambda each: -per_ratio(_change(each), each))
    parts = [f"{each.variant.words} {per_ratio(_change(each), each):.3g}" for each in by_ratio]
    sentences = [f"Gain in bits per byte for each token per parameter: {', '.join(parts)}."]
    ordered = sorted(found, key=lambda each: each.variant.at or 0.0) if study == "sizes" else by_ratio
    if study == "sizes":
        sentences.append(_persists(ordered, is_all=not not_made))
    elif len(found) > 1:
        sentences.append(
            f"Of the gains in bits per byte, {_told_apart(ordered)}. A domain that the base knows less leaves more to "
            "gain, so the gains compare the domains for this base, not the recipe."
        )
    worse = [each.variant.words for each in found if "general" in each.texts and told(_general(each)) == "worse"]
    if any("general" in each.texts and told(_general(each)) != NO_VERDICT for each in found):
        sentences.append(
            f"General text became harder in {len(worse)} of {len(found)}{f': {listed(worse)}' if worse else ''}."
        )
    groups = _of_the_same_documents(found)
    sentences.append(f"Intervals are of 95 %, over {over_words(found)}{_paired_words(found, groups)}.")
    apart = [sentence for group in groups for sentence in without_common_seed(group)]
    return (*sentences, *judged_on(found), *apart)


def _of_the_same_documents(found: Sequence[Measured]) -> list[list[Measured]]:
    """Return members that are held to the same documents, as models of one tokenizer are, in groups of two or more."""
    groups: list[list[Measured]] = []
    for each in found:
        text = each.texts["domain"]
        own = next((group for group in groups if text.is_of_the_documents_of(group[0].texts["domain"])), None)
        if own is None:
            groups.append([each])
        else:
            own.append(each)
    return [group for group in groups if len(group) > 1]


def _paired_words(found: Sequence[Measured], groups: Sequence[Sequence[Measured]]) -> str:
    """Say which differences between rows are paired, if there are several rows."""
    if len(found) == 1:
        return ""
    if not groups:
        return "; differences between rows take theirs as independent"
    if len(groups[0]) == len(found):
        return "; differences between rows are paired by document and seed"
    named = " and of ".join(listed([each.variant.words for each in group]) for group in groups)
    return (
        f"; differences between rows of {named} are paired by document and seed, all others take theirs as independent"
    )


def _told_apart(found: Sequence[Measured]) -> str:
    """Say which gains cannot be told apart: `not distinguishable: a and b; c and d`."""
    pairs: dict[str, list[str]] = {"not distinguishable": [], NO_VERDICT: []}
    for one, other in combinations(found, 2):
        said = told(_beyond(one, other))
        if said in pairs:
            pairs[said].append(f"{one.variant.words} and {other.variant.words}")
    parts = [f"{said}: {'; '.join(names)}" for said, names in pairs.items() if names]
    return ", ".join(parts) if parts else "every two domains can be told apart"


def _beyond(one: Measured, other: Measured) -> Interval:
    """Return the change of one's domain text less that of the other's."""
    return one.texts["domain"].gained_beyond(other.texts["domain"], _RESAMPLES, _SEED)


def _general(each: Measured) -> Interval:
    return each.texts["general"].change(_RESAMPLES, _SEED)


def _persists(ordered: Sequence[Measured], is_all: bool) -> str:
    """Say whether the largest model still gains, and whether it gains less than the smallest, if there are two.

    is_all: whether all sizes of the study were made.
    """
    small, large = ordered[0], ordered[-1]
    persists = {
        "better": "the gain persists",
        "worse": "there is no gain but a loss",
        "not distinguishable": "the gain cannot be told from none",
        NO_VERDICT: "there is no verdict on the gain",
    }[told(_change(large))]
    made = "" if is_all else " that was made"
    said = f"At the largest size{made}, {large.variant.words}, {persists}: {change_words(_change(large))}"
    if len(ordered) == 1:
        return f"{said}. No other size was made to compare it with."
    difference = _beyond(large, small)
    compared = {
        "better": "a better change than",
        "worse": "a worse change than",
        "not distinguishable": "a change not distinguishable from that",
        NO_VERDICT: "with no verdict beside that",
    }[told(difference)]
    of = common_words(large, small) if large.texts["domain"].is_of_the_documents_of(small.texts["domain"]) else ""
    by = "" if difference.low != difference.low else f"; the difference is {difference_words(difference)}{of}"
    return (
        f"{said}, {compared} at the smallest{made}, {small.variant.words}, {change_words(_change(small))}{by}. A base "
        "that was trained on less has more to gain, so sizes compare only where the bases read alike."
    )
