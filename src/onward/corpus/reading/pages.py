"""HTML: the main text of a page, without navigation, footers and comments, by trafilatura (Barbaresi, ACL 2021)."""

import logging

from onward.corpus.documents import NO_TEXT_IN_PAGE, Unfit
from onward.corpus.reading.encodings import decoded_page


def page_text(content: bytes, encoding: str | None) -> str:
    """Return the main text of a page; raises Unfit when there is none or its encoding is in doubt."""
    if text := main_text(decoded_page(content, encoding)):
        return text
    raise Unfit(NO_TEXT_IN_PAGE)


def main_text(page: str, whole_page: bool = False) -> str:
    """Return the main text of HTML, one line per paragraph, '' when there is none.

    whole_page: the page has nothing beside its text, as in a book; short headings and sections then stay.
    """
    import trafilatura

    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # it warns of every page that has no text
    if not page.strip():
        return ""
    text: str | None = trafilatura.extract(
        page, include_comments=False, include_formatting=False, favor_recall=whole_page
    )
    return text or ""
