"""Sources: the paths of a recipe become files to read, each with what tells that it changed."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onward.corpus.documents import Item
from onward.corpus.reading import builtin
from onward.corpus.reading.chunks import items_in, read_chunks
from onward.corpus.reading.formats import SUFFIXES, require_packages, suffix_of
from onward.corpus.reading.inputs import InputFile, Inputs
from onward.corpus.reading.remote import patiently, pinned, without_commit
from onward.errors import UserError, nearest
from onward.recipe import Source
from onward.recipe.proxies import find_proxy

__all__ = ["InputFile", "Inputs", "find_inputs", "read_source"]

_VERSION_KEYS = ("ETag", "etag", "blob_id", "sha256", "mtime", "LastModified", "last_modified", "created")


def find_inputs(source: Source) -> Inputs:
    """List the files of a source; raises UserError when there are none, or the builtin is unknown."""
    if source.path.startswith(builtin.PREFIX):
        return _builtin(source)
    proxy = find_proxy(source.path)
    path = source.path if proxy is None else proxy.path
    listed = _remote(path) if "://" in path else _local(path)
    files = tuple(file for file in listed if suffix_of(file.path))
    skipped = tuple(file.path for file in listed if not suffix_of(file.path))
    if not listed:
        raise UserError("this folder is empty", source.path, expected=f"files: {SUFFIXES}")
    if not files:
        suffixes = sorted({"".join(Path(path).suffixes[-2:]) or "no suffix" for path in skipped})
        got = f"{len(skipped)} file{'s' * (len(skipped) > 1)} ({', '.join(suffixes[:5])})"
        raise UserError("no file here can be read as text", source.path, got, SUFFIXES)
    require_packages([file.path for file in files])
    return Inputs(source, files, skipped)


def read_source(inputs: Inputs) -> Iterator[Item]:
    """Yield the documents of a source one after the other, in this process."""
    for chunk, _ in read_chunks(inputs):
        yield from items_in(chunk, inputs.fields)


def _builtin(source: Source) -> Inputs:
    if source.path == builtin.PYTHON_DOCS:
        return Inputs(source, ())
    if source.path == builtin.GENERAL_TEXT:
        return Inputs(source, (_describe(str(builtin.general_text())),))
    known = [builtin.PYTHON_DOCS, builtin.GENERAL_TEXT]
    close = nearest(source.path, known)
    todo = f"did you mean {close}?" if close else None
    raise UserError("there is no such builtin corpus", "path", source.path, " or ".join(known), todo)


def _local(path: str) -> list[InputFile]:
    """Files of a file, folder or glob, sorted by path; hidden files and folders are passed over."""
    place = Path(path).expanduser()
    if place.is_file():
        return [_describe(path)]
    if place.is_dir():
        return [_describe(inner) for inner in _walk(path)]
    matches = sorted(glob.glob(str(place), recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
    if not matches:
        where = f"{path} (seen from {Path.cwd()})" if not place.is_absolute() else path
        todo = "check the path: a file, a folder or a glob; relative paths start at the working directory"
        raise UserError("there is no such file, folder or match", where, todo=todo)
    found = (inner for match in matches for inner in (_walk(match) if Path(match).is_dir() else [match]))
    return [_describe(inner) for inner in dict.fromkeys(found)]


def _walk(folder: str) -> Iterator[str]:
    start = Path(folder).expanduser()
    found = []
    for parent, folders, names in os.walk(start):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = (Path(parent) / name for name in names if not name.startswith("."))
        # A broken link or a socket is nothing to read, and stat() of it would fail.
        found += [path.relative_to(start).as_posix() for path in inside if path.is_file()]
    yield from (f"{folder.rstrip('/')}/{name}" for name in sorted(found))


def _describe(path: str) -> InputFile:
    facts = Path(path).expanduser().stat()
    return InputFile(path, facts.st_size, str(facts.st_mtime_ns))


def _remote(url: str) -> list[InputFile]:
    """Files behind an fsspec URL (`hf://datasets/...`, `s3://...`, `https://...`): a file, a folder or a glob."""
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        at = patiently(lambda: pinned(filesystem, path), url)
        found = patiently(lambda: _list_remote(filesystem, at), url)
    except ImportError as error:
        raise UserError("this kind of path needs one more package", url, todo=str(error)) from None
    except (FileNotFoundError, PermissionError, ValueError) as error:
        todo = "check the address; private and gated data sets need a login (for the Hub: `hf auth login`)"
        raise UserError("there is no such remote file or folder", url, str(error) or None, todo=todo) from None
    if not found:
        raise UserError("there is no such remote file or folder", url)
    visible = {name: facts for name, facts in found.items() if "/." not in name}
    return [_describe_remote(filesystem, name, facts) for name, facts in sorted(visible.items())]


def _list_remote(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    if glob.has_magic(path):
        found: dict[str, dict[str, Any]] = filesystem.glob(path, detail=True)
        return {name: facts for name, facts in found.items() if facts["type"] == "file"}
    facts: dict[str, Any] = filesystem.info(path)
    if facts["type"] == "file":
        return {path: facts}
    inside: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    return inside


def _describe_remote(filesystem: Any, name: str, facts: dict[str, Any]) -> InputFile:
    version = next((str(facts[key]) for key in _VERSION_KEYS if facts.get(key) is not None), None)
    address = filesystem.unstrip_protocol(name)
    # The commit stays out of the path and the version, which name the content: another commit of the data set that
    # left this file alone does not make another corpus.
    path = without_commit(address)
    return InputFile(path, facts.get("size"), version, None if path == address else address)
