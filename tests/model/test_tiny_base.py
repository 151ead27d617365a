"""The packaged model is what its card says, and the card's baselines are honest."""

import csv
import gzip
import importlib
import json
import math
from collections import Counter
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def folder() -> Path:
    return Path(str(resources.files("onward") / "model" / "tiny"))


@pytest.fixture(scope="module")
def card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture
def tool(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of tools/ by name."""
    monkeypatch.syspath_prepend(str(repository / "tools"))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_package_is_small_and_holds_nothing_executable(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "__pycache__"}
    assert set(sizes) == {
        "README.md",
        "card.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "sources.tsv",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sizes["model.safetensors"] <= 8_000_000
    assert sum(sizes.values()) < 8_600_000


def test_model_is_a_plain_tied_llama_of_the_stated_size(folder: Path, card: dict[str, Any], model: Any) -> None:
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert 2e6 <= model.num_parameters() <= 4e6
    assert model.num_parameters() == card["parameters"]
    assert model.config.vocab_size == card["vocabulary"] == 8192
    assert model.config.max_position_embeddings == card["context_tokens"] >= 512
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(folder / "model.safetensors", "pt") as weights:
        assert "lm_head.weight" not in weights.keys()  # noqa: SIM118 (not a mapping)
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_documents_can_end_and_the_tokenizer_loses_nothing(folder: Path, model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert len(tokenizer) == 8192
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id == 0
    text = 'He said: "No."\n\n  Naïve café, 1\u202f000 ₿ 🙂\tend'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 0 not in tokenizer(text)["input_ids"]


def test_card_is_made_from_its_numbers(folder: Path, card: dict[str, Any], tool: Any) -> None:
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert readme == tool("card_text").card_text(card)
    assert f"**{card['held_out']['bits_per_byte']:.3f}**" in readme
    for value in card["baselines_bits_per_byte"].values():
        assert f"| {value:.3f} |" in readme


def test_card_compares_well_with_compressors_and_ngrams(card: dict[str, Any]) -> None:
    assert card["training"]["finished"], "interim weights are not released"
    held_out, baselines = card["held_out"], card["baselines_bits_per_byte"]
    assert held_out["bits_per_byte_low"] < held_out["bits_per_byte"] < held_out["bits_per_byte_high"]
    assert held_out["bits_per_byte_high"] < baselines["byte_5gram"]
    assert held_out["bits_per_byte_high"] < baselines["gzip_9_one_file"] < baselines["gzip_9_each_document"]
    nats = held_out["nats_per_token"] * held_out["tokens"] / math.log(2) / held_out["bytes"]
    assert nats == pytest.approx(held_out["bits_per_byte"], abs=2e-4)


def test_every_work_is_named_with_a_licence(folder: Path, card: dict[str, Any]) -> None:
    with open(folder / "sources.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert {row["licence"] for row in rows} == {"public domain", "public domain (markup CC BY 4.0)", "CC BY 4.0"}
    assert all(row["title"] and row["author"] and row["source"] for row in rows)
    works = Counter((row["collection"], row["licence"]) for row in rows)
    assert works == {(total["collection"], total["licence"]): total["works"] for total in card["sources"]}
    assert sum(row["split"] == "held out" for row in rows) == card["held_out"]["books"]


def test_packaged_weights_reach_the_level_of_the_card(
    folder: Path, card: dict[str, Any], model: Any, shared_data: Path, tool: Any
) -> None:
    """One document of each of three held-out books: the interval of the card cannot hold, the baselines must."""
    measuring = tool("card_tiny_base")
    sample = measuring.held_out_sample(shared_data / "general")
    assert len({document.book for document in sample}) == card["held_out"]["books"]
    assert sum(len(document.data) for document in sample) == card["held_out"]["bytes"]
    novels = [d for d in sample if d.collection in ("ELTeC-eng", "classic-books-markdown")][:3]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    bits = sum(measuring.document_nats(model, tokenizer(d.text)["input_ids"]) for d in novels) / math.log(2)
    size = sum(len(document.data) for document in novels)
    assert bits / size < card["baselines_bits_per_byte"]["byte_5gram"]
    assert bits / size == pytest.approx(card["held_out"]["bits_per_byte"], rel=0.15)
    assert bits < sum(8 * len(gzip.compress(document.data, 9)) for document in novels)


def test_rolling_windows_count_every_token_once(model: Any, tool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = tool("card_tiny_base")
    ids = np.random.default_rng(0).integers(1, 8192, 90).tolist()
    stream = torch.tensor([[0, *ids]])
    with torch.inference_mode():
        whole = -torch.log_softmax(model(stream).logits[0, :-1], -1)[torch.arange(90), stream[0, 1:]].sum().item()
    assert measuring.document_nats(model, ids) == pytest.approx(whole, rel=1e-5)
    # Windows of one token know only the token before: what the definition says, computed on its own.
    monkeypatch.setattr(measuring, "CONTEXT_TOKENS", 1)
    monkeypatch.setattr(measuring, "STRIDE_TOKENS", 1)
    with torch.inference_mode():
        logits = model(stream[0, :-1, None]).logits[:, 0]
    alone = -torch.log_softmax(logits, -1)[torch.arange(90), stream[0, 1:]].sum().item()
    assert measuring.document_nats(model, ids) == pytest.approx(alone, rel=1e-5)


TRAINING = [b"the cat sat on the mat", b"a cat and a hat", b"the then", b"x"]


@pytest.mark.parametrize("order", [1, 3, 5, 8])
def test_ngram_probabilities_sum_to_one(order: int, tool: Any) -> None:
    ngram = tool("byte_ngram")
    counts = ngram.count_ngrams(TRAINING, order)
    for context in (b"", b"the ", b"a ca", b"zzzz"):
        last = [bits[-1] for bits in ngram.surprisal_bits(counts, [context + bytes([b]) for b in range(256)])]
        assert np.exp2(-np.array(last)).sum() == pytest.approx(1)


def test_ngram_equals_the_formula_written_with_dictionaries(tool: Any) -> None:
    ngram, order, text = tool("byte_ngram"), 4, b"the hat sat then zat"
    seen: Counter[bytes] = Counter()
    for document in TRAINING:
        padded = bytes(order - 1) + document
        for end in range(order, len(padded) + 1):
            seen.update(padded[end - n : end] for n in range(1, order + 1))

    def probability(gram: bytes) -> float:
        if not gram:
            return 1 / 256
        after = [count for other, count in seen.items() if len(other) == len(gram) and other[:-1] == gram[:-1]]
        shorter = probability(gram[1:])
        return (seen[gram] + len(after) * shorter) / (sum(after) + len(after)) if after else shorter

    padded = bytes(order - 1) + text
    expected = [-math.log2(probability(padded[n : n + order])) for n in range(len(text))]
    counts = ngram.count_ngrams(TRAINING, order)
    assert ngram.surprisal_bits(counts, [text])[0] == pytest.approx(expected)


def test_ngram_counts_do_not_depend_on_blocks_and_shorten_exactly(tool: Any) -> None:
    ngram = tool("byte_ngram")
    whole, pieces = ngram.count_ngrams(TRAINING, 7), ngram.count_ngrams(TRAINING, 7, block_bytes=1)
    direct, short = ngram.count_ngrams(TRAINING, 5), ngram.shortened(whole, 5)
    for left, right in ((whole, pieces), (direct, short)):
        assert np.array_equal(left.codes, right.codes)
        assert np.array_equal(left.counts, right.counts)
