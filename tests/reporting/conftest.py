"""A small synthetic run on disk, written to the documented files alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from onward.artifact import building
from onward.evaluation.scores import ItemRow, Measure, Scores, TaskScore, write_scores
from onward.reporting import ReportFiles, report

TASKS = {"mmlu": (0.25, False), "arc_easy": (0.25, True), "boolq": (0.5, False)}

RECIPE = """\
# carried onward
name: {name}
seed: 3
model: {{base: onward/tiny}}
corpus: {{sources: [{{path: "{source}"}}]}}
{general}
training:
  stages: [100k, 200k]
  sequence_tokens: 100
  batch_tokens: 1000
  forgetting: {{replay: {replay}}}
evaluation: {{resamples: 200, tasks: [{tasks}]}}
"""


@dataclass
class SyntheticRun:
    """Writes a run folder, part by part; texts may be hostile."""

    folder: Path
    name: str = "trial"
    general: bool = True
    tasks: dict[str, tuple[float, bool]] = field(default_factory=lambda: dict(TASKS))
    source: str = "books.jsonl"
    documents: int = 60
    questions: int = 300
    steps: int = 200
    command: str = "onward run recipes/trial.yaml"
    rule: str = "short_lines"
    unreadable: str = "books.jsonl:17: not JSON"
    touched: int = 0
    sources: tuple[str, ...] = ("alpha", "beta")

    def whole(self) -> "SyntheticRun":
        """Write everything a finished run has."""
        self.recipe()
        self.corpora()
        self.metrics(self.steps)
        self.scores(self.folder / "cache" / "scores" / "base0000", 0)
        for stage, tokens in ((1, 100_000), (2, 200_000)):
            self.checkpoint(f"tokens-{tokens:09d}", tokens // 1000, tokens)
            self.scores(self.folder / "scores" / f"tokens-{tokens:09d}", stage)
        return self

    def recipe(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        general = 'general: {sources: [{path: "novels"}]}' if self.general else ""
        text = RECIPE.format(
            name=self.name,
            source=self.source,
            general=general,
            replay="5%" if self.general else "null",
            tasks=", ".join(self.tasks),
        )
        (self.folder / "recipe.yaml").write_text(text)
        environment = {"onward": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.1.0"}
        environment |= {"platform": "Linux-6.1", "processor": "x86_64", "cores": 2, "memory_bytes": 8 * 10**9}
        environment |= {"accelerator": None, "command": self.command, "started": "2026-01-02T03:04:05+00:00"}
        self._json("environment.json", environment)
        plan = {"sequences_per_step": 10, "step_tokens": 1000, "sequence_tokens": 100, "steps": [100, 200]}
        plan |= {"stages": [100_000, 200_000], "replay_share": "5%" if self.general else None}
        plan |= {"domain_repetition": 1.5, "general_repetition": 0.2 if self.general else None}
        plan |= {"parameters": 3_900_000, "seconds": None}
        self._json("plan.json", plan)
        corpora = {"domain": "cache/corpora/aaaa1111", "general": "cache/corpora/bbbb2222" if self.general else None}
        base = {"name": "onward/tiny", "revision": None, "license": "Apache-2.0", "fingerprint": "ba5e0000ba5e0000"}
        self._json("artifacts.json", {"corpora": corpora, "base_scores": "cache/scores/base0000", "model": base})

    def corpora(self) -> None:
        for name in ("aaaa1111", "bbbb2222") if self.general else ("aaaa1111",):
            count = {key: {"documents": n, "bytes": n * 1000} for key, n in _ENDS.items()}
            ledger = {**count, "dropped": {self.rule: {"documents": 5, "bytes": 5000}}, "kept_tokens": 190_000}
            ledger |= {"packed_tokens": 190_000, "cut_tokens": 0, "padding_tokens": 1_000, "sequences": 1_910}
            ledger |= {"sequence_tokens": 100, "unreadable": [self.unreadable]}
            (self.folder / "cache" / "corpora" / name).mkdir(parents=True)
            self._json(f"cache/corpora/{name}/ledger.json", ledger)

    def metrics(self, steps: int) -> None:
        generator = np.random.default_rng(0)
        rows = []
        for step in range(steps):
            loss = 3.0 + 1.5 * np.exp(-step / 30) + generator.normal(0, 0.1)
            rate = 1e-3 * min(1.0, (step % 100 + 1) / 5) * (1 - 0.9 * (step % 100) / 100)
            row = {"step": step, "tokens": (step + 1) * 1000, "stage": 1 + step // 100, "loss_nats": loss}
            row |= {"learning_rate": rate, "gradient_norm": 1.0, "tokens_per_second": 5000.0, "labelled_tokens": 990}
            rows.append(row | {"replay_sequences": 1, "memory_bytes": 9 * 10**8, "seconds": 0.2})
        (self.folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        events = [{"time": "2026-01-02T03:04:05+00:00", "event": "start", "step": 0, "tokens": 0}]
        if steps == self.steps:
            events.append({"time": "2026-01-02T03:09:05+00:00", "event": "finished", "step": steps, "tokens": 200_000})
        (self.folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))

    def checkpoint(self, name: str, step: int, tokens: int, releasable: bool = True) -> None:
        made_from = {"base": "ba5e0000ba5e0000", "step": step}
        with building(self.folder / "checkpoints" / name, "checkpoint", made_from) as aside:
            (aside / "state").mkdir()
            (aside / "state" / "cursor.json").write_text(json.dumps({"step": step, "tokens": tokens}))
            if releasable:
                (aside / "model").mkdir()
                (aside / "model" / "config.json").write_text("{}")

    def scores(self, folder: Path, stage: int) -> None:
        """Domain text falls by 0.2 bits per byte a stage, general text rises by 0.03; arc_easy gains, others stay."""
        corpora = {"domain": (2.3, -0.2), "general": (1.6, 0.03)} if self.general else {"domain": (2.3, -0.2)}
        rows = [row for corpus, (level, slope) in corpora.items() for row in self._text(corpus, level, slope, stage)]
        tasks = []
        for task, (chance, normed) in self.tasks.items():
            score, answers = self._answers(task, chance, normed, stage)
            tasks.append(score)
            rows += answers
        with building(folder, "scores", {"stage": stage}) as aside:
            write_scores(aside, Scores(f"model {stage}", (), tuple(tasks), 1.0), rows)

    def _text(self, corpus: str, level: float, slope: float, stage: int) -> list[ItemRow]:
        generator = np.random.default_rng(len(corpus))
        hardness = generator.normal(0, 0.3, self.documents)
        noise = np.random.default_rng(stage).normal(0, 0.02, self.documents) * (stage > 0)
        size = generator.integers(500, 4000, self.documents)
        nats = (level + hardness + slope * stage + noise) * size * np.log(2)
        task = f"held_out:{corpus}"
        names = [self.sources[i // 2 % len(self.sources)] for i in range(self.documents)]
        return [
            ItemRow(
                task, None, f"{corpus}-{i}", f"{corpus}-{i // 2}", names[i], nats=nats[i], bytes=int(size[i]), tokens=9
            )
            for i in range(self.documents)
        ]

    def _answers(self, task: str, chance: float, normed: bool, stage: int) -> tuple[TaskScore, list[ItemRow]]:
        ability = {"arc_easy": 0.4 + 0.12 * stage, "boolq": 0.6}.get(task, chance)
        level = np.random.default_rng(len(task)).random(self.questions)
        shift = np.random.default_rng([stage, len(task)]).normal(0, 0.03, self.questions) * (stage > 0)
        right = (level + shift) < ability
        measures = tuple(Measure(name, float(right.mean()), 0.02) for name in ("acc", "acc_norm")[: 1 + normed])
        score = TaskScore(task, len(right), len(right), "h", 0, chance, measures, 0)
        options = round(1 / chance)
        rows = []
        for i in range(self.questions):
            name, gold = f"{task}-{i}", i % 2
            answer = ItemRow(
                task,
                None,
                name,
                name,
                gold=gold,
                predicted=gold if right[i] else 1 - gold,
                right={measure.name: bool(right[i]) for measure in measures},
                logprobs=(-1.0,) * options,
                touched="drop" if task == "arc_easy" and i < self.touched else None,
            )
            rows.append(answer)
        return score, rows

    def _json(self, name: str, value: object) -> None:
        (self.folder / name).write_text(json.dumps(value))


_ENDS = {"read": 1000, "duplicate": 10, "contaminated": 2, "held_out": 20, "kept": 963}


@pytest.fixture
def synthetic_run(tmp_path: Path) -> SyntheticRun:
    """A run folder to be filled: `synthetic_run.whole()`, or part by part."""
    return SyntheticRun(tmp_path / "runs" / "trial")


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[SyntheticRun, ReportFiles]:
    """A finished run and its report, for tests that only read."""
    run = SyntheticRun(tmp_path_factory.mktemp("whole") / "trial").whole()
    return run, report(run.folder)
