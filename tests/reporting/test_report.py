"""Facts of a synthetic run are found in its pages; the pages are safe, self-contained and the same each time."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from onward.errors import UserError
from onward.evaluation.scores import ItemRow, Measure, TaskScore, read_rows, read_scores, write_scores
from onward.reporting import report, summary_rows

HOSTILE = '</style></svg><script>alert("x")</script><img src=x onerror=y> | `a` "q" & \'s\''


class Page(HTMLParser):
    """Collects the tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def test_the_first_words_are_the_findings(whole):
    _, files = whole
    page = Page(files.html.read_text())
    assert files.findings.headline == "The model gained on the domain, but general text became harder for it."
    assert files.findings.headline in page.text
    assert re.search(r"Domain text: 2\.\d+ → 1\.\d+ bits per byte \(−0\.\d+, 95 % interval −0\.\d+ to −0", page.text)
    assert "ARC easy (acc_norm)" in page.text
    assert "Task scores, 4 in all: 2 gained (ARC easy acc, ARC easy acc_norm)" in page.text
    assert [stage.tokens for stage in files.findings.stages] == [100_000, 200_000]


@pytest.mark.parametrize(
    "fact",
    [
        "onward run recipes/trial.yaml",
        "Apache-2.0",
        "ba5e0000ba5e0000",
        "3,900,000",
        "200,000 tokens in 200 steps of 200 planned",
        "5,000 tokens/s",
        "40 s",
        "900 MB",
        "dropped: short lines 5 0.5 % 5,000",
        "dropped: duplicate 10",
        "dropped: contaminated 2",
        "1,910 sequences of 100 191,000 100.0 %",
        "books.jsonl:17: not JSON",
        "checkpoints/tokens-000100000 100,000 100",
        "end of stage 2",
        "2.13.0",
        "aaaa1111",
        "bbbb2222",
        "# carried onward",
        "5% general text",
        "stage 1 · 100k",
        "After 100k tokens",
    ],
)
def test_the_page_holds_every_fact_of_the_run(whole, fact):
    assert fact in Page(whole[1].html.read_text()).text


def test_the_markdown_says_the_same(whole):
    text = whole[1].markdown.read_text()
    for fact in ("The model gained on the domain", "ba5e0000ba5e0000", "| 5 | 0.5 % | 5,000 |", "books.jsonl:17"):
        assert fact in text
    assert "# carried onward" in text
    assert text.count("](training.svg)") == text.count("](text.svg)") == text.count("](tasks.svg)") == 1
    assert "## Recipe\n\n```yaml\n# carried onward" in text


def test_every_markdown_table_is_rectangular(whole):
    blocks = re.findall(r"(?:^\|.*\n)+", whole[1].markdown.read_text(), flags=re.M)
    assert len(blocks) >= 7
    for block in blocks:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}
        assert len(widths) == 1, block


def test_nothing_is_loaded_from_anywhere(whole):
    html = whole[1].html.read_text()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(page.tags)
    assert not [a for a in page.attributes if a[0] in ("src", "href", "srcset", "action") or a[0].startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= {"http://www.w3.org/2000/svg"}


def test_hostile_texts_stay_texts(synthetic_run):
    run = synthetic_run
    run.command = run.rule = run.unreadable = HOSTILE
    run.source = HOSTILE.replace('"', '\\"')
    run.tasks = {"mmlu": (0.25, False), "x": (0.25, False)}
    run.whole()
    files = report(run.folder)
    html = files.html.read_text()
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert " ".join(HOSTILE.split()) in page.text
    assert html.count("</style>") == 1
    assert html.count("</svg>") == html.count("<svg ") == 6
    markdown = files.markdown.read_text().split("## Recipe")[0]
    assert "<script" not in re.sub(r"\\<", "", markdown)


def test_a_hostile_task_name_is_escaped_in_the_figures(synthetic_run):
    run = synthetic_run
    run.whole()
    for folder in (run.folder / "cache/scores/base0000", run.folder / "scores/tokens-000200000"):
        path = folder / "results.json"
        path.write_text(path.read_text().replace('"boolq"', json.dumps(HOSTILE)))
        _rename_task(folder, "boolq", HOSTILE)
    (run.folder / "scores/tokens-000100000/manifest.json").unlink()
    files = report(run.folder)
    page = Page(files.html.read_text())
    assert not {"script", "img"} & set(page.tags)
    assert f"{HOSTILE} · acc" in " ".join(ElementTree.parse(run.folder / "report/tasks.svg").getroot().itertext())


def _rename_task(folder, old, new):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "items.parquet")
    names = [new if name == old else name for name in table.column("task").to_pylist()]
    table = table.set_column(table.schema.get_field_index("task"), "task", pa.array(names))
    pq.write_table(table, folder / "items.parquet")


