"""The command line itself: help, version, usage errors, the schema and the starter recipe."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

import onward
import small_run
from onward.cli import app
from onward.recipe import Recipe, load_recipe

COMMANDS = ("run", "prepare", "train", "plan", "verify-resume", "report", "evaluate", "compare", "blend")
COMMANDS += ("study", "inspect", "export", "init", "schema")
HIDDEN = ("score-share",)
HEAVY = {"torch", "transformers", "tokenizers", "numpy", "pyarrow", "pydantic", "yaml", "rich", "lm_eval", "scipy"}
HELP_SECONDS = 0.3


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


def named(command: Any) -> str:
    return str(command.callback.__name__).replace("_", "-")


def test_the_commands_are_those_that_are_tested_here() -> None:
    assert tuple(named(command) for command in app.registered_commands if not command.hidden) == COMMANDS
    assert tuple(named(command) for command in app.registered_commands if command.hidden) == HIDDEN


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_explains_its_options(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output
    (command,) = (c for c in app.registered_commands if named(c) == name)
    assert command.callback is not None
    purpose = str(command.callback.__doc__).split("\n")[0]
    assert " ".join(purpose.split()) in " ".join(result.output.split())
    options = [line.split() for line in result.output.splitlines() if line.strip().startswith("-")]
    assert all(len(words) > 2 for words in options), "an option without a word about it"


def test_the_help_lists_the_commands_and_so_does_no_argument() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(f"  {name} " in result.output for name in COMMANDS)
    assert "  run " in invoke().output


def test_version() -> None:
    assert invoke("--version").output.strip() == onward.__version__


@pytest.mark.parametrize(
    "arguments",
    [
        ("rum",),
        ("run",),
        ("run", "quickstart", "--nonsense"),
        ("run", "quickstart", "--workers", "0"),
        ("run", "quickstart", "--workers", "many"),
        ("run", "quickstart", "extra"),
        ("init", "--model", "onward/tiny"),
        ("--nonsense",),
    ],
)
def test_wrong_usage_is_answered_with_code_2(arguments: tuple[str, ...]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert "Usage" in result.output


def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
    from onward.recipe.loading import _section_of

    found = {model}
    for field in model.model_fields.values():
        inner = _section_of(field.annotation)
        if inner is not None and inner not in found:
            found |= sections(inner)
    return found


def test_the_schema_describes_every_field_of_every_section() -> None:
    schema = json.loads(invoke("schema").output)
    parts = {"Recipe": schema} | schema["$defs"]
    expected = sections(Recipe)
    assert len(expected) > 10
    assert {section.__name__ for section in expected} == parts.keys()
    for section in expected:
        part = parts[section.__name__]
        assert part["additionalProperties"] is False
        assert part["properties"].keys() == section.model_fields.keys()
        for name, field in part["properties"].items():
            # A description that is its section's own stands there only.
            pointed = parts.get(str(field.get("$ref")).rpartition("/")[2], {})
            assert field.get("description") or pointed.get("description"), f"{section.__name__}.{name} says nothing"


def test_the_starter_recipe_loads_and_runs(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    recipe, text = place / "mine.yaml", str(place / "domain.jsonl")
    result = invoke("init", "--model", str(place / "model"), "--corpus", text, "-o", str(recipe))
    assert result.exit_code == 0, result.output
    assert f"onward run {recipe}" in result.output
    loaded = load_recipe(recipe)
    assert loaded.name == "mine"
    assert [source.path for source in loaded.corpus.sources] == [text]
    written = recipe.read_text(encoding="utf-8")
    assert yaml.safe_load(written).keys() == Recipe.model_fields.keys()
    assert written.count("#") > 40, "every field is explained"
    changes = ["training.stages=[1k]", "training.batch_tokens=512", "evaluation.tasks=[]", "training.precision=fp32"]
    changes += ["evaluation.held_out_tokens=2k", "general.self_replay.tokens=2k", "corpus.quality=none"]
    changes += ["general.quality=none", "training.forgetting.replay=10%", "corpus.held_out.share=20%"]
    changes += [f"{section}.minimum_bytes_per_token=null" for section in ("corpus", "general")]
    changes += ["general.held_out.share=20%", "general.self_replay.document_tokens=60"]
    arguments = [part for change in changes for part in ("--set", change)]
    places = ["--cache", str(place / "cache"), "--runs", str(place / "runs"), "--workers", "1"]
    result = invoke("run", str(recipe), *places, *arguments)
    assert result.exit_code == 0, result.output
    assert (place / "runs/mine/report/index.html").is_file()


def test_the_starter_recipe_overwrites_nothing(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mine")
    (tmp_path / "x.txt").write_text("A text.")
    result = invoke("init", "--model", "onward/tiny", "--corpus", str(tmp_path / "x.txt"), "--output", str(recipe))
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert "--output" in result.stderr
    assert recipe.read_text() == "mine"


def test_a_mistyped_path_is_told_before_a_recipe_is_written(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    result = invoke("init", "--model", "onward/tiny", "--corpus", str(tmp_path / "txets"), "--output", str(recipe))
    assert result.exit_code == 2
    assert "there is no such file, folder or match" in result.stderr
    assert not recipe.exists()


def test_help_is_there_at_once_and_imports_little(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("onward")
    if not script.exists():
        pytest.skip("the console script is not installed beside this interpreter")
    times = []
    for _ in range(4):
        process = subprocess.Popen([script, "--help"], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(used.ru_utime + used.ru_stime)
    assert min(times[1:]) < HELP_SECONDS
    code = "import sys, onward.cli; from typer.testing import CliRunner as R; R().invoke(onward.cli.app, ['--help'])"
    done = subprocess.run([sys.executable, "-c", f"{code}; print(*sys.modules)"], capture_output=True, text=True)
    assert not HEAVY & set(done.stdout.split())
