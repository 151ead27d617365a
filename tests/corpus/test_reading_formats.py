"""HTML, PDF, DOCX and EPUB, all made here."""

import io
import json
import logging
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from onward.corpus.documents import Document, Item, Unreadable
from onward.corpus.reading import formats, packed
from onward.corpus.reading.sources import find_inputs, read_source
from onward.errors import UserError
from onward.recipe import Source

PARAGRAPH = "<p>A heron stood in the shallow water and waited for a fish that never came near the bridge, {}.</p>"
DAYS = ("Monday", "Dienstag – später", "Wednesday")
PAGE = f"""<!DOCTYPE html><html><head><title>Heron</title><meta charset="utf-8"></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/imprint">Imprint</a></li></ul></nav>
<article><h1>The heron</h1>{"".join(map(PARAGRAPH.format, DAYS))}</article>
<footer>All rights reserved</footer></body></html>"""


def read(path: Path, content: bytes) -> Item:
    path.write_bytes(content)
    (item,) = read_source(find_inputs(Source(path=str(path))))
    return item


def text_of(path: Path, content: bytes) -> str:
    item = read(path, content)
    assert isinstance(item, Document), item
    assert (item.id, item.source) == (str(path), str(path))
    return item.text


def reason_of(path: Path, content: bytes) -> str:
    item = read(path, content)
    assert isinstance(item, Unreadable), item
    assert item.where == str(path)
    return item.reason


# --- HTML ---


@pytest.mark.parametrize("name", ["x.html", "x.htm", "x.XHTML"])
def test_the_main_text_of_a_page(tmp_path: Path, name: str) -> None:
    text = text_of(tmp_path / name, PAGE.encode())
    assert text.startswith("The heron\nA heron stood in")
    assert "Dienstag – später" in text
    assert len(text.split("\n")) == 4
    for noise in ("Home", "Imprint", "rights", "<"):
        assert noise not in text


