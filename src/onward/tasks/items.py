"""Items: the questions of a task as the harness asks them, ready to be scored or avoided."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from onward.errors import UserError
from onward.tasks.parts import Part, parts_of
from onward.tasks.shots import all_wrong_names

if TYPE_CHECKING:
    from onward.tasks.originals import Document

Kind = Literal["multiple_choice", "loglikelihood", "rolling"]
MEASURES: Mapping[Kind, Mapping[str, str]] = {
    "multiple_choice": dict.fromkeys(("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"), "mean"),
    "loglikelihood": {"perplexity": "perplexity", "acc": "mean"},
    "rolling": {
        "word_perplexity": "weighted_perplexity",
        "byte_perplexity": "weighted_perplexity",
        "bits_per_byte": "bits_per_byte",
    },
}
"""lm-eval's measures that are computed, each with the aggregation that it must have there."""
PMI = "acc_pmi"
_PMI_PROMPT = "Answer:"
_PMI_TASKS = ("arc_challenge", "openbookqa")
"""OLMES (2406.08446) scores the choices of these by log P(choice | question) - log P(choice | "Answer:"), since their
right answers are rare words. Its other tasks here divide by characters, which is `acc_norm`, or by nothing, `acc`."""


@dataclass(frozen=True)
class Item:
    """One thing that a task asks: a question with choices, a text with its right continuation, or a whole text.

    id: place in the task's evaluation split, with the subject before it in a group of tasks. group: items that share
    their fate (subject, passage), the unit of the bootstrap. requests: (context, continuation) for each choice, or the
    one of a text to be continued, as lm-eval builds them. choices: the texts whose characters `acc_norm` divides by and
    whose bytes `acc_bytes`. gold: index of the right choice; also_right: of further right ones. unconditional: the
    choices after a context without the question, for `acc_mutual_info` and `acc_pmi`. text: the whole text, with the
    words and bytes that its perplexity is counted in.
    """

    task: str
    subject: str | None
    id: str
    group: str
    requests: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]
    gold: int
    also_right: tuple[int, ...] = ()
    unconditional: tuple[tuple[str, str], ...] = ()
    text: str | None = None
    words: int | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class TaskItems:
    """The items of a task that are scored.

    items_total: how many the task has without a limit. items_hash: SHA-256 over the scored items. chance: mean share
    of right choices, None where nothing is chosen. measures: those of `MEASURES` that lm-eval reports for the task, and
    `acc_pmi`. left_out: metrics of lm-eval's for this task that are not computed here (`f1`, `brier_score`). split: the
    one scored, where it is not the one that lm-eval scores and published numbers are of.
    """

    task: str
    kind: Kind
    items: tuple[Item, ...]
    items_total: int
    items_hash: str
    num_fewshot: int
    chance: float | None
    measures: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    split: str | None = None


def load_items(
    tasks: Iterable[str], data: Path | None, limit: int | None, cache: Path | None = None
) -> dict[str, TaskItems]:
    """Return the items of each task, in the given order.

    data: folder with the benchmarks' original files; None takes the Hub's. limit: the first so many items of a
    task; a group spreads them evenly over its tasks (MMLU over its subjects). cache: folder where built prompts are
    kept by what they are made from. Raises UserError for an unknown or unsupported task and for data that cannot be
    read.
    """
    from onward.tasks.kept import kept_items

    names = list(dict.fromkeys(tasks))
    with all_wrong_names(names):
        return {
            task: _load(task, data, limit) if cache is None else kept_items(task, data, limit, cache, _load)
            for task in names
        }


def items_hash(items: Sequence[Item]) -> str:
    """Return the SHA-256 over all that determines the score of these items."""
    content = json.dumps([list(item.__dict__.values()) for item in items], ensure_ascii=False)
    return sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()


def _load(task: str, data: Path | None, limit: int | None) -> TaskItems:
    from onward.tasks.harness import is_mean_over_tasks, templates_compiled_once

    where = f"evaluation.tasks: {task}"
    parts = parts_of(task, data, limit)
    counts = sorted({part.count for part in parts})
    # Where all have equally many, lm-eval's two formulas for a group and for its standard error are one.
    if len(counts) > 1 and is_mean_over_tasks(task):
        got, expected = f"{counts[0]} to {counts[-1]} items a task", "equally many of each, whose mean it is"
        todo = f"name its tasks one by one, or set evaluation.limit to a multiple of {len(parts)}"
        raise UserError("this group's score is not the mean over its items", where, got, expected, todo)
    kind: Kind = parts[0].definition.kind
    items: list[Item] = []
    found: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    with templates_compiled_once():
        for part in parts:
            if part.count:
                built = part.build()
                measures, left_out = _measures(task, kind, built)
                if len(parts) > 1:  # one of a group's tasks may have it and another not
                    measures = tuple(name for name in measures if name != PMI)
                found.add((measures, left_out))
                items += [_item(task, part, built, index, measures) for index in range(part.count)]
    if not items:
        raise UserError("a task has no items", where)
    if len(found) > 1:
        got = "; ".join(", ".join(one) for one, _ in sorted(found))
        raise UserError("a group mixes tasks with different measures", where, got, todo="name them one by one")
    chances = [(1 + len(item.also_right)) / len(item.choices) for item in items if item.choices]
    chance = sum(chances) / len(chances) if chances else None
    total, num_fewshot = sum(part.size for part in parts), parts[0].definition.num_fewshot
    split = parts[0].definition.evaluation_split if parts[0].lacks else None
    return TaskItems(task, kind, tuple(items), total, items_hash(items), num_fewshot, chance, *found.pop(), split)


