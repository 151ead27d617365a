"""Remedies in a step of one process: what is frozen, adapted, drawn to the base, and what is off to the bit."""

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import LENGTH, RATE, ROWS, SETTINGS, batch_of
from test_network import configurations as families

from onward.batches import Batch
from onward.errors import UserError
from onward.model.load import export_model, load_model
from onward.model.shape import read_shape
from onward.model.source import describe
from onward.recipe import Forgetting, Optimizer
from onward.training.launch import Place
from onward.training.learner import Learner, Measured
from onward.training.network import Network, Rows
from onward.training.ranks import Ranks
from onward.training.reference import Reference, frozen_copy
from onward.training.remedies import parts_of
from onward.training.strategy import Strategy
from synthetic import llama_config, write_model

LAYERS = 3


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = llama_config(tie_word_embeddings=request.param, num_hidden_layers=LAYERS)
    return write_model(tmp_path_factory.mktemp("remedies") / "model", config)


def gpt2() -> Any:
    from transformers import GPT2Config

    return GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0)


def learner_of(folder: Path, precision: torch.dtype = torch.float32, **forgetting: Any) -> Learner:
    fisher = {name: torch.ones_like(p) for name, p in load_model(folder).named_parameters()}
    changes = {key: forgetting.pop(key) for key in ("optimizer", "every", "fisher") if key in forgetting}
    return Learner(
        describe(folder), Optimizer.model_validate(SETTINGS | changes.get("optimizer", {})),
        Strategy(loss_chunk=16, checkpoint_every=changes.get("every", 0)), precision, ROWS * LENGTH,
        Ranks(Place(), torch.device("cpu")), forgetting=Forgetting.model_validate(forgetting),
        fisher=changes.get("fisher", fisher), seed=3,
    )  # fmt: skip


def replaying(step: int, rows: tuple[int, ...] = (1, 2)) -> Batch:
    return replace(batch_of(step), replayed_B=np.isin(np.arange(ROWS), rows))


def made(learner: Learner, step: int, rows: tuple[int, ...] = (1, 2), **more: Any) -> Measured:
    batch = replaying(step, rows)
    micro = [Rows.of(batch.rows(start, start + 2)) for start in range(0, ROWS, 2)]
    found = learner.update(micro, batch.labelled_tokens, RATE, **more)
    assert found is not None
    return found


def bits(learner: Learner) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in learner.tensors().items()}


@pytest.mark.parametrize(
    "off",
    [
        {"kl": 0.0},
        {"l2_sp": 0.0},
        {"ewc": 0.0},
        {"ewc": 0.0, "l2_sp": 0.0, "kl": 0.0},
        {"freeze": {"embeddings": False, "blocks": 0}},
    ],
    ids=["kl", "l2_sp", "ewc", "all", "freeze"],
)
def test_a_strength_of_0_is_training_without_to_the_bit(folder: Path, off: dict[str, Any]) -> None:
    plain, with_it = learner_of(folder), learner_of(folder, **off)
    for step in range(2):
        a, b = made(plain, step), made(with_it, step)
        assert torch.equal(a.loss_nats, b.loss_nats)
    assert bits(plain) == bits(with_it)
    assert plain.tensors().keys() == {
        f"{part}.{name}" for part in ("weights", "exp_avg", "exp_avg_sq") for name, _ in plain.model.named_parameters()
    }


