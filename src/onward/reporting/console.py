"""A corpus as rich tables: its ledger, and everything an inspection found."""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from onward.corpus.inspected import ACTIONS, Inspection, Measured, Packed, Repeats, TaskHits
from onward.corpus.ledger import Ledger
from onward.corpus.samples import Samples
from onward.corpus.survey import Origins, Spread
from onward.reporting.samples import sample_rows

_BAR = 22
_EIGHTHS = " ▏▎▍▌▋▊▉"
_LEVELS = " ▁▂▃▄▅▆▇█"
_SHOWN_CLUSTERS = 5
_SHOWN_ORIGINS = 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""What would move the cursor, colour the screen or turn the direction of writing: text is from anywhere."""


def ledger_view(title: str, ledger: Ledger) -> RenderableType:
    """Return a corpus's ledger: every document and token accounted for."""
    table = _table(title, ("", "documents", "bytes", "share"))
    whole = ledger.read.documents
    for end, documents, size in ledger.rows():
        if end in ledger.trimmed:
            table.add_row(_plain(f"{end} *"), f"({documents:,})", f"{size:,}", "")
        else:
            table.add_row(_plain(end), f"{documents:,}", f"{size:,}", percent(documents, whole))
    places = ledger.sequences * ledger.sequence_tokens
    lines = ["* in brackets: documents that went on without these bytes"] if ledger.trimmed else []
    lines.append(f"{ledger.kept_tokens:,} tokens in {ledger.sequences:,} sequences of {ledger.sequence_tokens:,}")
    lines.append(f"{ledger.padding_tokens:,} places padded ({percent(ledger.padding_tokens, places)})")
    if ledger.cut_tokens:
        lines.append(f"{ledger.cut_tokens:,} tokens cut off")
    return Group(table, *map(_note, lines))


def inspection_view(title: str, inspection: Inspection) -> Iterator[RenderableType]:
    """Yield the parts of an inspection in reading order, each to be set apart by an empty line."""
    yield ledger_view(title, inspection.ledger)
    yield _engine_view(inspection)
    yield _packing_view(inspection.packing, inspection.ledger)
    yield _lengths_view(inspection.lengths)
    yield _ratios_view(inspection)
    if inspection.samples is not None:
        yield _sampled_view(inspection.samples)
    if inspection.measures:
        yield _measures_view(inspection.measures)
    tokens = inspection.ledger.kept_tokens
    yield _origins_view("sources", inspection.sources, tokens)
    if inspection.domains is not None:
        yield _origins_view("web domains", inspection.domains, tokens)
    for name, repeats in (("exact duplicates", inspection.exact), ("near-duplicates", inspection.near)):
        if repeats.documents:
            yield _repeats_view(name, repeats)
    if inspection.contamination is not None:
        yield _contamination_view(inspection.contamination)
    yield from _samples_view(inspection)


def percent(part: float, whole: float) -> str:
    """Write a share as a percentage of which nothing rounds to zero: `12.3 %`, `< 0.1 %`."""
    share = 100 * part / whole if whole else 0.0
    return "< 0.1 %" if 0 < share < 0.1 else f"{share:.1f} %"


def bar(share: float, width: int = _BAR) -> str:
    """Return a bar of block characters; share of the full width, in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def range_text(spread: Spread, place: int) -> str:
    """Name a bin of whole numbers: `64–127`; the last one ends at the largest value."""
    low = int(spread.lower[place])
    last = place == len(spread.lower) - 1
    high = int(spread.quantiles[-1][1]) if last else int(spread.lower[place + 1]) - 1
    return f"{low:,}–{high:,}" if high > low else f"{low:,}"


def common_folder(names: Sequence[str]) -> str:
    """Return the folder that all names lie in, with its last slash; empty where there is none."""
    levels = zip(*(name.split("/")[:-1] for name in names), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return "".join(f"{part}/" for part in shared) if len(shared) > 1 else ""


def screened(text: str) -> str:
    """Return a text on one line that cannot command a terminal: line ends become ↵, control characters �."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", " ↵ ".join(line for line in lines if line))


def _plain(text: str) -> Text:
    """A cell that is shown as it is, without markup."""
    return Text(screened(text), overflow="fold")