def _measures(task: str, kind: Kind, built: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the measures of lm-eval's task that are computed, and those that are not."""
    aggregations = {name: function.__name__ for name, function in built.aggregation().items()}
    measures = tuple(name for name, aggregation in aggregations.items() if MEASURES[kind].get(name) == aggregation)
    if not measures:
        got, expected = ", ".join(aggregations) or "none", ", ".join(MEASURES[kind])
        raise UserError("no measure of this task is computed here", f"evaluation.tasks: {task}", got, expected)
    left_out = tuple(name for name in aggregations if name not in measures)
    return (*measures, PMI) if built.config.task in _PMI_TASKS else measures, left_out


def _item(task: str, part: Part, built: Any, index: int, measures: tuple[str, ...]) -> Item:
    """Build one item with lm-eval's own functions."""
    definition, name = part.definition, part.item_id(index)
    document = built.task_docs[index]
    prefix = built.doc_to_prefix(document)
    try:
        context = built.fewshot_context(document, num_fewshot=definition.num_fewshot, gen_prefix=prefix)
    except AssertionError as error:  # lm-eval's, where the split of examples is too small
        where, got = f"evaluation.tasks: {task}", f"{definition.num_fewshot} examples"
        raise UserError("there are not so many examples", where, got, str(error)[:200]) from error
    instances = built.construct_requests(document, context, metadata=(definition.name, index, 1))
    group = definition.subject or name
    if isinstance(document.get("passage"), str):
        group = sha256(document["passage"].encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    if definition.kind == "rolling":
        words, size = _sizes(built, document, f"{task}, item {name}")
        text = str(instances.args[0])
        return Item(task, definition.subject, name, group, (), (), 0, text=text, words=words, bytes=size)
    if definition.kind == "loglikelihood":
        request = (str(instances.args[0]), str(instances.args[1]))
        return Item(task, definition.subject, name, group, (request,), (), 0)
    choices = tuple(built.doc_to_choice(document))
    pairs = tuple((str(instance.args[0]), str(instance.args[1])) for instance in instances)
    unconditional = pairs[len(choices) :]
    if PMI in measures:
        unconditional = tuple((_PMI_PROMPT, continuation) for _, continuation in pairs[: len(choices)])
    gold, *also_right = _right_choices(built, document, choices, f"{task}, item {name}")
    requests = pairs[: len(choices)]
    return Item(task, definition.subject, name, group, requests, choices, gold, tuple(also_right), unconditional)


def _right_choices(built: Any, document: "Document", choices: tuple[str, ...], where: str) -> list[int]:
    """Return the indices of the right choices, one or more, as `process_results` reads them."""
    if len(choices) < 2 or not all(choices):
        raise UserError("an item needs two choices or more, none of them empty", where, repr(choices)[:200])
    # A task whose contexts differ by choice (WinoGrande) gives the right choice's index where others give the text.
    gold = built.doc_to_text(document) if built.multiple_input else built.doc_to_target(document)
    gold = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    indices = list(dict.fromkeys(gold)) if isinstance(gold, list) else [gold]
    if not indices or not all(type(one) is int and 0 <= one < len(choices) for one in indices):
        raise UserError("an answer is out of range", where, repr(gold), f"0 to {len(choices) - 1}")
    return indices


def _sizes(built: Any, document: "Document", where: str) -> tuple[int, int]:
    """Return the words and bytes by which lm-eval divides a text's log-likelihood."""
    weights = {name: value[1] for name, value in built.process_results(document, (0.0,)).items()}
    words = weights.get("word_perplexity", 0)
    sizes = {weights[name] for name in ("byte_perplexity", "bits_per_byte") if name in weights} or {0}
    if len(sizes) > 1:
        raise UserError("a text has two sizes in bytes", where, str(weights))
    return int(words), int(sizes.pop())
