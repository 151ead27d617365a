"""What the report says of each corpus: where its text went, how it is spread, what it repeated, what it held."""

from collections.abc import Sequence

from onward.analysis.wording import percent, title
from onward.corpus.inspected import ACTIONS, Inspection, Repeats
from onward.corpus.survey import Origins
from onward.reporting.content import CorpusSection, Table
from onward.reporting.corpus_figures import length_figure, measure_figure
from onward.reporting.figures import Figure
from onward.reporting.run_files import CorpusFacts
from onward.reporting.samples import sample_rows

_SHOWN_ORIGINS = 10
_SHOWN_CLUSTERS = 5


def corpus_section(corpus: CorpusFacts) -> CorpusSection:
    """Return a corpus's part of the report; with its ledger alone where the rest of its files is gone."""
    inspection = corpus.inspection
    notes = tuple(f"Unreadable: {place}" for place in corpus.ledger.unreadable)
    if inspection is None:
        return CorpusSection(title(corpus.role), corpus.role, ledger_tables(corpus), (), (), (), notes)
    tables = [_origin_table("sources", inspection.sources, inspection)]
    if inspection.domains is not None:
        tables.append(_origin_table("web domains", inspection.domains, inspection))
    if inspection.samples is not None:
        rows = tuple(sample_rows(inspection.samples))
        headers = ("", "samples", "" if inspection.samples.other is None else "other text of this corpus")
        tables.append(Table("Documents sampled from the base model", headers, (False, True, True), rows))
    tables += [*_repeat_tables(inspection), *_contamination_tables(inspection)]
    return CorpusSection(
        title(corpus.role),
        corpus.role,
        (*ledger_tables(corpus), _token_table(inspection)),
        _figures(corpus.role, inspection),
        tuple(tables),
        tuple(_example_tables(inspection)),
        notes,
    )


def ledger_tables(corpus: CorpusFacts) -> tuple[Table, Table]:
    """Return where every document of a corpus went, and every token of those kept."""
    ledger = corpus.ledger
    dropped = [(f"dropped: {rule.replace('_', ' ')}", count) for rule, count in sorted(ledger.dropped.items())]
    ends = [("read", ledger.read), *dropped, ("dropped: duplicate", ledger.duplicate)]
    ends += [("dropped: near-duplicate", ledger.near_duplicate), ("dropped: contaminated", ledger.contaminated)]
    ends += [("held out", ledger.held_out), ("kept", ledger.kept)]
    whole = max(ledger.read.documents, 1)
    rows = [(name, f"{c.documents:,}", percent(c.documents / whole), f"{c.bytes:,}") for name, c in ends]
    # Documents that stayed, counted above: only these bytes of them are gone.
    rows += [(rule, f"in {c.documents:,}", "", f"{c.bytes:,}") for rule, c in sorted(ledger.trimmed.items())]
    places = ledger.sequences * ledger.sequence_tokens
    parts = [("kept", ledger.kept_tokens), ("cut off", ledger.cut_tokens), ("packed", ledger.packed_tokens)]
    parts += [("padding", ledger.padding_tokens)]
    parts.append((f"{ledger.sequences:,} sequences of {ledger.sequence_tokens:,}", places))
    tokens = tuple((name, f"{count:,}", percent(count / max(places, 1))) for name, count in parts)
    documents = Table("", ("documents", "number", "share", "bytes"), (False, True, True, True), tuple(rows))
    return documents, Table("", ("tokens", "number", "share"), (False, True, True), tokens)


def _token_table(inspection: Inspection) -> Table:
    packed, ledger = inspection.packing, inspection.ledger
    ratio = ledger.kept.bytes / max(1, ledger.kept_tokens)
    rows = [
        ("bytes per token", f"{ratio:.3f}, BOS and EOS counted; {1 / ratio if ratio else 0:.4f} tokens per byte"),
        ("tokenised by", f"{inspection.engine} ({inspection.engine_reason})"),
        ("packing", packed.mode.replace("_", "-")),
        ("documents and pieces in a sequence", f"{packed.pieces / max(1, ledger.sequences):.2f} on average"),
        ("documents cut into pieces", f"{packed.cut_documents:,}"),
    ]
    return Table("", ("text and tokens", ""), (False, False), tuple(rows))


