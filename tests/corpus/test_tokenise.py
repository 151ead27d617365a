import json
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus import gigatoken_engine, tokenise
from onward.corpus.gigatoken_engine import Gigatoken
from onward.corpus.tokenise import (
    TOKEN_REASONS,
    Encoded,
    Engine,
    choose_engine,
    encode,
    open_decoder,
    open_gigatoken,
    token_reasons,
)
from onward.errors import UserError
from onward.model.difficult_texts import difficult_texts, texts_by_character
from onward.model.tokenizer import LoadedTokenizer

Break = Callable[[str], None]
REFERENCE = Engine("tokenizers", "the reference")
PROSE = [
    "The quick brown fox.",
    "Jumps over 12 lazy dogs;\n\n  and caf\u00e9s.",
    "",
    "x",
    "def f(x):\n\treturn x + 1\n",
]


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Break]:
    """Let gigatoken spoil every document that holds the given words, and forget what was found out before."""
    right = Gigatoken.encode

    def spoil(where: str) -> None:
        def wrong(self: Gigatoken, documents: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
            ids, starts = right(self, documents)
            ids = ids.copy()
            for document, begin in zip(documents, starts, strict=False):
                if where.encode() in document:
                    ids[begin] = 0
            return ids, starts

        monkeypatch.setattr(Gigatoken, "encode", wrong)

    tokenise._checked.cache_clear()
    open_gigatoken.cache_clear()
    yield spoil
    tokenise._checked.cache_clear()


@pytest.fixture(scope="session")
def neox(shared_data: Path) -> LoadedTokenizer:
    """Composes characters (NFC), and has tokens for runs of spaces that are added, yet not special."""
    text = (shared_data / "tokenizers/neox_dolma/tokenizer.json").read_text(encoding="utf-8")
    return LoadedTokenizer(text, 50279, None, 50279, None, 50280, "neox")


def changed(tokenizer: LoadedTokenizer, **changes: object) -> LoadedTokenizer:
    return LoadedTokenizer(**(tokenizer.__dict__ | changes))


def by_hand(texts: list[str], tokenizer: LoadedTokenizer) -> list[list[int]]:
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [[*first, *ids, tokenizer.eos_id] for ids in tokenizer.encode_batch(texts)]


def as_lists(encoded: Encoded) -> list[list[int]]:
    pairs = zip(encoded.starts[:-1], encoded.starts[1:], strict=True)
    return [encoded.ids[begin:end].tolist() for begin, end in pairs]


def test_the_packaged_tokenizer_is_encoded_by_gigatoken(tiny_tokenizer: LoadedTokenizer) -> None:
    engine = choose_engine(tiny_tokenizer, PROSE)
    assert engine == Engine("gigatoken", "equal to the reference on all texts compared")


@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
@pytest.mark.parametrize("bos_id", [None, 7])
def test_the_ids_are_the_references_with_bos_and_eos(
    tiny_tokenizer: LoadedTokenizer, name: str, bos_id: int | None
) -> None:
    tokenizer = changed(tiny_tokenizer, bos_id=bos_id, eos_id=5)
    engine = choose_engine(tokenizer, PROSE) if name == "gigatoken" else REFERENCE
    assert engine.name == name
    texts = [*PROSE, *difficult_texts(), *list(texts_by_character().values())[::50], ""]
    encoded = encode(texts, tokenizer, engine)
    assert as_lists(encoded) == by_hand(texts, tokenizer)
    assert encoded.ids.dtype == np.uint16
    assert encoded.starts.dtype == np.int64
    assert len(encoded) == len(texts)
    assert (encoded.lengths() == np.diff(encoded.starts)).all()


@pytest.mark.parametrize("texts", [[], [""], ["", "", ""]])
def test_nothing_is_encoded_to_ends_alone(tiny_tokenizer: LoadedTokenizer, texts: list[str]) -> None:
    for engine in (choose_engine(tiny_tokenizer, []), REFERENCE):
        encoded = encode(texts, tiny_tokenizer, engine)
        assert encoded.ids.tolist() == [0] * len(texts)
        assert encoded.starts.tolist() == list(range(len(texts) + 1))


def test_wide_vocabularies_get_wide_ids(tiny_tokenizer: LoadedTokenizer) -> None:
    tokenizer = changed(tiny_tokenizer, vocabulary_size=70_000, eos_id=69_999)
    encoded = encode(["word"], tokenizer, choose_engine(tokenizer, []))
    assert encoded.ids.dtype == np.uint32
    assert encoded.ids[-1] == 69_999


@settings(max_examples=150, derandomize=True, deadline=None)
@given(
    texts=st.lists(
        st.one_of(
            st.text(max_size=30),
            st.text(st.sampled_from("ab1 \n\t'.\u0301\u00e9\u8a9e\U0001f642"), max_size=40),
            st.sampled_from(["<|endoftext|>", " <|endoftext|> end", "<|endoftext", "|endoftext|>"]),
        ),
        max_size=8,
    )
)
def test_whatever_is_written_the_ids_are_the_references(tiny_tokenizer: LoadedTokenizer, texts: list[str]) -> None:
    engine = choose_engine(tiny_tokenizer, [])
    assert as_lists(encode(texts, tiny_tokenizer, engine)) == by_hand(texts, tiny_tokenizer)


def test_a_document_that_spells_out_a_special_token_does_not_end_itself(tiny_tokenizer: LoadedTokenizer) -> None:
    texts = ["one", "a<|endoftext|>b", "two", "<|endoftext|>", "three <|endoftext|>"]
    engine = choose_engine(tiny_tokenizer, texts)
    assert engine.name == "gigatoken"
    encoded = encode(texts, tiny_tokenizer, engine)
    assert (encoded.ids == tiny_tokenizer.eos_id).sum() == len(texts)
    assert as_lists(encoded) == by_hand(texts, tiny_tokenizer)
    live = open_gigatoken(tiny_tokenizer.json, "")
    documents = [text.encode() for text in texts]
    assert live.left_to_reference(documents) == [1, 3, 4]
    # Nor does gigatoken itself know the token: one that only a normalizer spells out would not be found in the text.
    assert tiny_tokenizer.eos_id not in live.encode(documents)[0]


def test_documents_with_doubtful_characters_are_left_to_the_reference(tiny_tokenizer: LoadedTokenizer) -> None:
    live = Gigatoken(tiny_tokenizer.json, "\u00e9\u20ac\U0001f642")
    texts = ["plain", "caf\u00e9", "caf\u00e8", "\u20ac 5", "\u20ad 5", "so \U0001f642", "so \U0001f643", "\u0378"]
    # 0378 is no character of any Unicode yet; the border between documents hides nothing and adds nothing.
    texts += ["x" * 16, "<|endoftext|", "|>", "\ue000", "\u00e9"]
    found = live.left_to_reference([text.encode() for text in texts])
    assert [texts[n] for n in found] == ["caf\u00e9", "\u20ac 5", "so \U0001f642", "\u0378", "\u00e9"]
    places = ["x" * before + "\u00e9" + "x" * after for before in range(20) for after in range(10)]
    assert live.left_to_reference([place.encode() for place in places]) == list(range(200))
    assert live.left_to_reference([]) == []


def test_characters_on_which_gigatoken_differs_are_found_and_left_out(neox: LoadedTokenizer) -> None:
    # Two marks newer than the Unicode of the reference's NFC, in the order that only a newer one changes.
    text = "e\u08ce\u08d0"
    expected = neox.encode_batch([text])[0]
    ids, _ = Gigatoken(neox.json).encode([text.encode()])
    engine = choose_engine(neox, PROSE)
    assert engine.name == "gigatoken"
    assert (ids.tolist() == expected) == ("\u08d0" not in engine.exceptions)
    assert f"{len(engine.exceptions)} rare characters" in engine.reason or not engine.exceptions
    texts = [*difficult_texts(), *texts_by_character().values(), text, "  <|endoftext|>   two  spaces"]
    encoded = encode(texts, neox, engine)
    assert as_lists(encoded) == by_hand(texts, neox)
    rows = open_gigatoken(neox.json, engine.exceptions).left_to_reference([t.encode() for t in PROSE])
    assert rows == []  # spaces in a row are added tokens, too, but both read them alike


def test_real_documents_of_every_kind(
    tiny_tokenizer: LoadedTokenizer, neox: LoadedTokenizer, shared_data: Path
) -> None:
    from pyarrow import CompressedInputStream, OSFile

    texts = []
    for name in ("domain/technical/cpp_docs", "domain/medical/medquad", "general/storybooks", "domain/education/d2l"):
        with CompressedInputStream(OSFile(str(shared_data / f"{name}.jsonl.zst")), "zstd") as file:
            lines = file.read(400_000).decode(errors="ignore").split("\n")[:-1]
        texts += [json.loads(line)["text"] for line in lines[:30]]
    assert len(texts) > 100
    for tokenizer in (tiny_tokenizer, neox):
        engine = choose_engine(tokenizer, texts)
        assert engine.name == "gigatoken"
        assert as_lists(encode(texts, tokenizer, engine)) == by_hand(texts, tokenizer)


def test_a_tokenizer_that_gigatoken_cannot_read_is_left_to_the_reference() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "quick": 1, "[END]": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = LoadedTokenizer(words.to_str(), 2, None, 2, 0, 3, "words")
    engine = choose_engine(tokenizer, PROSE)
    assert engine.name == "tokenizers"
    assert engine.reason.startswith('gigatoken cannot read this tokenizer: Unsupported model type "WordLevel"')
    assert as_lists(encode(PROSE, tokenizer, engine)) == by_hand(PROSE, tokenizer)
    assert open_decoder(tokenizer) is None


def test_without_gigatoken_the_reference_is_used(
    tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch, broken: Break
) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    assert choose_engine(tiny_tokenizer, PROSE) == Engine("tokenizers", "gigatoken is not installed")


@pytest.mark.parametrize(
    ("where", "begins"),
    [
        ("quick", "gigatoken gives [0, "),
        ("\u00e9", "gigatoken differs on"),
        ("wordy", "gigatoken gives [0, "),
    ],
)
def test_any_difference_falls_back(
    tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch, broken: Break, where: str, begins: str
) -> None:
    """Differences: in the sample of the corpus, on more characters than can be left out, on difficult texts."""
    if where == "wordy":
        monkeypatch.setattr(tokenise, "difficult_texts", lambda: ("fine", "a wordy one"))
    if where == "\u00e9":
        monkeypatch.setattr(tokenise, "_MOST_EXCEPTIONS", 0)
    broken(where)
    engine = choose_engine(tiny_tokenizer, PROSE)
    assert engine.name == "tokenizers"
    assert engine.reason.startswith(begins)
    if where == "quick":
        assert engine.reason.endswith("at token 0 of 'The quick brown fox.'")


def test_a_difference_that_shows_during_the_run_is_an_error(tiny_tokenizer: LoadedTokenizer, broken: Break) -> None:
    engine = choose_engine(tiny_tokenizer, PROSE)
    broken("quick")
    with pytest.raises(UserError) as caught:
        encode(["first", PROSE[0], "last"], tiny_tokenizer, engine)
    expected = tiny_tokenizer.encode_batch(PROSE[:1])[0]
    assert str(caught.value).splitlines() == [
        "gigatoken differs from the reference tokenizer",
        f"  got       it gives {[0, *expected[1:4]]}, the reference {expected[:4]}, at token 0 of {PROSE[0]!r}",
        "  do        uninstall gigatoken, so that the slower tokenizers is used, and report the text to its makers",
    ]


def test_the_reference_gets_a_bounded_number_of_characters_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenise, "ENCODE_CHARACTERS", 5)
    assert tokenise._batches(["", "ab", "abc", "a", "abcdefg", "a", ""]) == [
        ["", "ab", "abc"],
        ["a"],
        ["abcdefg"],
        ["a", ""],
    ]
    assert tokenise._batches([]) == []


