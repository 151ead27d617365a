"""Causal attention along the branches of a prefix tree, behind transformers' attention interface.

Shapes: N positions of one row, H heads, H_kv heads of keys and values, D width of a head, M positions of a block, K
keys that a block sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface

from onward.model.prefix_tree import Segment, Span

ATTENTION = "onward_prefix_tree"
BLOCK_TOKENS = 96
"""Trees are attended to together up to so many positions: fewer calls, against products that are masked away."""
_CHANGES = ("softcap", "s_aux", "sinks", "position_bias", "indices", "block_indices")
"""What transformers' models hand to their attention where it is not softmax(QK') V alone."""


class NotPlain(Exception):
    """The model's attention is more than causal attention over all or the last tokens."""


@dataclass(frozen=True)
class Block:
    """Positions of a row that are attended from in one call.

    span: the positions. outside: spans of earlier blocks that some of them see. segments: those that cover the span.
    """

    span: Span
    outside: tuple[Span, ...]
    segments: tuple[Segment, ...]

    @property
    def is_one_sequence(self) -> bool:
        """Whether it is plain causal attention: a sequence's beginning, and nothing else."""
        return len(self.segments) == 1 and not self.outside


@dataclass
class Layout:
    """How the positions of one row see each other; masks are made once and serve every layer."""

    blocks: Sequence[Block]
    places: torch.Tensor
    masks: dict[tuple[int, int | None, torch.dtype], torch.Tensor | None] = field(default_factory=dict)

    def mask(self, number: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Return the additive mask [M, K] of a block, None where it is plain causal; window: of a sliding model."""
        block = self.blocks[number]
        length = block.span[1] - block.span[0]
        if window is not None and block.segments[-1].depth + length <= window and _deepest(block) <= window:
            window = None
        key = (number, window, like.dtype)
        if key not in self.masks:
            plain = block.is_one_sequence and window is None
            self.masks[key] = None if plain else _mask(block, self.places, window).to(like)
        return self.masks[key]


def blocks_of(segments: Sequence[Segment], block_tokens: int = BLOCK_TOKENS) -> list[Block]:
    """Group the segments of a row, in order, into blocks.

    Trees stay whole up to twice `block_tokens`; a bigger one is cut between its segments, and what then lies before
    the cut is seen from outside.
    """
    blocks: list[Block] = []
    taken: list[Segment] = []
    for segment in segments:
        start = taken[0].span[0] if taken else segment.span[0]
        length = segment.span[1] - start
        joins = bool(segment.before) and segment.before[0][0] >= start  # grows out of a tree of this block
        if taken and length > (2 if joins else 1) * block_tokens:
            blocks.append(_block(taken))
            taken = []
        taken.append(segment)
    if taken:
        blocks.append(_block(taken))
    return blocks


def _block(segments: list[Segment]) -> Block:
    start, end = segments[0].span[0], segments[-1].span[1]
    outside: list[Span] = []
    for first, last in sorted({(a, min(b, start)) for s in segments for a, b in s.before if a < start}):
        if outside and first <= outside[-1][1]:
            outside[-1] = (outside[-1][0], max(outside[-1][1], last))
        else:
            outside.append((first, last))
    return Block((start, end), tuple(outside), tuple(segments))


def _deepest(block: Block) -> int:
    return max(s.depth + s.span[1] - s.span[0] for s in block.segments)


def _mask(block: Block, places: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return 0 where a position of the block sees a key (outside spans, then the block), -inf elsewhere: [M, K]."""
    start, end = block.span
    columns = torch.cat([torch.arange(a, b) for a, b in (*block.outside, block.span)])
    column_of = {}
    offset = 0
    for a, b in (*block.outside, block.span):
        column_of[(a, b)] = offset - a
        offset += b - a
    seen = torch.zeros(end - start, offset, dtype=torch.bool)
    for segment in block.segments:
        a, b = segment.span
        rows = slice(a - start, b - start)
        for first, last in segment.before:
            for (left, right), shift in column_of.items():
                low, high = max(first, left), min(last, right)
                if low < high:
                    seen[rows, low + shift : high + shift] = True
        own = column_of[block.span]
        seen[rows, a + own : b + own] = torch.ones(b - a, b - a, dtype=torch.bool).tril()
    if window is not None:
        here, there = places[start:end].cpu(), places.cpu()[columns]
        seen &= here[:, None] - there[None, :] < window
    return torch.zeros(seen.shape).masked_fill_(~seen, float("-inf"))


_layout: list[Layout] = []


@contextmanager
def laid_out(layout: Layout) -> Iterator[None]:
    """Say how the row of the forward pass inside is laid out. Models hand down no arguments they do not know."""
    _layout.append(layout)
    try:
        yield
    finally:
        _layout.pop()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_along_branches(
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
    """Attend from every position to those before it on its branch: query [1, H, N, D], key and value [1, H_kv, N, D].

    Raises NotPlain for attention with a mask, cap, bias or sinks of its own.
    """
    if attention_mask is not None or not is_plain(module, changes):
        raise NotPlain(type(module).__name__)
    layout = _layout[-1]
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[3])
    for number, block in enumerate(layout.blocks):
        start, end = block.span
        k, v = (_keys(x, block) for x in (key, value))
        mask = layout.mask(number, sliding_window, query)
        part = F.scaled_dot_product_attention(
            query[:, :, start:end], k, v, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
        out[:, start:end] = part.transpose(1, 2)
    return out, None


def is_plain(module: torch.nn.Module, changes: Mapping[str, Any]) -> bool:
    """Whether attention is causal and softmax(QK') V alone; changes: what else a model hands to its attention."""
    is_causal = getattr(module, "is_causal", True) and changes.get("is_causal") is not False
    return bool(is_causal) and all(changes.get(name) is None for name in _CHANGES)


def _keys(x: torch.Tensor, block: Block) -> torch.Tensor:
    own = x[:, :, block.span[0] : block.span[1]]
    if not block.outside:
        return own
    return torch.cat([*(x[:, :, a:b] for a, b in block.outside), own], dim=2)


AttentionInterface.register(ATTENTION, attend_along_branches)
