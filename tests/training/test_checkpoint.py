"""Checkpoints: what is saved comes back, on any number of ranks; what is damaged or half written is passed over."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lone_checkpoints import ALONE, names, restored_step, saved
from ranks_checkpoint import is_as_expected, open_checkpoints, plain, snapshot
from safetensors import safe_open

from onward.errors import UserError
from onward.training import checkpoint, state
from onward.training.checkpoint import Checkpoints
from onward.training.launch import Place
from onward.training.ranks import Ranks

HERE = Path(__file__).parent


@pytest.mark.parametrize("background", [False, True], ids=["waiting", "background"])
def test_what_was_saved_comes_back(tmp_path: Path, background: bool) -> None:
    assert restored_step(tmp_path) is None
    saved(tmp_path, 1, 2, background=background)
    assert restored_step(tmp_path) == 2
    assert restored_step(tmp_path, before=2) == 1
    assert restored_step(tmp_path, before=1) is None


def test_transposed_tensors_and_single_numbers_come_back_too(tmp_path: Path) -> None:
    tensors = {"weights.t": torch.arange(6.0).reshape(2, 3).T, "weights.scale": torch.tensor(3.5)}
    for background in (False, True):
        checkpoints = open_checkpoints(tmp_path / str(background), ALONE, background)
        checkpoints.save("step-00000001", snapshot(1), tensors)
        back = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        assert checkpoints.restore(back, 9, lambda _: None) == snapshot(1)
        assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_a_state_is_cut_into_files_of_bounded_size_without_a_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "_FILE_BYTES", 100)
    saved(tmp_path, 1)
    files = names(tmp_path / "step-00000001" / "state")
    assert files[0] == "cursor.json"
    assert len(files) == 8
    for name in files[1:]:
        with safe_open(tmp_path / "step-00000001" / "state" / name, framework="pt") as opened:
            assert sum(opened.get_tensor(key).nbytes for key in opened.keys()) <= 100  # noqa: SIM118
    assert restored_step(tmp_path) == 1


def test_files_are_seen_to_the_disk_before_the_checkpoint_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(state, "sync", lambda file: synced.append(file.name))
    saved(tmp_path, 1)
    assert [*synced, "cursor.json"] == sorted(names(tmp_path / "step-00000001" / "state"), reverse=True)


def test_a_save_in_the_background_returns_before_anything_is_written_and_keeps_the_values_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, as_ever = threading.Event(), checkpoint.write_pieces

    def write_when_told(*arguments: Any) -> dict[str, int]:
        assert may_write.wait(60)
        return as_ever(*arguments)

    monkeypatch.setattr(checkpoint, "write_pieces", write_when_told)
    checkpoints, tensors = open_checkpoints(tmp_path, ALONE, True), plain(True)
    done: list[str] = []
    checkpoints.save("step-00000001", snapshot(1), tensors, then=lambda: done.append("complete"))
    for tensor in tensors.values():
        tensor.zero_()  # the next update
    assert not (tmp_path / "step-00000001").exists()
    assert not done
    may_write.set()
    checkpoints.wait()
    assert done == ["complete"]
    assert restored_step(tmp_path) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("background", [False, True], ids=["waiting", "background"])
def test_tensors_on_a_gpu_come_back_as_they_were_at_the_save(tmp_path: Path, background: bool) -> None:
    device = torch.device("cuda", 0)
    checkpoints = open_checkpoints(tmp_path, Ranks(Place(), device), background)
    tensors = {name: tensor.to(device) for name, tensor in plain(True).items()}
    checkpoints.save("step-00000001", snapshot(1), tensors)
    for tensor in tensors.values():
        tensor.zero_()  # the next update, in the stream after the copies
    assert checkpoints.restore(tensors, 9, lambda _: None) == snapshot(1)
    assert is_as_expected({name: tensor.cpu() for name, tensor in tensors.items()})


def test_a_new_save_waits_for_the_last_one(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, ALONE, True)
    order: list[str] = []
    for step in (1, 2, 3):
        name = f"step-{step:08d}"
        checkpoints.save(name, snapshot(step), plain(True), then=lambda name=name: order.append(name))
    checkpoints.wait()
    assert order == ["step-00000001", "step-00000002", "step-00000003"]


def test_an_export_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    checkpoints = open_checkpoints(tmp_path, ALONE, True)

    def export(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")

    checkpoints.save("tokens-000400M", snapshot(4), plain(True), export)
    checkpoints.wait()
    manifest = json.loads((tmp_path / "tokens-000400M" / "manifest.json").read_text())
    assert "model/config.json" in manifest["files"]
    assert restored_step(tmp_path) == 4


def test_a_failing_export_is_told_by_the_next_wait_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)

    def export(folder: Path) -> None:
        raise RuntimeError("no such tokenizer")

    checkpoints.save("tokens-000400M", snapshot(4), plain(True), export)
    with pytest.raises(RuntimeError, match="no such tokenizer"):
        checkpoints.wait()
    checkpoints.wait()  # told once
    assert names(tmp_path) == ["step-00000001"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def break_manifest(file: Path) -> None:
    (file.parent.parent / "manifest.json").write_bytes(b'{"kind": "\xff')


def change_inputs(file: Path) -> None:
    manifest = file.parent.parent / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 3', '"step": 7'))


DAMAGES = {
    "truncated": (cut, "bytes, expected"),
    "flipped": (flip, "xxh3"),
    "missing": (Path.unlink, "missing, expected"),
    "broken-manifest": (break_manifest, "manifest.json"),
    "altered-manifest": (change_inputs, "manifest.json: another fingerprint"),
}


@pytest.mark.parametrize("last", ["step-00000003", "tokens-000000300"], ids=["state", "stage"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path: Path, damage: str, last: str) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.save(last, snapshot(3), plain(True))
    checkpoints.wait()
    spoil, words = DAMAGES[damage]
    spoil(next((tmp_path / last / "state").glob("*.safetensors")))
    said: list[str] = []
    tensors = plain(False)
    assert checkpoints.restore(tensors, 99, said.append) == snapshot(2)
    assert is_as_expected(tensors)
    assert len(said) == 1
    assert f"{tmp_path / last}/" in said[0]
    assert words in said[0]
    checkpoints.save(last, snapshot(3), plain(True))  # made anew in its place
    checkpoints.wait()
    assert restored_step(tmp_path) == 3


def test_nothing_is_restored_when_all_are_damaged(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    for file in tmp_path.glob("*/state/*.safetensors"):
        flip(file)
    said: list[str] = []
    assert not checkpoints.exists_before(99)
    assert checkpoints.restore(plain(False), 99, said.append) is None
    assert len(said) == 2


def test_a_checkpoint_is_verified_once_at_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    looks: list[int] = []
    as_ever = checkpoint.newest
    monkeypatch.setattr(checkpoint, "newest", lambda *a: looks.append(1) or as_ever(*a))
    assert checkpoints.exists_before(2)
    assert checkpoints.restore(plain(False), 2, lambda _: None) == snapshot(1)
    assert looks == [1]
    assert checkpoints.restore(plain(False), 2, lambda _: None) == snapshot(1)
    assert looks == [1, 1]


def test_other_inputs_are_an_error_that_names_the_field(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    other = Checkpoints(tmp_path, lambda step: {"step": step, "seed": 2}, ALONE, 9, False)
    with pytest.raises(UserError, match="seed: was None, is 2"):
        other.restore(plain(False), 9, lambda _: None)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (tmp_path / "step-00000001" / "state" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="earlier version"):
        open_checkpoints(tmp_path, ALONE, False).restore(plain(False), 9, lambda _: None)


def test_the_newest_states_and_all_stage_ends_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, keep=2)
    (tmp_path / "step-00000001.mine").mkdir()
    checkpoints.save("tokens-000000100", snapshot(1), plain(True))
    checkpoints.save("step-00000009", snapshot(9), plain(True))
    for step in (2, 3, 4):
        checkpoints.save(f"step-{step:08d}", snapshot(step), plain(True))
    checkpoints.wait()
    stay = ["step-00000001.mine", "step-00000003", "step-00000004", "step-00000009", "tokens-000000100"]
    assert names(tmp_path) == stay


KILLED = """
import sys, time
from pathlib import Path
import test_checkpoint as t
checkpoints = t.saved(Path(sys.argv[1]), 1)
def export(folder):
    print("writing", flush=True)
    time.sleep(600)
