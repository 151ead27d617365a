"""The shape of a model: its sizes and exact parameter counts, read from config.json without torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onward.errors import UserError
from onward.model.mobilellm import is_mobilellm
from onward.model.source import ModelSource

_KEPT_APART = {"full_attention", "sliding_attention", "attention"}
"""Kinds of layers (`layer_types` in a configuration) that see nothing outside their document."""


@dataclass(frozen=True)
class ModelShape:
    """What a decoder-only model's cost in memory and arithmetic follows from.

    layers: blocks. hidden: width D. intermediate: inner width of the MLP. heads, kv_heads, head_dim: of the attention.
    vocabulary: rows of the embedding. tied: the output head is the input embedding. gated: the MLP multiplies two
    inner projections. norms: normalisations per block over the hidden width. qk_norm: queries and keys are normalised
    by head. windows: per layer, how many positions a position sees; None: all before it. context_tokens: the longest
    sequence the positions reach, None where the configuration does not say.

    parameters: all, a tied head once. embedding_parameters: input embeddings, and the head where it is not tied.
    matmul_parameters: those that multiply every token, the head included and counted once, the look-up in the input
    embedding not; of a mixture of experts those of the experts that a token meets. position_parameters: of a learned
    table of positions. linears: how many linear layers all blocks have together, and the sum of their inputs and
    outputs; None: those of attention and MLP.
    """

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    gated: bool
    norms: int
    qk_norm: bool
    windows: tuple[int | None, ...]
    context_tokens: int | None
    parameters: int
    embedding_parameters: int
    matmul_parameters: int
    position_parameters: int = 0
    linears: tuple[int, int] | None = None

    @property
    def block_parameters(self) -> int:
        """All parameters but embeddings and head: the blocks and what stands between them and the head."""
        return self.parameters - self.embedding_parameters


def read_shape(model: ModelSource | Path) -> ModelShape:
    """Return the shape of a model folder.

    Llama, MobileLLM, Mistral, Qwen2, Qwen3, GPT-NeoX and Gemma 3 (text) are counted from the configuration alone; any
    other architecture from a model without memory, which imports torch. Raises UserError when config.json is missing or
    damaged, or transformers cannot build such a model.
    """
    folder = model.folder if isinstance(model, ModelSource) else model
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError("the model's configuration cannot be read", str(path), str(error), "JSON") from error
    if is_mobilellm(folder):
        shared = bool(config.get("share_embedding", True)) or bool(config.get("tie_word_embeddings", False))
        config |= {"model_type": "llama", "tie_word_embeddings": shared, "attention_bias": False, "mlp_bias": False}
        config.pop("head_dim", None)
    return shape_of(config) or _count_without_memory(folder)


def refuse_attention(config: Mapping[str, Any]) -> None:
    """Raise UserError for attention that cannot be kept inside documents, as far as a configuration tells of it.

    config: of the text model. Training refuses more, by the model's class; this much is known before anything is read.
    """
    kind = str(config.get("model_type"))
    if config.get("attn_logit_softcapping") is not None:
        todo = "choose a model without it (Gemma 3 instead of Gemma 2, say)"
        raise UserError("attention soft-capping is not supported", "model.base", kind, todo=todo)
    # Attention in chunks, convolutions and recurrences reach over the ends of documents in their own ways.
    others = sorted(set(config.get("layer_types") or ()) - _KEPT_APART)
    if others:
        raise unkept_attention(", ".join([kind, *others]))


def unkept_attention(got: str) -> UserError:
    """Return the error of a model whose attention does not go where packed training can keep documents apart."""
    todo = "choose a model whose attention goes through transformers' attention interface, without sinks"
    return UserError("this model's attention cannot be kept inside documents", "model.base", got, todo=todo)


def shape_of(config: Mapping[str, Any]) -> ModelShape | None:
    """Return the shape that the content of a config.json describes.

    None when the architecture is not known here, or a size is left to the defaults of transformers.
    """
    read = _READERS.get(str(config.get("model_type")))
    if read is None:
        return None
    try:
        return read(config)
    except KeyError:
        return None


def _llama_like(
    config: Mapping[str, Any],
    *,
    head_dim: int | None = None,
    qkv_bias: bool | None = None,
    tied: bool = False,
    norms: int = 2,
    qk_norm: bool = False,
    windows: tuple[int | None, ...] | None = None,
) -> ModelShape:
    """Blocks of q, k, v, o and a gated MLP, with RMS norms. The keywords are the architecture's own defaults."""
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    heads, vocabulary = config["num_attention_heads"], config["vocab_size"]
    is_llama = config["model_type"] == "llama"  # the others have a default of their own, which is seldom meant
    kv_heads = (config.get("num_key_value_heads") if is_llama else config["num_key_value_heads"]) or heads
    size = config.get("head_dim") or head_dim or width // heads
    queries, keys = heads * size, kv_heads * size
    matrices = 2 * width * queries + 2 * width * keys + 3 * width * inner
    output_bias = bool(config.get("attention_bias", False)) and qkv_bias is None
    input_bias = output_bias if qkv_bias is None else qkv_bias
    vectors = norms * width + (2 * size if qk_norm else 0)
    vectors += (queries + 2 * keys if input_bias else 0) + (width if output_bias else 0)
    vectors += 2 * inner + width if config.get("mlp_bias", False) else 0
    return _with_counts(
        config,
        matrices=matrices,
        vectors=vectors,
        final_vectors=width,
        tied=bool(config.get("tie_word_embeddings", tied)),
        kv_heads=kv_heads,
        head_dim=size,
        gated=True,
        norms=norms,
        qk_norm=qk_norm,
        windows=windows or (None,) * layers,
        vocabulary=vocabulary,
    )


