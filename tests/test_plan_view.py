"""What a person sees of a plan: tables of 80 columns, the curve of the learning rate, its picture."""

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from onward.batches import plan_batches
from onward.errors import UserError, UserErrors
from onward.plan.costs import DISK_TOO_SMALL
from onward.plan.estimate import rate_curve
from onward.plan.figure import FILE, rate_picture, write_figure
from onward.plan.foresight import (
    DiskForesight,
    EvaluationForesight,
    Foresight,
    Machine,
    MemoryForesight,
    Range,
    RemediesForesight,
    SourceForesight,
    StrategyForesight,
    TextForesight,
    TrainingForesight,
)
from onward.plan.view import curve_view, duration, plan_view, span
from onward.recipe import Schedule, Training
from onward.training.strategy import Strategy

SOURCES = tuple(
    SourceForesight(
        f"/data/web/part-{n}.jsonl.zst",
        12,
        10**9,
        Range(9e6, 1e7, 1.1e7),
        Range(8e8, 9e8, 1e9),
        512,
        Range(0, 3e8, 5e8),
    )
    for n in range(2)
)
DOMAIN = TextForesight(
    role="domain",
    basis="estimated",
    sources=SOURCES,
    sampled_documents=1024,
    documents=Range(8.1e5, 9.2e5, 1.03e6),
    tokens=Range(9e8, 1e9, 1e9),
    kept_share=0.873,
    bytes_per_token=4.4,
    sequences=Range(450_000, 500_000, 500_000),
    sequences_needed=475_000,
    tokens_needed=950_000_000,
    passes=Range(0.95, 0.95, 1.06),
    pairs_per_token=300.0,
    losses=("quality: repeated 5-grams: 81 of 1,024", "held out: 10 of 1,024"),
    prepare_seconds=Range(100, 120, 200),
    disk_bytes=2.2e9,
    held_out_tokens=1e7,
)
GENERAL = replace(
    DOMAIN,
    role="general",
    basis="prepared",
    sources=(),
    documents=Range.exactly(41_234),
    tokens=Range.exactly(5e7),
    passes=Range.exactly(1.0),
    prepare_seconds=None,
    losses=(),
)
MEMORY = MemoryForesight(
    80_000_000_000,
    (
        StrategyForesight(Strategy(micro_batch=64, compiled=True), 95_000_000_000, {"activations": 90}, False, 1.0),
        StrategyForesight(
            Strategy("zero3", True, 2, 32, 2048, True), 61_000_000_000, {"weights": 500, "logits": 300}, True, 1.31
        ),
    ),
    1,
)


def planned(training: Training | None = None) -> Foresight:
    training = training or Training()
    batches = plan_batches(training, 0)
    seconds = Range(1e6, 2e6, 3e6)
    return Foresight(
        name="paper [bold]",
        model="facebook/MobileLLM-125M\x1b[1m",
        parameters=124_635_456,
        machine=Machine("h100", "cuda", 8, False, "bf16", 989.4e12, "data sheet", 84_933_017_600),
        texts=(DOMAIN, GENERAL),
        stages=training.stages,
        steps=batches.stage_steps,
        sequence_tokens=batches.sequence_tokens,
        sequences_per_step=batches.sequences_per_step,
        replay_share="5%",
        replay="5% general text",
        maximum_repetition=4.0,
        curve=rate_curve(training, batches.stage_steps),
        memory=MEMORY,
        timed=None,
        training=TrainingForesight(
            "estimated",
            1e14,
            Range(0.2, 0.3, 0.4),
            Range(123_456, 234_567, 345_678),
            seconds,
            tuple(seconds.times(share) for share in (0.4, 1.0)[: len(batches.stage_steps)]),
        ),
        remedies=RemediesForesight(0.0, None, None, 0, None, Range.exactly(1.0)),
        evaluation=EvaluationForesight(3, 123_274, 7.87e6, Range(300, 600, 1200), (), 0, 0),
        disk=DiskForesight(2.2e9, 7.5e9, 1e9, 3.7e7, {"/cache": 10**12, "/runs": 10**12}),
        notes=("domain: estimated from 1,024 documents\x1b[31m",),
        problems=(),
    )


