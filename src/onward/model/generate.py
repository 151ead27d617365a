"""Sample documents from a model, in batches with a KV cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import SelfReplay

_BATCH_DOCUMENTS = 64
_SMALL_PARAMETERS = 30_000_000


def sample_documents(model: Any, tokenizer: LoadedTokenizer, settings: SelfReplay, seed: int) -> Iterator[str]:
    """Yield sampled documents until `settings.tokens` tokens are made; the last document may pass the mark.

    Every document starts from the prefix token and ends at the end-of-text token or at `document_tokens`. The same
    seed gives the same documents on the same machine type.
    """
    assert settings.tokens is not None, "the pipeline gives an open budget its number"
    random = torch.Generator(device=model.device).manual_seed(seed)
    made = 0
    while made < settings.tokens:
        documents = min(_BATCH_DOCUMENTS, max(1, -(-(settings.tokens - made) // settings.document_tokens)))
        with _fitting_threads(model):
            sampled = _sample_batch(model, tokenizer, settings, documents, random)
        for ids in sampled:
            made += len(ids) + 1  # its end counts, so a model that says nothing comes to an end too
            if ids:
                yield tokenizer.decode(ids)


@contextmanager
def _fitting_threads(model: Any) -> Iterator[None]:
    """One thread for a small model on a CPU: its steps are so short that threads mostly wait for each other.

    The bundled model samples 2.7k tokens/s with one thread and 3.3k with two on an idle machine of 2 cores; beside
    two computing processes 0.9k with one, and under 0.05k with two.
    """
    before = torch.get_num_threads()
    if model.device.type == "cpu" and model.num_parameters() < _SMALL_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def _sample_batch(
    model: Any, tokenizer: LoadedTokenizer, settings: SelfReplay, documents: int, random: torch.Generator
) -> list[list[int]]:
    """Sample `documents` token lists side by side; rows that have ended go on unread until the last one ends."""
    ids = torch.full((documents, 1), tokenizer.prefix_id, device=model.device)
    cache, columns = None, []
    alive = torch.ones(documents, dtype=torch.bool, device=model.device)
    for _ in range(settings.document_tokens):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        ids = _draw(out.logits[:, -1].float() / settings.temperature, settings.top_p, random)
        columns.append(torch.where(alive, ids[:, 0], tokenizer.eos_id))
        alive &= ids[:, 0] != tokenizer.eos_id
        if not alive.any():
            break
    rows = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row for row in rows]


def _draw(logits_BV: torch.Tensor, top_p: float, random: torch.Generator) -> torch.Tensor:
    """Draw one token per row from the smallest set of tokens that holds `top_p` of the mass."""
    probabilities = logits_BV.softmax(dim=-1)
    if top_p < 1.0:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        ranked[ranked.cumsum(dim=-1) - ranked >= top_p] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ranked)
    return torch.multinomial(probabilities, 1, generator=random)
