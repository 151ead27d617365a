"""What a plan says of remedies against forgetting: work of a step, sampling, the Fisher information."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

import small_run
from onward.batches import BatchPlan
from onward.errors import UserError
from onward.model.flops import training_flops
from onward.model.shape import ModelShape, shape_of
from onward.pipeline import Run
from onward.plan.costs import DISK_TOO_SMALL, disk_problems
from onward.plan.foresight import Machine, Range, RemediesForesight
from onward.plan.remedies import ADAPTERS_AT_WORST, base_work, fisher_seconds, step_work
from onward.recipe import Ewc, Forgetting
from onward.training import hardware as machines
from onward.training.learner import Learner

PLAN = BatchPlan(512, 7, (), seed=0, stage_steps=(40,))
CPU = Machine("a CPU", "cpu", 1, False, "fp32", 3e11, "data sheet", None)
CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def shape(tied: bool = True) -> ModelShape:
    found = shape_of(CONFIG | {"tie_word_embeddings": tied})
    assert found is not None
    return found


def work(tied: bool = True, **forgetting: Any) -> float:
    return step_work(Forgetting.model_validate(forgetting), shape(tied), 32.0).low


@pytest.mark.parametrize("forgetting", [{}, {"replay": None}, {"ewc": 1.0}, {"l2_sp": 3.0}, {"ewc": 1, "l2_sp": 1}])
def test_replay_and_pulls_add_no_work(forgetting: dict[str, Any]) -> None:
    assert step_work(Forgetting.model_validate(forgetting), shape(), 32.0) == Range.exactly(1.0)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("freeze", ["embeddings", 2, {"embeddings": True, "blocks": 3}])
def test_the_work_of_frozen_parts_is_what_torch_counts(tied: bool, freeze: Any) -> None:
    """Products of a forward and a backward pass, counted by torch while a model of the shape computes them."""
    assert work(tied, freeze=freeze) == pytest.approx(counted(tied, freeze) / counted(tied, None), abs=0.02)


def counted(tied: bool, freeze: Any) -> int:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    content = {key: value for key, value in CONFIG.items() if key != "model_type"}
    config = LlamaConfig(**content, tie_word_embeddings=tied, attn_implementation="eager")  # type: ignore[arg-type]
    model = LlamaForCausalLM(config)
    parts = Forgetting.model_validate({"freeze": freeze}).freeze
    if parts is not None:
        assert parts.blocks != "all"
        model.get_input_embeddings().weight.requires_grad_(not parts.embeddings)
        for block in model.model.layers[: parts.blocks]:
            block.requires_grad_(False)
    ids = torch.zeros(1, 64, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        model(ids, labels=ids).loss.backward()
    return int(counter.get_total_flops())


def test_divergence_adds_a_forward_pass_over_replayed_rows() -> None:
    assert work(kl=1.0, replay="30%") == pytest.approx(1.1)
    several = Forgetting.model_validate({"kl": 1.0, "replay": {"general": "20%", "self": "10%"}})
    assert base_work(several) == pytest.approx(0.1)
    assert base_work(Forgetting()) == 0


def test_adapters_save_products_at_best_and_cost_a_little_at_worst() -> None:
    found = step_work(Forgetting.model_validate({"lora": {"rank": 1}}), shape(), 32.0)
    assert 0.6 < found.low < 0.8
    assert found.high == ADAPTERS_AT_WORST
    assert step_work(Forgetting.model_validate({"lora": {"rank": 8}}), shape(), 32.0).low > found.low


def test_the_fisher_information_takes_a_pass_for_each_row_or_for_each_token() -> None:
    signs, exact, of_documents = (
        fisher_seconds(Ewc(tokens=100_000, **given), shape(), CPU, 1e11, 64.5, PLAN)
        for given in ({}, {"estimator": "exact"}, {"estimator": "exact", "per": "sequence"})
    )
    flops = training_flops(shape(), 100_000, 6_450_000)
    assert signs.value == pytest.approx(flops / 1e11 / 0.40, rel=0.2)
    assert signs.low < signs.value < signs.high
    assert signs.value < of_documents.value, "a document is shorter than a row, and its squares are added up as often"
    assert exact.value > 50 * signs.value, "back through 128 tokens for each of them"
    four = fisher_seconds(Ewc(tokens=100_000), shape(), CPU, 1e11, 64.5, PLAN, dealt=4)
    assert four.value == pytest.approx(signs.value / 4, rel=0.05)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machines, "measure_matmul_peak", lambda *_: 1e11)
    return small_run.write_inputs(tmp_path)


def opened(place: Path, **forgetting: Any) -> Run:
    # One byte is a token of the small model: the rule against text that is spelt out would drop all of its samples.
    samples = {
        "self_replay": {"tokens": 3000, "document_tokens": 32},
        "quality": "none",
        "minimum_bytes_per_token": None,
        "maximum_unknown_tokens": "99%",
    }
    named = {"corpora": {"samples": samples}} if "samples" in str(forgetting) else {}
    recipe = small_run.recipe(place, training__forgetting=forgetting, **named)
    return Run(recipe, folders=small_run.folders(place), workers=1)


def test_a_plan_tells_what_is_made_before_training_until_it_is_there(place: Path) -> None:
    run = opened(place, replay={"samples": "20%"}, ewc={"strength": 1.0, "text": "samples", "tokens": 500})
    before = run.foresee()
    before.check()
    remedies = before.remedies
    assert (remedies.fisher_text, remedies.fisher_tokens) == ("samples", 500)
    assert remedies.fisher_seconds is not None
    assert remedies.sampling_seconds is not None
    assert 0 < remedies.sampling_seconds.low < remedies.sampling_seconds.high
    assert remedies.sampled_tokens == pytest.approx(0.2 * 3840 / 0.99), "what is replayed, and 1 % that is held out"
    assert remedies.step_work == Range.exactly(1.0)
    _ = run.corpora
    sampled = run.foresee().remedies
    assert (sampled.sampled_tokens, sampled.sampling_seconds) == (0, None)
    assert sampled.fisher_tokens == 500
    run.train()
    done = run.foresee().remedies
    assert (done.fisher_text, done.fisher_tokens, done.fisher_seconds) == (None, 0, None)


def test_of_a_short_text_the_fisher_information_is_estimated_once(place: Path) -> None:
    run = opened(place, replay="10%", ewc={"strength": 1.0, "tokens": "1B"})
    _ = run.corpora
    found = run.foresee()
    (text,) = [text for text in found.texts if text.role == "general"]
    assert found.remedies.fisher_tokens == text.tokens.value < 100_000


def test_the_fisher_information_is_counted_where_it_is_written(place: Path) -> None:
    wanted, without = (opened(place, replay="10%", ewc=ewc).foresee() for ewc in (1.0, None))
    assert wanted.disk.fisher == wanted.remedies.fisher_bytes == 4 * wanted.parameters
    assert wanted.disk.total - without.disk.total == pytest.approx(4 * wanted.parameters)
    cache = str(small_run.folders(place).cache)
    few = replace(wanted.disk, corpora=0.0, free={**wanted.disk.free, cache: 4 * wanted.parameters - 1})
    (problem, *_) = disk_problems(replace(few, checkpoints=0.0, models=0.0, scores=0.0), small_run.folders(place))
    assert problem.what == DISK_TOO_SMALL


def test_a_model_that_cannot_be_trained_is_refused_before_text_is_sampled(place: Path) -> None:
    path = place / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"layer_types": ["chunked_attention"] * 2}))
    run = opened(place, replay="self")
    (problem,) = run.foresee().problems
    assert problem.what == "this model's attention cannot be kept inside documents"
    for step in (run.all, run.train):
        with pytest.raises(UserError, match="this model's attention cannot be kept inside documents"):
            step()
    assert not list(small_run.folders(place).cache.glob("*")), "nothing was prepared"


@pytest.mark.parametrize(("sharding", "dealt"), [("none", 8), ("zero2", 1), ("zero3", 1)])
def test_devices_share_the_rows_only_where_each_holds_all_weights(
    place: Path, monkeypatch: pytest.MonkeyPatch, sharding: str, dealt: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(
        "onward.plan.remedies.fisher_seconds", lambda *given: asked.append(given[-1]) or Range.exactly(1.0)
    )
    recipe = small_run.recipe(place, training__forgetting={"ewc": 1.0}, training__sharding=sharding)
    Run(recipe, folders=small_run.folders(place), workers=1).foresee("8xh100")
    assert asked == [dealt]


def test_a_strength_of_0_asks_for_no_text_of_its_own(place: Path) -> None:
    """As training without it to the bit: the same corpora, of the same size."""
    off = {"strength": 0.0, "text": "self", "tokens": "2M"}
    wanted = [
        {
            name: preparation.wanted_tokens
            for name, preparation in run._preparing.all_planned(run.planned_domain).items()
        }
        for run in (opened(place, replay="10%"), opened(place, replay="10%", ewc=off))
    ]
    assert wanted[0] == wanted[1]
    assert list(wanted[0]) == ["domain", "general"]


def test_no_remedy_is_no_cost(place: Path) -> None:
    found = opened(place, replay="10%", ewc={"strength": 0.0, "tokens": 500}).foresee().remedies
    assert found == RemediesForesight(0, None, None, 0, None, Range.exactly(1.0))


def test_measured_steps_have_the_remedies_in_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Learner] = []

    class Watched(Learner):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            made.append(self)

    monkeypatch.setattr("onward.training.learner.Learner", Watched)
    found = opened(place, replay="30%", ewc=1.0, kl=1.0, freeze="embeddings").foresee(measure=True)
    assert found.timed is not None
    (learner,) = made
    assert learner.anchor is not None
    assert learner.reference is not None
    assert not learner.model.get_input_embeddings().weight.requires_grad
