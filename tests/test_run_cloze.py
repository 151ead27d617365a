"""A run with questions of its own text: made once with the base, scored for the base and for every stage."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import onward
import small_run
from invented import invented_texts
from onward.artifact import building, find, read_manifest
from onward.evaluation import cloze
from onward.evaluation.cloze import checks
from onward.evaluation.cloze.artifact import ClozeItem, read_cloze, write_cloze
from onward.evaluation.scores import read_items
from onward.pipeline import RunResult


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replace the making, which refuses a random model, by one that writes a few items; what it was asked for."""
    asked: list[dict[str, Any]] = []

    def make_cloze(held_out: Path, *, folder: Path, progress: Any, **inputs: Any) -> Path:
        made_from = cloze.cloze_made_from(held_out, **inputs)
        if find(folder, made_from) is None:
            asked.append({"held_out": held_out, **inputs})
            with building(folder, "cloze", made_from) as aside:
                choices = ("river", "wheel", "stone", "field")
                items = [
                    ClozeItem(f"d{n}", f"d{n}", None, f"d{n}", f"By the mill {n} there was a", ".", choices, n % 4, "w",
                              1, (-1.0,) * 4)
                    for n in range(8)
                ]  # fmt: skip
                write_cloze(aside, items, {})
        return folder

    monkeypatch.setattr(cloze, "make_cloze", make_cloze)
    return asked


def run(place: Path, **changes: Any) -> RunResult:
    recipe = small_run.recipe(place, **{"training__stages": [960], "evaluation__cloze": 8} | changes)
    return onward.run(recipe, folders=small_run.folders(place), workers=1)


def test_questions_are_made_once_and_scored_before_and_after(made: list[dict[str, Any]], tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    result = run(place)
    (asked,) = made
    corpus = Path(asked["held_out"])
    assert (corpus / "held_out.parquet").is_file()
    assert (asked["items"], asked["seed"]) == (8, 5)
    assert asked["base"].folder == place / "model"
    for scores in (result.base_scores, *result.stage_scores):
        assert [(task.task, task.items, task.chance) for task in scores.tasks] == [("cloze:domain", 8, 0.25)]
    items = read_items(result.folder / "scores/tokens-000000960").to_pylist()
    assert [row["gold"] for row in items if row["task"] == "cloze:domain"] == [0, 1, 2, 3] * 2
    (folder,) = (place / "cache/cloze").iterdir()
    for scores_folder in (result.folder / "scores/tokens-000000960", *(place / "cache/scores").iterdir()):
        manifest, questions = read_manifest(scores_folder), read_manifest(folder)
        assert manifest is not None
        assert questions is not None
        assert manifest.made_from["cloze"] == questions.fingerprint
    names = [row.name for row in result.report.findings.stages[0].comparison.differences]
    assert "cloze:domain" in names
    assert run(place).base_scores == result.base_scores
    assert len(made) == 1


def test_a_run_makes_its_questions_of_its_own_held_out_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is replaced but the demand that the base, which is random here, be above chance."""
    asked: list[float] = []
    monkeypatch.setattr(checks, "require_between", lambda accuracy, *_: asked.append(accuracy.estimate))
    place = small_run.write_inputs(tmp_path)
    texts = {f"told-{n}": text for n, text in enumerate(invented_texts(120))}
    rows = [json.dumps({"id": name, "text": text}) for name, text in texts.items()]
    (place / "held_out.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    held_out = {"sources": [{"path": str(place / "held_out.jsonl")}]}
    result = run(place, corpus__held_out=held_out, evaluation__cloze=40)
    (folder,) = (place / "cache/cloze").iterdir()
    items, facts = read_cloze(folder), json.loads((folder / "facts.json").read_bytes())
    assert len(items) == facts["items"] == 40
    assert facts["held_out_documents"] == 120
    assert facts["training_documents"] > 0, "the text that is trained on is counted too"
    assert facts["ngram"]["accuracy"] == 0.25
    assert asked == [facts["base_accuracy"]["accuracy"]]
    for item in items:
        document = " ".join(texts[item.document].split())
        assert " ".join(f"{item.context} {item.choices[item.gold]}{item.rest}".split()) in document
    (task,) = result.base_scores.tasks
    accuracy = task.find("acc")
    assert accuracy is not None
    assert (task.task, task.items, accuracy.value) == ("cloze:domain", 40, pytest.approx(asked[0]))
    assert [score.task for score in result.stage_scores[0].tasks] == ["cloze:domain"]
