"""MobileLLM checkpoints as the plain Llama that they are, without running the code of their repository.

The published repositories hold remote code, an fp16 `pytorch_model.bin`, a slow sentencepiece tokenizer with empty
special tokens, and a configuration that says `tie_word_embeddings: false` with `share_embedding: true` while there
is no `lm_head` tensor. All variants but the layer-sharing ones are Llamas with tied embeddings.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaConfig

BOS_ID, EOS_ID = 1, 2
_KEPT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "hidden_act",
    "initializer_range",
)


_DIFFICULT = (
    "Plain words, and a number 12,345.",
    "  two  spaces\tand a tab",
    "line\n\nline",
    "na\u00efve caf\u00e9 \u2014 \u201cquoted\u201d",
    "\u65e5\u672c\u8a9e \U0001f642",
)


def is_mobilellm(folder: Path) -> bool:
    """Whether config.json declares the MobileLLM architecture."""
    config = json.loads((folder / "config.json").read_bytes())
    return str(config.get("model_type", "")).lower() == "mobilellm"


def llama_config(folder: Path) -> "LlamaConfig":
    """Return the Llama configuration of a MobileLLM folder.

    Raises UserError for the layer-sharing variants, whose repeated blocks a plain Llama does not have.
    """
    from transformers import LlamaConfig

    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    if config.get("layer_sharing") or config.get("share_layer") or config.get("layer_share"):
        todo = "use a MobileLLM variant without layer sharing (the names without -LS)"
        raise UserError("layer-sharing MobileLLM variants are not plain Llamas", str(folder), todo=todo)
    settings = {name: config[name] for name in _KEPT if name in config}
    tied = bool(config.get("share_embedding", True)) or bool(config.get("tie_word_embeddings", False))
    return LlamaConfig(
        **settings,
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 1e4))},
        tie_word_embeddings=tied,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        attention_bias=False,
        mlp_bias=False,
    )


def check_tensors(names: set[str], config: "LlamaConfig", folder: Path) -> None:
    """Compare tensor names with what the configuration implies (125M: 272); raises UserError on a difference."""
    parts = ["input_layernorm", "post_attention_layernorm"]
    parts += [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    wanted = {f"model.layers.{n}.{part}.weight" for n in range(config.num_hidden_layers) for part in parts}
    wanted |= {"model.embed_tokens.weight", "model.norm.weight"}
    if not config.tie_word_embeddings:
        wanted.add("lm_head.weight")
    found = {name for name in names if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        found.discard("lm_head.weight")
    if found != wanted:
        missing, extra = sorted(wanted - found)[:3], sorted(found - wanted)[:3]
        got = f"{len(found)} tensors; missing {missing or 'none'}, unexpected {extra or 'none'}"
        raise UserError(
            "this is not the MobileLLM that its config describes", str(folder), got, f"{len(wanted)} tensors"
        )


def load_sentencepiece(folder: Path) -> Any:
    """Convert the slow sentencepiece tokenizer to a fast one: BOS 1, EOS 2, unknown 0, BOS before a text.

    Raises UserError when the file is missing, or the fast one does not give sentencepiece's own ids on a few
    difficult strings (as with unigram models, which are not Llama's).
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import normalizers
    from transformers import LlamaTokenizer

    path = folder / "tokenizer.model"
    if not path.is_file():
        raise UserError("the tokenizer is missing", str(folder), expected="tokenizer.model or tokenizer.json")
    fast = LlamaTokenizer.from_pretrained(
        folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    # Sentencepiece puts its dummy prefix before every text, also one that starts with a space; Metaspace does not.
    backend = fast.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    reference = SentencePieceProcessor(model_file=str(path))
    for text in _DIFFICULT:
        found, expected = fast.encode(text, add_special_tokens=False), reference.encode(text)
        if found != expected:
            got = f"{found[:8]} for {text!r}, where sentencepiece gives {expected[:8]}"
            raise UserError("the tokenizer cannot be converted exactly", str(path), got, "a Llama-style BPE model")
    return fast
