"""Questions are the items that are scored, in their own words."""

from pathlib import Path
from typing import Any

import pytest

from onward.errors import UserError
from onward.recipe import TASKS
from onward.tasks import Question, TaskItems, item_facts, load_items, load_questions
from onward.tasks.questions import _shown


@pytest.fixture(scope="module")
def bench(shared_data: Path) -> Path:
    return shared_data / "bench"


@pytest.fixture(scope="module")
def items(bench: Path) -> dict[str, TaskItems]:
    return load_items(TASKS, bench, 60)


@pytest.fixture(scope="module")
def questions(bench: Path) -> dict[str, tuple[Question, ...]]:
    return load_questions(TASKS, bench, 60)


def letters(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())


@pytest.mark.parametrize("task", TASKS)
def test_they_are_the_items_that_are_scored(
    questions: dict[str, tuple[Question, ...]], items: dict[str, TaskItems], task: str
) -> None:
    assert [question.id for question in questions[task]] == [item.id for item in items[task].items]
    for question, item in zip(questions[task], items[task].items, strict=True):
        prompts = [letters(context + continuation) for context, continuation in item.requests]
        if question.asked is not None:
            assert letters(question.asked) in prompts[0]
        if task == "boolq":
            assert prompts[0].startswith(letters(question.texts[0]))
        elif task == "mmlu":
            assert f"{item.requests[item.gold][1].strip()}. {question.answer}\n" in item.requests[0][0]
        elif task.startswith("arc"):
            assert question.answer == item.choices[item.gold]
            assert all(letters(choice) in letters(question.texts[0]) for choice in item.choices)
        else:
            gold, *others = prompts[item.gold], *prompts[: item.gold], *prompts[item.gold + 1 :]
            assert letters(question.texts[-1]) in gold.replace("answer", "")
            assert all(letters(question.texts[-1]) not in prompt.replace("answer", "") for prompt in others)


def test_template_words_are_no_part_of_them(questions: dict[str, tuple[Question, ...]]) -> None:
    texts = [text for task in TASKS for question in questions[task] for text in (*question.texts, question.asked or "")]
    assert not [text for text in texts if "Answer:" in text or "The following are multiple choice" in text]
    assert questions["winogrande"][0] == Question(
        "winogrande",
        "0",
        (
            "Sarah was a much better surgeon than Maria so  always got the easier cases.",
            "Sarah was a much better surgeon than Maria so Maria always got the easier cases.",
        ),
    )


def test_a_limit_takes_the_same_items_and_none_takes_all(bench: Path) -> None:
    for task in ("mmlu", "hellaswag"):
        limited = load_questions([task], bench, 7)[task]
        assert [question.id for question in limited] == [item.id for item in load_items([task], bench, 7)[task].items]
    everything = load_questions(TASKS, bench, None)
    assert sum(map(len, everything.values())) == 34_007
    assert all(question.texts and all(question.texts) for task in TASKS for question in everything[task])


class Harness:
    """The three functions of an lm-eval task that a question is read from."""

    OUTPUT_TYPE = "multiple_choice"

    def __init__(self, text: Any, choices: list[str], target: Any, multiple_input: bool = False) -> None:
        self.text, self.choices, self.target, self.multiple_input = text, choices, target, multiple_input

    def doc_to_text(self, document: dict[str, Any]) -> Any:
        return self.text

    def doc_to_choice(self, document: dict[str, Any]) -> list[str]:
        return self.choices

    def doc_to_target(self, document: dict[str, Any]) -> Any:
        return self.target


def test_any_other_task_by_what_its_prompt_shows_of_the_document() -> None:
    document = {"support": "Water boils.", "id": "q7", "question": "Why?", "good": "heat", "bad": "cold", "n": 3}
    built = Harness("Water boils.\nQuestion: Why?\nAnswer:", ["cold", "heat"], 1)
    assert _shown(built, "sciq", "0", document) == Question(
        "sciq", "0", ("Water boils.", "Why? cold heat"), "Why?", "heat"
    )
    document = {"stem": " Why? ", "choices": {"text": ["cold", "heat"], "label": ["1", "2"]}}
    built = Harness("Q: Why?\nA. cold\nB. heat\nAnswer:", ["A", "B"], 0)
    assert _shown(built, "t", "1", document) == Question("t", "1", ("Why? cold heat",), "Why?", "cold")
    listed = Harness("Why? heat or cold?", ["cold", "heat"], 1)
    assert _shown(listed, "t", "5", {"q": "Why?", "good": "heat", "bad": "cold"}).texts == ("Why? cold heat",)
    assert _shown(built, "t", "2", {"n": 1}).asked == built.text
    built = Harness(1, ["He sat because he", "He sat because she"], "was tired.", multiple_input=True)
    assert _shown(built, "t", "3", {}) == Question("t", "3", ("He sat because she was tired.",))
    assert _shown(Harness("Why?", ["cold", "heat"], "heat"), "t", "4", {"q": "Why?", "a": "heat"}).answer == "heat"


def test_texts_without_choices(bench: Path, shared_data: Path, tmp_path: Path) -> None:
    (question,) = load_questions(["lambada_openai"], bench, 1)["lambada_openai"]
    assert question.texts[0].startswith("In my palm is a clear stone")
    assert question.texts[0].endswith("I don't care about signs")
    assert (question.asked, question.answer) == (None, None)
    (tmp_path / "wikitext2_valid.txt.gz").symlink_to(shared_data / "general" / "wikitext2_valid.txt.gz")
    (question,) = load_questions(["wikitext"], tmp_path, 1)["wikitext"]
    assert question.texts[0].startswith("= Homarus gammarus =")
    (question,) = load_questions(["openbookqa"], bench, 1)["openbookqa"]
    assert question.answer == "quit eating lunch out"
    assert "have lunch with friends" in question.texts[0]


def test_other_tasks_over_known_files_and_unknown_tasks(bench: Path) -> None:
    subject = load_questions(["mmlu_anatomy"], bench, 5)["mmlu_anatomy"]
    assert [question.id for question in subject] == [f"anatomy/{n}" for n in range(5)]
    assert subject[0].answer in subject[0].texts[0]
    with pytest.raises(UserError, match="did you mean hellaswag"):
        load_questions(["helaswag"], None, 1)


def test_documents_of_another_schema_are_read_as_the_prompt_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"goal": "Boil an egg", "sol1": "in water", "sol2": "in sand", "label": n % 2} for n in range(3)]
    known = {"validation": datasets.Dataset.from_list(rows)}
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: known)
    assert [question.texts[0] for question in load_questions(["piqa"], None, 2)["piqa"]] == [
        "Boil an egg in water",
        "Boil an egg in sand",
    ]
    monkeypatch.setattr("onward.tasks.questions._FIELDS", {"piqa": ("ziel",)})
    (question,) = load_questions(["piqa"], None, 1)["piqa"]
    assert question == Question("piqa", "0", ("Boil an egg in water in sand",), "Boil an egg", "in water")


def test_facts_change_with_what_the_items_are_made_from(bench: Path, tmp_path: Path) -> None:
    facts = item_facts(["piqa", "boolq"], bench, 5)
    assert facts == item_facts(("piqa", "boolq", "piqa"), bench, 5)
    others = [item_facts(["piqa"], bench, 5), item_facts(["piqa", "boolq"], bench, 6)]
    others += [item_facts(["piqa", "boolq"], tmp_path, 5), item_facts(["piqa", "boolq"], None, 5)]
    assert facts not in others
    assert item_facts([], None, 5) == {"tasks": [], "limit": 5}
