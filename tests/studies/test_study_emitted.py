"""What `--emit` prints: commands and a Slurm array that train the members of a study elsewhere."""

import re
import shlex
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import small_run
from onward import cli
from onward.artifact import locked
from onward.recipe import load_recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run.write_inputs(tmp_path_factory.mktemp("emitted") / "inputs")


@pytest.fixture
def understood(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace the work behind the commands; names of the recipes that they were given."""
    calls: list[str] = []

    @contextmanager
    def record(recipe: str, overrides: Any, *rest: Any, **more: Any) -> Any:
        calls.append(load_recipe(recipe, overrides or ()).name)
        raise typer.Exit(0)
        yield

    monkeypatch.setattr(cli.runs, "opened", record)
    monkeypatch.setattr(cli.models, "opened", record)
    return calls


def emitted_by(place: Path, kind: str, name: str = "rates", *options: str, **changes: Any) -> tuple[str, list[str]]:
    file = place / "recipe of mine.yaml"
    content = small_run.content(place, training__stages=[48_000], **changes)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    places = ["--cache", str(place / "cache"), "--runs", str(place / "runs of mine")]
    arguments = ["study", name, str(file), "--seeds", "2", "--emit", kind, "--set", "name=emitted", *options, *places]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert not (place / f"runs of mine/emitted-{name}/members").exists(), "nothing is run"
    return result.stdout, arguments


def test_nothing_is_emitted_while_the_study_runs(place: Path) -> None:
    _, arguments = emitted_by(place, "commands", "pilot")
    with locked(place / "runs of mine" / "emitted-pilot" / "study"):
        result = CliRunner().invoke(cli.app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "another process is running this study" in result.stderr


def test_emitted_commands_of_separate_budgets_have_a_folder_of_their_own(place: Path, understood: list[str]) -> None:
    budgets = {"study": {"budgets": [4800, 9600]}}
    one, _ = emitted_by(place, "commands", "tokens", **budgets)
    apart, _ = emitted_by(place, "commands", "tokens", "--separate", **budgets)
    files = [{after_cd(line)[2] for line in text.splitlines()[:-1]} for text in (one, apart)]
    assert not files[0] & files[1]
    assert {Path(file).parts[-3] for file in files[1]} == {"emitted-tokens-separate"}
    assert all("/emitted-tokens-separate/members" in line for line in apart.splitlines()[:-1])
    assert "--separate" in after_cd(apart.splitlines()[-1])
    slurm, _ = emitted_by(place, "slurm", "tokens", "--separate", **budgets)
    assert "#SBATCH --job-name=emitted-tokens-separate\n" in slurm


def after_cd(line: str) -> list[str]:
    """Words of a command that goes to this folder first."""
    first, folder, both, *words = shlex.split(line)
    assert [first, folder, both] == ["cd", str(Path.cwd()), "&&"]
    return words


def test_emitted_commands_go_where_the_paths_of_the_recipe_lead(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    fake = tmp_path / "onward"
    fake.write_text("#!/bin/bash\npwd\n", encoding="utf-8")
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "0"}
    for kind in ("commands", "slurm"):
        text, _ = emitted_by(place, kind)
        done = subprocess.run(
            ["bash"], input=text, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        )
        assert set(done.stdout.split("\n")) == {str(place), ""}, kind


def test_emitted_commands_are_understood_and_the_last_one_collects(place: Path, understood: list[str]) -> None:
    text, arguments = emitted_by(place, "commands")
    lines = text.splitlines()
    for line in lines[:-1]:
        program, *words = after_cd(line)
        assert program == "onward"
        assert CliRunner().invoke(cli.app, words).exit_code == 0, line
    assert [after_cd(line)[1] for line in lines] == ["evaluate", *["run"] * 30, "study"]
    assert len(understood) == len(lines) - 1 == 31
    assert understood[0].startswith("rate-")
    assert len(set(understood)) == 30
    last = after_cd(lines[-1])[1:]
    assert set(last) == set(arguments) - {"--emit", "commands"}


def test_the_emitted_array_is_a_script_whose_commands_are_understood(
    place: Path, understood: list[str], tmp_path: Path
) -> None:
    text, _ = emitted_by(place, "slurm")
    script = tmp_path / "array.sh"
    script.write_text(text, encoding="utf-8")
    assert subprocess.run(["bash", "-n", script], check=False, capture_output=True).returncode == 0
    assert "#SBATCH --array=0-29\n" in text
    fake = tmp_path / "onward"
    fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "29"}
    done = subprocess.run(["bash", script], env=environment, check=True, capture_output=True, text=True)
    assert CliRunner().invoke(cli.app, done.stdout.splitlines()).exit_code == 0
    before, after = (after_cd(line[1:]) for line in text.splitlines() if re.match("#   cd ", line))
    assert (before[:2], after[:3]) == (["onward", "evaluate"], ["onward", "study", "rates"])
    assert CliRunner().invoke(cli.app, before[1:]).exit_code == 0
    assert len(understood) == 2


@pytest.mark.parametrize("kind", ["commands", "slurm"])
def test_what_is_emitted_works_with_as_much_as_was_asked_for(place: Path, kind: str) -> None:
    options = ["--processes", "2", "--workers", "3"]
    text, _ = emitted_by(place, kind, "pilot", *options)
    commands = [line for line in text.splitlines() if re.search(r"\bonward (evaluate|run|study) ", line)]
    assert len(commands) == (4 if kind == "commands" else 3), "the array has one for all members"
    for line in commands:
        words = shlex.split(line.removeprefix("#"))
        assert all(words[words.index(name) + 1] == value for name, value in (("--processes", "2"), ("--workers", "3")))
    elsewhere, arguments = emitted_by(place, kind, "pilot", "--gpus", "64")  # which this machine does not have
    assert elsewhere.count("--gpus 64") == len(commands)
    both = CliRunner().invoke(cli.app, [*arguments, "--processes", "2"])
    assert (both.exit_code, both.stdout) == (2, "")
    assert "both GPUs and CPU processes" in both.stderr
    bare, _ = emitted_by(place, kind, "pilot")
    assert "--processes" not in bare
    assert "--workers" not in bare


def prepared_by(text: str) -> list[str]:
    """Names of the members that the commands before the array prepare."""
    words = [after_cd(line[1:]) for line in text.splitlines() if re.match("#   cd .* && onward evaluate ", line)]
    return [Path(each[2]).stem for each in words]


def test_every_text_and_base_is_prepared_before_the_array_by_one_member(place: Path) -> None:
    text, _ = emitted_by(place, "slurm", "remedies")
    assert prepared_by(text) == ["none-seed0", "self-1-seed0"], "what reads samples of the base needs these too"
    corpus = small_run.content(place)["corpus"]
    domains = {"a": corpus, "b": {**corpus, "sources": [{"path": str(place / "general.jsonl")}]}}
    text, _ = emitted_by(place, "slurm", "domains", study={"domains": domains})
    assert prepared_by(text) == ["a-seed0", "b-seed0"]
    models = {"small": {"base": str(place / "model")}, "large": {"base": "onward/tiny"}}
    text, _ = emitted_by(place, "slurm", "sizes", study={"models": models})
    assert sorted(prepared_by(text)) == ["large-seed0", "small-seed0"]


@pytest.mark.parametrize("kind", ["commands", "slurm"])
def test_an_emitted_baseline_is_scored_and_nothing_is_trained(place: Path, kind: str) -> None:
    text, _ = emitted_by(place, kind, "baseline")
    assert "onward run" not in text
    commands = [line for line in text.splitlines() if re.match("(exec|cd .* &&) onward evaluate", line)]
    assert len(commands) == 1
    assert prepared_by(text) == []
