"""How fast onward scores benchmark items, side by side with lm-evaluation-harness's `hf` model.

    python benchmarks/evaluation.py [DATA] [--quick] [--shapes tiny,125M] [--threads 1,2] [--precision fp32,bf16]
    python benchmarks/evaluation.py [DATA] --parity [--items 100] [--device cuda]

The same requests, built once by lm-eval's own tasks from evenly spaced items (MMLU: whole subjects after five examples,
so that these are shared by as many questions as in reality). Each side runs in a process of its own, in turn, and is
timed from built requests to log-likelihoods, token ids included; building prompts, loading the model and compiling it
(--compile, as `onward evaluate` does where there is much to score) are not.
lm-eval runs at each of its batch sizes 1, 8 and 32 (125M: 8 and 32), and its fastest run counts. `tiny` is onward/tiny,
`125M` has random weights. `needed` is the size of the prefix tree of the inputs, which no engine can undercut. The last
line is flat JSON.

--parity compares log-likelihoods, accuracies and standard errors with lm-eval's instead, in fp32: all items.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

from onward.model.source import TINY, resolve
from onward.recipe import TASKS
from onward.tasks import load_items
from packed_rows import TEXTS, read_documents, write_base
from scorers import SIDES, Job, Measured
from shapes import SHAPES
from thinned import thin_bench

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
_CONTEXT = 2048
FIVE_SHOT = "mmlu@5"


@dataclass(frozen=True)
class Size:
    """How one shape is measured: items of each task but MMLU, subjects of MMLU, and rounds whose median counts.

    batch_sizes: of lm-eval, whose fastest counts; the default of 1 is its slowest for the 125M and left out there.
    """

    items: Mapping[str, int]
    subjects: tuple[str, ...]
    rounds: int
    batch_sizes: tuple[int, ...]


_SOME = {"hellaswag": 16, "arc_easy": 32, "arc_challenge": 32, "piqa": 48, "winogrande": 64, "boolq": 24}
SIZES = {
    "tiny": Size(dict.fromkeys(_SOME, 150), ("management", "global_facts"), 2, (1, 8, 32)),
    "125M": Size(_SOME, ("management",), 1, (8, 32)),
}
"""Subjects with short prompts (396 tokens of onward/tiny; over all subjects 900): whole ones are affordable."""
QUICK = {
    "tiny": Size(dict.fromkeys(_SOME, 30), ("management",), 1, (1, 8, 32)),
    "125M": Size(dict.fromkeys(_SOME, 3), (), 1, (8,)),
}


@dataclass(frozen=True)
class Bench:
    """A shape's files: model folder, requests by task; and the items behind them by task."""

    shape: str
    folder: Path
    base: Path
    requests: Path
    items: dict[str, int]


@dataclass(frozen=True)
class Task:
    """One task in one setting, onward first, lm-eval second; medians over the rounds.

    seconds: from requests to log-likelihoods; encoding_seconds: of them for token ids; cpu_seconds: of the processor,
    which other processes on a busy machine blur less. computed_tokens: of all forward passes, padding included;
    needed_tokens: size of the prefix tree. padding_share: of lm-eval's computed tokens.
    """

    task: str
    name: str
    precision: str
    items: int
    requests: int
    seconds: tuple[float, float]
    encoding_seconds: tuple[float, float]
    cpu_seconds: tuple[float, float]
    computed_tokens: tuple[int, int]
    needed_tokens: int
    padding_share: float
    batch_size: int
    difference_nats: float

    @property
    def ratio(self) -> float:
        """How many times faster onward is."""
        return self.seconds[1] / self.seconds[0]

    @property
    def cpu_ratio(self) -> float:
        """The same by the processor's time."""
        return self.cpu_seconds[1] / self.cpu_seconds[0]

    @property
    def ratio_without_encoding(self) -> float:
        """The same for the forward passes alone."""
        ours, theirs = (whole - part for whole, part in zip(self.seconds, self.encoding_seconds, strict=True))
        return theirs / ours


