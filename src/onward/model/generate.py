"""Sample documents from a model: many side by side, handed out in the order of their numbers."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from onward.errors import UserError
from onward.model.decode_batch import DecodeBatch, Ended
from onward.model.sampled import Sampled
from onward.model.score import context_length
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import SelfReplay

MOST_ROWS = {"cpu": 256, "cuda": 1024}
"""Most documents side by side."""
_CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}
"""What their keys and values may take; of a GPU no more than a quarter."""
SMALL_PARAMETERS = 30_000_000
"""Models below it are sampled from with one thread on a CPU."""


def sample_documents(
    model: Any,
    tokenizer: LoadedTokenizer,
    settings: SelfReplay,
    seed: int,
    first: int = 0,
    made: int = 0,
    rows: int | None = None,
) -> Iterator[Sampled]:
    """Yield sampled documents in order until `settings.tokens` tokens are made; the last document may pass the mark.

    Every document starts from the prefix token and ends at the end-of-text token or at its longest length. Its draws
    depend on the seed and its number alone, so the number of rows changes it only where rounding does. first, made: go
    on with this document, as if so many tokens were made before it; a document makes one more than it has. rows:
    documents side by side, None for as many as suit the device. Raises UserError when the model's logits are no
    numbers.
    """
    assert settings.tokens is not None, "the pipeline gives an open budget its number"
    longest = min(settings.document_tokens, context_length(model))
    with _fitting_threads(model):
        batch = DecodeBatch(model, tokenizer, settings, seed, longest, rows or _rows_for(model, settings, longest))
    waiting: dict[int, Ended] = {}
    to_begin = to_yield = first
    while made < settings.tokens:
        with _fitting_threads(model), torch.inference_mode():
            ahead = made + sum(ended.made for ended in waiting.values())
            while batch.has_room and (batch.is_idle or ahead + batch.expected_tokens < settings.tokens):
                batch.begin(to_begin)
                to_begin += 1
            waiting |= {ended.number: ended for ended in batch.step()}
        while to_yield in waiting and made < settings.tokens:
            ended = waiting.pop(to_yield)
            to_yield += 1
            made += ended.made  # its end counts, so a model that says nothing comes to an end too
            if math.isnan(ended.nats):
                raise UserError("the model's logits are not numbers, so nothing can be sampled from it", "model.base")
            if ended.ids:
                text = tokenizer.decode(ended.ids)
                yield Sampled(ended.number, text, len(ended.ids), ended.by_model, ended.nats, ended.entropy)


@contextmanager
def _fitting_threads(model: Any) -> Iterator[None]:
    """One thread for a small model on a CPU: its steps are so short that threads mostly wait for each other."""
    before = torch.get_num_threads()
    if model.device.type == "cpu" and model.num_parameters() < SMALL_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows_for(model: Any, settings: SelfReplay, longest: int) -> int:
    """As many rows as suit the device and its memory, and no more than the wanted tokens need.

    A function of the settings alone, not of what is free or done: a restart computes in the same shapes.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row_bytes = 2 * longest * config.num_hidden_layers * heads * width * model.dtype.itemsize
    device = "cpu" if model.device.type == "cpu" else "cuda"
    room = _CACHE_BYTES[device]
    if device == "cuda":  # of the device's whole memory, whatever is free now
        room = min(room, torch.cuda.get_device_properties(model.device).total_memory // 4)
    most: int = max(1, min(MOST_ROWS[device], room // row_bytes))
    assert settings.tokens is not None
    documents = -(-settings.tokens // min(longest, settings.median_tokens or longest))
    # Documents that the model does not end begin and end together: full rows to the last round of them.
    return -(-documents // -(-documents // most))


def sampling_dtype(device: str = "cpu") -> torch.dtype:
    """Return what to load a model as to sample from it: bf16 where the device multiplies it natively, else fp32.

    Native: AMX on a CPU, which multiplies two to seven times as fast as in fp32, and any GPU with bf16. Of the bundled
    model the next-token distributions are then 1e-4 nats apart on average (KL, 9,700 positions; largest 0.002), and
    the samples' fp32 loss is the same to 1e-4; sampling itself adds noise of 0.03 to as many tokens.
    """
    if device == "cpu":
        has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        return torch.bfloat16 if has_tiles() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
