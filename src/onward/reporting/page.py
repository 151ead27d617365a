"""Dress the report as one HTML file: no script, nothing loaded, light and dark, phone and paper."""

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onward.reporting.content import Content


def render_page(content: Content) -> str:
    """Return the page; every text is escaped, the figures (whose texts are escaped when drawn) are inlined."""
    loader = PackageLoader("onward.reporting", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["picture"] = Markup
    environment.filters["dashed"] = lambda text: text.replace(" ", "-")
    return environment.get_template("page.html").render(content=content)
