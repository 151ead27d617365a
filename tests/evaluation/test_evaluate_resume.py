"""Scoring that is killed goes on after the last chunk, and processes may share the items: the same rows every time."""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from onward.artifact import building, building_place, locked
from onward.errors import RankError, UserError
from onward.evaluation import evaluate as step
from onward.evaluation import harness, heldout
from onward.evaluation import partial as parts
from onward.evaluation.evaluate import evaluate
from onward.evaluation.partial import Partial
from onward.evaluation.scores import ItemRow, Scores, read_rows
from onward.model import score
from onward.model.source import TINY, resolve
from onward.progress import Named, Silent
from onward.recipe import Evaluation
from onward.training.launch import Ending, RanksEnded

DOCUMENTS, ITEMS = 12, 11


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_CHUNK", 4)
    monkeypatch.setattr(heldout, "_CHUNK", 5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "corpora" / "abc"
    with building(folder, "corpus", {"source": "test"}) as aside:
        rows = [
            {
                "id": f"d{n}",
                "source": f"s{n % 2}",
                "group": None,
                "text": f"The mill stood by river {n}. " * (n % 4 + 1),
            }
            for n in range(DOCUMENTS)
        ]
        pq.write_table(pa.Table.from_pylist(rows), aside / "held_out.parquet")
    return folder


@pytest.fixture
def inputs(corpus: Path, shared_data: Path) -> dict[str, Any]:
    """Held-out text of three small chunks and a task of three."""
    settings = {"tasks": ("piqa",), "data": str(shared_data / "bench"), "limit": ITEMS, "resamples": 100}
    return {"evaluation": Evaluation.model_validate(settings), "held_out": {"domain": corpus}, "seed": 0}


class Counted:
    """Counts what is scored, and stops everything before a chosen call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: Counter[str] = Counter()
        self.requests: Counter[Any] = Counter()
        self.calls, self.last = 0, 10**9
        documents, continuations = score.score_documents, score.score_continuations
        monkeypatch.setattr(heldout, "score_documents", self.counting(documents, 2, self.texts))
        monkeypatch.setattr(harness, "score_continuations", self.counting(continuations, 1, self.requests))

    def counting(self, scores: Callable[..., Any], place: int, counter: Counter[Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            if self.calls >= self.last:
                raise KeyboardInterrupt
            self.calls += 1
            counter.update(arguments[place])
            return scores(*arguments, **more)

        return counted


class Notes(Silent):
    """Keeps what a step says."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (1, f"going on after 5 documents and 0 of {ITEMS} items, which are scored already"),
        (5, f"going on after {DOCUMENTS} documents and 8 of {ITEMS} items, which are scored already"),
    ],
)
def test_a_resumed_evaluation_says_where_it_goes_on(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int, said: str
) -> None:
    counted, notes = Counted(monkeypatch), Notes()
    counted.last = calls
    with pytest.raises(KeyboardInterrupt):
        evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs, progress=notes)
    assert notes.notes == []
    counted.last = 10**9
    evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs, progress=Named(notes, "tiny"))
    assert notes.notes == [f"tiny: {said}"]


