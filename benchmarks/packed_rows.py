"""What the training benchmarks read: a base model with its tokenizer, a prepared corpus, and its rows as arrays.

Shapes: N rows of T tokens.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onward.batches import NO_TARGET, Batch, Batches, plan_batches
from onward.corpus.packing import pack
from onward.corpus.store import open_corpus
from onward.recipe import Training
from shapes import Shape, random_model

END = "<|endoftext|>"
TEXTS = ("web", "textbooks")
"""Pages of FineWeb-Edu, on which the paper trains (600 tokens), or sections of textbooks (4,000 tokens)."""
_ONE_OF = 16
"""One section of textbooks in so many: 4 MB of text."""
_MADE_DOCUMENTS = 1000
_WORDS = 20_000
_MEDIAN_TOKENS, _SPREAD = 400, 1.0
"""Made documents are as long as web pages are: log-normal, 660 tokens on average."""


@dataclass(frozen=True)
class PackedRows:
    """Packed rows: ids, next-token labels, positions within a document piece, number of the piece (-1 in padding)."""

    ids_NT: NDArray[np.int64]
    labels_NT: NDArray[np.int64]
    positions_NT: NDArray[np.int64]
    documents_NT: NDArray[np.int64]

    @property
    def labelled_tokens(self) -> int:
        """Positions with a target."""
        return int((self.labels_NT != NO_TARGET).sum())

    @property
    def causal_pairs(self) -> int:
        """Pairs of a position and one that it sees: L (L + 1) / 2 for every piece."""
        return int((self.positions_NT[self.documents_NT >= 0] + 1).sum())

    @property
    def pieces_per_row(self) -> float:
        """Document pieces in a row, on average."""
        return float((self.documents_NT.max(axis=1) + 1).mean())

    def batch(self, first: int, last: int) -> Batch:
        """Return the rows [first, last)."""
        cut = slice(first, last)
        arrays = (self.ids_NT[cut], self.labels_NT[cut], self.documents_NT[cut], self.positions_NT[cut])
        return Batch(*arrays, np.zeros(len(arrays[0]), dtype=np.bool_))

    def save(self, path: Path) -> None:
        """Write them as .npz."""
        np.savez(path, **asdict(self))


def load_rows(path: Path) -> PackedRows:
    """Read what `save` wrote."""
    with np.load(path) as arrays:
        return PackedRows(**{name: arrays[name] for name in arrays.files})


def made_rows(vocabulary: int, rows: int, tokens: int, seed: int = 0) -> PackedRows:
    """Return packed rows of made documents: lengths of web pages, random ids."""
    draw = np.random.default_rng(seed)
    middle = min(_MEDIAN_TOKENS, tokens // 5)  # several documents in short rows too
    lengths = draw.lognormal(np.log(middle), _SPREAD, 8 + 4 * rows * tokens // middle)
    packing = pack(np.clip(lengths, 2, 8 * tokens).astype(np.int64), tokens)
    chosen = draw.permutation(packing.num_sequences)[:rows]
    assert len(chosen) == rows, "enough documents were made"
    ids = draw.integers(1, vocabulary, (rows, tokens))
    labels, documents = np.full((rows, tokens), NO_TARGET), np.full((rows, tokens), -1)
    positions = np.zeros((rows, tokens), dtype=np.int64)
    for row, sequence in enumerate(chosen):
        at = 0
        for piece, (length, ends) in enumerate(zip(*packing.sequence(int(sequence))[1:], strict=True)):
            span = slice(at, at := at + int(length))
            documents[row, span], positions[row, span] = piece, np.arange(length)
            if ends:
                ids[row, at - 1] = 0
            labels[row, span.start : at - 1] = ids[row, span.start + 1 : at]
    return PackedRows(ids, labels, positions, documents)


def read_documents(data: Path, text: str) -> list[str]:
    """Return documents of one of TEXTS; made ones, as long as web pages, where that data is not."""
    folder = data / "domain" / "education"
    if folder.is_dir():
        from texts import records

        is_web = text == "web"
        files = [path for path in sorted(folder.glob("*.jsonl.zst")) if path.name.startswith("fineweb") == is_web]
        lines = (line for path in files for place, line in enumerate(records(path)) if is_web or place % _ONE_OF == 0)
        return [json.loads(line)["text"] for line in lines]
    draw = random.Random(text)
    words = ["".join(draw.choices("etaoinshrdlucmfwypvbgk", k=draw.randint(2, 9))) for _ in range(_WORDS)]
    weights = [1 / (rank + 3) for rank in range(_WORDS)]  # Zipf's law
    lengths = [int(draw.lognormvariate(np.log(_MEDIAN_TOKENS), _SPREAD)) + 20 for _ in range(_MADE_DOCUMENTS)]
    return [" ".join(draw.choices(words, weights, k=length)) for length in lengths]


def write_base(folder: Path, shape: Shape, sequence_tokens: int, documents: Sequence[str]) -> None:
    """Write random weights and a byte-level BPE tokenizer of the documents as a plain Hugging Face folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers.utils.logging import disable_progress_bar

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    assert tokenizer.token_to_id(END) == 0, "the shapes' configuration says so"
    disable_progress_bar()
    random_model(shape, sequence_tokens).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "bos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def first_rows(corpus: Path, training: Training, padding_id: int = 0) -> PackedRows:
    """Return the rows of all steps of a run, in their order."""
    batches = Batches(plan_batches(training, 0), [open_corpus(corpus)], padding_id)
    read = [batches[step] for step in range(len(batches))]
    fields = ("ids_BT", "labels_BT", "positions_BT", "documents_BT")
    return PackedRows(*(np.concatenate([getattr(batch, name) for batch in read]) for name in fields))


def write_corpus(folder: Path, base: Path, sequence_tokens: int, documents: Sequence[str]) -> Path:
    """Prepare the documents with onward's own stage, no quality rules; return the corpus artifact."""
    from onward.artifact import Folders
    from onward.corpus.prepare import prepare
    from onward.model.tokenizer import read_tokenizer
    from onward.recipe import Corpus

    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "documents.jsonl"
    lines = [json.dumps({"id": str(number), "text": text}) for number, text in enumerate(documents)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    keep_all = {"quality": None, "duplicates": None, "minimum_bytes_per_token": None}
    corpus = Corpus.model_validate({"sources": [{"path": str(file)}], **keep_all})
    prepared = prepare(
        corpus,
        tokenizer=read_tokenizer(base),
        sequence_tokens=sequence_tokens,
        wanted_tokens=None,
        seed=0,
        folders=Folders(folder / "cache", folder / "runs"),
        workers=1,
    )
    return prepared.path
