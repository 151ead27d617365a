"""Parity with lm-evaluation-harness, which runs itself: the same items, the same models, number by number.

A fixed share, evenly spaced: a tenth of MMLU and HellaSwag, less of the smaller tasks. All items take half an hour
with the smallest model there is: `python benchmarks/evaluation.py --parity` runs them, and docs/numbers.md has what it
printed.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onward.errors import UserError
from onward.evaluation.language_model import OnwardLM
from onward.model.load import load_model
from onward.model.source import TINY, resolve
from onward.model.tokenizer import read_tokenizer
from onward.recipe import TASKS
from synthetic import END, llama_config, write_byte_tokenizer, write_model

pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(FOLDER))  # at the end: nothing of it may hide a module of the tests

import parity  # noqa: E402
import thinned  # noqa: E402

ITEMS = {"arc_easy": 60, "arc_challenge": 60, "hellaswag": 1005, "winogrande": 100, "boolq": 40, "piqa": 60, "mmlu": 25}
"""Of MMLU so many of every subject: 1,425 of 14,042."""
CONTEXT = 48
BEGIN = "<|begin|>"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def share(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thinned.thin_bench(shared_data / "bench", tmp_path_factory.mktemp("bench"), ITEMS)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, ...]:
    folder = resolve(TINY).folder
    return parity.open_peer(folder, 8, "float32"), load_model(folder), read_tokenizer(folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", TASKS)
def test_a_share_of_each_task_has_lm_evals_numbers(task: str, share: Path, tiny: tuple[Any, ...]) -> None:
    peer, model, tokenizer = tiny
    found = parity.agreement(*parity.load_both(task, share), peer, model, tokenizer)
    assert len(found.hf.logprobs) == ITEMS[task] * (57 if task == "mmlu" else 1)
    assert found.inside_nats < parity.TOLERANCE_NATS
    assert found.own_nats < parity.TOLERANCE_NATS
    expected = {"acc"} if task in ("mmlu", "winogrande", "boolq") else {"acc", "acc_norm"}
    assert set(found.hf.measures) == expected
    assert found.own.printed == found.hf.printed, f"{found.close} items are as close as rounding"
    assert found.inside.printed == found.hf.printed, f"{found.close} items are as close as rounding"
    assert found.agrees


@pytest.mark.timeout(600)
def test_five_examples_before_each_question_of_some_subjects(share: Path, tiny: tuple[Any, ...]) -> None:
    """Among them are prompts longer than the model's context, whose examples are cut."""
    subjects = ("anatomy", "global_facts", "high_school_european_history", "professional_law")
    built, items = parity.load_both("mmlu@5", share, subjects)
    peer, model, tokenizer = tiny
    assert all(item.requests[0][0].count("Answer:") == 6 for item in items.items)
    found = parity.agreement(built, items, peer, model, tokenizer)
    assert len(found.hf.logprobs) == len(subjects) * ITEMS["mmlu"]
    assert found.agrees, (found.inside_nats, found.own_nats, found.close)


def plain_bytes(folder: Path, shared: Path) -> Path:
    return write_byte_tokenizer(folder)


def bytes_after_begin(folder: Path, shared: Path) -> Path:
    """The tokenizer itself puts a token before every text."""
    from tokenizers import processors
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    backend = AutoTokenizer.from_pretrained(write_byte_tokenizer(folder)).backend_tokenizer
    backend.add_special_tokens([BEGIN])
    special = [(BEGIN, backend.token_to_id(BEGIN))]
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, bos_token=BEGIN).save_pretrained(folder)
    return folder


def gpt2(folder: Path, shared: Path) -> Path:
    shutil.copy(shared / "tokenizers" / "gpt2" / "tokenizer.json", folder)
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "bos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def sentencepiece(folder: Path, shared: Path) -> Path:
    """2,000 pieces; Llama's tokenizer puts BOS before a text."""
    shutil.copy(shared / "tokenizers" / "tiny_torchtune" / "sp_m.model", folder / "tokenizer.model")
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": True}))
    return folder


