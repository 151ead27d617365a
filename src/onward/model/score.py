"""Log-likelihoods of continuations: the one scoring engine, for benchmark items and held-out text alike.

Shape suffixes: B rows of a batch, T time, D hidden size, V vocabulary, S positions whose next token is asked for.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from onward.model.tokenizer import LoadedTokenizer

DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none (lm-eval's default)."""
MAXIMUM_WINDOW = 4096
"""Longest window for whole documents: attention over a 131k context would cost more than it tells."""
_LOGITS = 1 << 25
"""Logits that exist at one time: 128 MB in fp32."""


@dataclass(frozen=True)
class Request:
    """Token ids of a context (never empty) and of the continuation that is scored."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Scored:
    """logprob: nats of the continuation. greedy: every token was the likeliest. truncated: the context was cut."""

    logprob: float
    greedy: bool
    truncated: bool


@dataclass(frozen=True)
class ScoredDocument:
    """Negative log-likelihood of a text in nats, and its size in tokens and UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int


def context_length(model: Any) -> int:
    """Return the most tokens a model takes; the names and their order are lm-eval's `resolve_max_length`."""
    config = getattr(model.config, "text_config", None) or model.config
    named = (getattr(config, name, None) for name in ("n_positions", "max_position_embeddings", "n_ctx"))
    return int(next((value for value in named if value is not None), DEFAULT_CONTEXT))


def encode_requests(tokenizer: "LoadedTokenizer", pairs: Sequence[tuple[str, str]]) -> list[Request]:
    """Encode (context, continuation) texts as lm-eval's `TemplateLM._encode_pair` and `HFLM.tok_encode` do.

    Trailing spaces of the context move into the continuation; the whole is encoded and the context's length cut
    off. A BOS stands first when the tokenizer itself adds one and the text does not open with it. An empty context
    becomes the prefix token. A continuation without tokens of its own comes out empty.
    """
    texts: list[str] = []
    for context, continuation in pairs:
        texts += [context.rstrip(), context + continuation]
    unique = list(dict.fromkeys(texts))
    encoded = dict(zip(unique, tokenizer.encode_batch(unique, reads_special=True), strict=True))
    prefix = str(tokenizer.fast().id_to_token(tokenizer.prefix_id))

    def ids(text: str) -> tuple[int, ...]:
        bos = () if tokenizer.bos_id is None or text.startswith(prefix) else (tokenizer.bos_id,)
        return (*bos, *encoded[text])

    requests = []
    for context, continuation in pairs:
        if context == "":
            only = tuple(encoded[continuation])
            start = (tokenizer.prefix_id,)
            requests.append(Request(start, only[1:] if only[:1] == start else only))
            continue
        whole, before = ids(context + continuation), ids(context.rstrip())
        requests.append(Request(before or (tokenizer.prefix_id,), whole[len(before) :]))
    return requests


@torch.inference_mode()
def score_continuations(
    model: Any,
    requests: Sequence[Request],
    batch_tokens: int = 4096,
    maximum_tokens: int | None = None,
) -> list[Scored]:
    """Return the log-likelihood of each request's continuation given its context, in the order of the requests.

    batch_tokens: padded tokens of a forward pass. maximum_tokens: longest input; None takes the model's context.
    Longer requests lose tokens at the left, as in lm-eval. Requests
    with the same input (one-token answers to one question) share a row, logits exist only where a token is asked
    for, and log-softmax is taken in fp32. A continuation must have a token and must itself fit the model.
    """
    limit = maximum_tokens or context_length(model)
    rows: dict[tuple[int, ...], list[int]] = {}
    truncated = []
    for index, request in enumerate(requests):
        assert request.context, "a context is never empty; encode_requests puts the prefix token there"
        assert 0 < len(request.continuation) <= limit, "a continuation has tokens and fits the model"
        tokens = request.context + request.continuation
        truncated.append(len(tokens) > limit + 1)
        rows.setdefault(tokens[-limit - 1 : -1], []).append(index)
    forward = _Forward.of(model)
    results: list[Scored | None] = [None] * len(requests)
    for batch in _batches(sorted(rows, key=len, reverse=True), batch_tokens):
        members = [rows[row] for row in batch]
        continuations = [[requests[index].continuation for index in indices] for indices in members]
        values = iter(_score_batch(forward, batch, continuations))
        for index in (index for indices in members for index in indices):
            logprob, greedy = next(values)
            results[index] = Scored(logprob, greedy, truncated[index])
    return [result for result in results if result is not None]


def score_documents(
    model: Any,
    tokenizer: "LoadedTokenizer",
    texts: Sequence[str],
    batch_tokens: int = 4096,
) -> list[ScoredDocument]:
    """Return each text's negative log-likelihood, every token scored exactly once.

    The first token's context is the prefix token. A text longer than a window (None: the model's context, at most
    MAXIMUM_WINDOW) is scored by windows that move by half of one, so that each token but those of the first window
    sees at least half a window. BOS and EOS are not part of a text and are not scored.
    """
    window = min(context_length(model), MAXIMUM_WINDOW)
    encoded = tokenizer.encode_batch(list(texts))
    requests: list[Request] = []
    owners: list[int] = []
    for owner, ids in enumerate(encoded):
        cut = list(_windows(tokenizer.prefix_id, ids, window))
        requests += cut
        owners += [owner] * len(cut)
    nats = [0.0] * len(texts)
    for owner, result in zip(owners, score_continuations(model, requests, batch_tokens, window), strict=True):
        nats[owner] -= result.logprob
    sizes = [len(text.encode("utf-8", errors="surrogatepass")) for text in texts]
    return [ScoredDocument(*facts) for facts in zip(nats, map(len, encoded), sizes, strict=True)]


