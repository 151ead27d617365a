"""The scoring engine against naive one-request-at-a-time forward passes."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from onward.model.score import (
    SIZES,
    Request,
    _Forward,
    _windows,
    context_length,
    encode_requests,
    score_continuations,
    score_documents,
)
from onward.model.tokenizer import LoadedTokenizer

VOCABULARY = 300


def tiny_llama(context: int = 48) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return tiny_llama()


def byte_tokenizer(bos: bool = False) -> LoadedTokenizer:
    """Every byte is a token, 256 ends a text and 257 may begin one; words of two letters have merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate(letters)}
    merges = [("Ġ", "a"), ("Ġ", "Ġ"), ("h", "e")]
    vocabulary |= {left + right: 258 + index for index, (left, right) in enumerate(merges)}
    vocabulary |= {"<end>": 256, "<begin>": 257}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>", "<begin>"])
    return LoadedTokenizer(tokenizer.to_str(), 256, 257 if bos else None, 257 if bos else 256, None, 261, "test")


def naive(model: torch.nn.Module, request: Request, limit: int) -> tuple[float, bool]:
    tokens = (request.context + request.continuation)[-limit - 1 :]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens[:-1]])).logits[0].double()
    count = len(request.continuation)
    logprobs = logits.log_softmax(-1)[-count:]
    targets = torch.tensor(request.continuation)
    return float(logprobs.gather(1, targets[:, None]).sum()), bool((logprobs.argmax(-1) == targets).all())


def random_requests(count: int = 60, longest: int = 80) -> list[Request]:
    generator = torch.Generator().manual_seed(1)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(VOCABULARY, (size,), generator=generator).tolist())

    requests = []
    for place in range(count):
        context = ids(1 + int(torch.randint(longest, (1,), generator=generator)))
        sizes = [1, 1, 1, 1] if place % 2 else [1, 3, 9, 2]
        requests += [Request(context, ids(size)) for size in sizes]
    return requests


def test_equals_one_forward_pass_per_request(model: LlamaForCausalLM) -> None:
    requests = random_requests()
    # The likeliest next token, so that a greedy answer is among them.
    logits = model(input_ids=torch.tensor([requests[0].context[-48:]])).logits
    requests.append(Request(requests[0].context, (int(logits[0, -1].argmax()),)))
    results = score_continuations(model, requests, batch_tokens=256)
    assert len(results) == len(requests)
    assert any(len(r.context) + len(r.continuation) > 49 for r in requests), "over-length requests are among them"
    for request, result in zip(requests, results, strict=True):
        logprob, greedy = naive(model, request, 48)
        assert result.logprob == pytest.approx(logprob, abs=1e-4)
        assert result.greedy == greedy
        assert result.truncated == (len(request.context) + len(request.continuation) > 49)
    assert results[-1].greedy


def test_batch_composition_does_not_matter(model: LlamaForCausalLM) -> None:
    requests = random_requests(20)
    together = score_continuations(model, requests, batch_tokens=10**6)
    alone = [score_continuations(model, [request], batch_tokens=1)[0] for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_one_token_answers_share_a_row(model: LlamaForCausalLM) -> None:
    seen = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    requests = [Request((1, 2, 3), (answer,)) for answer in range(4)]
    score_continuations(model, requests)
    hook.remove()
    assert seen[-1] == 1


def test_logit_chunks_give_the_same(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(10)
    whole = score_continuations(model, requests)
    monkeypatch.setitem(SIZES, "cpu", replace(SIZES["cpu"], logits=3 * VOCABULARY))
    cut = score_continuations(model, requests)
    assert [r.logprob for r in cut] == pytest.approx([r.logprob for r in whole], abs=1e-5)


def test_soft_capped_logits_are_capped_where_they_are_asked_for() -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=48,
        final_logit_softcapping=3.0,
        initializer_range=0.5,
        sliding_window=16,
    )
    model = Gemma2ForCausalLM(config).eval()
    forward = _Forward.of(model, SIZES["cpu"])
    assert (forward.head is None, forward.cap) == (False, 3.0)
    for request, result in zip(random_requests(6), score_continuations(model, random_requests(6)), strict=True):
        assert result.logprob == pytest.approx(naive(model, request, 48)[0], abs=1e-4)


def test_learned_positions() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, n_positions=48)
    model = GPT2LMHeadModel(config).eval()
    assert context_length(model) == 48
    assert _Forward.of(model, SIZES["cpu"]).head is not None
    for request, result in zip(random_requests(6), score_continuations(model, random_requests(6)), strict=True):
        assert result.logprob == pytest.approx(naive(model, request, 48)[0], abs=1e-4)


def test_not_a_number_comes_back_as_such() -> None:
    model = tiny_llama()
    model.model.norm.weight.data[0] = math.nan
    assert math.isnan(score_continuations(model, [Request((1,), (2,))])[0].logprob)


@pytest.mark.parametrize("bos", [False, True])
def test_encoding_is_that_of_the_harness(bos: bool) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")
    from lm_eval.models.huggingface import HFLM
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    loaded = byte_tokenizer(bos)
    backend = loaded.fast()
    if bos:
        backend = type(backend).from_str(loaded.json)
        backend.post_processor = processors.TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 257)])
    special = {"eos_token": "<end>"} | ({"bos_token": "<begin>"} if bos else {})
    peer = HFLM(tiny_llama(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend, **special))
    asked = []
    peer._loglikelihood_tokens = lambda requests, **kwargs: asked.extend(requests) or []
    pairs = [
        ("the cat", " sat"),
        ("the cat ", "a mat"),
        ("the cat  \n", " a"),
        ("", "the"),
        ("", "<end>the"),
        ("", "<begin>the"),
        ("<begin>x", " y"),
        ("h", "e is"),
        ("é", "ø a"),
    ]
    peer.loglikelihood([type("Instance", (), {"args": pair})() for pair in pairs])
    expected = [Request(tuple(context), tuple(continuation)) for _, context, continuation in asked]
    assert encode_requests(loaded, pairs) == expected


@pytest.mark.parametrize(("tokens", "window"), [(1, 8), (8, 8), (9, 8), (100, 8), (37, 7), (5, 1)])
def test_windows_score_every_token_once(tokens: int, window: int) -> None:
    ids = list(range(1, tokens + 1))
    requests = list(_windows(0, ids, window))
    assert [token for request in requests for token in request.continuation] == ids
    for request in requests:
        assert len(request.context) + len(request.continuation) <= window + 1
        assert request.context[-1] == request.continuation[0] - 1, "the context is what stands before"
    assert all(len(request.context) >= window / 2 for request in requests[1:])


def test_document_equals_naive_sum_when_it_fits(model: LlamaForCausalLM) -> None:
    tokenizer = byte_tokenizer()
    texts = ["the cat sat", "", "ééé he", "the cat sat on a mat " * 20]
    results = score_documents(model, tokenizer, texts, batch_tokens=100)
    assert [r.bytes for r in results] == [len(text.encode()) for text in texts]
    for text, result in list(zip(texts, results, strict=True))[:3]:
        ids = tuple(tokenizer.encode_batch([text])[0])
        assert result.tokens == len(ids)
        expected = -naive(model, Request((256,), ids), 48)[0] if ids else 0.0
        assert result.nats == pytest.approx(expected, abs=1e-4)
    assert results[3].tokens > 48, "the last is longer than the window"
    assert results[3].nats > 0
