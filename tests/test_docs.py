"""The documentation keeps its promises: every command parses, every example runs or compiles, every path exists."""

import importlib.util
import inspect
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import onward
from onward import cli
from onward.recipe import load_recipe, recipe_from_mapping
from test_layers import ORDER

PAGES = (
    "README.md",
    "CHANGELOG.md",
    "docs/cli.md",
    "docs/cloze.md",
    "docs/concepts.md",
    "docs/corpus.md",
    "docs/decisions.md",
    "docs/evaluation.md",
    "docs/footguns.md",
    "docs/forgetting.md",
    "docs/numbers.md",
    "docs/python-api.md",
    "docs/quickstart.md",
    "docs/ray.md",
    "docs/recipe.md",
    "docs/slurm.md",
    "docs/studies.md",
    "docs/training.md",
)
NUM_COMMANDS = {
    "README.md": 9,
    "docs/corpus.md": 5,
    "docs/evaluation.md": 4,
    "docs/forgetting.md": 2,
    "docs/quickstart.md": 6,
    "docs/recipe.md": 1,
    "docs/ray.md": 2,
    "docs/slurm.md": 5,
    "docs/studies.md": 4,
    "docs/training.md": 6,
}
NUM_PYTHON = {
    "README.md": 1,
    "docs/evaluation.md": 1,
    "docs/quickstart.md": 1,
    "docs/python-api.md": 5,
    "docs/numbers.md": 1,
}
RUN_COMMANDS = ("run", "prepare", "train", "plan", "verify-resume", "evaluate", "compare", "blend", "report", "study")
LAUNCHERS = ("srun", "torchrun")
OPTIONS = {"overrides", "folders", "workers", "progress"}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in these languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [content for language, content in found if language in languages]


def commands(page: Path) -> list[str]:
    """Every command line of a page; a backslash at the end joins lines, comments are left out."""
    found = []
    for block in blocks(page, "console", "bash", "sh"):
        lines = [line for line in block.replace("\\\n", "").splitlines() if line.strip() and not line.startswith("#")]
        if block.startswith("#!"):  # a script for another program: only what it asks of us is tried
            lines = [m[1] for line in lines if (m := re.search(r"(?:^|^exec |^srun |-- +)(onward .*)", line))]
        found += lines
    return found


def page_ids(counts: dict[str, int]) -> list[str]:
    return sorted(counts)


