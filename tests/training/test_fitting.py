import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mobilellm import known_shape

from onward.errors import UserError
from onward.recipe import Training
from onward.training import fitting
from onward.training.fitting import (
    Choice,
    amount,
    budget,
    candidates,
    choose,
    free_memory_bytes,
    remember,
    remembered,
    smaller,
)
from onward.training.hardware import Hardware, known_hardware, this_machine
from onward.training.memory import predict
from onward.training.strategy import Strategy

GIGA = 10**9


def training(**knobs: Any) -> Training:
    return Training.model_validate({"sequence_tokens": 2048, "batch_tokens": 131_072} | knobs)


def chosen(budget_bytes: int, hardware: Hardware | None = None, **knobs: Any) -> Choice:
    hardware = hardware or known_hardware("h100")
    world = hardware.count if hardware.kind == "cuda" else 1
    return choose(
        training(**knobs),
        known_shape(),
        hardware=hardware,
        world=world,
        rows_per_rank=64 // world,
        precision="bf16",
        budget_bytes=budget_bytes,
    )


@pytest.mark.parametrize("world", [1, 2, 8])
def test_with_memory_enough_a_gpu_keeps_everything_and_recomputes_nothing(world: int) -> None:
    choice = chosen(75 * GIGA, known_hardware(f"{world}xh100"))
    assert (choice.strategy.sharding, choice.strategy.offload, choice.strategy.checkpoint_every) == ("none", False, 0)
    assert choice.strategy.compiled
    assert choice.table[0].relative_time == 1.0


def test_the_less_memory_the_slower_and_smaller_the_choice() -> None:
    choices = [chosen(n * GIGA) for n in (75, 40, 20, 10, 6, 4)]
    times = [next(o.relative_time for o in c.table if o.strategy == c.strategy) for c in choices]
    assert times == sorted(times)
    assert len(set(times)) > 3
    assert all(choice.use.total <= choice.budget_bytes for choice in choices)


def test_what_is_chosen_is_the_fastest_that_fits() -> None:
    choice = chosen(8 * GIGA)
    times = [option.relative_time for option in choice.table]
    assert times == sorted(times)
    assert choice.strategy == next(option.strategy for option in choice.table if option.fits)
    assert not choice.table[0].fits


@pytest.mark.parametrize(
    ("knob", "value", "field", "expected"),
    [
        pytest.param("micro_batch_sequences", 3, "micro_batch", 3, id="micro-batch"),
        pytest.param("gradient_checkpointing", "all", "checkpoint_every", 1, id="recompute-all"),
        pytest.param("gradient_checkpointing", "none", "checkpoint_every", 0, id="recompute-none"),
        pytest.param("gradient_checkpointing", 4, "checkpoint_every", 4, id="recompute-every-4th"),
        pytest.param("sharding", "zero3", "sharding", "zero3", id="sharding"),
        pytest.param("offload", True, "offload", True, id="offload"),
        pytest.param("offload", False, "offload", False, id="no-offload"),
        pytest.param("loss_chunk_tokens", 77, "loss_chunk", 77, id="chunk"),
        pytest.param("compile", False, "compiled", False, id="compile"),
    ],
)
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_a_knob_that_the_recipe_fixes_is_the_same_in_all(
    kind: Any, knob: str, value: Any, field: str, expected: Any
) -> None:
    found = candidates(training(**{knob: value}), known_shape(), kind=kind, world=2, rows_per_rank=32)
    assert {getattr(strategy, field) for strategy in found} == {expected}


def test_left_at_auto_every_knob_is_tried() -> None:
    found = candidates(training(), known_shape(), kind="cuda", world=2, rows_per_rank=12)
    assert {s.sharding for s in found} == {"none", "zero2", "zero3"}
    assert {s.offload for s in found} == {False, True}
    assert {s.checkpoint_every for s in found} == {0, 1, 2}
    assert {s.micro_batch for s in found} == {12, 6, 3, 2, 1}
    assert len(set(found)) == len(found) == 3 * 2 * 3 * 5


