"""Items are what lm-eval itself would ask."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from onward.errors import UserError
from onward.recipe import TASKS
from onward.tasks import TaskItems, load_items
from onward.tasks.harness import definitions, open_task
from onward.tasks.local import read_local
from onward.tasks.parts import spread

TOTALS = dict(zip(TASKS, (14042, 2376, 1172, 10042, 1267, 3270, 1838), strict=True))


@pytest.fixture(scope="module")
def bench(shared_data: Path) -> Path:
    return shared_data / "bench"


@pytest.fixture(scope="module")
def loaded(bench: Path) -> dict[str, TaskItems]:
    return load_items(TASKS, bench, 60)


@pytest.mark.parametrize("task", TASKS)
def test_all_seven(loaded: dict[str, TaskItems], task: str) -> None:
    content = loaded[task]
    assert len(content.items) == 60
    assert content.items_total == TOTALS[task]
    assert len({item.id for item in content.items}) == 60
    assert all(0 <= item.gold < len(item.choices) == len(item.requests) for item in content.items)
    assert content.chance == pytest.approx(0.5 if task in ("winogrande", "boolq", "piqa") else 0.25, abs=0.02)
    assert content.num_fewshot == 0
    assert ("acc_norm" in content.metrics) == (task not in ("mmlu", "winogrande", "boolq"))


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_the_harness_own(loaded: dict[str, TaskItems], bench: Path, task: str) -> None:
    definition = definitions(task)[0]
    splits = read_local(definition.dataset, definition.subset, bench)
    cut = {name: documents[:4] for name, documents in splits.items()}
    harness = open_task(definition, cut)
    harness.build_all_requests()
    theirs = [instance.args for instance in harness.instances]
    items = [item for item in loaded[task].items if item.subject == definition.subset or item.subject is None]
    ours = [pair for item in items[:4] for pair in item.requests]
    assert ours == theirs[: len(ours)]
    assert len(ours) > 0
    # The right answer, as process_results sees it: the gold choice alone likely gives acc 1.
    for item, document in zip(items[:4], harness.task_docs, strict=False):
        results = [(0.0 if place == item.gold else -9.0, False) for place in range(len(item.choices))]
        assert harness.process_results(document, results)["acc"] == 1.0


def test_known_questions(loaded: dict[str, TaskItems]) -> None:
    hellaswag = loaded["hellaswag"].items[0]
    assert hellaswag.requests[3] == (
        "Roof shingle removal: A man is sitting on a roof. He",
        " starts pulling up roofing on a roof.",
    )
    assert hellaswag.gold == 3
    winogrande = loaded["winogrande"].items[0]
    start = "Sarah was a much better surgeon than Maria so "
    end = " always got the easier cases."
    assert winogrande.requests == ((start + "Sarah", end), (start + "Maria", end))
    assert winogrande.gold == 1
    mmlu = loaded["mmlu"].items[0]
    assert mmlu.subject == mmlu.group == "abstract_algebra"
    assert mmlu.requests[1][0].endswith("\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:")
    assert mmlu.requests[1][1] == " B"
    assert len(loaded["boolq"].items[0].group) == 16


def test_limit_covers_every_subject(loaded: dict[str, TaskItems], bench: Path) -> None:
    subjects = [item.subject for item in loaded["mmlu"].items]
    assert len(set(subjects)) == 57
    assert load_items(["mmlu"], bench, 60)["mmlu"].items_hash == loaded["mmlu"].items_hash
    assert load_items(["mmlu"], bench, 61)["mmlu"].items_hash != loaded["mmlu"].items_hash


@pytest.mark.parametrize(
    ("limit", "sizes", "counts"),
    [
        (3, [5, 5, 5], [1, 1, 1]),
        (2, [5, 5, 5, 5], [0, 1, 0, 1]),
        (10, [1, 9, 9], [1, 4, 5]),
        (100, [1, 2], [1, 2]),
        (7, [7], [7]),
    ],
)
def test_spread(limit: int, sizes: list[int], counts: list[int]) -> None:
    assert spread(limit, sizes) == counts


def test_unsupported_names() -> None:
    with pytest.raises(UserError, match="did you mean hellaswag"):
        load_items(["helaswag"], None, 1)
    with pytest.raises(UserError, match="needs generation"):
        load_items(["gsm8k"], None, 1)
    with pytest.raises(UserError, match="group of tasks"):
        load_items(["mmlu_stem"], None, 1)


def test_other_tasks_over_the_same_files(bench: Path) -> None:
    items = load_items(["mmlu_anatomy"], bench, 5)["mmlu_anatomy"]
    assert (len(items.items), items.items_total) == (5, 135)


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> dict[str, datasets.Dataset]:
        asked.append((path, name))
        rows = [{"goal": "g", "sol1": "a", "sol2": "b", "label": label} for label in (0, 1, 1)]
        return {"validation": datasets.Dataset.from_list(rows)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    items = load_items(["piqa"], None, 2)["piqa"]
    assert [item.gold for item in items.items] == [0, 1]
    assert items.items_total == 3
    assert asked == [("baber/piqa", None)]


def test_hub_failures_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"evaluation\.data to a folder"):
        load_items(["piqa"], None, 2)
