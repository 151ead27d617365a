"""A prepared corpus of which everything is known: what was repeated, too short, held out, or from a benchmark."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onward.artifact import Folders
from onward.corpus.preparation import Items
from onward.corpus.prepare import prepare
from onward.model.tokenizer import LoadedTokenizer
from onward.recipe import Corpus
from onward.tasks.questions import Question

CHANCE = random.Random(7)
WORDS = [
    "".join(CHANCE.choices("bcdfglmnprst", k=1) + CHANCE.choices("aeiou", k=1) + CHANCE.choices("lmnrst", k=2))
    for _ in range(400)
] + ["the", "of", "and", "to", "that", "with", "have", "be"] * 12
PASSAGE = (
    "seventeen marble herons quietly judged every brass teapot that nobody from the harbour ever dared to polish again"
)
SITES = 3
COPIES, NEAR_COPIES, LEAKS, SHORT, CHEATS = 4, 6, 2, 7, 2


@dataclass(frozen=True)
class KnownCorpus:
    """folder: the artifact. texts: what each document said, by id. plain: file of ids without addresses."""

    folder: Path
    texts: Mapping[str, str]
    addresses: str
    plain: str


def text(chance: random.Random, words: int) -> str:
    chosen = chance.choices(WORDS, k=words)
    return "\n".join(" ".join(chosen[at : at + 12]) + "." for at in range(0, words, 12))


def write_known_corpus(place: Path, repository: Path, examples: int = 120) -> KnownCorpus:
    """Prepare the corpus below `place`, in several blocks; `examples`: documents that nothing is the matter with."""
    chance = random.Random(examples)
    good = {f"https://www.site{n % SITES}.org/page/{n}": text(chance, chance.randint(60, 400)) for n in range(examples)}
    original, stays = list(good)[3], list(good)[5]
    good[stays] = text(chance, 360)
    held_out = {f"held-{n}": text(chance, 300) for n in range(5)}
    others = {f"copy-{n}": good[original].replace(" ", "  ") for n in range(COPIES)}
    others |= {f"near-{n}": f"{good[stays]} Changed {n}." for n in range(NEAR_COPIES)}
    others |= {f"leak-{n}": f"{held_out['held-2']} Changed {n}." for n in range(LEAKS)}
    others |= {f"short-{n}": text(chance, 20) for n in range(SHORT)}
    others |= {f"cheat-{n}": f"{text(chance, 80)}\n{PASSAGE}.\n{text(chance, 80)}" for n in range(CHEATS)}
    others |= {f"plain-{n}": text(chance, 100) for n in range(30)}
    paths = [_write(place / name, texts) for name, texts in (("a.jsonl", good), ("b.jsonl", others))]
    corpus = Corpus.model_validate(
        {
            "sources": [{"path": path} for path in paths],
            "held_out": {"sources": [{"path": _write(place / "held_out.jsonl", held_out)}]},
            "quality": "gopher",
            "minimum_bytes_per_token": None,
            "block_tokens": 2000,
        }
    )
    questions: dict[str, Sequence[Question]] = {"quiz": (Question("quiz", "q7", (PASSAGE,)),), "riddles": ()}
    prepared = prepare(
        corpus,
        tokenizer=tiny_tokenizer(repository),
        sequence_tokens=64,
        wanted_tokens=None,
        seed=0,
        workers=1,
        folders=Folders(place / "cache", place / "runs"),
        items=Items({"tasks": list(questions)}, lambda: questions),
    )
    return KnownCorpus(prepared.path, good | others | held_out, *paths)


def tiny_tokenizer(repository: Path) -> LoadedTokenizer:
    content = (repository / "src/onward/model/tiny/tokenizer.json").read_text(encoding="utf-8")
    return LoadedTokenizer(content, 0, None, 0, None, 8192, "tiny")


def _write(path: Path, texts: Mapping[str, str]) -> str:
    rows = (json.dumps({"id": name, "text": content}) for name, content in texts.items())
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return str(path)
