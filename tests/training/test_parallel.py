"""Ranks that share a model learn what one process learns. Two processes over gloo on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks_parity import STEPS, losses, strategies

from onward.training.launch import Place
from onward.training.ranks import Ranks
from onward.training.strategy import Strategy
from synthetic import llama_config, write_model

HERE = Path(__file__).parent


def torchrun(script: str, *arguments: object, processes: int = 2, timeout: float = 110) -> None:
    """Run a script of this folder as ranks on the loopback interface."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("parity") / "model", llama_config(num_hidden_layers=3))


@pytest.fixture(scope="module")
def alone(model: Path) -> list[float]:
    """The losses of one process without any of it."""
    whole = Strategy(micro_batch=8, loss_chunk=1000)
    return losses(model, whole, Ranks(Place(), torch.device("cpu")))


@pytest.fixture(scope="module")
def shared(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The losses of two ranks under every strategy, by its name."""
    out = tmp_path_factory.mktemp("ranks") / "losses.json"
    torchrun("ranks_parity.py", model, out)
    found = json.loads(out.read_text())
    assert found["world"] == 2
    return {name(Strategy(**run["strategy"])): run["losses"] for run in found["runs"]}


def name(strategy: Strategy) -> str:
    blocks = {0: "", 1: "-recomputed", 2: "-every-2nd-recomputed"}[strategy.checkpoint_every]
    return f"{strategy.sharding}{'-offload' * strategy.offload}{blocks}-micro{strategy.micro_batch}"


@pytest.mark.parametrize("strategy", strategies(), ids=name)
def test_two_ranks_learn_what_one_process_learns(
    strategy: Strategy, alone: list[float], shared: dict[str, Any]
) -> None:
    assert len(alone) == STEPS
    assert alone[-1] < alone[0] - 1
    assert shared[name(strategy)] == pytest.approx(alone, rel=0, abs=1e-5)
