"""A whole run so small that it takes seconds: a random model, two pages of text, two stages."""

import json
import random
from pathlib import Path
from typing import Any

import xxhash
from safetensors.numpy import load_file

from onward.artifact import Folders, file_hash
from onward.recipe import Recipe, recipe_from_mapping
from synthetic import write_model

WORDS = ("river", "mill", "child", "water", "wheel", "evening", "letter", "road", "stone", "bird", "field", "lamp")


def write_texts(path: Path, documents: int, seed: int, lines: int = 4) -> Path:
    """JSON lines of different short texts that every quality rule lets pass."""
    chosen = random.Random(seed)
    rows = []
    for number in range(documents):
        text = "\n".join(" ".join(chosen.choices(WORDS, k=9)) + f" {number}." for _ in range(lines))
        rows.append(json.dumps({"id": f"{path.stem}-{number}", "text": text}))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def content(place: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of the run, as a mapping; changes replace whole sections' keys (`training__stages=[...]`)."""
    # One byte is one token here, which the rule against text spelt out byte by byte would drop.
    text = {"quality": "none", "minimum_bytes_per_token": None, "held_out": {"share": "20%"}}
    recipe: dict[str, Any] = {
        "name": "small",
        "seed": 5,
        "model": {"base": str(place / "model")},
        "corpus": {"sources": [{"path": str(place / "domain.jsonl")}], **text},
        "general": {"sources": [{"path": str(place / "general.jsonl")}], **text},
        "training": {
            "stages": [1920, 3840],
            "sequence_tokens": 48,
            "batch_tokens": 480,
            "optimizer": {"learning_rate": 1e-2},
            "forgetting": {"replay": "10%"},
            "precision": "fp32",
            "checkpoint_tokens": 960,
        },
        "evaluation": {"tasks": [], "held_out_tokens": 2000, "resamples": 100},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        section = recipe
        for parent in parents:
            section = section[parent]
        section[last] = value
    return recipe


def write_inputs(place: Path) -> Path:
    """Model, domain text and general text of the run."""
    place.mkdir(parents=True, exist_ok=True)
    write_model(place / "model")
    write_texts(place / "domain.jsonl", 60, seed=1)
    write_texts(place / "general.jsonl", 30, seed=2)
    return place


def recipe(place: Path, **changes: Any) -> Recipe:
    return recipe_from_mapping(content(place, **changes))


def folders(place: Path) -> Folders:
    return Folders(place / "cache", place / "runs")


def content_hash(path: Path) -> str:
    """Hash of a file; of safetensors that of names and tensors: their header comes in another order every time."""
    if path.suffix != ".safetensors":
        return file_hash(path)
    tensors = load_file(path)
    digest = xxhash.xxh3_128()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()
