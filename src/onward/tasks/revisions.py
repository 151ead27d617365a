"""Which revision of a Hub dataset is read: the one that was current when it was first used here, for good.

It is written to `onward-datasets.json` in Hugging Face's folder (HF_HOME), beside the downloads: commit by dataset. A
commit that is put there by hand is taken as well.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from onward.artifact import write_json

_RECORD = "onward-datasets.json"
_FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""Readers of files by which a few tasks name their data instead of a dataset."""
_SECONDS = 10.0
DATASETS = {
    "mmlu": "cais/mmlu",
    "arc_easy": "allenai/ai2_arc",
    "arc_challenge": "allenai/ai2_arc",
    "hellaswag": "Rowan/hellaswag",
    "winogrande": "allenai/winogrande",
    "boolq": "aps/super_glue",
    "piqa": "baber/piqa",
}
"""Of the seven tasks, so that nothing of lm-eval need be read to know them."""


def revisions_of(tasks: Iterable[str]) -> dict[str, str]:
    """Return the commit of each Hub dataset behind these tasks, `unknown` where the Hub cannot be asked."""
    datasets: set[str] = set()
    for task in tasks:
        if task in DATASETS:
            datasets.add(DATASETS[task])
        else:
            from onward.tasks.harness import definitions

            datasets |= {definition.dataset for definition in definitions(task)}
    return {dataset: pinned_revision(dataset) or "unknown" for dataset in sorted(datasets)}


@cache
def pinned_revision(dataset: str) -> str | None:
    """Return the commit at which a dataset is read: recorded, else downloaded before, else the Hub's newest.

    None where it is not known and the Hub cannot be asked.
    """
    from huggingface_hub import constants

    if dataset in _FORMATS or Path(dataset).exists():
        return None
    record = Path(constants.HF_HOME) / _RECORD
    known = _read(record)
    if dataset not in known:
        revision = _downloaded(Path(constants.HF_HUB_CACHE), dataset) or _newest(dataset)
        if revision is None:
            return None
        record.parent.mkdir(parents=True, exist_ok=True)
        known = _read(record) | {dataset: revision}
        write_json(record, dict(sorted(known.items())))
    return known[dataset]


def _read(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _downloaded(hub_cache: Path, dataset: str) -> str | None:
    reference = hub_cache / f"datasets--{dataset.replace('/', '--')}" / "refs" / "main"
    return reference.read_text().strip() if reference.is_file() else None


def _newest(dataset: str) -> str | None:
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset, timeout=_SECONDS).sha
    except Exception:  # no network, no such dataset, no permission: loading it will say so with its own words
        return None
