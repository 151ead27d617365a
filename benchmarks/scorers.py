"""The two sides of `benchmarks/evaluation.py`, each in a process of its own: onward's engine and lm-eval's `hf` model.

    python benchmarks/scorers.py JOB.json

Both get the same (context, continuation) texts as built requests and return their log-likelihoods. The last line is
flat JSON: for each task the seconds, those of them that encoded texts, and the tokens of all forward passes.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from onward.model.prefix_tree import tree_tokens

WARM_UP = 4
"""Requests scored before the clock starts: the first forward pass sets up the kernels."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Job:
    """What one side is to do.

    side: onward or lm_eval. base: model folder. requests: JSON file of (context, continuation) pairs by task.
    precision: fp32 or bf16. batch_sizes: those that lm-eval runs with; its fastest counts.
    compiled: onward's blocks are compiled before the clock starts, as `onward evaluate` does where there is much to
    score. device: cpu or cuda.
    """

    side: str
    base: str
    requests: str
    precision: str
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    compiled: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Measured:
    """What a task took on one side.

    seconds: from built requests to log-likelihoods; encoding_seconds: those that made token ids of texts;
    cpu_seconds: of the processor, all threads together.
    computed_tokens: positions that forward passes computed, padding included; row_tokens: those of the distinct
    inputs that lm-eval computes, without padding; needed_tokens: size of the prefix tree of these inputs.
    batch_size: lm-eval's. logprobs: nats of every request.
    """

    seconds: float
    encoding_seconds: float
    cpu_seconds: float
    computed_tokens: int
    row_tokens: int
    needed_tokens: int
    batch_size: int
    logprobs: list[float]


def score_onward(job: Job, requests: dict[str, Pairs]) -> dict[str, Measured]:
    """Score with onward's engine, everything of a task at once."""
    from onward.model.heap import keep_freed_memory
    from onward.model.load import load_model
    from onward.model.score import Scorer, compile_to_score, encode_requests
    from onward.model.tokenizer import read_tokenizer

    model = load_model(Path(job.base), getattr(torch, DTYPES[job.precision]), job.device)
    tokenizer = read_tokenizer(Path(job.base))
    keep_freed_memory()
    measured = {}
    if job.compiled:
        assert compile_to_score(model, tokens=10**9), "there is no compiler"
        for pairs in requests.values():  # rows of another size may be compiled for
            Scorer(model).score(encode_requests(tokenizer, pairs[: 8 * WARM_UP]))
    for task, pairs in requests.items():
        Scorer(model).score(encode_requests(tokenizer, pairs[:WARM_UP]))
        scorer = Scorer(model)
        start, start_cpu = time.perf_counter(), time.process_time()
        encoded = encode_requests(tokenizer, pairs)
        between = time.perf_counter()
        scored = scorer.score(encoded)
        end, cpu = time.perf_counter(), time.process_time() - start_cpu
        tally, nats = scorer.tally, [one.logprob for one in scored]
        facts = (end - start, between - start, cpu, tally.computed_tokens, 0, tally.needed_tokens, 0)
        measured[task] = Measured(*facts, nats)
    return measured


def score_lm_eval(job: Job, requests: dict[str, Pairs]) -> dict[str, Measured]:
    """Score with lm-eval's `hf` model at every batch size; of each task its fastest run counts."""
    from parity import open_peer

    peer = open_peer(Path(job.base), 1, DTYPES[job.precision], job.device)
    watch = _Watch(peer)
    measured = {}
    for task, pairs in requests.items():
        peer.batch_size_per_gpu = 1
        peer.loglikelihood(_instances(pairs[:WARM_UP]), disable_tqdm=True)
        measured[task] = min((_at_size(peer, watch, pairs, size) for size in job.batch_sizes), key=lambda m: m.seconds)
    return measured


def _at_size(peer: Any, watch: "_Watch", pairs: Pairs, size: int) -> Measured:
    peer.batch_size_per_gpu = size
    watch.restart()
    start, start_cpu = time.perf_counter(), time.process_time()
    answers = peer.loglikelihood(_instances(pairs), disable_tqdm=True)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    rows = {(*before, *after)[-peer.max_length - 1 : -1] for _, before, after in watch.encoded}
    facts = (seconds, seconds - watch.seconds, cpu, watch.tokens, sum(map(len, rows)), tree_tokens(list(rows)), size)
    return Measured(*facts, [float(nats) for nats, _ in answers])


class _Watch:
    """Listens to lm-eval's model: the seconds spent on token ids, the requests as ids, the tokens of all passes."""

    def __init__(self, peer: Any) -> None:
        self.restart()
        score, call = peer._loglikelihood_tokens, peer._model_call

        def timed(requests: Any, **settings: Any) -> Any:
            self.encoded = requests
            start = time.perf_counter()
            answers = score(requests, **settings)
            self.seconds += time.perf_counter() - start
            return answers

        def counted(ids_BT: Any, **settings: Any) -> Any:
            self.tokens += ids_BT.numel()
            return call(ids_BT, **settings)

        peer._loglikelihood_tokens, peer._model_call = timed, counted

    def restart(self) -> None:
        """Forget what was counted."""
        self.seconds, self.tokens = 0.0, 0
        self.encoded: Any = []


def _instances(pairs: Pairs) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, (context, continuation), 0) for context, continuation in pairs]


SIDES: dict[str, Callable[[Job, dict[str, Pairs]], dict[str, Measured]]] = {
    "onward": score_onward,
    "lm_eval": score_lm_eval,
}


def main() -> None:
    """Do the job and print what it took."""
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    requests = json.loads(Path(job.requests).read_text(encoding="utf-8"))
    found = SIDES[job.side](job, {task: [(a, b) for a, b in pairs] for task, pairs in requests.items()})
    print(json.dumps({task: asdict(measured) for task, measured in found.items()}))


if __name__ == "__main__":
    main()
