"""Whole files in a worker: text, HTML, PDF, DOCX and EPUB become documents."""

from collections.abc import Callable, Iterable

from onward.corpus import documents
from onward.corpus.documents import Item, Unfit, Unreadable
from onward.corpus.reading.encodings import decoded
from onward.corpus.reading.formats import PAGES, suffix_of
from onward.corpus.reading.packed import docx_text, epub_text
from onward.corpus.reading.pages import page_text
from onward.corpus.reading.pdf import pdf_text
from onward.corpus.reading.pieces import Segment, Whole
from onward.errors import UserError

_PACKED: dict[str, Callable[[bytes], str]] = {".pdf": pdf_text, ".docx": docx_text, ".epub": epub_text}


def open_whole(piece: Whole) -> Iterable[Item]:
    """Return the document of a file, in parts when it is very long, or why there is none."""
    try:
        text = _text_of(piece)
    except Unfit as unfit:
        return (Unreadable(piece.path, unfit.reason),)
    except ImportError as error:  # the package is there, but not all that it needs
        todo = "pip install 'onward[documents]'"
        raise UserError(f"{suffix_of(piece.path)} files cannot be read", piece.path, str(error), todo=todo) from error
    return documents.from_text(text, piece.path, piece.path, piece.path)


def _text_of(piece: Whole) -> str:
    suffix = suffix_of(piece.path)
    if suffix in PAGES:
        return page_text(piece.content, piece.encoding)
    return _PACKED[suffix](piece.content) if suffix in _PACKED else decoded(piece.content, piece.encoding)


def open_segment(piece: Segment) -> Iterable[Item]:
    """Return the document that is a part of a long text."""
    where = f"{piece.path}#{piece.number}"
    try:
        text = piece.content.decode("utf-8-sig" if piece.number == 1 else "utf-8")
    except UnicodeDecodeError:
        return (Unreadable(where, documents.NOT_UTF8),)
    return documents.from_text(text, where, piece.path, where)