def test_a_cpu_has_nothing_to_offload_to_and_one_rank_nobody_to_share_with() -> None:
    found = candidates(training(), known_shape(), kind="cpu", world=1, rows_per_rank=64)
    assert {(s.sharding, s.offload, s.compiled) for s in found} == {("none", False, False)}
    assert max(s.micro_batch for s in found) * 2048 <= 4096


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7, 33, 100])
def test_micro_batches_are_even_shares_of_the_rows(rows: int) -> None:
    found = candidates(training(), known_shape(), kind="cuda", world=1, rows_per_rank=rows)
    for micro in {strategy.micro_batch for strategy in found}:
        passes = -(-rows // micro)
        assert -(-rows // passes) == micro
        assert micro * 2048 <= 65_536


def test_a_probes_correction_changes_the_choice() -> None:
    hardware = known_hardware("h100")
    plain = chosen(20 * GIGA, hardware)
    worse = choose(
        training(),
        known_shape(),
        hardware=hardware,
        world=1,
        rows_per_rank=64,
        precision="bf16",
        budget_bytes=20 * GIGA,
        factor=2.0,
    )
    assert worse.strategy != plain.strategy
    assert next(o for o in worse.table if o.strategy == plain.strategy).use.total > plain.use.total


def test_fixed_knobs_that_do_not_fit_are_named() -> None:
    with pytest.raises(UserError) as met:
        chosen(4 * GIGA, micro_batch_sequences=32, gradient_checkpointing="none")
    assert met.value.todo is not None
    assert "gradient_checkpointing" in met.value.todo
    assert "micro_batch_sequences" in met.value.todo
    chosen(4 * GIGA)


@pytest.mark.parametrize("fits", [4096, 2048])
def test_the_longest_sequences_that_would_fit_are_proposed(fits: int) -> None:
    hardware = replace(this_machine("cpu"), memory_bytes=4 * GIGA)
    least = min(option.use.total for option in chosen(100 * GIGA, hardware, sequence_tokens=fits).table)
    with pytest.raises(UserError, match="does not fit") as met:
        chosen(least, hardware, sequence_tokens=8192)
    assert met.value.todo is not None
    assert f"set training.sequence_tokens to {fits}, or" in met.value.todo
    chosen(least, hardware, sequence_tokens=fits)


def test_a_model_that_never_fits_is_told_what_it_needs() -> None:
    with pytest.raises(UserError) as met:
        chosen(10**8)
    assert met.value.todo is not None
    assert "smaller model" in met.value.todo
    assert "GB" in met.value.todo


@pytest.mark.parametrize("world", [1, 2])
def test_the_memory_that_would_do_is_named_and_does(world: int) -> None:
    hardware = replace(this_machine("cpu"), memory_bytes=64 * GIGA)

    def weighed(memory: str, free_bytes: int = 50 * GIGA) -> Choice:
        settings = training(memory=memory)
        return choose(
            settings,
            known_shape(),
            hardware=hardware,
            world=world,
            rows_per_rank=32,
            precision="bf16",
            budget_bytes=budget(settings.memory, hardware, free_bytes, world),
            free_bytes=free_bytes,
        )

    with pytest.raises(UserError) as met:
        weighed("1500MB")
    expected = f"at most {['1.5 GB', '750 MB'][world - 1]} for one process, by training.memory"
    assert met.value.expected == expected
    named = re.search(r"raise training\.memory to ([\d.]+[MG]B), or", str(met.value.todo))
    assert named is not None, met.value.todo
    weighed(named[1])
    assert "device" not in str(met.value.todo), "this one has enough"
    with pytest.raises(UserError) as full:
        weighed("1500MB", 2 * GIGA)
    assert "training.memory to" not in str(full.value.todo), "there is not so much"
    with pytest.raises(UserError, match="does not fit") as free:
        weighed("40GB", GIGA)
    assert str(free.value.expected).endswith("for one process, all that is free")


def test_what_is_needed_never_reads_like_what_there_is() -> None:
    hardware = replace(this_machine("cpu"), memory_bytes=64 * GIGA)
    least = min(option.use.total for option in chosen(60 * GIGA, hardware).table)
    chosen(least, hardware)
    with pytest.raises(UserError) as met:
        chosen(least - 1, hardware)
    assert met.value.got == f"{amount(least, 'up')} at the least"
    assert amount(least, "up") not in str(met.value.expected)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (1_500_000_000, ("1.5 GB", "1.5 GB", "1.5 GB")),
        (999_999_999, ("1 GB", "1 GB", "999 MB")),
        (12_345, ("12 kB", "12 kB", "12 kB")),
        (2e12, ("2 TB", "2 TB", "2 TB")),
        (701_234_567, ("701 MB", "702 MB", "701 MB")),
        (84_933_017_600, ("84.9 GB", "85 GB", "84.9 GB")),
    ],
)
def test_amounts_have_three_digits(size: float, said: tuple[str, str, str]) -> None:
    assert (amount(size), amount(size, "up"), amount(size, "down")) == said


