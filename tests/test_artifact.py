import errno
import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onward import artifact as module
from onward.artifact import (
    Damage,
    building,
    building_place,
    disk_errors,
    find,
    fingerprint,
    flatten,
    locked,
    read_manifest,
    remove,
)
from onward.errors import UserError

MADE_FROM = {"corpus": {"seed": 1, "sources": ["a"]}, "length": 512}


def build(folder: Path, text: str = "content") -> None:
    with building(folder, "corpus", MADE_FROM) as aside:
        (aside / "inner").mkdir()
        (aside / "inner" / "data.txt").write_text(text)


def test_a_built_artifact_is_found_by_what_it_was_made_from(tmp_path: Path) -> None:
    build(tmp_path / "one")
    manifest = find(tmp_path / "one", MADE_FROM)
    assert manifest is not None
    assert manifest.fingerprint == fingerprint(MADE_FROM)
    assert manifest.files["inner/data.txt"]["bytes"] == len("content")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]
    assert (tmp_path / "one" / "inner" / "data.txt").stat().st_mode & 0o777 == 0o644


def test_absence_is_none_and_a_change_is_named(tmp_path: Path) -> None:
    assert find(tmp_path / "none", MADE_FROM) is None
    build(tmp_path / "one")
    with pytest.raises(UserError, match=r"corpus\.seed: was 1, is 2"):
        find(tmp_path / "one", {"corpus": {"seed": 2, "sources": ["a"]}, "length": 512})


def test_a_failure_inside_leaves_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), building(tmp_path / "one", "corpus", MADE_FROM) as aside:
        (aside / "data.txt").write_text("half")
        raise RuntimeError
    assert find(tmp_path / "one", MADE_FROM) is None
    build(tmp_path / "one")
    assert not (tmp_path / "one" / "data.txt").exists()


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    build(tmp_path / "one")
    (tmp_path / "one" / "inner" / "data.txt").write_text("cut")
    with pytest.raises(UserError, match="damaged"):
        find(tmp_path / "one", MADE_FROM)
    (tmp_path / "one" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest is damaged"):
        read_manifest(tmp_path / "one")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("inner/data.txt", b"contend", "data.txt: xxh3"),
        ("inner/data.txt", b"cut", "data.txt: 3 bytes, expected 7 bytes"),
        ("manifest.json", b"{", "manifest.json"),
        ("manifest.json", b"\xff\xfe\xfd", "manifest.json"),
        ("manifest.json", b"[]", "manifest.json"),
    ],
    ids=["flipped", "cut", "half-a-manifest", "no-text", "no-manifest"],
)
def test_whoever_can_do_without_a_damaged_artifact_is_told_of_the_damage(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    build(tmp_path / "one")
    told: list[Damage] = []
    assert find(tmp_path / "one", MADE_FROM, told.append) is not None
    assert not told
    (tmp_path / "one" / name).write_bytes(content)
    assert find(tmp_path / "one", MADE_FROM, told.append) is None
    assert words in str(*told)


def test_a_removal_that_is_killed_leaves_nothing_that_looks_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "one")

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("onward.artifact.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(tmp_path / "one")
    assert find(tmp_path / "one", MADE_FROM) is None
    remove(tmp_path / "one")
    remove(tmp_path / "one")
    assert not (tmp_path / "one").exists()


def test_two_processes_do_not_build_the_same_artifact(tmp_path: Path) -> None:
    with building(tmp_path / "one", "corpus", MADE_FROM) as aside:
        (aside / "data.txt").write_text("x")
        with pytest.raises(UserError, match="another process"):
            build(tmp_path / "one")


def _build_slowly(folder: Path) -> None:
    with building(folder, "corpus", MADE_FROM) as aside:
        for n in range(10_000):
            (aside / f"{n}.txt").write_text("x" * 1000)


def test_who_waits_goes_on_when_the_other_has_ended_and_is_alone_then(tmp_path: Path) -> None:
    folder, order = tmp_path / "artifact", list[str]()
    begun, met = threading.Event(), threading.Barrier(3, timeout=60)

    def first() -> None:
        with locked(folder):
            begun.set()
            met.wait()
            order.append("made")

    def later() -> None:
        begun.wait()
        with locked(folder, met.wait):
            with pytest.raises(UserError, match="another process is making this"), locked(folder):
                pass
            order.append("gone on")

    with ThreadPoolExecutor(3) as pool:
        for ended in [pool.submit(each) for each in (first, later, later)]:
            ended.result()
    assert order == ["made", "gone on", "gone on"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_goes_as_it_is_looked_at_counts_as_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one who held it removes the file after another has opened it."""
    place, flock = tmp_path / ".artifact.lock", module.fcntl.flock
    met: list[bool] = []

    def removed_meanwhile(file: Any, how: int) -> None:
        flock(file, how)
        if not met:
            met.append(True)
            Path(file.name).unlink()

    monkeypatch.setattr(module.fcntl, "flock", removed_meanwhile)
    assert module._lock(place, tmp_path / "artifact", module.fcntl.LOCK_EX) is None
    file = module._lock(place, tmp_path / "artifact", module.fcntl.LOCK_EX)
    assert file is not None
    file.close()


@pytest.mark.parametrize("delay", [0.05, 0.2, 0.4])
def test_a_kill_leaves_nothing_that_looks_complete(tmp_path: Path, delay: float) -> None:
    process = multiprocessing.get_context("fork").Process(target=_build_slowly, args=(tmp_path / "one",))
    process.start()
    time.sleep(delay)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert find(tmp_path / "one", MADE_FROM) is None
    build(tmp_path / "one")
    assert find(tmp_path / "one", MADE_FROM) is not None


def test_a_full_disk_says_how_much_is_free(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full") as caught, disk_errors(tmp_path / "deep" / "artifact"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "MB free" in str(caught.value)
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError


def test_flatten_keeps_lists_whole() -> None:
    assert flatten(MADE_FROM) == {"corpus.seed": 1, "corpus.sources": ["a"], "length": 512}


def test_what_a_kill_leaves_of_a_manifest_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    aside = building_place(folder)
    aside.mkdir()
    (aside / "manifest.json").write_text("{")
    (aside / ".manifest.json.part").write_text("{")
    with building(folder, "kind", {"a": 1}, keep_partial=True) as place:
        (place / "content").write_text("whole")
    manifest = find(folder, {"a": 1})
    assert manifest is not None
    assert list(manifest.files) == ["content"]


def test_an_input_that_came_with_a_later_version_and_is_null_is_no_difference(tmp_path: Path) -> None:
    with building(tmp_path / "a", "thing", {"seed": 1, "old": None}) as place:
        (place / "file").write_text("x")
    assert find(tmp_path / "a", {"seed": 1, "new": None}) is not None
    with pytest.raises(UserError, match="new: was None, is 2"):
        find(tmp_path / "a", {"seed": 1, "new": 2})
