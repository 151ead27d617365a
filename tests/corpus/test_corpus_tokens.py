from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from onward.corpus.tokens import TokenStore, TokenWriter, token_dtype, token_reason


@pytest.mark.parametrize("vocabulary_size", [2**16, 2**16 + 1])
def test_documents_come_back_from_shards_and_cross_none(tmp_path: Path, vocabulary_size: int) -> None:
    dtype = token_dtype(vocabulary_size)
    generator = np.random.default_rng(0)
    documents = [generator.integers(0, vocabulary_size, size).astype(dtype) for size in (5, 90, 10, 1, 100, 3)]
    writer = TokenWriter(tmp_path, dtype, shard_tokens=100)
    offsets = [writer.append(document) for document in documents]
    writer.close()
    store = TokenStore(tmp_path)
    assert [len(np.load(path)) for path in sorted(tmp_path.glob("tokens-*.npy"))] == [95, 11, 100, 3]
    assert store.total_tokens == 209
    for offset, document in zip(offsets, documents, strict=True):
        tokens = store.read(offset, len(document))
        assert tokens.dtype == dtype
        assert (tokens == document).all()
    with pytest.raises(AssertionError, match="not in one shard"):
        store.read(90, 10)


def test_the_widest_id_of_each_width_is_kept() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


def test_token_rules() -> None:
    share = Fraction(1, 10)
    assert token_reason([1] * 10, 40, 0, share, 1.5) is None
    assert token_reason([1] * 9 + [0], 40, 0, share, 1.5) is None
    assert token_reason([1] * 8 + [0] * 2, 40, 0, share, 1.5) == "tokens: too many unknown"
    assert token_reason([1] * 8 + [0] * 2, 40, None, share, 1.5) is None
    assert token_reason([1] * 10, 14, 0, share, 1.5) == "tokens: too few bytes per token"
    assert token_reason([1] * 10, 14, 0, share, None) is None
    assert token_reason([], 3, 0, share, None) == "tokens: none"
