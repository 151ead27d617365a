"""How fast batches are read from a prepared corpus, and how soon a run goes on at any place of it.

    python benchmarks/loader.py [--quick] [--tokens N] [--work FOLDER]

A corpus of made documents (lengths of web pages, random ids in blocks of the default size) is written and stays in the
page cache. Steps of 128k tokens in random order are assembled, and given out by the loader: hashed and as tensors of
micro-batches. Speeds are per second of the processor, so that a busy machine does not blur them. Resuming is timed by
the clock at 1,000 random steps, from a fresh loader to the tensors of its first step, and by the processor for reading
such a step alone; opening the corpus, once for a process, is given apart. The last line is flat JSON.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

os.environ |= {"OMP_NUM_THREADS": "1"}

import numpy as np
import torch

from onward.artifact import MANIFEST, write_json
from onward.batches import Batches, BatchPlan
from onward.corpus.blocks import block_name
from onward.corpus.packing import pack
from onward.corpus.store import open_corpus
from onward.recipe import Corpus
from onward.training.launch import Place
from onward.training.loader import Loader

SEQUENCE_TOKENS, SEQUENCES, MICRO_BATCH = 2000, 64, 2
MEDIAN_TOKENS, SPREAD = 400, 1.0
"""Documents are as long as web pages are: log-normal, 660 tokens on average."""
DEVICE = torch.device("cpu")


def write_corpus(folder: Path, tokens: int, block_tokens: int) -> None:
    """Write what batches read of a prepared corpus: token shards, packing, manifest."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    ids = draw.integers(1, 32_000, block_tokens + 100_000).astype(np.uint16)
    written = 0
    for number in range(-(-tokens // block_tokens)):
        lengths = draw.lognormal(np.log(MEDIAN_TOKENS), SPREAD, block_tokens // 600)
        lengths = np.clip(lengths, 16, 50_000).astype(np.int64)
        lengths = lengths[np.cumsum(lengths) <= block_tokens]
        shard = np.roll(ids, number)[: lengths.sum()]
        np.save(folder / block_name("tokens", number, "npy"), shard)
        pack(lengths, SEQUENCE_TOKENS, first_offset=written).save(folder / block_name("packing", number, "npz"))
        written += len(shard)
    write_json(folder / MANIFEST, {"kind": "corpus", "fingerprint": folder.name, "made_from": {}, "files": {}})


def open_batches(folder: Path) -> tuple[Batches, int]:
    """Open the corpus for a run of ten passes; returns its tokens too."""
    corpus = open_corpus(folder)
    steps = 10 * corpus.num_sequences // SEQUENCES
    plan = BatchPlan(SEQUENCE_TOKENS, SEQUENCES, (), seed=0, stage_steps=(steps,))
    return Batches(plan, [corpus], padding_id=0), corpus.total_tokens


def assembled(batches: Batches, steps: int) -> float:
    """Return million tokens a CPU second, of steps one after the other from the middle on."""
    first, tokens = len(batches) // 2, 0
    begun = time.process_time()
    for step in range(first, first + steps):
        batches.read(step, 0, SEQUENCES)
        tokens += batches.tokens(step)
    return tokens / (time.process_time() - begun) / 1e6


def loaded(batches: Batches, steps: int) -> float:
    """Return million tokens a CPU second that a loader gives out: read, hashed, cut into micro-batches of tensors."""
    first, tokens = len(batches) // 3, 0
    with Loader(batches, Place(), MICRO_BATCH, first, DEVICE) as loader:
        begun = time.process_time()
        for step in range(first, first + steps):
            tokens += loader.step(step).tokens
        return tokens / (time.process_time() - begun) / 1e6


def resumed(batches: Batches, positions: int) -> tuple[list[float], list[float]]:
    """Return milliseconds at random steps: from a fresh loader to its first step, and of the processor to read it."""
    by_clock, by_processor = [], []
    for step in np.random.default_rng(1).integers(0, len(batches), positions).tolist():
        begun = time.perf_counter()
        with Loader(batches, Place(), MICRO_BATCH, step, DEVICE) as loader:
            loader.step(step)
            by_clock.append((time.perf_counter() - begun) * 1e3)
    for step in np.random.default_rng(2).integers(0, len(batches), positions).tolist():
        begun = time.thread_time()
        batches.read(step, 0, SEQUENCES)
        batches.count(step)
        by_processor.append((time.thread_time() - begun) * 1e3)
    return by_clock, by_processor


def main() -> None:
    """Write the corpus, measure, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="100M tokens, 200 positions")
    parser.add_argument("--tokens", type=int, help="size of the corpus; default one billion")
    parser.add_argument("--work", type=Path, help="where the corpus is written; default a temporary folder")
    options = parser.parse_args()
    tokens = options.tokens or (100_000_000 if options.quick else 1_000_000_000)
    steps, rounds, positions = (100, 3, 200) if options.quick else (300, 5, 1000)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.work, prefix="loader-"))
    try:
        write_corpus(folder / "corpus", tokens, Corpus.model_fields["block_tokens"].default)
        begun = time.perf_counter()
        batches, found_tokens = open_batches(folder / "corpus")
        opening = time.perf_counter() - begun
        assembled(batches, 5), loaded(batches, 5)  # numba compiles at the first use
        speeds = [(assembled(batches, steps), loaded(batches, steps)) for _ in range(rounds)]
        by_clock, by_processor = resumed(batches, positions)
    finally:
        shutil.rmtree(folder)
    result = {
        "corpus_tokens": found_tokens,
        "mtok_per_s": median(speed[0] for speed in speeds),
        "loader_mtok_per_s": median(speed[1] for speed in speeds),
        "opening_ms": opening * 1e3,
        "resume_positions": positions,
        "resume_ms_median": median(by_clock),
        "resume_ms_99_percent": float(np.quantile(by_clock, 0.99)),
        "resume_ms_max": max(by_clock),
        "resume_cpu_ms_median": median(by_processor),
        "resume_cpu_ms_max": max(by_processor),
    }
    for name, value in result.items():
        print(f"{name:24} {value:,.3f}" if isinstance(value, float) else f"{name:24} {value:,}")
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
