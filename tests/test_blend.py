"""`onward blend`: the line between two models, or of a recipe's base and its last stage."""

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

import small_run
from onward.artifact import Folders, locked
from onward.cli import app
from onward.evaluation import heldout
from onward.evaluation.scores import read_scores
from onward.model.load import export_model, load_model
from onward.model.source import describe, resolve
from onward.pipeline.blend import score_blends
from onward.pipeline.given_text import given_text
from onward.progress import Silent
from onward.recipe import Evaluation
from synthetic import write_model

Invoke = Callable[..., Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, the same a little changed, and text."""
    place = tmp_path_factory.mktemp("made")
    write_model(place / "base", seed=1)
    change(place / "base", place / "adapted", 0.02)
    small_run.write_texts(place / "stories.jsonl", 30, seed=1)
    small_run.write_texts(place / "letters.jsonl", 30, seed=2)
    small_run.write_texts(place / "more.jsonl", 9, seed=3)
    return place


def change(base: Path, folder: Path, size: float) -> None:
    model = load_model(describe(base))
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=random)
    export_model(model, base, folder)


@pytest.fixture
def invoke(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(a) for a in arguments] + ["--cache", str(made / "cache")])

    return call


def test_the_line_is_scored_and_the_chosen_blend_is_a_model(invoke: Invoke, made: Path, tmp_path: Path) -> None:
    texts = ("--domain", made / "stories.jsonl", "--domain", made / "more.jsonl", "--general", made / "letters.jsonl")
    arguments = ("blend", made / "base", made / "adapted", *texts, "--steps", 3)
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    place = Path("scores/blended-base-adapted")
    content = json.loads((place / "blend.json").read_bytes())
    assert [row["share"] for row in content["blends"]] == [0, 0.5, 1]
    assert sum(row["chosen"] for row in content["blends"]) == 1
    assert sum(content["documents"]["domain"].values()) == 39, "several files are one text"
    scores = read_scores(place / "scores/share-0.5")
    assert [text.corpus for text in scores.held_out] == ["domain", "general"]
    assert "Chosen on the dev part" in result.stdout
    size = sum(text.tokens for text in scores.held_out)
    assert f"to score: 3 shares x {size:,} tokens of text = {3 * size:,}" in result.stderr
    assert "share 2 of 3: scoring held-out domain text" in result.stderr
    assert f"model: {place / 'model'}\n" in result.stdout
    facts = json.loads((place / "model/blend.json").read_bytes())
    assert facts["share"] == content["chosen"]
    assert facts["chosen_by"].startswith("the smallest sum of relative changes")
    assert "![" in (place / "blend.md").read_text()
    picture = (place / "blend.svg").read_text()
    assert picture.count('class="end"') == 3
    assert "base" in picture

    times = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    again = invoke(*arguments, "--json")
    assert json.loads(again.stdout) == content | {"model": str(place / "model")}
    assert times == {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}

    other = invoke(*arguments, "--choose", "domain", "--general-loss", "100%")
    assert other.exit_code == 0, other.output
    assert f"an earlier choice) in {place}; --out keeps both" in " ".join(other.stderr.split())
    assert "an earlier choice" not in result.stderr + again.stderr
    lowest = min(content["blends"], key=lambda row: row["domain_dev"])["share"]
    replaced = json.loads((place / "model/blend.json").read_bytes())
    assert replaced["share"] == lowest
    assert "100.0 % above the base" in replaced["chosen_by"]
    assert load_model(place / "model").num_parameters() == load_model(made / "base").num_parameters()


def test_the_packaged_model_and_a_changed_copy_on_text_and_tasks(
    invoke: Invoke, made: Path, shared_data: Path, tmp_path: Path
) -> None:
    tiny = resolve("onward/tiny").folder
    change(tiny, tmp_path / "changed", 0.005)
    bench = ("--tasks", "piqa", "--limit", 4, "--data", shared_data / "bench")
    texts = ("--domain", made / "stories.jsonl", "--text-tokens", 900)
    result = invoke("blend", "onward/tiny", "changed", *texts, *bench, "--steps", 2, "--out", "out")
    assert result.exit_code == 0, result.output
    place = Path("out/blended-tiny-changed")
    content = json.loads((place / "blend.json").read_bytes())
    assert {"piqa acc", "piqa acc_norm", "domain_dev", "domain_test"} <= content["blends"][0].keys()
    assert "piqa acc" in result.stdout
    assert content["chosen"] == 0, "noise makes no text easier"
    assert "This is the base itself" in result.stdout
    written, given = load_file(place / "model/model.safetensors"), load_file(tiny / "model.safetensors")
    assert written.keys() == given.keys()
    assert all(torch.equal(written[name], given[name]) and written[name].dtype == given[name].dtype for name in given)


def test_a_text_that_another_process_reads_is_waited_for(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = given_text("domain", [str(made / "stories.jsonl")], tmp_path / "cache", Silent())
    first.rename(tmp_path / "made")
    held, told = ExitStack(), list[str]()
    held.enter_context(locked(first))

    class Waiting(Silent):
        def note(self, text: str) -> None:
            told.append(text)
            (tmp_path / "made").rename(first)  # the other is done
            held.close()

    (tmp_path / "made" / "of the other").touch()
    assert given_text("domain", [str(made / "stories.jsonl")], tmp_path / "cache", Waiting()) == first
    assert told == ["another process reads domain: waiting for it"]
    assert (first / "of the other").exists(), "it was not read again"


def test_a_blend_of_other_text_stands_beside(invoke: Invoke, made: Path) -> None:
    models = ("blend", made / "base", made / "adapted", "--steps", 2)
    assert invoke(*models, "--domain", made / "stories.jsonl").exit_code == 0
    place = Path("scores/blended-base-adapted")
    times = {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    other = invoke(*models, "--domain", made / "letters.jsonl")
    assert other.exit_code == 0, other.output
    (beside,) = Path("scores").glob("blended-base-adapted-*")
    assert f"these go into {beside}" in " ".join(other.stderr.split())
    assert f"model: {beside / 'model'}\n" in other.stdout
    assert times == {path: path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}
    again = invoke(*models, "--domain", made / "letters.jsonl")
    assert f"model: {beside / 'model'}\n" in again.stdout
    assert len(list(Path("scores").iterdir())) == 2


def test_a_killed_line_goes_on_at_its_share(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"domain": given_text("domain", [str(made / "stories.jsonl")], tmp_path, Silent())}
    base, adapted = describe(made / "base"), describe(made / "adapted")
    scored: list[int] = []
    whole = heldout.score_documents

    def score(killed_after: int | None = None) -> Any:
        def documents(*arguments: Any) -> Any:
            if len(scored) == killed_after:
                raise KeyboardInterrupt
            scored.append(1)
            return whole(*arguments)

        scored.clear()
        monkeypatch.setattr(heldout, "score_documents", documents)
        return score_blends(
            base,
            adapted,
            (0.0, 0.25, 0.5, 1.0),
            held_out=texts,
            evaluation=Evaluation(tasks=(), resamples=100),
            place=tmp_path / "blends",
            folders=Folders(tmp_path, tmp_path),
        )

    with pytest.raises(KeyboardInterrupt):
        score(killed_after=2)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("blends/share-*/results.json")}
    assert len(kept) == 2
    found = score()
    assert len(scored) == 2, "only what was missing"
    assert kept.items() <= {path: path.stat().st_mtime_ns for path in tmp_path.glob("blends/*/results.json")}.items()
    assert [blend.share for blend in found] == [0.0, 0.25, 0.5, 1.0]
    nats = [blend.scores.held_out[0].nats for blend in found]
    assert len(set(nats)) == 4
    again = score()
    assert not scored
    assert [blend.scores for blend in again] == [blend.scores for blend in found]


def test_a_recipe_is_blended_by_its_own_text(invoke: Invoke, tmp_path: Path) -> None:
    small_run.write_inputs(tmp_path / "place")
    content = small_run.content(tmp_path / "place", training__stages=[960])
    Path("small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    untrained = invoke("blend", "small.yaml")
    assert untrained.exit_code == 2
    assert "no stage of this recipe is trained yet" in untrained.stderr
    assert invoke("run", "small.yaml", "--workers", 1).exit_code == 0
    result = invoke("blend", "small.yaml", "--steps", 3, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert "to score: 1 share x" in result.stderr, "the run has scored the two models"
    assert "share 2 of 3: scoring" in result.stderr
    assert "share 1 of 3: scoring" not in result.stderr
    assert "share 3 of 3: scoring" not in result.stderr
    assert "to score" not in invoke("blend", "small.yaml", "--steps", 3, "--workers", 1).stderr
    found = json.loads(Path("runs/small/blend/blend.json").read_bytes())
    assert found["adapted"] == "tokens-000000960"
    assert found["documents"].keys() == {"domain", "general"}
    assert Path("runs/small/blend/model/model.safetensors").is_file()
    assert not Path("scores").exists()


def test_a_recipe_with_too_little_text_is_told_what_to_change_in_it(invoke: Invoke, tmp_path: Path) -> None:
    small_run.write_inputs(tmp_path / "place")
    content = small_run.content(tmp_path / "place", training__stages=[960], evaluation__held_out_tokens=1)
    Path("small.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert invoke("train", "small.yaml", "--workers", 1).exit_code == 0
    few = invoke("blend", "small.yaml", "--workers", 1)
    assert few.exit_code == 2
    said = " ".join(few.stderr.split())
    assert "too little to be halved" in said
    assert "give it another name with a larger corpus.held_out.share" in said
    assert "evaluation.held_out_tokens (1 now)" in said
    assert "--text-tokens" not in said
    assert not list(Path("runs/small").glob("blend/scores/*")), "refused before any is scored"


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")], ids=["no", "cut"])
@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_what_is_damaged_is_written_anew(
    invoke: Invoke, made: Path, damage: Callable[[Path], Any], content: str
) -> None:
    line = ("blend", made / "base", made / "adapted", "--steps", 2, "--domain", made / "stories.jsonl", "--limit", 3)
    assert invoke(*line).exit_code == 0
    place = Path("scores/blended-base-adapted")
    whole = {name: (place / name).read_bytes() for name in ("model/model.safetensors", "blend.json")}
    damage(place / "model/model.safetensors")
    (place / "blend.json").write_text(content)
    again = invoke(*line)
    assert again.exit_code == 0, again.output
    assert whole == {name: (place / name).read_bytes() for name in whole}


def test_a_limit_of_no_task_is_no_other_scoring(invoke: Invoke, made: Path) -> None:
    line = ("blend", made / "base", made / "adapted", "--steps", 2, "--domain", made / "stories.jsonl")
    assert invoke(*line).exit_code == 0
    times = {path: path.stat().st_mtime_ns for path in Path("scores").rglob("results.json")}
    assert invoke(*line, "--limit", 3, "--tasks", "none").exit_code == 0
    assert times == {path: path.stat().st_mtime_ns for path in Path("scores").rglob("results.json")}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("base",), "a blend is of two models"),
        (("base", "adapted", "base"), "a blend is of two models"),
        (("base", "adapted"), "there is no text to choose a blend by"),
        (("base", "base", "--domain", "stories.jsonl"), "a model is named twice"),
        (("base", "missing", "--domain", "stories.jsonl"), "missing"),
        (("base", "onward/tiny", "--domain", "stories.jsonl"), "these are not two models of one network"),
        (("base", "adapted", "--domain", "missing.jsonl"), "there is no such file"),
        (("base", "adapted", "--domain", "one.txt"), "too little to be halved"),
        (("base", "adapted", "--domain", "stories.jsonl", "--general-loss", "1%"), "add --general FILE"),
        (("base", "adapted", "--domain", "stories.jsonl", "--general-loss", "5x"), "not a share"),
        (("base", "adapted", "--domain", "stories.jsonl", "--set", "seed=1"), "these options are for a recipe"),
        (("quickstart", "adapted"), "a recipe is scored alone"),
        (("quickstart", "--domain", "stories.jsonl"), "the recipe itself says what is scored"),
        (("quickstart", "--text-tokens", "1M"), "--set evaluation.held_out_tokens=1M"),
    ],
)
def test_wrong_requests_are_answered_with_code_2(
    invoke: Invoke, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    for name in ("base", "adapted", "stories.jsonl"):
        Path(name).symlink_to(made / name)
    Path("one.txt").write_text("A line of the only document.\n")
    result = invoke("blend", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert not list(Path().glob("scores/*/scores/*")), "refused before the line is scored"