def shown(foresight: Foresight, width: int = 80) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False)
    for part in plan_view(foresight):
        console.print(part)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_a_plan_is_readable_from_80_columns_on_and_says_it_all(width: int) -> None:
    said = shown(planned(), width)
    assert max(len(line) for line in said.splitlines()) <= width
    facts = ("124,635,456", "8 x h100", "which is not here", "989 TFLOP/s", "7,813", "5% general text", "87.3 %")
    facts += ("~1B", "900M to 1B", "0.95 to 1.06", "41,234", "950M", "part-0.jsonl.zst", "81 of 1,024", "400M", "3.21")
    facts += ("zero3, offload, recompute", "61 GB", "taken", "1.31", "12 days to 35 days", "120,000 to 350,000")
    facts += ("989 TFLOP/s in bf16 (data sheet), 84.9 GB each", "memory: 80 GB usable of 84.9 GB on each GPU")
    facts += ("20 to 40 %", "5 min 00 s to 20 min 00 s", "123,274", "10.7 GB", "checkpoints 7.5 GB")
    missing = [fact for fact in facts if fact not in " ".join(said.split())]
    assert missing == []
    assert "\x1b" not in said
    assert "[bold]" in said


def refused() -> Foresight:
    """A plan that fails in every way that its tables show."""
    short = replace(DOMAIN, sequences=Range(80_000, 100_000, 110_000), passes=Range(4.32, 4.75, 5.94))
    perhaps = replace(GENERAL, sequences=Range(5_000, 6_000, 7_000), sequences_needed=25_000, passes=Range(3.6, 4.2, 5))
    nothing = replace(MEMORY, strategies=(replace(MEMORY.strategies[0], peak_bytes=80_040_000_000),), chosen=None)
    problems = (UserError("too short"), UserError("no room"), UserError(DISK_TOO_SMALL))
    disk = replace(planned().disk, free={"/cache": 5_559_000_000})
    here = replace(planned().machine, here=True)
    return replace(
        planned(), texts=(short, perhaps), memory=nothing, training=None, disk=disk, machine=here, problems=problems
    )


def test_what_speaks_against_a_run_is_marked_where_it_stands() -> None:
    said = shown(refused())
    words = " ".join(said.split())
    assert "plan: paper [bold], which cannot work: 3 problems, at the end" in words
    assert said.count("at most 4") == 2
    assert "too little" in next(line for line in said.splitlines() if line.startswith("memory:"))
    assert re.search("free +5.55 GB, too little", said)
    assert "80.1 GB" in said, "it never reads like the 80 GB there are"
    assert "learning rate" not in said, "nobody needs the curve of a run that cannot be"
    assert len(said.splitlines()) < len(shown(planned()).splitlines())
    colours = io.StringIO()
    console = Console(file=colours, width=80, highlight=False, force_terminal=True, color_system="standard")
    for part in plan_view(refused()):
        console.print(part)
    wrong, doubtful = (re.findall(rf"\x1b\[{code}m *([^\x1b]*?) *\x1b", colours.getvalue()) for code in ("1;31", "33"))
    assert [words for words in wrong if words] == [
        ", which cannot work: 3 problems, at the end",
        "4.32 to 5.94",
        "at most 4",
        ", too little",
        "80.1 GB",
        "5.55 GB, too little",
    ]
    assert doubtful == ["at most 4"]


def test_a_text_that_is_enough_is_not_marked() -> None:
    assert "at most 4" not in shown(planned())
    assert "too little" not in shown(planned())


@pytest.mark.parametrize(
    ("kind", "count", "said"),
    [
        ("cuda", 1, "memory: 80 GB usable of 84.9 GB"),
        ("cuda", 2, "memory: 80 GB usable of 84.9 GB on each GPU"),
        ("cpu", 1, "memory: 80 GB usable of 84.9 GB"),
        ("cpu", 2, "memory: 80 GB usable for each of 2 processes"),
    ],
)
def test_memory_is_that_of_one_device_or_process(kind: str, count: int, said: str) -> None:
    foresight = replace(planned(), machine=replace(planned().machine, kind=kind, count=count))
    assert said in [line.strip() for line in shown(foresight).splitlines()]


