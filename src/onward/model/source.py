"""Find the files of a base model: the packaged one, a local folder, or the Hugging Face Hub."""

import fnmatch
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path

from onward.errors import UserError

TINY = "onward/tiny"
_NOT_THE_MODEL = ("manifest.json", "card.json", "blend.json")
_WEIGHTS = {"model.safetensors": "*.safetensors", "pytorch_model.bin": "pytorch_model*.bin"}
"""The usual names of weights, the safer first, and the files that hold them in parts."""
_FILES = ("*.json", "*.model", "*.txt", "README.md")


@dataclass(frozen=True)
class Between:
    """That a model's weights lie on the line from another model (a folder) to its own files; share: how far along."""

    base: Path
    share: float


@dataclass(frozen=True)
class ModelSource:
    """A model's files on this machine.

    name: as the recipe writes it. folder: plain Hugging Face files. revision: Hub commit, None for local files.
    license: from the model card's metadata. fingerprint: changes when the weights, the configuration or the
    tokenizer change. between: the weights are a blend, made when the model is loaded (`blend.blended`); all but the
    weights is the folder's.
    """

    name: str
    folder: Path
    revision: str | None
    license: str | None
    fingerprint: str
    between: Between | None = None


def resolve(base: str, revision: str | None = None) -> ModelSource:
    """Return the local files of `onward/tiny`, a folder, or a Hub id (downloaded to the Hub's own cache).

    Only configuration, tokenizer and weights are fetched; no code. A path into a folder that is here is no Hub id.
    Raises UserError when there is no such model, or the network or a permission is missing.
    """
    if base == TINY:
        return describe(Path(str(resources.files("onward") / "model" / "tiny")), base)
    folder = Path(base).expanduser()
    if folder.is_dir():
        return describe(folder.absolute(), base)
    expected, what = "onward/tiny, a folder, or a Hub id (org/name)", "there is no such model folder"
    if base.startswith((".", "/", "~", "onward/")) or base.endswith("/") or base.count("/") != 1:
        raise UserError(what, "model.base", base, expected)
    if folder.parent.is_dir() and not _is_downloaded(base, revision):
        todo = f"check the name: {folder.parent} is a folder here, and there is no {folder.name} in it; for the model "
        raise UserError(what, "model.base", base, expected, f"{todo}{base} of the Hub start from another folder")
    return _from_hub(base, revision)


def describe(folder: Path, name: str | None = None, revision: str | None = None) -> ModelSource:
    """Return the ModelSource of a folder; raises UserError when it holds no (whole) config.json."""
    if not (folder / "config.json").is_file():
        raise UserError("this folder holds no model", str(folder), expected="config.json, weights and tokenizer files")
    try:
        json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        todo = "restore or download the file again"
        raise UserError(
            "the model's configuration is damaged", str(folder / "config.json"), str(error), "JSON", todo
        ) from None
    return ModelSource(name or str(folder), folder, revision, _license(folder), _fingerprint(folder))


def local_context_tokens(base: str) -> int | None:
    """Return the context length of a packaged or local model; None when it is on the Hub or does not say."""
    if base != TINY and not Path(base).expanduser().is_dir():
        return None
    config = json.loads((resolve(base).folder / "config.json").read_bytes())
    length = config.get("text_config", config).get("max_position_embeddings")
    return None if length is None else int(length)


def _is_downloaded(base: str, revision: str | None) -> bool:
    """Whether the Hub's cache has a model, so that a folder named like its owner does not stand in its way."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(base, "config.json", revision=revision), str)


def _from_hub(base: str, revision: str | None) -> ModelSource:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    is_offline = os.environ.get("HF_HUB_OFFLINE", "0") not in ("0", "")
    todo = "check the name; for a private or gated model accept its licence on the Hub and run `hf auth login`"
    try:
        with _only_our_voice():
            folder = _download(base, revision, is_offline)
    except GatedRepoError as error:
        raise UserError("this model's licence must be accepted first", "model.base", base, todo=todo) from error
    except RepositoryNotFoundError as error:
        raise UserError("there is no such model on the Hub", "model.base", base, todo=todo) from error
    except Exception as error:  # the Hub's client lets its transport's errors through, which have no common root
        raise _not_downloaded(base, is_offline, error) from error
    path = Path(folder)
    return describe(path, base, path.name)  # the snapshot folder is named after its commit


def _download(base: str, revision: str | None, is_offline: bool) -> str:
    """Return the folder of a model's snapshot; without the network one that is here already."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    if is_offline:
        return snapshot_download(base, revision=revision, local_files_only=True)
    try:
        weights = weights_among(HfApi().list_repo_files(base, revision=revision))
        return snapshot_download(base, revision=revision, allow_patterns=[*_FILES, weights])
    except RepositoryNotFoundError:
        raise
    except Exception as error:
        try:  # a run whose model is here already goes on
            return snapshot_download(base, revision=revision, local_files_only=True)
        except Exception:
            raise error from None


