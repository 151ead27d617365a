"""DOCX and EPUB: zip archives of XML, unpacked only as far as their declared sizes stay within bounds."""

import io
import posixpath
import zipfile
import zlib
from urllib.parse import unquote
from xml.etree import ElementTree

from onward.corpus.documents import EMPTY, Unfit, broken, protected, too_long
from onward.corpus.reading.encodings import decoded_page
from onward.corpus.reading.formats import MAXIMUM_FILE_BYTES
from onward.corpus.reading.pages import main_text

_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""Word wraps a document with a password into its old container."""
_BROKEN = (zipfile.BadZipFile, KeyError, zlib.error, EOFError, ElementTree.ParseError, NotImplementedError)


def docx_text(content: bytes) -> str:
    """Return the text of a Word document, paragraphs and table cells apart by empty lines; raises Unfit.

    mammoth reads it: it knows text boxes, tracked changes and foot notes, and costs one small package.
    """
    import mammoth

    if content.startswith(_OLD_OFFICE):
        raise Unfit(protected("DOCX"))
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            _refuse_large(archive, archive.namelist())
        text = str(mammoth.extract_raw_text(io.BytesIO(content)).value)
    except Unfit:
        raise
    except Exception:  # mammoth takes the parts of a document for granted and fails in many ways without them
        raise Unfit(broken("DOCX")) from None
    return "\n\n".join(part for part in (part.strip() for part in text.split("\n\n")) if part)


def epub_text(content: bytes) -> str:
    """Return the text of a book, its chapters in reading order, apart by empty lines; raises Unfit."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            chapters = _spine(archive)
            _refuse_locked(archive, chapters)
            _refuse_large(archive, chapters)
            texts = [main_text(decoded_page(archive.read(name), None), whole_page=True) for name in chapters]
    except _BROKEN:
        raise Unfit(broken("EPUB")) from None
    if text := "\n\n".join(filter(None, texts)):
        return text
    raise Unfit(EMPTY)


def _refuse_large(archive: zipfile.ZipFile, names: list[str]) -> None:
    """Raise Unfit when the parts would be too long; zipfile unpacks no more of a part than it declares."""
    if any(archive.getinfo(name).flag_bits & 1 for name in names):
        raise Unfit(protected("archive"))
    if sum(archive.getinfo(name).file_size for name in names) > MAXIMUM_FILE_BYTES:
        raise Unfit(too_long(MAXIMUM_FILE_BYTES))


def _spine(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the chapters (EPUB 3.3, sections 4.2.6.3.1 and 5.7), each once."""
    package = next(
        element.attrib["full-path"]
        for element in _parsed(archive, "META-INF/container.xml").iter()
        if _tag(element) == "rootfile" and "full-path" in element.attrib
    )
    tree = _parsed(archive, package)
    manifest = {item.get("id"): item for item in tree.iter() if _tag(item) == "item"}
    found = (manifest.get(item.get("idref")) for item in tree.iter() if _tag(item) == "itemref")
    pages = (item.attrib for item in found if item is not None and "html" in item.get("media-type", ""))
    paths = (unquote(page.get("href", "")) for page in pages)
    names = dict.fromkeys(posixpath.normpath(posixpath.join(posixpath.dirname(package), path)) for path in paths)
    return list(names)


def _refuse_locked(archive: zipfile.ZipFile, chapters: list[str]) -> None:
    """Raise Unfit when chapters are encrypted; a list of encrypted fonts alone is nothing to us."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return
    locked = {unquote(item.get("URI", "")) for item in _parsed(archive, "META-INF/encryption.xml").iter()}
    if not locked.isdisjoint(chapters):
        raise Unfit(protected("EPUB"))


def _parsed(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    _refuse_large(archive, [name])
    return ElementTree.fromstring(archive.read(name))


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]
