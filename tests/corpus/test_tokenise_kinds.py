"""Kinds of tokenizers that gigatoken does not read as they are."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus.gigatoken_engine import Gigatoken
from onward.corpus.tokenise import choose_engine, encode, open_gigatoken
from onward.model.difficult_texts import difficult_texts, texts_by_character
from onward.model.tokenizer import LoadedTokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def with_digits(tokenizer: LoadedTokenizer, *steps: Any, normalizer: Any = None) -> LoadedTokenizer:
    """SmolLM's rule: every digit is a token, and a space before a number is another."""
    content = json.loads(tokenizer.json)
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(steps)}
    content["normalizer"] = normalizer
    return replace(tokenizer, json=json.dumps(content))


def without_bytes(tokenizer: LoadedTokenizer, *missing: str) -> LoadedTokenizer:
    """A vocabulary as it comes out of training on a text that lacks these bytes (in the byte-level alphabet)."""
    content = json.loads(tokenizer.json)
    model = content["model"]
    model["merges"] = [merge for merge in model["merges"] if not set("".join(merge)) & set(missing)]
    model["vocab"] = {piece: n for piece, n in model["vocab"].items() if piece not in missing}
    return replace(tokenizer, json=json.dumps(content))


def assert_as_the_reference(texts: list[str], tokenizer: LoadedTokenizer) -> None:
    engine = choose_engine(tokenizer, [])
    assert (engine.name, engine.exceptions) == ("gigatoken", "")
    encoded = encode(texts, tokenizer, engine)
    found = [encoded.ids[a:b].tolist() for a, b in zip(encoded.starts[:-1], encoded.starts[1:], strict=True)]
    assert found == [[*ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]


@pytest.fixture(scope="module")
def digits(tiny_tokenizer: LoadedTokenizer) -> LoadedTokenizer:
    return with_digits(tiny_tokenizer, DIGITS, BYTE_LEVEL)


def test_digits_apart(digits: LoadedTokenizer, tiny_tokenizer: LoadedTokenizer) -> None:
    texts = [
        "",
        "1",
        "42",
        "",
        "a1b22c",
        " 7 8  9 ",
        "x\u00b2 \u00bd \u2167 \u0663 \u4e00",
        "3.14 <|endoftext|> 5",
        "no",
    ]
    texts += [*difficult_texts(), *list(texts_by_character().values())[::20], "0123456789", ""]
    assert_as_the_reference(texts, digits)
    plain = tiny_tokenizer.encode_batch(["in 2024"])[0]
    assert len(plain) < len(digits.encode_batch(["in 2024"])[0]) == 6


@settings(max_examples=100, derandomize=True, deadline=None)
@given(st.lists(st.text(st.sampled_from("a 19.\n\u00b2\u00e9\u0663\u8a9e"), max_size=12), max_size=6))
def test_digits_apart_wherever_they_stand(digits: LoadedTokenizer, texts: list[str]) -> None:
    assert_as_the_reference(texts, digits)


@pytest.mark.parametrize(
    ("steps", "normalizer"),
    [
        ([DIGITS | {"individual_digits": False}, BYTE_LEVEL], None),
        ([DIGITS, BYTE_LEVEL], {"type": "NFC"}),
        ([BYTE_LEVEL, DIGITS], None),
        ([DIGITS, BYTE_LEVEL | {"add_prefix_space": True}], None),
    ],
)
def test_other_rules_about_digits_are_left_to_the_reference(
    tiny_tokenizer: LoadedTokenizer, steps: list[Any], normalizer: Any
) -> None:
    engine = choose_engine(with_digits(tiny_tokenizer, *steps, normalizer=normalizer), [])
    assert engine.name == "tokenizers"
    assert engine.reason.startswith("gigatoken cannot read this tokenizer: Unsupported pre_tokenizer type: Sequence")


def test_bytes_without_a_token_are_left_to_the_reference(tiny_tokenizer: LoadedTokenizer) -> None:
    # Of `Q` the reference drops the one byte, and merges what then stands side by side; of é both bytes are missing.
    lacking = without_bytes(tiny_tokenizer, "Q", "\u00c3", "\u00a9")
    texts = ["plain", "thQe", "", "caf\u00e9s", "Q", "more"]
    assert lacking.encode_batch(["thQe"]) == lacking.encode_batch(["the"])
    assert_as_the_reference([*texts, *difficult_texts()], lacking)
    live = open_gigatoken(lacking.json, "")
    ids, starts = live.encode([text.encode() for text in texts])
    assert live.with_foreign(ids, starts) == [1, 3, 4]
    whole = Gigatoken(tiny_tokenizer.json)
    assert whole.with_foreign(*whole.encode([text.encode() for text in texts])) == []


def test_a_tokenizer_trained_at_home(shared_data: Path) -> None:
    text = (shared_data / "tokenizers/tiny_torchtune/tiny_bpe_tokenizer.json").read_text(encoding="utf-8")
    texts = ["some words, and 12 numbers", "\u00e9\u8a9e", "", *difficult_texts()]
    assert_as_the_reference(texts, LoadedTokenizer(text, 2000, None, 2000, None, 2003, "torchtune"))


def test_a_llama_style_sentencepiece_tokenizer(tmp_path: Path, repository: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    from onward.model.mobilellm import load_sentencepiece

    lines = [line for path in sorted((repository / "src").rglob("*.py")) for line in path.read_text().splitlines()]
    SentencePieceTrainer.train(
        sentence_iterator=iter(filter(None, lines)), model_prefix=str(tmp_path / "tokenizer"), vocab_size=1500,
        model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, unk_id=0, bos_id=1, eos_id=2, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    text = load_sentencepiece(tmp_path).backend_tokenizer.to_str()
    tokenizer = LoadedTokenizer(text, 2, None, 1, 0, 1500, "sentencepiece")
    assert_as_the_reference(
        ["def f(x):", "", "  two <s> </s>", *difficult_texts(), *list(texts_by_character().values())[::20]], tokenizer
    )
    live = open_gigatoken(text, "")
    assert live.with_foreign(*live.encode(["\u0120 \u00e9".encode()])) == []  # letters that stand for bytes elsewhere
