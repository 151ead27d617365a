"""Where the time of the chain goes: each part timed on the very chunks, in one process, through public functions.

The chain is given an engine of its own kind, which works on a chunk when its result is asked for and then does the
parts of that work once more, one after the other. So what lies between two results is reading and sorting. Times are
of the processor, so that a busy machine does not blur them; waiting for the disk is not among them.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from onward.corpus.contamination.scan import scan
from onward.corpus.documents import Document
from onward.corpus.duplicates.exact import digests, split_hashes
from onward.corpus.duplicates.minhash import band_keys
from onward.corpus.duplicates.normalised import normalised
from onward.corpus.duplicates.passages import passage_keys
from onward.corpus.engine import Workers
from onward.corpus.examine import Rules, Task
from onward.corpus.quality.judge import judge
from onward.corpus.reading.chunks import open_chunk
from onward.corpus.reading.unicode import clean_text
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import split_words
from onward.corpus.tokenise import encode

PARTS = {
    "read": "read and decompress",
    "parse": "parse the records",
    "unicode": "Unicode",
    "batch": "texts to one buffer",
    "words": "split words",
    "quality": "quality rules",
    "exact": "normalise and digest",
    "near": "MinHash",
    "passages": "sample of passages",
    "contamination": "benchmark items",
    "tokens": "tokenise",
    "rest": "the rest of a worker's work",
    "sort": "look up, write, pack blocks",
    "finish": "close the corpus",
}
"""Every part in the order of the work; together they are the whole chain."""
_LEFT_OUT = 2
"""Chunks that the engine does before it asks for workers."""


class Shares:
    """CPU seconds of each part over the chunks that were timed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes = 0
        self._mark = 0.0
        self._chunks = 0

    def begin(self) -> None:
        """Reading begins."""
        self._mark = time.process_time()

    def read(self) -> None:
        """A chunk was read."""
        self._take("read")

    def worked(self, work: Callable[[Task], Any], task: Task) -> Any:
        """Do the work on a chunk, then its parts, which cost no part anything."""
        self._take("read")
        result = work(task)
        whole = self._take("work")
        parts = sum(self._parts(task, work.keywords["rules"]))  # type: ignore[attr-defined]
        self.seconds["rest"] += whole - parts
        self._mark = time.process_time()
        return result

    def sorted(self) -> None:
        """A chunk was sorted."""
        self._chunks += 1
        self._take("sort")
        if self._chunks <= _LEFT_OUT:
            self.seconds.clear()

    def end(self) -> None:
        """The corpus is closed."""
        self._take("finish")

    def milliseconds(self) -> dict[str, float]:
        """Return what each part takes for a MB of text, in order."""
        return {name: max(0.0, self.seconds[name]) * 1e9 / max(1, self.bytes) for name in PARTS}

    def _take(self, part: str) -> float:
        now = time.process_time()
        taken, self._mark = now - self._mark, now
        self.seconds[part] += taken
        return taken

    def _parts(self, task: Task, rules: Rules) -> Iterator[float]:
        """Do each part alone; yield its seconds."""
        self._mark = time.process_time()
        documents = [item for item in open_chunk(task.chunk, task.fields) if isinstance(item, Document)]
        yield self._take("parse")
        texts = [clean_text(document.text, rules.unicode) for document in documents]
        yield self._take("unicode")
        batch = batch_of(texts)
        yield self._take("batch")
        self.bytes += len(batch.buffer)
        self._mark = time.process_time()
        words = split_words(batch)
        yield self._take("words")
        assert rules.quality is not None
        kept = np.flatnonzero(judge(batch, words, rules.quality).reason < 0).tolist()
        yield self._take("quality")
        normal = normalised(batch)
        digests(normal)
        split_hashes(normal, [document.group for document in documents])
        yield self._take("exact")
        assert rules.near is not None
        band_keys(words, rules.near)
        yield self._take("near")
        if rules.looks_at_passages:
            passage_keys(words)
            yield self._take("passages")
        assert rules.items is not None
        scan(batch, words, rules.items)
        yield self._take("contamination")
        encode([texts[n] for n in kept], rules.tokenizer, rules.engine)
        yield self._take("tokens")


class _Later:
    """A chunk that is worked on when its result is asked for."""

    def __init__(self, shares: Shares, work: Callable[[Task], Any], task: Task) -> None:
        self._ask = lambda: shares.worked(work, task)

    def is_done(self) -> bool:
        """It is done when it is asked for."""
        return True

    def result(self) -> Any:
        """Do the work."""
        return self._ask()


class _Here:
    """Workers that are this process."""

    count = 1

    def __init__(self, shares: Shares, work: Callable[[Task], Any]) -> None:
        self._shares, self._work = shares, work

    def send(self, task: Task) -> _Later:
        """Keep a chunk that has been read."""
        self._shares.read()
        return _Later(self._shares, self._work, task)


def measured(shares: Shares) -> Callable[[Callable[[Task], Any]], AbstractContextManager[Workers[Task, Any]]]:
    """Return what starts the engine that fills the shares."""

    @contextmanager
    def start(work: Callable[[Task], Any]) -> Iterator[Workers[Task, Any]]:
        yield _Here(shares, work)

    return start
