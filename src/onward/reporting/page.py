"""Dress the report as one HTML file: no script, nothing loaded, light and dark, phone and paper."""

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onward.reporting.content import Content, Table
from onward.reporting.figures import Figure


@dataclass(frozen=True)
class StudyText:
    """What the page of a study says.

    facts: base, budget, seeds. points: a list under the findings, names and words. failures: names and messages of
    members not made.
    """

    name: str
    study: str
    headline: str
    facts: str
    findings: tuple[str, ...]
    points: tuple[tuple[str, str], ...]
    table: Table | None
    figure: Figure | None
    failures: tuple[tuple[str, str], ...]


def render_page(content: Content) -> str:
    """Return the page; every text is escaped, the figures (whose texts are escaped when drawn) are inlined."""
    return _templates().get_template("page.html").render(content=content)


def render_study_page(page: StudyText) -> str:
    """Return the page of a study, dressed like a report."""
    return _templates().get_template("study.html").render(page=page)


def _templates() -> Environment:
    loader = PackageLoader("onward.reporting", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = Markup
    environment.filters["dashed"] = lambda text: text.replace(" ", "-")
    return environment
