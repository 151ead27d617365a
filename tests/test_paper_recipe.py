"""recipes/paper.yaml itself, from end to end, with only the Hub replaced and only sizes made small."""

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from hub import Hub, serving
from model.test_mobilellm import SMALL, pieces, write
from onward.corpus.ledger import read_ledger
from onward.evaluation.scores import read_scores
from onward.recipe import TASKS, load_recipe

__all__ = ["pieces"]  # the fixture

MODEL = "facebook/MobileLLM-125M"
FINEWEB_EDU, FINEWEB = "HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb"
FIRST_FILE = "sample/10BT/000_00000.parquet"
SIZES = [
    "training.stages=[8k, 16k]",
    "training.batch_tokens=4k",
    "corpus.tokens=1M",  # more than there is: every document is read
    "general.tokens=1M",
    "corpus.held_out.share=10%",  # of 150 documents, 1 % may be none
    "evaluation.limit=2",
    "evaluation.held_out_tokens=4k",
    "evaluation.resamples=100",
]


@dataclass(frozen=True)
class Outcome:
    hub: Hub
    folder: Path
    home: Path
    printed: str

    def json(self, name: str) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.folder / name).read_bytes())
        return content


def onward(repository: Path, hub: Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which takes `hub` for the Hub."""
    environment = os.environ | hub.environment(home)
    command = [sys.executable, "-c", "from onward.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=110)


def records(path: Path, limit: int | None = None) -> list[dict[str, object]]:
    import zstandard

    with open(path, "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line) for number, line in enumerate(lines) if limit is None or number < limit]


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    """Rows as the Hub's files have them: the text first, other columns after it, several row groups."""
    path.parent.mkdir(parents=True)
    table = pa.table({name: [row[name] for row in rows] for name in ("text", "id", "source")})
    parquet.write_table(table, path, row_group_size=40)


def test_the_paper_runs_from_the_hub_to_the_report(
    tmp_path: Path, repository: Path, shared_data: Path, pieces: Path
) -> None:
    # One test, so that parallel workers do not run the recipe several times.
    fill_hub(tmp_path / "hub", shared_data, pieces)
    overrides = [*SIZES, f"evaluation.data={shared_data / 'bench'}"]
    settings = [argument for override in overrides for argument in ("--set", override)]
    places = [f"--cache={tmp_path / 'cache'}", f"--runs={tmp_path / 'runs'}", "--workers=1"]
    with serving(tmp_path / "hub") as hub:
        done = onward(repository, hub, tmp_path / "home", "run", "recipes/paper.yaml", *settings, *places)
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = Outcome(hub, tmp_path / "runs" / "paper", tmp_path / "home", done.stdout)
    check_the_base_is_the_commit_of_the_hub_and_its_code_is_not_fetched(outcome)
    check_every_document_of_the_hub_is_in_the_ledger(outcome)
    check_both_stages_open_as_plain_models(outcome)
    check_base_and_stages_are_scored_on_the_seven_tasks_and_both_texts(outcome)
    check_the_report_is_there(outcome)


def fill_hub(root: Path, shared_data: Path, pieces: Path) -> None:
    """A small MobileLLM with all that is odd about the published one, and real text at the recipe's paths."""
    model = write(root / "models" / MODEL, SMALL | {"max_position_embeddings": 2048}, "bin")
    (model / "tokenizer.model").write_bytes(pieces.read_bytes())
    empty = {"tokenizer_class": "LlamaTokenizer", "bos_token": "", "eos_token": "", "unk_token": ""}
    (model / "tokenizer_config.json").write_text(json.dumps(empty))
    (model / "README.md").write_text("---\nlicense: fair-noncommercial-research-license\n---\n")
    datasets = root / "datasets"
    education = records(shared_data / "domain" / "education" / "fineweb_edu_sample150.jsonl.zst")
    write_parquet(datasets / FINEWEB_EDU / FIRST_FILE, education)
    (datasets / FINEWEB_EDU / "README.md").write_text("not a text to train on")
    write_parquet(datasets / FINEWEB / FIRST_FILE, records(shared_data / "general" / "storybooks.jsonl.zst", 40))


def check_the_base_is_the_commit_of_the_hub_and_its_code_is_not_fetched(outcome: Outcome) -> None:
    base = outcome.json("artifacts.json")["model"]
    assert isinstance(base, dict)
    assert base["name"] == MODEL
    assert base["revision"] == outcome.hub.commit("models", MODEL)
    assert base["license"] == "fair-noncommercial-research-license"
    fetched = outcome.hub.fetched("models", MODEL)
    assert fetched == {"README.md", "config.json", "pytorch_model.bin", "tokenizer.model", "tokenizer_config.json"}
    assert not list(outcome.home.rglob("*.py"))


def check_every_document_of_the_hub_is_in_the_ledger(outcome: Outcome) -> None:
    corpora = outcome.json("artifacts.json")["corpora"]
    assert isinstance(corpora, dict)
    domain, general = read_ledger(Path(corpora["domain"])), read_ledger(Path(corpora["general"]))
    for ledger, documents in ((domain, 150), (general, 40)):
        ledger.check()
        assert ledger.read.documents == documents
        assert ledger.sequence_tokens == 2000
        assert not ledger.unreadable
    plan = outcome.json("plan.json")
    assert (plan["steps"], plan["replay_share"]) == ([2, 4], None)
    assert plan["general_sequences_needed"] == 0
    assert outcome.hub.fetched("datasets", FINEWEB_EDU) == {FIRST_FILE}


def check_both_stages_open_as_plain_models(outcome: Outcome) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = sorted(path.parent for path in outcome.folder.glob("checkpoints/*/model/config.json"))
    weights = []
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert type(model).__name__ == "LlamaForCausalLM"
        assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size == SMALL["vocab_size"]
        weights.append(model.model.embed_tokens.weight)
    assert len(weights) == 2
    assert not weights[0].equal(weights[1])


def check_base_and_stages_are_scored_on_the_seven_tasks_and_both_texts(outcome: Outcome) -> None:
    base = outcome.json("artifacts.json")["base_scores"]
    stages = sorted(path.parent for path in outcome.folder.glob("scores/*/results.json"))
    assert len(stages) == 2
    for folder in (Path(str(base)), *stages):
        scores = read_scores(folder)
        assert tuple(task.task for task in scores.tasks) == TASKS
        assert all(task.items == 2 for task in scores.tasks)
        assert [text.corpus for text in scores.held_out] == ["domain", "general"]


def check_the_report_is_there(outcome: Outcome) -> None:
    assert str(outcome.folder / "report" / "index.html") in outcome.printed
    report = (outcome.folder / "report" / "report.md").read_text(encoding="utf-8")
    assert outcome.hub.commit("models", MODEL) in report
    assert all(task in report for task in TASKS)


def test_the_recipe_is_the_paper(repository: Path) -> None:
    """Sizes and data as published; the run above changes nothing but sizes."""
    recipe = load_recipe(repository / "recipes" / "paper.yaml")
    assert recipe.model.base == MODEL
    assert recipe.corpus.sources[0].path.startswith(f"hf://datasets/{FINEWEB_EDU}/")
    assert (recipe.training.stages, recipe.training.sequence_tokens) == ((400_000_000, 1_000_000_000), 2000)
    assert recipe.training.forgetting.replay is None
    assert recipe.evaluation.tasks == TASKS
    assert recipe.evaluation.limit is None
    assert recipe.training.schedule.kind == "cosine"


def test_a_model_that_the_hub_does_not_have_is_said_in_one_message(
    tmp_path: Path, repository: Path, shared_data: Path
) -> None:
    with serving(tmp_path / "empty") as hub:
        places = [f"--cache={tmp_path / 'cache'}", f"--runs={tmp_path / 'runs'}"]
        done = onward(repository, hub, tmp_path / "home", "prepare", "recipes/paper.yaml", *places)
    assert done.returncode == 2
    assert "no such model on the Hub" in done.stderr
    assert "Traceback" not in done.stderr
