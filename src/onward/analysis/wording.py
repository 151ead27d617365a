"""Findings in plain words: the sentences and numbers of the report and of the terminal."""

import math
from collections.abc import Sequence

from onward.analysis.difference import Comparison, Difference

TITLES = {
    "domain": "Domain text",
    "general": "General text",
    "mmlu": "MMLU",
    "arc_easy": "ARC easy",
    "arc_challenge": "ARC challenge",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "mmlu_continuation": "MMLU, continuations",
    "openbookqa": "OpenBookQA",
    "lambada_openai": "LAMBADA",
    "wikitext": "WikiText-2",
    "cloze:domain": "Cloze of the domain",
}
HOLDS_ZERO = "the interval holds zero"
_WHOLE, _SCIENTIFIC = 1e4, 1e7
MINUS = "\N{MINUS SIGN}"
ARROW = "\N{RIGHTWARDS ARROW}"


def title(name: str) -> str:
    """Return the name a reader knows a corpus or task by; an unknown one is its own title."""
    task, at, shots = name.rpartition("@")
    if at and shots.isdecimal():
        return f"{title(task)}, {shots}-shot"
    return TITLES.get(name, name)


def number(value: float, decimals: int, sign: bool = False) -> str:
    """Write a number with a true minus sign and thousands separators; `sign` also writes the plus.

    Large ones are written short: no decimals from 10,000 on, `1.23e7` from ten millions on.
    """
    if math.isnan(value):
        return "unknown"
    if _SCIENTIFIC <= abs(value) < math.inf:  # the perplexity of a model that does not know the language
        power = int(math.log10(abs(value)))
        return f"{number(value / 10**power, 2, sign)}e{power}"
    decimals = 0 if abs(value) >= _WHOLE else decimals
    text = f"{value:{'+' if sign else ''},.{decimals}f}"
    if not text.strip("+-0.,"):
        text = text.lstrip("+-")  # a rounded zero has no direction
    return text.replace("-", MINUS)


def percent(share: float) -> str:
    """Write a share of 1 as a percentage: 0.2312 -> `23.1 %`."""
    return f"{number(100 * share, 1)} %"


def p_text(p_value: float) -> str:
    """Write a p-value: `0.034`, `0.2`, `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}" if p_value < 0.1 else f"{p_value:.1f}"


def decimals_for(low: float, high: float) -> int:
    """Return the decimals (2 to 4) at which an interval in bits per byte shows two digits of its own width."""
    width = high - low
    return 2 if math.isnan(width) or width >= 0.02 else 3 if width >= 0.002 else 4


def values_text(difference: Difference) -> tuple[str, str]:
    """Write the values before and after, in their unit."""
    if difference.is_share:
        return percent(difference.before), percent(difference.after)
    decimals = decimals_for(difference.low, difference.high)
    return number(difference.before, decimals), number(difference.after, decimals)


def change_text(difference: Difference) -> tuple[str, str]:
    """Write the change and its interval: shares in points of a percentage, all else as it is."""
    scale, decimals = (100, 1) if difference.is_share else (1, decimals_for(difference.low, difference.high))
    if math.isnan(difference.low):
        return number(scale * difference.delta, decimals, sign=True), "unknown"
    low, high = (number(scale * end, decimals, sign=True) for end in (difference.low, difference.high))
    return number(scale * difference.delta, decimals, sign=True), f"{low} to {high}"


def adjusted_text(difference: Difference) -> tuple[str, str] | None:
    """Write the scores where guessing is 0 and all right is 100; None for what is not chosen."""
    if difference.adjusted is None:
        return None
    before, after = (number(100 * score, 1) for score in difference.adjusted)
    return before, after


def sentence(difference: Difference) -> str:
    """Say one difference: values, change with its interval, verdict."""
    before, after = values_text(difference)
    change, interval = change_text(difference)
    named = title(difference.name)
    if difference.is_text:
        named = named if difference.source is None else f"{named}, {difference.source}"
        what = f"{before} {ARROW} {after} bits per byte ({change}, 95 % interval {interval})"
    else:
        named = f"{named} ({difference.metric})"
        if difference.touched:
            named = f"{named} {without_text(difference)}"
        test = "" if difference.p_adjusted is None else f", p {_equals(p_text(difference.p_adjusted))} after Holm"
        rates = f"{before} {ARROW} {after} of {difference.items:,} items"
        points = " points" if difference.is_share else ""
        what = f"{rates} ({change}{points}, 95 % interval {interval}{test})"
    if difference.seeds:
        what = f"{what}, {len(difference.seeds)} seeds"
    why = f" ({difference.why})" if difference.why and difference.why != HOLDS_ZERO else ""
    low = below_text(difference)
    return f"{named}: {what}: {difference.verdict}{why}{'' if low is None else f'; {low}'}."


def below_text(difference: Difference) -> str | None:
    """Say that a score is lower than that of guessing, which is no chance: `both scores are below guessing, 25.0 %`."""
    if difference.chance is None or not any(difference.below_chance):
        return None
    which = {(True, True): "both scores are", (True, False): "the score before is", (False, True): "the score after is"}
    return f"{which[difference.below_chance]} below guessing, {percent(difference.chance)}"


def without_text(difference: Difference) -> str:
    """Say which items were left out: `without 45 items found in the text, 3 of them left in training`."""
    items = f"{difference.touched:,} {'item' if difference.touched == 1 else 'items'}"
    left = "all" if difference.seen == difference.touched else f"{difference.seen:,} of them"
    seen = f", {left} left in training" if difference.seen else ", none left in training"
    return f"without {items} found in the text{seen}"


def _equals(text: str) -> str:
    return text if text.startswith("<") else f"= {text}"


def headline(comparison: Comparison) -> str:
    """Say in one sentence what became of the domain and of general text."""
    domain, general = (None if row is None else row.verdict for row in map(comparison.find, ("domain", "general")))
    firsts: dict[str | None, str] = {
        None: "The domain text was not scored",
        "gained": "The model gained on the domain",
        "lost": "The model became worse on the domain",
        "not distinguishable": "No change on the domain can be told from chance",
    }
    seconds: dict[str | None, str] = {
        None: "general text was not scored",
        "gained": "general text became easier as well",
        "lost": "general text became harder for it",
        "not distinguishable": "no change on general text can be told from chance",
    }
    joint = {"gained": ", and ", "lost": ", and " if domain == "lost" else ", but "}.get(general or "", "; ")
    return f"{firsts[domain]}{joint}{seconds[general]}."


def task_tally(differences: Sequence[Difference]) -> str | None:
    """Count the task rows by verdict: `Tasks: 1 gained (MMLU acc), 10 not distinguishable`; None without tasks."""
    tasks = [row for row in differences if not row.is_text]
    if not tasks:
        return None
    parts = []
    for verdict in ("gained", "lost", "not distinguishable", "at chance"):
        named = [f"{title(row.name)} {row.metric}" for row in tasks if row.verdict == verdict]
        if named:
            names = f" ({', '.join(named)})" if verdict in ("gained", "lost") else ""
            parts.append(f"{len(named)} {verdict}{names}")
    return f"Task scores, {len(tasks)} in all: {', '.join(parts)}."
