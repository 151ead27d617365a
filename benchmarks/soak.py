"""Kill -9 a training run a hundred times, in its steps and in its checkpoints, and see that it always goes on.

    python benchmarks/soak.py [--quick] [--kills 100] [--seed S] [--work FOLDER]

A tiny random model on made text, one process on the CPU in fp32, a checkpoint every few steps: every second start
writes it in the background. Half of the kills come while a checkpoint is half written (the moment is waited for), most
others at a random moment of a step, some while the process is still loading. A run that has come to its end is
compared with one that nobody interrupted, bit by bit (losses, weights, both moments), and another is begun, until all
kills are spent. A process is a forked child of one that has imported torch, so a restart costs tenths of a second.

steps_lost_max: recorded steps that a kill made the run do again; a checkpoint written in the foreground bounds it by
interval_steps, one in the background by that and what is trained while it is written, interval_steps again at most.
The last line is flat JSON; the exit status is 1 when a run did not go on, lost more, or ended otherwise.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from onward.model.source import describe
from onward.recipe import Training
from onward.training.record import read_rows
from onward.training.train import train
from onward.verification.outcome import weights_apart
from packed_rows import write_base, write_corpus
from shapes import SHAPES

FORK = multiprocessing.get_context("fork")
SEQUENCE_TOKENS, ROWS_PER_STEP, INTERVAL = 64, 4, 3
STEPS = 60
"""Of one run; a hundred kills take several runs."""
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Inputs:
    """What every run is made from."""

    base: Path
    corpus: Path


@dataclass
class Tally:
    """What the kills did."""

    kills: int = 0
    while_saving: int = 0
    while_loading: int = 0
    lost: dict[str, list[int]] = field(default_factory=lambda: {"foreground": [0], "background": [0]})
    ended: int = 0
    equal: int = 0
    failures: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="12 kills: under a minute.")
    parser.add_argument("--kills", type=int, help="How many times a run is killed. [default: 100]")
    parser.add_argument("--seed", type=int, default=0, help="Of the moments.")
    parser.add_argument("--work", type=Path, help="Scratch folder. [default: a temporary one]")
    arguments = parser.parse_args()
    kills = arguments.kills or (12 if arguments.quick else 100)
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-", dir=arguments.work) as folder:
        facts = soak(Path(folder), kills, random.Random(arguments.seed))
    facts["seconds"] = round(time.monotonic() - began, 1)
    print(json.dumps(facts))
    sys.exit(0 if facts["bit_equal"] and facts["within_interval"] else 1)


def soak(place: Path, kills: int, chosen: random.Random) -> dict[str, Any]:
    """Spend the kills and return the facts."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(500)]
    documents = [" ".join(draw.choices(words, k=draw.randint(5, 60))) for _ in range(300)]
    base = place / "base"
    write_base(base, SHAPES["tiny"], SEQUENCE_TOKENS, documents)
    inputs = Inputs(base, write_corpus(place / "text", base, SEQUENCE_TOKENS, documents))
    reference = place / "reference"
    status = ended(start(inputs, reference, "foreground"))
    assert status == 0, "the uninterrupted run did not end"
    tally = Tally()
    while (tally.kills < kills or not tally.ended) and not tally.failures:
        run = place / f"run-{tally.ended}"
        one_run(inputs, run, kills, chosen, tally)
        if not tally.failures:
            tally.ended += 1
            tally.equal += is_equal(run, reference)
            shutil.rmtree(run)
            print(f"{tally.kills} kills, {tally.ended} runs ended, {tally.equal} of them equal to the bit", flush=True)
    for failure in tally.failures:
        print(failure, file=sys.stderr)
    return facts_of(tally)


def facts_of(tally: Tally) -> dict[str, Any]:
    """Return the last line."""
    lost = {mode: max(steps) for mode, steps in tally.lost.items()}
    return {
        "kills": tally.kills,
        "kills_while_saving": tally.while_saving,
        "kills_while_loading": tally.while_loading,
        "runs": tally.ended,
        "steps_lost_max": lost["foreground"],
        "steps_lost_max_background": lost["background"],
        "interval_steps": INTERVAL,
        "within_interval": lost["foreground"] <= INTERVAL and lost["background"] <= 2 * INTERVAL,
        "bit_equal": tally.ended > 0 and tally.equal == tally.ended and not tally.failures,
    }


