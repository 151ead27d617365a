"""Scoring along prefix trees against one forward pass for each request, over architectures."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as t

from onward.model.prefix_tree import rows_of
from onward.model.score import SIZES, Request, Scorer
from onward.model.tree_attention import blocks_of

VOCABULARY = 211
WINDOWS = ["sliding_attention", "full_attention", "sliding_attention"]


def small(**changes: Any) -> dict[str, Any]:
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return {
        **sizes,
        **heads,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }


def without(*names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in small(**changes).items() if name not in names}


PLAIN: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**small()),
    "gpt-neox": lambda: t.GPTNeoXConfig(**without("num_key_value_heads")),
    "qwen3": lambda: t.Qwen3Config(**small(head_dim=8)),
    "gemma3-window": lambda: t.Gemma3TextConfig(
        **small(head_dim=8, sliding_window=8, num_hidden_layers=3, layer_types=WINDOWS)
    ),
    "mistral-window": lambda: t.MistralConfig(**small(sliding_window=8)),
    "gpt2": lambda: t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "granite": lambda: t.GraniteConfig(**small(logits_scaling=3.0, attention_multiplier=0.3)),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "bloom-alibi": lambda: t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "gemma2-capped": lambda: t.Gemma2Config(**small(head_dim=8, attn_logit_softcapping=2.0)),
    "gpt-oss-sinks": lambda: t.GptOssConfig(
        **small(head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=16)
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
}


def model_of(config: Any) -> Any:
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(config).eval()


def questions() -> list[Request]:
    """A long beginning that questions share, of which each has four answers, some of them alike at first."""
    generator = torch.Generator().manual_seed(3)

    def ids(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCABULARY, (size,), generator=generator).tolist())

    requests = []
    shots = ids(20)
    for size in (3, 14, 8):
        context = (*shots, *ids(size))
        alike = ids(9)
        requests += [Request(context, answer) for answer in (ids(1), alike, (*alike[:7], 5), ids(12))]
    return [*requests, Request(ids(1), ids(2)), Request(ids(60), ids(20))]


def alone(model: Any, request: Request) -> float:
    tokens = (request.context + request.continuation)[-65:]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens[:-1]]), use_cache=False).logits[0].double()
    rows = logits.log_softmax(-1)[-len(request.continuation) :]
    return float(rows.gather(1, torch.tensor(request.continuation)[:, None]).sum())


@pytest.mark.parametrize(("name", "takes_trees"), [*((n, True) for n in PLAIN), *((n, False) for n in OTHERS)])
def test_equals_one_forward_pass_for_each_request(name: str, takes_trees: bool) -> None:
    model = model_of((PLAIN | OTHERS)[name]())
    attention = model.config._attn_implementation
    scorer = Scorer(model, batch_tokens=100, maximum_tokens=64)
    scored = [result.logprob for result in scorer.score(questions())]
    assert scored == pytest.approx([alone(model, request) for request in questions()], abs=2e-4)
    assert (scorer.tally.computed_tokens < 250) is takes_trees, "a padded batch computes what requests share again"
    assert model.config._attn_implementation == attention, "the model's own attention is put back"


@pytest.mark.parametrize("block_tokens", [1, 7, 30, 1000])
def test_blocks_of_any_size_give_the_same(block_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(PLAIN["gemma3-window"]())
    expected = [result.logprob for result in Scorer(model).score(questions())]
    monkeypatch.setitem(SIZES, "cpu", replace(SIZES["cpu"], block_tokens=block_tokens))
    assert [r.logprob for r in Scorer(model).score(questions())] == pytest.approx(expected, abs=1e-4)


def test_blocks_cover_a_row_once_and_name_what_they_see_before() -> None:
    inputs = [request.context + request.continuation for request in questions()]
    (row,) = rows_of(inputs, 10_000)
    blocks = blocks_of(row.segments, 10)
    assert len(blocks) > 3
    assert [block.span[0] for block in blocks] == [0, *(block.span[1] for block in blocks)][:-1]
    for block in blocks:
        seen = {position for start, end in block.outside for position in range(start, end)}
        needed = {p for s in block.segments for a, b in s.before for p in range(a, b) if p < block.span[0]}
        assert needed == seen


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"layer_types": ["chunked_attention", "full_attention"]},
    ],
)
def test_attention_that_changes_with_length_takes_no_trees(changes: dict[str, Any]) -> None:
    assert Scorer(model_of(PLAIN["llama"]()))._takes_trees
    model = model_of(PLAIN["llama"]())
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert not Scorer(model)._takes_trees


def test_a_model_taken_whole_computes_fewer_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "cpu", replace(SIZES["cpu"], whole_logits=30 * VOCABULARY))
    model = model_of(PLAIN["llama"]())
    assert Scorer(model).batch_tokens == SIZES["cpu"].batch_tokens
    model.config.logit_scale = 0.5  # which the model itself does not know of: head times scale are not its logits
    whole = Scorer(model)
    assert whole.batch_tokens == 30
    scored = [result.logprob for result in whole.score(questions())]
    assert scored == pytest.approx([alone(model, request) for request in questions()], abs=2e-4)
