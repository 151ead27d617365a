"""The arithmetic of a plan: hours, scoring, disk."""

import shutil
from collections import namedtuple
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from onward.artifact import Folders
from onward.batches import BatchPlan
from onward.model.flops import training_flops
from onward.model.shape import ModelShape, shape_of
from onward.plan import costs
from onward.plan.budget import checkpoint_bytes
from onward.plan.costs import (
    disk_problems,
    foresee_disk,
    foresee_evaluation,
    foresee_training,
    pairs_of,
    utilisation,
)
from onward.plan.foresight import DiskForesight, Machine, Range, TextForesight, Timed
from onward.recipe import TASKS, Evaluation, Training
from onward.training.hardware import Hardware, known_hardware
from onward.training.strategy import Strategy

PLAN = BatchPlan(2000, 64, (), seed=0, stage_steps=(3125, 7813))
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def shape() -> ModelShape:
    """MobileLLM-125M."""
    config = {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 32_000,
        "tie_word_embeddings": True,
    }
    shape = shape_of(config)
    assert shape is not None
    assert shape.parameters == 124_635_456
    return shape


def machine(hardware: Hardware, precision: str = "bf16") -> Machine:
    peak = hardware.peak(precision)  # type: ignore[arg-type]
    assert peak is not None
    return Machine(hardware.name, hardware.kind, hardware.count, False, precision, peak, "data sheet", None)


def text(role: str = "domain", **changes: Any) -> TextForesight:
    facts: dict[str, Any] = {
        "role": role,
        "basis": "prepared",
        "sources": (),
        "sampled_documents": 0,
        "documents": Range.exactly(10),
        "tokens": Range.exactly(1e6),
        "kept_share": 1.0,
        "bytes_per_token": 4.0,
        "sequences": Range.exactly(500),
        "sequences_needed": 100,
        "tokens_needed": 200_000,
        "passes": Range.exactly(0.2),
        "pairs_per_token": 300.0,
        "losses": (),
        "prepare_seconds": None,
        "disk_bytes": 0.0,
        "held_out_tokens": 5e6,
    }
    return TextForesight(**{**facts, **changes})


def test_time_is_model_flops_over_the_share_of_the_peak(shape: ModelShape) -> None:
    h100 = known_hardware("h100")
    found = foresee_training(machine(h100), h100, shape, PLAN, 300.0, Strategy(micro_batch=32), None)
    flops = training_flops(shape, 128_000, 128_000 * 300)
    assert found.step_flops == flops
    launches = 2 * 30 * costs.LAUNCH_SECONDS.value
    step = flops / (989.4e12 * 0.40) + launches
    assert found.seconds.value == pytest.approx(7813 * step)
    assert found.stage_seconds[0].value == pytest.approx(3125 * step)
    assert found.tokens_per_second.value == pytest.approx(128_000 / step)
    assert found.utilisation.value == pytest.approx(flops / 989.4e12 / step)
    assert found.seconds.low < found.seconds.value < found.seconds.high
    assert found.tokens_per_second.low < found.tokens_per_second.value < found.tokens_per_second.high


def test_recomputing_sharing_and_offloading_cost_time(shape: ModelShape) -> None:
    def seconds(hardware: Hardware, **strategy: Any) -> float:
        chosen = Strategy(micro_batch=8, **strategy)
        return foresee_training(machine(hardware), hardware, shape, PLAN, 300.0, chosen, None).seconds.value

    one, eight = known_hardware("h100"), known_hardware("8xh100")
    assert utilisation(machine(one), shape, Strategy(checkpoint_every=1)).value == pytest.approx(0.40 * 3 / 4)
    assert utilisation(machine(one), shape, Strategy(checkpoint_every=2)).value == pytest.approx(0.40 * 6 / 7)
    assert seconds(one) < seconds(one, checkpoint_every=1) < seconds(one, checkpoint_every=1, offload=True)
    assert seconds(eight) < seconds(eight, sharding="zero2") < seconds(eight, sharding="zero3") < seconds(one)
    assert seconds(one) / 8 < seconds(eight)


def test_what_was_measured_takes_the_place_of_what_is_assumed(shape: ModelShape) -> None:
    h100 = known_hardware("h100")
    timed = Timed(Range(0.9, 1.0, 1.1), 10, 8)
    found = foresee_training(machine(h100), h100, shape, PLAN, 300.0, Strategy(), timed)
    assert (found.basis, found.seconds, found.tokens_per_second.value) == (
        "measured",
        Range(0.9, 1.0, 1.1).times(7813),
        128_000,
    )


