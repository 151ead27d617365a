"""What a run gives up when the memory is too small."""

from pathlib import Path
from typing import Any

import pytest
import torch
from circumstances import Notes, befalls, events, losses, opened

from onward.errors import UserError
from onward.training.network import Network, Rows

FULL = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
}


def too_small(most_rows: int, kind: str, needs_recomputation: bool = False) -> Any:
    """The memory is full for more rows in a forward pass, or while activations are kept."""

    def change(call: int, network: Network, rows: Rows, loss: torch.Tensor) -> torch.Tensor:
        recomputes = all(getattr(block, "gradient_checkpointing", False) for block in network.blocks)
        if len(rows.ids_N) > most_rows * rows.longest or (needs_recomputation and not recomputes):
            raise FULL[kind]()
        return loss

    return change


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_too_little_memory_retreats_to_smaller_pieces_with_the_same_mathematics(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    befalls(monkeypatch, too_small(3, kind))
    notes = Notes()
    run = opened(inputs, tmp_path, notes, training__micro_batch_sequences="auto")
    run.train(until_step=5)
    retreats = events(run.folder, "retreat")
    assert [event["step"] for event in retreats] == [0] * len(retreats)
    micro_batches = [event["now"]["micro_batch"] for event in retreats]
    assert micro_batches == sorted(micro_batches, reverse=True)
    assert 1 <= micro_batches[-1] <= 3
    assert all(event["now"]["checkpoint_every"] == 0 for event in retreats), "smaller pieces were enough"
    assert any("the memory is full; going on with micro_batch" in note for note in notes.notes)
    run.train()
    assert len(events(run.folder, "retreat")) == len(retreats), "a restart begins where it had to go"
    assert events(run.folder, "resume")[0]["micro_batch"] == micro_batches[-1]
    assert losses(run.folder) == pytest.approx(losses(reference), rel=0, abs=1e-5)


def test_too_little_memory_for_one_row_retreats_to_recomputation(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, too_small(5, "cpu", needs_recomputation=True))
    run = opened(inputs, tmp_path, training__micro_batch_sequences="auto")
    run.train()
    last = events(run.folder, "retreat")[-1]["now"]
    assert last["checkpoint_every"] >= 1
    assert losses(run.folder) == pytest.approx(losses(reference), rel=0, abs=1e-5)


def test_too_little_memory_for_anything_says_what_would_help(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, too_small(0, "cpu"))
    run = opened(inputs, tmp_path, training__micro_batch_sequences="auto")
    with pytest.raises(UserError, match="nothing is left to give up") as stopped:
        run.train()
    assert "a smaller model" in str(stopped.value)
