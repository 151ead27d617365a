"""A corpus to prepare: its inputs listed, its artifact named, before any document is read."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onward.artifact import Folders, fingerprint, flatten, read_manifest
from onward.corpus.reading.formats import PACKAGES, suffix_of
from onward.corpus.reading.inputs import Inputs
from onward.corpus.reading.sources import find_inputs
from onward.errors import UserError
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus, Duplicates, section_of
from onward.tasks.questions import Question

FORMAT = 2
"""Version of what this step writes; a new one makes old artifacts not match."""


@dataclass(frozen=True)
class Items:
    """The benchmark items that training text must not hold. facts: what they depend on. load: reads them, when due."""

    facts: Mapping[str, Any]
    load: Callable[[], Mapping[str, Sequence[Question]]]


@dataclass(frozen=True)
class Preparation:
    """One corpus to prepare, its inputs listed: where it will stand, and what it will be made from.

    section: the recipe's name of the corpus, for messages.
    """

    corpus: Corpus
    tokenizer: LoadedTokenizer
    sequence_tokens: int
    wanted_tokens: int | None
    seed: int
    section: str
    training: tuple[Inputs, ...]
    held_out: tuple[Inputs, ...]
    items: Items | None
    made_from: Mapping[str, Any]
    folder: Path


def plan_preparation(
    corpus: Corpus,
    *,
    tokenizer: LoadedTokenizer,
    sequence_tokens: int,
    wanted_tokens: int | None,
    seed: int,
    folders: Folders,
    items: Items | None = None,
    model_fingerprint: str | None = None,
    label: str = "domain",
) -> Preparation:
    """List the inputs of a corpus and name its artifact, without reading a document.

    The arguments are those of `prepare`. Raises UserError for sources that are not there.
    """
    training = tuple(map(find_inputs, corpus.sources))
    held_out = tuple(map(find_inputs, corpus.held_out.sources))
    wanted = corpus.tokens or wanted_tokens
    looked_for = items if corpus.contamination is not None else None
    made_from: dict[str, Any] = {
        "format": FORMAT,
        "corpus": corpus.model_dump(mode="json", exclude=_left_out(corpus)),
        "tokenizer": tokenizer.fingerprint,
        "sequence_tokens": sequence_tokens,
        "wanted_tokens": wanted,
        "inputs": {path: facts for inputs in training for path, facts in inputs.facts().items()},
        "held_out_inputs": {path: facts for inputs in held_out for path, facts in inputs.facts().items()},
    }
    made_from["read_by"] = _readers((*training, *held_out), corpus)
    if looked_for is not None:
        made_from["items"] = looked_for.facts
    if corpus.duplicates is not None and corpus.duplicates.against:
        made_from["against"] = [_fingerprint_of(Path(path), corpus.duplicates) for path in corpus.duplicates.against]
    if corpus.self_replay is not None:
        assert model_fingerprint is not None, "sampled text depends on the model"
        made_from |= {"model": model_fingerprint, "seed": seed}
    return Preparation(
        corpus,
        tokenizer,
        sequence_tokens,
        wanted,
        seed,
        section_of(label),
        training,
        held_out,
        looked_for,
        made_from,
        folders.cache / "corpora" / fingerprint(made_from),
    )


def _left_out(corpus: Corpus) -> dict[str, Any]:
    """Return the knobs that are named otherwise, or not used: lengths that are not drawn need no name of their own."""
    left_out: dict[str, Any] = {"tokens": True, "duplicates": {"against"}, "contamination": {"tasks"}}
    if corpus.self_replay is not None and corpus.self_replay.median_tokens is None:
        left_out["self_replay"] = {"median_tokens", "length_spread"}
    return left_out


def _readers(inputs: Sequence[Inputs], corpus: Corpus) -> dict[str, str]:
    """Return the versions of what turns files into text, as far as these inputs need them.

    Another version of a library that extracts text may extract another text.
    """
    suffixes = {suffix_of(file.path) for each in inputs for file in each.files}
    packages = {package for suffix, package in PACKAGES.items() if suffix in suffixes}
    if corpus.unicode == "repair":
        packages.add("ftfy")
    return {"unicode": unicodedata.unidata_version, **{name: version(name) for name in sorted(packages)}}


def _fingerprint_of(folder: Path, duplicates: Duplicates) -> str:
    """Return the fingerprint of another corpus; raises UserError when its documents cannot be compared with ours."""
    manifest = read_manifest(folder)
    if manifest is None:
        todo = "prepare it first, or remove it from duplicates.against"
        raise UserError("this is not a prepared corpus", str(folder), todo=todo)
    prefix = "corpus.duplicates.near"
    theirs = {name: value for name, value in manifest.made_from.items() if name.startswith(prefix)}
    near = {} if duplicates.near is None else duplicates.near.model_dump(mode="json")
    ours = flatten({prefix: near}) if near else {prefix: None}
    if theirs != ours:
        todo = "prepare both with the same duplicates.near"
        got, expected = (", ".join(f"{k.removeprefix(prefix)[1:]} {v}" for k, v in d.items()) for d in (ours, theirs))
        raise UserError("this corpus was compared in another way", str(folder), got, expected, todo)
    return manifest.fingerprint
