"""Text that is given to be scored, from any files: as the held-out text of a corpus, without preparing one."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import xxhash

from onward.artifact import fingerprint, make_once
from onward.corpus.documents import WITHOUT_TEXT, Document
from onward.corpus.reading.formats import COMPRESSIONS
from onward.corpus.reading.sources import Inputs, find_inputs, read_source
from onward.errors import UserError
from onward.progress import Progress
from onward.recipe import Source


def given_texts(paths: Sequence[str], cache: Path, progress: Progress) -> dict[str, Path]:
    """Read files, folders or globs (JSONL, Parquet, text, pages) into artifacts like a corpus's held-out text.

    Returns the artifact of each by its name, which is that of the file without its suffixes. Nothing is filtered: every
    document is scored. Raises UserError when a path is not there, or holds something that is no text.
    """
    sources = [find_inputs(Source(path=path)) for path in dict.fromkeys(paths)]
    found: dict[str, Path] = {}
    for inputs in sources:
        name = _name(inputs.source.path)
        if name in found:
            todo = "rename one of the files, or score them one after the other into different --out"
            raise UserError("two texts have one name, which their scores are told apart by", "--text", name, todo=todo)
        found[name] = _read([inputs], name, cache, progress)
    return found


def given_text(name: str, paths: Sequence[str], cache: Path, progress: Progress) -> Path:
    """Read files, folders or globs as one text, as `given_texts` reads each of them; return its artifact."""
    return _read([find_inputs(Source(path=path)) for path in dict.fromkeys(paths)], name, cache, progress)


def _name(path: str) -> str:
    place = Path(path.rstrip("/"))
    while place.suffix.lower() in COMPRESSIONS:
        place = place.with_suffix("")
    return place.with_suffix("").name or "text"


def _read(sources: Sequence[Inputs], name: str, cache: Path, progress: Progress) -> Path:
    facts = [inputs.facts() for inputs in sources]
    made_from = {"method": 1, "inputs": facts[0] if len(facts) == 1 else facts}
    folder = cache / "texts" / fingerprint(made_from)

    def wait() -> None:
        progress.note(f"another process reads {name}: waiting for it")

    make_once(folder, "text", made_from, lambda aside: _write(sources, name, aside, progress), wait)
    return folder


def _write(sources: Sequence[Inputs], name: str, aside: Path, progress: Progress) -> None:
    """Write a text into the folder of its artifact; raises UserError where it has no document."""
    from onward.corpus.tables import HELD_OUT_FILE, HeldOutSpill, write_held_out

    spilled, documents = aside / "spilled", 0
    progress.begin(f"reading {name}", None, "documents")
    with closing(HeldOutSpill(spilled)) as spill:
        for document in (document for inputs in sources for document in _documents(inputs)):
            text = document.text.encode("utf-8", errors="replace")
            # By the text's hash: its front, which a limit of tokens takes, is a sample of all of it.
            order = xxhash.xxh3_64_intdigest(text)
            spill.add(order, (documents, document.id, document.source, document.group, text.decode(), len(text)))
            documents += 1
            progress.advance(documents)
    if not documents:
        where = ", ".join(inputs.source.path for inputs in sources)
        raise UserError("there is no text to score", where, "0 documents")
    write_held_out([spilled], aside / HELD_OUT_FILE)
    spilled.unlink()


def _documents(inputs: Inputs) -> Iterator[Document]:
    for item in read_source(inputs):
        if isinstance(item, Document):
            yield item
        elif item.reason not in WITHOUT_TEXT:
            todo = "mend or remove it: a score of what is left would not be that of the text"
            raise UserError("a text that is to be scored cannot be read", item.where, item.reason, todo=todo)
