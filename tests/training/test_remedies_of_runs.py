"""Whole trainings with remedies: what they record and write, and that they go on to the bit after a signal."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from circumstances import befalls
from pydantic import ValidationError
from safetensors.torch import load_file
from test_train import assert_same, losses, place, settings, state_of, train_in, weights

from onward.errors import UserError
from onward.model.load import load_model
from onward.model.shape import read_shape
from onward.recipe import Training
from onward.signals import Interrupted
from onward.training import session
from onward.training.launch import Place
from onward.training.learner import Learner
from onward.training.network import Network, Rows
from onward.training.ranks import Ranks
from onward.training.record import read_rows

__all__ = ["place"]  # a fixture

EWC = {"strength": 1.0, "tokens": 200}
REMEDIES: dict[str, dict[str, Any]] = {
    "frozen": {"freeze": {"embeddings": True, "blocks": 1}},
    "lora-kl": {"lora": {"rank": 4}, "kl": 1.0},
    "all-without-lora": {"kl": 1.0, "ewc": EWC, "l2_sp": 0.5, "freeze": 1},
}


def with_remedies(**forgetting: Any) -> Training:
    return settings(forgetting={"replay": "25%"} | forgetting)


class Interrupt:
    """Sends a signal after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def begin(self, title: str, total: int | None, unit: str) -> None:
        self.is_training = title == "train"

    def note(self, text: str) -> None: ...
    def advance(self, done: int, facts: str = "") -> None:
        self.left -= self.is_training
        if self.left == 0 and self.is_training:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(place: Path, remedy: str) -> None:
    training = with_remedies(**REMEDIES[remedy])
    whole = train_in(place, "whole", training)
    with pytest.raises(Interrupted) as stopped:
        train_in(place, "stopped", training, progress=Interrupt(4))
    assert stopped.value.step == 4
    resumed = train_in(place, "stopped", training)
    assert_same(whole[1], resumed[1])
    assert losses(place / "whole") == losses(place / "stopped")
    exported = [load_file(stage.model / "model.safetensors") for stage in (whole[1], resumed[1])]
    assert all(torch.equal(tensor, exported[1][name]) for name, tensor in exported[0].items())


def test_checkpoints_hold_what_is_trained_and_models_hold_all(place: Path) -> None:
    base = {name: p.detach() for name, p in load_model(place / "model").named_parameters()}
    frozen = train_in(place, "frozen", with_remedies(freeze={"embeddings": True, "blocks": 1}))[-1]
    kept = {name for name in base if name.startswith(("model.embed_tokens.", "model.layers.0."))}
    assert weights(frozen).keys() == base.keys() - kept
    exported = load_file(frozen.model / "model.safetensors")
    assert exported.keys() == base.keys()
    assert {name for name in base if torch.equal(exported[name], base[name])} == kept

    adapted = train_in(place, "adapted", with_remedies(lora={"rank": 4}))[-1]
    assert all(".lora_" in name for name in state_of(adapted.folder))
    assert len(state_of(adapted.folder)) == 3 * 2 * 7 * 2
    exported = load_file(adapted.model / "model.safetensors")
    assert exported.keys() == base.keys()
    changed = {name for name in base if not torch.equal(exported[name], base[name])}
    assert changed == {name for name in base if "_proj" in name}


def test_the_copy_that_is_written_in_the_background_is_of_what_is_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = read_shape(place / "model")
    monkeypatch.setattr(session, "machine_memory_bytes", lambda: 10 * 12 * shape.parameters - 10)
    found = []
    for forgetting in (None, {"freeze": "embeddings"}, {"lora": {"rank": 2}}):
        one = SimpleNamespace(
            training=settings(forgetting=forgetting or {}), shape=shape, ranks=Ranks(Place(), torch.device("cpu")),
            hardware=SimpleNamespace(kind="cuda"),
        )  # fmt: skip
        found.append(session.Session._writes_in_background(one))  # type: ignore[arg-type]
    assert found == [False, True, True]


