"""What remedies hold, keep and train, as it is counted beforehand, against models that are built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mobilellm import known_shape
from test_memory import POSITIONS, configurations, network_of, saved_bytes
from test_memory import rows as rows_of_memory
from test_network import configurations as families
from test_remedies import LAYERS, learner_of, made

from onward.model.shape import read_shape
from onward.recipe import Forgetting
from onward.training import memory
from onward.training.frozen import keep_in_compute_type, keep_parts
from onward.training.memory import predict
from onward.training.remedies import parts_of
from synthetic import llama_config, write_model


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = llama_config(tie_word_embeddings=request.param, num_hidden_layers=LAYERS)
    return write_model(tmp_path_factory.mktemp("counted") / "model", config)


@pytest.mark.parametrize(
    "forgetting",
    [{}, {"freeze": "embeddings"}, {"freeze": 2}, {"lora": {"rank": 4}}, {"lora": {"rank": 4}, "freeze": 1},
     {"lora": {"rank": 4}, "kl": 1.0}, {"l2_sp": 1.0},
     {"ewc": 1.0, "kl": 1.0, "freeze": {"embeddings": True, "blocks": 1}}],
    ids=["plain", "embeddings", "blocks", "lora", "lora-blocks", "lora-kl", "l2_sp", "all"],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_is_predicted_to_the_byte(folder: Path, precision: Any, forgetting: dict[str, Any]) -> None:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    learner, shape = learner_of(folder, dtype, **forgetting), read_shape(folder)
    use = predict(
        shape, learner.strategy, sequence_tokens=10**6, world=1, kind="cuda", precision=precision,
        forgetting=Forgetting.model_validate(forgetting),
    )  # fmt: skip
    off = 8 * 32 if forgetting.get("freeze", "embeddings") != "embeddings" else 0  # the last norm counts as of blocks
    parameters = list(learner.model.parameters())
    assert use.weights == pytest.approx(sum(p.nbytes for p in parameters), abs=off)
    assert use.gradients == pytest.approx(sum(p.nbytes for p in parameters if p.requires_grad), abs=off)
    moments = [m for state in learner.optimizer.state.values() for name, m in state.items() if name != "step"]
    assert use.optimizer == pytest.approx(sum(m.nbytes for m in moments), abs=2 * off)
    kept = 0 if learner.anchor is None else learner.anchor.memory_bytes
    if learner.reference is not None and learner.reference.network is not learner.network:
        kept += sum(p.nbytes for p in learner.reference.network.parameters())
    assert use.remedies == pytest.approx(kept, abs=2 * off)


def saved_by(precision: torch.dtype, layers: int, every: int = 0, **forgetting: Any) -> int:
    """What the forward pass of a small Llama with remedies leaves for the backward one."""
    network = network_of(next(configurations()).values[0], precision, layers, every)
    keep_parts(network, Forgetting.model_validate(forgetting), 0)
    keep_in_compute_type(network, False)
    with saved_bytes(network) as found:
        network(rows_of_memory())
    return sum(found.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("rank", [4, 16])
def test_a_block_with_adapters_leaves_their_products_too(precision: torch.dtype, rank: int) -> None:
    shape = known_shape(next(configurations()).values[0].to_dict())
    width = parts_of(shape, Forgetting.model_validate({"lora": {"rank": rank}})).adapter_width
    block = memory._saved_per_position(shape, precision.itemsize, "cpu", False) + precision.itemsize * width
    measured = saved_by(precision, 3, lora={"rank": rank}) - saved_by(precision, 2, lora={"rank": rank})
    assert measured == pytest.approx(POSITIONS * block, rel=0.01)


def test_a_recomputed_block_with_adapters_leaves_its_input() -> None:
    left = [saved_by(torch.bfloat16, layers, every=1, lora={"rank": 4}) for layers in (2, 3)]
    assert left[1] - left[0] == pytest.approx(POSITIONS * 64 * 2, rel=0.05)


@pytest.mark.parametrize("family", ["gpt2", "opt-dropout", "qwen3-moe", "deepseek3", "phi-bias", "gpt-neox", "gemma3"])
@pytest.mark.parametrize(
    "forgetting",
    [{"freeze": "embeddings"}, {"freeze": {"embeddings": True, "blocks": 1}}, {"freeze": 1}, {"lora": {"rank": 4}}],
    ids=["embeddings", "embeddings-blocks", "blocks", "lora"],
)
def test_what_is_trained_of_other_families_is_counted(tmp_path: Path, family: str, forgetting: dict[str, Any]) -> None:
    """Tables of positions are embeddings; experts that stand in one tensor get no adapters."""
    if family == "deepseek3" and "embeddings" not in str(forgetting) and "freeze" in forgetting:
        pytest.skip("its first block has another size than the others, which is not counted")
    folder = write_model(tmp_path / "model", families()[family]())
    learner = learner_of(folder, **forgetting)
    trained = sum(p.numel() for p in learner.model.parameters() if p.requires_grad)
    parts = parts_of(read_shape(folder), Forgetting.model_validate(forgetting))
    assert parts.trained == pytest.approx(trained, abs=10 * 32)  # norms that are not inside blocks count as of them
    if parts.passive_blocks:
        seen: list[bool] = []
        learner.network.blocks[0].register_forward_hook(lambda _block, _given, out: seen.append(_requires(out)))
        made(learner, 0)
        assert seen
        assert not any(seen), "nothing below the first trained block asks for gradients"


def _requires(out: Any) -> bool:
    return bool((out[0] if isinstance(out, tuple) else out).requires_grad)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_frozen_blocks_at_the_bottom_leave_nothing(precision: torch.dtype) -> None:
    frozen = saved_by(precision, 3, freeze={"embeddings": True, "blocks": 2})
    assert frozen == saved_by(precision, 1, freeze={"embeddings": True})
    assert frozen < saved_by(precision, 3, freeze={"blocks": 2})
