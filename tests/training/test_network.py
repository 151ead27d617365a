"""The packed training step gives the model's own loss and gradients on each document alone."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from onward.batches import NO_TARGET, Batch, Batches, BatchPlan
from onward.corpus.store import open_corpus
from onward.errors import UserError
from onward.model.blocks import head_changes
from onward.model.load import load_model
from onward.training.network import Network, Rows, choose_precision
from onward.training.strategy import Strategy
from synthetic import llama_config, write_corpus

LENGTH = 48
CHUNKED = Strategy(loss_chunk=16)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Four rows of packed documents: short and cut ones, and padding."""
    corpus = write_corpus(
        tmp_path_factory.mktemp("corpus") / "corpus", [5, 70, 32, 3, 18, 40, 9, 9, 100, 2, 31, 47], LENGTH
    )
    plan = BatchPlan(LENGTH, 4, (), seed=1, stage_steps=(10,))
    found = Batches(plan, [open_corpus(corpus)], padding_id=0)[0]
    assert (found.documents_BT < 0).any()
    assert (found.labels_BT[:, -1] != NO_TARGET).any(), "no document is cut at the end of a row"
    return found


def small(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0}
    return settings | {"bos_token_id": 0, "eos_token_id": 0} | changes


def tiny_llama(**changes: Any) -> Any:
    return model_of(llama_config(**changes))


def model_of(config: Any) -> Any:
    """A random model whose logits differ enough from one another that a mistake anywhere moves the loss."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return strengthened(AutoModelForCausalLM.from_config(config).eval())


@torch.no_grad()
def strengthened(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(6)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def mobilellm(folder: Path) -> Any:
    """The published shape and names of MobileLLM: fp16, no head, `share_embedding` beside an untied declaration."""
    from transformers import LlamaForCausalLM

    config = small(num_attention_heads=9, num_key_value_heads=3, hidden_size=36, bos_token_id=1, eos_token_id=2)
    published = {"model_type": "mobilellm", "share_embedding": True, "tie_word_embeddings": False, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config | published))
    torch.manual_seed(0)
    state = strengthened(LlamaForCausalLM(llama_config(**config))).half().state_dict()
    torch.save(
        {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}, folder / "pytorch_model.bin"
    )
    return load_model(folder)


def configurations() -> dict[str, Callable[[], Any]]:
    import transformers as t

    grouped = small(num_key_value_heads=2)
    gemma = small(num_key_value_heads=1, head_dim=8, sliding_window=8, num_hidden_layers=3)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return {
        "llama-tied": llama_config,
        "llama-untied": lambda: llama_config(tie_word_embeddings=False),
        "gpt-neox": lambda: t.GPTNeoXConfig(**small()),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=8, tie_word_embeddings=True),
        "qwen3-moe": lambda: t.Qwen3MoeConfig(
            **grouped, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
        ),
        "gemma3": lambda: t.Gemma3TextConfig(**gemma, layer_types=kinds),
        "gemma3-softcap": lambda: t.Gemma3TextConfig(**gemma, layer_types=kinds, final_logit_softcapping=2.0),
        "gemma2-softcap": lambda: t.Gemma2Config(
            **gemma, layer_types=kinds, attn_logit_softcapping=None, final_logit_softcapping=2.0
        ),
        "mistral-window": lambda: t.MistralConfig(**grouped, sliding_window=8),
        "phi-bias": lambda: t.PhiConfig(**small(), partial_rotary_factor=0.5),
        "olmo2": lambda: t.Olmo2Config(**grouped),
        "gpt2": lambda: t.GPT2Config(
            vocab_size=257, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=0
        ),
        "granite-scaling": lambda: t.GraniteConfig(
            **grouped, logits_scaling=3.0, embedding_multiplier=2.0, residual_multiplier=0.5, attention_multiplier=0.3
        ),
        "cohere-scale": lambda: t.CohereConfig(**grouped, logit_scale=0.3),
        "deepseek3": lambda: t.DeepseekV3Config(
            **small(), num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
            v_head_dim=12, first_k_dense_replace=1, n_routed_experts=4, n_group=1, topk_group=1,
            moe_intermediate_size=8, num_experts_per_tok=2,
        ),
        "opt-dropout": lambda: t.OPTConfig(**small(), ffn_dim=48, word_embed_proj_dim=32, dropout=0.5, layerdrop=0.5),
    }  # fmt: skip


NAMES = [
    "llama-tied", "llama-untied", "mobilellm", "gpt-neox", "qwen3", "qwen3-moe", "gemma3", "gemma3-softcap",
    "gemma2-softcap", "mistral-window", "phi-bias", "olmo2", "gpt2", "granite-scaling", "cohere-scale", "deepseek3",
    "opt-dropout",
]  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model in fp32; copy it before preparing it for training."""
    name: str = request.param
    return mobilellm(tmp_path_factory.mktemp(name)) if name == "mobilellm" else model_of(configurations()[name]())


