"""MobileLLM-125M as its configuration describes it: 124,635,456 parameters, and nothing to download."""

from collections.abc import Mapping
from typing import Any

from onward.model.shape import ModelShape, shape_of

MOBILELLM_125M: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


def known_shape(configuration: Mapping[str, Any] = MOBILELLM_125M) -> ModelShape:
    """The shape of a model whose kind is known."""
    found = shape_of(dict(configuration))
    assert found is not None
    return found
