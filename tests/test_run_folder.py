"""What a run's folder keeps when the same name comes with another recipe."""

from pathlib import Path

import pytest

import small_run
from onward.errors import UserError, in_a_line
from onward.pipeline import Run


def opened(place: Path, stages: list[int]) -> Run:
    return Run(small_run.recipe(place, training__stages=stages), folders=small_run.folders(place), workers=1)


def test_stages_that_are_begun_keep_their_ends_and_a_refused_recipe_is_not_written(tmp_path: Path) -> None:
    place = small_run.write_inputs(tmp_path / "inputs")
    run = opened(place, [960, 1920])
    run.train(until_stage=1)
    kept = {path: path.read_bytes() for path in run.folder.glob("*.*") if path.is_file()}
    assert {path.name for path in kept} >= {"recipe.yaml", "plan.json"}
    for stages in ([1440, 1920], [480]):
        with pytest.raises(UserError, match="was started with another recipe") as refused:
            opened(place, stages)
        assert refused.value.got == f"training.stages: was [960, 1920], is {stages}"
    assert kept == {path: path.read_bytes() for path in kept}
    opened(place, [960])
    opened(place, [960, 2400, 2880]).train(until_stage=2)
    with pytest.raises(UserError, match="was started with another recipe"):
        opened(place, [960, 1920])
    assert len(opened(place, [960, 2400]).train()) == 2


def test_an_error_in_a_line_says_where_and_what_to_do() -> None:
    error = UserError("there is no such file", "corpus.sources", "a.jsonl", todo="check the path")
    assert in_a_line(str(error)) == "there is no such file (where corpus.sources; got a.jsonl; do check the path)"
    assert in_a_line("") == ""
