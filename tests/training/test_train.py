import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from circumstances import Notes
from safetensors.torch import load_file

from onward.artifact import fingerprint
from onward.errors import UserError
from onward.model.source import describe
from onward.recipe import Training
from onward.signals import Interrupted
from onward.training.checkpoint import prune
from onward.training.network import Network, Rows
from onward.training.record import Record, read_rows
from onward.training.stages import Stage, stage_name
from onward.training.train import train
from synthetic import write_corpus, write_model

DOMAIN = [5, 70, 32, 3, 18, 40, 9, 9, 100, 2, 31, 47] * 6
GENERAL = [20, 64, 11, 7, 90] * 4


def settings(**changes: Any) -> Training:
    values: dict[str, Any] = {
        "stages": [960, 1920],
        "sequence_tokens": 48,
        "batch_tokens": 192,
        "micro_batch_sequences": 2,
        "optimizer": {"learning_rate": 1e-3},
        "forgetting": {"replay": "25%"},
        "precision": "fp32",
        "checkpoint_tokens": 384,
    }
    return Training.model_validate(values | changes)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_corpus(tmp_path / "domain", DOMAIN, 48)
    write_corpus(tmp_path / "general", GENERAL, 48, seed=1)
    return tmp_path


def train_in(place: Path, name: str, training: Training | None = None, **more: Any) -> tuple[Stage, ...]:
    return train(
        training or settings(),
        base=describe(place / "model"),
        corpora={"domain": place / "domain", "general": place / "general"},
        seed=3,
        run_folder=place / name,
        **more,
    )


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights and moments by name."""
    found: dict[str, torch.Tensor] = {}
    for path in (folder / "state").glob("*.safetensors"):
        found |= load_file(path)
    return found


def weights(stage: Stage) -> dict[str, torch.Tensor]:
    found = state_of(stage.folder)
    return {name.removeprefix("weights."): tensor for name, tensor in found.items() if name.startswith("weights.")}


def assert_same(a: Stage, b: Stage) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss_nats"]) for row in read_rows(run / "metrics.jsonl")]


def test_each_stage_leaves_a_model_that_transformers_opens_and_the_loss_falls(place: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # One short text over and over: a model that learns at all learns it.
    text = [np.append(np.arange(length - 1) % 7 + 60, 0).astype(np.uint16) for length in DOMAIN]
    np.save(place / "domain" / "tokens-00000.npy", np.concatenate(text))
    stages = train_in(place, "run", settings(optimizer={"learning_rate": 1e-2}, forgetting={"replay": None}))
    assert [stage.folder.name for stage in stages] == ["tokens-000000960", "tokens-000001920"]
    model = AutoModelForCausalLM.from_pretrained(stages[1].model)
    assert len(AutoTokenizer.from_pretrained(stages[1].model)) == 257
    trained = weights(stages[1])
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[name]), name
    curve = [loss for _, loss in losses(place / "run")]
    assert len(curve) == 10
    assert curve[-1] < curve[0] - 1


def test_checkpoints_of_a_version_with_fewer_knobs_are_gone_on_from(place: Path) -> None:
    """What is new and unused is no other input: manifests without it still match."""
    whole = train_in(place, "whole")
    train_in(place, "run", until_stage=1)
    for path in (place / "run" / "checkpoints").glob("*/manifest.json"):
        manifest = json.loads(path.read_bytes())
        made_from = {name: value for name, value in manifest["made_from"].items() if value is not None}
        assert {"training.seed", "training.text"}.isdisjoint(manifest["made_from"])
        path.write_text(json.dumps(manifest | {"made_from": made_from, "fingerprint": fingerprint(made_from)}))
    assert_same(train_in(place, "run")[1], whole[1])
    assert [row["event"] for row in read_rows(place / "run" / "events.jsonl")].count("start") == 1


def test_a_control_trains_on_general_text_alone(place: Path) -> None:
    train_in(place, "control", settings(text="general", forgetting={"replay": None}))
    rows = read_rows(place / "control" / "metrics.jsonl")
    assert sum(row["replay_sequences"] for row in rows) == 0
    alone = train(
        settings(forgetting={"replay": None}), base=describe(place / "model"), corpora={"domain": place / "general"},
        seed=3, run_folder=place / "alone",
    )  # fmt: skip
    assert losses(place / "control") == losses(place / "alone")
    assert alone[0].steps == 5


def test_a_second_call_does_nothing(place: Path) -> None:
    first = train_in(place, "run")
    before = (first[-1].folder / "manifest.json").stat().st_mtime_ns
    assert train_in(place, "run") == first
    assert (first[-1].folder / "manifest.json").stat().st_mtime_ns == before
    assert len(losses(place / "run")) == 10


def test_stage_by_stage_equals_all_at_once_to_the_bit(place: Path) -> None:
    whole = train_in(place, "whole")
    train_in(place, "parts", until_stage=1)
    parts = train_in(place, "parts")
    assert_same(whole[1], parts[1])
    assert losses(place / "whole") == losses(place / "parts")


@pytest.mark.parametrize("after", [1, 4, 7])
def test_a_signal_saves_first_and_the_run_goes_on_to_the_same_bits(place: Path, after: int) -> None:
    whole = train_in(place, "whole")

    class Interrupt:
        calls = 0

        def begin(self, title: str, total: int | None, unit: str) -> None: ...
        def note(self, text: str) -> None: ...
        def advance(self, done: int, facts: str = "") -> None:
            self.calls += 1
            if self.calls == after:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        train_in(place, "stopped", progress=Interrupt())
    assert (stopped.value.step, stopped.value.code) == (after, 143)
    resumed = train_in(place, "stopped")
    assert_same(whole[1], resumed[1])
    assert losses(place / "whole") == losses(place / "stopped")


def test_kill_9_at_any_moment_loses_only_steps_since_the_last_state(place: Path) -> None:
    whole = train_in(place, "whole")
    metrics, killed = place / "killed" / "metrics.jsonl", 0
    for attempt in range(12):
        # Forked: a child needs no second import of torch, so many kills cost little.
        child = multiprocessing.get_context("fork").Process(target=train_in, args=(place, "killed"))
        child.start()
        while child.is_alive() and killed < 5:
            if metrics.exists() and len(read_rows(metrics)) >= 1 + 2 * attempt:
                child.kill()
                killed += 1
                break
            time.sleep(0.001)
        child.join()
        if child.exitcode == 0:
            break
    assert killed >= 3
    resumed = train_in(place, "killed")
    assert_same(whole[1], resumed[1])
    assert losses(place / "whole") == losses(place / "killed")


def test_removing_the_last_manifest_redoes_the_last_part_only(place: Path) -> None:
    first = train_in(place, "run")
    before = weights(first[1])
    kept = (first[0].folder / "manifest.json").stat().st_mtime_ns
    (first[1].folder / "manifest.json").unlink()
    again = train_in(place, "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(again[1]).items())
    assert (first[0].folder / "manifest.json").stat().st_mtime_ns == kept
    events = [row["event"] for row in read_rows(place / "run" / "events.jsonl")]
    assert events.count("start") == 1
    assert events.count("resume") == 1


def test_the_micro_batch_may_change_on_resume_but_not_the_learning_rate(place: Path) -> None:
    whole = train_in(place, "whole")
    train_in(place, "changed", until_stage=1)
    changed = train_in(place, "changed", settings(micro_batch_sequences=3))
    for name, tensor in weights(whole[1]).items():
        torch.testing.assert_close(weights(changed[1])[name], tensor, rtol=1e-4, atol=1e-6)
    train_in(place, "other", until_stage=1)
    with pytest.raises(UserError, match=r"training\.optimizer\.learning_rate: was 0\.001, is 0\.002"):
        train_in(place, "other", settings(optimizer={"learning_rate": 2e-3}))


def test_a_stage_can_be_added_after_the_run_was_over(place: Path) -> None:
    whole = train_in(place, "whole")
    train_in(place, "extended", settings(stages=[960]))
    extended = train_in(place, "extended")
    assert_same(whole[1], extended[1])


def test_a_loss_that_is_not_a_number_stops_and_leaves_the_last_checkpoint(place: Path) -> None:
    with pytest.raises(UserError, match="not a number") as caught:
        train_in(place, "run", settings(optimizer={"learning_rate": 1e30, "clip_norm": None}))
    assert "sequence" in str(caught.value)
    names = (
        [p.name for p in (place / "run" / "checkpoints").glob("*")] if (place / "run" / "checkpoints").exists() else []
    )
    for name in names:
        state = state_of(place / "run" / "checkpoints" / name)
        assert all(torch.isfinite(tensor).all() for tensor in state.values())


def test_only_the_newest_states_are_kept(place: Path) -> None:
    train_in(place, "run", settings(keep_checkpoints=1, checkpoint_tokens=192))
    left = sorted(p.name for p in (place / "run" / "checkpoints").iterdir())
    assert left == ["step-00000009", "tokens-000000960", "tokens-000001920"]


def test_the_record_holds_every_step_once_with_its_figures(place: Path) -> None:
    train_in(place, "run")
    rows = read_rows(place / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(10))
    assert [row["tokens"] for row in rows] == [192 * (n + 1) for n in range(10)]
    assert sum(row["replay_sequences"] for row in rows) == 10
    assert all(row["labelled_tokens"] <= 192 and row["memory_bytes"] > 0 for row in rows)
    check = next(row for row in read_rows(place / "run" / "events.jsonl") if row["event"] == "check")
    assert check["packed_loss_nats"] == pytest.approx(check["base_loss_nats"], rel=1e-4)


def test_a_record_cut_by_a_kill_goes_on_where_the_state_is(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"step": n, "loss_nats": 1.0}) + "\n" for n in range(5))
    (tmp_path / "metrics.jsonl").write_text(rows + '{"step": 5, "lo')
    Record(tmp_path, first_step=3).close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1, 2]


def test_a_record_cut_in_its_last_line_loses_that_line_only(tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "events.jsonl"):
        (tmp_path / name).write_text('{"step": 0, "event": "start"}\n{"step": 1, "lo')
    record = Record(tmp_path, first_step=1)
    record.metrics(step=1)
    record.event("resume", step=1)
    record.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 1]
    assert [row["event"] for row in read_rows(tmp_path / "events.jsonl")] == ["start", "resume"]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_what_is_not_a_number_is_null_in_the_record_and_nan_to_who_reads_it(tmp_path: Path) -> None:
    figures = [(2.0, 1.0), (math.nan, math.inf), (3.0, math.nan)]
    record = Record(tmp_path, first_step=0)
    for step, (loss, norm) in enumerate(figures):
        record.metrics(step=step, loss_nats=loss, gradient_norm=norm, model_flops_utilisation=None)
    record.event("check", packed_loss_nats=math.nan)
    record.close()
    Record(tmp_path, first_step=2).close()  # rewrites the rows that stay
    for name in ("metrics.jsonl", "events.jsonl"):
        for line in (tmp_path / name).read_text().splitlines():
            json.loads(line, parse_constant=refuse)
    good, bad = read_rows(tmp_path / "metrics.jsonl")
    assert good == {"step": 0, "loss_nats": 2.0, "gradient_norm": 1.0, "model_flops_utilisation": None}
    assert math.isnan(bad["loss_nats"])
    assert math.isnan(bad["gradient_norm"])
    assert bad["model_flops_utilisation"] is None


def test_a_row_of_an_older_record_with_a_bare_nan_is_read_and_rewritten(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss_nats": NaN, "gradient_norm": 1.0}\n')
    assert math.isnan(read_rows(tmp_path / "metrics.jsonl")[0]["loss_nats"])
    Record(tmp_path, first_step=1).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0, "loss_nats": null, "gradient_norm": 1.0}\n'


def cut_a_file(folder: Path) -> Path:
    path = next((folder / "state").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])
    return path


def lose_a_file(folder: Path) -> Path:
    path = folder / "model" / "config.json"
    path.unlink()
    return path


def break_the_manifest(folder: Path) -> Path:
    path = folder / "manifest.json"
    path.write_text("{")
    return path


@pytest.mark.parametrize("damage", [cut_a_file, lose_a_file, break_the_manifest])
@pytest.mark.parametrize("number", [0, 1], ids=["first", "last"])
def test_a_damaged_end_of_a_stage_is_named_and_made_anew(
    place: Path, damage: Callable[[Path], Path], number: int
) -> None:
    first = train_in(place, "run")
    # Copies: what safetensors has read is the file itself, which is about to be damaged.
    before = [{name: tensor.clone() for name, tensor in state_of(stage.folder).items()} for stage in first]
    curve = losses(place / "run")
    other = (first[1 - number].folder / "manifest.json").stat().st_mtime_ns
    damaged, notes = damage(first[number].folder), Notes()
    again = train_in(place, "run", progress=notes)
    assert any("made anew" in note and str(damaged) in note for note in notes.notes)
    for stage, expected in zip(again, before, strict=True):
        found = state_of(stage.folder)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert (again[number].model / "config.json").exists()
    assert (first[1 - number].folder / "manifest.json").stat().st_mtime_ns == other, "the other one is not touched"
    assert losses(place / "run") == curve
    assert train_in(place, "run", progress=notes) == again


def test_an_earlier_stage_that_was_removed_is_made_anew_alone(place: Path) -> None:
    first = train_in(place, "run")
    before, curve = weights(first[0]), losses(place / "run")
    last = (first[1].folder / "manifest.json").stat().st_mtime_ns
    shutil.rmtree(first[0].folder)
    again = train_in(place, "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(again[0]).items())
    assert (first[1].folder / "manifest.json").stat().st_mtime_ns == last
    assert losses(place / "run") == curve


def test_a_removal_that_was_killed_is_finished(place: Path) -> None:
    train_in(place, "run", settings(checkpoint_tokens=192, keep_checkpoints=9, stages=[960]))
    (place / "run/checkpoints/step-00000002/manifest.json").unlink()
    train_in(place, "run", settings(checkpoint_tokens=192, keep_checkpoints=9))
    assert not (place / "run/checkpoints/step-00000002").exists()


def test_rows_of_later_steps_survive_a_kill_while_earlier_ones_are_made_anew(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"step": n, "loss_nats": 1.0}) + "\n" for n in range(6))
    (tmp_path / "metrics.jsonl").write_text(rows)
    interrupted = Record(tmp_path, first_step=0, last_step=3)
    interrupted.metrics(step=0, loss_nats=2.0)
    for file in (interrupted._metrics, interrupted._events):
        file.close()  # as the system does after a kill: the record itself is never closed
    record = Record(tmp_path, first_step=1, last_step=3)
    for step in (1, 2):
        record.metrics(step=step, loss_nats=2.0)
    record.close()
    found = [(row["step"], row["loss_nats"]) for row in read_rows(tmp_path / "metrics.jsonl")]
    assert found == [(0, 2.0), (1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0), (5, 1.0)]
    assert [path.name for path in tmp_path.glob(".metrics*")] == []


def test_states_of_later_steps_do_not_displace_the_one_just_saved(tmp_path: Path) -> None:
    for step in (3, 5, 7, 90, 95):
        (tmp_path / f"step-{step:08d}").mkdir()
        (tmp_path / f"step-{step:08d}" / "manifest.json").write_text("{}")
    prune(tmp_path, step=7, keep=2)
    assert sorted(int(p.name[5:]) for p in tmp_path.iterdir()) == [5, 7, 90, 95]


def test_a_signal_inside_a_step_leaves_the_step_undone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_in(place, "whole")
    calls = 0
    original = Network.forward

    def interrupting(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        nonlocal calls
        calls += not hidden_only
        if calls == 8:  # a step has two micro-batches, the start check is one call: the first half of step 3
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, rows, hidden_only)

    monkeypatch.setattr(Network, "forward", interrupting)
    with pytest.raises(Interrupted) as stopped:
        train_in(place, "stopped")
    assert stopped.value.step == 3
    monkeypatch.undo()
    assert_same(whole[1], train_in(place, "stopped")[1])
    assert losses(place / "whole") == losses(place / "stopped")


def test_training_off_the_main_thread_leaves_signals_alone(place: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=train_in, args=(place, "run", settings(stages=[960])))
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert (place / "run" / "checkpoints" / "tokens-000000960" / "manifest.json").exists()


def test_tensorboard_missing_is_said(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="TensorBoard is not installed"):
        train_in(place, "run", settings(tensorboard=True))


@pytest.mark.parametrize(("tokens", "name"), [(400_000_000, "000400M"), (10**9, "001000M"), (655_360, "000655360")])
def test_stage_names_sort_and_are_exact(tokens: int, name: str) -> None:
    assert stage_name(tokens) == name


def test_near_the_limit_memory_is_measured_first_and_the_choice_follows(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onward.training import session

    whole = train_in(place, "whole")
    monkeypatch.setattr(session, "_TIGHT", 0.0)
    measured = train_in(place, "measured", settings(micro_batch_sequences="auto"))
    probe = next(row for row in read_rows(place / "measured" / "events.jsonl") if row["event"] == "probe")
    assert 0 < probe["measured_bytes"] < probe["limit_bytes"]
    for name, tensor in weights(whole[1]).items():
        torch.testing.assert_close(weights(measured[1])[name], tensor, rtol=1e-3, atol=1e-5)

    monkeypatch.setattr(session, "correction", lambda use, bytes_: 1e9)  # as if a pass took far more than predicted
    with pytest.raises(UserError, match="does not fit"):
        train_in(place, "refused", settings(micro_batch_sequences="auto"))