def test_figures_beside_the_page_are_well_formed_and_styled(whole):
    folder = whole[1].html.parent
    assert {path.name for path in folder.iterdir()} == {
        "index.html",
        "report.md",
        "training.svg",
        "text.svg",
        "tasks.svg",
    }
    for path in folder.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.find("{http://www.w3.org/2000/svg}style") is not None
        assert "nan" not in path.read_text().lower().replace("nants", "")


def test_the_same_files_give_the_same_bytes(whole):
    run, files = whole
    before = {path.name: path.read_bytes() for path in files.html.parent.iterdir()}
    again = report(run.folder)
    assert {path.name: path.read_bytes() for path in again.html.parent.iterdir()} == before


def test_every_verdict_word_of_the_summary_comes_from_the_comparison(whole):
    comparison = whole[1].findings.stages[-1].comparison
    rows = summary_rows(comparison)
    assert [row.verdict for row in rows] == [difference.verdict for difference in comparison.differences]
    assert whole[1].summary[-1].rows == rows
    assert rows[0].name == "Domain text, bits per byte"
    assert rows[0].change.startswith("−")
    assert rows[2].before.endswith(" %")


def test_a_run_that_has_only_a_recipe_is_reported(synthetic_run):
    synthetic_run.recipe()
    files = report(synthetic_run.folder)
    text = Page(files.html.read_text()).text
    assert files.findings.stages == ()
    for words in ("Training has not started.", "has not been scored", "No corpus has been prepared.", "None yet."):
        assert words in text


def test_only_the_recipe_file_itself_is_needed(synthetic_run):
    synthetic_run.recipe()
    for name in ("environment.json", "plan.json", "artifacts.json"):
        (synthetic_run.folder / name).unlink()
    assert "not recorded" in report(synthetic_run.folder).markdown.read_text()


def test_a_run_in_the_middle_says_how_far_it_is(synthetic_run):
    run = synthetic_run
    run.recipe()
    run.corpora()
    run.metrics(120)
    run.scores(run.folder / "cache/scores/base0000", 0)
    run.checkpoint("tokens-000100000", 100, 100_000)
    run.checkpoint("step-000000110", 110, 110_000, releasable=False)
    run.scores(run.folder / "scores/tokens-000100000", 1)
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 120, "tok')  # a kill in the middle of a line
    files = report(run.folder)
    text = Page(files.html.read_text()).text
    assert "Training has not finished: 120,000 of 200,000 tokens" in text
    assert "Not scored yet: the end of 200k tokens." in text
    assert "state to resume from" in text
    assert len(files.findings.stages) == 1


def test_no_general_corpus_and_no_tasks_are_said(synthetic_run):
    synthetic_run.general = False
    synthetic_run.tasks = {}
    synthetic_run.whole()
    files = report(synthetic_run.folder)
    text = Page(files.html.read_text()).text
    assert "The model gained on the domain; general text was not scored." in text
    assert "No benchmark tasks were asked for" in text
    assert "There is no general corpus" in text
    assert "General text" not in files.markdown.read_text()
    assert "to right / to wrong" not in text


