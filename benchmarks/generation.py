"""Sampling documents, beside `model.generate(do_sample=True)` of transformers at its best batch size.

    python benchmarks/generation.py [--quick] [--model tiny|125M] [--threads 1]

Both sample whole documents (from the prefix token to the end or the longest length) with the same weights, in turn, in
one process; tokens are counted up to each document's end. Processor time is told as well as wall time: beside other
work it is the number that repeats. Ends with one line of JSON; rates are tokens a second, ratios of medians.
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from onward.model.generate import sample_documents, sampling_dtype
from onward.model.load import load_model
from onward.model.source import resolve
from onward.model.tokenizer import LoadedTokenizer, read_tokenizer
from onward.recipe import SelfReplay
from shapes import SHAPES, random_model

Rates = tuple[float, float]
"""Tokens a second of wall time, and of processor time."""


def models(name: str) -> tuple[Any, LoadedTokenizer]:
    """Return the bundled model, or a shape with random weights, in fp32; the tokenizer is the bundled one."""
    source = resolve("onward/tiny")
    tokenizer = read_tokenizer(source.folder)
    return (load_model(source) if name == "tiny" else random_model(SHAPES[name], 1024).eval()), tokenizer


def timed(sample: Callable[[], int]) -> Rates:
    """Return the rates of one call that returns how many tokens it made."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sample()
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def ours(model: Any, tokenizer: LoadedTokenizer, documents: int, longest: int) -> int:
    """Sample about so many documents; return their tokens, ends included."""
    settings = SelfReplay.model_validate({"tokens": documents * longest, "document_tokens": longest})
    return sum(sampled.tokens + 1 for sampled in sample_documents(model, tokenizer, settings, 0))


@torch.inference_mode()
def theirs(model: Any, tokenizer: LoadedTokenizer, documents: int, longest: int, batch: int) -> int:
    """Sample as many documents with transformers, batch by batch; return their tokens, ends included."""
    tokens = 0
    for _ in range(-(-documents // batch)):
        ids = torch.full((batch, 1), tokenizer.prefix_id)
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            top_k=0,
            max_new_tokens=longest,
            eos_token_id=tokenizer.eos_id,
            pad_token_id=tokenizer.eos_id,
        )[:, 1:]
        ends = made == tokenizer.eos_id
        tokens += int(torch.where(ends.any(1), ends.int().argmax(1) + 1, made.shape[1]).sum())
    return tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="few short documents, under a minute")
    parser.add_argument("--model", choices=["tiny", *SHAPES], default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--documents", type=int, default=None)
    parser.add_argument("--longest", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    longest = given.longest or (48 if given.quick else 256)
    documents = given.documents or (128 if given.quick else 512)
    batches = (128,) if given.quick else (64, 256)
    fp32, tokenizer = models(given.model)
    dtype = sampling_dtype()
    model = models(given.model)[0].to(dtype)
    ways: dict[str, Callable[[], int]] = {
        "onward_fp32": lambda: ours(fp32, tokenizer, documents, longest),
        "onward": lambda: ours(model, tokenizer, documents, longest),
    }
    for batch in batches:
        ways[f"transformers_fp32_{batch}"] = lambda b=batch: theirs(fp32, tokenizer, documents, longest, b)
        ways[f"transformers_{batch}"] = lambda b=batch: theirs(model, tokenizer, documents, longest, b)
    found: dict[str, list[Rates]] = {name: [] for name in ways}
    for _ in range(given.repeats):
        for name, sample in ways.items():
            found[name].append(timed(sample))
            wall, cpu = found[name][-1]
            print(f"{name:<24} {wall:8,.0f} tokens/s {cpu:8,.0f} tokens per processor second", flush=True)
    wall = {name: median(rate for rate, _ in rates) for name, rates in found.items()}
    cpu = {name: median(rate for _, rate in rates) for name, rates in found.items()}

    def best(rates: dict[str, float], kind: str) -> float:
        return max(rates[f"{kind}_{batch}"] for batch in batches)

    result = {
        "model": given.model,
        "threads": given.threads,
        "dtype": str(dtype).removeprefix("torch."),
        "document_tokens": longest,
        "tokens_per_second": round(wall["onward"]),
        "tokens_per_second_fp32": round(wall["onward_fp32"]),
        "tokens_per_processor_second": round(cpu["onward"]),
        "tokens_per_processor_second_fp32": round(cpu["onward_fp32"]),
        "ratio_vs_transformers_generate": round(wall["onward"] / best(wall, "transformers"), 2),
        "ratio_vs_transformers_generate_fp32": round(wall["onward_fp32"] / best(wall, "transformers_fp32"), 2),
        "processor_ratio_vs_transformers_generate": round(cpu["onward"] / best(cpu, "transformers"), 2),
        "processor_ratio_vs_transformers_generate_fp32": round(cpu["onward_fp32"] / best(cpu, "transformers_fp32"), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
