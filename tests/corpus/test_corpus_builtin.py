import sys

from onward.corpus.documents import Document
from onward.corpus.reading import builtin
from onward.corpus.reading.builtin import python_docs
from onward.corpus.reading.sources import find_inputs, read_source
from onward.recipe import Source


def test_the_python_documentation_is_large_ordered_and_imports_nothing() -> None:
    before = set(sys.modules)
    documents = list(python_docs())
    assert {name for name in set(sys.modules) - before if not name.startswith("pydoc_data")} == set()
    names = [document.id for document in documents]
    assert len(set(names)) == len(names) > 250
    assert sum(len(document.text) for document in documents) > 1_000_000
    assert all(document.text.strip() for document in documents)
    by_name = dict(zip(names, documents, strict=True))
    assert "with" in by_name["python-docs/topics/with"].text
    module = by_name["python-docs/textwrap"].text
    assert module.startswith("textwrap module\n\nText wrapping and filling.")
    assert "textwrap.dedent(text)\n\nRemove any common leading whitespace" in module
    assert "class textwrap.TextWrapper" in module
    assert not any("test" in name.split(".")[0] and name.startswith("python-docs/test") for name in names)


def test_the_builtins_are_sources() -> None:
    inputs = find_inputs(Source(path=builtin.PYTHON_DOCS))
    assert list(inputs.facts()) == [builtin.PYTHON_DOCS]
    assert isinstance(next(iter(read_source(inputs))), Document)
    general = list(read_source(find_inputs(Source(path=builtin.GENERAL_TEXT))))
    assert general
    assert all(isinstance(item, Document) and item.source == builtin.GENERAL_TEXT for item in general)
    assert list(find_inputs(Source(path=builtin.GENERAL_TEXT)).facts()) == [builtin.GENERAL_TEXT]
