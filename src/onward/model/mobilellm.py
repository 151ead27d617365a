"""MobileLLM checkpoints as the plain Llama that they are, without running the code of their repository.

The published repositories hold remote code, an fp16 `pytorch_model.bin`, a slow sentencepiece tokenizer with empty
special tokens, and a configuration that says `tie_word_embeddings: false` with `share_embedding: true` while there
is no `lm_head` tensor. All variants but the layer-sharing ones are Llamas with tied embeddings.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onward.errors import UserError
from onward.model.difficult_texts import difficult_texts, texts_by_character

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
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

    Raises UserError when the file is missing, or the fast one does not give sentencepiece's own ids on texts of every
    kind and on every piece of the vocabulary (as with unigram models, which are not Llama's).
    """
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer, normalizers
    from transformers import LlamaTokenizer

    path = folder / "tokenizer.model"
    if not path.is_file():
        raise UserError("the tokenizer is missing", str(folder), expected="tokenizer.model or tokenizer.json")
    fast = LlamaTokenizer.from_pretrained(
        folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True
    )
    reference = SentencePieceProcessor(model_file=str(path))
    backend = fast.backend_tokenizer
    # Sentencepiece puts its dummy prefix before every text, also one that starts with a space; Metaspace does not.
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    backend.model = Tokenizer.from_str(_without_special_merges(backend.to_str(), reference)).model
    _check_equal(backend.to_str(), reference, path)
    return fast


def _without_special_merges(tokenizer_json: str, reference: "SentencePieceProcessor") -> str:
    """Take out merges whose outcome is no ordinary piece.

    The conversion makes a merge of every two pieces that add up to a third, also of `<s` and `>`: a text that spells
    out a special token would end itself. Sentencepiece never merges into those.
    """
    content = json.loads(tokenizer_json)
    ids = range(reference.get_piece_size())
    is_special = (reference.is_control, reference.is_unknown, reference.is_byte)
    special = {reference.id_to_piece(n) for n in ids if any(test(n) for test in is_special)}
    merges = content["model"].get("merges") or []
    content["model"]["merges"] = [merge for merge in merges if "".join(merge) not in special]
    return json.dumps(content)


def _check_equal(tokenizer_json: str, reference: "SentencePieceProcessor", path: Path) -> None:
    """Raise UserError at the first text on which the fast tokenizer does not give sentencepiece's own ids."""
    from tokenizers import Tokenizer

    fast = Tokenizer.from_str(tokenizer_json)
    fast.encode_special_tokens = True  # sentencepiece takes them for ordinary text
    pieces = [reference.id_to_piece(n) for n in range(reference.get_piece_size())]
    words = [piece.replace("▁", " ") for piece in pieces]
    characters = list(texts_by_character().values())
    lines = [" ".join(some[n : n + 50]) for some in (words, characters) for n in range(0, len(some), 50)]
    texts = [*difficult_texts(), *lines]
    encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
    for text, encoding, expected in zip(texts, encodings, reference.encode(texts), strict=True):
        if encoding.ids != expected:
            pairs = zip([*encoding.ids, None], [*expected, None], strict=False)
            at = next(n for n, (mine, theirs) in enumerate(pairs) if mine != theirs)
            got = f"{encoding.ids[at : at + 4]} at token {at} of {text[:80]!r}"
            got += f", where sentencepiece gives {expected[at : at + 4]}"
            raise UserError("the tokenizer cannot be converted exactly", str(path), got, "a Llama-style BPE model")
