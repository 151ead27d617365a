from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mobilellm import known_shape

from onward.batches import Batch
from onward.training import memory
from onward.training.memory import MemoryMeter, MemoryUse, corrected, correction, predict
from onward.training.network import Network, Rows
from onward.training.strategy import Strategy

POSITIONS = 256
SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def configurations() -> Iterator[Any]:
    from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, Qwen3Config

    yield pytest.param(LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True), id="llama")
    yield pytest.param(LlamaConfig(**SMALL, num_key_value_heads=4, head_dim=32), id="llama-wide-heads")
    yield pytest.param(Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=32), id="qwen3")
    yield pytest.param(GPTNeoXConfig(**SMALL), id="gpt-neox")
    yield pytest.param(
        Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=32, sliding_window=512, pad_token_id=0), id="gemma3"
    )


def network_of(config: Any, precision: torch.dtype, layers: int, every: int = 0) -> Network:
    from transformers import AutoModelForCausalLM

    config.num_hidden_layers, config.layer_types = layers, ["full_attention"] * layers
    torch.manual_seed(0)
    return Network(AutoModelForCausalLM.from_config(config), precision, Strategy(checkpoint_every=every, loss_chunk=32))


def rows() -> Rows:
    ids = np.random.default_rng(0).integers(1, 300, (1, POSITIONS))
    zeros = np.zeros_like(ids)
    positions = np.arange(POSITIONS)[None].copy()
    return Rows.of(Batch(ids, np.roll(ids, -1, axis=1), zeros, positions, np.zeros(1, dtype=np.bool_)))


