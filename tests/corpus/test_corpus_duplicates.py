"""Exact duplicates and the held-out split: the normalised text, its digest, the side it falls on."""

import unicodedata
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.corpus.duplicates.exact import digests, held_out_flags, is_held_out, split_hash, split_hashes
from onward.corpus.duplicates.normalised import normalise, normalised
from onward.corpus.text.batch import batch_of


def by_python(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def assert_all_equal(texts: list[str]) -> None:
    batch = normalised(batch_of(texts))
    assert [batch.text(n) for n in range(len(batch))] == [by_python(text) for text in texts]


def test_spelling_variants_of_one_text_are_one() -> None:
    assert_all_equal(["  Ein  CAFÉ\n\tam Eck ", unicodedata.normalize("NFD", "Café"), "ΟΔΟΣ", "İstanbul", "", " \n "])
    variants = ["  Ein  CAFÉ\n\tam Eck ", "ein café am eck", unicodedata.normalize("NFD", "ein Café am\u00a0Eck")]
    assert len(set(digests(normalised(batch_of(variants))).tolist())) == 1
    assert len(set(digests(normalised(batch_of(["café", "cafe"]))).tolist())) == 2


ANY = st.characters(exclude_categories=["Cs"])
# Characters that compose, reorder, or are lowered by what is around them, among ordinary ones.
TELLING = st.sampled_from(
    [*"aA eE\n\t\x1c\x85\u00a0\u2003ΣσςİIıǅÅÅKΩẞßȺé’“—日🙂𝔸𐐀", "\u0301", "\u0323", "가", "\u11a8"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.one_of(ANY, TELLING), max_size=30), max_size=6))
def test_compiled_text_is_what_python_makes_of_it(texts: list[str]) -> None:
    assert_all_equal(texts)


def test_every_character_is_normalised_as_python_does_it() -> None:
    codes = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and code not in range(0x31000, 0xE0000)]
    # Each alone between letters; and by the hundred, so that most texts hold no special one and stay compiled.
    assert_all_equal([f"A{chr(code)}b" for code in codes])
    assert_all_equal([unicodedata.normalize("NFD", chr(code)) for code in codes])
    assert_all_equal(["".join(map(chr, codes[at : at + 100])) for at in range(0, len(codes), 100)])


@pytest.mark.parametrize("name", ["education/openstax_us-history", "technical/powershell_docs", "education/d2l"])
def test_real_text_is_normalised_as_python_does_it(shared_data: Path, name: str) -> None:
    packed = (shared_data / "domain" / f"{name}.jsonl.zst").read_bytes()
    lines = zstandard.ZstdDecompressor().stream_reader(packed).read().decode().splitlines()
    assert_all_equal(lines[:300])


def test_digests_are_the_low_half_of_xxh3_128() -> None:
    texts = ["", "one", "two words", "x" * 10_000]
    expected = [xxhash.xxh3_128_intdigest(text.encode()) % 2**64 for text in texts]
    assert digests(batch_of(texts)).tolist() == expected
    assert digests(batch_of([])).tolist() == []


def test_a_digest_of_zero_is_a_key_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xxhash, "xxh3_128_digest", lambda _: b"\1" * 8 + bytes(8))
    assert digests(batch_of(["text"])).tolist() == [1]


def test_the_group_decides_the_side_where_there_is_one() -> None:
    hashes = split_hashes(batch_of(["one", "two", "three"]), [None, "Group", ""])
    assert hashes.tolist() == [xxhash.xxh3_64_intdigest(key) for key in (b"one", b"Group", b"")]
    assert hashes.tolist() == [split_hash(key) for key in ("one", "Group", "")]


@given(
    st.one_of(st.fractions(0, 1), st.floats(0, 1), st.sampled_from([0, 1, Fraction(1, 3), 1 - Fraction(1, 2**64)])),
    st.lists(st.integers(0, 2**64 - 1)),
)
def test_hashes_are_compared_with_the_share_exactly(share: Fraction | float, hashes: list[int]) -> None:
    border = int(share * 2**64)  # the hashes that rounding would put on the wrong side
    hashes += [value for value in (border - 1, border, border + 1) if 0 <= value < 2**64]
    flags = held_out_flags(np.array(hashes, dtype=np.uint64), share)
    assert flags.tolist() == [value < Fraction(share) * 2**64 for value in hashes]


def test_the_held_out_share_is_the_share() -> None:
    keys = [f"document {n}" for n in range(20_000)]
    hashes = split_hashes(batch_of(keys), [None] * len(keys))
    flags = held_out_flags(hashes, Fraction(3, 100))
    assert flags.tolist() == [is_held_out(key, Fraction(3, 100)) for key in keys]
    assert abs(flags.sum() - 600) < 4 * (20_000 * 0.03 * 0.97) ** 0.5
    assert not (held_out_flags(hashes, Fraction(1, 100)) & ~flags).any()
    assert not held_out_flags(hashes, Fraction(0)).any()
    assert held_out_flags(hashes, Fraction(1)).all()


def test_normalise_defines_the_batch() -> None:
    texts = ["  A\tB ", "Straße", "e\u0301"]
    assert [normalise(text) for text in texts] == [by_python(text) for text in texts]
