"""Documents under way: each in a row of one batch, with the state that its next token is drawn from.

Shapes: B rows, V vocabulary, C longest document in tokens.
"""

from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from onward.model.decode_attention import KeyValues, decoding
from onward.model.draw import draw, numbers_of
from onward.model.score import forward_through_rows
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import SelfReplay


@dataclass(frozen=True)
class Ended:
    """A finished document: its tokens without the end. by_model: the model ended it. nats, entropy: sums over them."""

    number: int
    ids: list[int]
    by_model: bool
    nats: float
    entropy: float

    @property
    def made(self) -> int:
        """Its tokens and its end."""
        return len(self.ids) + 1


class DecodeBatch:
    """Up to `rows` documents, drawn one token at a time; a row whose document ended takes the next one.

    longest: of a document, in tokens. Each row's document began at a step of its own (`_first_steps`, of the rows in
    use); what is needed on the device only is kept there, so that a step waits for the device once.
    """

    def __init__(
        self, model: Any, tokenizer: LoadedTokenizer, settings: SelfReplay, seed: int, longest: int, rows: int
    ) -> None:
        self._settings, self._seed, self._longest = settings, seed, longest
        self._prefix, self._eos = tokenizer.prefix_id, tokenizer.eos_id
        forward = forward_through_rows(model)
        self._model: _InRows | _InWaves = _InWaves(model) if forward is None else _InRows(forward, longest)
        self._numbers = [-1] * rows
        self._first_steps: dict[int, int] = {}
        self._alive = torch.zeros(rows, dtype=torch.bool, device=model.device)
        self._at = torch.zeros(rows, dtype=torch.long, device=model.device)
        self._limit, self._ids = torch.ones_like(self._at), torch.full_like(self._at, self._prefix)
        self._drawn = self._at.new_zeros(rows, longest)
        self._uniform = torch.zeros(rows, longest, dtype=torch.float64, device=model.device)
        self._sums = torch.zeros(rows, 2, dtype=torch.float64, device=model.device)
        self._steps = self._tokens = self._ended = self._ended_tokens = 0

    @property
    def is_idle(self) -> bool:
        """Whether no document is under way."""
        return not self._first_steps

    @property
    def has_room(self) -> bool:
        """Whether another document can begin now."""
        return len(self._first_steps) < len(self._numbers) and (self._model.takes_over or self._model.is_fresh)

    @property
    def expected_tokens(self) -> float:
        """About how many tokens the documents under way will make: what they have, and half a document more each."""
        mean = self._ended_tokens / self._ended if self._ended else 0.0
        return self._tokens + len(self._first_steps) * (1 + mean / 2)

    def begin(self, number: int) -> None:
        """Begin a document in a free row."""
        row = next(row for row in range(len(self._numbers)) if row not in self._first_steps)
        normal, uniform = numbers_of(self._seed, number, self._longest)
        self._uniform[row] = torch.from_numpy(uniform)
        self._limit[row] = self._length(normal)
        self._ids[row], self._at[row], self._alive[row], self._sums[row] = self._prefix, 0, True, 0.0
        self._numbers[row], self._first_steps[row] = number, self._steps

    def step(self) -> list[Ended]:
        """Draw one token for every document under way, and return those that end with it."""
        self._narrow()
        settings = self._settings
        deepest = self._steps - min(self._first_steps.values())
        logits_BV = self._model.logits(self._ids, self._at, deepest + 1)
        uniform_B = self._uniform.gather(1, self._at[:, None])[:, 0]
        never = None if settings.median_tokens is None else self._eos
        drawn = draw(logits_BV, uniform_B, settings.temperature, settings.top_p, never)
        is_end = drawn.ids == self._eos
        self._ids = drawn.ids
        self._drawn.scatter_(1, self._at[:, None], drawn.ids[:, None])
        self._sums += torch.stack([drawn.nats, drawn.entropy], 1).masked_fill_(is_end[:, None], 0.0)
        self._at = (self._at + 1) * self._alive  # a free row stays where it is
        ends = (is_end | (self._at >= self._limit)) & self._alive
        self._steps += 1
        self._tokens += len(self._first_steps)
        return [self._end(row) for row in ends.nonzero()[:, 0].tolist()]

    def _length(self, normal: float) -> int:
        """Return the longest length of a document: log-normal around the wanted median, if one is wanted."""
        median = self._settings.median_tokens
        if median is None:
            return self._longest
        length = round(median * float(self._settings.length_spread**normal))
        return max(1, min(self._longest, length))

    def _end(self, row: int) -> Ended:
        length = self._steps - self._first_steps.pop(row)
        ids = self._drawn[row, :length].tolist()
        by_model = ids[-1] == self._eos
        nats, entropy = self._sums[row].tolist()
        ended = Ended(self._numbers[row], ids[: length - by_model], by_model, nats, entropy)
        self._alive[row], self._at[row] = False, 0
        self._tokens -= length
        self._ended += 1
        self._ended_tokens += length
        if not self._first_steps:
            self._model.clear()
        return ended

    def _narrow(self) -> None:
        """Give up rows when an eighth of them is free: it happens when nothing more is to begin."""
        rows = sorted(self._first_steps)
        if not self._model.takes_over or 8 * len(rows) > 7 * len(self._numbers):
            return
        kept = torch.tensor(rows, device=self._at.device)
        self._model.keep(kept)
        for name in ("_alive", "_at", "_limit", "_ids", "_drawn", "_uniform", "_sums"):
            setattr(self, name, getattr(self, name)[kept])
        self._numbers = [self._numbers[row] for row in rows]
        self._first_steps = {place: self._first_steps[row] for place, row in enumerate(rows)}


class _InRows:
    """A model whose attention is plain: every row has its own length, and a new document may take over any row."""

    takes_over = True
    is_fresh = True

    def __init__(self, forward: Any, places: int) -> None:
        self._forward, self._kept = forward, KeyValues(places)

    def logits(self, ids_B: torch.Tensor, at_B: torch.Tensor, longest: int) -> torch.Tensor:
        """Take in one token per row, at its place, and return the logits of the next [B, V]."""
        self._kept.begin(at_B, longest)
        with decoding(self._forward.model, self._kept):
            hidden_BD = self._forward.hidden(ids_B[None], at_B[None])[0]
        logits_BV: torch.Tensor = self._forward.logits(hidden_BD)
        return logits_BV

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows alone."""
        self._kept.keep(rows)

    def clear(self) -> None:
        """All documents ended: what is kept of them is written over."""


class _InWaves:
    """Any other model, with the cache that transformers gives it: all rows have one length, so they begin together."""

    takes_over = False

    def __init__(self, model: Any) -> None:
        self._model, self._cache = model, None
        self._name = "cache_params" if "cache_params" in signature(model.forward).parameters else "past_key_values"

    @property
    def is_fresh(self) -> bool:
        """Whether no token was taken in since all documents ended."""
        return self._cache is None

    def logits(self, ids_B: torch.Tensor, at_B: torch.Tensor, longest: int) -> torch.Tensor:
        """Take in one token per row and return the logits of the next [B, V]."""
        given = {self._name: self._cache, "logits_to_keep": 1}
        out = self._model(input_ids=ids_B[:, None], use_cache=True, **given)
        self._cache = out[self._name]
        logits_BV: torch.Tensor = out.logits[:, -1].float()
        return logits_BV

    def keep(self, rows: torch.Tensor) -> None:
        """Keep these rows alone; not done here."""
        raise AssertionError("rows of a wave stay")

    def clear(self) -> None:
        """All documents ended: the next wave begins anew."""
        self._cache = None