def own_losses(model: Any, batch: Batch) -> torch.Tensor:
    """The tokens' losses by the model's own forward pass on each document alone, which knows nothing of packing."""
    losses = []
    for row in range(len(batch.ids_BT)):
        for piece in range(batch.documents_BT[row].max() + 1):
            inside = batch.documents_BT[row] == piece
            ids, labels = (torch.from_numpy(x[row][inside]) for x in (batch.ids_BT, batch.labels_BT))
            logits = model(input_ids=ids[None], use_cache=False).logits[0].float()
            losses.append(F.cross_entropy(logits[labels != NO_TARGET], labels[labels != NO_TARGET], reduction="none"))
    return torch.cat(losses)


def gradients_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_gradients_equal(found: Any, expected: Any, tolerance: float) -> None:
    """Every tensor, relative to its own norm; some (a key's bias) are zero but for rounding, hence the small term."""
    a, b = gradients_of(found), gradients_of(expected)
    assert a.keys() == b.keys()
    largest = max(float(gradient.norm()) for gradient in b.values())
    for name in a:
        off = float((a[name] - b[name]).norm())
        assert off <= tolerance * float(b[name].norm()) + 1e-6 * largest, f"{name} is off by {off}"


def test_packed_loss_and_gradients_are_the_models_own_on_each_document_alone(architecture: Any, batch: Batch) -> None:
    own = copy.deepcopy(architecture)
    expected = own_losses(own, batch)
    assert len(expected) == batch.labelled_tokens
    assert expected.std() > 0.1, "the weights are too small to be seen in the loss"
    expected.mean().backward()
    for every in (0, 2):
        network = Network(copy.deepcopy(architecture), torch.float32, Strategy(loss_chunk=16, checkpoint_every=every))
        loss = network(Rows.of(batch))
        assert loss.item() == pytest.approx(expected.sum().item(), rel=1e-5)
        (loss / batch.labelled_tokens).backward()
        assert_gradients_equal(network.model, own, 1e-4)


@torch.no_grad()
def test_packed_loss_in_bf16_is_the_models_own_in_bf16(architecture: Any, batch: Batch) -> None:
    network = Network(copy.deepcopy(architecture), torch.bfloat16, CHUNKED)
    with network.compute_weights():
        loss = network(Rows.of(batch)).item()
    own = own_losses(copy.deepcopy(architecture).to(torch.bfloat16), batch).sum().item()
    assert loss == pytest.approx(own, rel=5e-3)
    assert loss == pytest.approx(own_losses(architecture, batch).sum().item(), rel=1e-2)


