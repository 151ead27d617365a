"""Synthetic checkpoints of the published MobileLLM shape, names and oddities; no real weights are involved."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from onward.errors import UserError
from onward.model.load import export_model, load_model
from onward.model.source import describe
from onward.model.tokenizer import read_tokenizer

PUBLISHED_125M = {
    "architectures": ["MobileLLMForCausalLM"],
    "auto_map": {"AutoConfig": "configuration_mobilellm.MobileLLMConfig"},
    "model_type": "mobilellm",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
    "share_embedding": True,
    "layer_sharing": False,
    "tie_word_embeddings": False,
}
SMALL = PUBLISHED_125M | {
    "hidden_size": 36,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "vocab_size": 2000,
    "max_position_embeddings": 256,
}


def state_of(config: dict[str, Any], dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    """Random weights under the published names: no lm_head, as the embedding is shared."""
    random = torch.Generator().manual_seed(0)
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = width // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (narrow, width),
        "self_attn.v_proj": (narrow, width),
    }
    shapes |= {"self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width)}
    shapes |= {"mlp.down_proj": (width, inner)}
    state = {
        "model.embed_tokens.weight": torch.randn(config["vocab_size"], width, generator=random).mul(0.02).to(dtype)
    }
    for layer in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            state[f"model.layers.{layer}.{name}.weight"] = torch.randn(shape, generator=random).mul(0.05).to(dtype)
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"model.layers.{layer}.{name}.weight"] = torch.ones(width, dtype=dtype)
    return state | {"model.norm.weight": torch.ones(width, dtype=dtype)}


def write(
    folder: Path, config: dict[str, Any], form: str = "bin", state: dict[str, torch.Tensor] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = state_of(config) if state is None else state
    if form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors")
    # Remote code lies in the repository; running it would fail the test.
    (folder / "modeling_mobilellm.py").write_text("raise SystemExit('remote code was run')")
    (folder / "configuration_mobilellm.py").write_text("raise SystemExit('remote code was run')")
    return folder


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_the_published_125m_loads_as_a_plain_tied_llama(tmp_path: Path, form: str) -> None:
    state = state_of(PUBLISHED_125M)
    assert len(state) == 272
    model = load_model(write(tmp_path / "model", PUBLISHED_125M, form, state))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == 124_635_456
    assert model.lm_head.weight is model.model.embed_tokens.weight
    layer = "model.layers.29.mlp.down_proj.weight"
    assert torch.equal(model.state_dict()[layer], state[layer].float())


@pytest.fixture(scope="session")
def pieces(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """A Llama-style sentencepiece model (BPE with byte fallback) trained on this project's own words."""
    from sentencepiece import SentencePieceTrainer

    prefix = tmp_path_factory.mktemp("pieces") / "tokenizer"
    text = [
        line for path in sorted((repository / "src").rglob("*.py")) for line in path.read_text().splitlines() if line
    ]
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(prefix), vocab_size=SMALL["vocab_size"], model_type="bpe",
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


