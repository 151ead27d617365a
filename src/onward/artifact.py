"""Artifacts: folders that a step writes for the steps after it.

An artifact is complete when its manifest exists. It is built in a folder beside its place, flushed, given its
manifest last, and renamed into place, so a kill at any moment leaves either no artifact or a whole one.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO

import xxhash

from onward.errors import UserError

MANIFEST = "manifest.json"
_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "writing is not permitted",
    errno.EDQUOT: "the disk quota is used up",
    errno.ENOTDIR: "a file stands where a folder is needed",
    errno.EEXIST: "a file stands where a folder is needed",
}


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()
"""Read once: asking means setting it, which files that another thread opens at that moment would feel."""


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what it was made from.

    made_from: flat mapping of every input that determines the content (`corpus.seed`, `tokenizer`, ...).
    files: size in bytes and xxh3-128 of every file, by path relative to the artifact.
    """

    kind: str
    fingerprint: str
    made_from: dict[str, Any]
    files: dict[str, dict[str, Any]]
    created: str


@dataclass(frozen=True)
class Damage:
    """A file of an artifact that is not what the manifest says it is."""

    file: Path
    got: str
    expected: str

    def __str__(self) -> str:
        return f"{self.file}: {self.got}, expected {self.expected}"


@dataclass(frozen=True)
class Folders:
    """Where artifacts live. cache: shared between runs; runs: one folder per run name."""

    cache: Path
    runs: Path

    @staticmethod
    def default(cache: Path | None = None, runs: Path | None = None) -> "Folders":
        """`$ONWARD_CACHE` or ~/.cache/onward, and ./runs, unless given."""
        fallback = Path(os.environ.get("ONWARD_CACHE", "~/.cache/onward")).expanduser()
        return Folders((cache or fallback).absolute(), (runs or Path("runs")).absolute())


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted keys, so that a difference can be named."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def fingerprint(made_from: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the canonical JSON of `made_from`."""
    return sha256(json.dumps(flatten(made_from), sort_keys=True, default=str).encode()).hexdigest()[:16]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a complete artifact, None when there is none; raises UserError when it is damaged."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        return Manifest(**content)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:  # no JSON, no UTF-8, or no manifest
        todo = f"remove {folder} and run again; it will be made anew"
        raise UserError("a manifest is damaged", str(folder / MANIFEST), str(error), todo=todo) from None


def find(
    folder: Path, made_from: Mapping[str, Any], damaged: Callable[[Damage], None] | None = None
) -> Manifest | None:
    """Return the manifest when `folder` holds the artifact made from exactly these inputs, None when it holds none.

    Raises UserError, naming each input that changed, when it holds one made from others, and when a file is
    missing or has another size than the manifest says. damaged: is told of such a file instead, and the artifact
    counts as absent; checksums are compared too.
    """
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        if damaged is None:
            raise
        damaged(Damage(folder / MANIFEST, str(error.got), "a manifest"))
        return None
    if manifest is None:
        return None
    if damaged is not None and fingerprint(manifest.made_from) != manifest.fingerprint:
        damaged(Damage(folder / MANIFEST, "another fingerprint than that of its inputs", manifest.fingerprint))
        return None
    _require_same(folder, manifest, made_from)
    damage = find_damage(folder, manifest, checksums=damaged is not None)
    if damage is None:
        return manifest
    if damaged is None:
        todo = f"remove {folder} and run again; it will be made anew"
        raise UserError(f"this {manifest.kind} is damaged", str(damage.file), damage.got, damage.expected, todo)
    damaged(damage)
    return None


def _require_same(folder: Path, manifest: Manifest, made_from: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(flatten(made_from), default=str))
    # What is null may be absent: an input that came with a later version, and is not used.
    changed = sorted(k for k in wanted | manifest.made_from if wanted.get(k) != manifest.made_from.get(k))
    if not changed:
        return
    rows = [f"{k}: was {manifest.made_from.get(k)!r}, is {wanted.get(k)!r}" for k in changed]
    raise UserError(
        f"this {manifest.kind} was made from something else",
        str(folder),
        "; ".join(rows),
        todo="restore the old value, choose another run name, or remove the folder to start anew",
    )


def find_damage(folder: Path, manifest: Manifest, checksums: bool) -> Damage | None:
    """Return the first file that is missing or has another size, or another xxh3, than the manifest says."""
    for name, facts in manifest.files.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != facts.get("bytes"):
            got = "missing" if size is None else f"{size} bytes"
            return Damage(folder / name, got, f"{facts.get('bytes')} bytes")
    for name, facts in manifest.files.items() if checksums else ():
        try:
            found = file_hash(folder / name)
        except OSError as error:  # a bad block of the disk
            found = str(error)
        if found != facts.get("xxh3"):
            return Damage(folder / name, f"xxh3 {found}", f"xxh3 {facts.get('xxh3')}")
    return None


