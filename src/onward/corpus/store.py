"""A prepared corpus, opened for the steps that read it."""

from dataclasses import dataclass
from pathlib import Path

from onward.corpus.ledger import Ledger, read_ledger
from onward.corpus.packing import Packing, load_packing
from onward.corpus.tokens import TokenStore


@dataclass(frozen=True)
class OpenCorpus:
    """tokens: by offset. packing: which of them make each sequence. ledger: where everything went."""

    tokens: TokenStore
    packing: Packing
    ledger: Ledger


def open_corpus(folder: Path) -> OpenCorpus:
    """Open a prepared corpus; tokens stay on disk until they are read."""
    return OpenCorpus(TokenStore(folder), load_packing(folder), read_ledger(folder))
