import random
import unicodedata
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from onward.corpus.duplicates.exact import DigestSet, digest, is_held_out, normalise


def test_spelling_variants_of_one_text_are_one() -> None:
    assert normalise("  Ein  CAFÉ\n\tam Eck ") == "ein café am eck"
    assert digest(normalise(unicodedata.normalize("NFD", "Café"))) == digest(normalise("café"))
    assert digest(normalise("cafe")) != digest(normalise("café"))


@given(st.lists(st.integers(0, 2**128 - 1).filter(lambda value: value % 2**64), max_size=50), st.randoms())
def test_the_set_is_a_set(values: list[int], order: random.Random) -> None:
    values += values[:10]
    order.shuffle(values)
    known: set[int] = set()
    digests = DigestSet(slots=2)
    for value in values:
        assert (value in digests) == (value in known)
        assert digests.add(value) == (value not in known)
        known.add(value)
    assert len(digests) == len(known)


def test_digests_that_share_a_slot_or_a_half_are_different() -> None:
    digests = DigestSet(slots=8)
    values = [high << 64 | low for high in (0, 1, 2) for low in (1, 9, 17, 2)]
    assert all(digests.add(value) for value in values)
    assert all(value in digests for value in values)
    assert len(digests) == len(values)


def test_the_held_out_share_is_the_share() -> None:
    keys = [f"document {n}" for n in range(20_000)]
    held_out = sum(is_held_out(key, Fraction(3, 100)) for key in keys)
    assert abs(held_out - 600) < 4 * (20_000 * 0.03 * 0.97) ** 0.5
    assert {key for key in keys if is_held_out(key, Fraction(1, 100))} < {key for key in keys if is_held_out(key, 0.03)}
    assert not any(is_held_out(key, Fraction(0)) for key in keys)
    assert all(is_held_out(key, Fraction(1)) for key in keys)
