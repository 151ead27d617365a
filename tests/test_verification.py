"""Interrupted equals uninterrupted: what is compared, how a run is killed, and the whole of it on two ranks."""

import io
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import small_run
from onward.errors import UserError
from onward.pipeline import Run
from onward.training.checkpoint import Checkpoints, Snapshot
from onward.training.launch import Place
from onward.training.ranks import Ranks
from onward.verification import Life, StepPair, Verification, lives, verify_resume
from onward.verification.lives import Kill, live, plan_kills
from onward.verification.outcome import WeightsApart, paired, weights_apart
from onward.verification.view import verification_view

LIVES = (Life(1, 2, 0, 5, "all", True), Life(2, 1, 3, 6, "one rank", False), Life(1, 2, 6, 8, None, False))


def row(step: int, **changes: Any) -> dict[str, Any]:
    return {"step": step, "batch": f"{step:016x}", "labelled_tokens": 40, "loss_nats": 5.0 - step / 10, **changes}


def found(tolerance_nats: float = 1e-5, same_bits: bool = True, **changes: Any) -> Verification:
    """A verification of eight steps; changes are made to the interrupted run's step 4."""
    rows = [row(step) for step in range(8)]
    other = [row(step, **changes) if step == 4 else row(step) for step in range(8)]
    pairs = paired(rows, other, LIVES, 8)
    weights = WeightsApart(0.0 if same_bits else 1e-6, 0.0 if same_bits else 1e-7, same_bits)
    return Verification("small", "a CPU", "fp32", 8, 2, tolerance_nats, LIVES, pairs, weights, 60.0)


def test_equal_runs_agree_to_the_bit() -> None:
    verification = found(tolerance_nats=0.0)
    assert verification.agrees
    assert verification.same_bits
    assert verification.loss_difference_nats == 0
    assert (verification.kills, verification.kills_while_saving, verification.lost_steps) == (2, 1, (2, 0))
    assert [pair.life for pair in verification.pairs] == [0, 0, 0, 1, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "tolerance_nats", "agrees"),
    [
        ({"loss_nats": 4.600009}, 1e-5, True),
        ({"loss_nats": 4.60002}, 1e-5, False),
        ({"loss_nats": 4.600009}, 0.0, False),
        ({"loss_nats": float("nan")}, 1e-5, False),
        ({"batch": "f" * 16}, 1e-5, False),
        ({"labelled_tokens": 39}, 1e-5, False),
    ],
    ids=["within", "beyond", "bits", "not-a-number", "other-batch", "other-labels"],
)
def test_the_verdict_follows_from_batches_and_losses(
    changes: dict[str, Any], tolerance_nats: float, agrees: bool
) -> None:
    assert found(tolerance_nats, **changes).agrees is agrees


def test_other_final_weights_are_no_equal_bits() -> None:
    assert not found(tolerance_nats=0.0, same_bits=False).agrees
    assert found(tolerance_nats=1e-5, same_bits=False).agrees


@pytest.mark.parametrize("steps", [[0, 1, 3], [0, 1, 1, 2], []], ids=["gap", "twice", "nothing"])
def test_a_record_without_every_step_once_is_a_failure(steps: list[int]) -> None:
    with pytest.raises(RuntimeError, match="the interrupted run recorded the steps"):
        paired([row(step) for step in range(3)], [row(step) for step in steps], LIVES, 3)


def test_the_json_says_all_that_the_table_says() -> None:
    facts = json.loads(json.dumps(found(batch="f" * 16).as_json()))
    assert facts["agrees"] is False
    assert facts["kills_while_saving"] == 1
    assert facts["lost_steps"] == [2, 0]
    assert facts["lives"][1]["ranks"] == 2
    assert facts["pairs"][4] == {
        "step": 4,
        "life": 1,
        "same_batch": False,
        "labelled_tokens": [40, 40],
        "losses_nats": [4.6, 4.6],
    }