def test_the_tokenizer_is_made_anew_when_its_memory_has_grown(
    tiny_tokenizer: LoadedTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = Gigatoken(tiny_tokenizer.json)
    first = live._tokenizer
    memory = [gigatoken_engine.MEMORY_BYTES + live._resident_bytes]
    monkeypatch.setattr(gigatoken_engine, "_resident_bytes", lambda: memory[0])
    monkeypatch.setattr(gigatoken_engine, "CHECK_BYTES", 25_000)
    text = [b"some words " * 1000]
    before = live.encode(text)
    live.encode(text)
    live.encode(text)  # 33,000 bytes: looked at, and there is room
    memory[0] += 1
    live.encode(text)
    live.encode(text)
    assert live._tokenizer is first
    live.encode(text)
    assert live._tokenizer is not first
    for mine, theirs in zip(live.encode(text), before, strict=True):
        assert np.array_equal(mine, theirs)


def test_decoding_gives_the_bytes_back(tiny_tokenizer: LoadedTokenizer) -> None:
    live = Gigatoken(tiny_tokenizer.json)
    for text in difficult_texts():
        ids = np.array(tiny_tokenizer.encode_batch([text])[0], dtype=np.uint16)
        assert live.decode(ids) == text.encode()


def reasons(
    documents: list[list[int]],
    sizes: list[int],
    minimum: float | None = 1.5,
    bos_id: int | None = None,
    unknown_id: int | None = 0,
) -> list[str]:
    tokenizer = LoadedTokenizer("{}", 9, bos_id, 9, unknown_id, 10, "")
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    flat = [[*first, *document, 9] for document in documents]
    starts = np.cumsum([0, *map(len, flat)])
    encoded = Encoded(np.array([n for ids in flat for n in ids], dtype=np.uint16), starts)
    found, names = token_reasons(encoded, np.array(sizes), tokenizer, Fraction(1, 10), minimum)
    assert found.dtype == np.int8
    assert names == TOKEN_REASONS
    return ["" if n < 0 else names[n] for n in found.tolist()]


@pytest.mark.parametrize("bos_id", [None, 8, 0])
def test_token_rules(bos_id: int | None) -> None:
    documents = [[1] * 10, [1] * 9 + [0], [1] * 8 + [0] * 2, [1] * 10, [], [1] * 10, [1] * 8 + [0] * 2]
    sizes = [40, 40, 40, 14, 0, 15, 2]
    none, unknown, few = TOKEN_REASONS
    assert reasons(documents, sizes, bos_id=bos_id) == ["", "", unknown, few, none, "", unknown]
    assert reasons(documents, sizes, None, bos_id=bos_id) == ["", "", unknown, "", none, "", unknown]
    assert reasons(documents, sizes, bos_id=bos_id, unknown_id=None) == ["", "", "", few, none, "", few]
    assert reasons([], []) == []


def test_the_names_of_the_ledger() -> None:
    assert TOKEN_REASONS == ("tokens: none", "tokens: too many unknown", "tokens: too few bytes per token")
