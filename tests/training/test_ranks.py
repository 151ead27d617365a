"""What befalls several ranks: one dies, memory is too small for one, all are told to end."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from circumstances import FORK, FORKS, command_line, ended, events, losses, opened, rows_of, start
from safetensors.torch import load_file

from onward.artifact import read_manifest
from onward.training.ranks import joined, leave
from onward.training.record import read_rows

pytestmark = FORKS

HERE = Path(__file__).parent


def with_fault(place: Path, **fault: Any) -> Callable[[], None]:
    """Have torchrun start its ranks by `ranks_faulty.py`."""
    stand_in = place / "python"
    stand_in.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "ranks_faulty.py"} "$@"\n')
    stand_in.chmod(0o755)

    def prepare() -> None:
        os.environ |= {"PYTHON_EXEC": str(stand_in), "FAULT": json.dumps(fault)}

    return prepare


def processes_of(place: Path) -> list[psutil.Process]:
    """The processes whose command names something in a folder, whoever started them."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(str(place) in word for word in process.info["cmdline"] or [])]


# Four torchruns, one after another: to die, to be out of memory, to begin again, to score. Each is three processes that
# import torch (the ranks transformers too, 3.6 s of CPU time each), 8 to 15 s at a load of four. In all 20 s on two
# quiet cores, 50 s at that load, and up to 126 s on a busier machine.
@pytest.mark.timeout(300)
def test_a_run_on_two_ranks_that_loses_one_and_then_memory_is_the_run_of_one_process(
    inputs: Path, reference: Path, tmp_path: Path
) -> None:
    more = {"training__stages": [1920], "training__micro_batch_sequences": "auto"}
    more["training__background_checkpoints"] = False  # the third step begins when the second is saved
    arguments = command_line("run", inputs, tmp_path, "--processes", "2", **more)
    said, run = tmp_path / "said", tmp_path / "runs" / "small"

    # One rank is killed in its third step: the other does not wait for it, and the report names it.
    death = tmp_path / "death"
    child = start(arguments, said, with_fault(tmp_path, rank=1, dies_in_step=3, once=str(death)))
    while child.is_alive() and not death.exists():
        time.sleep(0.01)
    died = time.monotonic()
    child.join()
    assert time.monotonic() - died < 30, "a generous bound"
    text = said.read_text()
    assert child.exitcode not in (0, 2), text
    assert "Signal 9 (SIGKILL)" in text, "torchrun's report"
    assert "local_rank: 1" in text
    assert not processes_of(tmp_path)
    assert read_manifest(run / "checkpoints" / "step-00000002") is not None

    # The same command goes on, and meets too little memory: a rank has five rows of a step, and four are too many.
    assert ended(arguments, said, with_fault(tmp_path, rank=1, most_rows=3)) == 0, said.read_text()
    text = said.read_text()
    assert "the memory is full\n  where     cpu\n  got       rank 1: made up: tried to allocate" in text
    assert "beginning again with what the ranks have left to give up" in text
    assert not any(word in text for word in ("exitcode", "Traceback")), "torchrun adds nothing"
    begun = [*events(run, "start"), *events(run, "resume")]
    assert [(event["step"], event["ranks"]) for event in begun] == [(0, 2), (2, 2), (2, 2)]
    assert begun[-1]["micro_batch"] <= 3 < begun[0]["micro_batch"]
    assert [row["batch"] for row in rows_of(run)] == [row["batch"] for row in rows_of(reference)][:4]
    assert losses(run) == pytest.approx(losses(reference)[:4], rel=0, abs=1e-5)
    mine, other = (
        json.loads((folder / "scores/tokens-000001920/results.json").read_bytes())["held_out"]
        for folder in (run, reference)
    )
    assert [text["bits_per_byte"] for text in mine] == pytest.approx(
        [text["bits_per_byte"] for text in other], abs=1e-4
    )
    assert (run / "report").is_dir()
    assert not processes_of(tmp_path)


def test_sigterm_to_the_command_of_two_ranks_saves_and_one_process_goes_on(
    inputs: Path, reference: Path, tmp_path: Path
) -> None:
    said, run = tmp_path / "said", tmp_path / "runs" / "small"
    child = start(command_line("train", inputs, tmp_path, "--processes", "2"), said)
    while child.is_alive() and not read_rows(run / "metrics.jsonl"):
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGTERM)
    child.join()
    assert child.exitcode == 128 + signal.SIGTERM, said.read_text()
    assert not processes_of(tmp_path)
    assert "Traceback" not in said.read_text()
    reached = len(rows_of(run))
    assert f"stopped by SIGTERM at step {reached};" in said.read_text()
    assert ended(command_line("train", inputs, tmp_path), said) == 0, said.read_text()
    assert [event["step"] for event in events(run, "resume")] == [reached]
    assert [row["batch"] for row in rows_of(run)] == [row["batch"] for row in rows_of(reference)]
    assert losses(run) == pytest.approx(losses(reference), rel=0, abs=1e-5)


def meet(rank: int, port: int) -> None:
    """A rank that joins, agrees with the other twice over, and leaves."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for meeting in range(2):
        if meeting and rank:
            time.sleep(0.2)  # the first rank must not take the addresses of the first meeting for those of the second
        with joined() as ranks:
            assert ranks.agree(10 * meeting + rank) == 10 * meeting
            assert ranks.gather(rank) == [0, 1]
    leave(0)


def trained(rank: int, port: int, inputs: Path, runs: Path, changes: dict[str, Any]) -> None:
    """A rank that trains as srun would have it: started for itself."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    opened(inputs, runs, **changes).train()
    leave(0)


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_a_model_between_that_two_ranks_share_is_whole_and_that_of_one_process(
    inputs: Path, reference: Path, tmp_path: Path, sharding: str
) -> None:
    changes: dict[str, Any] = {"training__stages": [1440], "evaluation__at": [960]}
    alone = opened(inputs, tmp_path / "alone", **changes)
    alone.train()
    both(trained, inputs, tmp_path / "two", changes | {"training__sharding": sharding})
    run = tmp_path / "two" / "small"
    assert [(event["ranks"], event["sharding"]) for event in events(run, "start")] == [(2, sharding)]
    assert [(event["step"], event["folder"]) for event in events(run, "model")] == [(2, "tokens-000000960")]
    for folder in ("models/tokens-000000960", "checkpoints/tokens-000001440"):
        mine, other = (load_file(place / folder / "model/model.safetensors") for place in (run, alone.folder))
        assert {name: tensor.shape for name, tensor in mine.items()} == {n: t.shape for n, t in other.items()}
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, other[name], rtol=0, atol=1e-5, msg=f"{folder}: {name}")
    base, moved = (
        load_file(inputs / "model/model.safetensors"),
        load_file(run / "models/tokens-000000960/model/model.safetensors"),
    )
    assert all((moved[name] - base[name]).abs().max() > 1e-3 for name in base), "every weight has learned"


def both(target: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Run a function as two ranks that meet at a port, which must exit cleanly; return their exit codes."""
    port = free_port()
    ranks = [FORK.Process(target=target, args=(rank, port, *arguments)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    try:
        for rank in ranks:
            rank.join(60)
        codes = [rank.exitcode for rank in ranks]
        assert codes == [0, 0]
        return codes
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_every_rank_exits_cleanly_five_times_in_a_row(reference: Path) -> None:
    assert [both(meet) for _ in range(5)] == [[0, 0]] * 5