def test_the_work_of_remedies_changes_the_time_and_not_the_arithmetic_that_counts(shape: ModelShape) -> None:
    h100 = known_hardware("h100")
    plain = foresee_training(machine(h100), h100, shape, PLAN, 300.0, Strategy(micro_batch=32), None)
    half = Range(0.5, 0.5, 1.0)
    found = foresee_training(machine(h100), h100, shape, PLAN, 300.0, Strategy(micro_batch=32), None, half)
    assert (found.seconds.low, found.seconds.value) == pytest.approx((plain.seconds.low / 2, plain.seconds.value / 2))
    assert found.seconds.high == plain.seconds.high
    assert found.step_flops == plain.step_flops


def test_a_narrow_model_uses_less_of_a_gpu(shape: ModelShape) -> None:
    from dataclasses import replace

    h100 = machine(known_hardware("h100"))
    narrow = utilisation(h100, replace(shape, hidden=128), Strategy())
    assert narrow.value == pytest.approx(utilisation(h100, shape, Strategy()).value / 4)


def test_scoring_counts_the_requests_of_the_seven_tasks_and_what_is_not_known(shape: ModelShape) -> None:
    found = foresee_evaluation(Evaluation(tasks=(*TASKS, "sciq")), shape, 60e12, [text()], models=3)
    assert found.requests == 127_961
    assert found.unknown_tasks == ("sciq",)
    assert found.models == 3
    # 1M held-out tokens, and 16.1 MB of questions, what they share once, at 4 bytes a token
    assert found.tokens == pytest.approx(1e6 + 16_146_592 / 4)
    limited = foresee_evaluation(Evaluation(tasks=TASKS, limit=100), shape, 60e12, [text()], models=3)
    assert limited.requests == pytest.approx(123_274 * 700 / 34_007, rel=0.2)
    assert limited.seconds.value < found.seconds.value / 4
    few = foresee_evaluation(Evaluation(tasks=()), shape, 60e12, [text(held_out_tokens=1000.0)], models=1)
    assert (few.requests, few.tokens) == (0, 1000)


def test_questions_of_the_own_text_are_scored_too_whatever_the_limit(shape: ModelShape) -> None:
    plain = foresee_evaluation(Evaluation(tasks=("piqa",), limit=100), shape, 60e12, [text()], models=3)
    settings = Evaluation(tasks=("piqa",), limit=100, cloze=1000)
    found = foresee_evaluation(settings, shape, 60e12, [text()], models=3, between=1)
    assert (plain.cloze_items, plain.between) == (0, 0)
    assert (found.cloze_items, found.between, found.unknown_tasks) == (1000, 1, ())
    assert found.requests == plain.requests + 4000
    assert found.tokens == pytest.approx(plain.tokens + 950_000 / 4)
    assert found.seconds.value > plain.seconds.value + 3 * 4000 * costs.REQUEST_SECONDS.value


def test_no_more_cloze_questions_are_planned_than_the_held_out_text_can_give(shape: ModelShape) -> None:
    settings = Evaluation(tasks=(), cloze=100_000)
    few, many = (
        foresee_evaluation(settings, shape, 60e12, [replace(text(), held_out_tokens=tokens)], models=2)
        for tokens in (125_000.0, 1e9)
    )
    assert (few.cloze_items, few.cloze_wanted, few.requests) == (200, 100_000, 800)
    assert many.cloze_items == 4000, "so much of the text is looked at"
    some = foresee_evaluation(Evaluation(tasks=(), cloze=150), shape, 60e12, [text()], models=2)
    assert (some.cloze_items, some.cloze_wanted) == (150, 150)


def test_the_mixture_of_two_texts_looks_back_as_far_as_its_parts() -> None:
    texts = [text(pairs_per_token=100.0), text("general", pairs_per_token=300.0)]
    replaying = replace(PLAN, replay=(("general", Fraction(1, 4)),))
    assert pairs_of(texts, replaying) == 150
    assert pairs_of(texts[:1], PLAN) == 100


