"""Formats: which suffix is read how, and what must be installed for it."""

from importlib.util import find_spec
from pathlib import PurePosixPath

from onward.errors import UserError

RECORDS = (".jsonl", ".ndjson", ".json")
TEXTS = (".txt", ".md")
TABLES = (".parquet",)
PAGES = (".html", ".htm", ".xhtml")
PACKED = (".pdf", ".docx", ".epub")
COMPRESSIONS = (".gz", ".zst", ".zstd")
SUFFIXES = ".jsonl .ndjson .json .txt .md (each also .gz or .zst), .parquet .html .htm .xhtml .pdf .docx .epub"

MAXIMUM_FILE_BYTES = 128_000_000
"""Longer PDF, DOCX and EPUB files are not read, nor those of which more would be unpacked."""
MAXIMUM_PAGE_BYTES = 16_000_000
"""Longer HTML is not read: its tree takes some twenty times its size."""
_EXTRACTION_WEIGHT = 8
"""A page costs a worker so many times what a text of its size costs; chunks of pages are smaller by that."""
PACKAGES = {
    ".html": "trafilatura",
    ".htm": "trafilatura",
    ".xhtml": "trafilatura",
    ".epub": "trafilatura",
    ".pdf": "pypdfium2",
    ".docx": "mammoth",
}
"""What extracts the text of a format."""


def suffix_of(path: str) -> str:
    """Return the suffix that decides the reader, compression left aside; '' when no reader knows it."""
    name = PurePosixPath(path.lower())
    if name.suffix in COMPRESSIONS:
        inner = PurePosixPath(name.stem).suffix
        return inner if inner in (*RECORDS, *TEXTS) else ""
    return name.suffix if name.suffix in (*RECORDS, *TEXTS, *TABLES, *PAGES, *PACKED) else ""


def maximum_bytes(suffix: str) -> int:
    """Return how long a file that is read as a whole may be."""
    return MAXIMUM_PAGE_BYTES if suffix in PAGES else MAXIMUM_FILE_BYTES


def weight_of(path: str, size_bytes: int) -> int:
    """Return the bytes of text whose examination costs as much as this file's."""
    return size_bytes * (_EXTRACTION_WEIGHT if suffix_of(path) in PAGES else 1)


def require_packages(paths: list[str]) -> None:
    """Raise UserError when one of these files needs a package that is not installed."""
    for path in paths:
        if (package := PACKAGES.get(suffix_of(path))) and find_spec(package) is None:
            todo = "pip install 'onward[documents]', or leave such files out by a glob, e.g. `path: folder/*.txt`"
            raise UserError(f"{suffix_of(path)} files need the package {package}", path, todo=todo)