def main() -> None:
    """Measure or compare what the arguments ask for, print a table and the line of JSON."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="Folder with bench/.")
    parser.add_argument("--quick", action="store_true", help="onward/tiny on one thread, few items: under a minute.")
    parser.add_argument("--shapes", help="Of tiny, 125M. [default: both]")
    parser.add_argument("--threads", help=f"Threads of each side. [default: 1 and all cores, {cores}]")
    parser.add_argument("--precision", default="fp32", help="Of fp32, bf16. [default: fp32]")
    parser.add_argument("--tasks", help=f"[default: the seven; and {FIVE_SHOT} with --parity]")
    parser.add_argument("--items", type=int, help="Items of each task (of each subject, for MMLU with --parity).")
    parser.add_argument("--rounds", type=int, help="Rounds, of which the medians count. [default: 2, 125M: 1]")
    parser.add_argument("--parity", action="store_true", help="Compare the numbers with lm-eval's, not the speed.")
    parser.add_argument("--compile", action="store_true", help="Compile onward's blocks first, as long evaluations do.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda. [default: cpu]")
    parser.add_argument("--work", type=Path, help="Scratch folder. [default: a temporary one]")
    arguments = parser.parse_args()
    quick = arguments.quick
    shapes = (arguments.shapes or ("tiny" if quick else "tiny,125M")).split(",")
    threads = [int(n) for n in (arguments.threads or ("1" if quick else f"1,{cores}")).split(",")]
    tasks = (arguments.tasks or ",".join((*TASKS, FIVE_SHOT) if arguments.parity else TASKS)).split(",")
    with tempfile.TemporaryDirectory(prefix="evaluation-", dir=arguments.work) as folder:
        if arguments.parity:
            facts = compare_numbers(arguments.data, Path(folder), shapes, tasks, arguments.items, arguments.device)
            print(json.dumps(facts))
            return
        found: list[Task] = []
        for shape in shapes:
            size = (QUICK if quick else SIZES)[shape]
            bench = prepare_bench(arguments.data, Path(folder) / shape, shape, size, tasks, arguments.items)
            for precision in arguments.precision.split(","):
                for count in dict.fromkeys(threads):
                    job = Job("", str(bench.base), str(bench.requests), precision, size.batch_sizes)
                    job = replace(job, compiled=arguments.compile, device=arguments.device)
                    found += compare(bench, job, count, arguments.rounds or size.rounds)
    print(json.dumps(facts_of(found)))


def prepare_bench(data: Path, folder: Path, shape: str, size: Size, tasks: Sequence[str], items: int | None) -> Bench:
    """Open or write the model, and build the requests. items: of each task but MMLU, in place of the size's."""
    folder.mkdir()
    counts = {task: items or size.items[task] for task in tasks if task != "mmlu"}
    thinned = thin_bench(data / "bench", folder / "bench", counts)
    pairs: dict[str, list[tuple[str, str]]] = {}
    counted: dict[str, int] = {}
    for task in tasks:
        if task == "mmlu":
            every = load_items([FIVE_SHOT], data / "bench", None)[FIVE_SHOT].items if size.subjects else ()
            chosen = tuple(item for item in every if item.subject in size.subjects)
        else:
            chosen = load_items([task], thinned, None)[task].items
        if chosen:
            pairs[task] = [pair for item in chosen for pair in item.requests]
            counted[task] = len(chosen)
    requests = folder / "requests.json"
    requests.write_text(json.dumps(pairs), encoding="utf-8")
    return Bench(shape, folder, open_base(data, folder / "base", shape), requests, counted)


def open_base(data: Path, folder: Path, shape: str) -> Path:
    """Return the folder of onward/tiny, or of a model of this shape with random weights, which is written."""
    if shape == "tiny":
        return resolve(TINY).folder
    write_base(folder, SHAPES[shape], _CONTEXT, read_documents(data, TEXTS[0]))
    return folder


