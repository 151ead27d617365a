"""Draw tokens from logits with uniform numbers that the caller brings, so that a document's draws are its own.

Shapes: B rows, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch

_PIECE = 64
"""Probabilities are summed in pieces of so many, then within one piece: the sums to search are short, so they can be
in double precision. Takes 2 ms where `torch.multinomial` takes 57 (256 rows of 8,192, one thread): it draws a random
number for every token of the vocabulary."""

_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits looked at together: about what a core's own cache holds; on a GPU all of a step, in few kernels."""


@dataclass(frozen=True)
class Drawn:
    """Token ids [B], and for each row the token's nats and the entropy of the model's own distribution, in nats."""

    ids: torch.Tensor
    nats: torch.Tensor
    entropy: torch.Tensor


def draw(
    logits_BV: torch.Tensor,
    uniform_B: torch.Tensor,
    temperature: float = 1.0,
    top_p: float = 1.0,
    never: int | None = None,
) -> Drawn:
    """Draw one token per row where its cumulative probability passes the uniform number (inverse transform sampling).

    logits_BV: fp32, used up. uniform_B: float64 in [0, 1). top_p: the smallest set of tokens that holds so much of the
    mass is drawn from. never: a token that is not drawn. Nats and entropy know of none of these three.
    """
    rows = max(1, _CHUNK.get(logits_BV.device.type, _CHUNK["cuda"]) // logits_BV.shape[1])
    parts = [
        _draw_chunk(logits_BV[start : start + rows], uniform_B[start : start + rows], temperature, top_p, never)
        for start in range(0, len(logits_BV), rows)
    ]
    ids, nats, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return Drawn(ids, nats, entropy)


def _draw_chunk(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_p: float, never: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # A finite bottom: a token of probability 0 adds nothing to the entropy.
    logits_BV.sub_(logits_BV.amax(-1, keepdim=True)).clamp_(min=-1e4)
    weights_BV = logits_BV.exp()
    sum_B = weights_BV.sum(-1)
    entropy_B = sum_B.log() - (weights_BV * logits_BV).sum(-1) / sum_B
    if temperature != 1.0:
        weights_BV = (logits_BV / temperature).exp_()
    if never is not None:
        weights_BV[:, never] = 0.0
    if top_p < 1.0:
        weights_BV = _nucleus(weights_BV, top_p)
    ids_B = _invert(weights_BV, uniform_B)
    nats_B = sum_B.log() - logits_BV.gather(1, ids_B[:, None])[:, 0]
    return ids_B, nats_B, entropy_B


def numbers_of(seed: int, number: int, count: int) -> tuple[float, np.ndarray]:
    """Return a standard normal number (for a document's length) and `count` uniform ones of document `number`."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
    return float(random.standard_normal()), random.random(count)


def _nucleus(weights_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    ranked, order = (weights_BV / weights_BV.sum(-1, keepdim=True)).sort(dim=-1, descending=True)
    ranked[ranked.cumsum(dim=-1) - ranked >= top_p] = 0.0
    return torch.zeros_like(ranked).scatter_(1, order, ranked)


def _invert(weights_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """Return the first token at which the running sum of the weights exceeds the uniform share of their sum."""
    rows, vocabulary = weights_BV.shape
    if vocabulary % _PIECE:
        weights_BV = torch.nn.functional.pad(weights_BV, (0, -vocabulary % _PIECE))
    pieces = weights_BV.view(rows, -1, _PIECE)
    sums = pieces.sum(-1).double().cumsum(-1)
    wanted = uniform_B[:, None] * sums[:, -1:]
    piece = _first_above(sums, wanted)
    before = torch.where(piece > 0, sums.gather(1, (piece - 1).clamp(min=0)), 0.0)
    inside = pieces[torch.arange(rows, device=weights_BV.device), piece[:, 0]]
    running = inside.double().cumsum(-1)
    # The piece's own sum in fp32 may be above that in fp64 by a rounding: the last token with any weight is meant.
    last = _PIECE - 1 - (inside > 0).flip(-1).int().argmax(-1, keepdim=True)
    place = torch.minimum(_first_above(running, wanted - before), last)
    return (piece * _PIECE + place)[:, 0].clamp_(max=vocabulary - 1)  # beyond it where a weight is no number


def _first_above(running: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return torch.searchsorted(running, wanted, right=True).clamp_(max=running.shape[1] - 1)
