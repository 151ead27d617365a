"""PDF: the text layer of all pages, by PDFium; a page that is only a picture has none and needs OCR elsewhere."""

from collections.abc import Iterator

from onward.corpus.documents import NO_TEXT_IN_PDF, Unfit, broken, protected

_HYPHEN = "\x02"
"""What PDFium gives for a hyphen that ends a line, whose word it has already joined."""
_SENTENCE_ENDS = ".!?:;…\"'”’»)"


def pdf_text(content: bytes) -> str:
    """Return the text of a PDF, page after page, lines as they are set; raises Unfit.

    Words that were hyphenated at a line's end are whole again. A page that begins in the middle of a sentence follows
    on a new line, any other after an empty one.
    """
    from pypdfium2 import PdfDocument, PdfiumError
    from pypdfium2.raw import FPDF_ERR_PASSWORD

    try:
        with PdfDocument(content) as document:
            text = _joined(_pages(document))
    except PdfiumError as error:
        raise Unfit(protected("PDF") if error.err_code == FPDF_ERR_PASSWORD else broken("PDF")) from None
    if not text:
        raise Unfit(NO_TEXT_IN_PDF)
    return text


def _pages(document: object) -> Iterator[str]:
    for page in document:  # type: ignore[attr-defined]
        layer = page.get_textpage()
        yield layer.get_text_bounded().replace("\r\n", "\n").strip(" \n")
        layer.close()
        page.close()


def _joined(pages: Iterator[str]) -> str:
    text: list[str] = []
    last = ""
    for page in filter(None, pages):
        if last and not last.endswith(_HYPHEN):
            goes_on = last[-1] not in _SENTENCE_ENDS and page[0].islower()
            text.append("\n" if goes_on else "\n\n")
        text.append(page)
        last = page
    return "".join(text).replace(_HYPHEN, "")
