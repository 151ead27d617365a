"""The line of blends between two models: one is chosen on half of the held-out text and told of on the other half."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from onward.analysis.comparison import compare_all
from onward.analysis.difference import Comparison
from onward.analysis.paired import HELD_OUT, Items, Pair, read_scored
from onward.analysis.wording import number, percent, title
from onward.errors import UserError
from onward.evaluation.scores import Scores

Objective = Literal["balance", "domain"]
DOMAIN, GENERAL = "domain", "general"
MORE_FILES = "give more documents (one a line of a JSONL file), or score more of them with --text-tokens all"
"""What to do about too little text where it was given as files."""
_SALT = "dev or test"
_DECIMALS = 4


@dataclass(frozen=True)
class Halves:
    """Bits per byte of a held-out text on its dev and on its test part, and the documents of each."""

    text: str
    dev: float
    test: float
    dev_documents: int
    test_documents: int


@dataclass(frozen=True)
class TaskValue:
    """A measure of a task on all of its items."""

    task: str
    metric: str
    value: float


@dataclass(frozen=True)
class BlendPoint:
    """A blend on the line. share: of the way from the base (0) to the adapted model (1); folder: of its scores."""

    share: float
    folder: Path
    texts: tuple[Halves, ...]
    tasks: tuple[TaskValue, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The texts that were scored."""
        return tuple(halves.text for halves in self.texts)

    def find(self, text: str) -> Halves | None:
        """Return what was scored of a text, None where it was not."""
        return next((halves for halves in self.texts if halves.text == text), None)

    def dev(self, text: str) -> float:
        """Return the bits per byte of a text's dev part."""
        halves = self.find(text)
        assert halves is not None, f"{text} text is scored"
        return halves.dev


@dataclass(frozen=True)
class Rule:
    """How a blend is chosen from the dev part's bits per byte.

    objective: `balance` takes the smallest sum of relative changes from the base over domain and general text, `domain`
    the easiest domain. general_loss: how much harder general text may be than to the base, relative; None: any.
    """

    objective: Objective = "balance"
    general_loss: float | None = None

    def told(self, texts: Sequence[str]) -> str:
        """Say what a blend is chosen by where these texts are scored: without general text that is the domain alone."""
        what = "the smallest sum of relative changes of bits per byte, domain and general text"
        if self.objective == "domain" or GENERAL not in texts:
            what = "the lowest bits per byte of the domain"
        limit = self.general_loss
        return what if limit is None else f"{what}, general text at most {percent(limit)} above the base"


@dataclass(frozen=True)
class Chosen:
    """The blend that a rule takes. admitted: shares within the rule's limit, the base's always."""

    share: float
    admitted: tuple[float, ...]


