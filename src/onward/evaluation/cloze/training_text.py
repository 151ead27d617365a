"""A sample of the text that a model will be trained on, from the corpus around the held-out text."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from onward.corpus.blocks import block_name
from onward.corpus.store import open_corpus
from onward.model.tokenizer import read_saved_tokenizer

_LONGEST_TOKENS = 20_000
"""Of one document: a book would else be the whole sample."""


def sample_training_text(folder: Path, tokens: int, seed: int) -> list[str]:
    """Return documents, drawn at random from a prepared corpus, of about so many tokens together, decoded."""
    corpus = open_corpus(folder)
    tables = [pq.read_table(folder / block_name("documents", n, "parquet")) for n in range(corpus.num_blocks)]
    offsets = np.concatenate([np.asarray(table["offset"]) for table in tables])
    lengths = np.concatenate([np.asarray(table["length"]) for table in tables])
    order = np.random.default_rng(seed).permutation(len(offsets))
    sizes = np.minimum(lengths[order], _LONGEST_TOKENS)
    chosen = order[: int(np.searchsorted(np.cumsum(sizes), tokens)) + 1]
    tokenizer = read_saved_tokenizer(folder / "tokenizer").fast()
    spans = zip(offsets[chosen].tolist(), lengths[chosen].tolist(), strict=True)
    ids = [corpus.read(offset, min(length, _LONGEST_TOKENS)).tolist() for offset, length in spans]
    return [str(text) for text in tokenizer.decode_batch(ids, skip_special_tokens=True)]
