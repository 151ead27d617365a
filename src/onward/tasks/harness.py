"""lm-evaluation-harness's definitions of the tasks, read from its files, without its 13 s scan of all tasks."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from onward.errors import UserError, nearest
from onward.tasks.local import Splits

_ROOT = Path(lm_eval.tasks.__file__).parent
_PLACES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
}
_NAME = re.compile(rb"""^["']?(task|group)["']?\s*:\s*["']?([\w.:-]+)["']?\s*$""", re.MULTILINE)
_FEWSHOT_SEED = 1234
"""The seed that lm-eval's `simple_evaluate` gives its few-shot samplers."""


# It warns of every default that a task's YAML leaves to it (BoolQ's aggregation), which nobody here can mend.
logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Definition:
    """One lm-eval task. name: its name there; subject: MMLU's subject; config: its YAML with functions resolved."""

    name: str
    subject: str | None
    config: Mapping[str, Any]

    @property
    def dataset(self) -> str:
        """Hub id of its data."""
        return str(self.config.get("dataset_path"))

    @property
    def subset(self) -> str | None:
        """Configuration of the Hub dataset (`ARC-Easy`, an MMLU subject)."""
        return self.config.get("dataset_name")

    @property
    def evaluation_split(self) -> str:
        """The split whose items are scored: test where there is one, else validation, as lm-eval has it."""
        return str(self.config.get("test_split") or self.config.get("validation_split"))

    @property
    def num_fewshot(self) -> int:
        """Examples before each question; lm-eval's default where a task says nothing is none."""
        return int(self.config.get("num_fewshot") or 0)


def definitions(task: str) -> list[Definition]:
    """Return the lm-eval definitions behind a task name: one, or MMLU's 57 subjects in alphabetical order.

    Raises UserError for an unknown name (with the nearest), a group, and a task that is not multiple choice.
    """
    if task == "mmlu":
        return [_define(path) for path in sorted((_ROOT / "mmlu" / "default").glob("mmlu_*.yaml"))]
    return [_define(_ROOT / _PLACES[task] if task in _PLACES else _search(task))]


def _define(path: Path) -> Definition:
    config = load_yaml(path, resolve_func=True)
    name = config.get("task")
    where = f"evaluation.tasks: {name if isinstance(name, str) else config.get('group')}"
    if "group" in config:
        raise UserError("this name is a group of tasks", where, todo="name its tasks one by one")
    kind = config.get("output_type")
    if kind == "generate_until":
        raise UserError("this task needs generation; only multiple choice is scored", where, kind, "multiple_choice")
    if kind != "multiple_choice" or "class" in config:
        raise UserError("only multiple choice tasks are scored", where, str(kind or "a Python task"), "multiple_choice")
    subject = str(config["dataset_name"]) if str(name).startswith("mmlu_") else None
    # Structural keys are not part of a task's configuration; lm-eval's own factory drops the same three.
    return Definition(str(name), subject, {k: v for k, v in config.items() if k not in ("tag", "group", "task_list")})


def _search(task: str) -> Path:
    names = _names()
    if task in names:
        return names[task]
    near = nearest(task, list(names))
    todo = f"did you mean {near}?" if near else "lm-eval's task list has the names"
    raise UserError("unknown task", "evaluation.tasks", task, todo=todo)


@cache
def _names() -> dict[str, Path]:
    """Map each task or group to its YAML file, read as text: 14,000 files in under a second, none parsed."""
    names: dict[str, Path] = {"mmlu": _ROOT}
    for path in sorted(_ROOT.rglob("*.yaml")):
        for match in _NAME.finditer(path.read_bytes()):
            names.setdefault(match[2].decode(), path)
    return names


class _Task(ConfigurableTask):  # type: ignore[misc]
    """lm-eval's task over given documents, or over the Hub's."""

    def __init__(self, definition: Definition, splits: Splits | None) -> None:
        self._splits = splits
        self._definition = definition
        config = dict(definition.config)
        if not definition.num_fewshot:
            # Without examples lm-eval would still read and process the whole training split.
            config |= {"training_split": None, "fewshot_split": None}
        if splits is not None:
            roles = ("training_split", "validation_split", "test_split", "fewshot_split")
            config |= {role: None for role in roles if config.get(role) not in splits}
        super().__init__(config=config)
        self.set_fewshot_seed(_FEWSHOT_SEED)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Take the given documents, else load from the Hub."""
        if self._splits is not None:
            self.dataset = {name: datasets.Dataset.from_list(rows) for name, rows in self._splits.items()}
            return
        try:
            super().download(dataset_kwargs, **kwargs)
        except Exception as error:  # datasets, huggingface_hub and fsspec raise dozens of unrelated kinds
            where = f"{self._definition.name} ({self._definition.dataset})"
            todo = "check the network, or set evaluation.data to a folder with the benchmarks' original files"
            reason = f"{type(error).__name__}: {error}"[:300]
            raise UserError("the task's data cannot be loaded from the Hub", where, reason, todo=todo) from error


def open_task(definition: Definition, splits: Splits | None) -> Any:
    """Return lm-eval's task object over local documents by split, or over the Hub's data (None).

    Raises UserError when a split that the task needs is not there, or the Hub cannot be read.
    """
    if splits is not None:
        needed = {definition.evaluation_split}
        if definition.num_fewshot:
            named = (definition.config.get(role) for role in ("fewshot_split", "training_split", "validation_split"))
            needed.add(next(split for split in (*named, definition.evaluation_split) if split))
        if lacking := sorted(needed - set(splits)):
            got, expected = f"splits {', '.join(splits)}", f"split {', '.join(lacking)}"
            raise UserError(
                "the local files lack a split of this task", f"evaluation.data: {definition.name}", got, expected
            )
    datasets.disable_progress_bars()
    return _Task(definition, splits)
