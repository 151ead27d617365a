"""What is found out about the documents of a chunk: a pure function, so any process on any machine may run it.

Everything is columns over the chunk's documents: one pass of compiled code for each question, no object for each
document. The text as read is judged; what C4's line rules or cut passages take out of a document is taken out before
its tokens are made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from onward.corpus.contamination.index import ItemIndex
from onward.corpus.contamination.scan import cut_items, scan
from onward.corpus.contamination.table import excerpt
from onward.corpus.documents import Document, Fields, Unreadable
from onward.corpus.duplicates.exact import digests, held_out_flags, split_hashes
from onward.corpus.duplicates.minhash import band_keys
from onward.corpus.duplicates.normalised import normalised
from onward.corpus.duplicates.passages import Passages, passage_keys
from onward.corpus.histograms import Histograms
from onward.corpus.quality.judge import judge
from onward.corpus.reading.chunks import Chunk, items_in
from onward.corpus.reading.unicode import clean_text
from onward.corpus.text.batch import batch_of
from onward.corpus.text.words import split_words
from onward.corpus.tokenise import Engine, TokenIds, encode, token_reasons
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Contamination, NearDuplicates, Quality

BATCH_CHARACTERS = 4_000_000
"""Text examined at once; words take some ten times the memory of their text."""
EXCERPT_CHARACTERS = 200
C4_LINES = "lines taken out (c4)"
PASSAGES = "passages of benchmarks cut out"


@dataclass(frozen=True)
class Rules:
    """What documents are examined by. near and items: None switches near-duplicates and contamination off.

    looks_at_passages: whether the passages of documents are compared as well.
    """

    unicode: Literal["nfc", "repair"] | None
    quality: Quality | None
    near: NearDuplicates | None
    looks_at_passages: bool
    contamination: Contamination | None
    items: ItemIndex | None
    held_out_share: Fraction
    tokenizer: LoadedTokenizer
    engine: Engine
    maximum_unknown: Fraction
    minimum_bytes_per_token: float | None

    @property
    def key_columns(self) -> int:
        """The exact digest and the bands of a signature."""
        return 1 + (self.near.bands if self.near else 0)


@dataclass(frozen=True)
class Task:
    """A chunk and how to read it.

    scored: its documents are held out as they are, chosen by hand. position: where reading goes on after it.
    """

    chunk: Chunk
    fields: Fields
    scored: bool
    position: Any


@dataclass(frozen=True)
class Touched:
    """A benchmark item found in a document of the chunk. score: share of the item's n-grams."""

    document: int
    item: int
    score: float
    excerpt: str


@dataclass(frozen=True)
class Examined:
    """Columns over the n documents of a chunk, and its unreadable records.

    read_bytes, kept_bytes: UTF-8 as read, and after what was taken out. reason: int16[n], index into `reasons` of what
    drops a document, -1 for none; contaminated: bool[n], dropped for a benchmark item. keys: uint64[n, columns], the
    exact digest and the near-duplicate bands (0: none). passages: a sample of each document's (None: off). order:
    uniform 64-bit hash that orders held-out text. tokens, starts: the ids of document d are those from starts[d] to
    starts[d + 1], none where it has none. digest: xxh3-64 of the kept text. trimmed: bytes taken out, by rule.
    held_out_texts: (text, group) of each held-out document. unreadable: with the number of documents before each.
    """

    ids: list[str]
    sources: list[str]
    read_bytes: NDArray[np.int64]
    kept_bytes: NDArray[np.int64]
    reason: NDArray[np.int16]
    reasons: tuple[str, ...]
    contaminated: NDArray[np.bool_]
    keys: NDArray[np.uint64]
    passages: Passages | None
    held_out: NDArray[np.bool_]
    order: NDArray[np.uint64]
    tokens: TokenIds
    starts: NDArray[np.int64]
    digest: NDArray[np.int64]
    excerpts: list[str]
    trimmed: dict[str, NDArray[np.int64]]
    held_out_texts: dict[int, tuple[str, str | None]]
    touched: tuple[Touched, ...]
    unreadable: tuple[tuple[int, Unreadable], ...]
    histograms: Histograms


def examine(task: Task, rules: Rules) -> tuple[Examined, ...]:
    """Open a chunk and apply every rule that needs only the document itself.

    A usual chunk is one batch; the parts of a record of a hundred megabytes are several, so that memory stays small.
    """
    examined = []
    documents: list[Document] = []
    unreadable: list[tuple[int, Unreadable]] = []
    characters = 0
    for item in items_in(task.chunk, task.fields):
        if isinstance(item, Unreadable):
            unreadable.append((len(documents), item))
            continue
        if characters + len(item.text) > BATCH_CHARACTERS and documents:
            examined.append(_examine(documents, unreadable, rules, task.scored))
            documents, unreadable, characters = [], [], 0
        documents.append(item)
        characters += len(item.text)
    return (*examined, _examine(documents, unreadable, rules, task.scored))


