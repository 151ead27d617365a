"""The rule of the house: a module imports only its own folder and what stands above it in the flow."""

import ast
from pathlib import Path

import pytest

ORDER = (
    "errors",
    "progress",
    "signals",
    "environment",
    "recipe",
    "artifact",
    "statistics",
    "tasks",
    "model",
    "corpus",
    "batches",
    "training",
    "evaluation",
    "analysis",
    "reporting",
    "plan",
    "pipeline",
    "studies",
    "verification",
    "terminal",
    "command",
    "cli",
    "__main__",
)
STEPS = ("onward.corpus.prepare", "onward.training.train", "onward.evaluation.evaluate", "onward.reporting.report")
MAY_IMPORT_STEPS = ("plan", "pipeline", "cli", "__init__")


def imports(path: Path) -> set[str]:
    """Modules of this package that a file imports, wherever in the file, with `from` targets spelt out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "onward":
            assert node.level == 0
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.split(".")[0] == "onward"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the layer"
    return found


def layer(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def sources(repository: Path) -> dict[str, Path]:
    root = repository / "src"
    return {p.relative_to(root).with_suffix("").as_posix().replace("/", "."): p for p in root.rglob("*.py")}


def test_every_module_has_its_place(repository: Path) -> None:
    layers = {layer(name) for name in sources(repository)} - {"__init__"}
    assert layers == set(ORDER)


def test_imports_point_up(repository: Path) -> None:
    for name, path in sources(repository).items():
        mine = layer(name)
        if mine == "__init__":
            continue
        for target in imports(path):
            theirs = layer(target)
            if theirs in ORDER:
                assert ORDER.index(theirs) <= ORDER.index(mine), f"{name} imports {target}"


def test_steps_do_not_import_steps(repository: Path) -> None:
    for name, path in sources(repository).items():
        if layer(name) in MAY_IMPORT_STEPS:
            continue
        folder = name.rpartition(".")[0].removesuffix(".__init__")
        foreign = {t for t in imports(path) for step in STEPS if t.startswith(step) and not step.startswith(folder)}
        assert not foreign, f"{name} imports {foreign}"


@pytest.mark.parametrize("heavy", ["torch", "transformers", "lm_eval", "pyarrow", "scipy", "datasets", "numpy"])
def test_the_command_line_imports_nothing_heavy(heavy: str) -> None:
    import subprocess
    import sys

    code = f"import sys, onward, onward.cli; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_stay_small_and_named_for_what_they_are(repository: Path) -> None:
    drawers = {"utils", "util", "helpers", "common", "misc", "core", "base", "manager", "handler"}
    lengths = []
    for path in sources(repository).values():
        assert path.stem not in drawers
        lines = path.read_text(encoding="utf-8").count("\n")
        assert lines <= 450, path
        lengths.append(lines)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 100, f"{path}: {node.name}"
    assert sorted(lengths)[len(lengths) // 2] <= 200