@pytest.mark.parametrize(
    ("kind", "world", "steps"),
    [
        pytest.param("cpu", 1, [], id="cpu"),
        pytest.param("cuda", 1, ["offload", "chunk 512", "chunk 256"], id="gpu"),
        pytest.param("cuda", 2, ["offload", "zero2", "zero3", "chunk 512", "chunk 256"], id="gpus"),
    ],
)
def test_the_retreat_is_the_designs(kind: Any, world: int, steps: list[str]) -> None:
    strategy: Strategy | None = Strategy(micro_batch=6, loss_chunk=256 if kind == "cpu" else 2048)
    seen = []
    while strategy is not None:
        before, strategy = strategy, smaller(strategy, training(), kind=kind, world=world)
        if strategy is None:
            break
        knobs = ("micro_batch", "checkpoint_every", "offload", "sharding", "loss_chunk")
        changed = {name for name in knobs if getattr(before, name) != getattr(strategy, name)}
        assert len(changed) == 1
        words = {"micro_batch": f"micro {strategy.micro_batch}", "checkpoint_every": "recompute", "offload": "offload"}
        words |= {"sharding": strategy.sharding, "loss_chunk": f"chunk {strategy.loss_chunk}"}
        seen.append(words[changed.pop()])
    assert seen == ["micro 3", "micro 2", "micro 1", "recompute", *steps]


def test_every_retreat_is_predicted_to_need_less() -> None:
    strategy: Strategy | None = Strategy(micro_batch=8, loss_chunk=2048)
    totals = []
    while strategy is not None:
        use = predict(known_shape(), strategy, sequence_tokens=2048, world=2, kind="cuda", precision="bf16")
        totals.append(use.total)
        strategy = smaller(strategy, training(), kind="cuda", world=2)
    # Once offloaded, weights and state are away: sharding them saves the machine's memory, not the GPU's.
    assert totals[:6] == sorted(totals[:6], reverse=True)
    assert len(totals) > 6


def test_what_the_recipe_fixes_is_not_given_up() -> None:
    fixed = training(
        micro_batch_sequences=4, gradient_checkpointing="none", offload=False, sharding="none", loss_chunk_tokens=512
    )
    assert smaller(Strategy(micro_batch=4, loss_chunk=512), fixed, kind="cuda", world=8) is None


def test_a_gpu_is_for_one_rank_and_a_machine_without_one_is_shared() -> None:
    gpu, cpu = known_hardware("2xh100"), replace(this_machine("cpu"), memory_bytes=20 * GIGA)
    assert budget(16 * GIGA, gpu) == 16 * GIGA
    assert budget(16 * GIGA, cpu, ranks_here=2) == 8 * GIGA
    assert budget(16 * GIGA, replace(cpu, count=2)) == 8 * GIGA
    assert budget("auto", cpu) == 18 * GIGA
    assert budget("auto", cpu, free_bytes=10 * GIGA) == 9 * GIGA


def test_more_than_is_free_is_not_given() -> None:
    assert budget(100 * GIGA, known_hardware("h100")) < 80 * 2**30
    assert budget(16 * GIGA, this_machine("cpu"), free_bytes=4 * GIGA) < 4 * GIGA


def test_a_container_that_is_almost_full_leaves_little(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    held = psutil.Process().memory_info().rss
    monkeypatch.setattr(fitting, "control_group_memory", lambda: [(GIGA, 9 * GIGA // 10), (5 * GIGA, GIGA)])
    assert GIGA // 10 <= free_memory_bytes("cpu") <= GIGA // 10 + held * 2


def test_a_retreat_is_remembered_for_the_same_knobs_on_the_same_hardware(tmp_path: Path) -> None:
    small, hardware = Strategy(micro_batch=1, checkpoint_every=1), known_hardware("h100")
    remember(tmp_path / "checkpoints", small, training(), hardware)
    assert remembered(tmp_path / "checkpoints", training(), hardware) == small
    # Tokens and learning rate do not alter what a step needs.
    more = training(stages=["2B"], optimizer={"learning_rate": 1e-3})
    assert remembered(tmp_path / "checkpoints", more, hardware) == small


@pytest.mark.parametrize(
    "changes",
    [{"memory": "16GB"}, {"sequence_tokens": 1024}, {"micro_batch_sequences": 2}, {"sharding": "zero2"}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_retreat_is_forgotten_when_a_knob_changes(tmp_path: Path, changes: dict[str, Any]) -> None:
    remember(tmp_path, Strategy(), training(), known_hardware("h100"))
    assert remembered(tmp_path, training(**changes), known_hardware("h100")) is None


@pytest.mark.parametrize("other", ["h200", "2xh100"])
def test_a_retreat_is_forgotten_on_other_hardware(tmp_path: Path, other: str) -> None:
    remember(tmp_path, Strategy(), training(), known_hardware("h100"))
    assert remembered(tmp_path, training(), known_hardware(other)) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"strategy": {"unknown": 1}}', '{"strategy": 3}'])
def test_a_damaged_note_is_no_note(tmp_path: Path, content: str) -> None:
    (tmp_path / "retreat.json").write_text(content)
    assert remembered(tmp_path, training(), known_hardware("h100")) is None