def test_counts_of_tokens_are_short_everywhere() -> None:
    texts = (replace(DOMAIN, tokens_needed=950_001_664), GENERAL)
    said = shown(replace(planned(), texts=texts, stages=(2_772_992, 950_001_664), sequences_per_step=1387))
    assert "2.77M" in said
    assert "950M" in said
    assert not re.search(r"\d{4,}[kMBT]|\.\d{3,}[kMBT]", said)


@pytest.mark.parametrize("width", [80, 120])
def test_what_remedies_cost_is_told_where_there_are_any(width: int) -> None:
    remedies = RemediesForesight(
        1e5, Range(60, 120, 600), "self", 200_000, Range(300, 300, 900), Range(0.751, 0.9, 1.05)
    )
    words = " ".join(shown(replace(planned(), remedies=remedies), width).split())
    assert "sample 1 min 00 s to 10 min 00 s, estimated: 100k tokens from the base model" in words
    assert "5 min 00 s to 15 min 00 s, estimated: the Fisher information of 200k tokens of self, once" in words
    assert "remedies: a step is 0.75 to 1.05 times the work of one without, in these hours" in words
    for word in ("from the base model", "Fisher", "remedies:"):
        assert word not in shown(planned(), width)


def test_what_is_needed_of_a_text_and_what_there_is_agree() -> None:
    """Sequences hold padding: what is read is counted in tokens of the text, as what there is."""
    padded = replace(GENERAL, tokens=Range.exactly(8e6), tokens_needed=20_000_000, passes=Range.exactly(2.0))
    assert "16M" in shown(replace(planned(), texts=(DOMAIN, padded)))


def test_models_between_the_stages_and_questions_of_the_own_text_are_named() -> None:
    assert "evaluation.at" not in shown(planned())
    assert "evaluation.cloze" not in shown(planned())
    evaluation = replace(planned().evaluation, models=7, between=4, cloze_items=1000)
    for width in (80, 120):
        said = shown(replace(planned(), evaluation=evaluation), width)
        assert max(map(len, said.splitlines())) <= width
        words = " ".join(said.split())
        assert "7 models, each" in words
        assert "4 of the models between the stages' ends (evaluation.at)" in words
        assert "1,000 questions of the domain's text among these (evaluation.cloze)" in words
        fewer = shown(replace(planned(), evaluation=replace(evaluation, cloze_wanted=9000)), width)
        assert "at most some 1,000 questions of the domain's text" in " ".join(fewer.split())
    content = replace(planned(), evaluation=evaluation).as_json()["evaluation"]
    assert (content["between"], content["cloze_items"]) == (4, 1000)


def test_what_is_not_known_is_left_out() -> None:
    bare = replace(planned(), memory=None, training=None, texts=(GENERAL,), notes=())
    said = shown(bare)
    assert "memory" not in said
    assert "train " not in said
    assert " prepare " not in said
    assert "sources" not in said


def rows_of(foresight: Foresight, width: int, height: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=200, highlight=False).print(curve_view(foresight, width, height))
    return file.getvalue().splitlines()


def heights(foresight: Foresight, width: int = 40, height: int = 5) -> list[int]:
    """Eighths of a line that each column of the curve is high."""
    _, *bars, _, _ = rows_of(foresight, width, height)
    begin = len(bars[0]) - len(bars[0].lstrip()) + 5
    columns = zip(*(bar.ljust(200)[begin : begin + width] for bar in bars), strict=True)
    return [sum(" ▁▂▃▄▅▆▇█".index(sign) for sign in column) for column in columns]


def test_the_curve_rises_in_the_warm_up_falls_after_it_and_begins_anew_with_each_stage() -> None:
    training = Training(stages=("400M", "800M"), schedule=Schedule(warmup="20%", minimum="0%"))
    found = heights(planned(training))
    first, second = found[:20], found[20:]
    assert all(abs(a - b) <= 1 for a, b in zip(first, second, strict=True))
    assert first[:4] == sorted(first[:4])
    assert max(first) == first[4] >= 38
    assert first[4:] == sorted(first[4:], reverse=True)
    assert first[-1] <= 1


