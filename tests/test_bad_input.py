"""Every circumstance that a user can mend, through the command line: what, where, what to do; exit code 2."""

import gzip
import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import small_run
from onward.artifact import Folders, locked
from onward.cli import app
from onward.corpus.ledger import read_ledger
from onward.terminal import Terminal

SAMPLE = json.dumps({"text": "The river ran past the mill.\nThe child watched the wheel.\nIt was evening."})
Command = Callable[..., Any]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return small_run.write_inputs(tmp_path / "place")


@pytest.fixture
def command(place: Path) -> Command:
    """Run an `onward` command on the small recipe; changes as `small_run.content` takes them."""

    def command(*arguments: str, **changes: Any) -> Any:
        recipe = place / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(small_run.content(place, **changes)), encoding="utf-8")
        name, *more = arguments
        places = ["--cache", str(place / "cache"), "--runs", str(place / "runs"), "--workers", "1"]
        return CliRunner().invoke(app, [name, str(recipe), *places, *more])

    return command


def refusal(result: Any) -> str:
    """The message of a command that was refused in the way users are answered."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    said = str(result.stderr)
    assert said[said.index("error: ") :].count("error: ") == 1
    return said[said.index("error: ") + len("error: ") :]


def assert_nothing_half_done(place: Path) -> None:
    """No folder looks like a finished artifact that is none."""
    for kind in ("cache/corpora", "cache/scores", "runs/small/checkpoints", "runs/small/scores"):
        for folder in (place / kind).glob("[!.]*"):
            assert (folder / "manifest.json").exists(), folder


def ledger_of(place: Path) -> Any:
    pointers = json.loads((place / "runs/small/artifacts.json").read_bytes())
    return read_ledger(Path(pointers["corpora"]["domain"]))


# --- text ---


def break_lines(place: Path, broken: int) -> None:
    file = place / "domain.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([*lines[:10], *['{"text": "cut'] * broken, *lines[10:]]), encoding="utf-8")


def test_broken_lines_above_the_limit(place: Path, command: Command) -> None:
    break_lines(place, 3)
    said = refusal(command("run", corpus__tokens="1M"))
    assert said.startswith("too many records cannot be read")
    assert f"{place / 'domain.jsonl'}:11: unreadable: broken JSON" in said
    assert "3 of 63 (4.8%)" in said
    assert "at most 1%" in said
    assert "raise corpus.maximum_unreadable" in said
    assert_nothing_half_done(place)


def test_the_advice_can_be_followed_in_the_same_run(place: Path, command: Command) -> None:
    break_lines(place, 3)
    refusal(command("run", corpus__tokens="1M"))
    result = command("run", corpus__tokens="1M", corpus__maximum_unreadable="5%")
    assert result.exit_code == 0, result.output
    ledger = ledger_of(place)
    assert ledger.dropped["unreadable: broken JSON"].documents == 3
    assert len(ledger.unreadable) == 3


def test_a_broken_line_below_the_limit_is_counted_named_and_passed_over(place: Path, command: Command) -> None:
    small_run.write_texts(place / "domain.jsonl", 150, seed=1)
    break_lines(place, 1)
    result = command("run", corpus__tokens="1M")
    assert result.exit_code == 0, result.output
    ledger = ledger_of(place)
    assert ledger.unreadable == (f"{place / 'domain.jsonl'}:11: unreadable: broken JSON",)
    assert ledger.read.documents == 151
    page = (place / "runs/small/report/report.md").read_text(encoding="utf-8")
    assert "domain.jsonl:11" in page


def test_a_truncated_gzip(place: Path, command: Command) -> None:
    whole = gzip.compress((place / "domain.jsonl").read_bytes())
    cut = place / "cut.jsonl.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    said = refusal(command("prepare", corpus__sources=[{"path": str(cut)}], corpus__tokens="1M"))
    assert re.search(rf"{re.escape(str(cut))}:\d+: unreadable: truncated file", said)
    assert "mend or remove them" in said
    assert_nothing_half_done(place)


def test_a_file_that_is_no_gzip(place: Path, command: Command) -> None:
    wrong = place / "wrong.jsonl.gz"
    shutil.copy(place / "domain.jsonl", wrong)
    assert f"{wrong}:1: unreadable: damaged compression" in refusal(
        command("prepare", corpus__sources=[{"path": str(wrong)}])
    )


def test_text_that_is_not_utf8(place: Path, command: Command) -> None:
    latin = place / "latin.jsonl"
    latin.write_bytes(b"\n".join([SAMPLE.encode(), '{"text": "Grüße"}'.encode("latin-1")]))
    said = refusal(command("prepare", corpus__sources=[{"path": str(latin)}]))
    assert f"{latin}:2: unreadable: not UTF-8" in said
    plain = place / "latin.txt"
    plain.write_bytes("Grüße\n".encode("latin-1"))
    assert f"{plain}: unreadable: not UTF-8" in refusal(command("prepare", corpus__sources=[{"path": str(plain)}]))


def test_a_missing_field_names_the_nearest(place: Path, command: Command) -> None:
    wrong = place / "wrong.jsonl"
    wrong.write_text("\n".join(json.dumps({"url": "x", "texts": "a\nb\nc"}) for _ in range(5)), encoding="utf-8")
    said = refusal(command("prepare", corpus__sources=[{"path": str(wrong)}]))
    assert "no record has the field `text`" in said
    assert f"{wrong}:1" in said
    assert "fields: url, texts" in said
    assert "`text: texts`" in said


def test_places_without_text(place: Path, command: Command) -> None:
    empty, pictures = place / "empty", place / "pictures"
    empty.mkdir()
    pictures.mkdir()
    (pictures / "a.png").write_bytes(b"x")
    said = refusal(command("run", corpus__sources=[{"path": str(empty)}]))
    assert "this folder is empty" in said
    assert str(empty) in said
    assert ".jsonl" in said
    said = refusal(command("run", corpus__sources=[{"path": str(pictures)}]))
    assert "no file here can be read as text" in said
    assert ".png" in said
    said = refusal(command("run", corpus__sources=[{"path": str(place / "none")}]))
    assert "there is no such file, folder or match" in said
    blank = place / "blank.jsonl"
    blank.write_text("\n\n", encoding="utf-8")
    said = refusal(command("run", corpus__sources=[{"path": str(blank)}]))
    assert "no document is left to train on" in said
    assert str(blank) in said
    assert "builtin:python-docs" in refusal(command("run", corpus__sources=[{"path": "builtin:python-doc"}]))
    assert_nothing_half_done(place)


def _prepare_long(arguments: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result = CliRunner().invoke(app, arguments)
    if result.exit_code:
        raise SystemExit(result.output)


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
@pytest.mark.parametrize(("suffix", "size"), [("jsonl", 120_000_000), ("txt", 200_000_000)])
def test_a_single_long_line_is_read_with_bounded_memory(place: Path, suffix: str, size: int) -> None:
    long = place / f"long.{suffix}"
    piece = "".join(f"{word} {n} " for n in range(1000) for word in small_run.WORDS).encode()
    with open(long, "wb") as file:
        file.write(b'{"text": "' if suffix == "jsonl" else b"")
        for _ in range(size // len(piece) + 1):
            file.write(piece)
        file.write(b'"}' if suffix == "jsonl" else b"")
    recipe = place / "recipe.yaml"
    changes: dict[str, Any] = {"corpus__sources": [{"path": str(long)}], "corpus__held_out": {"share": "0%"}}
    recipe.write_text(yaml.safe_dump(small_run.content(place, **changes)), encoding="utf-8")
    folders = Folders(place / "cache", place / "runs")
    arguments = ["prepare", str(recipe), "--cache", str(folders.cache), "--runs", str(folders.runs), "--workers", "1"]
    child = multiprocessing.get_context("fork").Process(target=_prepare_long, args=(arguments,))
    child.start()
    assert child.pid is not None
    _, status, used = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    # A line is held twice, as bytes and as text; a part of 4 MB is 4 million tokens here, at 150 bytes each. A child
    # that was forked counts the parent's pages as its own.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert used.ru_maxrss - own < (1_700_000 if suffix == "jsonl" else 1_200_000), "kilobytes"
    ledger = ledger_of(place)
    ledger.check()
    assert ledger.read.documents >= 1
    assert ledger.kept_tokens >= 3456


# --- recipe ---


def test_all_problems_of_a_recipe_at_once_with_the_nearest_name(place: Path, command: Command) -> None:
    training = {"stages": ["4k", "2k"], "sequence_tokens": 48, "batch_tokens": 480, "optimizer": {"learning_rat": 1}}
    said = refusal(command("run", training=training, sead=3, corpus__maximum_unreadable="5 apples"))
    assert "4 problems" in said
    assert str(place / "recipe.yaml") in said
    assert "unknown key `sead`" in said
    assert "did you mean `seed`?" in said
    assert "training.optimizer.learning_rat" in said
    assert "did you mean `learning_rate`?" in said
    assert "unknown unit 'apples'" in said
    assert "cumulative" in said
    assert not (place / "runs").exists()


def test_an_override_with_an_unknown_key(command: Command) -> None:
    said = refusal(command("run", "--set", "training.stage=[4k]"))
    assert "unknown key `stage`" in said
    assert "did you mean `stages`?" in said
    assert "key=value" in refusal(command("run", "--set", "training.stages"))


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (b"name: [small\n", "the recipe is not valid YAML"),
        (b"- a\n- b\n", "a recipe is a mapping"),
        (b"name: \xff\n", "the recipe is not UTF-8"),
        (b"", "a recipe is a mapping"),
    ],
)
def test_a_recipe_that_cannot_be_read(tmp_path: Path, written: bytes, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(written)
    said = refusal(CliRunner().invoke(app, ["run", str(recipe), "--runs", str(tmp_path / "runs")]))
    assert message in said
    assert str(recipe) in said


def test_no_recipe_there(tmp_path: Path) -> None:
    said = refusal(CliRunner().invoke(app, ["run", str(tmp_path / "none.yaml")]))
    assert "the recipe cannot be read" in said
    assert "quickstart" in said
    assert "onward init" in said
    assert "the recipe cannot be read" in refusal(CliRunner().invoke(app, ["run", str(tmp_path)]))


@pytest.mark.parametrize("short", ["corpus", "general"])
@pytest.mark.parametrize("cap", [4, 0.5, 1.3])
def test_a_budget_larger_than_the_text_says_what_would_work(
    place: Path, command: Command, short: str, cap: float
) -> None:
    small_run.write_texts(place / ("domain.jsonl" if short == "corpus" else "general.jsonl"), 20, seed=7)
    changes: dict[str, Any] = {"training__maximum_repetition": cap, "evaluation__held_out_tokens": 500}
    said = refusal(command("run", training__stages=["1M"], **changes))
    assert "the token budget is larger than the text allows" in said
    assert f"training.stages, {short}" in said
    assert f"at most {cap:g} repetitions" in said
    assert "training.maximum_repetition" in said
    limits = [float(n) * (1000 if k else 1) for n, k in re.findall(r"end the last stage at ([\d.]+)(k?) or less", said)]
    fitting = int(min(limits))
    assert fitting >= 480
    too_long = command("prepare", training__stages=[fitting], **changes)
    assert too_long.exit_code == 0
    result = command("run", training__stages=[fitting], **changes)
    assert result.exit_code == 0, result.output
    plan = json.loads((place / "runs/small/plan.json").read_bytes())
    assert max(plan["domain_repetition"], plan["general_repetition"]) <= cap
    assert "larger than the text allows" in refusal(
        command("run", "--set", "name=other", training__stages=[fitting + 480], **changes)
    )


# --- model ---


def test_a_sequence_longer_than_the_context(command: Command) -> None:
    said = refusal(command("run", training__sequence_tokens=129))
    assert "a sequence is longer than the model's context" in said
    assert "at most 128" in said
    assert "set training.sequence_tokens to 128 or less" in said


def test_a_tokenizer_with_more_ids_than_the_model_has(place: Path, command: Command) -> None:
    config = json.loads((place / "model/config.json").read_bytes())
    (place / "model/config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    said = refusal(command("run"))
    assert "the tokenizer does not fit the model" in said
    assert "257 ids in the tokenizer, 200 embeddings in the model" in said
    assert str(place / "model") in said
    assert not (place / "cache").exists(), "refused before anything was prepared"


def test_models_that_are_none(place: Path, command: Command) -> None:
    missing = place / "no-model"
    said = refusal(command("run", model={"base": str(missing)}))
    assert "there is no such model folder" in said
    assert "model.base" in said
    assert str(missing) in said
    missing.mkdir()
    said = refusal(command("run", model={"base": str(missing)}))
    assert "this folder holds no model" in said
    assert "config.json" in said
    (place / "model/model.safetensors").unlink()
    said = refusal(command("run"))
    assert "there are no weights" in said
    assert str(place / "model") in said
    assert not (place / "cache").exists(), "refused before anything was prepared"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_model_file(place: Path, command: Command, name: str) -> None:
    file = place / "model" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    said = refusal(command("run"))
    assert str(place / "model") in said


def test_a_model_that_is_not_on_the_hub(command: Command) -> None:
    said = refusal(command("run", model={"base": "nobody/no-such-model"}))
    assert "nobody/no-such-model" in said
    assert "model.base" in said


# --- evaluation ---


def test_an_unknown_task_names_the_nearest(place: Path, command: Command) -> None:
    said = refusal(command("run", evaluation__tasks=["pika"], evaluation__data=None))
    assert "unknown task" in said
    assert "evaluation.tasks" in said
    assert "did you mean" in said
    assert_nothing_half_done(place)


def test_benchmark_files_that_are_not_there(place: Path, command: Command) -> None:
    said = refusal(command("run", evaluation__tasks=["piqa"], evaluation__data=str(place / "bench")))
    assert "there is no such folder of benchmark files" in said
    assert "evaluation.data" in said
    (place / "bench").mkdir()
    said = refusal(command("run", evaluation__tasks=["piqa"], evaluation__data=str(place / "bench")))
    assert "a benchmark file is missing" in said
    assert "piqa/valid.jsonl" in said
    (place / "bench/piqa").mkdir()
    (place / "bench/piqa/valid.jsonl").write_text('{"goal": "a", "sol1": "b"}\n')
    (place / "bench/piqa/valid-labels.lst").write_text("0\n")
    said = refusal(command("run", evaluation__tasks=["piqa"], evaluation__data=str(place / "bench")))
    assert "valid.jsonl, line 1" in said
    assert "sol2" in said


# --- places ---


@pytest.mark.parametrize("name", ["cache", "runs"])
def test_a_file_where_a_folder_is_needed(place: Path, command: Command, name: str) -> None:
    (place / name).write_text("in the way")
    said = refusal(command("run"))
    assert "a file stands where a folder is needed" in said
    assert str(place / name) in said
    assert "--cache and --runs" in said


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mount a tmpfs over a folder with the given options; skips where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk needs the rights of root")
        mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", ["cache", "runs"])
def test_a_read_only_disk(place: Path, command: Command, small_disk: Callable[[Path, str], None], name: str) -> None:
    small_disk(place / name, "ro")
    said = refusal(command("run"))
    assert "the disk is read-only" in said
    assert str(place / name) in said
    assert "--cache and --runs" in said


@pytest.mark.parametrize(("name", "kilobytes"), [("cache", 24), ("runs", 16), ("runs", 200), ("runs", 600)])
def test_a_full_disk_loses_nothing_and_the_run_goes_on_elsewhere(
    place: Path, command: Command, small_disk: Callable[[Path, str], None], name: str, kilobytes: int
) -> None:
    small_disk(place / name, f"size={kilobytes}k")
    said = refusal(command("run"))
    assert "the disk is full" in said
    assert str(place / name) in said
    assert "MB free" in said
    assert "finished work is kept" in said
    assert_nothing_half_done(place)
    subprocess.run(["mount", "-o", "remount,size=50m", str(place / name)], check=True)
    result = command("run")
    assert result.exit_code == 0, result.output


def test_two_processes_preparing_the_same_text(place: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    result = command("prepare")
    assert result.exit_code == 0
    folder = Path(json.loads((place / "runs/small/artifacts.json").read_bytes())["corpora"]["domain"])
    shutil.rmtree(folder)
    told, held = list[str](), ExitStack()
    held.enter_context(locked(folder))

    def ended(terminal: Terminal, text: str) -> None:
        told.append(text)
        held.close()  # and has left nothing

    monkeypatch.setattr(Terminal, "note", ended)
    assert command("prepare").exit_code == 0
    assert told == ["another process prepares the same text (corpus): waiting for it"]
    assert (folder / "manifest.json").exists()


# --- a run that was there before ---


def test_damage_to_a_finished_checkpoint_is_named_and_mended(place: Path, command: Command) -> None:
    result = command("run")
    assert result.exit_code == 0, result.output
    weights = place / "runs/small/checkpoints/tokens-000001920/state/shard-00001-model-00001-of-00001.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    result = command("run")
    assert result.exit_code == 0, result.output
    assert weights.name in result.stderr, "the damage is named"
    assert len(weights.read_bytes()) == len(content), "and what was damaged is made anew"
