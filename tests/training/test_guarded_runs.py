"""What the guard does in a whole run whose losses are no numbers or leap."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from circumstances import Notes, befalls, events, opened, rows_of, state
from safetensors.torch import load_file

from onward.errors import UserError
from onward.training import loop
from onward.training.network import Network, Rows


def test_a_batch_whose_loss_is_no_number_is_left_out_and_named(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, lambda call, network, rows, loss: loss * float("nan") if call == 5 else loss)
    notes = Notes()
    run = opened(inputs, tmp_path, notes)
    assert len(run.train()) == 2
    assert [row["applied"] for row in rows_of(run.folder)] == [True, True, False, True, True, True, True, True]
    assert rows_of(run.folder)[:2] == rows_of(reference)[:2]
    (left_out,) = events(run.folder, "update_left_out")
    assert (left_out["at"], left_out["kind"], left_out["action"]) == (2, "not_a_number", "skip")
    assert len(left_out["sequences"]) == 10
    assert sum(name.startswith("general sequence ") for name in left_out["sequences"]) == 1
    assert any("step 2" in note and "not a number" in note for note in notes.notes)
    assert all(torch.isfinite(value).all() for value in state(run.folder / "checkpoints/tokens-000003840").values())


def test_losses_that_stay_no_numbers_stop_it_with_a_diagnosis_and_a_good_checkpoint(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, lambda call, network, rows, loss: loss * float("nan") if call >= 5 else loss)
    run = opened(inputs, tmp_path, training__guard={"patience": 3})
    with pytest.raises(UserError, match="not a number") as stopped:
        run.train()
    assert [row["step"] for row in rows_of(run.folder) if not row["applied"]] == [2, 3, 4]
    assert "step 4 (" in str(stopped.value)
    assert "sequence" in str(stopped.value)
    assert "learning rate" in str(stopped.value), "weights that give no number any more"
    assert events(run.folder, "update_left_out")[-1]["action"] == "stop"
    newest = max((run.folder / "checkpoints").glob("[!.]*/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    assert all(torch.isfinite(value).all() for value in state(newest.parent).values())
    # What lay behind it mended, the same command goes on.
    monkeypatch.undo()
    assert len(run.train()) == 2


LEAPS = {"window_steps": 8, "spike_deviations": 3.0, "spike_nats": 2.0}


def leap(call: int, network: Network, rows: Rows, loss: torch.Tensor) -> torch.Tensor:
    """The loss of step 5 is three times as high."""
    return loss * 3 if call in (10, 11) else loss


def test_a_leap_of_the_loss_is_skipped(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, leap)
    run = opened(inputs, tmp_path, training__guard=LEAPS)
    run.train()
    assert [row["step"] for row in rows_of(run.folder) if not row["applied"]] == [5]
    (left_out,) = events(run.folder, "update_left_out")
    assert (left_out["at"], left_out["kind"], left_out["action"]) == (5, "spike", "skip")
    assert rows_of(run.folder)[:5] == rows_of(reference)[:5]
    cursor = json.loads((run.folder / "checkpoints/tokens-000003840/state/cursor.json").read_bytes())
    assert (cursor["step"], cursor["updates"]) == (8, 7)


def test_a_leap_of_the_loss_is_rolled_back_and_the_batches_since_are_left_out(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, leap)
    # The last state before the leap is the first stage's end, after four steps: step 4 is undone too.
    run = opened(inputs, tmp_path, training__guard=LEAPS | {"spike": "rollback"})
    run.train()
    (rollback,) = events(run.folder, "rollback")
    assert (rollback["to"], rollback["batches_left_out"]) == (4, 2)
    assert len(rows_of(run.folder)) == 8
    cursor = json.loads((run.folder / "checkpoints/tokens-000003840/state/cursor.json").read_bytes())
    assert (cursor["step"], cursor["updates"]) == (8, 6)


def test_a_leap_of_the_loss_stops_it(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    befalls(monkeypatch, leap)
    run = opened(inputs, tmp_path, training__guard=LEAPS | {"spike": "stop"})
    with pytest.raises(UserError, match="leaps") as stopped:
        run.train()
    assert "step 5 (" in str(stopped.value)
    assert "the last checkpoint is untouched" in str(stopped.value)


BETWEEN = ("tokens-000002400", "tokens-000002880")
"""Models after steps 5 and 6: before the leap's own step, and with it."""


def leap_at(*calls: int) -> Callable[[int, Network, Rows, torch.Tensor], torch.Tensor]:
    """The losses of these forward passes are three times as high."""
    return lambda call, network, rows, loss: loss * 3 if call in calls else loss


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "model" / "model.safetensors")


def are_of(run: Path, checkpoint: str, models: Sequence[str] = BETWEEN) -> bool:
    """Whether models hold exactly the weights of a checkpoint."""
    expected = weights_of(run / "checkpoints" / checkpoint)
    found = [weights_of(run / "models" / name) for name in models]
    return all(torch.equal(weights[name], expected[name]) for weights in found for name in expected)


def test_models_that_a_rollback_undoes_are_written_again(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"training__guard": LEAPS | {"spike": "rollback"}, "evaluation__at": [2400, 2880, 3360]}
    run = opened(inputs, tmp_path, **changes)
    last = "tokens-000003360"

    def killed(call: int, network: Network, rows: Rows, loss: torch.Tensor) -> torch.Tensor:
        if call == 10:
            raise RuntimeError("killed")
        return loss

    # The first of them is there already when the run is killed in the step of the leap, and is not made by the next.
    befalls(monkeypatch, killed)
    with pytest.raises(RuntimeError, match="killed"):
        run.train()
    assert not are_of(run.folder, "tokens-000001920", BETWEEN[:1]), "it holds the update that is to be undone"
    befalls(monkeypatch, leap_at(2, 3))
    run.train()
    assert [(event["to"], event["batches_left_out"]) for event in events(run.folder, "rollback")] == [(4, 2)]
    assert are_of(run.folder, "tokens-000001920")
    assert not are_of(run.folder, "tokens-000001920", [last])
    written = [(event["step"], event["folder"]) for event in events(run.folder, "model")]
    assert written == [(5, BETWEEN[0]), (6, BETWEEN[0]), (6, BETWEEN[1]), (7, last)]

    # One that is lost is made again as it was, which takes the steps that were undone.
    rows = rows_of(run.folder)
    shutil.rmtree(run.folder / "models" / BETWEEN[0])
    befalls(monkeypatch, leap_at(2, 3))
    run.train()
    assert are_of(run.folder, "tokens-000001920")
    assert rows_of(run.folder) == rows


def test_where_models_are_written_does_not_change_what_a_rollback_leaves_out(
    inputs: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where losses are read every few steps, as on a GPU."""
    monkeypatch.setattr(loop, "_CPU_CADENCE", 4)
    changes = {"training__guard": LEAPS | {"spike": "rollback"}, "training__checkpoint_tokens": 1920}
    states = []
    for at in ([], [2400, 2880, 3360]):
        befalls(monkeypatch, leap)
        run = opened(inputs, tmp_path / f"{len(at)}", **changes, evaluation__at=at)
        run.train()
        (rollback,) = events(run.folder, "rollback")
        assert (rollback["to"], rollback["batches_left_out"]) == (4, 4)
        states.append(state(run.folder / "checkpoints/tokens-000003840"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert are_of(run.folder, "tokens-000001920", [*BETWEEN, "tokens-000003360"])
    assert [event["folder"] for event in events(run.folder, "model")] == [BETWEEN[0], *BETWEEN, "tokens-000003360"]