def test_what_the_packed_step_does_not_reproduce_is_refused() -> None:
    import transformers as t

    grouped = small(num_key_value_heads=2, head_dim=8)
    refused: dict[str, tuple[Any, str]] = {
        "soft-capping": (t.Gemma2Config(**grouped, attn_logit_softcapping=50.0), "soft-capping is not supported"),
        "sinks": (t.GptOssConfig(**grouped, num_local_experts=2, num_experts_per_tok=1), "gpt_oss"),
        "convolutions": (t.Lfm2Config(**small(num_key_value_heads=2), layer_types=["conv", "full_attention"]), "conv"),
        "chunks": (
            t.Llama4TextConfig(**grouped, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8),
            "llama4_text",
        ),
        "no-interface": (t.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=257), "mpt"),
    }
    for name, (config, words) in refused.items():
        with pytest.raises(UserError, match=words):
            pytest.fail(f"{name}: {Network(model_of(config), torch.float32, CHUNKED)}")


def test_blocks_that_keep_the_bounds_to_themselves_are_refused_at_the_first_pass(batch: Batch) -> None:
    from transformers import NemotronConfig

    network = Network(model_of(NemotronConfig(**small(num_key_value_heads=2, head_dim=8))), torch.float32, CHUNKED)
    with pytest.raises(UserError, match="cannot be kept inside documents") as caught:
        network(Rows.of(batch))
    assert caught.value.got == "NemotronAttention"


def test_blocks_that_transformers_cannot_recompute_are_refused() -> None:
    model = tiny_llama()
    model.model.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(2))
    with pytest.raises(UserError, match="blocks cannot be recomputed"):
        Network(model, torch.float32, Strategy(checkpoint_every=2))


def test_head_changes_are_read_from_the_configuration() -> None:
    from types import SimpleNamespace as Config

    assert head_changes(Config()) == (1.0, None)
    assert head_changes(Config(logit_scale=0.25, final_logit_softcapping=30.0)) == (0.25, 30.0)
    assert head_changes(Config(logits_scaling=4.0)) == (0.25, None)
    assert head_changes(Config(lm_head_multiplier=0.5, logits_scaling=None)) == (0.5, None)


@pytest.fixture(scope="module")
def deep() -> Any:
    return tiny_llama(num_hidden_layers=5)


@pytest.fixture(scope="module")
def whole(deep: Any, batch: Batch) -> Any:
    """The deep model with the gradients of one pass over everything."""
    network = Network(copy.deepcopy(deep), torch.float32, Strategy(loss_chunk=1000))
    (network(Rows.of(batch)) / batch.labelled_tokens).backward()
    return network.model


@pytest.mark.parametrize("every", [0, 1, 2, 3])
@pytest.mark.parametrize(("micro", "chunk"), [(4, 1), (1, 16), (3, 50), (2, 1000)])
def test_gradients_do_not_depend_on_the_cut(
    deep: Any, whole: Any, batch: Batch, micro: int, chunk: int, every: int
) -> None:
    network = Network(copy.deepcopy(deep), torch.float32, Strategy(loss_chunk=chunk, checkpoint_every=every))
    for start in range(0, 4, micro):
        (network(Rows.of(batch.rows(start, start + micro))) / batch.labelled_tokens).backward()
    assert_gradients_equal(network.model, whole, 2e-6)


def counted(network: Network) -> list[int]:
    """How often each block's first module is passed through, kept up to date from here on."""
    counts = [0] * len(network.blocks)

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    for number, block in enumerate(network.blocks):
        block.input_layernorm.register_forward_hook(count(number))
    return counts


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("every", "passes"),
    [(0, [1, 1, 1, 1, 1]), (1, [2, 2, 2, 2, 2]), (2, [1, 2, 1, 2, 1]), (3, [1, 1, 2, 1, 1])],
    ids=["none", "all", "every-2nd", "every-3rd"],
)
def test_exactly_every_nth_block_is_recomputed_and_its_gradients_are_the_same_bits(
    deep: Any, batch: Batch, precision: torch.dtype, every: int, passes: list[int]
) -> None:
    networks = [Network(copy.deepcopy(deep), precision, Strategy(checkpoint_every=n)) for n in (0, every)]
    counts = counted(networks[1])
    for network in networks:
        with network.compute_weights():
            (network(Rows.of(batch)) / batch.labelled_tokens).backward()
    assert counts == passes
    plain, recomputed = (gradients_of(network.model) for network in networks)
    assert plain.keys() == recomputed.keys()
    for name in plain:
        assert torch.equal(plain[name], recomputed[name]), name