def _not_downloaded(base: str, is_offline: bool, error: Exception) -> UserError:
    """Say why a model did not come: forbidden, out of reach, or something else in the words of the Hub's client."""
    place = "model.base"
    if is_offline:
        todo = "unset HF_HUB_OFFLINE, or write the path of a local folder in model.base"
        return UserError("this model is not here, and HF_HUB_OFFLINE forbids to download it", place, base, todo=todo)
    reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    # Answers of the Hub (HfHubHTTPError) and trouble with the disk are OSErrors; a transport's errors are not.
    if isinstance(error, ConnectionError | TimeoutError) or not isinstance(error, OSError | ValueError):
        what, todo = "the Hugging Face Hub cannot be reached", "check the network and its proxy (HTTPS_PROXY)"
    else:
        what, todo = "the model cannot be downloaded", "check the name, the revision and the room on the disk"
    return UserError(what, place, f"{base} ({reason})", todo=f"{todo}, or write the path of a local folder there")


def weights_among(names: Sequence[str]) -> str:
    """Return the pattern of the files to fetch for `weight_files`.

    A pickled state dict is fetched only when there is nothing safer, and read with weights_only.
    """
    usual = (kind for name, kind in _WEIGHTS.items() if {name, f"{name}.index.json"} & set(names))
    any_of = (kind for kind in _WEIGHTS.values() if fnmatch.filter(names, kind))
    return next(usual, None) or next(any_of, "*.safetensors")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a model's weights are read from: those that transformers opens, in its order of preference.

    Folders of the Hub hold others beside them, of the same names for tensors (an average) or of their own
    (`consolidated.safetensors`). Where neither the usual names nor an index is there, all files of one kind count.
    Raises UserError when there are none, or the index is damaged or names a file that is missing.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _indexed(folder / f"{name}.index.json")
    for pattern in _WEIGHTS.values():
        if found := sorted(folder.glob(pattern)):
            return found
    raise UserError("there are no weights", str(folder), expected="model.safetensors or pytorch_model.bin")


def _indexed(index: Path) -> list[Path]:
    todo = "restore or download the file again"
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise UserError("the index of the model's weights is damaged", str(index), got, todo=todo) from error
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError("a file of the model's weights is missing", str(index.parent / missing[0]), todo=todo)
    return [index.parent / name for name in names]


@contextmanager
def _only_our_voice() -> Iterator[None]:
    """Silence what the Hub's client says of each attempt; the error that follows says it once."""
    from huggingface_hub.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)


def _license(folder: Path) -> str | None:
    """The `license:` of the model card's metadata block."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    head = card.read_text(encoding="utf-8", errors="replace")[:4000]
    if not head.startswith("---"):
        return None
    rows = head.split("---")[1].splitlines()
    return next((row.partition(":")[2].strip() for row in rows if row.startswith("license:")), None)


def _fingerprint(folder: Path) -> str:
    """Hash of the configuration and tokenizer, and of each weight file's content (xxh3; a GB takes under a second)."""
    names = sorted(p.name for p in folder.iterdir() if p.suffix in (".json", ".model", ".safetensors", ".bin"))
    parts = {name: _hash_of(folder / name) for name in names if name not in _NOT_THE_MODEL}
    return sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _hash_of(path: Path) -> str:
    facts = path.stat()
    return _hash_at(path, facts.st_size, facts.st_mtime_ns)


@cache
def _hash_at(path: Path, size_bytes: int, changed_ns: int) -> str:
    """The content's hash, computed once per process as long as size and time of change stay the same."""
    from onward.artifact import file_hash

    return file_hash(path)
