"""Everything needed to go on exactly: fp32 weights, optimizer moments, the step, the random state. No pickle.

A checkpoint is an artifact; its state/ folder holds two safetensors files and one JSON file.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from onward.artifact import building, find, read_manifest, write_json
from onward.model.load import export_model

_STATE, _MODEL = "state", "model"


@dataclass(frozen=True)
class Cursor:
    """Where a run stands: updates done and tokens read (padding included)."""

    step: int
    tokens: int


def save(
    folder: Path,
    cursor: Cursor,
    model: Any,
    optimizer: torch.optim.Optimizer,
    made_from: Mapping[str, Any],
    export: tuple[Path, torch.dtype] | None = None,
) -> None:
    """Write a checkpoint atomically. export: base folder and dtype; also write a releasable model/ folder."""
    with building(folder, "checkpoint", made_from) as aside:
        state = aside / _STATE
        state.mkdir()
        weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
        save_file(weights, state / "weights.safetensors")
        save_file(_moments(model, optimizer), state / "optimizer.safetensors")
        write_json(state / "cursor.json", {"step": cursor.step, "tokens": cursor.tokens})
        if export is not None:
            export_model(model, export[0], aside / _MODEL, export[1])


def load(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> Cursor:
    """Restore weights, moments and random state in place; return where the run stands."""
    state = folder / _STATE
    weights = load_file(state / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    moments = load_file(state / "optimizer.safetensors")
    torch.set_rng_state(moments.pop("random_state"))
    for name, parameter in model.named_parameters():
        if f"{name}:step" in moments:
            optimizer.state[parameter] = {
                kind: moments[f"{name}:{kind}"].to(parameter.device) for kind in ("step", "exp_avg", "exp_avg_sq")
            }
    content = json.loads((state / "cursor.json").read_bytes())
    return Cursor(content["step"], content["tokens"])


def _moments(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {"random_state": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        for kind, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}:{kind}"] = value.detach().contiguous()
    return tensors


def newest(folder: Path, made_at: Callable[[int], Mapping[str, Any]], before: int) -> Path | None:
    """Return the complete checkpoint with the most steps, but fewer than `before`, in `folder`, or None.

    Raises UserError, naming the field, when it was made from other inputs than `made_at(step)`.
    """
    steps = {}
    for path in folder.glob("*/manifest.json"):
        manifest = read_manifest(path.parent)
        if manifest is not None and manifest.kind == "checkpoint" and not path.parent.name.startswith("."):
            steps[path.parent] = int(manifest.made_from["step"])
    steps = {path: step for path, step in steps.items() if step < before}
    if not steps:
        return None
    best = max(steps, key=lambda path: (steps[path], path.name))
    find(best, made_at(steps[best]))
    return best


def prune(folder: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep` resumable states (`step-*`) up to `step`; stage ends (`tokens-*`) stay.

    Later states stay too: while an earlier stage is made anew they are not this session's.
    """
    states = sorted(folder.glob("step-*"))
    complete = [p for p in states if (p / "manifest.json").exists() and int(p.name.removeprefix("step-")) <= step]
    for path in complete[:-keep]:
        # The manifest goes first: a folder half removed must not look complete.
        (path / "manifest.json").unlink()
    for path in states:  # those of a removal that was killed too
        if not (path / "manifest.json").exists():
            shutil.rmtree(path)