TOKENIZERS: dict[str, tuple[Callable[[Path, Path], Path], int, bool]] = {
    "bytes": (plain_bytes, 257, False),
    "bytes after BOS": (bytes_after_begin, 258, True),
    "GPT-2": (gpt2, 50257, False),
    "sentencepiece": (sentencepiece, 2000, True),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def sides(request: Any, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, OnwardLM]:
    """lm-eval's model and ours, of one folder, with a context of 48 tokens."""
    write, size, adds_bos = TOKENIZERS[request.param]
    folder = tmp_path_factory.mktemp("model")
    config = llama_config(vocab_size=size, max_position_embeddings=CONTEXT, initializer_range=0.3)
    write_model(folder, config)
    for path in folder.glob("*token*"):
        path.unlink()
    write(folder, shared_data)
    tokenizer = read_tokenizer(folder)
    assert (tokenizer.bos_id is not None) == adds_bos
    return parity.open_peer(folder, 3, "float32"), OnwardLM(load_model(folder), tokenizer)


def instances(kind: str, arguments: list[tuple[str, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, 0, ("made", place, 1)) for place, one in enumerate(arguments)]


LONG = "She said that she would come again in the morning, and nobody believed it. " * 6
PAIRS = [
    ("The cat sat", " on the mat"),
    ("The cat sat ", "on the mat"),
    ("The cat sat  \n", " on the mat"),
    ("Question: what?\nAnswer:", " A"),
    ("Question: what?\nAnswer:", " B"),
    ("Question: what?\nAnswer:", " A long one"),
    ("", "without a context"),
    ("", f"{END} after the end"),
    ("", f"{BEGIN} after the beginning"),
    (f"{BEGIN}spelt out", " and on"),
    (LONG, " A"),
    (LONG, " B"),
    (LONG, " until the night"),
    (LONG + " ", "until the night"),
    ("Größe", " äöü 日本"),
]


def test_requests_of_every_kind_have_lm_evals_numbers(sides: tuple[Any, OnwardLM]) -> None:
    peer, ours = sides
    assert (ours.max_length, ours.prefix_token_id) == (peer.max_length, peer.prefix_token_id)
    assert ours.eot_token_id == peer.eot_token_id
    expected, got = (one.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True) for one in (peer, ours))
    assert [nats for nats, _ in got] == pytest.approx([nats for nats, _ in expected], abs=1e-3)
    assert [greedy for _, greedy in got] == [bool(greedy) for _, greedy in expected]


def test_rolling_log_likelihoods_have_lm_evals_numbers(sides: tuple[Any, OnwardLM]) -> None:
    peer, ours = sides
    texts = [LONG, "short", "", "a" * (CONTEXT - 1), "a" * CONTEXT, "a" * (CONTEXT + 1), f"{END}{LONG}"]
    requests = instances("loglikelihood_rolling", [(text,) for text in texts])
    expected, got = (one.loglikelihood_rolling(requests, disable_tqdm=True) for one in (peer, ours))
    assert got == pytest.approx(expected, abs=1e-3)


def test_a_context_of_spaces_alone_is_an_empty_one(ours: OnwardLM) -> None:
    """With a tokenizer without BOS lm-eval's own model fails an assertion there."""
    spaces, empty = ours.loglikelihood(instances("loglikelihood", [("  ", "and on"), ("", "  and on")]))
    assert spaces == empty


@pytest.fixture
def ours(tmp_path: Path) -> OnwardLM:
    return OnwardLM.load(write_model(tmp_path / "model"))


def tasks_over(folder: Path) -> list[dict[str, Any]]:
    """A task of log-likelihoods and one of whole texts, written as lm-eval's users write theirs."""
    rows = [{"text": "The river ran past the mill", "last": "mill"}, {"text": "It was late", "last": "late"}]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}}}
    shared |= {"test_split": "test", "num_fewshot": 0}
    last = {"task": "last_word", "output_type": "loglikelihood", "doc_to_text": "{{text[:-(last|length)]|trim}}"}
    last |= {"doc_to_target": " {{last}}", "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}]}
    whole = {"task": "whole", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"}
    whole |= {"metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}]}
    return [shared | last, shared | whole]


def test_lm_evals_evaluator_runs_tasks_of_its_own_kinds(ours: OnwardLM, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    peer = parity.open_peer(tmp_path / "model", 2, "float32")
    manager, cache = TaskManager(include_defaults=False), str(tmp_path / "cache")
    expected, got, again = (
        simple_evaluate(
            model=model, tasks=tasks_over(tmp_path), task_manager=manager, use_cache=kept, bootstrap_iters=0
        )
        for model, kept in ((peer, None), (ours, cache), (ours, cache))
    )
    assert set(got["results"]) == {"last_word", "whole"}
    for task, measures in expected["results"].items():
        numbers = {name: value for name, value in measures.items() if isinstance(value, float)}
        assert numbers
        for found in (got, again):
            assert {name: found["results"][task][name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    assert got["config"]["model_num_parameters"] == sum(p.numel() for p in peer.model.parameters())
    assert list(tmp_path.glob("cache*")), "answers were kept for the second time"
    assert ours.tokenizer_name.startswith("onward-")


def test_generation_is_refused(ours: OnwardLM) -> None:
    asked = instances("generate_until", [("context", {})])  # type: ignore[list-item]
    with pytest.raises(UserError, match=r"(?s)needs generation; only log-likelihoods are scored.*made, document 0"):
        ours.generate_until(asked)
    with pytest.raises(UserError, match="without a chat template"):
        ours.apply_chat_template([{"role": "user", "content": "hello"}])


def test_what_cannot_be_scored_is_named(ours: OnwardLM) -> None:
    with pytest.raises(
        UserError, match=r"(?s)a continuation cannot be scored.*made, document 1.*got +0 tokens"
    ) as caught:
        ours.loglikelihood(instances("loglikelihood", [("a", " b"), ("a", "")]))
    assert caught.value.expected == "1 to 128, the model's context"
    with pytest.raises(UserError, match=r"got +129 tokens"):
        ours.loglikelihood(instances("loglikelihood", [("a", "b" * 129)]))
    ours._model.model.norm.weight.data[0] = math.nan
    for kind, arguments in (("loglikelihood", ("a", " b")), ("loglikelihood_rolling", ("a",))):
        with pytest.raises(UserError, match=r"(?s)likelihoods are not numbers.*made, document 0"):
            getattr(ours, kind)(instances(kind, [arguments]))