def _examine(
    documents: list[Document], unreadable: list[tuple[int, Unreadable]], rules: Rules, scored: bool
) -> Examined:
    draft = _Draft(documents, rules, scored)
    draft.judge()
    draft.identify()
    draft.decontaminate()
    tokens, starts = draft.tokenise()
    return Examined(
        ids=[document.id for document in documents],
        sources=[document.source for document in documents],
        read_bytes=draft.read_bytes,
        kept_bytes=draft.kept_bytes,
        reason=draft.reason,
        reasons=tuple(draft.reasons),
        contaminated=draft.contaminated,
        keys=draft.keys,
        passages=draft.passages,
        held_out=draft.held_out,
        order=draft.order,
        tokens=tokens,
        starts=starts,
        digest=draft.digest,
        excerpts=[text[:EXCERPT_CHARACTERS] for text in draft.texts],
        trimmed=draft.trimmed,
        held_out_texts={int(n): (draft.texts[n], documents[n].group) for n in np.flatnonzero(draft.held_out)},
        touched=tuple(draft.touched),
        unreadable=tuple(unreadable),
        histograms=draft.histograms,
    )


class _Draft:
    """The columns while they are being filled."""

    def __init__(self, documents: Sequence[Document], rules: Rules, scored: bool) -> None:
        self.rules, self.scored = rules, scored
        self.groups = [document.group for document in documents]
        self.texts = [clean_text(document.text, rules.unicode) for document in documents]
        self.batch = batch_of(self.texts)
        self.read_bytes = self.batch.sizes()
        self.kept_bytes = self.read_bytes.copy()
        count = len(documents)
        self.reason = np.full(count, -1, dtype=np.int16)
        self.reasons: list[str] = []
        self.contaminated = np.zeros(count, dtype=np.bool_)
        self.digest = np.zeros(count, dtype=np.int64)
        self.trimmed: dict[str, NDArray[np.int64]] = {}
        self.touched: list[Touched] = []
        self.histograms = Histograms()
        is_plain = scored and rules.near is None and not rules.looks_at_passages
        self.words = None if is_plain else split_words(self.batch)

    def judge(self) -> None:
        """Apply the quality rules; documents whose lines were taken out go on with what is left."""
        if self.scored or self.rules.quality is None:
            return
        assert self.words is not None
        judgement = judge(self.batch, self.words, self.rules.quality)
        self.reason[:] = judgement.reason
        self.reasons += judgement.reasons
        self.histograms.add(judgement.measures)
        self._trim(C4_LINES, judgement.trimmed)
        if judgement.trimmed:
            self.batch = batch_of(self.texts)
            self.words = split_words(self.batch)

    def identify(self) -> None:
        """Find the keys of duplicates and the side of the held-out split."""
        normal = normalised(self.batch)
        exact = digests(normal)
        split = split_hashes(normal, self.groups)
        self.keys = np.zeros((len(self.texts), self.rules.key_columns), dtype=np.uint64)
        self.keys[:, 0] = exact
        if self.rules.near is not None:
            assert self.words is not None
            self.keys[:, 1:] = band_keys(self.words, self.rules.near)
        self.passages = None
        if self.rules.looks_at_passages:
            assert self.words is not None
            self.passages = passage_keys(self.words)
        share = Fraction(1) if self.scored else self.rules.held_out_share
        self.held_out = held_out_flags(split, share) & (self.reason < 0)
        # Held out by the group, ordered by the text: a prefix then draws from all held-out groups, not from one.
        grouped = np.fromiter((group is not None for group in self.groups), dtype=np.bool_, count=len(self.groups))
        self.order = np.where(grouped, exact, split)

    def decontaminate(self) -> None:
        """Look for benchmark items in what may be trained on."""
        rules, section = self.rules, self.rules.contamination
        if self.scored or section is None or rules.items is None:
            return
        assert self.words is not None
        cut: dict[int, str] = {}
        for hit in scan(self.batch, self.words, rules.items):
            document = hit.document
            if self.reason[document] >= 0 or self.held_out[document]:
                continue
            self.touched.append(Touched(document, hit.item, hit.score, excerpt(self.batch, hit)))
            if section.action == "drop":
                self.contaminated[document] = True
            elif section.action == "cut" and document not in cut:
                cut[document] = cut_items(self.texts[document], rules.items)
                self.contaminated[document] = not cut[document]
        self._trim(PASSAGES, {document: text for document, text in cut.items() if text})

    def tokenise(self) -> tuple[TokenIds, NDArray[np.int64]]:
        """Tokenise what may be kept, and drop what its tokens speak against."""
        rules = self.rules
        rows = np.flatnonzero((self.reason < 0) & ~self.held_out & ~self.contaminated)
        texts = [self.texts[n] for n in rows.tolist()]
        encoded = encode(texts, rules.tokenizer, rules.engine)
        found, names = token_reasons(
            encoded, self.kept_bytes[rows], rules.tokenizer, rules.maximum_unknown, rules.minimum_bytes_per_token
        )
        lengths = np.zeros(len(self.texts), dtype=np.int64)
        lengths[rows] = np.diff(encoded.starts)
        starts = np.zeros(len(self.texts) + 1, dtype=np.int64)
        np.cumsum(lengths, out=starts[1:])
        self.reason[rows] = np.where(found < 0, self.reason[rows], found + len(self.reasons))
        self.reasons += names
        self.digest[rows] = np.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], dtype=np.uint64).view(
            np.int64
        )
        return encoded.ids, starts

    def _trim(self, rule: str, texts: dict[int, str]) -> None:
        """Go on with shorter texts, and count what was taken out."""
        taken = np.zeros(len(self.texts), dtype=np.int64)
        for n, text in texts.items():
            size = len(text.encode())
            taken[n] = self.kept_bytes[n] - size
            self.kept_bytes[n] = size
            self.texts[n] = text
        if texts:
            self.trimmed[rule] = taken
