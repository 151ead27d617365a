"""The arithmetic of a model per token: pure functions of its shape.

Model FLOPs as in PaLM (arXiv 2204.02311, appendix B): what the mathematics asks for, whatever the machine repeats.
Activations that are computed twice (gradient checkpointing) count once, masked halves of attention do not count, and a
tied embedding counts once, as the head; the look-up of an embedding is no arithmetic.
"""

from collections.abc import Iterable

from onward.model.shape import ModelShape


def causal_pairs(lengths: Iterable[int], window: int | None = None) -> int:
    """Return how many (query, key) pairs causal attention forms inside documents of these lengths.

    L (L + 1) / 2 for a document of L tokens; with a sliding window of w, no query sees more than w keys.
    """
    total = 0
    for length in lengths:
        reach = length if window is None else min(length, window)
        total += reach * (reach + 1) // 2 + (length - reach) * reach
    return total


def evaluation_flops(shape: ModelShape, tokens: int, causal_pairs: int) -> int:
    """Return the FLOPs of one forward pass, a third of training's: see `training_flops`."""
    return training_flops(shape, tokens, causal_pairs) // 3


def training_flops(shape: ModelShape, tokens: int, causal_pairs: int) -> int:
    """Return the FLOPs of a forward and a backward pass over `tokens` positions.

    6 x matmul parameters x tokens + 12 x layers x heads x head width x causal pairs: a multiply-add is two operations,
    the backward pass is twice the forward one, and attention makes two products per pair and head, of scores and of
    values. PaLM's formula 6N + 12LHQT per token with its T halved by causality and cut at document borders.

    causal_pairs: sum over the documents of L (L + 1) / 2, see `causal_pairs`. A layer with a sliding window of w counts
    at most w pairs per position, which is exact to w^2 / 2 per document.
    """
    pairs = sum(causal_pairs if window is None else min(causal_pairs, window * tokens) for window in shape.windows)
    return 6 * shape.matmul_parameters * tokens + 12 * shape.heads * shape.head_dim * pairs
