"""Items are what lm-eval itself would ask."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest

from onward.errors import UserError
from onward.recipe import TASKS
from onward.tasks import (
    Item,
    TaskItems,
    data_fingerprints,
    harness,
    item_facts,
    items,
    kept,
    load_items,
    names,
    revisions,
)
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
    assert content.kind == "multiple_choice"
    assert content.left_out == ()
    measures = ("acc",) if task in ("mmlu", "winogrande", "boolq") else ("acc", "acc_norm")
    assert content.measures == ((*measures, "acc_pmi") if task == "arc_challenge" else measures)


@pytest.mark.parametrize("task", TASKS)
def test_requests_are_the_harness_own(loaded: dict[str, TaskItems], bench: Path, task: str) -> None:
    definition = definitions(task)[0]
    splits = read_local(definition.dataset, definition.subset, bench)
    cut = {name: documents[:4] for name, documents in splits.items()}
    theirs_built = open_task(definition, cut)
    theirs_built.build_all_requests()  # its templates compiled for every field of every document, ours once
    theirs = [instance.args for instance in theirs_built.instances]
    own = [item for item in loaded[task].items if item.subject == definition.subset or item.subject is None]
    ours = [pair for item in own[:4] for pair in item.requests]
    assert ours == theirs[: len(ours)]
    assert len(ours) > 0
    # The right answer, as process_results sees it: the gold choice alone likely gives acc 1.
    for item, document in zip(own[:4], theirs_built.task_docs, strict=False):
        results = [(0.0 if place == item.gold else -9.0, False) for place in range(len(item.choices))]
        assert theirs_built.process_results(document, results)["acc"] == 1.0


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


REFUSED = [
    ("helaswag", "did you mean hellaswag"),
    ("gsm8k", "needs generation"),
    ("truthfulqa_mc2", r"function of its own[\s\S]*OnwardLM"),
    ("leaderboard", r"needs generation[\s\S]*leaderboard \(leaderboard_math_algebra_hard\)"),
    ("squadv2", "Python class"),
    ("mmmu_val_art", "needs generation"),
]


@pytest.mark.parametrize(("task", "says"), REFUSED)
def test_unsupported_names(task: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_items([task], None, 1)


GROUP = "group: mixed\ntask:\n  - lambada_openai\n  - group: inner\n    task: [{task: piqa, num_fewshot: 3}]\n"


def test_groups_and_tags(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    subjects = [definition.subject for definition in definitions("mmlu")]
    assert len(subjects) == 57
    # What stands written for speed is what lm-eval's files say.
    monkeypatch.setattr(harness, "_MMLU", {})
    assert [definition.subject for definition in definitions("mmlu")] == subjects
    assert [definition.subject for definition in definitions("mmlu_continuation")] == subjects
    assert {definition.name for definition in definitions("mmlu_continuation")} == {
        f"mmlu_{subject}_continuation" for subject in subjects
    }
    assert len(definitions("mmlu_stem")) == len(definitions("mmlu_stem_tasks")) == 19
    lambada = definitions("lambada")
    assert [definition.subject for definition in lambada] == ["lambada_openai", "lambada_standard"]
    assert {definition.kind for definition in lambada} == {"loglikelihood"}
    (tmp_path / "mixed.yaml").write_text(GROUP)
    known = {**names._names(), "mixed": frozenset([tmp_path])}
    monkeypatch.setattr(names, "_names", lambda: known)
    assert [(leaf.path.stem, leaf.overrides) for leaf in names.leaves("mixed")] == [
        ("lambada_openai", {}),
        ("piqa", {"num_fewshot": 3}),
    ]
    with pytest.raises(UserError, match=r"not scored alike[\s\S]*kind: loglikelihood, multiple_choice"):
        definitions("mixed")


def test_groups_that_weigh_their_tasks_alike(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(definitions("blimp")) == 67
    assert harness.is_mean_over_tasks("blimp")
    assert not harness.is_mean_over_tasks("mmlu_stem")
    assert not harness.is_mean_over_tasks("lambada")
    monkeypatch.setattr(harness, "is_mean_over_tasks", lambda task: True)
    assert len(load_items(["mmlu_stem"], bench, 38)["mmlu_stem"].items) == 38
    with pytest.raises(UserError, match=r"not the mean over its items[\s\S]*2 to 3 items[\s\S]*multiple of 19"):
        load_items(["mmlu_stem"], bench, 39)


def test_text_with_its_right_continuation(bench: Path) -> None:
    content = load_items(["lambada_openai"], bench, 3)["lambada_openai"]
    assert (content.kind, content.measures, content.chance) == ("loglikelihood", ("perplexity", "acc"), None)
    assert content.items_total == 5153
    item = content.items[0]
    ((context, continuation),) = item.requests
    assert context.endswith("I don't care about")
    assert continuation == " signs"
    assert (item.choices, item.id, item.group) == ((), "0", "0")


def test_whole_texts(shared_data: Path, tmp_path: Path) -> None:
    (tmp_path / "wikitext2_valid.txt.gz").symlink_to(shared_data / "general" / "wikitext2_valid.txt.gz")
    content = load_items(["wikitext"], tmp_path, None)["wikitext"]
    assert content.kind == "rolling"
    assert content.measures == ("word_perplexity", "byte_perplexity", "bits_per_byte")
    assert (len(content.items), content.chance) == (60, None)
    text = content.items[0].text
    assert text is not None
    assert text.lstrip().startswith("= Homarus gammarus =\n\nHomarus gammarus, known as")
    # Words and bytes are those of the page before its spaces were tidied up.
    assert sum(item.bytes or 0 for item in content.items) > sum(len(str(item.text).encode()) for item in content.items)
    assert 213_886 < sum(item.words or 0 for item in content.items) < 217_646 + 60


def test_the_split_that_is_scored_for_want_of_the_test_file_is_named(bench: Path, tmp_path: Path) -> None:
    for name, title in (("wiki.valid.raw", "One"), ("wiki.test.raw", "Two")):
        (tmp_path / name).write_text(f" = {title} = \n \n Some words . \n", encoding="utf-8")
    (tmp_path / "SUBSET").touch()
    assert load_items(["wikitext"], tmp_path, None)["wikitext"].split is None
    (tmp_path / "wiki.test.raw").unlink()
    for _ in range(2):  # built, then kept
        content = load_items(["wikitext"], tmp_path, None, cache=tmp_path / "kept")["wikitext"]
        assert (content.split, len(content.items)) == ("validation", 1)
        assert "= One =" in str(content.items[0].text)
    every = load_items(["piqa", "mmlu", "arc_easy"], bench, 57)
    assert {task.split for task in every.values()} == {None}


def test_choices_as_continuations(bench: Path) -> None:
    content = load_items(["mmlu_continuation"], bench, 57)["mmlu_continuation"]
    assert content.measures == ("acc", "acc_norm")
    assert content.items[0].subject == content.items[0].group == "abstract_algebra"
    assert content.items[0].requests[1][0].endswith("\nAnswer:")
    assert content.items[0].requests[1][1] == " 4"
    assert [item.id for item in content.items] == [item.id for item in load_items(["mmlu"], bench, 57)["mmlu"].items]


def test_choices_without_their_question(bench: Path) -> None:
    """OLMES's normalisation, offered where OLMES uses it."""
    item = load_items(["arc_challenge"], bench, 1)["arc_challenge"].items[0]
    assert item.unconditional == tuple(("Answer:", f" {choice}") for choice in item.choices)
    assert item.requests[0][0].endswith("\nAnswer:")
    openbookqa = load_items(["openbookqa"], bench, 2)["openbookqa"]
    assert openbookqa.measures == ("acc", "acc_norm", "acc_pmi")
    assert openbookqa.items[1].requests[0] == ("There is most likely going to be fog around:", " a marsh")
    copa = load_items(["copa"], bench, 1)["copa"]
    assert copa.items[0].requests[1] == ("The man turned on the faucet therefore", "  water flowed from the spout.")
    assert (copa.items[0].gold, copa.measures, copa.items_total) == (1, ("acc",), 100)