@pytest.fixture
def place(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the text folders that the examples speak of."""
    for folder in ("texts", "general"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.txt").write_text("A line.\nAnother line.\nA third line.\n", encoding="utf-8")
    (tmp_path / "recipes").symlink_to(repository / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Replace the work behind the commands by loading the recipe; (recipe, run name) of every call."""
    calls: list[tuple[str, str]] = []

    @contextmanager
    def record(recipe: str, overrides: list[str] | None, *places: Any, **more: Any) -> Iterator[None]:
        calls.append((recipe, load_recipe(recipe, overrides or ()).name))
        raise typer.Exit(0)
        yield

    @contextmanager
    def record_models(*arguments: Any, **more: Any) -> Iterator[None]:
        calls.append(("models", ""))
        raise typer.Exit(0)
        yield

    def looked_for(*arguments: Any) -> None:
        raise typer.Exit(0)

    monkeypatch.setattr(cli.runs, "opened", record)
    monkeypatch.setattr(cli.models, "opened", record)
    monkeypatch.setattr(cli.models, "working", record_models)
    monkeypatch.setattr(cli.studies, "working", record_models)
    for name in ("find_corpora", "find_corpus"):
        monkeypatch.setattr(f"onward.corpus.inspection.{name}", looked_for)
    return calls


def test_every_page_is_tested(repository: Path) -> None:
    found = {p.relative_to(repository).as_posix() for p in (repository / "docs").rglob("*.md")}
    assert found | {"README.md", "CHANGELOG.md"} == set(PAGES)
    assert {page for page in PAGES if commands(repository / page)} == set(NUM_COMMANDS)
    assert {page for page in PAGES if blocks(repository / page, "python")} == set(NUM_PYTHON)


@pytest.mark.parametrize("name", page_ids(NUM_COMMANDS))
def test_every_command_is_understood(repository: Path, place: Path, opened: list[tuple[str, str]], name: str) -> None:
    page = repository / name
    for block in blocks(page, "yaml"):
        if first := re.match(r"# (\S+\.yaml)\n", block):
            (place / first[1]).write_text(block, encoding="utf-8")
    lines = commands(page)
    assert len(lines) == NUM_COMMANDS[name]
    for line in lines:
        before = len(opened)
        understand(repository, line)
        words = shlex.split(line)
        runs = "onward" in words and words[words.index("onward") + 1] in RUN_COMMANDS
        assert len(opened) == before + runs, line


def understand(repository: Path, line: str) -> None:
    """Run an `onward` command with its work replaced; of `make` check the target. Nothing else is accepted."""
    program, *arguments = shlex.split(line)
    if program in LAUNCHERS:
        program, *arguments = arguments[arguments.index("onward") :]
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (repository / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments, line
        assert set(arguments) <= set(targets), line
        return
    assert program == "onward", f"no test knows how to try: {line}"
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception}"


def test_a_wrong_command_would_be_noticed(repository: Path, place: Path, opened: list[tuple[str, str]]) -> None:
    for line in ("onward run", "onward walk quickstart", "onward run quickstart --sett a=b", "make quickstar", "ls"):
        with pytest.raises(AssertionError):
            understand(repository, line)
    with pytest.raises(AssertionError, match="unknown key `stage`"):
        understand(repository, "onward run quickstart --set training.stage=[1M]")


@pytest.mark.parametrize("name", PAGES)
def test_every_recipe_example_is_valid(repository: Path, name: str) -> None:
    for block in blocks(repository / name, "yaml"):
        content = yaml.safe_load(block)
        if content is not None:  # a comment for an editor
            assert recipe_from_mapping(content).name == content["name"]


def test_the_starter_recipe_leads_to_a_recipe(place: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(cli.app, ["init", "--model", "onward/tiny", "--corpus", "texts/"])
    assert result.exit_code == 0, result.output
    assert load_recipe("recipe.yaml").corpus.sources[0].path == "texts/"
    assert '"title": "Recipe"' in runner.invoke(cli.app, ["schema"]).output


@pytest.mark.parametrize("name", page_ids(NUM_PYTHON))
def test_python_examples(repository: Path, place: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_api(place, monkeypatch)
    examples = blocks(repository / name, "python")
    assert len(examples) == NUM_PYTHON[name]
    for example in examples:
        compiled = compile(example, name, "exec")
        if "AutoModelForCausalLM" not in example:  # needs a finished run
            exec(compiled, {})


def fake_api(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the functions of the API by ones that check their arguments and return results of the real types."""
    from onward.corpus.ledger import Count, Ledger
    from onward.corpus.prepare import PreparedCorpus
    from onward.evaluation.scores import HeldOutScore, Scores
    from onward.pipeline import Corpora, Run, RunResult
    from onward.reporting import Findings, ReportFiles
    from onward.training.stages import Stage

    none = Count()
    ledger = Ledger(none, {}, none, none, none, none, 0, 0, 0, 0, 0, 512, ())
    scores = Scores("onward/tiny", (HeldOutScore("domain", 2, 9, 40, 80.0, 2.9, 2.8, 3.0),), (), 1.0)
    files = ReportFiles(place / "index.html", place / "report.md", Findings("Nothing yet.", (), ()), ())
    stages = (Stage(1, 1000, 1, place),)
    plan: Any = None
    results = {
        "prepare": Corpora(PreparedCorpus(place, "0", ledger), None),
        "train": stages,
        "evaluate": (scores,),
        "report": files,
        "run": RunResult(place, plan, stages, scores, (scores,), files),
    }

    def replaced(name: str) -> Any:
        def call(recipe: Any, overrides: Any = (), **places: Any) -> Any:
            inspect.signature(Run).bind(recipe, overrides, **places)
            assert load_recipe(recipe, overrides)
            return results[name]

        return call

    for name in onward.__all__:
        monkeypatch.setattr(onward, name, replaced(name))


def test_the_api_page_lists_the_api(repository: Path) -> None:
    page = (repository / "docs/python-api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `onward\.(\w+)\(", page, re.MULTILINE)) == set(onward.__all__)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(repository: Path, name: str) -> None:
    page = repository / name
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("name", PAGES)
def test_named_files_and_tests_exist(repository: Path, name: str) -> None:
    text = (repository / name).read_text(encoding="utf-8")
    for named in re.findall(r"`((?:src|docs|tests|recipes|tools)/[\w./:-]*)`", text):
        path, _, function = named.partition("::")
        assert (repository / path).exists(), named
        if function:
            assert f"def {function}(" in (repository / path).read_text(encoding="utf-8"), named


def test_named_recipe_keys_exist(repository: Path) -> None:
    reference = (repository / "docs/recipe.md").read_text(encoding="utf-8")
    sections = re.findall(r"^## (`.*)$", reference, re.MULTILINE)
    tops = {key for heading in sections for key in re.findall(r"`(\w+)`", heading)}
    assert tops == {"model", "corpus", "general", "training", "evaluation", "study"}
    content = {"name": "x", "model": {"base": "x"}, "corpus": {"sources": [{"path": "x"}]}}
    full = recipe_from_mapping({**content, "general": {"self_replay": {}}, "study": {}}).model_dump()
    keys = 0
    for page in PAGES:
        for named in re.findall(rf"`((?:{'|'.join(tops)})\.[\w.]+)`", (repository / page).read_text(encoding="utf-8")):
            value: Any = full
            for part in named.split("."):
                value = value[int(part)] if part.isdigit() else value[part]
            keys += 1
    assert keys > 5


def test_the_readme_lists_every_module_in_the_order_of_the_flow(repository: Path) -> None:
    readme = (repository / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w]+(?:\.py|/))` \| \S", readme, re.MULTILINE)
    found = [p for p in (repository / "src/onward").iterdir() if p.name not in ("__init__.py", "__pycache__")]
    present = {f"{p.name}/" if p.is_dir() else p.name for p in found if p.is_dir() or p.suffix == ".py"}
    assert set(rows) == present
    assert [row.removesuffix(".py").rstrip("/") for row in rows] == list(ORDER)


def test_the_quickstart_result_has_the_columns_that_are_printed(repository: Path, capsys: Any) -> None:
    from onward.terminal import print_summary

    readme = (repository / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- quickstart-result -->\n```text\n(.*?)```\n<!-- /quickstart-result -->", readme, re.DOTALL)
    assert shown is not None
    print_summary((), "")
    header = next(line for line in capsys.readouterr().out.splitlines() if "before" in line)
    titles = re.findall(r"before|after|change|95 % interval", header)
    assert re.findall(r"before|after|change|95 % interval", shown[1].splitlines()[2]) == titles
    assert len(titles) == 4
    for text in ("Domain text", "General text"):
        assert re.search(rf"{text}, bits per byte +│ +\d", shown[1]), "the cells hold numbers"


def reference_tool(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", repository / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_generated_references_are_current(repository: Path) -> None:
    tool = reference_tool(repository)
    for name, page in (("recipe.md", tool.recipe_page()), ("cli.md", tool.cli_page())):
        current = (repository / "docs" / name).read_text(encoding="utf-8")
        assert current == page, f"docs/{name} is not current: run python tools/reference.py"


def test_the_changelog_has_the_version(repository: Path) -> None:
    changelog = (repository / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(onward.__version__)} - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.MULTILINE)


def test_every_number_has_its_command(repository: Path) -> None:
    page = (repository / "docs/numbers.md").read_text(encoding="utf-8")
    tables = [block for block in page.split("\n\n") if block.lstrip().startswith("|")]
    first, *others = ([line for line in table.splitlines() if not line.startswith("|---")] for table in tables)
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in first]
    assert header == ["figure", "value", "command", "date", "machine", "versions"]
    for row in rows:
        assert len(row) == len(header)
        assert all(row), row
        assert row[2].startswith(("`", "[")), row
    assert any("quickstart.yaml" in row[2] for row in rows)
    assert any("education.yaml" in row[2] for row in rows)
    for table in others:  # a table of its own stands under the text that gives its command
        before = page.partition("\n".join(table[:1]))[0].rstrip().rpartition("\n\n")[2]
        assert re.search(r"`(onward |python benchmarks/|tests/)", before), table[0]
