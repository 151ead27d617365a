"""Package `onward/tiny` after training: bf16 weights, tokenizer, sources, measurements and the model card.

    python tools/card_tiny_base.py --data GENERAL_FOLDER --build BUILD_FOLDER

GENERAL_FOLDER holds the three sources of `tools/train_tiny_base.py`, BUILD_FOLDER is what that script made.
The package folder (`src/onward/model/tiny` unless `--package` names another) is written aside and swapped in last:

    model.safetensors config.json generation_config.json tokenizer.json tokenizer_config.json
    sources.tsv    every book and story with author, licence, origin, and whether it was trained on
    card.json      every number of the card, with units in the keys
    README.md      the card, made from card.json

Nothing else is needed and nothing is asked: about five minutes on 2 cores, 2 GB of memory.
`--state` packages the last saved state of a training that still runs, and says so in the card.

Bits per byte are measured on about 1 MB of the held-out books, the same bytes for every column. The model reads each
document after one end-of-text token, in windows of 1,024 tokens that advance by 512 and count only the new ones; the
end-of-text token that follows a document is not counted. The interval is a bootstrap over books.
"""

import argparse
import gzip
import json
import lzma
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from byte_ngram import count_ngrams, shortened, surprisal_bits
from card_text import card_text
from train_tiny_base import (
    CONTEXT_TOKENS,
    END_OF_TEXT,
    HELD_OUT_SHARE,
    PEAK_LEARNING_RATE,
    VOCABULARY,
    build_model,
    is_held_out,
    read_documents,
)

SAMPLE_BYTES = 1_000_000
SAMPLE_SEED = 0
STRIDE_TOKENS = 512
BOOTSTRAP_RESAMPLES = 10_000
NGRAM_ORDERS = (5, 6, 7, 8)
PACKAGE = Path(__file__).resolve().parent.parent / "src" / "onward" / "model" / "tiny"


@dataclass(frozen=True)
class Document:
    """One held-out document: `book` is the record's source, the unit of the split and of the bootstrap."""

    id: str
    book: str
    collection: str
    text: str

    @property
    def data(self) -> bytes:
        return self.text.encode()


def collection_of(record: dict[str, str]) -> str:
    """The name of the collection a record comes from, as the card prints it."""
    if "collection" in record:
        return record["collection"]
    return "ELTeC-eng" if "ELTeC" in record["source"] else "classic-books-markdown"


def held_out_sample(data: Path, budget_bytes: int = SAMPLE_BYTES) -> list[Document]:
    """Held-out documents, taken in turn from every held-out book in a seeded order until the budget is reached.

    Short books are in whole, long novels give the same number of documents each. A text that also stands in a
    training book (one story was published twice) is not held out.
    """
    by_book: dict[str, list[Document]] = defaultdict(list)
    trained = {xxhash.xxh3_128_digest(r["text"].encode()) for r in read_documents(data) if not is_held_out(r["source"])}
    for record in read_documents(data):
        if is_held_out(record["source"]) and xxhash.xxh3_128_digest(record["text"].encode()) not in trained:
            book = record["source"]
            by_book[book].append(Document(record["id"], book, collection_of(record), record["text"]))
    random = np.random.default_rng(SAMPLE_SEED)
    queues = [[documents[n] for n in random.permutation(len(documents))] for _, documents in sorted(by_book.items())]
    sample: list[Document] = []
    size = 0
    for turn in range(max(map(len, queues))):
        for queue in queues:
            if turn < len(queue):
                sample.append(queue[turn])
                size += len(queue[turn].data)
        if size >= budget_bytes:
            break
    return sample


@torch.inference_mode()
def document_nats(model: LlamaForCausalLM, ids: list[int]) -> float:
    """Negative log-likelihood in nats of a document's tokens after one end-of-text token, rolling windows."""
    stream = torch.tensor([model.config.eos_token_id, *ids])
    nats, scored = 0.0, 0
    while scored < len(ids):
        stop = min(len(ids), scored + (STRIDE_TOKENS if scored else CONTEXT_TOKENS))
        start = max(0, stop - CONTEXT_TOKENS)
        hidden = model.model(input_ids=stream[None, start:stop], use_cache=False).last_hidden_state[0]
        new = stop - scored
        nats += F.cross_entropy(model.lm_head(hidden[-new:]), stream[stop - new + 1 : stop + 1], reduction="sum").item()
        scored = stop
    return nats