@pytest.mark.parametrize(
    "page", ["", "  \n", "<html><body></body></html>", "<script>let x = 1</script><img src='a.png'>"]
)
def test_a_page_without_text(tmp_path: Path, page: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert reason_of(tmp_path / "x.html", page.encode()) == "unreadable: no text in the page"
    assert not caplog.records


def test_a_page_in_another_encoding(tmp_path: Path) -> None:
    page = PAGE.replace('charset="utf-8"', 'charset="windows-1252"')
    assert "Dienstag – später" in text_of(tmp_path / "x.html", page.encode("cp1252"))
    wrong = PAGE.replace("später", "später ß") + "\u3042"
    assert (
        reason_of(tmp_path / "y.html", wrong.encode().replace("ß".encode(), b"\xdf")) == "unreadable: mixed encodings"
    )


def test_a_page_over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAXIMUM_PAGE_BYTES", 1_000_000)
    assert reason_of(tmp_path / "x.html", PAGE.encode() + b" " * 1_000_000) == "unreadable: longer than 1 MB"


# --- PDF ---


def pdf(pages: Sequence[Sequence[bytes]], trailer: bytes = b"") -> bytes:
    """Write a PDF with one line of text after the other on every page."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for n, lines in enumerate(pages):
        drawn = b"BT /F1 12 Tf 72 720 Td 14 TL " + b" ".join(b"(%s) Tj T*" % line for line in lines) + b" ET"
        resources = b"<< /Font << /F1 3 0 R >> >>"
        facts = b"/Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R" % (5 + 2 * n)
        objects.append(b"<< %s /Resources %s >>" % (facts, resources))
        objects.append(b"<< /Length %d >> stream\n%s\nendstream" % (len(drawn), drawn))
    out, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    start = out.rindex(b"xref\n0 ")
    return out + b"trailer << /Size %d /Root 1 0 R %s>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, trailer, start)


def test_the_text_layer_of_all_pages(tmp_path: Path) -> None:
    pages = [
        [b"The heron is an extra-", b"ordinary bird, \xfcber all,", b"which stands and waits"],
        [b"for a fish.", b"Nobody saw it move."],
        [],
        [b"Chapter 2", b"It flew off."],
    ]
    assert text_of(tmp_path / "x.pdf", pdf(pages)) == (
        "The heron is an extraordinary bird, über all,\nwhich stands and waits\nfor a fish.\nNobody saw it move.\n\n"
        "Chapter 2\nIt flew off."
    )


def test_a_pdf_with_a_password(tmp_path: Path) -> None:
    # The owner's and user's keys of a password that nobody knows (PDF 1.7, section 7.6.3).
    keys = b"/V 1 /R 2 /O <%s> /U <%s> /P -4" % (b"11" * 32, b"22" * 32)
    locked = pdf([[b"Secret"]], b"/Encrypt << /Filter /Standard %s >> /ID [<00> <00>] " % keys)
    assert reason_of(tmp_path / "x.pdf", locked) == "unreadable: password-protected PDF"


@pytest.mark.parametrize("content", [b"", b"no PDF at all", pdf([[b"x"]])[:60]])
def test_a_broken_pdf(tmp_path: Path, content: bytes) -> None:
    assert reason_of(tmp_path / "x.pdf", content) == "unreadable: broken PDF"


def test_a_scanned_pdf(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "x.pdf", pdf([[], []])) == "unreadable: no text in the PDF"


# --- archives ---


def archive(parts: Mapping[str, bytes | str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packing:
        for name, content in parts.items():
            packing.writestr(name, content)
    return out.getvalue()


def docx(*paragraphs: str) -> bytes:
    name = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    body = "".join(f"<w:p><w:r><w:t xml:space='preserve'>{text}</w:t></w:r></w:p>" for text in paragraphs)
    types = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    relation = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    package = "http://schemas.openxmlformats.org/package/2006"
    return archive(
        {
            "[Content_Types].xml": f"<Types xmlns='{package}/content-types'>"
            f"<Override PartName='/word/document.xml' ContentType='{types}'/></Types>",
            "_rels/.rels": f"<Relationships xmlns='{package}/relationships'>"
            f"<Relationship Id='r1' Type='{relation}' Target='word/document.xml'/></Relationships>",
            "word/document.xml": f"<w:document xmlns:w='{name}'><w:body>{body}</w:body></w:document>",
        }
    )


def test_the_paragraphs_of_a_word_document(tmp_path: Path) -> None:
    content = docx("The heron", "It stood – and waited. ", "", "Überall.")
    assert text_of(tmp_path / "x.docx", content) == "The heron\n\nIt stood – and waited.\n\nÜberall."
    assert reason_of(tmp_path / "y.docx", docx("")) == "unreadable: empty text"


def test_broken_and_locked_word_documents(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.docx", b"PK no archive") == "unreadable: broken DOCX"
    assert reason_of(tmp_path / "b.docx", archive({"x": "y"})) == "unreadable: broken DOCX"
    old = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500
    assert reason_of(tmp_path / "c.docx", old) == "unreadable: password-protected DOCX"


CONTAINER = "<container><rootfiles><rootfile full-path='OEBPS/book.opf'/></rootfiles></container>"
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf"><manifest>
<item id="b" href="text/two.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="text/chapter%20one.xhtml" media-type="application/xhtml+xml"/>
<item id="c" href="cover.jpg" media-type="image/jpeg"/></manifest>
<spine><itemref idref="c"/><itemref idref="a"/><itemref idref="b"/></spine></package>"""


def chapter(*paragraphs: str) -> str:
    inner = "".join(f"<p>{text}</p>" for text in paragraphs)
    return (
        f"<?xml version='1.0' encoding='utf-8'?><html xmlns='http://www.w3.org/1999/xhtml'><body>{inner}</body></html>"
    )


def epub(second: str = "Morning came over the river, and the heron was gone.") -> bytes:
    parts = {
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/text/chapter one.xhtml": chapter("It was late.", "“No,” he said – twice.", "“No,” he said – twice."),
        "OEBPS/text/two.xhtml": chapter(second),
    }
    return archive(parts)


def test_the_chapters_of_a_book_in_reading_order(tmp_path: Path) -> None:
    assert text_of(tmp_path / "x.epub", epub()) == (
        "It was late.\n“No,” he said – twice.\n“No,” he said – twice.\n\n"
        "Morning came over the river, and the heron was gone."
    )


def test_broken_and_locked_books(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "a.epub", b"PK no archive") == "unreadable: broken EPUB"
    assert reason_of(tmp_path / "b.epub", archive({"x": "y"})) == "unreadable: broken EPUB"
    locked = "<encryption><x URI='OEBPS/text/two.xhtml'/></encryption>"
    assert (
        reason_of(tmp_path / "c.epub", archive_with(epub(), "META-INF/encryption.xml", locked))
        == "unreadable: password-protected EPUB"
    )
    fonts = archive_with(epub(), "META-INF/encryption.xml", "<encryption><x URI='OEBPS/font.otf'/></encryption>")
    assert text_of(tmp_path / "d.epub", fonts).startswith("It was late.")


def archive_with(content: bytes, name: str, part: str) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as packing:
        packing.writestr(name, part)
    return out.getvalue()


@pytest.mark.parametrize("name", ["x.epub", "x.docx"])
def test_an_archive_that_unpacks_to_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(packed, "MAXIMUM_FILE_BYTES", 1_000_000)
    long = "x" * 2_000_000
    content = epub(long) if name == "x.epub" else docx(long)
    assert len(content) < 20_000
    assert reason_of(tmp_path / name, content) == "unreadable: longer than 1 MB"


def test_a_file_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAXIMUM_FILE_BYTES", 1_000_000)
    for name in ("x.pdf", "x.docx", "x.epub"):
        assert reason_of(tmp_path / name, bytes(1_000_001)) == "unreadable: longer than 1 MB"


# --- packages ---


@pytest.mark.parametrize(
    ("name", "package"),
    [("x.html", "trafilatura"), ("x.pdf", "pypdfium2"), ("x.docx", "mammoth"), ("x.epub", "trafilatura")],
)
def test_a_missing_package_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(formats, "find_spec", lambda wanted: None if wanted == package else object())
    with pytest.raises(UserError) as error:
        find_inputs(Source(path=str(tmp_path)))
    assert str(error.value) == (
        f"{Path(name).suffix} files need the package {package}\n"
        f"  where     {tmp_path}/{name}\n"
        "  do        pip install 'onward[documents]', or leave such files out by a glob, e.g. `path: folder/*.txt`"
    )


def test_a_package_that_lacks_one_of_its_own_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.html").write_text(PAGE)
    inputs = find_inputs(Source(path=str(tmp_path)))
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(UserError, match=r"\.html files cannot be read") as error:
        list(read_source(inputs))
    assert error.value.todo == "pip install 'onward[documents]'"


def test_nothing_heavy_is_loaded_until_a_file_needs_it() -> None:
    heavy = ["trafilatura", "lxml", "pypdfium2", "mammoth", "ftfy", "charset_normalizer", "fsspec", "pyarrow"]
    code = (
        "import sys, json\n"
        "import onward.corpus.reading.chunks, onward.corpus.reading.unicode, onward.corpus.reading.whole_files\n"
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(found.stdout) == []
