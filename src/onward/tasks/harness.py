"""lm-evaluation-harness's definitions of the tasks, read from its files, without its 13 s scan of all tasks."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import datasets
import lm_eval.utils
from jinja2 import TemplateError
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from onward.errors import UserError, UserErrors
from onward.tasks.local import Splits, benchmark_of
from onward.tasks.names import ROOT, Leaf, counts_tasks_alike, leaves
from onward.tasks.revisions import pinned_revision
from onward.tasks.shots import split_shots

if TYPE_CHECKING:
    from onward.tasks.items import Kind

_PLACES = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
}
_MMLU = {"mmlu": "mmlu/default", "mmlu_continuation": "mmlu/continuation"}
_KINDS: dict[str, "Kind"] = {
    "multiple_choice": "multiple_choice",
    "loglikelihood": "loglikelihood",
    "loglikelihood_rolling": "rolling",
}
_FEWSHOT_SEED = 1234
"""The seed that lm-eval's `simple_evaluate` gives its few-shot samplers."""
_WITH_LM_EVAL = "run it with lm-eval itself: simple_evaluate(model=OnwardLM.load(MODEL), tasks=[TASK])"


# It warns of every default that a task's YAML leaves to it (BoolQ's aggregation), which nobody here can mend.
logging.getLogger("lm_eval.api.task").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Definition:
    """One lm-eval task.

    name: its name there; subject: its name within a group of tasks, MMLU's subject; kind: what it asks; config: its
    YAML with functions resolved.
    """

    name: str
    subject: str | None
    kind: "Kind"
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
    """Return the lm-eval definitions behind a name: one task, or those of a group or tag in alphabetical order.

    `mmlu@5` is `mmlu` with five examples before each question. Raises UserError for an unknown name (with the
    nearest), a task that needs generation, pictures or a scoring function of its own, a group that mixes tasks of
    different kinds, and examples before whole texts.
    """
    name, shots = split_shots(task)
    found = _definitions(name)
    if shots is None:
        return found
    if found[0].kind == "rolling":
        raise UserError("whole texts have no examples before them", f"evaluation.tasks: {task}", todo=f"write {name}")
    return [replace(one, config={**one.config, "num_fewshot": shots}) for one in found]


def require_tasks(tasks: Iterable[str]) -> None:
    """Raise UserError for names that no task has or that cannot be scored, for all of them at once."""
    problems = []
    for task in dict.fromkeys(tasks):
        try:
            definitions(task)
        except UserError as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise UserErrors(f"{len(problems)} of the tasks cannot be scored", problems)


def _definitions(task: str) -> list[Definition]:
    if task in _PLACES:
        return [_define(Leaf(ROOT / _PLACES[task], {}), task, None)]
    if task in _MMLU:
        found = [Leaf(path, {}) for path in sorted((ROOT / _MMLU[task]).glob("mmlu_*.yaml"))]
    else:
        found = leaves(task)
    members = [_define(leaf, task, task) for leaf in found]
    if len(members) == 1 and members[0].name == task:
        return [_define(found[0], task, None)]
    for fact in ("kind", "num_fewshot"):
        values = sorted({str(getattr(member, fact)) for member in members})
        if len(values) > 1:
            got, todo = f"{fact}: {', '.join(values)}", "name its tasks one by one"
            raise UserError(
                "a group mixes tasks that are not scored alike", f"evaluation.tasks: {task}", got, todo=todo
            )
    return sorted(members, key=lambda member: member.subject or "")


def is_mean_over_tasks(task: str) -> bool:
    """Whether a group's score is the mean over its tasks and not over their items."""
    name = split_shots(task)[0]
    return name not in _PLACES and name not in _MMLU and counts_tasks_alike(name)


def _define(leaf: Leaf, asked: str, group: str | None) -> Definition:
    # A task that is refused may need packages that are not there, so its functions are read afterwards.
    config = load_yaml(leaf.path, resolve_func=False) | dict(leaf.overrides)
    name = str(config.get("task"))
    where = f"evaluation.tasks: {asked}" if name == asked else f"evaluation.tasks: {asked} ({name})"
    kind = _require_scorable(config, where)
    try:
        config = load_yaml(leaf.path, resolve_func=True) | dict(leaf.overrides)
    except ImportError as error:
        raise UserError("this task needs a package that is not installed", where, str(error)) from error
    is_mmlu = benchmark_of(str(config.get("dataset_path")), None) == "mmlu"
    subject = str(config.get("dataset_name")) if is_mmlu else name if group is not None else None
    # Structural keys are not part of a task's configuration; lm-eval's own factory drops the same three.
    plain = {key: value for key, value in config.items() if key not in ("tag", "group", "task_list")}
    return Definition(name, subject, kind, plain)


def _require_scorable(config: Mapping[str, Any], where: str) -> "Kind":
    if "class" in config:
        raise UserError("this task is a Python class of lm-eval's and cannot be scored here", where, todo=_WITH_LM_EVAL)
    kind = str(config.get("output_type"))
    if kind not in _KINDS:
        expected = ", ".join(_KINDS)
        raise UserError("this task needs generation; only log-likelihoods are scored", where, kind, expected)
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        raise UserError("this task shows pictures or sound; only text is scored", where)
    if "process_results" in config and kind != "loglikelihood_rolling":
        raise UserError("this task computes its score by a function of its own", where, todo=_WITH_LM_EVAL)
    return _KINDS[kind]


@contextmanager
def templates_compiled_once() -> Iterator[None]:
    """Have lm-eval's prompt templates compiled once and not for every field of every item, most of building's time."""
    environment = lm_eval.utils.env
    environment.from_string = cache(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string


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
        """Take the given documents, else load from the Hub, at one revision for good."""
        if self._splits is not None:
            self.dataset = {name: datasets.Dataset.from_list(rows) for name, rows in self._splits.items()}
            return
        given = dict(dataset_kwargs or {})
        if "revision" not in given and (revision := pinned_revision(self._definition.dataset)) is not None:
            given["revision"] = revision
        try:
            super().download(given, **kwargs)
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
    try:
        return _Task(definition, splits)
    except (LookupError, TypeError, ValueError, TemplateError) as error:
        where, got = f"{definition.name} ({definition.dataset})", f"{type(error).__name__}: {error}"[:300]
        raise UserError("a task's first document is not as lm-eval expects it", where, got) from error