@pytest.mark.parametrize("every", [0, 1], ids=["kept", "recomputed"])
@pytest.mark.parametrize("blocks", [0, 2, "all"])
def test_what_is_frozen_stays_to_the_bit_and_the_rest_learns_as_by_hand(
    folder: Path, blocks: int | str, every: int
) -> None:
    is_tied = load_model(folder).config.tie_word_embeddings
    if blocks == "all" and is_tied:
        keeps = {"freeze": {"blocks": "all"}}
    elif blocks == "all":
        keeps = {"freeze": {"blocks": LAYERS, "embeddings": True}}
    else:
        keeps = {"freeze": {"embeddings": True, "blocks": blocks}}
    learner, by_hand = learner_of(folder, every=every, **keeps), learner_of(folder)
    for name, parameter in by_hand.model.named_parameters():
        number = LAYERS if blocks == "all" else blocks
        is_kept = any(name.startswith(f"model.layers.{n}.") for n in range(int(number)))
        parameter.requires_grad_(not is_kept and not ("embeddings" in keeps["freeze"] and "embed_tokens" in name))
    kept = {name for name, p in by_hand.model.named_parameters() if not p.requires_grad}
    assert kept
    by_hand = _rebuilt(by_hand)
    for step in range(3):
        assert made(learner, step).loss_nats.item() == pytest.approx(made(by_hand, step).loss_nats.item(), abs=1e-6)
    base, weights = dict(load_model(folder).named_parameters()), learner.whole_weights(torch.float32)
    for name, parameter in by_hand.model.named_parameters():
        torch.testing.assert_close(weights[name], parameter.detach(), rtol=1e-4, atol=1e-6)
        assert torch.equal(weights[name], base[name]) == (name in kept), name
    assert not any(name.split(".", 1)[1] in kept for name in learner.tensors())
    assert not any(p.grad is not None for p in learner.model.parameters())


def _rebuilt(learner: Learner) -> Learner:
    """Give a learner whose parameters were frozen by hand the optimizer that fits them."""
    from onward.training.optimizer import build_optimizer

    learner.optimizer = build_optimizer(learner.model, Optimizer.model_validate(SETTINGS), ROWS * LENGTH)
    learner._parameters = [p for p in learner.model.parameters() if p.requires_grad]
    return learner


def test_no_graph_is_made_below_the_first_trained_block(folder: Path) -> None:
    learner = learner_of(folder, freeze={"embeddings": True, "blocks": 2})
    needs = []
    for block in learner.network.blocks:
        block.register_forward_hook(lambda *args: needs.append(_first(args[-1]).requires_grad))
    made(learner, 0)
    assert needs == [False, False, True] * 2


def _first(out: Any) -> torch.Tensor:
    found: torch.Tensor = out[0] if isinstance(out, tuple) else out
    return found


def test_frozen_weights_are_rounded_for_computing_and_exported_as_they_were(folder: Path) -> None:
    learner = learner_of(folder, torch.bfloat16, freeze={"embeddings": True, "blocks": 1})
    frozen = [p for p in learner.model.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.bfloat16}
    assert {p.dtype for p in learner.model.parameters() if p.requires_grad} == {torch.float32}
    plain = learner_of(folder, torch.bfloat16)
    rows = Rows.of(batch_of(0))
    assert torch.equal(learner.evaluate(rows), plain.evaluate(rows)), "rounded once is not rounded every step"
    made(learner, 0)
    weights = learner.whole_weights(torch.float32)
    for name, parameter in load_model(folder).named_parameters():
        is_frozen = name.startswith(("model.embed_tokens.", "model.layers.0."))
        assert torch.equal(weights[name], parameter) == is_frozen, name


@pytest.mark.parametrize("forgetting", [{"freeze": 7}, {"freeze": 7, "lora": {}}])
def test_more_blocks_than_there_are_are_refused_with_their_number(folder: Path, forgetting: dict[str, Any]) -> None:
    for refuses in (
        lambda: learner_of(folder, **forgetting),
        lambda: parts_of(read_shape(folder), Forgetting.model_validate(forgetting)),
    ):
        with pytest.raises(UserError, match="not so many blocks") as refused:
            refuses()
        assert refused.value.got == "7"
        assert "at most 3" in str(refused.value.expected)


