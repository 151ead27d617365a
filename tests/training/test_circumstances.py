"""What befalls a run: signals, a full disk, damage, losses that are no numbers, too little memory, ranks that die.

Commands are forked children of this process, which has imported torch; only the ranks of torchrun import it anew.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

import onward.cli
import onward.training.checkpoint as checkpoint
import small_run
from onward.artifact import Folders, read_manifest
from onward.errors import UserError
from onward.pipeline import Run
from onward.terminal import Terminal
from onward.training.network import Network, Rows
from onward.training.ranks import joined, leave
from onward.training.record import read_rows

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

FORK = multiprocessing.get_context("fork")
HERE = Path(__file__).parent
CHANGES: dict[str, Any] = {
    "training__micro_batch_sequences": 5,  # two micro-batches a step
    "training__checkpoint_tokens": 960,  # a state after every second of the eight steps
}
FIGURES = ("step", "batch", "labelled_tokens", "loss_nats", "gradient_norm", "learning_rate", "applied")
Forward = Callable[[Network, Rows, bool], torch.Tensor]


class Notes:
    """A progress that keeps what is noted."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def begin(self, title: str, total: int | None, unit: str) -> None: ...
    def advance(self, done: int, facts: str = "") -> None: ...
    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return small_run.write_inputs(tmp_path_factory.mktemp("circumstances") / "inputs")


@pytest.fixture(scope="module")
def reference(inputs: Path) -> Path:
    """The folder of a run that nothing befell; its caches serve all others."""
    folders = Folders(inputs.parent / "cache", inputs.parent / "runs")
    return Run(small_run.recipe(inputs, **CHANGES), folders=folders, workers=1).all().folder


def opened(inputs: Path, runs: Path, progress: Any = None, **changes: Any) -> Run:
    recipe = small_run.recipe(inputs, **CHANGES | changes)
    return Run(recipe, folders=Folders(inputs.parent / "cache", runs), progress=progress, workers=1)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [{name: row[name] for name in FIGURES} for row in read_rows(run / "metrics.jsonl")]


def losses(run: Path) -> list[float]:
    return [row["loss_nats"] for row in read_rows(run / "metrics.jsonl")]


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "events.jsonl") if row["event"] == name]


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for path in (folder / "state").glob("*.safetensors") for name, value in load_file(path).items()}


def assert_same(run: Path, reference: Path) -> None:
    """Every step's figures and the states at the ends of both stages are equal to the bit."""
    assert rows_of(run) == rows_of(reference)
    for name in ("tokens-000001920", "tokens-000003840"):
        mine, other = state(run / "checkpoints" / name), state(reference / "checkpoints" / name)
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[key], other[key]) for key in mine)


# --- the command line, in a forked child -----------------------------------------------------------------------------


def command(arguments: list[str], said: Path, prepare: Callable[[], None] | None) -> None:
    """The `onward` command in this process, as its entry point runs it."""
    with open(said, "w", buffering=1) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv, sys.stderr = ["onward", *arguments], open(2, "w", buffering=1, closefd=False)
    if prepare is not None:
        prepare()
    onward.cli.main()


def start(arguments: list[str], said: Path, prepare: Callable[[], None] | None = None) -> Any:
    child = FORK.Process(target=command, args=(arguments, said, prepare))
    child.start()
    return child


def ended(arguments: list[str], said: Path, prepare: Callable[[], None] | None = None) -> int:
    """Run a command to its end and return its exit status."""
    child = start(arguments, said, prepare)
    child.join()
    return int(child.exitcode)