def without_time(scores: Scores) -> Scores:
    return replace(scores, seconds=0.0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("calls", [1, 2, 3, 4, 5])
def test_nothing_is_scored_twice_after_a_kill(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Three chunks of held-out text, then three of items; the evaluation dies before each of them but the first."""
    whole = evaluate(resolve(TINY), folder=tmp_path / "whole", **inputs)
    counted = Counted(monkeypatch)
    counted.last = calls
    with pytest.raises(KeyboardInterrupt):
        evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert not (tmp_path / "scores").exists()
    assert counted.calls == calls
    counted.last = 10**9
    scores = evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert counted.calls == 6
    assert set(counted.texts.values()) == set(counted.requests.values()) == {1}
    assert (len(counted.texts), len(counted.requests)) == (DOCUMENTS, 2 * ITEMS)
    assert without_time(scores) == without_time(whole)
    assert read_rows(tmp_path / "scores/items.parquet") == read_rows(tmp_path / "whole/items.parquet")
    files = {"items.parquet", "results.json", "scored_on.json", "manifest.json"}
    assert {path.name for path in (tmp_path / "scores").iterdir()} == files


@pytest.mark.usefixtures("small_chunks")
def test_seconds_are_those_of_all_lives(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(parts, "time", SimpleNamespace(time=lambda: float(next(clock))))
    for calls in (2, 4):
        counted.last = calls
        with pytest.raises(KeyboardInterrupt):
            evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    counted.last = 10**9
    # Every life looks at the clock when it begins and after each of its chunks, and the last one when it ends.
    assert evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs).seconds == 20 + 20 + 30


@pytest.mark.usefixtures("small_chunks")
def test_rows_of_another_evaluation_are_not_taken_over(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    counted.last = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    counted.last = 10**9
    other = inputs | {"evaluation": inputs["evaluation"].model_copy(update={"limit": 3})}
    scores = evaluate(resolve(TINY), folder=tmp_path / "scores", **other)
    assert counted.calls == 5 + 3 + 1
    assert scores.tasks[0].items == 3


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("loses", ["damaged", "removed"])
def test_a_damaged_part_is_scored_again(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loses: str
) -> None:
    """Of three chunks of text and three of items four are done, of which one is lost."""
    whole = evaluate(resolve(TINY), folder=tmp_path / "whole", **inputs)
    counted = Counted(monkeypatch)
    counted.last = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    (lost, *_), counted.last = written_parts(tmp_path / "scores"), 10**9
    assert len(written_parts(tmp_path / "scores")) == 4
    lose(lost, loses)
    scores = evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert counted.calls == 6 + 1, "one chunk twice"
    assert without_time(scores) == without_time(whole)
    assert read_rows(tmp_path / "scores/items.parquet") == read_rows(tmp_path / "whole/items.parquet")


def written_parts(folder: Path) -> list[Path]:
    return sorted(building_place(folder).glob("rows/*.parquet"))


def lose(part: Path, how: str) -> None:
    if how == "removed":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:40])


def test_a_life_counts_from_its_first_moment(tmp_path: Path) -> None:
    """Of several ranks the first may be killed before it has rows, when others have theirs."""
    first = Partial.open(tmp_path, {"model": "a"})
    Partial.join(tmp_path, first.life, first.began, is_timed=False).keep([ItemRow("piqa", None, "0", "0")])
    second = Partial.open(tmp_path, {"model": "a"})
    assert (first.life, second.life) == (0, 1)
    first_rank = Partial.join(tmp_path, first.life, first.began - 100.0, is_timed=True)
    assert first_rank.lived() >= 100
    assert second.lived() >= 100, "the seconds of the life before stay"


def test_parts_are_kept_by_what_they_are_made_from(tmp_path: Path) -> None:
    tmp_path.joinpath("left").write_text("of something else")
    partial = Partial.open(tmp_path, {"model": "a"})
    assert not tmp_path.joinpath("left").exists()
    rows = [ItemRow("piqa", None, str(n), str(n), right={"acc": True}, logprobs=(-1.5, -2.0)) for n in range(3)]
    partial.keep(rows[:2])
    partial.keep(rows[2:])
    again = Partial.open(tmp_path, {"model": "a"})
    assert again.life == 1
    assert sorted(again.rows(again.files())["piqa"], key=lambda row: row.item) == rows
    damaged = tmp_path / "rows" / again.files()[0]
    damaged.write_bytes(damaged.read_bytes()[:40])
    (left,) = again.files()
    assert len(again.rows([left])["piqa"]) in (1, 2)
    assert Partial.open(tmp_path, {"model": "b"}).files() == ()


def test_each_source_has_its_score(inputs: dict[str, Any], tmp_path: Path) -> None:
    only_text = inputs | {"evaluation": inputs["evaluation"].model_copy(update={"tasks": ()})}
    (text,) = evaluate(resolve(TINY), folder=tmp_path / "scores", **only_text).held_out
    assert [(source.source, source.documents) for source in text.sources] == [("s0", 6), ("s1", 6)]
    assert sum(source.bytes for source in text.sources) == text.bytes
    assert sum(source.tokens for source in text.sources) == text.tokens
    assert all(source.low <= source.bits_per_byte <= source.high for source in text.sources)
    mean = sum(source.bits_per_byte * source.bytes for source in text.sources) / text.bytes
    assert mean == pytest.approx(text.bits_per_byte)


@pytest.mark.usefixtures("small_chunks")
def test_two_ranks_share_the_chunks(inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other here, since they only meet on disk; each scores every other chunk of text and items."""
    alone = evaluate(resolve(TINY), folder=tmp_path / "alone", **inputs)
    told = []

    def run_ranks(command: list[str], processes: int) -> Ending:
        for rank in range(processes):
            with monkeypatch.context() as patched:
                for name, value in (("RANK", rank), ("WORLD_SIZE", processes), ("LOCAL_RANK", rank)):
                    patched.setenv(name, str(value))
                counted = Counted(patched)
                step.score_share(Path(command[1]))
            told.append((sorted(counted.texts), len(counted.requests)))
        monkeypatch.delattr("onward.model.load.load_model")  # the one who joins their rows needs no model
        return Ending(0)

    monkeypatch.setattr(step, "run_ranks", run_ranks)
    shared = evaluate(resolve(TINY), folder=tmp_path / "shared", processes=2, **inputs)
    assert without_time(shared) == without_time(alone)
    assert read_rows(tmp_path / "shared/items.parquet") == read_rows(tmp_path / "alone/items.parquet")
    (first, second) = told
    assert (len(first[0]), len(second[0])) == (7, 5)
    assert (first[1], second[1]) == (2 * 7, 2 * 4)
    assert not set(first[0]) & set(second[0])
    assert not building_place(tmp_path / "shared").exists()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("loses", ["damaged", "removed"])
@pytest.mark.parametrize(("task", "says"), [("held_out:domain", "held-out domain text"), ("piqa", "piqa")])
def test_rows_that_the_ranks_have_not_left_are_missed_and_scored_by_the_same_command(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loses: str, task: str, says: str
) -> None:
    """All ranks ended well, but a part of what they wrote is gone when it is joined."""

    def run_ranks(command: list[str], processes: int) -> Ending:
        step.score_share(Path(command[1]))  # one rank, which has it all
        lose(next(part for part in written_parts(tmp_path / "scores") if read_rows(part)[0].task == task), loses)
        return Ending(0)

    with monkeypatch.context() as patched:
        patched.setattr(step, "run_ranks", run_ranks)
        with pytest.raises(UserError, match=rf"{says}[\s\S]*[1-5] of its rows[\s\S]*run the same command again"):
            evaluate(resolve(TINY), folder=tmp_path / "scores", processes=2, **inputs)
    assert not (tmp_path / "scores").exists()
    counted = Counted(monkeypatch)
    scores = evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert counted.calls == 1, "the rest is there"
    assert without_time(scores) == without_time(evaluate(resolve(TINY), folder=tmp_path / "alone", **inputs))


@pytest.mark.usefixtures("small_chunks")
def test_what_is_left_to_score_does_not_decide_how_it_is_computed(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are compiled by the size of the whole evaluation: a resumed one goes on as it began."""
    tokens: list[int] = []
    monkeypatch.setattr("onward.training.ranks.choose_device", lambda place: torch.device("cpu"))
    monkeypatch.setattr("onward.model.score.compile_to_score", lambda model, number: tokens.append(number))
    counted = Counted(monkeypatch)
    counted.last = 4
    with pytest.raises(KeyboardInterrupt):
        evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    counted.last = 10**9
    evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert len(tokens) == 2
    assert tokens[0] == tokens[1] > 10**6, "the held-out text's million and the items"


def test_ranks_are_started_by_torchrun(inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone = evaluate(resolve(TINY), folder=tmp_path / "alone", **inputs)
    shared = evaluate(resolve(TINY), folder=tmp_path / "shared", processes=2, **inputs)
    assert without_time(shared) == without_time(alone)
    assert read_rows(tmp_path / "shared/items.parquet") == read_rows(tmp_path / "alone/items.parquet")


@pytest.mark.usefixtures("small_chunks")
def test_when_a_rank_dies_the_others_end_and_their_rows_stay(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two ranks never came to write; the first one's chunks need not be scored again."""
    first_share: list[Path] = []

    def run_ranks(command: list[str], processes: int) -> Ending:
        first_share.append(Path(command[1]))
        with monkeypatch.context() as patched:
            patched.setenv("RANK", "0")
            patched.setenv("WORLD_SIZE", str(processes))
            patched.setenv("LOCAL_RANK", "0")
            step.score_share(Path(command[1]))
        return Ending(9)

    monkeypatch.setattr(step, "run_ranks", run_ranks)
    with pytest.raises(RanksEnded) as ended:
        evaluate(resolve(TINY), folder=tmp_path / "scores", processes=2, **inputs)
    assert ended.value.status == 9
    assert not (tmp_path / "scores").exists()
    counted = Counted(monkeypatch)
    scores = evaluate(resolve(TINY), folder=tmp_path / "scores", **inputs)
    assert counted.calls == 2, "the second chunk of the text and that of the task"
    assert without_time(scores) == without_time(evaluate(resolve(TINY), folder=tmp_path / "alone", **inputs))


def test_what_a_rank_meets_alone_it_tells_itself(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first rank speaks for all but of the items that another one has."""

    def fails(*arguments: Any) -> Any:
        raise UserError("the model's likelihoods are not numbers")

    def run_ranks(command: list[str], processes: int) -> Ending:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RankError, match="not numbers"):
            step.score_share(Path(command[1]))
        return Ending(2)

    monkeypatch.setattr(heldout, "_CHUNK", 5)
    monkeypatch.setattr(heldout, "score_documents", fails)
    monkeypatch.setattr(step, "run_ranks", run_ranks)
    with pytest.raises(RanksEnded):
        evaluate(resolve(TINY), folder=tmp_path / "scores", processes=2, **inputs)


def test_scores_that_another_process_makes_meanwhile_are_not_made_again(
    inputs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, held = tmp_path / "scores", ExitStack()
    scored = evaluate(resolve(TINY), folder=folder, **inputs)
    folder.rename(tmp_path / "of the other")
    held.enter_context(locked(folder))

    class Waiting(Silent):
        def note(self, text: str) -> None:
            assert "waiting for it" in text
            (tmp_path / "of the other").rename(folder)  # it is done
            held.close()

    counted = Counted(monkeypatch)
    found = evaluate(resolve(TINY), folder=folder, progress=Waiting(), waits=True, **inputs)
    assert counted.calls == 0
    assert found == scored
