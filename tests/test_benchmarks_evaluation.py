"""The benchmark of evaluation measures what it says: the same requests, the same numbers, on both sides."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.append(str(FOLDER))  # at the end: nothing of it may hide a module of the tests

import thinned  # noqa: E402


def last_line_of(*arguments: str) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FOLDER / "evaluation.py"), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return facts


def test_a_share_is_evenly_spaced() -> None:
    assert thinned.spaced(10, 5) == [0, 2, 4, 6, 8]
    assert thinned.spaced(3, 5) == [0, 1, 2]
    assert len(set(thinned.spaced(1001, 999))) == 999


@pytest.mark.timeout(300)
def test_both_sides_score_the_same_requests(shared_data: Path) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")
    settings = ["--quick", "--shapes", "tiny", "--threads", "1", "--tasks", "piqa,winogrande", "--items", "4"]
    facts = last_line_of(str(shared_data), *settings)
    assert facts["largest_difference_nats_fp32"] < 1e-3
    name = "piqa_tiny_fp32_1_thread"
    speeds = [facts[f"{side}_items_per_s_{name}"] for side in ("onward", "lm_eval")]
    assert facts["ratio_vs_lm_eval_piqa"] == pytest.approx(speeds[0] / speeds[1], rel=1e-3)
    assert facts[f"onward_requests_per_s_{name}"] == pytest.approx(2 * speeds[0], rel=1e-3)
    assert facts[f"cpu_time_ratio_{name}"] > 0
    assert 0 <= facts[f"lm_eval_padding_share_{name}"] < 1
    for side in ("onward", "lm_eval"):
        assert facts[f"{side}_computed_tokens_{name}"] >= facts[f"needed_tokens_{name}"] > 0


@pytest.mark.timeout(300)
def test_numbers_are_compared_as_well(shared_data: Path) -> None:
    pytest.importorskip("accelerate", reason="lm-eval's hf model needs accelerate")
    facts = last_line_of(str(shared_data), "--parity", "--shapes", "tiny", "--tasks", "piqa", "--items", "3")
    assert facts["parity"] == facts["parity_piqa_tiny"] == 1
    assert facts["parity_items_piqa_tiny"] == 3
    assert facts["parity_largest_difference_nats_piqa_tiny"] < 1e-3