def test_a_task_with_items_found_in_the_text_is_shown_with_and_without_them(synthetic_run):
    run = synthetic_run
    run.touched = 292
    run.whole()
    files = report(run.folder)
    rows = {(row.measure, row.metric): row for row in files.summary[-1].rows}
    whole, clean = rows["ARC easy", "acc"], rows["ARC easy without 292 found", "acc"]
    assert (whole.verdict, whole.items) == ("gained", "300")
    assert (clean.verdict, clean.items) == ("at chance", "8")
    assert [row.measure for row in files.summary[-1].rows].count("MMLU") == 1
    text = Page(files.html.read_text()).text
    assert "ARC easy (acc) without 292 items found in the text, none left in training:" in text
    assert "ARC easy (acc): " in text
    tally = re.search(r"Task scores, 4 in all: (.*?)\.", text)[1]
    assert "at chance" in tally
    assert "gained" not in tally
    assert "ARC easy without 292 found" in files.markdown.read_text()


def test_details_stand_behind_the_table(whole):
    text = Page(whole[1].html.read_text()).text
    assert "measure metric guessing scores base after 100k tokens after 200k tokens" in text
    assert re.search(r"BoolQ acc 50\.0 % \d+\.\d \d+\.\d \d+\.\d", text)
    assert "A B C D always its favourite would score right answers 50.0 % 50.0 % 0.0 % 0.0 %" in text
    assert "Domain text by source in bits per byte, after 200k tokens" in text
    assert re.search(r"alpha 30 2\.\d+ 1\.\d+ −0\.\d+ −0\.\d+ to −0\.\d+ < 0\.001 gained", text)
    assert "### Details" in whole[1].markdown.read_text()


def test_details_are_left_out_where_there_are_none(synthetic_run):
    synthetic_run.tasks, synthetic_run.sources = {}, ("books",)
    synthetic_run.whole()
    files = report(synthetic_run.folder)
    assert "Details" not in Page(files.html.read_text()).text
    assert "### Details" not in files.markdown.read_text()


def test_many_sources_are_cut_to_the_largest(synthetic_run):
    synthetic_run.sources = tuple(f"s{i:02d}" for i in range(25))
    synthetic_run.whole()
    text = Page(report(synthetic_run.folder).html.read_text()).text
    assert "the 20 largest of 25" in text
    assert "s04" in text
    assert "s24" not in text


def test_a_perplexity_is_in_the_table_but_not_among_the_points(synthetic_run):
    run = synthetic_run.whole()
    for folder in (run.folder / "cache/scores/base0000", run.folder / "scores/tokens-000200000"):
        _add_perplexity(folder, 0.0 if "base" in folder.name else 0.1)
    (run.folder / "scores/tokens-000100000/manifest.json").unlink()
    files = report(run.folder)
    row = next(row for row in files.summary[-1].rows if row.metric == "perplexity")
    assert (row.measure, row.before, row.flips, row.verdict) == ("LAMBADA", "20.09", "", "lost")
    assert "perplexity" not in (run.folder / "report/tasks.svg").read_text()
    assert "1 lost (LAMBADA perplexity)" in Page(files.html.read_text()).text


def _add_perplexity(folder, shift):
    scores, rows = read_scores(folder), read_rows(folder / "items.parquet")
    measure = Measure("perplexity", 20.0, None, higher_is_better=False)
    task = TaskScore("lambada_openai", 100, 100, "h", 0, None, (measure,), 0)
    nats = [3 + (i % 10 - 4.5) / 10 + shift * (1 + i % 3 / 10) for i in range(100)]
    rows += [ItemRow("lambada_openai", None, f"l{i}", f"l{i}", nats=value) for i, value in enumerate(nats)]
    write_scores(folder, dataclasses.replace(scores, tasks=(*scores.tasks, task)), rows)


def test_a_report_leaves_no_figure_of_an_older_one(synthetic_run):
    run = synthetic_run.whole()
    report(run.folder)
    (run.folder / "artifacts.json").unlink()
    report(run.folder)
    assert {path.name for path in (run.folder / "report").glob("*.svg")} == {"training.svg"}


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="not the folder of a run"):
        report(tmp_path)


def test_a_damaged_file_is_named(synthetic_run):
    synthetic_run.recipe()
    (synthetic_run.folder / "plan.json").write_text('{"steps": [')
    with pytest.raises(UserError, match="damaged") as caught:
        report(synthetic_run.folder)
    assert "plan.json" in str(caught.value)