def test_the_curve_of_a_constant_rate_is_flat() -> None:
    training = Training(schedule=Schedule(kind="constant", warmup="0%"))
    assert set(heights(planned(training))) == {40}


def test_the_ends_of_the_stages_stand_below_the_curve() -> None:
    training = Training(stages=("100M", "400M", "800M"))
    *_, axis, names = rows_of(planned(training), 40, 3)
    axis = axis.lstrip()
    assert [place for place, sign in enumerate(axis) if sign == "┴"] == [4, 19, 39]
    assert names.split() == ["100M", "400M", "800M", "tokens"]
    begin = len(axis) - len(axis.lstrip())
    assert names.index("400M") + 4 - begin == rows_of(planned(training), 40, 3)[-2].index("┴", 15) + 1


def test_a_run_of_one_step_can_be_drawn() -> None:
    training = Training(stages=("128k",), batch_tokens="128k")
    foresight = planned(training)
    assert foresight.steps == (1,)
    assert heights(foresight) == [40] * 40
    ElementTree.fromstring(rate_picture(foresight))


def test_the_curve_holds_the_borders_of_the_stages_and_is_short() -> None:
    training = Training()
    curve = rate_curve(training, (3125, 7813))
    steps = [step for step, _ in curve]
    assert {0, 3124, 3125, 7812} <= set(steps)
    assert steps == sorted(steps)
    assert len(curve) < 450


def test_the_picture_is_a_file_of_its_own_with_the_stages_in_it(tmp_path: Path) -> None:
    foresight = replace(planned(), name="<& a run>")
    path = write_figure(foresight, tmp_path / "runs/x")
    assert path == tmp_path / "runs/x" / FILE
    picture = path.read_text(encoding="utf-8")
    ElementTree.fromstring(picture)
    assert picture.count('class="stage"') == 2
    assert "stage 1 · 400M" in picture
    assert "stage 2 · 1B" in picture
    assert "&lt;&amp; a run&gt;" in picture
    assert "<style>" in picture


def test_a_plan_as_json_holds_every_number_and_no_infinity() -> None:
    problem = UserError("the disk is too small", "/runs", "1 GB free", "2 GB", "free 1 GB")
    content = json.loads(json.dumps(replace(planned(), problems=(problem,)).as_json(), allow_nan=False))
    assert content["texts"][0]["sources"][1]["tokens"] == {"low": 8e8, "value": 9e8, "high": 1e9}
    assert content["memory"]["strategies"][1]["strategy"]["sharding"] == "zero3"
    assert content["problems"] == [
        {"what": "the disk is too small", "where": "/runs", "got": "1 GB free", "expected": "2 GB", "do": "free 1 GB"}
    ]
    assert content["steps"] == [3125, 7813]
    assert content["curve"][0][0] == 0


def test_every_problem_is_raised_at_once() -> None:
    planned().check()
    one, two = UserError("the first", todo="mend it"), UserError("the second")
    with pytest.raises(UserError, match="the first") as alone:
        replace(planned(), problems=(one,)).check()
    assert alone.value is one
    with pytest.raises(UserErrors) as both:
        replace(planned(), problems=(one, two)).check()
    assert both.value.problems == [one, two]


def test_times_and_ranges_are_written_for_people() -> None:
    assert duration(45) == duration(0.1) == "under 1 min"
    assert duration(61) == "1 min 01 s"
    assert duration(2 * 86_400) == "48 h 00 min"
    assert duration(9.4 * 86_400) == "9 days"
    assert span(Range.exactly(2.0), lambda value: f"{value:.1f}") == "2.0"
    assert span(Range(1.96, 2.0, 2.04), lambda value: f"{value:.1f}") == "2.0"
    assert span(Range(1, 2, 3), lambda value: f"{value:.1f}") == "1.0 to 3.0"
    assert Range(1, 2, 4).divided_by(Range(1, 2, 4)) == Range(0.25, 1, 4)
