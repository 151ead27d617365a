"""Self-generated replay: documents sampled from the base model, for bases whose training text is not public."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from onward.corpus.documents import Document
from onward.model.sampled import Sampled
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import SelfReplay

SOURCE = "self-replay"


class Generate(Protocol):
    """Samples documents from the base model by the section's settings and a seed, as many as it is asked for."""

    def __call__(self, settings: SelfReplay, seed: int, first: int, made: int) -> Iterator[Sampled]:
        """first: number of the document to begin with. made: tokens made before it, with the documents' ends."""


@dataclass(frozen=True)
class Logged:
    """A sampled document; tokens: as the tokenizer reads its text again, which may be fewer than were drawn."""

    sampled: Sampled
    tokens: int

    @property
    def id(self) -> str:
        """The document's name in the corpus."""
        return f"self-{self.sampled.number + 1:05d}"


class SampleLog:
    """What was sampled so far, one line a document, in a file that outlives a kill: nothing is sampled twice."""

    def __init__(self, path: Path) -> None:
        whole = path.read_bytes() if path.exists() else b""
        whole = whole[: whole.rfind(b"\n") + 1]  # a kill may have cut the last line
        with open(path, "ab") as file:
            file.truncate(len(whole))
        self.path = path

    def read(self) -> Iterator[Logged]:
        """Yield every sampled document, in order."""
        with open(self.path, "rb") as file:
            for line in file:
                row: dict[str, Any] = orjson.loads(line)
                yield Logged(Sampled(**row["sampled"]), row["tokens"])

    def documents(
        self, section: SelfReplay, generate: Generate, tokenizer: LoadedTokenizer, seed: int
    ) -> Iterator[Document]:
        """Yield the logged documents, then sampled ones, until they hold `section.tokens` tokens or sampling ends."""
        assert section.tokens is not None, "the pipeline gives an open budget its number"
        tokens = following = drawn = 0
        for logged in self.read():
            yield Document(logged.id, logged.sampled.text, SOURCE)
            tokens += logged.tokens
            drawn += logged.sampled.tokens
            following = logged.sampled.number + 1
        if tokens >= section.tokens:
            return
        with open(self.path, "ab", buffering=0) as file:
            for sampled in generate(section, seed, following, drawn + following):
                logged = Logged(sampled, len(tokenizer.encode_batch([sampled.text])[0]))
                file.write(orjson.dumps(asdict(logged)) + b"\n")
                yield Document(logged.id, sampled.text, SOURCE)
                tokens += logged.tokens
                if tokens >= section.tokens:
                    return
