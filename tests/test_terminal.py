"""What a person sees: the line of a step on a terminal and in a log file, the ledger, a corpus looked into."""

import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from known_corpus import KnownCorpus, write_known_corpus
from onward import terminal
from onward.analysis import Comparison, Comparisons, Difference
from onward.corpus.inspected import Cluster, Inspection, Removed, Repeats
from onward.corpus.inspection import inspect_corpus
from onward.corpus.ledger import Count, Ledger
from onward.corpus.survey import Origin, Origins
from onward.reporting.console import bar, common_folder, inspection_view, percent, screened
from onward.terminal import Terminal, print_comparisons, print_inspection, print_ledger

FACTS = "123,456 documents  20.1 MB/s  5,432 documents/s  4.52M tokens/s"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> KnownCorpus:
    return write_known_corpus(tmp_path_factory.mktemp("known"), repository, examples=40)


@pytest.fixture(scope="module")
def inspection(known: KnownCorpus) -> Inspection:
    return inspect_corpus(known.folder, samples=2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])

    def set_time(seconds: float) -> None:
        now[0] = 100.0 + seconds

    return set_time


def log() -> tuple[Terminal, io.StringIO]:
    file = io.StringIO()
    return Terminal(Console(file=file, width=80, highlight=False)), file


def shown(inspection: Inspection, width: int) -> list[str]:
    file = io.StringIO()
    console = Console(file=file, width=width, highlight=False)
    for part in inspection_view("domain", inspection):
        console.print(part)
    return file.getvalue().splitlines()


def test_a_log_file_gets_a_line_now_and_then_with_the_time_left(clock: Callable[[float], None]) -> None:
    line, file = log()
    line.begin("preparing corpus", 400_000_000, "tokens")
    clock(1)
    line.advance(100_000_000, FACTS)  # what an earlier call finished
    assert file.getvalue() == ""
    clock(11)
    line.advance(110_000_000, FACTS)
    assert file.getvalue() == ""
    clock(21)
    line.advance(200_000_000, FACTS)
    assert file.getvalue() == f"preparing corpus 200,000,000 of 400,000,000 tokens  {FACTS}  40 s left\n"
    clock(22)
    line.advance(400_000_000, FACTS)
    line.end()
    assert file.getvalue().splitlines()[1:] == [f"preparing corpus 400,000,000 tokens  {FACTS}  in 22 s"]


def test_a_note_stands_after_the_closing_line_of_a_step_that_has_all_its_units(clock: Callable[[float], None]) -> None:
    line, file = log()
    line.begin("train", 100, "tokens")
    clock(2)
    line.advance(50)
    line.note("saved")
    line.advance(100, "loss 3.2")
    line.note("member 2 of 4: none-seed1")
    line.advance(100, "late")
    line.begin("scoring", 10, "items")
    assert file.getvalue().splitlines() == [
        "  saved",
        "train            100 tokens  loss 3.2  in 2 s",
        "  member 2 of 4: none-seed1",
    ]


def test_a_step_that_goes_on_after_its_last_unit_is_told_of_again(clock: Callable[[float], None]) -> None:
    line, file = log()
    line.begin("train", 100, "tokens")
    clock(2)
    line.advance(100, "loss 9.9")
    line.note("back to step 3")
    clock(4)
    line.advance(30, "loss 3.4")
    clock(9)
    line.advance(100, "loss 3.2")
    line.end()
    assert file.getvalue().splitlines() == [
        "train            100 tokens  loss 9.9  in 2 s",
        "  back to step 3",
        "train            100 tokens  loss 3.2  in 9 s",
    ]


def test_no_time_left_is_told_where_none_is_known(clock: Callable[[float], None]) -> None:
    line, file = log()
    line.begin("preparing corpus", None, "tokens")
    clock(30)
    line.advance(5, "so far")
    clock(60)
    line.advance(6, "so far")
    assert "left" not in file.getvalue()
    assert "preparing corpus 6 tokens  so far" in file.getvalue()


def test_texts_of_a_step_are_no_markup(clock: Callable[[float], None]) -> None:
    line, file = log()
    line.begin("train", 10, "tokens")
    clock(30)
    line.advance(1, "[red]x[/red]")
    line.note("[bold]a[/bold]")
    line.end()
    assert file.getvalue().count("[red]x[/red]") == 2
    assert "[bold]a[/bold]" in file.getvalue()


