"""The filters of arXiv 2504.09687 section 3: few lines, mostly short lines, repeated content.

Lines end at a line feed; white space at their ends and lines of nothing else do not count.
"""

from collections.abc import Iterator

import numpy as np

from onward.corpus.quality.facts import Facts, Rule, share
from onward.corpus.quality.repeats import per_document, seen_before
from onward.corpus.text.lines import BLANK
from onward.recipe.quality import PaperRules

NGRAM_WORDS = 5


def paper_rules(facts: Facts, rules: PaperRules) -> Iterator[Rule]:
    """Yield the paper's rules in its order."""
    lines = facts.lines
    counted = (lines.about & BLANK) == 0
    num_lines = per_document(counted, lines.starts)
    short = per_document(counted & (lines.inner_characters <= rules.short_line_characters), lines.starts)
    again = counted & seen_before(lines.inner_hash, lines.starts)
    again_characters = per_document(np.where(again, lines.inner_characters, 0), lines.starts)
    repeated = facts.repetition.repeated[:, NGRAM_WORDS]
    for name, values, limit, is_maximum in (
        ("too few lines", num_lines.astype(np.float64), rules.minimum_lines, False),
        ("mostly short lines", share(short, num_lines), rules.maximum_short_lines, True),
        ("repeated lines", share(per_document(again, lines.starts), num_lines), rules.maximum_duplicate_lines, True),
        (
            "characters in repeated lines",
            share(again_characters, facts.characters),
            rules.maximum_duplicate_line_characters,
            True,
        ),
        ("repeated 5-grams", share(repeated, facts.characters), rules.maximum_duplicate_ngrams, True),
    ):
        yield Rule(f"quality: {name}", values, None if limit is None else float(limit), is_maximum)