checkpoints.save("step-00000002", t.snapshot(2), t.plain(True), export)
checkpoints.wait()
"""


def test_a_kill_during_a_save_leaves_the_one_before(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGKILL)
    assert any(name.endswith(".building") for name in names(tmp_path))
    assert restored_step(tmp_path) == 1
    assert not any(name.endswith(".building") for name in names(tmp_path))
    saved(tmp_path, 2)
    assert restored_step(tmp_path) == 2


def test_ranks_that_share_no_folder_are_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_ever = checkpoint.write_pieces
    elsewhere = {"shard-00002-model-00001-of-00001.safetensors": 99}
    monkeypatch.setattr(checkpoint, "write_pieces", lambda *arguments: as_ever(*arguments) | elsewhere)
    checkpoints = open_checkpoints(tmp_path, ALONE, False)
    with pytest.raises(UserError, match="do not share one folder"):
        checkpoints.save("step-00000001", snapshot(1), plain(True))
    assert names(tmp_path) == []


def torchrun(*arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", str(HERE / "ranks_checkpoint.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three checkpoints that two ranks have written: sharded, plain, sharded."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun("write", folder)
    return folder


@pytest.mark.parametrize("step", [1, 2, 3], ids=["shards", "whole", "shards-waited-for"])
def test_one_process_goes_on_from_two_ranks(of_two: Path, step: int) -> None:
    assert restored_step(of_two, before=step + 1) == step


def test_two_ranks_share_the_writing_out(of_two: Path) -> None:
    """Also of what both hold whole: nothing is written twice, and each writes about half."""
    whole = sum(tensor.nbytes for tensor in plain(True).values())
    for step in (1, 2, 3):
        held = {}
        for file in sorted((of_two / f"step-{step:08d}" / "state").glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                sizes = [opened.get_tensor(key).nbytes for key in opened.keys()]  # noqa: SIM118
            assert min(sizes) > 0
            held[file.name] = sum(sizes)
        assert len(held) == 2
        assert sum(held.values()) == whole
        assert min(held.values()) > whole / 3


def test_a_rank_takes_no_copy_of_what_another_writes() -> None:
    both = [set(state.own_pieces(plain(True), rank, 2)) for rank in (0, 1)]
    assert not both[0] & both[1]
    assert both[0] | both[1] == set(plain(True))


def test_two_ranks_go_on_from_one_process_and_fail_together(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    saved(folder, 1, 2, 3)
    flip(next((folder / "step-00000003" / "state").glob("*.safetensors")))
    torchrun("read", folder, tmp_path / "found.json")
    first, second = json.loads((tmp_path / "found.json").read_text())
    assert first["step"] == second["step"] == 2
    assert first["right"] == second["right"] == [True, True]
    assert (first["said"], second["said"]) == (1, 0)
    assert first["met"] == second["met"] == ["the disk is full", "no tokenizer"]
    assert first["left"] == ["step-00000001", "step-00000002", "step-00000003", "step-00000009"]


def test_a_state_that_holds_more_than_is_trained_now_is_refused(tmp_path: Path) -> None:
    """As of an earlier version that trained more under the same recipe: its tensors would be dropped without a word."""
    saved(tmp_path, 1)
    tensors = plain(False)
    dropped = sorted(tensors)[0]
    del tensors[dropped]
    with pytest.raises(UserError, match="this checkpoint is of another training") as refused:
        open_checkpoints(tmp_path, ALONE, True).restore(tensors, 9, lambda _: None)
    assert dropped in str(refused.value.got)