def test_divergence_and_distance_are_recorded_beside_the_cross_entropy(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_in(place, "drawn", with_remedies(kl=1.0, l2_sp=1.0))
    rows = read_rows(place / "drawn" / "metrics.jsonl")
    replayed = [row["kl_nats"] is not None for row in rows]
    assert replayed == [row["replay_sequences"] > 0 for row in rows]
    divergences = [row["kl_nats"] for row in rows if row["kl_nats"] is not None]
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert divergences[-1] > 0
    assert [row["distance_from_base"] is not None for row in rows] == [False] * 9 + [True]
    assert 0 < rows[9]["distance_from_base"] < 1
    apart: list[bool] = []
    as_ever = Learner.update

    def watched(self: Learner, micro: tuple[Rows, ...], *others: Any) -> Any:
        apart.append(any(rows.replayed is not None for rows in micro))
        return as_ever(self, micro, *others)

    monkeypatch.setattr(Learner, "update", watched)
    plain = train_in(place, "plain", with_remedies())
    assert plain
    assert apart == [False] * 10, "replayed rows are copied for the base alone"
    [first, *_] = read_rows(place / "plain" / "metrics.jsonl")
    assert first["loss_nats"] == pytest.approx(rows[0]["loss_nats"], rel=1e-6)
    assert not {"kl_nats", "distance_from_base"} & first.keys()


def test_fisher_information_is_made_once_in_the_cache_or_else_in_the_run(place: Path) -> None:
    training = with_remedies(ewc=EWC)
    train_in(place, "alone", training)
    [made] = (place / "alone" / "fisher").iterdir()
    assert (made / "fisher.safetensors").exists()
    for run in ("first", "second"):
        train_in(place, run, training, cache=place / "cache")
        assert not (place / run / "fisher").exists()
        [shared] = (place / "cache" / "fisher").iterdir()
        stamp = (shared / "manifest.json").stat().st_mtime_ns
        if run == "first":
            before = stamp
    assert stamp == before
    assert losses(place / "first") == losses(place / "second") == losses(place / "alone")


def test_more_blocks_than_the_model_has_are_refused_before_anything_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onward.training import learner

    monkeypatch.setattr(learner, "load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(UserError, match="not so many blocks to freeze"):
        train_in(place, "run", with_remedies(freeze=9))


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_model_built_anew_in_the_middle_of_a_run_keeps_its_remedies(
    place: Path, monkeypatch: pytest.MonkeyPatch, remedy: str
) -> None:
    training = settings(forgetting={"replay": "25%"} | REMEDIES[remedy], checkpoint_tokens=1920)
    train_in(place, "whole", training)

    def full_at_step_4(call: int, network: Network, rows: Rows, loss: torch.Tensor) -> torch.Tensor:
        if call >= 8 and not any(block.gradient_checkpointing and block.training for block in network.blocks):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return loss

    befalls(monkeypatch, full_at_step_4)
    train_in(place, "retreated", training)
    [event] = [row for row in read_rows(place / "retreated" / "events.jsonl") if row["event"] == "retreat"]
    assert event["step"] == 4
    assert event["now"]["checkpoint_every"] == 1
    for step, loss in losses(place / "retreated"):
        assert loss == pytest.approx(dict(losses(place / "whole"))[step], rel=0, abs=1e-6)


@pytest.mark.parametrize(
    ("forgetting", "words"),
    [
        ({"lora": {}, "freeze": "all"}, "nothing is left to train"),
        ({"freeze": "all"}, "nothing is left to train"),
        ({"kl": 1.0, "replay": None}, "kl is measured on replayed text, and there is none"),
        ({"lora": {}, "l2_sp": 1.0}, "nothing to pull back"),
    ],
    ids=["lora-all", "all", "kl-alone", "lora-pulled"],
)
def test_remedies_that_leave_nothing_to_do_are_refused_by_the_recipe(forgetting: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        with_remedies(**forgetting)