def test_nothing_is_random_in_a_training_pass(batch: Batch) -> None:
    from transformers import OPTConfig

    config = OPTConfig(**small(), ffn_dim=48, word_embed_proj_dim=32, dropout=0.5, attention_dropout=0.5, layerdrop=0.5)
    network = Network(model_of(config), torch.float32, Strategy(checkpoint_every=1))
    first, second = network(Rows.of(batch)), network(Rows.of(batch))
    assert torch.equal(first, second)
    assert network.model.config.dropout == 0.5, "the configuration that is exported has changed"


def test_bf16_leaves_the_masters_alone_and_gives_them_fp32_gradients(deep: Any, whole: Any, batch: Batch) -> None:
    network = Network(copy.deepcopy(deep), torch.bfloat16, CHUNKED)
    masters = dict(network.model.named_parameters())
    with network.compute_weights():
        inside = dict(network.model.model.layers.named_parameters(prefix="model.layers"))
        assert inside
        assert all(tensor.dtype == torch.bfloat16 for tensor in inside.values())
        assert network.model.get_input_embeddings().weight is masters["model.embed_tokens.weight"]
        (network(Rows.of(batch)) / batch.labelled_tokens).backward()
    assert_back_in_place(network, masters, deep)
    expected = gradients_of(whole)
    for name, parameter in masters.items():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        off = float((parameter.grad - expected[name]).norm() / expected[name].norm())
        assert off < 0.05, f"{name} is off by {off:.3f} of its norm"


def assert_back_in_place(network: Network, masters: dict[str, torch.nn.Parameter], untouched: Any) -> None:
    now = dict(network.model.named_parameters())
    assert now.keys() == masters.keys()
    for name, was in untouched.named_parameters():
        assert now[name] is masters[name]
        assert now[name].dtype == torch.float32
        assert torch.equal(now[name], was)


def test_the_masters_are_back_after_an_exception(deep: Any, batch: Batch) -> None:
    network = Network(copy.deepcopy(deep), torch.bfloat16, CHUNKED)
    masters = dict(network.model.named_parameters())
    with pytest.raises(KeyError), network.compute_weights():
        network(Rows.of(batch))
        raise KeyError
    assert_back_in_place(network, masters, deep)


@pytest.mark.timeout(300)  # a C++ compiler at work, on a machine that may be busy
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own imports and of what it inspects
def test_compiled_blocks_and_loss_give_the_same_loss_and_gradients(batch: Batch) -> None:
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        pytest.skip("no C++ compiler")
    model = tiny_llama(num_hidden_layers=1)
    networks = [Network(copy.deepcopy(model), torch.float32, Strategy(loss_chunk=64, compiled=on)) for on in (0, 1)]
    losses = [network(Rows.of(batch)) for network in networks]
    for loss in losses:
        (loss / batch.labelled_tokens).backward()
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    assert_gradients_equal(networks[1].model, networks[0].model, 1e-5)


def padded(batch: Batch, rows: int) -> Batch:
    """The batch with rows of padding behind it."""
    shape = (rows, batch.ids_BT.shape[1])
    behind = (np.zeros(shape, np.int64), np.full(shape, NO_TARGET), np.full(shape, -1), np.zeros(shape, np.int64))
    before = (batch.ids_BT, batch.labels_BT, batch.documents_BT, batch.positions_BT)
    ids, labels, documents, positions = (np.concatenate(pair) for pair in zip(before, behind, strict=True))
    return Batch(ids, labels, documents, positions, np.concatenate([batch.replayed_B, np.zeros(rows, bool)]))


