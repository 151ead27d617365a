"""How fast a corpus is prepared, and where the time goes, against datatrove and against a tokenizer alone.

    python benchmarks/corpus.py [DATA] [--quick] [--work FOLDER] [--rounds N] [--ray]
    python benchmarks/corpus.py [DATA] --memory-text GB

The whole chain: read zst JSONL, all rules of the presets `gopher` and `fineweb`, exact and near duplicates, the items
of the seven tasks, tokenise, pack, write. One worker is this process; MB are of text, in UTF-8. What happens once for
a corpus however long (reading the benchmark items, building their index, comparing tokenizers) is given apart.
`--memory-text` prepares so many GB made from the sentences of the mixture, and gives the peak of memory. The last line
is flat JSON.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from memory import Memory
from onward.artifact import Folders
from onward.corpus.ledger import Count, Ledger
from onward.corpus.preparation import Items
from onward.corpus.prepare import prepare
from onward.model.tokenizer import LoadedTokenizer
from onward.progress import Silent
from onward.recipe import TASKS, Corpus
from onward.tasks import item_facts, load_questions
from shares import PARTS, Shares, measured
from texts import mixture, write_items, write_recombined, write_sample

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
SEQUENCE_TOKENS = 2048
FULL = {"one_of": 1, "peer_one_of": 60, "tokenizer_one_of": 12, "rounds": 3}
QUICK = {"one_of": 4, "peer_one_of": 500, "tokenizer_one_of": 100, "rounds": 1}


@dataclass(frozen=True)
class Bench:
    """What every measured call shares."""

    tokenizer: LoadedTokenizer
    items: Items
    work: Path


@dataclass(frozen=True)
class Outcome:
    """One call of `prepare`.

    start_seconds: before the first chunk was read. seconds, cpu_seconds: all after that, own_cpu_seconds of them in
    this process, which with several workers only reads, sends, sorts and writes.
    """

    start_seconds: float
    seconds: float
    cpu_seconds: float
    own_cpu_seconds: float
    ledger: Ledger

    @property
    def megabytes(self) -> float:
        """Text read."""
        return self.ledger.read.bytes / 1e6

    @property
    def mb_per_s(self) -> float:
        """MB of text in a second."""
        return self.megabytes / self.seconds


def main() -> None:
    """Measure what the arguments ask for, print a table and the line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--quick", action="store_true", help="A quarter of the text and one round: under a minute.")
    parser.add_argument("--work", type=Path, help="Scratch folder. [default: a temporary one]")
    parser.add_argument("--rounds", type=int, help="Rounds, of which the medians count. [default: 3]")
    parser.add_argument("--memory-text", type=float, metavar="GB", help="Prepare so much made text, for its memory.")
    parser.add_argument("--workers", type=int, default=2, help="Processes of the second measurement. [default: 2]")
    parser.add_argument("--ray", action="store_true", help="Also through Ray, started on this machine's cores.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corpus-", dir=arguments.work) as folder:
        work = Path(folder)
        questions_seconds, bench = prepare_bench(arguments.data, work)
        if arguments.memory_text is not None:
            facts = memory_of(bench, mixture(arguments.data), arguments.memory_text, arguments.workers)
        else:
            sizes = {**(QUICK if arguments.quick else FULL)}
            sizes["rounds"] = arguments.rounds or sizes["rounds"]
            facts = speeds(bench, mixture(arguments.data), arguments.workers, **sizes)
            facts["benchmark_items_seconds"] = questions_seconds
            if arguments.ray:
                facts |= through_ray(bench, mixture(arguments.data), sizes["one_of"])
    print(json.dumps({name: round(value, 4) for name, value in facts.items()}))


def prepare_bench(data: Path, work: Path) -> tuple[float, Bench]:
    """Read the tokenizer and the benchmark items, once; return also how long the items took."""
    file = data / "tokenizers" / "gpt2" / "tokenizer.json"
    tokenizer = LoadedTokenizer(file.read_text(encoding="utf-8"), 50256, None, 50256, None, 50257, "gpt2")
    started = time.perf_counter()
    questions = load_questions(TASKS, data / "bench", None)
    seconds = time.perf_counter() - started
    write_items(questions, work / "items.json")
    shutil.copy(file, work / "tokenizer.json")
    return seconds, Bench(tokenizer, Items(item_facts(TASKS, data / "bench", None), lambda: questions), work)


class Started(Silent):
    """Notes when the first chunk is about to be read, and what was used until the end."""

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """Note the time."""
        self.begun, self._cpu, self._own = time.perf_counter(), tree_cpu_seconds(), time.process_time()

    def end(self) -> tuple[float, float, float]:
        """Return the seconds since the beginning, the CPU seconds, and those of this process."""
        seconds, own = time.perf_counter() - self.begun, time.process_time() - self._own
        return seconds, tree_cpu_seconds() - self._cpu, own


