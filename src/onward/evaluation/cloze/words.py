"""Text cut into pieces (words, ends of sentences, other marks) that are numbered, and into sentences."""

import re
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]

BOUNDARY, NUMBER, UNKNOWN = 0, 1, 2
"""Folded ids of what ends a sentence, of numbers, and of words beyond the limit of the n-gram model."""
_PIECE = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*|[.!?]+(?=[\s\"')\]”’]|$)|\n+|[^\w\s]")
_SENTENCE_END = re.compile(r"\n\s*|(?<=[.!?])[\"')\]”’]*\s+(?=[\"'(\[“‘]?[^\W_a-zß-öø-ÿ])")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:[^\W\d_]|[^\W\d_]\.[^\W\d_]|Dr|Mr|Mrs|Ms|St|vs|etc|al|Fig|Figs|No|Nos|Vol|Eq|Sec|Ch|ca|cf|approx)\.$"
)


@dataclass(frozen=True)
class Document:
    """A text with its pieces. pieces: ids of the surface forms; begins: where each stands, in characters.

    source: of the corpus, None where it is unknown. group: cluster of the bootstrap.
    """

    id: str
    source: str | None
    group: str
    text: str
    pieces: Ids
    begins: Ids


@dataclass
class Vocabulary:
    """Surface forms by id, and the id of each one's folded form: lower case, all numbers alike, all ends alike."""

    surfaces: list[str] = field(default_factory=list)
    folded: list[int] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)
    _folded_index: dict[str, int] = field(default_factory=lambda: {"\n": BOUNDARY, "0": NUMBER, "\0": UNKNOWN})

    def ids(self, pieces: list[str]) -> Ids:
        """Return the ids of pieces, numbering those that are new."""
        index = self._index
        for piece in dict.fromkeys(pieces):  # in the order of the text: a set's order varies between runs
            if piece not in index:
                self._add(piece)
        return np.fromiter(map(index.__getitem__, pieces), dtype=np.int32, count=len(pieces))

    @property
    def num_folded(self) -> int:
        """How many folded forms there are; their ids are below."""
        return len(self._folded_index)

    def _add(self, piece: str) -> None:
        form = piece.lower()
        if piece[0] in ".!?\n":
            form = "\n"
        elif piece[0].isdigit() and not any(character.isalpha() for character in piece):
            form = "0"
        self._index[piece] = len(self.surfaces)
        self.surfaces.append(piece)
        self.folded.append(self._folded_index.setdefault(form, len(self._folded_index)))


def cut(vocabulary: Vocabulary, texts: list[str]) -> list[Ids]:
    """Return the pieces of texts whose places are not needed."""
    return [vocabulary.ids(_PIECE.findall(text)) for text in texts]


def read_document(vocabulary: Vocabulary, id: str, source: str | None, group: str, text: str) -> Document:
    """Cut a text into pieces that know where they stand."""
    found = [(match.start(), match.group()) for match in _PIECE.finditer(text)]
    begins = np.array([begin for begin, _ in found], dtype=np.int32)
    return Document(id, source, group, text, vocabulary.ids([piece for _, piece in found]), begins)


def sentences(text: str) -> list[tuple[int, int]]:
    """Return (begin, end) of each sentence in characters.

    A line ends one unless the next goes on with a small letter, as in text that was broken into lines; an abbreviation
    ends none.
    """
    spans, begin = [], 0
    for match in _SENTENCE_END.finditer(text):
        if _goes_on(text, match.start(), match.end()):
            continue
        end = match.start() + len(match.group().rstrip())
        if text[begin:end].strip():
            spans.append((begin, end))
        begin = match.end()
    if text[begin:].strip():
        spans.append((begin, len(text.rstrip())))
    return spans


def _goes_on(text: str, end: int, begin: int) -> bool:
    """Return whether a sentence goes on over what looks like its end, from `end` to the next `begin`."""
    if text[end] == "\n":
        return text[end:begin].count("\n") == 1 and text[begin : begin + 1].islower() and text[end - 1] not in ".!?:"
    return _ABBREVIATION.search(text, max(0, end - 12), end) is not None
