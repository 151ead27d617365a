"""Dress the report as Markdown, for repositories, reviews and terminals."""

import re
from collections.abc import Iterable, Iterator

from onward.reporting.content import Content, CorpusSection, FactList, Table
from onward.reporting.figures import Figure

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~!&])")


def plain(text: str) -> str:
    """Escape a text so that Markdown shows it as it is, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def render_markdown(content: Content) -> str:
    """Return the report as GitHub-flavoured Markdown; the figures stand beside it as SVG files."""
    parts = [f"# {plain(content.name)}", f"**{plain(content.headline)}**"]
    parts += [_bullets(content.sentences), _bullets(content.notes), "## Before and after"]
    parts += [table_markdown(table) for table in content.comparisons] or ["Nothing has been compared yet."]
    if content.comparisons:
        parts += [plain(content.reading_help), *map(_figure, content.forests)]
    if content.details:
        parts += ["### Details", *map(table_markdown, content.details)]
    parts += [_facts(content.run), "## Training"]
    parts.append("No step has been recorded." if content.training is None else _figure(content.training))
    parts += [_bullets(content.training_notes), "## Corpora"]
    parts += [part for corpus in content.corpora for part in _corpus(corpus)] or ["No corpus has been prepared."]
    parts += [
        "## Checkpoints",
        "None yet." if content.checkpoints is None else table_markdown(content.checkpoints, False),
    ]
    parts += [_facts(content.environment), _facts(content.fingerprints), "## Recipe", _fenced(content.recipe)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _corpus(corpus: CorpusSection) -> Iterator[str]:
    """Yield a corpus without its examples, which are for the page: they are long, and of other people's text."""
    yield f"### {plain(corpus.heading)}"
    yield from map(table_markdown, corpus.ledgers)
    yield from map(_figure, corpus.figures)
    yield from map(table_markdown, corpus.tables)
    yield _bullets(corpus.notes)


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {plain(text)}" for text in texts)


def _facts(facts: FactList) -> str:
    rows = tuple(facts.facts)
    return f"## {plain(facts.heading)}\n\n" + table_markdown(Table("", ("", ""), (False, False), rows), False)


def _figure(figure: Figure) -> str:
    return f"![{plain(figure.caption)}]({figure.name}.svg)"


def table_markdown(table: Table, captioned: bool = True) -> str:
    """Return a table as GitHub-flavoured Markdown, its caption in bold before it where it has one."""
    rule = ["--:" if numeric else "---" for numeric in table.numeric]
    lines = [_line(map(plain, table.headers)), _line(rule), *(_line(map(plain, row)) for row in table.rows)]
    return (f"**{plain(table.caption)}**\n\n" if captioned and table.caption else "") + "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _fenced(text: str) -> str:
    """Fence a text with more backticks than it holds itself."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"
