"""FineWeb's rules about lines (arXiv 2406.17557, section 3.4)."""

from collections.abc import Iterator

import numpy as np

from onward.corpus.quality.facts import Facts, Rule, share
from onward.corpus.quality.repeats import per_document
from onward.corpus.text.lines import BLANK, ENDS_SENTENCE
from onward.recipe.quality import FineWeb


def fineweb_rules(facts: Facts, rules: FineWeb) -> Iterator[Rule]:
    """Yield FineWeb's rules, in datatrove's order; a document without any line has no line with punctuation."""
    lines = facts.lines
    counted = (lines.about & BLANK) == 0
    num_lines = per_document(counted, lines.starts)
    ending = per_document(counted & ((lines.about & ENDS_SENTENCE) != 0), lines.starts)
    short = per_document(counted & (lines.characters <= rules.short_line_characters), lines.starts)
    again = per_document(np.where(counted & facts.seen_lines, lines.characters, 0), lines.starts)
    for name, values, limit, is_maximum in (
        ("lines without punctuation", np.nan_to_num(share(ending, num_lines)), rules.minimum_punctuated_lines, False),
        ("mostly short lines", share(short, num_lines), rules.maximum_short_lines, True),
        (
            "characters in duplicate lines",
            share(again, facts.characters - lines.line_feeds),
            rules.maximum_duplicate_line_characters,
            True,
        ),
        ("line feeds", share(lines.line_feeds, facts.num_words), rules.maximum_line_feeds, True),
    ):
        yield Rule(f"fineweb: {name}", values, None if limit is None else float(limit), is_maximum)
