"""Which inputs a run goes on from its checkpoints with: those that determine its weights, and no others."""

import json
from pathlib import Path

import pytest
from test_train import GENERAL, assert_same, place, settings

from onward.artifact import fingerprint
from onward.errors import UserError
from onward.model.source import describe
from onward.recipe import Training
from onward.training.record import read_rows
from onward.training.stages import Stage
from onward.training.train import train
from synthetic import write_corpus

__all__ = ["place"]  # a fixture


def handed(place: Path, run: str, training: Training, stage: int | None, **corpora: str) -> tuple[Stage, ...]:
    """Train with the corpora of these folders."""
    folders = {name: place / folder for name, folder in corpora.items()}
    return train(
        training, base=describe(place / "model"), corpora=folders, seed=3, run_folder=place / run, until_stage=stage
    )


def test_a_corpus_that_nothing_reads_may_change(place: Path) -> None:
    write_corpus(place / "longer", GENERAL * 2, 48, seed=2)
    alone = settings(forgetting={"replay": None, "ewc": {"strength": 0.0, "text": "general"}})
    handed(place, "alone", alone, 1, domain="domain", general="general")
    made = handed(place, "alone", alone, None, domain="domain", general="longer")
    assert_same(made[1], handed(place, "whole", alone, None, domain="domain")[1])
    for name, other in (("replayed", settings()), ("weighed", settings(forgetting={"ewc": {"tokens": 200}}))):
        handed(place, name, other, 1, domain="domain", general="general")
        with pytest.raises(UserError, match=r"corpora\.general: was 'general', is 'longer'"):
            handed(place, name, other, None, domain="domain", general="longer")
    control = settings(text="general", forgetting={"replay": None})
    handed(place, "control", control, 1, domain="domain", general="general")
    handed(place, "control", control, None, domain="longer", general="general")


@pytest.mark.parametrize("general", ["general", None])
def test_checkpoints_that_name_what_nothing_reads_are_gone_on_from(place: Path, general: str | None) -> None:
    """Older versions named every corpus that they were handed."""
    alone = settings(forgetting={"replay": None})
    whole = handed(place, "whole", alone, None, domain="domain", general="general")
    handed(place, "run", alone, 1, domain="domain", general="general")
    for path in (place / "run" / "checkpoints").glob("*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        assert "corpora.general" not in manifest["made_from"]
        made_from = manifest["made_from"] | {"corpora.general": general}
        path.write_text(json.dumps(manifest | {"made_from": made_from, "fingerprint": fingerprint(made_from)}))
    assert_same(handed(place, "run", alone, None, domain="domain", general="general")[1], whole[1])
    again = handed(place, "run", alone, None, domain="domain")
    assert [row["event"] for row in read_rows(place / "run" / "events.jsonl")].count("start") == 1
    newest = json.loads((again[1].folder / "manifest.json").read_bytes())
    assert newest["made_from"].get("corpora.general") == general, "one run's manifests name the same"