@pytest.mark.parametrize(("width", "below"), [(80, True), (100, True), (160, False)])
def test_a_live_line_never_cuts_its_facts(width: int, below: bool) -> None:
    file = io.StringIO()
    line = Terminal(Console(file=file, width=width, force_terminal=True, highlight=False))
    line.begin("preparing corpus", 400_000_000, "tokens")
    line.advance(100_000_000, FACTS)
    assert line._bar is not None
    line._bar.refresh()
    line._bar.stop()
    rows = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).splitlines()
    (last, *rest) = [row for row in rows if "documents/s" in row][-1:]
    assert not rest
    assert FACTS in last
    assert ("preparing corpus" in last) != below
    assert max(map(len, rows)) <= width
    assert any("25%" in row for row in rows)


def ledger(**changes: object) -> Ledger:
    counts = {name: Count(n, n * 100) for name, n in (("read", 60), ("duplicate", 4), ("near_duplicate", 6))}
    counts |= {"contaminated": Count(1, 100), "held_out": Count(2, 200), "kept": Count(40, 3970)}
    dropped, trimmed = {"[bold]short[/bold]": Count(7, 700)}, {"lines taken out (c4)": Count(5, 30)}
    tokens = {"kept_tokens": 9_000_000_000, "packed_tokens": 9_000_000_000, "cut_tokens": 0, "sequence_tokens": 2048}
    places = {"padding_tokens": 4_394_532 * 2048 - 9_000_000_000, "sequences": 4_394_532}
    return replace(Ledger(**counts, dropped=dropped, trimmed=trimmed, unreadable=(), **tokens, **places), **changes)


def test_the_ledger_shows_every_end_and_its_lines_whole(capsys: pytest.CaptureFixture[str]) -> None:
    ledger().check()
    print_ledger("domain", ledger())
    text = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in text.splitlines()]
    for row in ("read 60 6,000 100.0 %", "near-duplicate 6 600 10.0 %", "[bold]short[/bold] 7 700 11.7 %"):
        assert row in rows
    assert "lines taken out (c4) * (5) 30" in rows
    assert "* in brackets: documents that went on without these bytes" in rows
    assert "9,000,000,000 tokens in 4,394,532 sequences of 2,048" in rows
    assert "1,536 places padded (< 0.1 %)" in rows
    print_ledger("domain", ledger(trimmed={}))
    assert "brackets" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 110])
def test_an_inspection_is_readable_from_80_columns_on(inspection: Inspection, known: KnownCorpus, width: int) -> None:
    rows = shown(inspection, width)
    assert max(map(len, rows)) <= width
    text = " ".join(" ".join(rows).split())
    for words in (
        "domain documents bytes share",
        "gigatoken",
        "length of kept documents",
        "bytes per token of kept documents",
        "gopher quality too few words ≥ 50 7 ",
        "web domains: 3",
        "exact duplicates: 4 documents removed",
        "4 removed for https://www.site0.org/page/3",
        "near-duplicates: 8 documents removed",
        "2 removed for held-2 (held out)",
        "near-0, 1",
        "quiz 1 0 2",
        "document dropped; in cheat-",
        "dropped: gopher quality: too few words, 7 documents",
        "dropped: contaminated, 2 documents",
        f"sources: 2, in {Path(known.plain).parent}/",
    ):
        assert words in text, words
    squeezed = "".join(text.split())
    for sample in inspection.kept:
        assert "".join(f"{sample.id}, {sample.tokens:,} tokens".split()) in squeezed
        assert "".join(screened(sample.excerpt).split()) in squeezed
    for line in rows:
        if "█" in line:
            assert line.count("█") <= 22


def test_where_room_is_short_names_are_wrapped_and_numbers_and_bars_are_not(inspection: Inspection) -> None:
    measures = tuple(
        replace(measure, rule=f"{measure.rule} of the longest kind", counts=tuple(n * 10**7 for n in measure.counts))
        for measure in inspection.measures
    )
    rows = [row for row in shown(replace(inspection, measures=measures), 68) if re.search("[≤≥] [0-9]", row)]
    assert len(rows) == len(measures)
    for row in rows:
        assert re.search(r"[\d,]+ +(< )?[\d.]+ % {3}[ ▁-█]{10}│[ ▁-█]{11}", row), row
    assert "70,000,000" in next(row for row in rows if "≥ 50 " in row)


