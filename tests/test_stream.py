"""`onward run --stream`: trained while the text is prepared, everything comes out as if it had not been."""

from pathlib import Path
from typing import Any

import pytest

import onward
import small_run
from onward.errors import UserError
from onward.training.record import read_rows

BLOCKS: dict[str, Any] = {"training__order": "blocks", "corpus__block_tokens": 1_000_000, "corpus__tokens": 5_000_000}


def files(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.safetensors"))
    return {path.relative_to(folder).as_posix(): small_run.content_hash(path) for path in paths}


def losses(folder: Path) -> list[float]:
    return [row["loss_nats"] for row in read_rows(folder / "metrics.jsonl")]


def test_a_streamed_run_equals_the_unstreamed_run_of_the_same_plan(tmp_path: Path) -> None:
    results = {}
    for name, stream in (("whole", False), ("streamed", True)):
        place = small_run.write_inputs(tmp_path / name)
        small_run.write_texts(place / "domain.jsonl", 12_000, seed=1)
        recipe = small_run.recipe(place, **BLOCKS)
        results[name] = onward.run(recipe, folders=small_run.folders(place), workers=1, stream=stream)
    whole, streamed = results["whole"], results["streamed"]
    for name in results:
        assert len(list((tmp_path / name / "cache/corpora").glob("*/packing-00001.npz"))) == 1, "several blocks"
    assert losses(whole.folder) == losses(streamed.folder)
    assert len(losses(whole.folder)) == 8
    assert files(whole.folder / "checkpoints") == files(streamed.folder / "checkpoints") != {}
    texts = [[(text.corpus, text.bits_per_byte) for text in r.stage_scores[-1].held_out] for r in (whole, streamed)]
    assert texts[0] == texts[1]
    again = onward.run(
        small_run.recipe(tmp_path / "streamed", **BLOCKS), folders=small_run.folders(tmp_path / "streamed")
    )
    assert again.stage_scores == streamed.stage_scores


def test_only_blocks_are_streamed(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    with pytest.raises(UserError, match="only blocks can be streamed"):
        onward.run(small_run.recipe(place), folders=small_run.folders(place), workers=1, stream=True)


def test_text_that_cannot_be_prepared_ends_the_streamed_run_with_the_reason(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    (place / "domain.jsonl").write_text('{"text": 1}\n' * 50)
    with pytest.raises(UserError, match="too many records cannot be read"):
        onward.run(small_run.recipe(place, **BLOCKS), folders=small_run.folders(place), workers=1, stream=True)


def test_text_that_proves_too_short_ends_the_streamed_run(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path)
    small_run.write_texts(place / "domain.jsonl", 6, seed=1)
    changes = {**BLOCKS, "training__maximum_repetition": 1.0, "training__stages": [19200]}
    with pytest.raises(UserError, match="too short"):
        onward.run(small_run.recipe(place, **changes), folders=small_run.folders(place), workers=1, stream=True)