def _table(title: str, headers: Sequence[str], left: Iterable[str] = ()) -> Table:
    """Open a table; the first column and those in `left` are set to the left, the others to the right."""
    table = Table(title=screened(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for place, header in enumerate(headers):
        to_left = place == 0 or header in left
        table.add_column(header, justify="left" if to_left else "right", no_wrap=place > 0, overflow="fold")
    return table


def _note(text: str, indent: int = 1) -> RenderableType:
    return Padding(Text(screened(text)), (0, 0, 0, indent))


def _engine_view(inspection: Inspection) -> RenderableType:
    blocks = f"{inspection.blocks:,} block{'s' if inspection.blocks > 1 else ''}"
    tokens = inspection.ledger.kept_tokens
    ratio = inspection.ledger.kept.bytes / tokens if tokens else 0.0
    rows = [
        ("folder", inspection.folder),
        ("written in", blocks),
        ("tokenised by", f"{inspection.engine} ({inspection.engine_reason})"),
        ("bytes per token", f"{ratio:.3f}, or {1 / ratio if ratio else 0:.4f} tokens per byte, BOS and EOS counted"),
    ]
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(f" {name}", style="dim"), _plain(value))
    return grid


def _sampled_view(samples: Samples) -> RenderableType:
    headers = ("sampled documents", "", "" if samples.other is None else "other text")
    table = _table("documents sampled from the base model", headers)
    for row in sample_rows(samples):
        table.add_row(*map(_plain, row))
    return table


def _packing_view(packed: Packed, ledger: Ledger) -> RenderableType:
    spread = packed.pieces_per_sequence
    table = _table(f"packing: {packed.mode}", ("pieces in a sequence", "sequences", "share", ""), ("",))
    most = max(spread.documents, default=1)
    for place, count in enumerate(spread.documents):
        table.add_row(range_text(spread, place), f"{count:,}", percent(count, ledger.sequences), bar(count / most))
    mean = packed.pieces / max(ledger.sequences, 1)
    text = f"{mean:.2f} in a sequence on average; {_documents(packed.cut_documents)} cut into pieces"
    return Group(table, _note(text))


def _lengths_view(lengths: Spread) -> RenderableType:
    table = _table("length of kept documents", ("tokens", "documents", "share", "", "of all tokens"), ("",))
    most, whole, tokens = max(lengths.documents, default=1), sum(lengths.documents), sum(lengths.tokens)
    for place, count in enumerate(lengths.documents):
        share = percent(lengths.tokens[place], tokens)
        table.add_row(range_text(lengths, place), f"{count:,}", percent(count, whole), bar(count / most), share)
    return Group(table, _note(_quantile_text(lengths, "{:,.0f}", " tokens")))


def _ratios_view(inspection: Inspection) -> RenderableType:
    ratios = inspection.bytes_per_token
    table = _table("bytes per token of kept documents", ("from", "documents", "share", ""), ("",))
    most, whole = max(ratios.documents, default=1), sum(ratios.documents)
    for place, count in enumerate(ratios.documents):
        table.add_row(f"{ratios.lower[place]:.2f}", f"{count:,}", percent(count, whole), bar(count / most))
    return Group(table, _note(_quantile_text(ratios, "{:.2f}", "")))


def _quantile_text(spread: Spread, form: str, unit: str) -> str:
    """Say the quantiles: `half have at most 404 tokens; 5 % at most 78, 95 % at most 2,091; from 3 to 77,985`."""
    if not spread.quantiles:
        return "none"
    value = {share: form.format(found) for share, found in spread.quantiles}
    ends = f"5 % at most {value[0.05]}, 95 % at most {value[0.95]}; from {value[0.0]} to {value[1.0]}"
    return f"half have at most {value[0.5]}{unit}; {ends}"


def _measures_view(measures: Sequence[Measured]) -> RenderableType:
    headers = ("rule", "allows", "beyond", "share", f"0{'':9}│{'':8}2×")
    table = _table("what the quality rules measured", headers, headers[-1:])
    families: dict[str, None] = {}
    for measure in sorted(measures, key=lambda m: (m.rule.partition(": ")[0], -m.beyond, m.rule)):
        family, _, rule = measure.rule.rpartition(": ")
        if family and family not in families:
            families[family] = None
            table.add_row(_plain(family))
        allowed = f"{'≤' if measure.is_maximum else '≥'} {measure.threshold:,g}"
        share = percent(measure.beyond, sum(measure.counts))
        table.add_row(
            Padding(_plain(rule), (0, 0, 0, 2 if family else 0)),
            allowed,
            f"{measure.beyond:,}",
            share,
            _sparkline(measure),
        )
    text = (
        "Of all documents, whichever rule dropped them: from 0 to twice the threshold │, in the last place all larger "
        "values. Those that equal a maximum are counted beyond it."
    )
    return Group(table, _note(text))


def _sparkline(measure: Measured) -> Text:
    """Draw a histogram in a line: ten places up to the threshold, ten beyond, one for all larger values."""
    *bins, larger = measure.counts
    places = [sum(bins[start : start + 2]) for start in range(0, len(bins), 2)] + [larger]
    most = max(1, *places)
    signs = [_LEVELS[0 if not count else max(1, round(8 * count / most))] for count in places]
    middle = len(bins) // 4
    below, above = "".join(signs[:middle]), "".join(signs[middle:])
    wrong, right = ("", "red") if measure.is_maximum else ("red", "")
    return Text.assemble((below, wrong), ("│", "dim"), (above, right))


def _origins_view(name: str, origins: Origins, tokens: int) -> RenderableType:
    """Show the names with the most tokens, and say how many are not shown."""
    more = "more than " if origins.missed_tokens else ""
    shown = origins.rows[:_SHOWN_ORIGINS]
    folder = common_folder([row.name for row in origins.rows])
    where = f", in {folder}" if folder else ""
    table = _table(f"{name}: {more}{origins.distinct:,}{where}", ("", "documents", "bytes", "tokens", "share"))
    for row in shown:
        numbers = (f"{row.documents:,}", f"{row.bytes:,}", f"{row.tokens:,}")
        table.add_row(_plain(row.name.removeprefix(folder)), *numbers, percent(row.tokens, tokens))
    lines = []
    if origins.distinct > len(shown):
        rest = tokens - sum(row.tokens for row in shown)
        lines.append(f"all others: {rest:,} tokens ({percent(rest, tokens)})")
    if origins.missed_tokens:
        lines.append(f"There are too many to count each: any may have up to {origins.missed_tokens:,} tokens more.")
    return Group(table, *map(_note, lines))


def _repeats_view(name: str, repeats: Repeats) -> RenderableType:
    """Show the documents that stayed for most others, with examples of those removed."""
    parts: list[RenderableType] = [Text(f"{name}: {_documents(repeats.documents)} removed", style="bold")]
    kept = f"{repeats.bytes:,} bytes; {_documents(repeats.clusters)} stayed for them"
    parts.append(_note(f"{kept}{f', {repeats.elsewhere:,} are in another corpus' if repeats.elsewhere else ''}"))
    if repeats.listed < repeats.documents:
        parts.append(_note(f"Only the first {repeats.listed:,} are listed, and described here."))
    shown = repeats.largest[:_SHOWN_CLUSTERS]
    if len(shown) < repeats.clusters:
        parts.append(_note(f"The {len(shown)} that stayed for most:"))
    for cluster in shown:
        side = " (held out)" if cluster.is_held_out else ""
        parts.append(_headed(f"{cluster.removed:,} removed for {cluster.id}{side}", cluster.source, cluster.excerpt, 1))
        for removed in cluster.examples:
            bands = f", {removed.bands} bands equal" if removed.bands else ""
            excerpt = removed.excerpt if removed.bands else ""  # an exact duplicate says the same
            parts.append(_headed(f"{removed.id}{bands}", removed.source, excerpt, 4))
        if cluster.removed > len(cluster.examples) > 0:
            parts.append(_note(f"and {cluster.removed - len(cluster.examples):,} more", 4))
    return Group(*parts)


def _contamination_view(tasks: Sequence[TaskHits]) -> RenderableType:
    table = _table("benchmark items found in the text", ("task", "items", "still in the text", "documents"))
    for task in tasks:
        table.add_row(_plain(task.task), f"{task.items:,}", f"{task.standing:,}", f"{task.documents:,}")
    parts: list[RenderableType] = [table]
    for task in tasks:
        for passage in task.passages:
            share = f"{percent(passage.score, 1)} of its n-grams, {ACTIONS[passage.action]}"
            parts.append(
                _headed(f"{task.task} {passage.item}: {share}; in {passage.id}", passage.source, passage.excerpt, 1)
            )
    return Group(*parts)


def _samples_view(inspection: Inspection) -> Iterator[RenderableType]:
    if inspection.kept:
        parts: list[RenderableType] = [Text("kept, by chance", style="bold")]
        for sample in inspection.kept:
            facts = f"{sample.id}, {sample.tokens:,} tokens of {sample.bytes:,} bytes"
            parts.append(_headed(facts, sample.source, sample.excerpt, 1))
        yield Group(*parts)
    for rule in inspection.dropped:
        if rule.examples:
            parts = [Text.assemble((f"dropped: {screened(rule.rule)}", "bold"), f", {_documents(rule.documents)}")]
            if rule.listed < rule.documents:
                parts.append(_note(f"Chosen among the first {rule.listed:,}, which are listed."))
            parts += [_headed(example.id, example.source, example.excerpt, 1) for example in rule.examples]
            yield Group(*parts)


def _headed(head: str, source: str, excerpt: str, indent: int) -> RenderableType:
    """Show a document: what it is and the name of its file, then how it begins."""
    where = "" if source in head else f" ({source.rpartition('/')[2]})"
    body: list[RenderableType] = [_plain(f"{head}{where}")]
    if excerpt.strip():
        body.append(Padding(Text(screened(excerpt), style="dim"), (0, 0, 0, 3)))
    return Padding(Group(*body), (0, 0, 0, indent))


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"