@pytest.mark.parametrize("changes", [{}, {"batch": "f" * 16}, {"loss_nats": 4.7}], ids=["agrees", "batch", "loss"])
def test_the_view_is_readable_at_80_columns(changes: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    for part in verification_view(found(**changes)):
        console.print(part)
    text = console.export_text()
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert "one rank killed" in text
    assert "killed while saving" in text
    assert "2 steps lost at most by a kill, 2 between checkpoints" in " ".join(text.split())
    if changes:
        assert "interrupted is NOT uninterrupted" in text
    else:
        assert "interrupted = uninterrupted: the same batches" in text
    assert ("OTHER" in text) is ("batch" in changes)


def write_state(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    checkpoints = Checkpoints(folder, lambda step: {"step": step}, Ranks(Place(), torch.device("cpu")), 2, False)
    checkpoints.save("step-00000001", Snapshot(1, 10, 1, {}), tensors)
    return folder / "step-00000001"


def test_final_states_are_compared_tensor_by_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onward.verification.outcome._GROUP_BYTES", 100)  # one tensor at a time
    torch.manual_seed(0)
    tensors = {name: torch.randn(7, 5) for name in ("weights.a", "weights.b", "exp_avg.a", "exp_avg_sq.a")}
    first = write_state(tmp_path / "first", tensors)
    assert weights_apart(first, write_state(tmp_path / "same", tensors)) == WeightsApart(0, 0, True)
    moved = tensors | {"weights.b": tensors["weights.b"] + 0.25}
    apart = weights_apart(first, write_state(tmp_path / "moved", moved))
    length = torch.cat([tensors["weights.a"], tensors["weights.b"]]).norm()
    assert apart.largest == pytest.approx(0.25, rel=1e-5)
    assert apart.relative == pytest.approx(float(0.25 * 35**0.5 / length), rel=1e-5)
    assert not apart.same_bits
    other_moment = write_state(tmp_path / "moment", tensors | {"exp_avg.a": tensors["exp_avg.a"] + 1})
    assert weights_apart(first, other_moment) == WeightsApart(0, 0, False)


def test_kills_are_spread_over_steps_and_every_second_waits_for_a_save() -> None:
    kills = plan_kills(40, steps=12, interval=2, step_seconds=1.0, chosen=random.Random(0))
    after = [kill.after_step for kill in kills]
    assert after == sorted(after)
    assert {*after} <= set(range(10))
    assert len({*after}) > 5
    assert [kill.in_save for kill in kills] == [False, True] * 20
    assert {kill.whole for kill in kills} == {True, False}


STAND_IN = """#!{python} -S
import json, os, subprocess, sys, time
from pathlib import Path
run = Path({run!r})
if {role!r} == "torchrun" and "torch.distributed.run" not in sys.argv:
    ranks = [subprocess.Popen([sys.executable, "-S", __file__, "torch.distributed.run"])]
    sys.exit(ranks[0].wait())
if {role!r} == "torchrun" and "rank" not in sys.argv:
    ranks = [subprocess.Popen([sys.executable, "-S", __file__, "torch.distributed.run", "rank"]) for _ in range(2)]
    while all(rank.poll() is None for rank in ranks):
        time.sleep(0.01)
    for rank in ranks:
        rank.terminate()
    sys.exit(1)
(run / "checkpoints").mkdir(parents=True, exist_ok=True)
with open(run / "events.jsonl", "a") as events:
    events.write(json.dumps(dict(event="start", step=0)) + "\\n")
with open(run / "metrics.jsonl", "w", buffering=1) as metrics:
    for step in range(100):
        metrics.write(json.dumps(dict(step=step)) + "\\n")
        if step == 5:
            (run / "checkpoints/.step-00000006.building").mkdir(exist_ok=True)
        time.sleep(0.02)
        if step == {end}:
            print("said before its end")
            sys.exit({status})
"""


def stand_in(place: Path, monkeypatch: pytest.MonkeyPatch, role: str = "alone", end: int = 99, status: int = 0) -> Path:
    """Put a script in the place of Python that records steps and saves, alone or as two ranks of a launcher."""
    run, script = place / "run", place / "python"
    run.mkdir()
    script.write_text(STAND_IN.format(python=sys.executable, run=str(run), role=role, end=end, status=status))
    script.chmod(0o755)
    monkeypatch.setattr(lives.sys, "executable", str(script))
    return run


def is_running(script: Path) -> bool:
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return any(str(script) in command for command in commands)


@pytest.mark.parametrize(("role", "whole"), [("alone", False), ("torchrun", True), ("torchrun", False)])
def test_a_kill_comes_after_its_step_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, whole: bool
) -> None:
    run = stand_in(tmp_path, monkeypatch, role)
    ending = live(["train"], run, tmp_path / "log", Kill(3, False, 0.0, whole), random.Random(0))
    assert ending.was_killed
    recorded = len((run / "metrics.jsonl").read_text().splitlines())
    assert 4 <= recorded < 99
    assert not is_running(tmp_path / "python")


def test_a_kill_in_a_save_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stand_in(tmp_path, monkeypatch)
    ending = live(["train"], run, tmp_path / "log", Kill(1, True, 0.0, True), random.Random(0))
    assert ending.while_saving
    assert len((run / "metrics.jsonl").read_text().splitlines()) >= 6


def test_a_record_of_an_earlier_life_starts_no_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stand_in(tmp_path, monkeypatch, end=2)
    (run / "events.jsonl").write_text('{"event": "start", "step": 0}\n')
    (run / "metrics.jsonl").write_text('{"step": 50}\n')
    ending = live(["train"], run, tmp_path / "log", Kill(40, False, 0.0, True), random.Random(0))
    assert not ending.was_killed


def test_a_training_that_fails_is_told_with_what_it_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stand_in(tmp_path, monkeypatch, end=2, status=1)
    with pytest.raises(RuntimeError, match="status 1") as failed:
        live(["train"], run, tmp_path / "log", None, random.Random(0))
    assert "said before its end" in str(failed.value)


def test_a_training_that_is_refused_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = stand_in(tmp_path, monkeypatch, end=2, status=2)
    with pytest.raises(UserError, match="did not run") as refused:
        live(["train"], run, tmp_path / "log", None, random.Random(0))
    assert "said before its end" in str(refused.value)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write_inputs(tmp_path_factory.mktemp("verification") / "inputs")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 1}, "2 to 8, the recipe's"),
        ({"steps": 9}, "2 to 8, the recipe's"),
        ({"ranks": []}, "ranks are counted from one"),
        ({"ranks": [1, 0]}, "ranks are counted from one"),
    ],
    ids=["one-step", "more-than-there-are", "no-ranks", "zero-ranks"],
)
def test_what_cannot_be_verified_is_refused_at_once(
    inputs: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        verify_resume(Run(small_run.recipe(inputs), folders=small_run.folders(tmp_path)), **settings)
    assert words in str(refused.value)
    assert not (tmp_path / "cache").exists()


def test_more_ranks_than_gpus_are_refused(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(UserError, match="2 ranks were asked for") as refused:
        verify_resume(Run(small_run.recipe(inputs), folders=small_run.folders(tmp_path)), ranks=[1, 2])
    assert "CUDA_VISIBLE_DEVICES=" in str(refused.value)


def test_a_killed_run_on_other_ranks_and_another_micro_batch_is_the_uninterrupted_one(
    inputs: Path, tmp_path: Path
) -> None:
    recipe, folders = small_run.recipe(inputs), small_run.folders(tmp_path)
    run = Run(recipe, folders=folders, workers=1)
    verification = verify_resume(run, steps=6, kills=1, ranks=[2, 1], seed=1)
    assert verification.agrees
    assert [life.ranks for life in verification.lives] == [2, 1]
    first, last = verification.lives
    assert (first.killed is not None, last.killed) == (True, None)
    assert first.micro_batch != last.micro_batch
    assert last.first_step >= 1
    assert max(verification.lost_steps) <= 2 * verification.interval_steps
    assert verification.same_batches
    assert 0 < verification.loss_difference_nats <= 1e-5, "sums in another order, and nothing else"
    assert verification.weights.relative < 1e-4
    assert verification.tolerance_nats == 1e-5
    left = sorted(path.name for path in (folders.runs / "small").iterdir())
    assert "checkpoints" not in left
    assert not [name for name in left if "verification" in name]


def test_pairs_are_compared_by_value() -> None:
    pair = StepPair(0, 0, True, (1, 1), (2.0, 2.5))
    assert pair.loss_difference_nats == 0.5
    assert replace(pair, losses_nats=(2.0, float("inf"))).loss_difference_nats == float("inf")
