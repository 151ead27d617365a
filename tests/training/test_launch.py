import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from onward.cli import entry
from onward.errors import UserError
from onward.training.launch import (
    STATUS_FILE,
    Place,
    RanksEnded,
    another_has_said,
    count_gpus,
    find_place,
    first_host,
    meeting_point,
    processes_asked_for,
    run_ranks,
    tell_status,
)

SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
SRUN = {
    "SLURM_JOB_ID": "70412",
    "SLURM_STEP_ID": "3",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
}


def test_a_process_started_by_hand_is_alone() -> None:
    assert find_place({}) == Place(0, 1, 0, 1)
    assert find_place({}).is_first


def test_a_batch_script_of_slurm_is_one_process_whatever_the_job_has() -> None:
    batch = {"SLURM_JOB_ID": "70412", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert find_place(batch) == Place()


def test_a_rank_of_torchrun_knows_its_place() -> None:
    env = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert find_place(env) == Place(5, 8, 1, 4)
    env |= {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "1234"}
    assert meeting_point(env)["MASTER_ADDR"] == "10.0.0.7"
    assert meeting_point(env)["MASTER_PORT"] == "1234"


def test_a_task_of_srun_knows_its_place_and_where_to_meet() -> None:
    assert find_place(SRUN) == Place(5, 8, 1, 4)
    found = meeting_point(SRUN)
    assert (found["MASTER_ADDR"], found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"]) == ("gpu07", "5", "8", "1")
    others = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert meeting_point(others)["MASTER_PORT"] == found["MASTER_PORT"], "all tasks of a step meet at one port"
    later = {**SRUN, "SLURM_STEP_ID": "4"}
    assert meeting_point(later)["MASTER_PORT"] != found["MASTER_PORT"], "another step must not meet this one"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[07-08]", "gpu07"),
        ("gpu[3,5-9]", "gpu3"),
        ("node12", "node12"),
        ("a-1,b[2-3]", "a-1"),
        ("r[1-2]-gpu,login", "r1-gpu"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_gpus_are_counted_by_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, number in (("0,1,3", 3), ("", 0), ("-1", 0), ("GPU-8932f937", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == number


def test_more_gpus_than_there_are_is_refused_with_what_would_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert processes_asked_for(2, None) == 2
    assert processes_asked_for(None, None) == 1
    assert processes_asked_for(None, 3) == 3
    assert count_gpus() == 0, "processes of the CPU see no GPU"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match="3 GPUs were asked for") as caught:
        processes_asked_for(3, None)
    assert caught.value.todo == "--gpus 2"
    with pytest.raises(UserError, match="both GPUs and CPU processes"):
        processes_asked_for(1, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(UserError) as caught:
        processes_asked_for(1, None)
    assert "--processes" in str(caught.value)


def test_the_first_status_that_is_told_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))
    for status in (0, 2, 1):
        tell_status(status)
    assert (tmp_path / "status").read_text() == "2"
    monkeypatch.delenv(STATUS_FILE)
    tell_status(2)


@pytest.mark.parametrize(("status", "expected"), [(2, True), (1, False), (143, False), (None, False)])
def test_a_rank_knows_whether_another_has_said_what_to_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int | None, expected: bool
) -> None:
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))
    if status is not None:
        timer = threading.Timer(0.2, tell_status, [status])
        timer.start()
    assert another_has_said(5.0 if status is not None else 0.1) == expected
    monkeypatch.delenv(STATUS_FILE)
    assert not another_has_said(), "started elsewhere, where nobody waits"


def test_a_users_error_in_a_rank_has_its_own_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ending = run_ranks(["train", str(tmp_path / "missing.yaml")], 2)
    assert ending.status == 2
    said = capfd.readouterr().err
    assert said.startswith("error: the recipe cannot be read"), "one rank speaks for all, and torchrun not at all"
    assert str(tmp_path / "missing.yaml") in said
    assert not any(word in said for word in ("exitcode", "Traceback", "torch")), said
    assert ending.words.startswith("the recipe cannot be read"), "for a caller that keeps it"
    assert str(tmp_path / "missing.yaml") in ending.words
    assert str(RanksEnded(ending)) == ending.words


def test_a_rank_that_crashes_is_reported_by_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    crashing = script(tmp_path / "crashing", "kill -9 $$")
    monkeypatch.setenv("PYTHON_EXEC", str(crashing))
    ending = run_ranks(["train", "x"], 2)
    assert ending.status not in (0, 2)
    assert "printed above" in str(RanksEnded(ending)), "it could not say a word"
    assert "Signal 9 (SIGKILL)" in capfd.readouterr().err


def script(path: Path, *lines: str) -> Path:
    """A shell script that stands in for Python."""
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("own", [None, "7"], ids=["ours", "the-users"])
def test_torchrun_gives_ranks_that_are_told_to_end_ten_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str | None
) -> None:
    monkeypatch.delenv(SHUTDOWN, raising=False)
    if own is not None:
        monkeypatch.setenv(SHUTDOWN, own)
    noting = script(tmp_path / "noting", f"echo ${SHUTDOWN} > {tmp_path}/note")
    monkeypatch.setattr(sys, "executable", str(noting))
    assert run_ranks(["train", "x"], 2).status == 0
    assert (tmp_path / "note").read_text().strip() == (own or "600")


def test_the_installed_torchrun_understands_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.launcher.api import LaunchConfig

    if not hasattr(LaunchConfig, "shutdown_timeout"):
        pytest.skip("this torch has a fixed 30 seconds")
    monkeypatch.setenv(SHUTDOWN, "600")
    assert LaunchConfig(1, 1, 1).shutdown_timeout == 600


WAITING = """
import signal, sys, time
from pathlib import Path
from onward.training import launch
launch.sys.executable = sys.argv[1]
sys.exit(launch.run_ranks(sys.argv[2:], 2).status)
"""


def test_sigterm_reaches_the_ranks_and_ends_the_launcher(tmp_path: Path) -> None:
    # A stand-in for Python notes how the launcher was ended.
    stand_in = script(
        tmp_path / "python",
        f"trap 'echo ended > {tmp_path}/note; exit 143' TERM",
        f"touch {tmp_path}/up",
        "while :; do sleep 0.05; done",
    )
    launcher = subprocess.Popen([sys.executable, "-c", WAITING, str(stand_in), "train", "x"], env={**os.environ})
    while not (tmp_path / "up").exists():
        assert launcher.poll() is None
        time.sleep(0.02)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 143
    assert (tmp_path / "note").read_text() == "ended\n"


def test_a_rank_that_fails_by_a_defect_leaves_its_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(**_: object) -> None:
        raise ZeroDivisionError("a defect")

    left: list[int] = []
    monkeypatch.setenv(STATUS_FILE, str(tmp_path / "status"))
    monkeypatch.setattr(entry, "app", broken)
    monkeypatch.setattr("onward.training.ranks.leave", left.append)
    entry._run_as_rank()
    assert left == [1]
    assert (tmp_path / "status.words").read_text() == "ZeroDivisionError: a defect"
    assert "Traceback" in capsys.readouterr().err