def _figures(role: str, inspection: Inspection) -> tuple[Figure, ...]:
    figures = [length_figure(role, inspection.lengths)] if inspection.lengths.lower else []
    return (*figures, *([measure_figure(role, inspection.measures)] if inspection.measures else []))


def _origin_table(name: str, origins: Origins, inspection: Inspection) -> Table:
    whole = max(1, inspection.ledger.kept_tokens)
    shown = origins.rows[:_SHOWN_ORIGINS]
    rows = [(r.name, f"{r.documents:,}", f"{r.bytes:,}", f"{r.tokens:,}", percent(r.tokens / whole)) for r in shown]
    if origins.distinct > len(shown):
        rest = inspection.ledger.kept_tokens - sum(row.tokens for row in shown)
        rows.append(("all others", "", "", f"{rest:,}", percent(rest / whole)))
    more = "more than " if origins.missed_tokens else ""
    headers = (f"{name}: {more}{origins.distinct:,}", "documents", "bytes", "tokens", "share of tokens")
    return Table(f"Top {name}", headers, (False, True, True, True, True), tuple(rows))


def _repeat_tables(inspection: Inspection) -> list[Table]:
    tables = []
    for name, repeats in (("Exact duplicates", inspection.exact), ("Near-duplicates", inspection.near)):
        if repeats.documents:
            shown = repeats.largest[:_SHOWN_CLUSTERS]
            rows = tuple((c.id, f"{c.removed:,}", c.excerpt) for c in shown)
            headers = ("documents that stayed for most others", "removed", "they begin")
            tables.append(Table(f"{name}: {_repeats_text(repeats)}", headers, (False, True, False), rows))
    return tables


def _repeats_text(repeats: Repeats) -> str:
    listed = f" (of the first {repeats.listed:,}, which are listed)" if repeats.listed < repeats.documents else ""
    elsewhere = f", {repeats.elsewhere:,} were read first in another corpus" if repeats.elsewhere else ""
    return f"{repeats.documents:,} removed, {repeats.clusters:,} stayed for them{listed}{elsewhere}"


def _contamination_tables(inspection: Inspection) -> list[Table]:
    tasks = inspection.contamination
    if tasks is None:
        return []
    counts = tuple((title(t.task), f"{t.items:,}", f"{t.standing:,}", f"{t.documents:,}") for t in tasks)
    names = ("task", "items found", "still in the text", "in documents")
    found = Table("Benchmark items in the text", names, (False, True, True, True), counts)
    passages = tuple(
        (
            f"{title(task.task)} {passage.item}",
            percent(passage.score),
            ACTIONS[passage.action],
            passage.id,
            passage.excerpt,
        )
        for task in tasks
        for passage in task.passages
    )
    headers = ("item", "of its n-grams", "done", "document", "passage")
    numeric = (False, True, False, False, False)
    return [found, *([Table("Passages, chosen by chance", headers, numeric, passages)] if passages else [])]


def _example_tables(inspection: Inspection) -> Sequence[Table]:
    kept = tuple((s.id, f"{s.tokens:,}", s.excerpt) for s in inspection.kept)
    dropped = tuple(
        (rule.rule, f"{rule.documents:,}", example.id, example.excerpt)
        for rule in inspection.dropped
        for example in rule.examples
    )
    headers = ("rule", "dropped", "document", "it begins")
    tables = []
    if kept:
        tables.append(Table("Kept, by chance", ("document", "tokens", "it begins"), (False, True, False), kept))
    if dropped:
        tables.append(Table("Dropped, by chance for each rule", headers, (False, True, False, False), dropped))
    return tables