def test_what_is_not_all_shown_says_so(inspection: Inspection) -> None:
    clusters = tuple(Cluster(f"stays-{n}", "s", False, "x", 9, (Removed("r", "s", 3, "y"),)) for n in range(10))
    repeats = Repeats(90_000, 5, 10_000, 12, 4321, clusters)
    origins = Origins(tuple(Origin(f"o{n}", 1, 4, 10) for n in range(20)), 500, 7)
    rows = shown(replace(inspection, near=repeats, sources=origins), 100)
    text = " ".join(" ".join(rows).split())
    assert "90,000 documents removed" in text
    assert "5 bytes; 4,321 documents stayed for them, 12 are in another corpus" in text
    assert "Only the first 10,000 are listed" in text
    assert "The 5 that stayed for most:" in text
    assert text.count("and 8 more") == 5
    assert "stays-4" in text
    assert "stays-5" not in text
    rest = inspection.ledger.kept_tokens - 100
    assert "sources: more than 500 documents" in text
    assert f"all others: {rest:,} tokens" in text
    assert "up to 7 tokens more" in text


def test_text_from_anywhere_cannot_command_the_terminal(inspection: Inspection) -> None:
    hostile = "a\x1b[2Jb\x07c\x9bd\u202ee [bold]f[/bold]\tg\r\nh"
    sample = replace(inspection.kept[0], id=hostile, source=hostile, excerpt=hostile)
    rule = replace(inspection.dropped[0], rule=hostile)
    text = "\n".join(shown(replace(inspection, kept=(sample,), dropped=(rule,), folder=hostile), 200))
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\t", "\r"}
    assert text.count("[bold]f[/bold] g ↵ h") == 4  # folder, id, excerpt, rule


def test_printing_goes_to_standard_output(inspection: Inspection, capsys: pytest.CaptureFixture[str]) -> None:
    print_inspection("general", inspection)
    out, err = capsys.readouterr()
    assert out.startswith("general\n")
    assert err == ""
    assert 100 < max(map(len, out.splitlines())) <= 110


def test_a_pipe_is_as_wide_as_asked_for_and_lines_end_with_a_letter(
    inspection: Inspection, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def widest(columns: str) -> int:
        monkeypatch.setenv("COLUMNS", columns)
        print_inspection("general", inspection)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [line.rstrip() for line in lines]
        return max(map(len, lines))

    assert widest("80") <= 80 < widest("150") <= 150
    assert 100 < widest("0") <= 110
    assert 100 < widest("wide") <= 110


def test_bars_and_shares() -> None:
    assert bar(1.0, 4) == "████"
    assert bar(0.5, 4) == "██"
    assert bar(0.25 + 1 / 8 / 4, 4) == "█▏"
    assert (bar(0, 4), bar(1e-9, 4)) == ("", "▏")
    assert bar(1 - 1e-9, 4) == "████"
    assert [percent(n, 4000) for n in (0, 1, 4, 4000)] == ["0.0 %", "< 0.1 %", "0.1 %", "100.0 %"]
    assert percent(3, 0) == "0.0 %"


def test_the_folder_that_names_share() -> None:
    assert common_folder(["/a/b/c.x", "/a/b/d/e.x"]) == "/a/b/"
    assert common_folder(["https://h/x/1", "https://h/y/2"]) == "https://h/"
    assert common_folder(["/a/b", "/c/d"]) == ""
    assert common_folder(["a.org", "b.org"]) == ""
    assert common_folder([]) == ""


@pytest.mark.parametrize(("width", "shows_p"), [(80, False), (100, True)])
def test_a_comparison_fits_and_cuts_nothing(
    width: int, shows_p: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perplexities of a model that knows nothing, long names, the longest verdict: whole, at any usual width."""
    monkeypatch.setenv("COLUMNS", str(width))
    low, high = -123_456_789.0, 98_765_432.1
    facts = {"p_value": 0.5, "p_adjusted": 0.52, "verdict": "not distinguishable", "items": 5153}
    flips = {"right_to_wrong": None, "wrong_to_right": None}
    rows = (
        Difference("lambada_openai", "perplexity", 23_456_789.0, 91.234, high, low, high, **facts, **flips),
        Difference("mmlu_continuation", "acc_norm", 0.31, 0.29, -0.02, -0.1, 0.06, **facts, **flips),
        Difference("piqa", "acc", 0.1, 0.1, 0.0, -0.1, 0.1, **facts, **flips, chance=0.5, below_chance=(True, True)),
    )
    print_comparisons(Comparisons("base", (Comparison("base", "other", rows, ()),)))
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    for whole in ("2.35e7", "91.23", "+9.88e7", "\N{MINUS SIGN}1.23e8 to"):
        assert whole in printed
    for word in ("LAMBADA", "perplexity", "continuations", "acc_norm", "distinguishable"):
        assert word in printed
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert ("p (Holm)" in printed) == ("0.5" in printed) == shows_p
    assert "PIQA, acc: both scores are below guessing, 50.0 %" in printed
    assert "in the table named below" in " ".join(printed.split())