def one_run(inputs: Inputs, run: Path, kills: int, chosen: random.Random, tally: Tally) -> None:
    """Start and kill a run until it comes to its end, or all kills are spent and it may."""
    while True:
        mode = ("foreground", "background")[tally.kills % 2]
        begun, whole = starts(run), resumable(run)
        child = start(inputs, run, mode)
        if tally.kills < kills:
            await_moment(child, run, len(begun), chosen)
            child.kill()
        status = ended(child)
        if starts(run)[len(begun) :] not in ([], [whole]):
            tally.failures.append(f"gone on with at {starts(run)[-1]}, with a checkpoint after {whole} steps")
            return
        if status == 0:
            return
        if status != -signal.SIGKILL:
            tally.failures.append(f"after {tally.kills} kills a start ended with status {status}")
            return
        tally.kills += 1
        if len(starts(run)) == len(begun):
            tally.while_loading += 1
            continue
        tally.while_saving += any((run / "checkpoints").glob(".*.building"))
        tally.lost[mode].append(len(read_rows(run / "metrics.jsonl")) - resumable(run))


def start(inputs: Inputs, run: Path, mode: str) -> Any:
    """Fork a process that trains."""
    child = FORK.Process(target=work, args=(inputs, run, mode))
    child.start()
    return child


def work(inputs: Inputs, run: Path, mode: str) -> None:
    """Train to the end in this process."""
    step_tokens = SEQUENCE_TOKENS * ROWS_PER_STEP
    settings = {
        "stages": [STEPS // 2 * step_tokens, STEPS * step_tokens],
        "sequence_tokens": SEQUENCE_TOKENS,
        "batch_tokens": step_tokens,
        "micro_batch_sequences": 2,
        "maximum_repetition": 100,
        "optimizer": {"learning_rate": 1e-3},
        "forgetting": {"replay": None},
        "precision": "fp32",
        "checkpoint_tokens": INTERVAL * step_tokens,
        "background_checkpoints": mode == "background",
    }
    training = Training.model_validate(settings)
    train(training, base=describe(inputs.base), corpora={"domain": inputs.corpus}, seed=1, run_folder=run)


def ended(child: Any) -> int:
    """Wait for a child's end and return its status; minus nine after a kill."""
    child.join(PATIENCE_SECONDS)
    if child.is_alive():
        child.kill()
        child.join()
        raise TimeoutError(f"a run made no end within {PATIENCE_SECONDS:.0f} s")
    return int(child.exitcode)


def await_moment(child: Any, run: Path, begun: int, chosen: random.Random) -> None:
    """Return at a random moment: in a save, in a step, or in one kill of eight before the first step."""
    kind = chosen.choices(("save", "step", "load"), weights=(4, 3, 1))[0]
    if kind == "load":
        child.join(chosen.uniform(0, 0.3))
        return
    while child.is_alive() and len(starts(run)) == begun:
        time.sleep(0.001)
    first = starts(run)[-1] if len(starts(run)) > begun else 0
    target = first + chosen.randrange(2 * INTERVAL + 1)
    for _ in looks(child):
        if len(read_rows(run / "metrics.jsonl")) >= target:
            break
    if kind == "save":
        for _ in looks(child):
            if any((run / "checkpoints").glob(".*.building")):
                break
    child.join(chosen.uniform(0, 0.02))


def looks(child: Any) -> Iterator[None]:
    """Yield a thousand times a second while the child lives."""
    while child.is_alive():
        yield
        time.sleep(0.001)


def starts(run: Path) -> list[int]:
    """Return the steps at which the run was begun or gone on with."""
    return [row["step"] for row in read_rows(run / "events.jsonl") if row["event"] in ("start", "resume")]


def resumable(run: Path) -> int:
    """Return the steps of the newest whole checkpoint; 0 without one."""
    manifests = run.glob("checkpoints/[!.]*/manifest.json")
    return max((json.loads(path.read_bytes())["made_from"]["step"] for path in manifests), default=0)


def is_equal(run: Path, reference: Path) -> bool:
    """Whether a run recorded what the reference recorded and ended with its bits, at the end of both stages."""
    figures = ("step", "batch", "labelled_tokens", "loss_nats", "gradient_norm", "learning_rate")
    mine, other = (
        [[row[name] for name in figures] for row in read_rows(f / "metrics.jsonl")] for f in (run, reference)
    )
    ends = sorted(path.name for path in (reference / "checkpoints").glob("tokens-*"))
    assert len(ends) == 2
    places = [(run / "checkpoints" / name, reference / "checkpoints" / name) for name in ends]
    return mine == other and all(weights_apart(one, two).same_bits for one, two in places)


if __name__ == "__main__":
    main()