def test_both_forms_give_the_same_logits_and_the_export_opens_with_auto_classes(tmp_path: Path, pieces: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [write(tmp_path / form, SMALL, form) for form in ("bin", "safetensors")]
    for folder in folders:
        (folder / "tokenizer.model").write_bytes(pieces.read_bytes())
    ids = torch.arange(40)[None] + 5
    with torch.no_grad():
        logits = [load_model(folder)(input_ids=ids).logits for folder in folders]
        assert torch.equal(logits[0], logits[1])
        export_model(load_model(folders[0]), folders[0], tmp_path / "out", torch.float16)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.equal(opened(input_ids=ids).logits, logits[0])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    text = "A sentence for both of them."
    expected = read_tokenizer(folders[0]).fast().encode(text).ids
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == expected


def test_the_sentencepiece_tokenizer_becomes_a_fast_one_with_the_same_ids(tmp_path: Path, pieces: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    folder = write(tmp_path / "model", SMALL)
    (folder / "tokenizer.model").write_bytes(pieces.read_bytes())
    empty = {"tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}
    (folder / "tokenizer_config.json").write_text(json.dumps(empty))
    found = read_tokenizer(folder)
    assert (found.bos_id, found.eos_id, found.unknown_id, found.prefix_id) == (1, 2, 0, 1)
    reference = SentencePieceProcessor(model_file=str(pieces))
    texts = [
        "Hello world",
        "  two  spaces",
        "line\nbreak\n\nmore",
        "def f(x):\n    return x",
        "日本語 emoji 🙂",
        "x" * 300,
    ]
    assert found.encode_batch(texts) == [reference.encode(text) for text in texts]
    assert [found.decode(ids) for ids in found.encode_batch(texts[:1])] == texts[:1]


def test_a_unigram_tokenizer_is_refused_rather_than_converted_wrongly(tmp_path: Path, shared_data: Path) -> None:
    folder = write(tmp_path / "model", SMALL)
    unigram = shared_data / "tokenizers" / "tiny_torchtune" / "sp_m.model"
    (folder / "tokenizer.model").write_bytes(unigram.read_bytes())
    with pytest.raises(UserError, match="cannot be converted exactly"):
        read_tokenizer(folder)


def trained(folder: Path, lines: list[str], size: int, **changes: Any) -> Path:
    """A MobileLLM folder with a sentencepiece tokenizer trained on these lines."""
    from sentencepiece import SentencePieceTrainer

    folder = write(folder, SMALL)
    settings: dict[str, Any] = {
        "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "minloglevel": 2,
        "remove_extra_whitespaces": False, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1,
        "split_by_unicode_script": False, "hard_vocab_limit": False,
    }  # fmt: skip
    SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=str(folder / "tokenizer"), vocab_size=size, **(settings | changes)
    )
    return folder


def test_a_text_that_spells_out_a_special_token_does_not_become_it(tmp_path: Path) -> None:
    # The vocabulary has the pieces `<s` and `>`, which the conversion alone would merge into the BOS token.
    folder = trained(tmp_path / "model", ["<span> <strong> </s <s <unk > <0x0A > text"] * 200, 310)
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert "<s" in [reference.id_to_piece(n) for n in range(reference.get_piece_size())]
    found = read_tokenizer(folder)
    texts = ["a<s>b", "</s>", "<unk>", "<0x0A>", "<s> <s></s>", "\n"]
    encoded = found.encode_batch(texts)
    assert encoded == [reference.encode(text) for text in texts]
    assert not {0, 1, 2} & {n for ids in encoded for n in ids}


def test_the_first_difference_from_sentencepiece_is_named(tmp_path: Path) -> None:
    # NFKC and the removal of spaces are not Llama's; the very first difference is the space that is removed.
    lines = ["some words to learn from, and some more words"] * 50
    folder = trained(tmp_path / "model", lines, 300, normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    with pytest.raises(UserError, match="the tokenizer cannot be converted exactly") as caught:
        read_tokenizer(folder)
    error = caught.value
    assert error.where == str(folder / "tokenizer.model")
    assert error.expected == "a Llama-style BPE model"
    assert error.got is not None
    assert re.fullmatch(r"\[\d+(, \d+)*\] at token 0 of ' ', where sentencepiece gives \[\]", error.got)


def test_differences_from_the_config_are_named(tmp_path: Path) -> None:
    state = state_of(SMALL)
    lacking = {name: tensor for name, tensor in state.items() if name != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(UserError, match=r"missing \['model\.layers\.1\.mlp\.up_proj"):
        load_model(write(tmp_path / "lacking", SMALL, state=lacking))
    wrong = state | {"model.norm.weight": torch.ones(7)}
    with pytest.raises(UserError, match=r"model\.norm\.weight has another shape"):
        load_model(write(tmp_path / "wrong", SMALL, state=wrong))
    with pytest.raises(UserError, match="layer-sharing"):
        load_model(write(tmp_path / "sharing", SMALL | {"layer_sharing": True}))


def test_a_pickle_with_an_object_inside_is_not_opened(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", SMALL)
    torch.save({"weights": Path("object")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read safely"):
        load_model(describe(folder))