def building_place(folder: Path) -> Path:
    """Return where an artifact stands until it is complete."""
    return folder.parent / f".{folder.name}.building"


@contextmanager
def building(
    folder: Path, kind: str, made_from: Mapping[str, Any], keep_partial: bool = False, is_locked: bool = False
) -> Iterator[Path]:
    """Give a folder to build in; on a clean exit make it the artifact at `folder`, atomically.

    keep_partial: leave what an interrupted build wrote, so that the next one may go on from it (the builder must
    itself know what is whole). A lock keeps two processes from building the same artifact at once; is_locked: the
    caller has it already.
    """
    aside = building_place(folder)
    with nullcontext() if is_locked else locked(folder):
        if aside.exists() and not keep_partial:
            shutil.rmtree(aside)
        aside.mkdir(parents=True, exist_ok=True)
        with disk_errors(folder):
            yield aside
            _complete(aside, folder, kind, made_from)


def make_once(
    folder: Path,
    kind: str,
    made_from: Mapping[str, Any],
    make: Callable[[Path], None],
    waiting: Callable[[], None],
    keep_partial: bool = False,
) -> None:
    """Have `make` write the artifact into the folder it is given, unless it is there: what several runs share.

    waiting: is called when another process is making the same; then its end is waited for, and what it has made is
    taken. keep_partial: as of `building`. Raises UserError as `find`.
    """
    if find(folder, made_from) is not None:
        return
    with locked(folder, waiting):
        if find(folder, made_from) is None:
            with building(folder, kind, made_from, keep_partial, is_locked=True) as aside:
                make(aside)


def _complete(aside: Path, folder: Path, kind: str, made_from: Mapping[str, Any]) -> None:
    # A kill may have come while the manifest was written, or between that and the renaming.
    (aside / MANIFEST).unlink(missing_ok=True)
    for left in list(aside.rglob(".*.part")):
        left.unlink()
    files = {}
    for path in sorted(p for p in aside.rglob("*") if p.is_file()):
        path.chmod(0o644 & ~_UMASK)  # safetensors writes for its owner alone; a released model is to be read
        files[path.relative_to(aside).as_posix()] = {"bytes": path.stat().st_size, "xxh3": file_hash(path)}
        sync(path)
    flat = json.loads(json.dumps(flatten(made_from), default=str))
    created = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(kind, fingerprint(made_from), flat, files, created)
    write_json(aside / MANIFEST, asdict(manifest))
    for place in (*(p for p in aside.rglob("*") if p.is_dir()), aside):
        sync(place)
    remove(folder)  # an older one that was not complete, or was found damaged
    aside.rename(folder)
    sync(folder.parent)


def remove(folder: Path) -> None:
    """Remove an artifact, complete or not, if it is there; killed in the middle, it leaves none that looks complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically: a reader sees the old file or the new one; one that says the same is left alone."""
    if path.exists() and path.read_bytes() == text.encode():
        return
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(text.encode())
    sync(aside)
    aside.replace(path)


def file_hash(path: Path) -> str:
    """Return the xxh3-128 of a file's content, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn a full or read-only disk, or a file in the way, into a UserError that says where and how much is left."""
    try:
        yield
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else _number_within(error)
        if number not in _DISK_ERRORS:
            raise
        where = Path(getattr(error, "filename", None) or folder)
        existing = next(p for p in (where, *where.parents) if p.exists())
        if number in (errno.ENOTDIR, errno.EEXIST):
            todo = "remove it or choose another place with --cache and --runs"
            raise UserError(_DISK_ERRORS[number], str(existing), todo=todo) from error
        free = shutil.disk_usage(existing).free
        todo = "free some space or choose another place with --cache and --runs; finished work is kept"
        raise UserError(_DISK_ERRORS[number], str(where), f"{free / 1e6:.0f} MB free", todo=todo) from error


def _number_within(error: Exception) -> int | None:
    """Libraries written in Rust (safetensors) tell the number of a system's error only in their message."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


@contextmanager
def locked(folder: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Keep other processes from making `folder` at the same time; raises UserError when one is at it already.

    waiting: is called when there is one, and then its end is waited for; None: no waiting.
    """
    path = folder.parent / f".{folder.name}.lock"
    file = _lock(path, folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if file is None and waiting is not None:
        waiting()
        while file is None:  # a third one may have come first
            file = _lock(path, folder, fcntl.LOCK_EX)
    if file is None:
        todo = "wait for it to end, or use another run name"
        raise UserError("another process is making this artifact", str(folder), todo=todo)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path, folder: Path, how: int) -> TextIO | None:
    """Lock a file, made if need be; None when another process has it, or had it and removed it meanwhile."""
    with disk_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "w")
    try:
        fcntl.flock(file, how)
        # The one who held it before may have removed the file between our opening and our locking it.
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def sync(path: Path) -> None:
    """Have the system write a file's content, or a folder's names, to the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
