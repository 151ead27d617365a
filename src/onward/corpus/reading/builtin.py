"""Corpora that every installation has: the running Python's own documentation, and a short general text."""

import ast
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from onward.corpus.documents import Document

PREFIX = "builtin:"
PYTHON_DOCS = "builtin:python-docs"
GENERAL_TEXT = "builtin:general-text"

_NOT_LIBRARY = {"site-packages", "dist-packages"}
_NOT_DOCUMENTED = {"test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo"}
"""Folders with tests, tables and applications instead of interfaces."""

_Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def general_text() -> Path:
    """Return the packaged general text (JSONL with `id` and `text`), written for this project."""
    return Path(str(resources.files("onward.corpus.reading") / "general_text.jsonl"))


def python_docs() -> Iterator[Document]:
    """Yield the language reference's topics, then one document per public module of the standard library.

    The modules are parsed, never imported, so nothing runs; the order is that of their names.
    """
    for topic, page in sorted(_topics().items()):
        yield Document(f"python-docs/topics/{topic}", page.strip(), PYTHON_DOCS)
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(_modules(library)):
        name = ".".join(path.relative_to(library).with_suffix("").parts).removesuffix(".__init__")
        if text := _module_text(path, name):
            yield Document(f"python-docs/{name}", text, PYTHON_DOCS)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data import topics
    except ImportError:  # some systems package it apart from the interpreter
        return {}
    return dict(topics.topics)


def _modules(library: Path) -> Iterator[Path]:
    for path in library.rglob("*.py"):
        *folders, name = path.relative_to(library).parts
        inner = any(part.startswith("_") or part in _NOT_LIBRARY | _NOT_DOCUMENTED for part in folders)
        if not inner and (not name.startswith("_") or (folders and name == "__init__.py")):
            yield path


def _module_text(path: Path, name: str) -> str | None:
    """Return a module's docstring, then name, signature and docstring of its public classes and functions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in string literals are none of the reader's business
            module = ast.parse(path.read_bytes())
    except SyntaxError:  # templates and deliberately broken files
        return None
    summary = ast.get_docstring(module)
    parts = [f"{name} module\n\n{summary}"] if summary else []
    parts += _definitions(module.body, f"{name}.")
    return "\n\n".join(parts) if parts else None


def _definitions(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    for node in body:
        if not isinstance(node, _Definition) or node.name.startswith("_"):
            continue
        if docstring := ast.get_docstring(node):
            yield f"{_signature(node, prefix)}\n\n{docstring}"
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, f"{prefix}{node.name}.")


def _signature(node: _Definition, prefix: str) -> str:
    if isinstance(node, ast.ClassDef):
        parents = ", ".join(map(ast.unparse, node.bases))
        return f"class {prefix}{node.name}" + (f"({parents})" if parents else "")
    return f"{prefix}{node.name}({ast.unparse(node.args)})"
