"""What a corpus's sampled documents are like: how varied, how long, and how the base model that wrote them finds them.

Diversity is measured as distinct n-grams per n-gram (Li et al. 2016, arXiv 1510.03055) over words, and by how far zstd
compresses the text. Both depend on how much text is looked at, so other text of the corpus is measured over as much.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import orjson
import zstandard
from numpy.typing import NDArray

from onward.artifact import write_json
from onward.corpus.blocks import block_name
from onward.corpus.self_replay import SOURCE, SampleLog
from onward.corpus.survey import batches
from onward.corpus.tables import HELD_OUT_FILE
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import split_words
from onward.corpus.tokens import open_tokens
from onward.model.sampled import Sampled
from onward.model.tokenizer import LoadedTokenizer

FILE = "samples.json"
DISTINCT = (1, 2, 3, 4)
LONG_NGRAM = 8
"""Words in the n-grams whose repetition is counted: too many to be repeated by chance."""
_MEASURED_BYTES = 4_000_000
_ZSTD_LEVEL = 9
_TEXT_ROWS = 256


@dataclass(frozen=True)
class Diversity:
    """How varied a text is.

    documents, words, bytes: of the text looked at. distinct: different n-grams over all, for n of DISTINCT.
    repeated: share of the n-grams of LONG_NGRAM words that stood before. compression: bytes over those that zstd makes.
    """

    documents: int
    words: int
    bytes: int
    distinct: tuple[float, ...]
    repeated: float
    compression: float


@dataclass(frozen=True)
class Samples:
    """Facts about sampled documents; all but `sampled` are of those kept to be trained on.

    mean_tokens, median_tokens: drawn for a document, its end left out. by_model: share that the model ended itself.
    nats, entropy: per token, of the base model's own distribution (temperature 1, all tokens); sampled from just that
    they are equal up to chance. other: text of the same corpus that was not sampled, None where there is none.
    """

    sampled: int
    kept: int
    mean_tokens: float
    median_tokens: float
    by_model: float
    nats: float
    bits_per_byte: float
    entropy: float
    text: Diversity
    other: Diversity | None

    def save(self, folder: Path) -> None:
        """Write samples.json."""
        write_json(folder / FILE, asdict(self))


@dataclass(frozen=True, slots=True)
class _Fact:
    """What the log says of a document, without its text."""

    is_kept: bool
    tokens: int
    bytes: int
    is_ended: bool
    nats: float
    entropy: float

    @classmethod
    def of(cls, one: Sampled, is_kept: bool) -> "_Fact":
        size = len(one.text.encode("utf-8", errors="surrogatepass"))
        return cls(is_kept, one.tokens, size, one.is_ended, one.nats, one.entropy)


def read_samples(folder: Path) -> Samples | None:
    """Read what `Samples.save` wrote; None for a corpus without sampled documents."""
    if not (folder / FILE).is_file():
        return None
    content = orjson.loads((folder / FILE).read_bytes())
    text, other = (
        None if row is None else Diversity(**{**row, "distinct": tuple(row["distinct"])})
        for row in (content.pop("text"), content.pop("other"))
    )
    assert text is not None
    return Samples(**content, text=text, other=other)


def describe_samples(folder: Path, blocks: int, log: SampleLog, tokenizer: LoadedTokenizer) -> Samples:
    """Describe the sampled documents of a corpus whose blocks are finished and whose held-out text is written."""
    tables = [folder / block_name("documents", number, "parquet") for number in range(blocks)]
    rows = (row for batch in batches(tables, ("id", "source")) for row in batch.to_pylist())
    ids = {row["id"] for row in rows if row["source"] == SOURCE}
    facts = [_Fact.of(logged.sampled, logged.id in ids) for logged in log.read()]
    kept = [fact for fact in facts if fact.is_kept]
    text = _within(_texts(folder, blocks, tokenizer, True), _MEASURED_BYTES)
    other = _within(_others(folder, blocks, tokenizer), _MEASURED_BYTES)
    size = min(_size(text), _size(other) or _MEASURED_BYTES)
    tokens = max(1, sum(fact.tokens for fact in kept))
    nats = sum(fact.nats for fact in kept)
    return Samples(
        sampled=len(facts),
        kept=len(kept),
        mean_tokens=tokens / max(1, len(kept)),
        median_tokens=float(np.median([fact.tokens for fact in kept])) if kept else 0.0,
        by_model=sum(fact.is_ended for fact in kept) / max(1, len(kept)),
        nats=nats / tokens,
        bits_per_byte=nats / math.log(2) / max(1, sum(fact.bytes for fact in kept)),
        entropy=sum(fact.entropy for fact in kept) / tokens,
        text=diversity(_within(iter(text), size)),
        other=diversity(_within(iter(other), size)) if other else None,
    )


def diversity(texts: list[str]) -> Diversity:
    """Measure how varied texts are; n-grams do not cross from one to the next, and words are compared in lower case."""
    words = split_words(batch_of(texts))
    owners = np.repeat(np.arange(len(texts)), np.diff(words.starts))
    are_words = words.folded != 0
    hashes, owners = words.folded[are_words], owners[are_words]
    shares = {n: _distinct(hashes, owners, n) for n in (*DISTINCT, LONG_NGRAM)}
    whole = "\n".join(texts).encode("utf-8", errors="surrogatepass")
    packed = len(zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(whole))
    distinct = tuple(shares[n] for n in DISTINCT)
    ratio = len(whole) / packed if whole else 1.0
    return Diversity(len(texts), len(hashes), len(whole), distinct, 1 - shares[LONG_NGRAM], ratio)


def _distinct(hashes: NDArray[np.uint64], owners: NDArray[np.int64], n: int) -> float:
    """Return different n-grams over all n-grams, 1 where there is none."""
    count = len(hashes) - n + 1
    if count <= 0:
        return 1.0
    grams = np.zeros(count, dtype=np.uint64)
    for place in range(n):  # a polynomial in an odd number, modulo 2^64
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + hashes[place : place + count]
    grams = grams[owners[:count] == owners[n - 1 :]]
    return len(np.unique(grams)) / len(grams) if len(grams) else 1.0


def _texts(folder: Path, blocks: int, tokenizer: LoadedTokenizer, are_sampled: bool) -> Iterator[str]:
    """Yield kept texts, read from their tokens: what the model is trained on."""
    first = 0
    for number in range(blocks):
        tokens = open_tokens(folder / block_name("tokens", number, "npy"))
        for batch in batches([folder / block_name("documents", number, "parquet")], ("source", "offset", "length")):
            for row in batch.to_pylist():
                if (row["source"] == SOURCE) == are_sampled:
                    begin = row["offset"] - first
                    yield tokenizer.decode(tokens[begin : begin + row["length"]].tolist())
        first += len(tokens)


def _others(folder: Path, blocks: int, tokenizer: LoadedTokenizer) -> Iterator[str]:
    """Yield texts that were not sampled: kept ones, or, where there is none, held-out ones."""
    found = False
    for text in _texts(folder, blocks, tokenizer, False):
        found = True
        yield text
    if not found:
        for batch in batches([folder / HELD_OUT_FILE], ("source", "text"), _TEXT_ROWS):
            yield from (row["text"] for row in batch.to_pylist() if row["source"] != SOURCE)


def _within(texts: Iterator[str], size_bytes: int) -> list[str]:
    """Return the first texts, as many as hold so many bytes; the last one is cut."""
    taken, left = [], size_bytes
    for text in texts:
        content = text.encode("utf-8", errors="surrogatepass")
        taken.append(text if len(content) <= left else content[:left].decode("utf-8", errors="ignore"))
        left -= len(content)
        if left <= 0:
            break
    return taken


def _size(texts: list[str]) -> int:
    return sum(len(text.encode("utf-8", errors="surrogatepass")) for text in texts)
