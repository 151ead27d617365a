"""Log-likelihoods of continuations: the one scoring engine, for benchmark items and held-out text alike.

Requests that begin alike (the choices of a question, the examples before all questions of a subject) are laid into
prefix trees, in which every token is computed once and none is padding; vocabulary work is done only where a token is
asked for. Models whose attention is more than causal are scored in padded batches instead, with the same results.

Shape suffixes: B rows of a batch, T time, D hidden size, V vocabulary, S positions whose next token is asked for.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from onward.model.blocks import compile_blocks, head_changes, undo_compiling
from onward.model.prefix_tree import Row, rows_of, tree_tokens
from onward.model.tree_attention import ATTENTION, BLOCK_TOKENS, Layout, NotPlain, blocks_of, laid_out

if TYPE_CHECKING:
    from onward.model.tokenizer import LoadedTokenizer

DEFAULT_CONTEXT = 2048
"""Context of a model whose configuration names none (lm-eval's default)."""
MAXIMUM_WINDOW = 4096
"""Longest window for whole documents: attention over a 131k context would cost more than it tells."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed at one time.

    batch_tokens: of a forward pass. logits, positions: whose logits exist at one time, in fp32. block_tokens: positions
    of one attention call. whole_logits: batch_tokens times vocabulary where a model can only give all its logits.
    """

    batch_tokens: int
    logits: int
    positions: int
    block_tokens: int
    whole_logits: int


SIZES = {
    # Passes of 1,024 to 4,096 tokens differ by 5 %. Twice as many positions of 8,192 logits take 1.5x as long each:
    # they no longer pass through the processor's cache. Blocks: `tree_attention.BLOCK_TOKENS`.
    "cpu": Sizes(2048, 1 << 23, 256, BLOCK_TOKENS, 1 << 27),
    # Few and large kernels; not tried out on a GPU yet.
    "cuda": Sizes(65_536, 1 << 27, 1 << 16, 1024, 1 << 29),
}


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
    """Return the most tokens a model takes: the configuration's names in lm-eval's order (`resolve_max_length`).

    lm-eval asks the tokenizer next (ALiBi models, say, may name no context); here it is then DEFAULT_CONTEXT.
    """
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


@dataclass
class Tally:
    """What scoring took. needed_tokens: nodes of the requests' prefix tree, fewer cannot do; computed_tokens: those
    that went through the model, padding included; scored_positions: those whose next token's probability was taken.
    """

    requests: int = 0
    needed_tokens: int = 0
    computed_tokens: int = 0
    scored_positions: int = 0


class Scorer:
    """Scores requests with one model, and counts what it took.

    batch_tokens: tokens of a forward pass (None: by the device). maximum_tokens: longest input; None takes the model's
    context. Longer requests lose tokens at the left, as in lm-eval.
    """

    def __init__(self, model: Any, batch_tokens: int | None = None, maximum_tokens: int | None = None) -> None:
        self.model = model
        self.limit = maximum_tokens or context_length(model)
        self.tally = Tally()
        sizes = SIZES.get(model.device.type, SIZES["cuda"])
        with torch.inference_mode():
            self._forward = _Forward.of(model, sizes)
            if model not in _TAKES_TREES:
                _TAKES_TREES[model] = _takes_trees(self._forward)
        self._takes_trees = _TAKES_TREES[model]
        self.batch_tokens = batch_tokens or sizes.batch_tokens
        if self._forward.head is None:
            self.batch_tokens = min(self.batch_tokens, max(1, sizes.whole_logits // _vocabulary(model)))

    @torch.inference_mode()
    def score(self, requests: Sequence[Request]) -> list[Scored]:
        """Return the log-likelihood of each request's continuation given its context, in the order of the requests.

        Requests given together share what they begin with, so many at once are faster. Log-softmax is taken in fp32.
        A continuation must have a token and must itself fit the model.
        """
        inputs: dict[tuple[int, ...], list[int]] = {}
        truncated = []
        for index, request in enumerate(requests):
            assert request.context, "a context is never empty; encode_requests puts the prefix token there"
            assert 0 < len(request.continuation) <= self.limit, "a continuation has tokens and fits the model"
            tokens = request.context + request.continuation
            truncated.append(len(tokens) > self.limit + 1)
            inputs.setdefault(tokens[-self.limit - 1 : -1], []).append(index)
        asked = [[(index, requests[index].continuation) for index in members] for members in inputs.values()]
        results: list[Scored | None] = [None] * len(requests)
        rows = self._along_branches if self._takes_trees else self._padded
        for index, logprob, greedy in rows(list(inputs), asked):
            results[index] = Scored(logprob, greedy, truncated[index])
        self.tally.requests += len(requests)
        self.tally.needed_tokens += tree_tokens(list(inputs))
        return [result for result in results if result is not None]

    def _along_branches(
        self, inputs: list[tuple[int, ...]], asked: list[list["_Asked"]]
    ) -> Iterator[tuple[int, float, bool]]:
        with attention(self.model):
            for row in rows_of(inputs, self.batch_tokens):
                members = [(one, path) for path in row.paths for one in asked[path.sequence]]
                positions = [path.last_positions(len(continuation)) for (_, continuation), path in members]
                self.tally.computed_tokens += len(row.ids)
                yield from self._select(_through_tree(self._forward, row), [one for one, _ in members], positions)

    def _padded(self, inputs: list[tuple[int, ...]], asked: list[list["_Asked"]]) -> Iterator[tuple[int, float, bool]]:
        """Score by rows padded at the right; under causal attention no real position sees the padding."""
        order = sorted(range(len(inputs)), key=lambda index: len(inputs[index]), reverse=True)
        while order:
            length = len(inputs[order[0]])
            size = max(1, self.batch_tokens // length)
            batch, order = order[:size], order[size:]
            ids_BT = torch.tensor([inputs[i] + (0,) * (length - len(inputs[i])) for i in batch])
            members = [(one, place * length + len(inputs[i])) for place, i in enumerate(batch) for one in asked[i]]
            positions = [np.arange(end - len(continuation), end) for (_, continuation), end in members]
            self.tally.computed_tokens += ids_BT.numel()
            hidden = self._forward.hidden(ids_BT.to(self.model.device)).flatten(0, 1)
            yield from self._select(hidden, [one for one, _ in members], positions)

    def _select(
        self, hidden: torch.Tensor, members: list["_Asked"], positions: list[np.ndarray]
    ) -> Iterator[tuple[int, float, bool]]:
        """Yield request, logprob and greediness; member i's tokens are asked for at positions[i] of hidden [T, D]."""
        unique, slots = np.unique(np.concatenate(positions), return_inverse=True)
        targets = np.concatenate([continuation for _, continuation in members])
        self.tally.scored_positions += len(unique)
        hidden_S = hidden[torch.from_numpy(unique).to(hidden.device)]
        logprobs, greedy = _log_probabilities(self._forward, hidden_S, slots, targets)
        start = 0
        for index, continuation in members:
            end = start + len(continuation)
            yield index, math.fsum(logprobs[start:end]), bool(greedy[start:end].all())
            start = end


_TAKES_TREES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""What the probe said of a model: its weights may change, what its attention does will not."""
_Asked = tuple[int, tuple[int, ...]]
"""A request's number and its continuation."""


def compile_to_score(model: Any, tokens: int) -> bool:
    """Compile a model's blocks where so many tokens to score repay it; return whether they are.

    A compiler that fails (without Python's headers, say) is done without.
    """
    Scorer(model)  # looked at before, since each kind of attention is compiled for
    if not compile_blocks(model, tokens):
        return False
    try:
        Scorer(model).score([Request((0, 1), (0,)), Request((0, 1, 0), (1,))])
    except Exception:  # whatever the compiler raises; what is wrong with the model shows without it
        undo_compiling(model)
        return False
    return True


def score_continuations(
    model: Any,
    requests: Sequence[Request],
    batch_tokens: int | None = None,
    maximum_tokens: int | None = None,
) -> list[Scored]:
    """Score requests once, as `Scorer` does."""
    return Scorer(model, batch_tokens, maximum_tokens).score(requests)


def score_documents(
    model: Any,
    tokenizer: "LoadedTokenizer",
    texts: Sequence[str],
    batch_tokens: int | None = None,
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


@dataclass(frozen=True)
class _Forward:
    """A model cut before its output embeddings, or whole (head None) where its logits are more than a product."""

    model: Any
    head: Any
    sizes: Sizes
    scale: float = 1.0
    cap: float | None = None

    @staticmethod
    def of(model: Any, sizes: Sizes) -> "_Forward":
        """Cut the model when hidden states times output embeddings give its own logits, tried on eight tokens.

        Scaled and soft-capped logits (Granite, Cohere, Gemma 2) are computed as the configuration says.
        """
        whole = _Forward(model, None, sizes)
        body, head = getattr(model, model.base_model_prefix, None), model.get_output_embeddings()
        if body is None or head is None:
            return whole
        ids_BT = torch.arange(8, device=model.device)[None] % _vocabulary(model)
        cut = _Forward(body, head, sizes, *head_changes(model.config.get_text_config()))
        expected, got = whole.hidden(ids_BT).float(), cut.logits(cut.hidden(ids_BT))
        same = got.shape == expected.shape and _close(got, expected, model.dtype)
        # NaN logits are the caller's to report, with the item; they say nothing about the shape of the head.
        return cut if same or bool(expected.isnan().any()) else whole

    def hidden(self, ids_BT: torch.Tensor, places_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Return [B, T, D] hidden states, or [B, T, V] logits of a whole model; places: other than from the left."""
        given = {} if places_BT is None else {"position_ids": places_BT}
        output = self.model(input_ids=ids_BT, use_cache=False, **given)
        return output.logits if self.head is None else output.last_hidden_state  # type: ignore[no-any-return]

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        """Return fp32 logits [S, V]."""
        if self.head is None:
            return hidden_SD.float()
        logits_SV: torch.Tensor = self.head(hidden_SD).float()
        if self.scale != 1.0:
            logits_SV *= self.scale
        return logits_SV if self.cap is None else torch.tanh(logits_SV / self.cap) * self.cap


def _vocabulary(model: Any) -> int:
    return int(model.config.get_text_config().vocab_size)


def _close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    return torch.allclose(got, expected, rtol=tolerance, atol=tolerance)


def forward_through_rows(model: Any) -> _Forward | None:
    """Return a model cut before its head, if its attention is plain: causal, by the positions that it is given."""
    scorer = Scorer(model)
    return scorer._forward if scorer._takes_trees else None


@contextmanager
def attention(model: Any) -> Iterator[None]:
    """Let the model attend along the branches of a tree, and put its own attention back."""
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _through_tree(forward: _Forward, row: Row) -> torch.Tensor:
    """Return hidden states [N, D] (or logits [N, V]) of a row."""
    device = forward.model.device
    places = torch.from_numpy(row.places())
    with laid_out(Layout(blocks_of(row.segments, forward.sizes.block_tokens), places)):
        return forward.hidden(torch.tensor([row.ids], device=device), places[None].to(device))[0]


def _takes_trees(forward: _Forward) -> bool:
    """Whether a small tree gives the same as its branches alone: not so with ALiBi, caps, sinks or recurrence."""
    model = forward.model
    vocabulary = _vocabulary(model)
    if _changes_with_length(model.config.get_text_config()):  # a small tree would not show it
        return False
    first = [(7 * i + 3) % vocabulary for i in range(16)]
    branches = [tuple(first), (*first[:10], *((5 * i + 1) % vocabulary for i in range(9)))]
    branches.append(tuple((11 * i + 2) % vocabulary for i in range(7)))
    alone = [forward.hidden(torch.tensor([ids], device=model.device))[0] for ids in branches]
    try:
        with attention(model):
            (row,) = rows_of(branches, 64)
            together = _through_tree(forward, row)
    except (NotPlain, ValueError, TypeError, AttributeError):  # as transformers says no to another attention
        return False
    found = {path.sequence: together[path.last_positions(len(branches[path.sequence]))] for path in row.paths}
    differences = [_difference(found[number], states) for number, states in enumerate(alone)]
    # Half precision rounds otherwise in other shapes: 0.02 in 30 layers; positions that see too much differ by 0.8.
    return not max(differences) > (1e-3 if model.dtype == torch.float32 else 0.1)


def _changes_with_length(config: Any) -> bool:
    """Whether attention is cut into chunks, or positions are turned otherwise in longer inputs."""
    others = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [rope, *(kind for kind in rope.values() if isinstance(kind, dict))]
    return bool(others) or any(kind.get("rope_type") in ("dynamic", "longrope") for kind in kinds)


def _difference(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of a position's states [T, D], relative to their norm; nan for states with nan."""
    return float(((got.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)).max())


def _log_probabilities(
    forward: _Forward, hidden_S: torch.Tensor, slots: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return log-probability (nats) and greediness of target token i at position slots[i], in chunks of positions."""
    logprobs, greedy = np.empty(len(slots)), np.empty(len(slots), dtype=bool)
    vocabulary = hidden_S.shape[-1] if forward.head is None else forward.head.weight.shape[0]
    step = max(1, min(forward.sizes.positions, forward.sizes.logits // vocabulary))
    order = np.argsort(slots, kind="stable")
    for start in range(0, len(hidden_S), step):
        logits_SV = forward.logits(hidden_S[start : start + step])
        first, last = np.searchsorted(slots, [start, start + step], sorter=order)
        members = order[first:last]
        local, target = (torch.from_numpy(x).to(logits_SV.device) for x in (slots[members] - start, targets[members]))
        chosen = logits_SV[local, target]
        largest_S = logits_SV.amax(-1)
        greedy[members] = _is_first_largest(logits_SV, local, target, chosen == largest_S[local]).cpu().numpy()
        # In place: a sum of exponentials made by `logsumexp` takes three times as long on a CPU.
        log_sum_S = logits_SV.sub_(largest_S[:, None]).exp_().sum(-1).log_()
        logprobs[members] = (chosen - largest_S[local] - log_sum_S[local]).cpu().numpy()
    return logprobs, greedy


def _is_first_largest(
    logits_SV: torch.Tensor, local: torch.Tensor, target: torch.Tensor, is_largest: torch.Tensor
) -> torch.Tensor:
    """Say of each target with the largest logit whether `argmax` names it: with equals, the first counts."""
    rows = local[is_largest]
    is_first = is_largest.clone()
    is_first[is_largest] = logits_SV[rows].argmax(-1) == target[is_largest]
    return is_first