def _with_counts(
    config: Mapping[str, Any],
    *,
    matrices: int,
    vectors: int,
    final_vectors: int,
    tied: bool,
    vocabulary: int,
    **features: Any,
) -> ModelShape:
    """Add up: `matrices` and `vectors` are parameters of one block, `final_vectors` those of the last norm."""
    layers, width = config["num_hidden_layers"], config["hidden_size"]
    embeddings = vocabulary * width * (1 if tied else 2)
    return ModelShape(
        model_type=config["model_type"],
        layers=layers,
        hidden=width,
        intermediate=config["intermediate_size"],
        heads=config["num_attention_heads"],
        vocabulary=vocabulary,
        tied=tied,
        context_tokens=config.get("max_position_embeddings"),
        parameters=layers * (matrices + vectors) + final_vectors + embeddings,
        embedding_parameters=embeddings,
        matmul_parameters=layers * matrices + vocabulary * width,
        **features,
    )


def _mistral(config: Mapping[str, Any]) -> ModelShape:
    return _llama_like(
        {**config, "attention_bias": False}, windows=(config.get("sliding_window", 4096),) * _layers(config)
    )


def _qwen2(config: Mapping[str, Any]) -> ModelShape:
    return _llama_like(config, qkv_bias=True, windows=_qwen_windows(config))


def _qwen3(config: Mapping[str, Any]) -> ModelShape:
    return _llama_like(config, head_dim=128, qk_norm=True, windows=_qwen_windows(config))


def _qwen_windows(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    kinds = config.get("layer_types") or [
        "sliding_attention" if number >= first else "full_attention" for number in range(_layers(config))
    ]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _gemma3(config: Mapping[str, Any]) -> ModelShape:
    every, window = config.get("sliding_window_pattern", 6), config.get("sliding_window", 4096)
    kinds = config.get("layer_types") or [
        "sliding_attention" if (number + 1) % every else "full_attention" for number in range(_layers(config))
    ]
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return _llama_like(config, head_dim=256, tied=True, norms=4, qk_norm=True, windows=windows)


def _gpt_neox(config: Mapping[str, Any]) -> ModelShape:
    """One matrix for q, k and v, two for the MLP, layer norms with biases; attention's biases may be left out."""
    width, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    vectors = 4 * width + inner + width + (4 * width if config.get("attention_bias", True) else 0)
    return _with_counts(
        config,
        matrices=4 * width * width + 2 * width * inner,
        vectors=vectors,
        final_vectors=2 * width,
        tied=bool(config.get("tie_word_embeddings", False)),
        vocabulary=config["vocab_size"],
        kv_heads=heads,
        head_dim=width // heads,
        gated=False,
        norms=2,
        qk_norm=False,
        windows=(None,) * _layers(config),
    )


def _layers(config: Mapping[str, Any]) -> int:
    return int(config["num_hidden_layers"])


_READERS: dict[str, Callable[[Mapping[str, Any]], ModelShape]] = {
    "llama": _llama_like,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3_text": _gemma3,
    "gpt_neox": _gpt_neox,
}


def _count_without_memory(folder: Path) -> ModelShape:
    """Build the model on torch's meta device and count; raises UserError when transformers has no such model."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        expected = "a decoder-only model whose code is part of transformers"
        raise UserError("the model cannot be built", str(folder), str(error).split("\n")[0][:300], expected) from error
    text = config.get_text_config()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is embedding.weight
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    embeddings = embedding.weight.numel() + (0 if tied else head.weight.numel())
    share = _active_share(text)
    apart = {id(embedding.weight), id(head.weight)}
    matmul = head.weight.numel()
    for parameter in model.parameters():
        if id(parameter) not in apart and parameter.ndim >= 2:
            # Transformers keeps the experts of a layer in one tensor of three dimensions.
            matmul += round(parameter.numel() * (share if parameter.ndim == 3 else 1.0))
    layers, heads = int(text.num_hidden_layers), int(text.num_attention_heads)
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * layers
    return ModelShape(
        model_type=str(config.model_type),
        layers=layers,
        hidden=int(text.hidden_size),
        intermediate=int(inner),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        vocabulary=int(embedding.weight.shape[0]),
        tied=tied,
        gated=any("gate" in name for name in counts),
        norms=2,
        qk_norm=any("q_norm" in name for name in counts),
        windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
        context_tokens=getattr(text, "max_position_embeddings", None),
        parameters=sum(counts.values()),
        embedding_parameters=embeddings,
        matmul_parameters=matmul,
        position_parameters=_position_parameters(model),
        linears=_linears(model),
    )


def _position_parameters(model: Any) -> int:
    """Count the weights of look-up tables that stand beside the embeddings of tokens."""
    import torch

    tables = {id(module.weight): module.weight for module in model.base_model.modules()
              if isinstance(module, torch.nn.Embedding)}  # fmt: skip
    tables.pop(id(model.get_input_embeddings().weight), None)
    return sum(weight.numel() for weight in tables.values())


def _linears(model: Any) -> tuple[int, int]:
    """Count the linear layers of the blocks, and their inputs and outputs; experts in one tensor are none."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from onward.model.blocks import find_blocks

    inside = [module for block in find_blocks(model) for module in block.modules()]
    weights = [module.weight for module in inside if isinstance(module, torch.nn.Linear | Conv1D)]
    return len(weights), sum(sum(weight.shape) for weight in weights)


def _active_share(config: Any) -> float:
    """Experts that a token meets, as a share of all; 1 for a model without experts."""
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    active = getattr(config, "num_experts_per_tok", None)
    return active / experts if experts and active else 1.0