def prepared(
    bench: Bench, files: Sequence[Path], workers: int, progress: Started | None = None, **engine: Any
) -> Outcome:
    """Prepare the files into a new cache, which is then removed."""
    corpus = Corpus.model_validate(
        {"sources": [{"path": str(path)} for path in files], "quality": ["gopher", "fineweb"]}
    )
    cache = Path(tempfile.mkdtemp(dir=bench.work))
    progress = progress or Started()
    started = time.perf_counter()
    result = prepare(
        corpus,
        tokenizer=bench.tokenizer,
        sequence_tokens=SEQUENCE_TOKENS,
        wanted_tokens=None,
        seed=0,
        folders=Folders(cache, cache),
        items=bench.items,
        workers=workers,
        progress=progress,
        **engine,
    )
    outcome = Outcome(progress.begun - started, *progress.end(), result.ledger)
    shutil.rmtree(cache)
    return outcome


def tree_cpu_seconds() -> float:
    """Return the CPU time of this process and of those it has started and waited for."""
    return sum(os.times()[:4])


def speeds(
    bench: Bench, files: list[Path], workers: int, *, one_of: int, peer_one_of: int, tokenizer_one_of: int, rounds: int
) -> dict[str, float]:
    """Measure the chain by itself, with more workers, in its parts, and the two peers; print the table."""
    peer_sample = write_sample(files, bench.work / "peer", peer_one_of)
    write_sample(files, bench.work / "tokens", tokenizer_one_of)
    chosen = files if one_of == 1 else write_sample(files, bench.work / "text", one_of)
    started = time.perf_counter()
    prepared(bench, peer_sample, 1)
    warm_up = time.perf_counter() - started
    ones: list[Outcome] = []
    more: list[Outcome] = []
    alone: list[dict[str, float]] = []
    for _ in range(rounds):
        ones.append(prepared(bench, chosen, 1))
        alone.append(peer(bench, "tokenizers", "tokens"))
        more.append(prepared(bench, chosen, workers))
    datatrove = peer(bench, "datatrove", "peer")
    same_text = prepared(bench, peer_sample, 1)
    shares = Shares()
    with Memory() as memory:
        prepared(bench, chosen, 1, Watched(shares), start_workers=measured(shares))
    one, several = (sorted(found, key=lambda outcome: outcome.seconds)[len(found) // 2] for found in (ones, more))
    hf = sorted(alone, key=lambda facts: facts["seconds"])[len(alone) // 2]
    print_speeds(one, several, workers, hf, datatrove, same_text)
    print_shares(shares)
    print_ledger(one.ledger)
    reading = 1000 * several.own_cpu_seconds / several.megabytes
    print(f"\nwith {workers} workers this process took {reading:.1f} CPU ms a MB")
    print(f"peak memory, one worker: {memory.peak_rss_mb:,.0f} MB")
    hf_mb_per_s, datatrove_mb_per_s = hf["text_mb"] / hf["seconds"], datatrove["text_mb"] / datatrove["seconds"]
    parts = shares.milliseconds()
    return {
        "text_mb": one.megabytes,
        "mb_per_s_per_core": one.mb_per_s,
        "mb_per_cpu_s": one.megabytes / one.cpu_seconds,
        "mb_per_s_two_workers": several.mb_per_s,
        "speedup_two_workers": several.mb_per_s / one.mb_per_s,
        "reading_process_cpu_ms_per_mb": reading,
        "ratio_vs_datatrove": one.mb_per_s / datatrove_mb_per_s,
        "ratio_vs_datatrove_same_sample": same_text.mb_per_s / datatrove_mb_per_s,
        "ratio_vs_hf_tokenizers": one.mb_per_s / hf_mb_per_s,
        "datatrove_mb_per_s": datatrove_mb_per_s,
        "hf_tokenizers_mb_per_s": hf_mb_per_s,
        "warm_up_seconds": warm_up,
        "start_seconds": one.start_seconds,
        "peak_rss_mb": memory.peak_rss_mb,
        "peak_pss_mb": memory.peak_pss_mb,
        **{f"share_{name}_percent": 100 * part / sum(parts.values()) for name, part in parts.items()},
    }


def through_ray(bench: Bench, files: list[Path], one_of: int) -> dict[str, float]:
    """Measure the chain on all cores of this machine through a Ray of its own."""
    from onward.corpus.ray_engine import ray_workers

    chosen = files if one_of == 1 else sorted((bench.work / "text").iterdir())
    outcome = prepared(bench, chosen, 1, start_workers=ray_workers(None))
    print(f"through Ray, all cores: {outcome.megabytes:.1f} MB in {outcome.seconds:.2f} s, {outcome.mb_per_s:.2f} MB/s")
    return {"mb_per_s_ray": outcome.mb_per_s}


class Watched(Started):
    """Tells the shares when reading begins and when a chunk has been sorted."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def begin(self, title: str, total: int | None, unit: str) -> None:
        """Note the time."""
        super().begin(title, total, unit)
        self._shares.begin()

    def advance(self, done: int, facts: str = "") -> None:
        """A chunk has been sorted."""
        self._shares.sorted()

    def end(self) -> tuple[float, float, float]:
        """The corpus is closed."""
        self._shares.end()
        return super().end()


def peer(bench: Bench, name: str, sample: str) -> dict[str, float]:
    """Run a peer in a process of its own and return the facts that it prints."""
    command = [sys.executable, str(Path(__file__).with_name("peers.py")), name, str(bench.work / sample)]
    command += ["--tokenizer", str(bench.work / "tokenizer.json"), "--items", str(bench.work / "items.json")]
    command += ["--work", str(bench.work / f"{name}-work")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def print_speeds(
    one: Outcome, several: Outcome, workers: int, hf: dict[str, float], datatrove: dict[str, float], same: Outcome
) -> None:
    """Print a row for each of what was measured, with how many times as fast the chain on one core is."""
    rows = [
        ("onward, 1 worker", one.megabytes, one.seconds, one.cpu_seconds),
        (f"onward, {workers} workers", several.megabytes, several.seconds, several.cpu_seconds),
        ("onward, 1 worker, datatrove's sample", same.megabytes, same.seconds, same.cpu_seconds),
        ("datatrove's chain", datatrove["text_mb"], datatrove["seconds"], datatrove["cpu_seconds"]),
        ("Hugging Face tokenizer alone", hf["text_mb"], hf["seconds"], hf["cpu_seconds"]),
    ]
    print(f"\n{'':<38}{'text MB':>9}{'seconds':>9}{'MB/s':>9}{'MB/CPU-s':>10}{'onward is':>11}")
    for name, megabytes, seconds, cpu in rows:
        pace = megabytes / seconds
        ratio = one.mb_per_s / pace
        print(f"{name:<38}{megabytes:>9.1f}{seconds:>9.2f}{pace:>9.2f}{megabytes / cpu:>10.2f}{ratio:>10.1f}x")


def print_shares(shares: Shares) -> None:
    """Print what each part takes of the time of one worker."""
    parts = shares.milliseconds()
    whole = sum(parts.values())
    print(f"\n{'part':<38}{'CPU ms a MB':>12}{'share':>9}")
    for name, part in parts.items():
        print(f"{PARTS[name]:<38}{part:>12.2f}{part / whole:>9.1%}")
    print(f"{'all':<38}{whole:>12.2f}{1:>9.0%}")


def print_ledger(ledger: Ledger) -> None:
    """Print where the text went."""
    ends = {
        "read": ledger.read,
        "dropped by rules": sum(ledger.dropped.values(), Count()),
        "duplicate": ledger.duplicate,
        "near duplicate": ledger.near_duplicate,
        "contaminated": ledger.contaminated,
        "held out": ledger.held_out,
        "kept": ledger.kept,
    }
    print(f"\n{'':<38}{'documents':>12}{'MB':>9}")
    for name, count in ends.items():
        print(f"{name:<38}{count.documents:>12,}{count.bytes / 1e6:>9.1f}")


def memory_of(bench: Bench, files: list[Path], gigabytes: float, workers: int) -> dict[str, float]:
    """Prepare made text with one worker and with more, and give the peak of memory."""
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # its memory is not to be measured
        made = pool.apply(write_recombined, (files, bench.work / "made", int(gigabytes * 1e9)))
    print(f"{gigabytes} GB of text made in {time.perf_counter() - started:.0f} s, {len(made)} files")
    facts: dict[str, float] = {}
    for name, count in (("one_worker", 1), ("more_workers", workers)):
        with Memory() as memory:
            outcome = prepared(bench, made, count)
        print(f"\n{count} of {workers} workers: {outcome.mb_per_s:.1f} MB/s, peak {memory.peak_rss_mb:,.0f} MB")
        print_ledger(outcome.ledger)
        facts |= {
            f"text_mb_{name}": outcome.megabytes,
            f"mb_per_s_{name}": outcome.mb_per_s,
            f"peak_rss_mb_{name}": memory.peak_rss_mb,
            f"peak_pss_mb_{name}": memory.peak_pss_mb,
        }
    return facts


if __name__ == "__main__":
    main()