def command_line(name: str, inputs: Path, place: Path, *more: str, **changes: Any) -> list[str]:
    recipe = place / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_run.content(inputs, **CHANGES | changes)), encoding="utf-8")
    cache, runs = str(inputs.parent / "cache"), str(place / "runs")
    return [name, str(recipe), "--cache", cache, "--runs", runs, "--workers", "1", *more]


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def in_a_step() -> None:
    """SIGTERM in the first of the two micro-batches of a step."""
    forward, calls = Network.forward, 0

    def terminating(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        nonlocal calls
        calls += not hidden_only and self.training and torch.is_grad_enabled()
        if calls == 7:
            terminate()
        return forward(self, rows, hidden_only)

    Network.forward = terminating  # type: ignore[method-assign]


def in_a_save() -> None:
    """SIGTERM after the tensors of the first checkpoint were written, before it is complete."""
    write, calls = checkpoint.write_pieces, 0

    def terminating(*arguments: Any) -> Any:
        nonlocal calls
        written = write(*arguments)
        calls += 1
        if calls == 1:
            terminate()
        return written

    checkpoint.write_pieces = terminating


def in_an_evaluation() -> None:
    """SIGTERM in the middle of the scoring of a stage, with a part of it done."""

    class Terminating(Terminal):
        stage_is_trained = False

        def begin(self, title: str, total: int | None, unit: str) -> None:
            super().begin(title, total, unit)
            self.stage_is_trained = self.stage_is_trained or title == "train"

        def advance(self, done: int, facts: str = "") -> None:
            super().advance(done, facts)
            if self.stage_is_trained and self._title.startswith("scoring"):
                terminate()

    onward.terminal.Terminal = Terminating  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "prepare", "background"),
    [
        ("train", in_a_step, True),
        ("train", in_a_save, False),
        ("train", in_a_save, True),
        ("run", in_an_evaluation, True),
    ],
    ids=["step", "save", "background-save", "evaluation"],
)
def test_sigterm_ends_it_with_143_and_the_same_command_goes_on_to_the_same_bits(
    inputs: Path, reference: Path, tmp_path: Path, name: str, prepare: Callable[[], None], background: bool
) -> None:
    arguments = command_line(name, inputs, tmp_path, training__background_checkpoints=background)
    said, run = tmp_path / "said", tmp_path / "runs" / "small"
    assert ended(arguments, said, prepare) == 128 + signal.SIGTERM, said.read_text()
    assert "Traceback" not in said.read_text()
    assert not list(run.glob("checkpoints/.*")), "nothing half made is left"
    if prepare is not in_an_evaluation:
        reached = 3 if prepare is in_a_step else len(rows_of(run))
        assert f"stopped by SIGTERM at step {reached};" in said.read_text()
        assert read_manifest(run / "checkpoints" / f"step-{reached:08d}") is not None
    assert ended(arguments, said) == 0, said.read_text()
    assert_same(run, reference)
    if name == "run":
        for results in reference.glob("scores/*/results.json"):
            mine = json.loads((run / results.relative_to(reference)).read_bytes())
            assert mine["held_out"] == json.loads(results.read_bytes())["held_out"]


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MB in memory where the checkpoints go; the record of the run lies elsewhere."""
    place = tmp_path / "runs" / "small" / "checkpoints"
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fills_up(ballast: Path, when: int) -> Callable[[], None]:
    """Fill the disk before the files of a checkpoint are written."""

    def prepare() -> None:
        write, calls = checkpoint.write_pieces, 0

        def filling(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == when:
                with open(ballast, "wb", buffering=0) as file:
                    while True:
                        try:
                            file.write(bytes(4096))
                        except OSError:
                            break
            return write(*arguments)

        checkpoint.write_pieces = filling

    return prepare


@pytest.mark.parametrize("background", [False, True], ids=["foreground", "background"])
def test_a_full_disk_ends_it_as_a_users_error_and_it_goes_on_when_there_is_space(
    inputs: Path, reference: Path, small_disk: Path, tmp_path: Path, background: bool
) -> None:
    arguments = command_line("train", inputs, tmp_path, training__background_checkpoints=background)
    said, run, ballast = tmp_path / "said", tmp_path / "runs" / "small", small_disk / "ballast"
    assert ended(arguments, said, fills_up(ballast, when=3)) == 2, said.read_text()
    text = said.read_text()
    assert "error: the disk is full" in text
    assert "free some space" in text
    assert "Traceback" not in text
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "step-00000002", "tokens-000001920"]
    ballast.unlink()
    assert ended(arguments, said) == 0, said.read_text()
    assert_same(run, reference)


def damage_flip(folder: Path) -> Path:
    path = next(iter((folder / "state").glob("*.safetensors")))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    return path


def damage_cut(folder: Path) -> Path:
    path = folder / "state" / "cursor.json"
    path.write_bytes(path.read_bytes()[:-3])
    return path


@pytest.mark.parametrize("damage", [damage_flip, damage_cut], ids=["flipped-bit", "cut"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_gone_on_from(
    inputs: Path, reference: Path, tmp_path: Path, damage: Callable[[Path], Path]
) -> None:
    notes = Notes()
    run = opened(inputs, tmp_path, notes)
    run.train(until_step=6)
    damaged = damage(run.folder / "checkpoints" / "step-00000006")
    run.train()
    (said,) = [note for note in notes.notes if "damaged" in note]
    assert str(damaged) in said
    assert [event["step"] for event in events(run.folder, "resume")] == [4]
    assert_same(run.folder, reference)


# --- the loss --------------------------------------------------------------------------------------------------------


def befalls(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Network, Rows, torch.Tensor], torch.Tensor]
) -> None:
    """Change the summed loss of training's forward passes, counted from 0; the checks at the start are left out."""
    forward: Forward = Network.forward
    calls = -1

    def changed(self: Network, rows: Rows, hidden_only: bool = False) -> torch.Tensor:
        nonlocal calls
        loss = forward(self, rows, hidden_only)
        if hidden_only or not torch.is_grad_enabled():
            return loss
        calls += 1
        return change(calls, self, rows, loss)

    monkeypatch.setattr(Network, "forward", changed)