def model_nats(package: Path, sample: list[Document]) -> tuple[np.ndarray, int]:
    """Nats of each document under the packaged weights, computed in fp32; and the number of tokens."""
    model = AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    ids = [encoding.ids for encoding in tokenizer.encode_batch([d.text for d in sample], add_special_tokens=False)]
    return np.array([document_nats(model, document) for document in ids]), sum(map(len, ids))


def bootstrap_over_books(sample: list[Document], bits: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of sum(bits) / sum(bytes) when whole books are drawn with replacement."""
    books = sorted({document.book for document in sample})
    index = np.array([books.index(document.book) for document in sample])
    bits_per_book = np.bincount(index, bits)
    bytes_per_book = np.bincount(index, [len(document.data) for document in sample])
    drawn = np.random.default_rng(SAMPLE_SEED).integers(0, len(books), (BOOTSTRAP_RESAMPLES, len(books)))
    ratios = bits_per_book[drawn].sum(1) / bytes_per_book[drawn].sum(1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(low), float(high)


def compressor_bits_per_byte(sample: list[Document]) -> dict[str, float]:
    """gzip -9 and xz -9e, headers included: each document alone, and all of them as one file."""
    texts = [document.data for document in sample]
    joined = b"\n\n".join(texts)

    def gzipped(data: bytes) -> int:
        return 8 * len(gzip.compress(data, 9, mtime=0))

    def xz(data: bytes) -> int:
        return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))

    size = sum(map(len, texts))
    return {
        "gzip_9_each_document": sum(map(gzipped, texts)) / size,
        "gzip_9_one_file": gzipped(joined) / len(joined),
        "xz_9e_each_document": sum(map(xz, texts)) / size,
        "xz_9e_one_file": xz(joined) / len(joined),
    }


def ngram_bits_per_byte(data: Path, sample: list[Document]) -> dict[str, float]:
    """Byte n-grams counted on every training document, also on those that the model did not get to read."""
    training = (r["text"].encode() for r in read_documents(data) if not is_held_out(r["source"]))
    longest = count_ngrams(training, max(NGRAM_ORDERS))
    texts = [document.data for document in sample]
    size = sum(map(len, texts))
    return {
        f"byte_{order}gram": float(sum(bits.sum() for bits in surprisal_bits(shortened(longest, order), texts)) / size)
        for order in NGRAM_ORDERS
    }


def load_trained(build: Path, from_state: bool) -> tuple[LlamaForCausalLM, int]:
    """The trained fp32 model and its steps: the finished one, or the last saved state of a training that runs."""
    rows = training_log(build)
    if not from_state:
        return AutoModelForCausalLM.from_pretrained(build / "model-fp32", dtype=torch.float32), rows[-1]["step"] + 1
    state = torch.load(build / "state.pt", weights_only=True, map_location="cpu")
    model = build_model()
    # A compiled model names its parameters with this prefix.
    model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in state["model"].items()})
    return model, state["step"]


def training_log(build: Path) -> list[dict[str, float]]:
    """Rows of log.jsonl in the order of steps; after a restart the later row of a step counts."""
    rows = [json.loads(line) for line in (build / "log.jsonl").read_text().splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def write_model(model: LlamaForCausalLM, build: Path, folder: Path) -> None:
    """Weights in bf16, the configuration, and the tokenizer without the line breaks that double its size."""
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=0)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer = json.loads((build / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    compact = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(compact + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "model_max_length": CONTEXT_TOKENS,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_sources(data: Path, path: Path) -> list[dict[str, str | int]]:
    """One tab-separated row for each book and story, the attribution that CC BY asks for; returns collection totals."""
    books: dict[str, dict[str, str]] = {}
    totals: dict[tuple[str, str], dict[str, str | int]] = {}
    for record in read_documents(data):
        source, licence, collection = record["source"], record["license"], collection_of(record)
        row = totals.setdefault(
            (collection, licence),
            {"collection": collection, "licence": licence, "works": 0, "held_out_works": 0, "training_bytes": 0},
        )
        if source not in books:
            books[source] = record
            row["works"] += 1
            row["held_out_works"] += is_held_out(source)
        if not is_held_out(source):
            row["training_bytes"] += len(record["text"].encode())
    lines = ["collection\ttitle\tauthor\tyear\tlicence\tsplit\tsource"]
    for source, record in sorted(books.items()):
        fields = [
            collection_of(record),
            record["title"],
            record["author"],
            str(record.get("year", "")),
            record["license"],
        ]
        fields += ["held out" if is_held_out(source) else "training", source]
        lines.append("\t".join(" ".join(field.split()) for field in fields))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(totals.values())


def training_facts(build: Path, steps: int, finished: bool) -> dict[str, float | int | bool]:
    """What the log says about the training up to `steps`; the loss is the mean of the last ten logged steps."""
    rows = [row for row in training_log(build) if row["step"] < steps]
    at_peak = [row["step"] for row in rows if row["learning_rate"] >= PEAK_LEARNING_RATE]
    batch_tokens = int(rows[-1]["tokens"]) // (int(rows[-1]["step"]) + 1)
    tokens = steps * batch_tokens
    return {
        "finished": finished,
        "steps": steps,
        "tokens": tokens,
        "training_set_tokens": len(np.load(build / "tokens.npy", mmap_mode="r")),
        "batch_tokens": batch_tokens,
        "peak_learning_rate": PEAK_LEARNING_RATE,
        "cooldown_share": round(1 - at_peak[-1] / steps, 2) if finished else 0.0,
        "tokens_per_second": rows[-1]["tokens_per_second"],
        "hours": round(tokens / rows[-1]["tokens_per_second"] / 3600, 2),
        "last_loss_nats_per_token": round(float(np.mean([row["loss_nats"] for row in rows[-10:]])), 3),
    }


def write_sample(package: Path, prompt: str = "The old man opened the door and") -> dict[str, str]:
    """What the packaged model writes after the prompt: 60 tokens, seed 0, temperature 0.7."""
    model = AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(package / "tokenizer.json"))
    ids = torch.tensor([[model.config.eos_token_id, *tokenizer.encode(prompt).ids]])
    torch.manual_seed(0)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=True, temperature=0.7)
    return {"prompt": prompt, "continuation": tokenizer.decode(out[0, ids.shape[1] :].tolist())}


def measure(data: Path, package: Path) -> dict[str, object]:
    """The `held_out` and `baselines` parts of card.json: all on the same bytes."""
    sample = held_out_sample(data)
    nats, tokens = model_nats(package, sample)
    bits = nats / np.log(2)
    sizes = np.array([len(document.data) for document in sample])
    low, high = bootstrap_over_books(sample, bits)
    collections = np.array([document.collection for document in sample])
    held_out = {
        "share": HELD_OUT_SHARE,
        "books": len({document.book for document in sample}),
        "documents": len(sample),
        "bytes": int(sizes.sum()),
        "tokens": tokens,
        "nats_per_token": round(float(nats.sum() / tokens), 4),
        "bits_per_byte": round(float(bits.sum() / sizes.sum()), 4),
        "bits_per_byte_low": round(low, 4),
        "bits_per_byte_high": round(high, 4),
        "bits_per_byte_by_collection": {
            name: round(float(bits[collections == name].sum() / sizes[collections == name].sum()), 4)
            for name in sorted(set(collections.tolist()))
        },
    }
    baselines = compressor_bits_per_byte(sample) | ngram_bits_per_byte(data, sample)
    return {"held_out": held_out, "baselines_bits_per_byte": {key: round(value, 4) for key, value in baselines.items()}}


def build_package(data: Path, build: Path, folder: Path, from_state: bool) -> dict[str, object]:
    """Write every file of the package into the empty `folder` and return the content of card.json."""
    model, steps = load_trained(build, from_state)
    parameters = model.num_parameters()
    write_model(model, build, folder)
    card: dict[str, object] = {
        "name": "onward/tiny",
        "parameters": parameters,
        "vocabulary": VOCABULARY,
        "context_tokens": CONTEXT_TOKENS,
        "weights_bytes": (folder / "model.safetensors").stat().st_size,
        "training": training_facts(build, steps, finished=not from_state),
        "sources": write_sources(data, folder / "sources.tsv"),
        "sample": write_sample(folder),
    }
    card |= measure(data, folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card_text(card), encoding="utf-8")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the three general sources")
    parser.add_argument("--build", type=Path, required=True, help="what train_tiny_base.py made")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="the folder to replace")
    parser.add_argument("--state", action="store_true", help="package the last state.pt of an unfinished training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="fewer where others compute too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    aside = arguments.package.with_name("." + arguments.package.name + "-building")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    card = build_package(arguments.data, arguments.build, aside, arguments.state)
    for path in aside.iterdir():
        path.chmod(0o644)
    shutil.rmtree(arguments.package, ignore_errors=True)
    aside.replace(arguments.package)
    print(json.dumps({key: card[key] for key in ("training", "held_out", "baselines_bits_per_byte")}, indent=2))
    print(f"packaged: {arguments.package}")


if __name__ == "__main__":
    main()