def test_checkpoints_take_twelve_bytes_a_parameter_and_what_is_there_is_not_counted_again(tmp_path: Path) -> None:
    training, folders = Training(stages=("1M", "2M"), keep_checkpoints=2), Folders(tmp_path / "c", tmp_path / "r")
    assert checkpoint_bytes(training, 100, 100) == (12 * 100 * 5, 4 * 100 * 2)
    scoring = foresee_evaluation(Evaluation(tasks=()), _shape(), 1e12, [text()], models=3)
    disk = foresee_disk(training, 100, 100, [text(disk_bytes=7.0)], scoring, folders, tmp_path / "r/x")
    assert (disk.corpora, disk.checkpoints, disk.models, disk.total) == (7, 6000, 800, 6807)
    there = tmp_path / "r/x/checkpoints/step-00000001"
    there.mkdir(parents=True)
    (there / "weights").write_bytes(b"0" * 3400)
    disk = foresee_disk(training, 100, 100, [text(disk_bytes=7.0)], scoring, folders, tmp_path / "r/x")
    assert (disk.checkpoints, disk.models) == (3000, 400)
    model = tmp_path / "r/x/models/tokens-000000500"
    model.mkdir(parents=True)
    (model / "weights").write_bytes(b"0" * 1700)
    disk = foresee_disk(training, 100, 100, [text(disk_bytes=7.0)], scoring, folders, tmp_path / "r/x")
    assert (disk.checkpoints, disk.models) == (1500, 200)


def test_checkpoints_hold_what_is_trained_and_models_hold_all(tmp_path: Path) -> None:
    training, folders = Training(stages=("1M", "2M"), keep_checkpoints=2), Folders(tmp_path / "c", tmp_path / "r")
    assert checkpoint_bytes(training, 100, 7) == (12 * 7 * 5, 4 * 100 * 2)
    scoring = foresee_evaluation(Evaluation(tasks=()), _shape(), 1e12, [text()], models=3)
    disk = foresee_disk(training, 100, 7, [text()], scoring, folders, tmp_path / "r/x")
    assert (disk.checkpoints, disk.models) == (420, 800)


def test_models_between_the_stages_ends_take_room_without_a_state(tmp_path: Path) -> None:
    training, folders = Training(stages=("1M", "2M"), keep_checkpoints=2), Folders(tmp_path / "c", tmp_path / "r")
    assert checkpoint_bytes(training, 100, 100, 3) == (12 * 100 * 5, 4 * 100 * (2 + 3))
    scoring = foresee_evaluation(Evaluation(tasks=()), _shape(), 1e12, [text()], models=6, between=3)
    disk = foresee_disk(training, 100, 100, [text()], scoring, folders, tmp_path / "r/x")
    assert (disk.checkpoints, disk.models) == (6000, 2000)


def _shape() -> ModelShape:
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 257,
    }
    shape = shape_of(config)
    assert shape is not None
    return shape


def test_a_disk_that_is_too_small_says_how_much_is_missing(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "cache", tmp_path / "runs")

    def problems(free: int) -> list[str]:
        disk = DiskForesight(4e9, 6e9, 1e9, 1e9, {str(folders.cache): free, str(folders.runs): free})
        return [str(problem) for problem in disk_problems(disk, folders)]

    assert problems(12_000_000_000) == []
    (said,) = problems(9_000_000_000)
    assert "9 GB free" in said
    assert "about 12 GB" in said
    assert "free 3 GB" in said
    assert f"{folders.cache} and {folders.runs}" in said


def test_places_on_two_disks_are_looked_at_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next((place for place in (Path("/dev/shm"), Path("/proc")) if place.is_dir()), None)
    if other is None or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is one file system only")
    folders = Folders(tmp_path / "cache", other / "runs")
    disk = DiskForesight(4e9, 6e9, 0, 0, {str(folders.cache): 5_000_000_000, str(folders.runs): 5_000_000_000})
    (problem,) = disk_problems(disk, folders)
    assert problem.where == str(folders.runs)


def test_free_room_is_that_of_the_nearest_folder_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(place: Path) -> Usage:
        asked.append(place)
        return Usage(10, 3, 7)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folders = Folders(tmp_path / "a/b", tmp_path)
    scoring = foresee_evaluation(Evaluation(tasks=()), _shape(), 1e12, [text()], models=3)
    disk = foresee_disk(Training(), 100, 100, [text()], scoring, folders, tmp_path / "x")
    assert asked == [tmp_path, tmp_path]
    assert disk.free == {str(tmp_path / "a/b"): 7, str(tmp_path): 7}
