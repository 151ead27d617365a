"""Text for the benchmarks: a fixed mixture of real text, samples of it, and any amount made from its sentences."""

import io
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import zstandard

MIXTURE = (
    "domain/education/*.jsonl.zst",
    "general/books_*.jsonl.zst",
    "domain/legal/*.jsonl.zst",
    "domain/technical/*.jsonl.zst",
    "domain/medical/*.jsonl.zst",
)
"""Textbooks, books, law, software documentation and medicine, 370 MB of text; some of it repeats, as text does."""
_SENTENCE = re.compile(r"(?<=[.?!][\"')\]”’\s])\s+|\n+")
_PROSE = ("education", "general", "medical")
_MORE_SENTENCES = 30
_WORDS = 200_000
_LEVEL = 3
_FILE_BYTES = 128_000_000
_REPEATED = 50
"""One document in so many is an exact copy of an earlier one, and one a copy with a sentence changed."""


def mixture(data: Path) -> list[Path]:
    """Return the files of the mixture that lie in a data folder, in a fixed order."""
    files = [path for pattern in MIXTURE for path in sorted(data.glob(pattern))]
    if not files:
        raise SystemExit(f"no text of the mixture under {data}: {', '.join(MIXTURE)}")
    return files


def records(path: Path) -> Iterator[bytes]:
    """Yield the lines of a zst JSONL file."""
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        yield from io.BufferedReader(stream, 1 << 20)


def write_sample(files: Sequence[Path], folder: Path, one_of: int) -> list[Path]:
    """Write one record of so many, of every file, as a file of its own; small files give at least one."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, path in enumerate(files):
        chosen = [line for place, line in enumerate(records(path)) if place % one_of == one_of // 2]
        written.append(folder / f"{number:03d}-{path.name}")
        written[-1].write_bytes(zstandard.ZstdCompressor(_LEVEL).compress(b"".join(chosen)))
    return written


def write_items(questions: dict[str, Any], path: Path) -> None:
    """Write the texts of benchmark items for a peer."""
    texts = {task: [text for question in asked for text in question.texts] for task, asked in questions.items()}
    path.write_text(json.dumps(texts), encoding="utf-8")


def write_recombined(files: Sequence[Path], folder: Path, size_bytes: int, seed: int = 0) -> list[Path]:
    """Write documents made of real sentences in new order until they hold so many bytes of text.

    A document has five sentences or more, as long as a web page on average (4 kB), all from one file of prose. Every
    fourth word is another one of the file, so that nobody has read a run of four words of it before; one in fifty
    repeats an earlier one, one in fifty all but a line of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(seed)
    pools = [pool for pool in (_sentences(path) for path in files if path.parent.name in _PROSE) if len(pool) > 5000]
    weights = [len(pool) for pool in pools]
    words = [draw.choices(" ".join(draw.choices(pool, k=20_000)).split(), k=_WORDS) for pool in pools]
    written: list[Path] = []
    made, number, earlier = 0, 0, ["A first sentence."]
    while made < size_bytes:
        written.append(folder / f"made-{len(written):03d}.jsonl.zst")
        in_file = 0
        with written[-1].open("wb") as raw, zstandard.ZstdCompressor(_LEVEL).stream_writer(raw) as stream:
            while in_file < _FILE_BYTES and made + in_file < size_bytes:
                chosen = draw.choices(range(len(pools)), weights)[0]
                text = "\n".join(_document(draw, pools[chosen], words[chosen], earlier))
                stream.write(orjson.dumps({"id": f"made-{number}", "text": text}, option=orjson.OPT_APPEND_NEWLINE))
                in_file += len(text)
                number += 1
        made += in_file
    return written


def _sentences(path: Path) -> list[str]:
    """Return the sentences of a file."""
    texts = (orjson.loads(line)["text"] for line in records(path))
    return [sentence for text in texts for sentence in _SENTENCE.split(text) if len(sentence) > 20]


def _document(draw: random.Random, sentences: list[str], words: list[str], earlier: list[str]) -> list[str]:
    """Return the lines of a document; `earlier` is what may be repeated."""
    kind = draw.randrange(_REPEATED)
    if kind < 2:
        lines = list(earlier)
        if kind == 1:
            lines[draw.randrange(len(lines))] = "One line of this document is another one, and all the others are not."
        return lines
    drawn = draw.choices(sentences, k=5 + int(draw.expovariate(1 / _MORE_SENTENCES)))
    lines = [_changed(draw, " ".join(drawn[first : first + 4]), words) for first in range(0, len(drawn), 4)]
    if kind == 2:
        earlier[:] = lines
    return lines


def _changed(draw: random.Random, line: str, words: list[str]) -> str:
    """Return a line with every fourth word replaced by another; its last one, with the period, stays."""
    old = line.split(" ")
    number = (len(old) - 1) // 4
    first = draw.randrange(_WORDS - number)
    old[3 : 4 * number : 4] = words[first : first + number]
    return " ".join(old)