def test_rows_of_padding_change_nothing(deep: Any, whole: Any, batch: Batch) -> None:
    network = Network(copy.deepcopy(deep), torch.float32, CHUNKED)
    (network(Rows.of(padded(batch, 2))) / batch.labelled_tokens).backward()
    assert_gradients_equal(network.model, whole, 2e-6)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_rows_without_labels_have_no_loss_and_zero_gradients(deep: Any, batch: Batch, precision: torch.dtype) -> None:
    network = Network(copy.deepcopy(deep), precision, CHUNKED)
    with network.compute_weights():
        loss = network(Rows.of(padded(batch, 2).rows(4, 6)))
        loss.backward()
    assert loss == 0
    gradients = gradients_of(network.model)
    assert len(gradients) == len(dict(network.model.named_parameters()))
    assert not any(gradient.any() for gradient in gradients.values())


def test_rows_are_flat_and_begin_a_piece_at_every_document_row_and_padding(batch: Batch) -> None:
    rows = Rows.of(batch)
    assert rows.longest == LENGTH
    for flat, two in (
        (rows.ids_N, batch.ids_BT),
        (rows.labels_N, batch.labels_BT),
        (rows.positions_N, batch.positions_BT),
    ):
        assert flat.dtype == torch.int64
        assert flat.tolist() == two.reshape(-1).tolist()
    pieces = [(row, document) for row in range(4) for document in batch.documents_BT[row]]
    starts = [n for n, piece in enumerate(pieces) if n == 0 or piece != pieces[n - 1]]
    assert rows.bounds.dtype == torch.int32
    assert rows.bounds.tolist() == starts + [4 * LENGTH] * (64 - len(starts))


@pytest.mark.parametrize(("documents", "size"), [(1, 64), (63, 64), (64, 128), (127, 128), (128, 256)])
def test_bounds_keep_their_shape_and_end_with_the_number_of_positions(documents: int, size: int) -> None:
    numbers = np.minimum(np.arange(300), documents - 1)[None]
    zeros = np.zeros_like(numbers)
    bounds = Rows.of(Batch(zeros, zeros, numbers, zeros, np.zeros(1, bool))).bounds
    assert bounds.tolist() == [*range(documents), *[300] * (size - documents)]


def test_documents_of_the_same_number_in_two_rows_are_two() -> None:
    zeros = np.zeros((3, 4), np.int64)
    assert Rows.of(Batch(zeros, zeros, zeros, zeros, np.zeros(3, bool))).bounds[:4].tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize(
    ("capability", "wanted", "expected"),
    [
        ((7, 5), "auto", torch.float32),
        ((7, 5), "fp32", torch.float32),
        ((8, 0), "auto", torch.bfloat16),
        ((8, 0), "bf16", torch.bfloat16),
        ((9, 0), "fp32", torch.float32),
    ],
)
def test_auto_is_bf16_where_a_gpu_has_it(
    capability: tuple[int, int], wanted: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_if_on_a_gpu(capability, monkeypatch)
    assert choose_precision(wanted, torch.device("cuda", 0)) == expected


def test_bf16_on_a_gpu_without_it_is_refused_with_what_would_work(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_on_a_gpu((7, 5), monkeypatch)
    with pytest.raises(UserError, match="does not compute in bf16") as refused:
        choose_precision("bf16", torch.device("cuda", 0))
    assert refused.value.where == "training.precision"
    assert refused.value.got == "bf16 on Tesla T4, of compute capability 7.5"
    assert "fp32, or auto" in str(refused.value.todo)
    assert choose_precision("bf16", torch.device("cpu")) == torch.bfloat16


def as_if_on_a_gpu(capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says of a GPU of this compute capability."""
    facts = SimpleNamespace(major=capability[0], minor=capability[1])
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
