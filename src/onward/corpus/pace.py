"""Pace: how fast the text goes by, for the display."""

import time

from onward.corpus.ledger import Tally


class Pace:
    """Rates since the start, finished blocks of an earlier call left out."""

    def __init__(self, tally: Tally) -> None:
        self._started = time.perf_counter()
        self._bytes, self._documents, self._tokens = tally.read.bytes, tally.read.documents, tally.kept_tokens

    def facts(self, tally: Tally) -> str:
        """Describe what was read and how fast: MB of text, documents and kept tokens a second."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        documents = (tally.read.documents - self._documents) / seconds
        tokens = (tally.kept_tokens - self._tokens) / 1e6 / seconds
        rate = (tally.read.bytes - self._bytes) / 1e6 / seconds
        return (
            f"{tally.read.documents:,} documents  {rate:.1f} MB/s  {documents:,.0f} documents/s  {tokens:.2f}M tokens/s"
        )