@contextmanager
def saved_bytes(network: Network) -> Iterator[dict[int, int]]:
    """Storages that autograd saves, parameters and their casts left out."""
    found: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # an address is used once only as long as what has it lives
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with network.compute_weights(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
        weights = [p for module in network.modules() for p in module._parameters.values() if p is not None]
        for weight in (*weights, *network.parameters()):
            found.pop(weight.untyped_storage().data_ptr(), None)


def bytes_per_block(config: Any, precision: torch.dtype, every: int = 0) -> int:
    """What a block more leaves after the forward pass."""
    totals = []
    for layers in (2, 3):
        network = network_of(config, precision, layers, every)
        with saved_bytes(network) as found:
            network(rows())
        totals.append(sum(found.values()))
    return totals[1] - totals[0]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("config", list(configurations()))
def test_a_block_leaves_what_autograd_saves(config: Any, precision: torch.dtype) -> None:
    predicted = POSITIONS * memory._saved_per_position(known_shape(config.to_dict()), precision.itemsize, "cpu", False)
    assert predicted == pytest.approx(bytes_per_block(config, precision), rel=0.06)


def test_a_recomputed_block_leaves_its_input() -> None:
    config = next(configurations()).values[0]
    assert bytes_per_block(config, torch.bfloat16, every=1) == pytest.approx(POSITIONS * 64 * 2, rel=0.05)


def foreseen(strategy: Strategy = Strategy(), **circumstances: Any) -> MemoryUse:  # noqa: B008
    settings: dict[str, Any] = {"sequence_tokens": 2048, "world": 1, "kind": "cuda", "precision": "bf16"}
    return predict(known_shape(), strategy, **(settings | circumstances))


def test_weights_moments_and_gradients_are_four_times_four_bytes_a_parameter() -> None:
    use = foreseen(precision="fp32")
    assert use.weights == use.gradients == use.optimizer // 2 == 4 * 124_635_456
    assert use.cast == 0
    assert foreseen().cast == 2 * (124_635_456 - 32_000 * 576)


def test_the_total_is_the_sum_of_all_that_is_on_the_device() -> None:
    use = foreseen(Strategy(offload=True))
    parts = {field.name: getattr(use, field.name) for field in fields(use)}
    assert use.host == 16 * 124_635_456 == parts.pop("host")
    assert use.total == sum(parts.values())
    assert use.weights == use.optimizer == 0


def test_one_micro_batch_has_no_gradients_beside_all_activations() -> None:
    alone, second = foreseen(Strategy(micro_batch=8), micro_batches=1), foreseen(Strategy(micro_batch=8))
    assert second.total - alone.total == 4 * 124_635_456


def test_with_few_activations_the_peak_is_the_end_of_the_backward_pass() -> None:
    """Gradients of cast weights wait in bf16, and the tied embedding's come twice."""
    use = foreseen(Strategy(checkpoint_every=1, loss_chunk=16), sequence_tokens=64)
    assert use.activations == 0
    assert use.gradients == 4 * 124_635_456 + use.cast + 2 * 4 * 32_000 * 576


def test_recomputing_more_and_smaller_chunks_need_less() -> None:
    totals = [foreseen(Strategy(checkpoint_every=every, micro_batch=8)).total for every in (0, 4, 2, 1)]
    assert totals == sorted(totals, reverse=True)
    chunks = [foreseen(Strategy(micro_batch=8, loss_chunk=chunk)).total for chunk in (8192, 2048, 256)]
    assert chunks == sorted(chunks, reverse=True)
    # A chunk is never larger than the micro-batch.
    assert foreseen(Strategy(loss_chunk=10**6)) == foreseen(Strategy(loss_chunk=2048))


def test_sharding_needs_less_the_more_is_split_and_the_more_ranks_there_are() -> None:
    totals = [foreseen(Strategy(sharding=kind), world=8).total for kind in ("none", "zero2", "zero3")]  # type: ignore[arg-type]
    assert totals == sorted(totals, reverse=True)
    ranks = [foreseen(Strategy(sharding="zero3"), world=world).total for world in (2, 4, 8)]
    assert ranks == sorted(ranks, reverse=True)


def test_a_cpus_heap_is_counted_and_what_the_process_held_before_is_taken_as_given() -> None:
    gpu, cpu = foreseen(), foreseen(kind="cpu", baseline_bytes=123_000_000)
    assert gpu.heap == 0 < cpu.heap
    assert cpu.baseline == 123_000_000


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_measured_peak_gives_the_factor_that_predicts_it(factor: float) -> None:
    use = foreseen(kind="cpu")
    measured = corrected(use, factor).total
    assert correction(use, measured) == pytest.approx(factor, rel=1e-6)
    assert corrected(use, correction(use, measured)).total == pytest.approx(measured, rel=1e-6)
    assert corrected(use, factor).weights == use.weights


def test_a_peak_below_what_is_certain_does_not_make_activations_vanish() -> None:
    use = foreseen()
    assert 0 < corrected(use, correction(use, 1)).activations < use.activations
    assert correction(replace(use, activations=0, logits=0), 1) == 1.0


def test_the_meter_sees_what_is_allocated_and_forgets_it_when_reset() -> None:
    meter = MemoryMeter("cpu")
    meter.reset()
    before = meter.read()
    block = np.ones(200_000_000, dtype=np.uint8)
    during = meter.read()
    assert during.allocated - before.allocated > 150_000_000
    del block
    after = meter.read()
    assert after.peak >= during.allocated
    assert after.allocated < before.allocated + 100_000_000
    meter.reset()
    assert meter.read().peak < during.allocated - 50_000_000


def test_where_the_kernel_forbids_a_reset_the_peak_is_the_processs(tmp_path: Path) -> None:
    (tmp_path / "clear_refs").mkdir()  # writing to it fails
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t 999000000 kB\n")
    meter = MemoryMeter("cpu", tmp_path)
    meter.reset()
    assert meter.read().peak == 999_000_000 * 1024


def test_where_the_kernel_shows_no_peak_it_is_that_of_the_readings(tmp_path: Path) -> None:
    meter = MemoryMeter("cpu", tmp_path / "missing")
    block = np.ones(200_000_000, dtype=np.uint8)
    high = meter.read()
    del block
    low = meter.read()
    assert low.allocated < high.allocated
    assert low.peak == high.peak
    meter.reset()
    assert meter.read().peak < high.peak


def test_keeping_freed_memory_spares_the_kernel_from_clearing_it_again() -> None:
    """In a process of its own, since it cannot be undone."""
    import subprocess
    import sys

    code = """
import resource
import torch
from onward.model.heap import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [torch.ones(10_000_000) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
default = faults()
kept = keep_freed_memory()
faults()
print(kept, default, faults())
"""
    kept, default, after = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    if kept == "False":
        pytest.skip("not glibc")
    assert int(after) < int(default) / 10
