"""Attention of one new token per document over what is kept of it, behind transformers' attention interface.

The documents of a batch stand at different lengths: each has a place of its own in a cache that is allocated once, so a
document that ends is followed by the next one in its place. The rows are handed to the model as one sequence of B
positions (as `tree_attention` does), so linear layers see one matrix.

Shapes: B documents, H heads, H_kv heads of keys and values, G = H / H_kv, D width of a head, C places, L places in use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from onward.model.tree_attention import NotPlain, is_plain

ATTENTION = "onward_decode"
_PLACES = 32
"""Attention is computed over a multiple of so many places: few shapes, and vectors that are full."""


class KeyValues:
    """Keys and values of B documents in every layer. places: tokens that a document may take."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rows = self._at = torch.zeros(0, dtype=torch.long)
        self._masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = {}
        self._length = self._layer = 0

    def begin(self, at_B: torch.Tensor, longest: int) -> None:
        """Begin a step in which row b writes at its place at_B[b]; longest: the largest of these plus one."""
        self._at, self._layer, self._masks = at_B, 0, {}
        self._rows = torch.arange(len(at_B), device=at_B.device)
        self._length = min(self._places, -(-longest // _PLACES) * _PLACES)

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
    ) -> torch.Tensor:
        """Take in the rows' new keys and values [1, H_kv, B, D] and attend from query [1, H, B, D]: [1, B, H, D].

        Queries that share a head of keys (grouped-query attention) are its G query positions, so nothing is repeated.
        """
        _, kv_heads, rows, _ = key.shape
        if self._layer == len(self._layers):  # zeros: what is masked away is multiplied by 0, and must not be NaN
            shape = (rows, kv_heads, self._places)
            self._layers.append((key.new_zeros(*shape, key.shape[3]), value.new_zeros(*shape, value.shape[3])))
        keys, values = self._layers[self._layer]
        self._layer += 1
        keys[self._rows, :, self._at] = key[0].transpose(0, 1)
        values[self._rows, :, self._at] = value[0].transpose(0, 1)
        out = F.scaled_dot_product_attention(
            query[0].transpose(0, 1).reshape(rows, kv_heads, -1, query.shape[3]),
            keys[:, :, : self._length],
            values[:, :, : self._length],
            attn_mask=self._mask(window, query.dtype),
            scale=scaling,
        )
        return out.flatten(1, 2)[None]

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows alone, in this order."""
        self._layers = [(keys[rows], values[rows]) for keys, values in self._layers]

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return 0 where a row's token sees a place, -inf elsewhere: [B, 1, 1, L]; window: of a sliding model."""
        if (window, dtype) not in self._masks:
            places = torch.arange(self._length, device=self._at.device)[None]
            hidden = places > self._at[:, None]
            if window is not None:
                hidden |= places <= self._at[:, None] - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=self._at.device).masked_fill_(hidden, float("-inf"))
            self._masks[window, dtype] = mask[:, None, None]
        return self._masks[window, dtype]


_kept: list[KeyValues] = []


@contextmanager
def decoding(model: Any, kept: KeyValues) -> Iterator[None]:
    """Let the model inside attend with `kept`, and put its own attention back."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    _kept.append(kept)
    try:
        yield
    finally:
        _kept.pop()
        model.set_attn_implementation(before)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_to_kept(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **changes: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `KeyValues.attend` does; raises NotPlain for attention with a mask, cap, bias or sinks of its own."""
    if attention_mask is not None or not is_plain(module, changes):
        raise NotPlain(type(module).__name__)
    return _kept[-1].attend(query, key, value, scaling, sliding_window), None


AttentionInterface.register(ATTENTION, attend_to_kept)
