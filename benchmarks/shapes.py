"""The models that the training benchmarks train: their shapes, with random weights."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings and grouped-query attention."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int


SHAPES = {
    "tiny": Shape(300, 64, 128, 2, 2, 1),
    "5M": Shape(8192, 192, 512, 6, 6, 2),
    "125M": Shape(32000, 576, 1536, 30, 9, 3),
    "350M": Shape(32000, 960, 2560, 32, 15, 5),
}
"""`5M` is onward's own tiny model made a little smaller, `125M` and `350M` are MobileLLM's (arXiv 2402.14905, table 9);
`tiny` is for tests."""


def config_of(shape: Shape, sequence_tokens: int) -> Any:
    """Return the configuration of transformers; token 0 ends a text."""
    from transformers import LlamaConfig

    return LlamaConfig(
        **asdict(shape),
        max_position_embeddings=max(2048, sequence_tokens),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def random_model(shape: Shape, sequence_tokens: int, seed: int = 0) -> Any:
    """Return a model with random fp32 weights."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(config_of(shape, sequence_tokens)).float()