def test_a_batch_whose_loss_is_no_number_is_left_out_and_named(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, lambda call, network, rows, loss: loss * float("nan") if call == 5 else loss)
    notes = Notes()
    run = opened(inputs, tmp_path, notes)
    assert len(run.train()) == 2
    assert [row["applied"] for row in rows_of(run.folder)] == [True, True, False, True, True, True, True, True]
    assert rows_of(run.folder)[:2] == rows_of(reference)[:2]
    (left_out,) = events(run.folder, "update_left_out")
    assert (left_out["at"], left_out["kind"], left_out["action"]) == (2, "not_a_number", "skip")
    assert len(left_out["sequences"]) == 10
    assert sum(name.startswith("general sequence ") for name in left_out["sequences"]) == 1
    assert any("step 2" in note and "not a number" in note for note in notes.notes)
    assert all(torch.isfinite(value).all() for value in state(run.folder / "checkpoints/tokens-000003840").values())


def test_losses_that_stay_no_numbers_stop_it_with_a_diagnosis_and_a_good_checkpoint(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, lambda call, network, rows, loss: loss * float("nan") if call >= 5 else loss)
    run = opened(inputs, tmp_path, training__guard={"patience": 3})
    with pytest.raises(UserError, match="not a number") as stopped:
        run.train()
    assert [row["step"] for row in rows_of(run.folder) if not row["applied"]] == [2, 3, 4]
    assert "step 4 (" in str(stopped.value)
    assert "sequence" in str(stopped.value)
    assert "learning rate" in str(stopped.value), "weights that give no number any more"
    assert events(run.folder, "update_left_out")[-1]["action"] == "stop"
    newest = max((run.folder / "checkpoints").glob("[!.]*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    assert all(torch.isfinite(value).all() for value in state(newest.parent).values())
    # What lay behind it mended, the same command goes on.
    monkeypatch.undo()
    assert len(run.train()) == 2


LEAPS = {"window_steps": 8, "spike_deviations": 3.0, "spike_nats": 2.0}


def leap(call: int, network: Network, rows: Rows, loss: torch.Tensor) -> torch.Tensor:
    """The loss of step 5 is three times as high."""
    return loss * 3 if call in (10, 11) else loss


def test_a_leap_of_the_loss_is_skipped(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, leap)
    run = opened(inputs, tmp_path, training__guard=LEAPS)
    run.train()
    assert [row["step"] for row in rows_of(run.folder) if not row["applied"]] == [5]
    (left_out,) = events(run.folder, "update_left_out")
    assert (left_out["at"], left_out["kind"], left_out["action"]) == (5, "spike", "skip")
    assert rows_of(run.folder)[:5] == rows_of(reference)[:5]
    cursor = json.loads((run.folder / "checkpoints/tokens-000003840/state/cursor.json").read_bytes())
    assert (cursor["step"], cursor["updates"]) == (8, 7)


def test_a_leap_of_the_loss_is_rolled_back_and_the_batches_since_are_left_out(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, leap)
    # The last state before the leap is the first stage's end, after four steps: step 4 is undone too.
    run = opened(inputs, tmp_path, training__guard=LEAPS | {"spike": "rollback"})
    run.train()
    (rollback,) = events(run.folder, "rollback")
    assert (rollback["to"], rollback["batches_left_out"]) == (4, 2)
    assert len(rows_of(run.folder)) == 8
    cursor = json.loads((run.folder / "checkpoints/tokens-000003840/state/cursor.json").read_bytes())
    assert (cursor["step"], cursor["updates"]) == (8, 6)


def test_a_leap_of_the_loss_stops_it(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, leap)
    run = opened(inputs, tmp_path, training__guard=LEAPS | {"spike": "stop"})
    with pytest.raises(UserError, match="leaps") as stopped:
        run.train()
    assert "step 5 (" in str(stopped.value)
    assert "the last checkpoint is untouched" in str(stopped.value)


# --- memory ----------------------------------------------------------------------------------------------------------

FULL = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
}


def too_small(most_rows: int, kind: str, needs_recomputation: bool = False) -> Any:
    """The memory is full for more rows in a forward pass, or while activations are kept."""

    def change(call: int, network: Network, rows: Rows, loss: torch.Tensor) -> torch.Tensor:
        recomputes = all(getattr(block, "gradient_checkpointing", False) for block in network.blocks)
        if len(rows.ids_N) > most_rows * rows.longest or (needs_recomputation and not recomputes):
            raise FULL[kind]()
        return loss

    return change


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_too_little_memory_retreats_to_smaller_pieces_with_the_same_mathematics(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    befalls(monkeypatch, too_small(3, kind))
    notes = Notes()
    run = opened(inputs, tmp_path, notes, training__micro_batch_sequences="auto")
    run.train(until_step=5)
    retreats = events(run.folder, "retreat")
    assert [event["step"] for event in retreats] == [0] * len(retreats)
    micro_batches = [event["now"]["micro_batch"] for event in retreats]
    assert micro_batches == sorted(micro_batches, reverse=True)
    assert 1 <= micro_batches[-1] <= 3
    assert all(event["now"]["checkpoint_every"] == 0 for event in retreats), "smaller pieces were enough"
    assert any("the memory is full; going on with micro_batch" in note for note in notes.notes)
    run.train()
    assert len(events(run.folder, "retreat")) == len(retreats), "a restart begins where it had to go"
    assert events(run.folder, "resume")[0]["micro_batch"] == micro_batches[-1]
    assert losses(run.folder) == pytest.approx(losses(reference), rel=0, abs=1e-5)


def test_too_little_memory_for_one_row_retreats_to_recomputation(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, too_small(5, "cpu", needs_recomputation=True))
    run = opened(inputs, tmp_path, training__micro_batch_sequences="auto")
    run.train()
    last = events(run.folder, "retreat")[-1]["now"]
    assert last["checkpoint_every"] >= 1
    assert losses(run.folder) == pytest.approx(losses(reference), rel=0, abs=1e-5)


def test_too_little_memory_for_anything_says_what_would_help(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, too_small(0, "cpu"))
    run = opened(inputs, tmp_path, training__micro_batch_sequences="auto")
    with pytest.raises(UserError, match="nothing is left to give up") as stopped:
        run.train()
    assert "a smaller model" in str(stopped.value)


# --- several ranks ---------------------------------------------------------------------------------------------------


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


def wait_for_rows(run: Path, number: int, child: Any) -> None:
    while child.is_alive() and len(read_rows(run / "metrics.jsonl")) < number:
        time.sleep(0.01)


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


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_every_rank_exits_cleanly_five_times_in_a_row(reference: Path) -> None:
    for _ in range(5):
        port = free_port()
        ranks = [FORK.Process(target=meet, args=(rank, port)) for rank in range(2)]
        for rank in ranks:
            rank.start()
        try:
            for rank in ranks:
                rank.join(30)
            assert [rank.exitcode for rank in ranks] == [0, 0]
        finally:
            for rank in ranks:
                rank.kill()
                rank.join()