def compare(bench: Bench, job: Job, threads: int, rounds: int) -> list[Task]:
    """Measure both sides in turn and print the table."""
    runs: dict[str, list[dict[str, Measured]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            runs[side].append(run_side(bench.folder, side, job, threads))
    name = f"{bench.shape.lower()}_{job.precision}_{threads}_thread{'' if threads == 1 else 's'}"
    found = [summarise(task, name, job.precision, count, runs) for task, count in bench.items.items()]
    print_table(found)
    return found


def summarise(task: str, name: str, precision: str, items: int, runs: Mapping[str, list[dict[str, Measured]]]) -> Task:
    """Put the rounds of both sides together."""
    rounds = {side: [run[task] for run in runs[side]] for side in SIDES}
    onward, hf = (rounds[side][0] for side in SIDES)

    def both(of: Callable[[Measured], float]) -> tuple[float, float]:
        ours, theirs = (median(map(of, rounds[side])) for side in SIDES)
        return ours, theirs

    return Task(
        task=task,
        name=name,
        precision=precision,
        items=items,
        requests=len(onward.logprobs),
        seconds=both(lambda one: one.seconds),
        encoding_seconds=both(lambda one: one.encoding_seconds),
        cpu_seconds=both(lambda one: one.cpu_seconds),
        computed_tokens=(onward.computed_tokens, hf.computed_tokens),
        needed_tokens=hf.needed_tokens,
        padding_share=1 - hf.row_tokens / hf.computed_tokens,
        batch_size=hf.batch_size,
        difference_nats=max(abs(a - b) for a, b in zip(onward.logprobs, hf.logprobs, strict=True)),
    )


def run_side(folder: Path, side: str, job: Job, threads: int) -> dict[str, Measured]:
    """Do one side's job in a process of its own; its errors end this benchmark."""
    file = folder / "job.json"
    file.write_text(json.dumps(asdict(job) | {"side": side}), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, str(Path(__file__).with_name("scorers.py")), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{side}:\n{done.stderr[-4000:]}")
    return {task: Measured(**facts) for task, facts in json.loads(done.stdout.splitlines()[-1]).items()}


def print_table(found: Sequence[Task]) -> None:
    """Print both sides in one setting."""
    print(f"\n{found[0].name}; of two numbers the first is onward's, the second lm-eval's")
    print(
        f"{'task':<14} {'items/s':>15} {'requests/s':>15} {'ratio':>6} {'by CPU':>6} {'passes':>6} {'batch':>5} "
        f"{'padding':>7} {'needed':>9} {'computed/needed':>15} {'ids, s':>13} {'nats':>8}"
    )
    for one in found:
        items, requests = ([count / taken for taken in one.seconds] for count in (one.items, one.requests))
        computed = [tokens / one.needed_tokens for tokens in one.computed_tokens]
        print(
            f"{one.task:<14} {items[0]:>7.1f} {items[1]:>7.1f} {requests[0]:>7.1f} {requests[1]:>7.1f} "
            f"{one.ratio:>6.2f} {one.cpu_ratio:>6.2f} {one.ratio_without_encoding:>6.2f} {one.batch_size:>5} "
            f"{one.padding_share:>7.1%} {one.needed_tokens:>9,} {computed[0]:>7.2f} {computed[1]:>7.2f} "
            f"{one.encoding_seconds[0]:>6.2f} {one.encoding_seconds[1]:>6.2f} {one.difference_nats:>8.1e}",
            flush=True,
        )


def facts_of(found: Sequence[Task]) -> dict[str, float]:
    """Return the flat figures; those without a setting in their name are the worst over all settings."""
    facts: dict[str, float] = {}
    for one in found:
        whole, nats = f"ratio_vs_lm_eval_{one.task}", f"largest_difference_nats_{one.precision}"
        facts[whole] = min(facts.get(whole, one.ratio), one.ratio)
        facts[nats] = max(facts.get(nats, 0.0), one.difference_nats)
    for one in found:
        setting = f"{one.task}_{one.name}"
        facts[f"ratio_vs_lm_eval_{setting}"] = one.ratio
        facts[f"ratio_vs_lm_eval_without_encoding_{setting}"] = one.ratio_without_encoding
        facts[f"cpu_time_ratio_{setting}"] = one.cpu_ratio
        facts[f"lm_eval_padding_share_{setting}"] = one.padding_share
        facts[f"needed_tokens_{setting}"] = one.needed_tokens
        for place, side in enumerate(SIDES):
            facts[f"{side}_items_per_s_{setting}"] = one.items / one.seconds[place]
            facts[f"{side}_requests_per_s_{setting}"] = one.requests / one.seconds[place]
            facts[f"{side}_computed_tokens_{setting}"] = one.computed_tokens[place]
    return {name: float(f"{value:.5g}") for name, value in facts.items()}


def compare_numbers(
    data: Path, folder: Path, shapes: Sequence[str], tasks: Sequence[str], items: int | None, device: str
) -> dict[str, float]:
    """Print the agreement of each task with lm-eval and return the flat figures."""
    from parity import HEADER, agreements, print_agreement

    bench = data / "bench"
    if items is not None:
        names = {task.partition("@")[0] for task in tasks}
        bench = thin_bench(bench, folder / "bench", dict.fromkeys(names, items))
    facts: dict[str, float] = {}
    for shape in shapes:
        print(f"\n{shape}, fp32\n{HEADER}", flush=True)
        for found in agreements(open_base(data, folder / shape, shape), tasks, bench, device=device):
            print_agreement(found)
            name = f"{found.task.replace('@', '_')}_{shape.lower()}"
            facts[f"parity_{name}"] = float(found.agrees)
            facts[f"parity_items_{name}"] = len(found.hf.logprobs)
            facts[f"parity_largest_difference_nats_{name}"] = max(found.inside_nats, found.own_nats)
    return {
        "parity": min(value for name, value in facts.items() if "_items_" not in name and "_nats_" not in name),
        **{name: float(f"{value:.5g}") for name, value in facts.items()},
    }


if __name__ == "__main__":
    main()
