from pathlib import Path

import numpy as np
import pytest

from onward.corpus.tokens import open_tokens, token_dtype


def test_the_widest_id_of_each_width_is_kept() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


@pytest.mark.parametrize("length", [0, 1, 1000])
def test_a_shard_comes_back_as_a_memory_map(tmp_path: Path, length: int) -> None:
    tokens = np.arange(length, dtype=np.uint16)
    np.save(tmp_path / "tokens.npy", tokens)
    found = open_tokens(tmp_path / "tokens.npy")
    assert found.dtype == np.uint16
    assert np.array_equal(found, tokens)
    assert isinstance(found, np.memmap) or not length
