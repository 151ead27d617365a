"""The peers of `benchmarks/corpus.py`, each in a process of its own: datatrove's chain, and a tokenizer alone.

    python benchmarks/peers.py datatrove SAMPLE --tokenizer tokenizer.json --items items.json --work FOLDER
    python benchmarks/peers.py tokenizers SAMPLE --tokenizer tokenizer.json

SAMPLE is a folder of zst JSONL files. Imports, and the making of objects that a longer run would make once, are not
timed. The last line is flat JSON.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

BATCH_DOCUMENTS = 1000


def main() -> None:
    """Run the peer that is asked for and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("peer", choices=["datatrove", "tokenizers"])
    parser.add_argument("sample", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--items", type=Path)
    parser.add_argument("--work", type=Path)
    arguments = parser.parse_args()
    texts = [text for path in sorted(arguments.sample.glob("*.jsonl.zst")) for text in read_texts(path)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    if arguments.peer == "tokenizers":
        facts = tokenizers_alone(texts, arguments.tokenizer)
    else:
        facts = datatrove_chain(arguments.sample, arguments.tokenizer, arguments.items, arguments.work)
    print(json.dumps({"text_mb": megabytes, **facts}))


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a zst JSONL file."""
    import io

    import orjson
    import zstandard

    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as stream:
        for line in io.BufferedReader(stream):
            yield orjson.loads(line)["text"]


def tokenizers_alone(texts: list[str], tokenizer_file: Path) -> dict[str, float]:
    """Encode texts that are in memory already, on one thread, keeping nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_batch_fast(texts[:10], add_special_tokens=False)
    tokens = 0
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(0, len(texts), BATCH_DOCUMENTS):
        for encoding in tokenizer.encode_batch_fast(texts[first : first + BATCH_DOCUMENTS], add_special_tokens=False):
            tokens += len(encoding.ids)
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "tokens": tokens}


def datatrove_chain(sample: Path, tokenizer_file: Path, items: Path, work: Path) -> dict[str, Any]:
    """Filter, decontaminate, deduplicate exactly and by MinHash, tokenise and write, as datatrove's examples do.

    One task each (14 for the buckets, as it wants them), in this process. The cost of an executor that does nothing
    is taken off. Its packing is the trainer's, and is left out.
    """
    let_xxhash_take_strings()
    from datatrove.executor.local import LocalPipelineExecutor
    from datatrove.utils.typeshelper import Languages
    from datatrove.utils.word_tokenizers import load_word_tokenizer

    load_word_tokenizer(Languages.english).word_tokenize("The words of a sentence.")
    write_item_index(items, work / "items")
    seconds: dict[str, float] = {}
    before, cpu = 0.0, 0.0
    for name, pipeline, tasks in [("nothing", [], 1), *stages(sample, tokenizer_file, work)]:
        executor = LocalPipelineExecutor(pipeline, tasks=tasks, workers=1, logging_dir=str(work / "logs" / name))
        started = time.perf_counter()
        executor.run()
        taken = time.perf_counter() - started
        if name == "nothing":
            before, cpu = taken, time.process_time()
        else:
            seconds[name] = max(0.0, taken - before)
    cpu = time.process_time() - cpu
    kept = sum(path.stat().st_size for path in (work / "tokens").glob("*.ds")) // 2
    parts = {f"{name}_seconds": round(value, 3) for name, value in seconds.items()}
    return {"seconds": sum(seconds.values()), "cpu_seconds": cpu, "tokens": kept, **parts}


def stages(sample: Path, tokenizer_file: Path, work: Path) -> Iterator[tuple[str, list[Any], int]]:
    """Yield each stage's name, steps and number of tasks; a stage reads what the one before it wrote."""
    from datatrove.data import Document
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
    from datatrove.pipeline.dedup.exact_dedup import (
        ExactDedupConfig,
        ExactDedupFilter,
        ExactDedupSignature,
        ExactFindDedups,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupFilter
    from datatrove.pipeline.filters import FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    def text_of(document: Document) -> str:
        return document.text

    def at(name: str) -> str:
        return str(work / name)

    rules = [GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter()]
    yield (
        "quality",
        [JsonlReader(str(sample), glob_pattern="*.jsonl.zst"), *rules, JsonlWriter(at("good"), compression=None)],
        1,
    )
    exact = ExactDedupConfig(content_getter=text_of)
    yield "exact_signature", [JsonlReader(at("good")), ExactDedupSignature(at("exact"), exact)], 1
    yield "exact_find", [ExactFindDedups(at("exact"), at("exact_found"), exact)], 1
    minhash = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    once = [
        JsonlReader(at("good")),
        ExactDedupFilter(at("exact_found"), exact),
        JsonlWriter(at("once"), compression=None),
    ]
    yield "minhash_signature", [*once, MinhashDedupSignature(at("signatures"), minhash)], 1
    yield "minhash_buckets", [MinhashDedupBuckets(at("signatures"), at("buckets"), config=minhash)], 14
    yield "minhash_cluster", [MinhashDedupCluster(at("buckets"), at("removed"), config=minhash)], 1
    last = [JsonlReader(at("once")), MinhashDedupFilter(at("removed"))]
    last.append(NGramsDecontFilter(at("items"), NGramsDecontConfig(n_grams=13)))
    tokens = DocumentTokenizer(
        at("tokens"),
        str(tokenizer_file),
        eos_token="<|endoftext|>",
        shuffle_documents=False,
        batch_size=BATCH_DOCUMENTS,
    )
    yield "contamination_and_tokens", [*last, tokens], 1


def let_xxhash_take_strings() -> None:
    """Give datatrove 0.10 back what xxhash 4 took away: hashing a string as its UTF-8."""
    import xxhash

    for name in ("xxh32_intdigest", "xxh64_intdigest"):
        digest = getattr(xxhash, name)
        setattr(xxhash, name, lambda data, digest=digest: digest(data.encode() if isinstance(data, str) else data))


def write_item_index(items: Path, folder: Path) -> None:
    """Write the hashes of the items' n-grams in datatrove's form; its own indexer needs lighteval and the Hub."""
    import numpy as np
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.utils.text import ngrams, simplify_text

    folder.mkdir(parents=True, exist_ok=True)
    config = NGramsDecontConfig(n_grams=13)
    reader = NGramsDecontFilter(str(folder), config)
    for task, texts in json.loads(items.read_text(encoding="utf-8")).items():
        hashes: set[int] = set()
        for text in texts:
            words = simplify_text(text, config.norm_config).split()  # its text is simplified to words and single spaces
            hashes.update(reader.hash_func(" ".join(gram)) for gram in ngrams(words, config.n_grams))
        array = np.array(sorted(hashes), dtype=config.hash_config.np_descr)
        (folder / f"{task}.index.hashes").write_bytes(array.tobytes())


if __name__ == "__main__":
    main()
