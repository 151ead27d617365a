"""The benchmarks of training measure what they say: the same rows, the same losses, on both sides."""

import json
import os
import random
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from onward.batches import NO_TARGET
from onward.errors import UserError
from small_run import WORDS

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # at the end: nothing of it may hide a module of the tests

import gpu  # noqa: E402
import packed_rows  # noqa: E402


def last_line_of(script: str, *arguments: str) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def write_short_texts(path: Path) -> None:
    """Documents of which several make a row of 64 tokens."""
    draw = random.Random(path.name)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 30))) for _ in range(200)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))


def test_what_the_benchmarks_need_beside_onward_is_an_extra() -> None:
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {re.split("[<>=]", wanted)[0] for wanted in extras["bench"]} == {"accelerate", "datatrove", "spacy"}
    assert set(extras["bench"]) <= set(extras["dev"])


def test_made_rows_are_packed_documents_with_next_tokens_as_labels() -> None:
    rows = packed_rows.made_rows(300, rows=40, tokens=512)
    assert rows.ids_NT.shape == (40, 512)
    inside = rows.documents_NT >= 0
    assert inside.mean() > 0.95
    assert rows.pieces_per_row > 1.5
    same = (rows.documents_NT[:, 1:] == rows.documents_NT[:, :-1]) & inside[:, 1:]
    assert (rows.positions_NT[:, 1:][same] == rows.positions_NT[:, :-1][same] + 1).all()
    assert (rows.positions_NT[:, 1:][~same & inside[:, 1:]] == 0).all()
    assert (rows.labels_NT[:, :-1] == np.where(same, rows.ids_NT[:, 1:], NO_TARGET)).all()
    assert (rows.labels_NT[:, -1] == NO_TARGET).all()
    ends = np.flatnonzero(rows.ids_NT == 0)
    assert 0 < len(ends) <= 40 * rows.pieces_per_row, "a piece that ends its document ends with token 0"
    assert rows.labelled_tokens == same.sum()


def test_rows_on_disk_are_the_rows(tmp_path: Path) -> None:
    rows = packed_rows.made_rows(300, rows=2, tokens=64, seed=3)
    rows.save(tmp_path / "rows.npz")
    read = packed_rows.load_rows(tmp_path / "rows.npz")
    assert (read.ids_NT == rows.ids_NT).all()
    assert read.causal_pairs == rows.causal_pairs
    assert read.batch(1, 2).labelled_tokens == int((rows.labels_NT[1] != NO_TARGET).sum())


def test_causal_pairs_are_those_inside_documents() -> None:
    documents = np.array([[0, 0, 0, 1, 1, -1]])
    positions = np.array([[0, 1, 2, 0, 1, 0]])
    rows = packed_rows.PackedRows(positions, positions, positions, documents)
    assert rows.causal_pairs == 6 + 3


def test_gpu_benchmark_says_that_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="2"):
        gpu.main()
    assert "there is no GPU to measure" in capsys.readouterr().err
    with pytest.raises(UserError, match="no GPU"):
        gpu.find_device("cuda")


@pytest.mark.timeout(300)
def test_gpu_benchmark_trains_alike_by_every_strategy_and_by_hf_trainer() -> None:
    facts = last_line_of("gpu.py", "--device", "cpu", "--tiny")
    losses = [value for name, value in facts.items() if name.endswith("_loss_nats")]
    assert len(losses) == 4
    assert max(losses) - min(losses) < 2e-5, losses
    assert facts["ratio_vs_hf_trainer_tiny"] > 0
    assert 0 < facts["tiny_onward_none_2_mfu_of_measured_peak"] < 1


@pytest.mark.timeout(300)
def test_training_benchmark_compares_the_stage_with_hf_trainer_on_the_same_rows(tmp_path: Path) -> None:
    education = tmp_path / "domain" / "education"
    education.mkdir(parents=True)
    for name in ("fineweb_pages", "textbooks"):
        write_short_texts(education / f"{name}.jsonl.zst")
    settings = ["--quick", "--shapes", "tiny", "--threads", "1", "--precision", "fp32"]
    facts = last_line_of("training.py", str(tmp_path), *settings)
    assert facts["max_loss_difference_nats"] < 1e-4
    name = "tiny_fp32_1_thread"
    speeds = [facts[f"{side}_tokens_per_s_{name}"] for side in ("onward", "hf")]
    assert facts["ratio_vs_hf_trainer"] == pytest.approx(speeds[0] / speeds[1], rel=1e-3)
    assert facts[f"peak_memory_less_imports_ratio_{name}"] > 0
    assert 0 < facts["fraction_of_gemm_peak"] < 1


@pytest.mark.timeout(300)
def test_remedies_benchmark_predicts_what_each_remedy_holds() -> None:
    facts = last_line_of("remedies.py", "--quick")
    state = {name.removesuffix("_state_bytes"): value for name, value in facts.items() if name.endswith("_state_bytes")}
    assert len(state) == 8
    weights = state["plain"] / 16
    assert state["kl"] - state["plain"] == state["l2_sp"] - state["plain"] == 4 * weights
    assert state["ewc"] - state["plain"] == 8 * weights
    assert state["lora"] < state["freeze_embeddings_half"] < state["freeze_embeddings"] < state["plain"]
    assert all(facts[f"{name}_time_ratio"] > 0 for name in state)