def _windows(prefix_id: int, ids: Sequence[int], window: int) -> Iterator[Request]:
    """Cut a text into requests of at most `window` input tokens; their continuations follow one another."""
    tokens = (prefix_id, *ids)
    stride = max(1, window // 2)
    done = 1
    while done < len(tokens):
        end = min(len(tokens), done + (window if done == 1 else stride))
        start = max(0, end - window - 1)
        yield Request(tokens[start:done], tokens[done:end])
        done = end


def _batches(rows: list[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Cut rows, longest first, into batches of at most `batch_tokens` with padding; a longer row stands alone."""
    start = 0
    while start < len(rows):
        size = max(1, batch_tokens // len(rows[start]))
        yield rows[start : start + size]
        start += size


@dataclass(frozen=True)
class _Forward:
    """A model cut before its output embeddings, or whole (head None) where its logits are more than a product."""

    model: Any
    head: Any

    @staticmethod
    def of(model: Any) -> "_Forward":
        """Cut the model when hidden states times output embeddings give its own logits, tried on eight tokens.

        Soft-capped or scaled logits (Gemma 2, Cohere, Granite) do not pass and are taken whole.
        """
        body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
        if body is None or head is None:
            return _Forward(model, None)
        ids_BT = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
        cut = _Forward(body, head)
        expected, got = _Forward(model, None).hidden(ids_BT).float(), cut.logits(cut.hidden(ids_BT))
        tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
        same = got.shape == expected.shape and torch.allclose(got, expected, rtol=tolerance, atol=tolerance)
        # NaN logits are the caller's to report, with the item; they say nothing about the shape of the head.
        return cut if same or bool(expected.isnan().any()) else _Forward(model, None)

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Return [B, T, D] hidden states, or [B, T, V] logits of a whole model."""
        output = self.model(input_ids=ids_BT, use_cache=False)
        return output.logits if self.head is None else output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits [S, V]."""
        logits_SV: torch.Tensor = hidden_SD if self.head is None else self.head(hidden_SD)
        return logits_SV.float()


def _score_batch(
    forward: _Forward, rows: list[tuple[int, ...]], continuations: list[list[tuple[int, ...]]]
) -> Iterator[tuple[float, bool]]:
    """Yield (logprob, greedy) of every continuation, row by row; continuations end at their row's end.

    Rows are padded at the right and no mask is passed: under causal attention no real position sees the padding.
    """
    device = forward.model.device
    length = len(rows[0])
    ids_BT = torch.tensor([row + (0,) * (length - len(row)) for row in rows], device=device)
    positions: list[int] = []  # flat B * T positions whose next token is asked for
    slots: list[int] = []  # for every scored token, the place of its position in `positions`
    targets: list[int] = []
    for place, (row, wanted) in enumerate(zip(rows, continuations, strict=True)):
        longest = max(map(len, wanted))
        for continuation in wanted:
            slots += range(len(positions) + longest - len(continuation), len(positions) + longest)
            targets += continuation
        positions += range(place * length + len(row) - longest, place * length + len(row))
    hidden_BT = forward.hidden(ids_BT)
    hidden_S = hidden_BT.flatten(0, 1)[torch.tensor(positions, device=device)]
    del hidden_BT
    logprobs, greedy = _select(forward, hidden_S, torch.tensor(slots), torch.tensor(targets))
    start = 0
    for continuation in (continuation for wanted in continuations for continuation in wanted):
        end = start + len(continuation)
        yield math.fsum(logprobs[start:end]), all(greedy[start:end])
        start = end


def _select(
    forward: _Forward, hidden_S: torch.Tensor, slots: torch.Tensor, targets: torch.Tensor
) -> tuple[list[float], list[bool]]:
    """Return log-probability and greediness of target token i at position slots[i], in chunks of positions."""
    logprobs, greedy = torch.empty(len(slots)), torch.empty(len(slots), dtype=torch.bool)
    vocabulary = hidden_S.shape[-1] if forward.head is None else forward.head.weight.shape[0]
    step = max(1, _LOGITS // vocabulary)
    for start in range(0, len(hidden_S), step):
        logits_SV = forward.logits(hidden_S[start : start + step])
        inside = (slots >= start) & (slots < start + step)
        local, target = (slots[inside] - start).to(logits_SV.device), targets[inside].to(logits_SV.device)
        logprobs[inside] = (logits_SV[local, target] - logits_SV.logsumexp(-1)[local]).cpu()
        greedy[inside] = (logits_SV.argmax(-1)[local] == target).cpu()
    return logprobs.tolist(), greedy.tolist()
