"""`evaluation.at`: models between the stages' ends, written and scored, and a training that is the same with them."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import onward
import onward.training.checkpoint
import small_run
from onward.artifact import Folders, read_manifest
from onward.errors import UserError
from onward.evaluation.scores import read_scores
from onward.recipe import Evaluation, recipe_from_mapping
from onward.training.record import read_rows

AT = [480, 1900, 1920, 2400]
"""The first step; a count that is reached with the first stage's last step; that stage's end itself; a later step."""
BETWEEN = ("tokens-000000480", "tokens-000001900", "tokens-000002400")
STAGES = ("tokens-000001920", "tokens-000003840")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(place: Path, runs: str = "runs", **changes: Any) -> Path:
    folders = Folders(place / "cache", place / runs)
    return onward.run(small_run.recipe(place, **changes), folders=folders, workers=1).folder


def weights(run_folder: Path, kinds: tuple[str, ...] = ("checkpoints", "models")) -> dict[str, str]:
    """The content of every model and state of a run."""
    found = (path for kind in kinds for path in run_folder.glob(f"{kind}/**/*.safetensors"))
    return {path.relative_to(run_folder).as_posix(): small_run.content_hash(path) for path in found}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The place of two runs, one with and one without models between, and their folders."""
    place = small_run.write_inputs(tmp_path_factory.mktemp("between") / "run")
    return place, run(place, evaluation__at=AT), run(place, "plain")


def test_models_between_are_written_and_scored(finished: tuple[Path, Path, Path]) -> None:
    _, folder, _ = finished
    assert {path.name for path in (folder / "models").iterdir()} == set(BETWEEN)
    assert {path.name for path in (folder / "scores").iterdir()} == {*BETWEEN, *STAGES}
    domain = {name: read_scores(folder / "scores" / name).held_out[0].bits_per_byte for name in (*BETWEEN, *STAGES)}
    assert domain[BETWEEN[0]] > domain[STAGES[0]] > domain[BETWEEN[2]] > domain[STAGES[1]]
    assert domain[BETWEEN[1]] == domain[STAGES[0]], "both are the model after four steps"
    steps = []
    for name in BETWEEN:
        manifest = read_manifest(folder / "models" / name)
        assert manifest is not None
        steps.append(manifest.made_from["step"])
    assert steps == [1, 4, 5]
    events = [row for row in read_rows(folder / "events.jsonl") if row["event"] == "model"]
    assert [(row["step"], row["folder"]) for row in events] == list(zip(steps, BETWEEN, strict=True))


def test_the_training_is_bit_for_bit_the_same_without_them(finished: tuple[Path, Path, Path]) -> None:
    _, folder, plain = finished
    assert weights(folder, ("checkpoints",)) == weights(plain)
    assert not (plain / "models").exists()
    kept = ("step", "tokens", "loss_nats", "gradient_norm", "learning_rate")
    rows, others = ([[row[key] for key in kept] for row in read_rows(f / "metrics.jsonl")] for f in (folder, plain))
    assert rows == others
    for name in STAGES:
        assert read_scores(folder / "scores" / name).held_out == read_scores(plain / "scores" / name).held_out


def test_a_model_that_is_lost_is_made_again_alone(finished: tuple[Path, Path, Path]) -> None:
    place, first, _ = finished
    folder = place / "lost" / "small"
    shutil.copytree(first, folder, copy_function=shutil.copy2)
    before = weights(folder)
    manifests = {name: (folder / "checkpoints" / name / "manifest.json").stat().st_mtime_ns for name in STAGES}
    shutil.rmtree(folder / "models" / BETWEEN[2])
    shutil.rmtree(folder / "scores" / BETWEEN[2])
    run(place, "lost", evaluation__at=AT)
    assert {name: content for name, content in weights(folder).items() if "/step-" not in name} == {
        name: content for name, content in before.items() if "/step-" not in name
    }
    assert manifests == {n: (folder / "checkpoints" / n / "manifest.json").stat().st_mtime_ns for n in STAGES}
    assert len(read_rows(folder / "metrics.jsonl")) == 8
    assert (folder / "scores" / BETWEEN[2] / "manifest.json").is_file()


def killed_at(place: Path, runs: str, moment: str, count: int) -> None:
    """Run in a child that is killed at the so-manyth call of a function of the checkpoints."""
    seen = 0
    original = getattr(onward.training.checkpoint.Checkpoints, moment)

    def dies(self: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments, **more)

    setattr(onward.training.checkpoint.Checkpoints, moment, dies)
    run(place, runs, evaluation__at=AT)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize(("moment", "count"), [("write_model", 1), ("save", 1), ("write_model", 2), ("save", 2)])
def test_a_kill_around_a_model_changes_nothing(
    finished: tuple[Path, Path, Path], moment: str, count: int, request: pytest.FixtureRequest
) -> None:
    """Before a model is written, and between it and the state of the same step."""
    place, folder, _ = finished
    runs = f"killed-{moment}-{count}"
    child = multiprocessing.get_context("fork").Process(target=killed_at, args=(place, runs, moment, count))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert not read_manifest(place / runs / "small/checkpoints" / STAGES[1])
    again = run(place, runs, evaluation__at=AT)
    assert weights(again) == weights(folder)
    rows, others = ([row["loss_nats"] for row in read_rows(f / "metrics.jsonl")] for f in (again, folder))
    assert rows == others


def test_counts_outside_the_run_are_refused(tmp_path: Path) -> None:
    content = small_run.content(tmp_path, evaluation__at=["1k", "4k", "9M"])
    with pytest.raises(UserError, match=r"4,000, 9,000,000 tokens; the run goes from 1 to 3,840[^-]*evaluation\.at"):
        recipe_from_mapping(content)
    with pytest.raises(UserError, match=r"evaluation\.at"):
        recipe_from_mapping(small_run.content(tmp_path, evaluation__at=[0]))


def test_a_run_stays_in_the_precision_it_began_with(
    finished: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine `auto` would mean something else, and the scores could not be compared any more."""
    place, folder, _ = finished
    assert json.loads((folder / "artifacts.json").read_bytes())["precision"] == "fp32"

    def elsewhere(evaluation: Evaluation, model: object) -> str:
        return "bf16" if evaluation.precision == "auto" else evaluation.precision

    monkeypatch.setattr("onward.evaluation.evaluate.choose_precision", elsewhere)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("scores/*/manifest.json")}
    run(place, evaluation__at=AT)
    assert before == {path: path.stat().st_mtime_ns for path in folder.glob("scores/*/manifest.json")}