def test_all_blocks_of_a_tied_model_by_their_number_are_refused_with_the_embeddings(folder: Path) -> None:
    tied = read_shape(folder).tied
    forgetting = {"freeze": {"embeddings": True, "blocks": LAYERS}}
    for accepts in (
        lambda: learner_of(folder, **forgetting),
        lambda: parts_of(read_shape(folder), Forgetting.model_validate(forgetting)),
    ):
        if not tied:
            accepts()  # the output embeddings are trained
            continue
        with pytest.raises(UserError, match="nothing but the last norm is left to train") as refused:
            accepts()
        assert refused.value.where == "training.forgetting.freeze"
    learner_of(folder, freeze={"blocks": LAYERS})


def test_adapters_on_no_block_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no block is left"):
        learner_of(folder, lora={}, freeze=LAYERS)


def test_ewc_with_the_fisher_information_of_other_shapes_is_refused(folder: Path) -> None:
    other = {name: torch.ones(3, 4) for name, _ in load_model(folder).named_parameters()}
    with pytest.raises(UserError, match="that of another model") as refused:
        learner_of(folder, ewc=1.0, fisher=other)
    assert "(3, 4) for model.embed_tokens.weight" in str(refused.value.got)


def test_adapters_begin_as_the_base_and_are_the_same_for_a_seed(folder: Path) -> None:
    torch.manual_seed(11)
    one = learner_of(folder, lora={"rank": 4})
    torch.manual_seed(12)
    after = torch.get_rng_state()
    two, plain = learner_of(folder, lora={"rank": 4}), learner_of(folder)
    assert torch.equal(torch.get_rng_state(), after), "the run's own random numbers were taken"
    assert bits(one) == bits(two)
    rows = Rows.of(batch_of(0))
    assert torch.equal(one.evaluate(rows), plain.evaluate(rows))
    downs = [t for name, t in one.tensors().items() if name.startswith("weights.") and "lora_A" in name]
    assert len(downs) == 7 * LAYERS
    assert all(tensor.any() for tensor in downs)
    assert not torch.equal(downs[0], downs[7])


@pytest.mark.parametrize("frozen", [0, 2])
def test_all_linear_layers_of_the_blocks_are_adapted_and_nothing_else_is_trained(folder: Path, frozen: int) -> None:
    learner = learner_of(folder, lora={"rank": 4}, freeze=frozen)
    trained = {name for name, p in learner.model.named_parameters() if p.requires_grad}
    layers = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layers += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert trained == {
        f"model.layers.{n}.{layer}.{factor}.default.weight"
        for n in range(frozen, LAYERS) for layer in layers for factor in ("lora_A", "lora_B")
    }  # fmt: skip
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    made(learner, 0)
    made(learner, 1)
    assert all(not torch.equal(before[f"weights.{name}"], learner.tensors()[f"weights.{name}"]) for name in trained)


def test_adapters_learn_at_their_own_rate_and_are_decayed(folder: Path) -> None:
    learner = learner_of(folder, lora={"learning_rate_ratio": 7.0}, optimizer={"weight_decay": 0.3})
    assert [(group["rate_ratio"], group["weight_decay"]) for group in learner.optimizer.param_groups] == [(7.0, 0.3)]
    made(learner, 0)
    assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(7 * RATE)