@dataclass(frozen=True)
class Blending:
    """The whole line, what was chosen on its dev part, and how that compares on the test part.

    points: from the base to the adapted model. chosen_by: how the choice fell, in sentences. comparisons: of the chosen
    blend with the base and with the adapted model on the test part's documents and on all items of tasks; where it is
    one of them, of these two.
    """

    base: str
    adapted: str
    rule: Rule
    points: tuple[BlendPoint, ...]
    chosen: float
    chosen_by: tuple[str, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def findings(self) -> tuple[str, ...]:
        """How the choice fell on the dev part, then each comparison on the test part, in sentences."""
        return (*self.chosen_by, *_told(self.comparisons))

    @property
    def point(self) -> BlendPoint:
        """The chosen blend."""
        return next(point for point in self.points if point.share == self.chosen)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values: one flat row for each share, then the choice, the findings, the comparisons."""
        rows = []
        for point in self.points:
            row: dict[str, Any] = {"share": point.share, "chosen": point.share == self.chosen}
            row |= {f"{text.text}_{half}": getattr(text, half) for text in point.texts for half in ("dev", "test")}
            rows.append(row | {f"{task.task} {task.metric}": _known(task.value) for task in point.tasks})
        documents = {half.text: {"dev": half.dev_documents, "test": half.test_documents} for half in self.point.texts}
        return {
            "base": self.base,
            "adapted": self.adapted,
            "chosen": self.chosen,
            "rule": asdict(self.rule),
            "documents": documents,
            "blends": rows,
            "findings": list(self.findings),
            "comparisons": [comparison.as_json() for comparison in self.comparisons],
        }


def is_dev(group: str) -> bool:
    """Whether documents of a group are of the dev part: half of all groups are, by a hash of the group's name alone.

    A document without a group goes by its own id, wherever its file lies.
    """
    return xxhash.xxh3_64_intdigest(f"{_SALT} {group}".encode()) % 2 == 0


def read_point(share: float, folder: Path) -> BlendPoint:
    """Read the scores of a blend; raises UserError when a text has no document in one of its parts."""
    scored = read_scored(folder)
    texts = [_halves(name, items) for name, items in scored.items.items() if name.startswith(HELD_OUT)]
    return BlendPoint(share, folder, tuple(texts), _task_values(scored.scores))


def require_halves(text: str, documents: Iterable[tuple[str, str, str, int]], todo: str = MORE_FILES) -> None:
    """Refuse a text that has nothing in one of its parts, before anything of it is scored.

    documents: group, source, id and bytes of each, as `evaluation.heldout` writes them into rows of scores.
    """
    rows = list(documents)
    parts = {is_dev(_key(group, source, item)) for group, source, item, size in rows if size}
    for part, has in (("dev", True in parts), ("test", False in parts)):
        if not has:
            raise _too_little(text, part, [group for group, *_ in rows], todo)


def choose(points: Sequence[BlendPoint], rule: Rule) -> Chosen:
    """Return what the rule takes; only numbers of the dev part are looked at. Of equals it is the nearest to the base.

    points: the first is the base. Without general text the balance is of the domain alone.
    """
    base = points[0]
    assert base.share == 0, "changes are from the base"
    admitted = list(points)
    if rule.general_loss is not None:
        most = base.dev(GENERAL) * (1 + rule.general_loss)
        admitted = [point for point in points if point is base or point.dev(GENERAL) <= most]
    names = (DOMAIN,) if rule.objective == "domain" or base.find(GENERAL) is None else (DOMAIN, GENERAL)

    def change(point: BlendPoint) -> float:
        return sum((point.dev(name) - base.dev(name)) / base.dev(name) for name in names)

    return Chosen(min(admitted, key=change).share, tuple(point.share for point in admitted))


def blending(names: tuple[str, str], points: Sequence[BlendPoint], rule: Rule, resamples: int, seed: int) -> Blending:
    """Choose on the dev part and compare on the test part. names: of the base and of the adapted model."""
    chosen = choose(points, rule)
    by_share = {point.share: point for point in points}
    labels = {0.0: names[0], 1.0: names[1]}
    pairs = [(0.0, 1.0)] if chosen.share in labels else [(0.0, chosen.share), (1.0, chosen.share)]
    comparisons: list[Comparison] = []
    for pair in pairs:
        folders = [by_share[share].folder for share in pair]
        shown = [labels.get(share, f"blend {share:g}") for share in pair]
        comparisons += compare_all(folders, shown, resamples, seed, _on_test).comparisons
    how = tuple(_choice_in_words(points, by_share[chosen.share], chosen, rule))
    return Blending(*names, rule, tuple(points), chosen.share, how, tuple(comparisons))


def _on_test(pair: Pair) -> Pair:
    return pair.where(~_in_dev(pair.before))


def _in_dev(items: Items) -> NDArray[np.bool_]:
    keys = map(_key, items.group.tolist(), items.source.tolist(), items.item.tolist())
    return np.fromiter(map(is_dev, keys), dtype=np.bool_, count=len(items))


def _key(group: str, source: str, item: str) -> str:
    # `heldout` gives a document without a group one of its own, with the source in it.
    return item if group == f"{source} {item}" else group


def _too_little(text: str, part: str, groups: Sequence[str], todo: str) -> UserError:
    got = f"{len(groups)} documents in {len(set(groups))} groups, none of them in the {part} part"
    return UserError(f"held-out {text} text is too little to be halved", got=got, todo=todo)


def _halves(name: str, items: Items) -> Halves:
    in_dev, text = _in_dev(items), name.removeprefix(HELD_OUT)
    values, counts = [], []
    for part, mask in (("dev", in_dev), ("test", ~in_dev)):
        size = float(items.bytes[mask].sum())
        if not size:
            raise _too_little(text, part, items.group.tolist(), MORE_FILES)
        values.append(float(items.nats[mask].sum()) / (math.log(2) * size))
        counts.append(int(mask.sum()))
    return Halves(text, values[0], values[1], counts[0], counts[1])


def _task_values(scores: Scores) -> tuple[TaskValue, ...]:
    return tuple(TaskValue(task.task, m.name, m.value) for task in scores.tasks for m in task.measures)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _choice_in_words(points: Sequence[BlendPoint], taken: BlendPoint, chosen: Chosen, rule: Rule) -> list[str]:
    changes = [
        f"{title(half.text)} {number(points[0].dev(half.text), _DECIMALS)} \N{RIGHTWARDS ARROW} "
        f"{number(half.dev, _DECIMALS)} bits per byte"
        for half in taken.texts
    ]
    there = f"; {', '.join(changes)} there" if taken.share else ""
    found = [f"Chosen on the dev part: share {taken.share:g} ({rule.told(taken.names)}){there}."]
    if GENERAL not in taken.names:
        found.append("Forgetting was not measured: no general text was scored, and the choice does not know of any.")
    limit, lost = rule.general_loss, _general_loss(points[0], taken)
    if limit is not None and lost > limit:
        found.append(
            f"The limit does not hold on the test part: general text is {percent(lost)} above the base there, more "
            f"than {percent(limit)}."
        )
    if chosen.admitted == (0.0,) and limit is not None:
        found.append(f"No blend but the base itself keeps general text within {percent(limit)} of the base.")
    elif taken.share == 1:
        found.append("This is the adapted model itself: by this rule no blend does better on the dev part.")
    elif taken.share == 0:
        found.append("This is the base itself: by this rule neither a blend nor the adapted model does better.")
    return found


def _general_loss(base: BlendPoint, taken: BlendPoint) -> float:
    """Return how much harder general text is than to the base on the test part, relative; 0 where it is not scored."""
    before, after = base.find(GENERAL), taken.find(GENERAL)
    return 0.0 if before is None or after is None else (after.test - before.test) / before.test


def _told(comparisons: Sequence[Comparison]) -> list[str]:
    return [
        f"Test part, {comparison.before} to {comparison.after}: {sentence}"
        for comparison in comparisons
        for sentence in comparison.summary
    ]
