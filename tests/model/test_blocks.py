"""Blocks are compiled for scoring where that pays, and score the same."""

import shutil
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from onward.model.blocks import compile_blocks
from onward.model.score import Request, Scorer, compile_to_score

LARGE = 10**12
SETTINGS: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SETTINGS, num_hidden_layers=2, initializer_range=0.3)).eval()


def is_compiled(model: LlamaForCausalLM) -> bool:
    return all(layer._compiled_call_impl is not None for layer in model.model.layers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_compiled_blocks_score_the_same() -> None:
    requests = [Request((1, 2, 3, *range(4, 4 + n)), tuple(range(n, n + 3))) for n in range(1, 20)]
    model = tiny()
    expected = [result.logprob for result in Scorer(model).score(requests)]
    assert compile_to_score(model, LARGE)
    assert is_compiled(model)
    assert [result.logprob for result in Scorer(model).score(requests)] == pytest.approx(expected, abs=1e-4)


def test_little_work_is_not_compiled_for() -> None:
    model = tiny()
    assert not compile_blocks(model, 10_000)
    assert not is_compiled(model)


def test_nothing_is_done_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = tiny()
    assert not compile_blocks(model, LARGE)
    assert not is_compiled(model)


def test_a_compiler_that_fails_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(block: Any, **settings: Any) -> None:
        def fails(*arguments: Any, **more: Any) -> None:
            raise RuntimeError("Python.h: no such file")

        block._compiled_call_impl = fails

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    model = tiny()
    assert not compile_to_score(model, LARGE)
    assert not is_compiled(model)
    assert Scorer(model).score([Request((1,), (2,))])