@pytest.mark.parametrize(
    "make",
    [gpt2, lambda: llama_config(tie_word_embeddings=False), *(families()[name] for name in ("qwen3-moe", "deepseek3"))],
    ids=["gpt2", "llama", "qwen3-moe", "deepseek3"],
)
def test_the_merged_model_has_the_logits_of_the_adapted_one(make: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_model(tmp_path / "model", make())
    learner = learner_of(folder, lora={"rank": 4, "alpha": 12.0, "learning_rate_ratio": 1.0})
    for step in range(4):
        made(learner, step)
    weights = learner.whole_weights(torch.float32)
    export_model(learner.model, folder, tmp_path / "out", torch.float32, weights)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    base = load_model(folder)
    assert {name for name, _ in merged.named_parameters()} == {name for name, _ in base.named_parameters()}
    adapted = copy.deepcopy(learner.model)
    adapted.set_attn_implementation("sdpa")
    ids = torch.from_numpy(batch_of(9).ids_BT)
    with torch.no_grad():
        logits = [model(input_ids=ids, use_cache=False).logits for model in (merged, adapted, base)]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert (logits[0] - logits[2]).abs().max() > 0.01
    assert learner.exported_parameters == sum(tensor.numel() for tensor in weights.values())


def test_recomputed_blocks_give_adapters_the_same_bits(folder: Path) -> None:
    found, passes = [], []
    for every in (0, 1):
        learner = learner_of(folder, lora={"rank": 4}, kl=1.0, every=every)
        passes.append(0)
        for block in learner.network.blocks:
            block.mlp.register_forward_pre_hook(lambda *_: passes.append(passes.pop() + 1))
        for step in range(2):
            made(learner, step)
        found.append(bits(learner))
    assert found[0] == found[1]
    once = 2 * 2 * LAYERS  # steps x micro-batches x blocks
    assert passes == [2 * once, 3 * once], "forward, once more for the base, and the model's recomputed"


@pytest.mark.timeout(300)  # a C++ compiler at work, on a machine that may be busy
@pytest.mark.filterwarnings("ignore")
def test_compiled_blocks_train_adapters_too(tmp_path: Path) -> None:
    import shutil

    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler")
    folder = write_model(tmp_path / "model", llama_config(num_hidden_layers=1))
    losses = []
    for compiled in (False, True):
        learner = Learner(
            describe(folder), Optimizer.model_validate(SETTINGS), Strategy(loss_chunk=64, compiled=compiled),
            torch.float32, ROWS * LENGTH, Ranks(Place(), torch.device("cpu")),
            forgetting=Forgetting.model_validate({"lora": {"rank": 4}, "kl": 1.0}), seed=3,
        )  # fmt: skip
        losses.append([made(learner, step).loss_nats.item() for step in range(3)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_base_is_not_compiled_for_each_number_of_replayed_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model's own passes always have the same shapes; a compiler is not needed to count what it would be given."""
    import torch._dynamo as dynamo

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    dynamo.reset()
    folder = write_model(tmp_path / "model", llama_config(num_hidden_layers=1))
    learner = Learner(
        describe(folder), Optimizer.model_validate(SETTINGS), Strategy(compiled=True),
        torch.float32, ROWS * LENGTH, Ranks(Place(), torch.device("cpu")),
        forgetting=Forgetting.model_validate({"lora": {"rank": 4}, "kl": 1.0}), seed=3,
    )  # fmt: skip
    graphs = []
    for step, rows in enumerate([(0, 1), (1,), (0, 1, 3), (), (2,), (0, 1, 2, 3)]):
        made(learner, step, rows=rows)
        graphs.append(dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert len(set(graphs)) == 1, graphs


def test_the_divergence_is_0_at_the_base_and_grows_and_is_per_replayed_token(folder: Path) -> None:
    learner, plain = learner_of(folder, kl=2.0), learner_of(folder)
    first = made(learner, 0, rows=(0, 1))  # a whole micro-batch, whose arithmetic is the base's own
    assert first.kl_nats is not None
    assert first.kl_nats.item() == 0
    assert torch.equal(first.loss_nats, made(plain, 0).loss_nats)
    expected = _divergence(learner.model, load_model(folder), replaying(1))
    assert expected > 1e-4
    second = made(learner, 1)
    assert second.kl_nats is not None
    assert second.kl_nats.item() == pytest.approx(expected, rel=1e-3)
    none = made(learner, 2, rows=())
    assert none.kl_nats is not None
    assert none.kl_nats.isnan()
    assert made(plain, 1).kl_nats is None


@torch.no_grad()
def _divergence(model: Any, base: Any, batch: Batch) -> float:
    """Mean of KL(base || model) over the labelled tokens of replayed rows, by the models' own forward passes."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("sdpa")
    ids, labels = torch.from_numpy(batch.ids_BT), torch.from_numpy(batch.labels_BT)
    chosen = (labels >= 0) & torch.from_numpy(batch.replayed_B)[:, None]
    log_p, log_base = (each(input_ids=ids, use_cache=False).logits.log_softmax(-1)[chosen] for each in (model, base))
    return float((log_base.exp() * (log_base - log_p)).sum(-1).mean())


@pytest.mark.parametrize("every", [0, 1], ids=["kept", "recomputed"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_with_adapters_the_model_without_them_is_the_base(tmp_path: Path, family: str, every: int) -> None:
    """No copy is loaded, and what is measured is what a copy would have given, to the bit."""
    folder = write_model(tmp_path / "model", gpt2() if family == "gpt2" else llama_config(num_hidden_layers=LAYERS))
    remedies: dict[str, Any] = {"lora": {"rank": 4}, "kl": 2.0}
    shared, apart = (learner_of(folder, torch.bfloat16, every=every, **remedies) for _ in range(2))
    assert shared.reference is not None
    assert shared.reference.network is shared.network
    copied = frozen_copy(apart._base, torch.bfloat16, apart.strategy, apart.ranks)
    apart.reference = Reference(copied, 2.0, apart.strategy, apart.ranks)
    for step in range(4):
        found, expected = made(shared, step), made(apart, step)
        assert found.kl_nats is not None
        assert expected.kl_nats is not None
        assert torch.equal(found.loss_nats, expected.loss_nats)
        assert torch.equal(found.kl_nats, expected.kl_nats)
    assert found.kl_nats > 1e-3
    assert bits(shared) == bits(apart)
    assert not any("forward" in vars(module) for module in shared.model.modules() if "lora_A" in dir(module))


def test_a_heavy_divergence_holds_the_model_at_the_base(folder: Path) -> None:
    ends = []
    for weight in (0.1, 100.0):
        learner = learner_of(folder, kl=weight)
        for step in range(10):
            found = made(learner, step)
        assert found.kl_nats is not None
        ends.append(found.kl_nats.item())
    assert ends[1] < ends[0] / 2


def test_the_base_is_computed_for_replayed_rows_alone(folder: Path) -> None:
    learner = learner_of(folder, kl=1.0)
    assert learner.reference is not None
    lengths: list[int] = []
    as_ever = Network.hidden

    def watched(rows: Rows) -> torch.Tensor:
        lengths.append(len(rows.ids_N))
        return as_ever(learner.reference.network, rows)

    learner.reference.network.hidden = watched
    made(learner, 0, rows=(1,))
    made(learner, 1, rows=())
    made(learner, 2, rows=(0, 1, 3))
    assert lengths == [LENGTH, 2 * LENGTH, LENGTH]


def test_an_update_that_is_left_out_is_not_pulled_either(folder: Path) -> None:
    learner = learner_of(folder, l2_sp=0.01, ewc=0.01, kl=1.0)
    made(learner, 0)
    before = bits(learner)
    assert made(learner, 1, limit_nats=1.0).left_out == 1
    assert bits(learner) == before
    made(learner, 1)
    assert bits(learner) != before


def test_an_infinite_pull_leaves_the_base_unchanged(folder: Path) -> None:
    learner = learner_of(folder, l2_sp=1e30)
    for step in range(2):
        made(learner, step)
    weights = learner.whole_weights(torch.float32)
    assert all(torch.equal(weights[name], p) for name, p in load_model(folder).named_parameters())


def test_embeddings_at_a_rate_near_0_stay_near_the_base(folder: Path) -> None:
    moved = []
    for rate in (1e-9, 2e-3):
        learner = learner_of(folder, optimizer={"embedding_learning_rate": rate})
        for step in range(3):
            made(learner, step)
        weights, base = learner.whole_weights(torch.float32), load_model(folder).model.embed_tokens.weight.detach()
        moved.append(float((weights["model.embed_tokens.weight"] - base).abs().max()))
        assert not torch.equal(weights["model.norm.weight"], torch.ones(32))
    assert moved[0] < 1e-8
    assert moved[1] > 1e-3
