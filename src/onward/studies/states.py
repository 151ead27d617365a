"""Give back the room that a scored member's states take, without making it look unfinished."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

from onward.artifact import MANIFEST, read_manifest, remove, write_json

_STATE = "state"


def drop_states(run_folder: Path) -> int:
    """Remove what only serves to train a run further; return the bytes that were freed.

    Its models and scores stay, and its stages' ends stay whole: their manifests no longer name the states. The run can
    not be lengthened any more. Killed in the middle, it is done again.
    """
    freed = 0
    for step in sorted((run_folder / "checkpoints").glob("step-*")):
        freed += _bytes(step)
        remove(step)
    for end in sorted((run_folder / "checkpoints").glob("tokens-*")):
        manifest = read_manifest(end)
        if manifest is None or not (end / _STATE).exists():
            continue
        files = {name: facts for name, facts in manifest.files.items() if not name.startswith(f"{_STATE}/")}
        write_json(end / MANIFEST, asdict(replace(manifest, files=files)))
        freed += _bytes(end / _STATE)
        shutil.rmtree(end / _STATE)
    return freed


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