def with_config(monkeypatch: pytest.MonkeyPatch, task: str, **config: Any) -> None:
    """Give one of lm-eval's tasks another configuration."""
    (definition,) = definitions(task)
    other = replace(definition, config={**definition.config, **config})
    monkeypatch.setattr(harness, "definitions", lambda name: [other])


def test_other_measures(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = ["acc_mutual_info", "acc_bytes", "exact_match", "f1", "brier_score"]
    with_config(monkeypatch, "piqa", metric_list=[{"metric": metric} for metric in metrics])
    content = load_items(["piqa"], bench, 1)["piqa"]
    assert (content.measures, content.left_out) == (tuple(metrics[:3]), ("f1", "brier_score"))
    item = content.items[0]
    assert item.unconditional == tuple(("", continuation) for _, continuation in item.requests)
    with_config(monkeypatch, "piqa", metric_list=[{"metric": "f1"}])
    with pytest.raises(UserError, match=r"no measure of this task[\s\S]*f1"):
        load_items(["piqa"], bench, 1)


def test_examples_before_the_question(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_config(monkeypatch, "mmlu_anatomy", num_fewshot=5)
    content = load_items(["mmlu_anatomy"], bench, 6)["mmlu_anatomy"]
    assert content.num_fewshot == 5
    (definition,) = harness.definitions("mmlu_anatomy")
    splits = read_local(definition.dataset, definition.subset, bench)
    theirs = open_task(definition, splits | {"test": splits["test"][:6]})
    theirs.build_all_requests()
    ours = [pair for item in content.items for pair in item.requests]
    assert ours == [instance.args for instance in theirs.instances]
    assert ours[0][0].count("\nAnswer:") == 6


def test_examples_are_asked_for_by_name(bench: Path, tmp_path: Path) -> None:
    asked = load_items(["mmlu@5", "mmlu@2", "mmlu"], bench, 57, cache=tmp_path)
    assert [(items.num_fewshot, items.items[0].task) for items in asked.values()] == [
        (5, "mmlu@5"),
        (2, "mmlu@2"),
        (0, "mmlu"),
    ]
    five, two, none = (items.items[0].requests[0][0] for items in asked.values())
    assert [prompt.count("Answer:") for prompt in (five, two, none)] == [6, 3, 1]
    assert five.endswith(none.rpartition("\n\n")[2])
    assert data_fingerprints(["mmlu@5"], bench) == data_fingerprints(["mmlu"], bench)
    assert load_items(["mmlu@5"], bench, 57, cache=tmp_path)["mmlu@5"] == asked["mmlu@5"], "kept under its own name"


@pytest.mark.parametrize(
    ("task", "says"),
    [("mmlu@five", "a task and a number"), ("@5", "a task"), ("wikitext@2", "have no examples"), ("mmlo@5", "mmlu")],
)
def test_examples_that_cannot_be_given(bench: Path, task: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_items([task], bench, 2)


@pytest.mark.parametrize("shared", [False, True], ids=["local", "hub"])
def test_all_wrong_names_are_told_at_once(bench: Path, tmp_path: Path, shared: bool) -> None:
    names = ["piqa", "piqo", "mmlu@x", "arc_esy", "piqa@1"]
    with pytest.raises(UserError, match="3 of the tasks cannot be scored") as caught:
        load_items(names, None if shared else bench, 2, cache=tmp_path)
    said = str(caught.value)
    for wrong in ("piqo", "did you mean piqa?", "mmlu@x", "arc_esy", "did you mean arc_easy?"):
        assert wrong in said


@pytest.mark.parametrize("task", ["arc_easy@3", "openbookqa@3"])
def test_examples_come_from_a_local_training_split(bench: Path, tmp_path: Path, task: str) -> None:
    name = task.partition("@")[0]
    asked = load_items([task, name], bench, 3, cache=tmp_path)
    (prompts, plain) = ([item.requests[0][0] for item in asked[one].items] for one in (task, name))
    for prompt, alone in zip(prompts, plain, strict=True):
        assert prompt.endswith(f"\n\n{alone}")
        assert prompt.count("\n\n") == 3
    assert load_items([task], bench, 3)[task] == asked[task], "drawn by a fixed seed"
    first = prompts[0].partition("\n")[0].removeprefix("Question: ")
    dataset, subset = ("allenai/ai2_arc", "ARC-Easy") if name == "arc_easy" else ("allenai/openbookqa", "main")
    train = read_local(dataset, subset, bench, examples=True)["train"]
    assert any(first.startswith(str(row.get("question", row.get("question_stem")))) for row in train)


def test_right_answers(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_local("baber/piqa", None, bench)["validation"][0]
    with_config(monkeypatch, "piqa", doc_to_target=lambda document: [1, 0, 1])
    content = load_items(["piqa"], bench, 2)["piqa"]
    assert [(item.gold, item.also_right) for item in content.items] == [(1, (0,))] * 2
    assert content.chance == 1.0
    with_config(monkeypatch, "piqa", doc_to_target=lambda document: 2 if document["goal"] != first["goal"] else 0)
    with pytest.raises(UserError, match=r"out of range[\s\S]*piqa, item 1[\s\S]*2[\s\S]*0 to 1"):
        load_items(["piqa"], bench, 2)
    with_config(monkeypatch, "piqa", doc_to_target=lambda document: 2)
    with pytest.raises(UserError, match=r"first document[\s\S]*piqa[\s\S]*IndexError"):
        load_items(["piqa"], bench, 2)
    with_config(monkeypatch, "piqa", doc_to_choice=lambda document: ["only"], doc_to_target=lambda document: 0)
    with pytest.raises(UserError, match=r"two choices or more[\s\S]*piqa, item 0"):
        load_items(["piqa"], bench, 1)


def test_kept_prompts(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["mmlu", "arc_challenge", "lambada_openai"]
    built = load_items(names, bench, 6)
    assert load_items(names, bench, 6, tmp_path) == built
    (whole,) = tmp_path.glob("arc_challenge-*.parquet")
    (damaged,) = tmp_path.glob("lambada_openai-*.parquet")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    (changed,) = tmp_path.glob("mmlu-*.parquet")
    changed.write_bytes(whole.read_bytes())  # a file of something else, in its place
    asked = []

    def load(task: str, data: Path | None, limit: int | None) -> TaskItems:
        asked.append(task)
        return built[task]

    monkeypatch.setattr(items, "_load", load)
    assert load_items(names, bench, 6, tmp_path) == built
    assert asked == ["mmlu", "lambada_openai"]
    assert load_items(names, bench, 6, tmp_path) == built
    first = replace(built["arc_challenge"].items[0], gold=3)
    other = replace(built["arc_challenge"], items=(first, *built["arc_challenge"].items[1:]))
    assert first != built["arc_challenge"].items[0]
    kept._write(whole, other)
    assert kept._read(whole) is None, "its hash is that of other items"
    assert load_items(["mmlu"], bench, 7, tmp_path) == {"mmlu": built["mmlu"]}
    assert asked == ["mmlu", "lambada_openai", "mmlu"], "another limit is another file"


def test_kept_texts_may_hold_anything(tmp_path: Path) -> None:
    strange = Item("t", None, "0", "0", (("\ud83d", "\x00 é"), ("", "b")), ("a", "b"), 1, (0,), (), None, None, None)
    content = TaskItems("t", "multiple_choice", (strange,), 1, items.items_hash([strange]), 0, 1.0, ("acc",), ("f1",))
    kept._write(tmp_path / "t.parquet", content)
    assert kept._read(tmp_path / "t.parquet") == content


def test_other_tasks_over_the_same_files(bench: Path) -> None:
    content = load_items(["mmlu_anatomy"], bench, 5)["mmlu_anatomy"]
    assert (len(content.items), content.items_total) == (5, 135)


def test_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(path: str, name: str | None = None, **kwargs: Any) -> dict[str, datasets.Dataset]:
        asked.append((path, name, kwargs))
        rows = [{"goal": "g", "sol1": "a", "sol2": "b", "label": label} for label in (0, 1, 1)]
        return {"validation": datasets.Dataset.from_list(rows)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(harness, "pinned_revision", lambda dataset: f"commit of {dataset}")
    content = load_items(["piqa"], None, 2)["piqa"]
    assert [item.gold for item in content.items] == [0, 1]
    assert content.items_total == 3
    assert asked == [("baber/piqa", None, {"revision": "commit of baber/piqa"})]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's folder, empty, and a Hub that cannot be reached."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(revisions, "_newest", lambda dataset: None)
    monkeypatch.setattr(revisions, "pinned_revision", revisions.pinned_revision.__wrapped__)
    return tmp_path


def test_revisions_are_of_the_first_use(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert revisions.revisions_of(["piqa", "arc_easy"]) == {"allenai/ai2_arc": "unknown", "baber/piqa": "unknown"}
    assert not list(hub.iterdir())
    reference = hub / "hub" / "datasets--allenai--ai2_arc" / "refs" / "main"
    reference.parent.mkdir(parents=True)
    reference.write_text("downloaded")
    monkeypatch.setattr(revisions, "_newest", lambda dataset: "newest")
    first = {"allenai/ai2_arc": "downloaded", "baber/piqa": "newest"}
    assert revisions.revisions_of(["piqa", "arc_easy"]) == first
    assert json.loads((hub / "onward-datasets.json").read_text()) == first
    monkeypatch.setattr(revisions, "_newest", lambda dataset: "newer")
    reference.write_text("newer")
    assert revisions.revisions_of(["piqa", "arc_challenge", "openbookqa"]) == first | {"allenai/openbookqa": "newer"}
    assert item_facts(["piqa"], None, None)["data"] == {"baber/piqa": "newest"}
    (hub / "onward-datasets.json").write_text('{"baber/piqa": "mine"}')
    assert revisions.pinned_revision("baber/piqa") == "mine"
    assert revisions.pinned_revision("json") is None


@pytest.mark.usefixtures("hub")
def test_prompts_of_an_unknown_revision_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = TaskItems("piqa", "multiple_choice", (), 0, "h", 0, None, ("acc",))
    monkeypatch.setattr(items, "_load", lambda *arguments: built)
    assert load_items(["piqa"], None, 1, tmp_path / "kept") == {"piqa": built}
    assert not (tmp_path / "kept").exists()


def test_the_seven_tasks_are_where_they_are_said_to_be() -> None:
    assert {task: {one.dataset for one in definitions(task)} for task in TASKS} == {
        task: {dataset} for task, dataset in revisions.DATASETS.items()
    }


def test_hub_failures_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"evaluation\.data to a folder"):
        load_items(["piqa"], None, 2)
