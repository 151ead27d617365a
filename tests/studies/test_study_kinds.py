"""Studies of every kind but remedies, run on a model and texts so small that it takes seconds."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from small_study import study
from typer.testing import CliRunner

import small_run
from onward.artifact import Folders
from onward.cli import app
from onward.pipeline import Run
from onward.recipe import load_recipe
from onward.studies import planned, run_study
from onward.studies.states import drop_states


def test_states_that_are_kept_are_kept(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_run.content(place, training__stages=[4800])), encoding="utf-8")
    places = ["--cache", str(place / "cache"), "--runs", str(place / "runs"), "--workers", "1"]
    result = CliRunner().invoke(app, ["study", "pilot", str(recipe), "--tokens", "960", "--keep-states", *places])
    assert result.exit_code == 0, result.output
    folder = place / "runs" / "small-pilot"
    assert (folder / "members/pilot-seed0/checkpoints/tokens-000000960/state").is_dir()
    assert "A pilot of 960 tokens, 2 steps" in result.stdout
    assert "corpora: 2 made, 0 reused" in result.stdout
    assert str(folder / "index.html") in " ".join(result.stdout.split())
    # The same member by itself: its recipe is whole, and everything is there.
    alone = Run(load_recipe(folder / "recipes/pilot-seed0.yaml"), folders=Folders(place / "cache", folder / "members"))
    assert alone.train()[0].model.is_dir()
    assert drop_states(alone.folder) > 0
    assert drop_states(alone.folder) == 0
    assert [stage.tokens for stage in alone.train()] == [960], "it is still done"


def test_the_study_of_tokens_scores_models_between(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    result = study(place, "tokens", study={"budgets": [960, 1920, 4800]})
    assert result.outcome is not None
    assert [(row["tokens"], row["decayed"]) for row in result.outcome.rows] == [
        (960, False), (1920, False), (4800, True),
    ]  # fmt: skip
    assert (result.counts.made["trained members"], result.counts.made["scores"]) == (1, 3)
    # The gains by hand, from the changes beside them.
    before = [{"tokens": 0, "domain": 0.0}, *result.outcome.rows]
    gains = [
        1e8 * (first["domain"] - second["domain"]) / (second["tokens"] - first["tokens"])
        for first, second in pairwise(before)
    ]
    assert [row["gain_per_100M"] for row in result.outcome.rows] == pytest.approx(gains, rel=1e-4)
    assert gains[1] >= gains[0] / 2
    assert gains[2] < max(gains[:2]) / 2, "the last piece is the first that has halved"
    assert result.outcome.headline.startswith("4.8k tokens change the domain by −")
    assert result.outcome.headline.endswith("; the gain per token halves after 1.92k tokens.")


def test_the_baseline_is_the_base_on_everything(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    result = study(place, "baseline")
    assert result.outcome is not None
    assert [row["name"] for row in result.outcome.rows] == ["domain", "general"]
    assert result.outcome.rows[0]["value_low"] < result.outcome.rows[0]["value"] < result.outcome.rows[0]["value_high"]
    cut = {"name": "few", "training__stages": [4800], "evaluation__held_out_tokens": 500}
    few = run_study(planned("baseline", small_run.recipe(place, **cut), folders=small_run.folders(place)), workers=1)
    assert few.outcome is not None
    assert 1 < few.outcome.rows[0]["items"] < 8
    assert few.outcome.rows[0]["value_low"] is few.outcome.rows[0]["value_high"] is None, "as few as give no verdict"
    assert "(unknown)" in few.outcome.findings[0]
    assert result.counts.made["trained members"] == 0
    # What the recipe's own run needs is what was made here.
    run = Run(small_run.recipe(place, training__stages=[4800]), folders=small_run.folders(place), workers=1)
    before = set((place / "cache").rglob("manifest.json"))
    run.score_base()
    assert set((place / "cache").rglob("manifest.json")) == before


def test_domains_and_sizes_stand_side_by_side(tmp_path: Path) -> None:
    from synthetic import llama_config, write_model

    place = small_run.write_inputs(tmp_path / "inputs")
    write_model(place / "wide", llama_config(hidden_size=48), seed=1)
    small_run.write_texts(place / "other.jsonl", 60, seed=9)
    text = small_run.content(place)["corpus"]
    given = {
        "tokens": 960,
        "domains": {"first": text, "second": {**text, "sources": [{"path": str(place / "other.jsonl")}]}},
        "models": {"narrow": {"base": str(place / "model")}, "wide": {"base": str(place / "wide")}},
    }
    domains = study(place, "domains", study=given)
    assert domains.outcome is not None
    assert [row["member"] for row in domains.outcome.rows] == ["first", "second"]
    assert (domains.counts.made["corpora"], domains.counts.reused["corpora"]) == (3, 1), "general text is shared"
    sizes = study(place, "sizes", study=given)
    assert sizes.outcome is not None
    small, large = (row["parameters"] for row in sizes.outcome.rows)
    assert small < large
    assert sizes.counts.made["corpora"] == 0, "one tokenizer, so the corpora are those of the study before"
    assert sizes.counts.made["base scores"] == 1
