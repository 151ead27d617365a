"""Names of lm-eval's tasks, groups and tags, found in its files as text: 14,000 of them in about a second."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._factory import GROUP_FIELD_NAMES
from lm_eval.tasks._index import Entry, Kind, TaskIndex

from onward.errors import UserError, nearest

ROOT = Path(lm_eval.tasks.__file__).parent
_NAME = re.compile(rb"""^["']?(?:task|group|tag)["']?\s*:\s*["']?([\w.:-]+)["']?\s*$""", re.MULTILINE)
_TAGS = re.compile(rb"""^["']?tag["']?\s*:\s*\n((?:\s*-\s*["']?[\w.:-]+["']?\s*\n)+)""", re.MULTILINE)
_ENTRY = re.compile(rb"[\w.:-]*\w[\w.:-]*")


@dataclass(frozen=True)
class Leaf:
    """The file of a task, and what the groups above it change in it."""

    path: Path
    overrides: Mapping[str, Any]


def leaves(name: str) -> list[Leaf]:
    """Return the tasks behind a name: itself, or all below a group or tag.

    Raises UserError for an unknown name, with the nearest.
    """
    found = list(_leaves(name, {}, (name,)))
    return list({leaf.path: leaf for leaf in found}.values())


def counts_tasks_alike(name: str) -> bool:
    """Whether lm-eval's score of a group is the mean over its tasks, however many items each has."""
    entry = _entry(name)
    aggregates = (entry.cfg or {}).get("aggregate_metric_list") if entry is not None else None
    aggregates = [aggregates] if isinstance(aggregates, dict) else aggregates or []
    return any(not one.get("weight_by_size", True) for one in aggregates)


def _leaves(name: str, overrides: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Leaf]:
    entry = _entry(name)
    if entry is None:
        raise _unknown(name, above)
    if entry.kind is Kind.TAG:
        for member in sorted(entry.tags):
            yield from _leaves(member, overrides, (*above, member))
    elif entry.kind is Kind.GROUP:
        yield from _members(dict(entry.cfg or {}), overrides, above)
    else:
        assert entry.yaml_path is not None
        yield Leaf(entry.yaml_path, overrides)


def _members(group: Mapping[str, Any], overrides: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[Leaf]:
    """Yield the tasks of a group's file, or of a group written within another."""
    # What a group says beside its own facts goes for all its tasks, unless the group above says otherwise.
    overrides = {**{key: value for key, value in group.items() if key not in GROUP_FIELD_NAMES}, **overrides}
    members = group.get("task") or []
    for member in [members] if isinstance(members, str) else members:
        if isinstance(member, str):
            yield from _leaves(member, overrides, (*above, member))
        elif "group" in member:
            yield from _members(member, overrides, above)
        else:
            own = {key: value for key, value in member.items() if key != "task"}
            yield from _leaves(str(member["task"]), {**overrides, **own}, (*above, str(member["task"])))


def _unknown(name: str, above: tuple[str, ...]) -> UserError:
    near = nearest(name, sorted(_names()))
    todo = f"did you mean {near}?" if near else "lm-eval's task list has the names"
    got = name if len(above) == 1 else f"{name}, which {above[0]} names"
    return UserError("unknown task", "evaluation.tasks", got, todo=todo)


@cache
def _entry(name: str) -> Entry | None:
    """Read the folders whose files name a task, group or tag as lm-eval's own index does, and look it up there."""
    indices = [_index(folder) for folder in sorted(_names().get(name, ()))]
    entries = [index[name] for index in indices if name in index]
    for entry in entries:
        if entry.kind is not Kind.TAG:
            return entry
    return Entry(name, Kind.TAG, None, tags=set().union(*(entry.tags for entry in entries))) if entries else None


@cache
def _index(folder: Path) -> dict[str, Entry]:
    index: dict[str, Entry] = TaskIndex.build([folder])
    return index


@cache
def _names() -> dict[str, frozenset[Path]]:
    """Map each task, group and tag to the folders of the files that name it; nothing is parsed."""
    names: dict[str, set[Path]] = {}
    for path in sorted(path for path in ROOT.rglob("*") if "yaml" in path.name and path.is_file()):
        content = path.read_bytes()
        found = [match[1] for match in _NAME.finditer(content)]
        found += [entry for match in _TAGS.finditer(content) for entry in _ENTRY.findall(match[1])]
        for name in found:
            names.setdefault(name.decode(), set()).add(path.parent)
    return {name: frozenset(folders) for name, folders in names.items()}
