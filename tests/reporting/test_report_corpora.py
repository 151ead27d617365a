"""The corpora in the report: every end of the ledger, the figures, what was repeated and what was found."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from pyarrow import parquet

from known_corpus import CHEATS, COPIES, LEAKS, NEAR_COPIES, PASSAGE, SHORT, KnownCorpus, write_known_corpus
from onward.corpus.inspected import Inspection, Measured
from onward.corpus.inspection import inspect_corpus
from onward.corpus.ledger import Count
from onward.corpus.survey import Spread
from onward.reporting import report
from onward.reporting.corpora import corpus_section, ledger_tables
from onward.reporting.corpus_figures import length_figure, measure_figure
from onward.reporting.run_files import CorpusFacts

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> KnownCorpus:
    return write_known_corpus(tmp_path_factory.mktemp("known"), repository, examples=40)


@pytest.fixture(scope="module")
def inspection(known: KnownCorpus) -> Inspection:
    return inspect_corpus(known.folder)


def with_domain(run, folder: Path):
    """Let the run's domain be another corpus."""
    path = run.folder / "artifacts.json"
    content = json.loads(path.read_text())
    content["corpora"]["domain"] = str(folder)
    path.write_text(json.dumps(content))
    return report(run.folder)


def words(html: str) -> str:
    html = re.sub(r"<style>.*?</style>", "", html, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_page_tells_of_a_corpus_what_its_inspection_found(synthetic_run, known, inspection):
    files = with_domain(synthetic_run.whole(), known.folder)
    text = words(files.html.read_text())
    read = inspection.ledger.read.documents
    for fact in (
        f"dropped: gopher quality: too few words {SHORT} {100 * SHORT / read:.1f} %",
        f"dropped: duplicate {COPIES} ",
        f"dropped: near-duplicate {NEAR_COPIES + LEAKS} ",
        f"dropped: contaminated {CHEATS} ",
        "tokenised by gigatoken",
        "packing best-fit",
        f"documents cut into pieces {inspection.packing.cut_documents}",
        f"half have at most {inspection.lengths.quantiles[3][1]:,.0f} tokens",
        f"{known.addresses} 40 ",
        "Top web domains",
        "site1.org 13 ",
        f"Near-duplicates: {NEAR_COPIES + LEAKS} removed, 2 stayed for them",
        f"https://www.site2.org/page/5 {NEAR_COPIES} ",
        f"Exact duplicates: {COPIES} removed, 1 stayed for them",
        f"quiz 1 0 {CHEATS}",
        f"[[{PASSAGE}]]",
        "document dropped",
        inspection.kept[0].id,
    ):
        assert fact in text, fact
    markdown = files.markdown.read_text()
    assert "### Domain text" in markdown
    assert f"| dropped: near-duplicate | {NEAR_COPIES + LEAKS} |" in markdown
    assert markdown.count("](lengths-domain.svg)") == markdown.count("](measures-domain.svg)") == 1
    assert "Documents to read" not in markdown


def test_the_figures_stand_beside_the_page_and_go_with_the_corpus(synthetic_run, known):
    run = synthetic_run.whole()
    folder = with_domain(run, known.folder).html.parent
    assert {"lengths-domain.svg", "measures-domain.svg"} <= {path.name for path in folder.iterdir()}
    for path in folder.glob("*-domain.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.find(f"{SVG}style") is not None
        assert len(root.findall(f"{SVG}rect")) >= 3
        assert "nan" not in path.read_text().lower().replace("nants", "")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = report(run.folder)
    assert {path.name: path.read_bytes() for path in again.html.parent.iterdir()} == before
    with_domain(run, run.folder / "cache/corpora/aaaa1111")
    assert not list(folder.glob("*-domain.svg"))


def test_a_corpus_of_which_only_the_ledger_is_left_is_told_by_it(inspection):
    section = corpus_section(CorpusFacts("general", "f", inspection.ledger, None))
    assert section.heading == "General text"
    assert (section.figures, section.tables, section.examples) == ((), (), ())
    assert len(section.ledgers) == 2


def test_what_was_taken_out_of_documents_is_set_apart(inspection):
    ledger = replace(inspection.ledger, trimmed={"lines taken out (c4)": Count(12, 345)})
    documents, _ = ledger_tables(CorpusFacts("domain", "f", ledger, None))
    assert documents.rows[-1] == ("lines taken out (c4)", "in 12", "", "345")
    assert documents.rows[-2][0] == "kept"


def test_hostile_texts_of_documents_stay_texts(synthetic_run, known, tmp_path):
    hostile = '</table></svg><script>alert("x")</script><img src=x onerror=y>'
    folder = tmp_path / "hostile"
    shutil.copytree(known.folder, folder)
    for path in [*folder.glob("d*-*.parquet"), *folder.glob("contamination-*.parquet")]:
        table = parquet.read_table(path)
        for name in {"id", "source", "reason", "excerpt", "item"} & set(table.column_names):
            column = pa.array([hostile] * len(table), pa.string())
            table = table.set_column(table.column_names.index(name), name, column)
        parquet.write_table(table, path)
    facts = json.loads((folder / "facts.json").read_text())
    facts["histograms"] = {hostile: next(iter(facts["histograms"].values()))}
    (folder / "facts.json").write_text(json.dumps(facts))
    files = with_domain(synthetic_run.whole(), folder)
    html = files.html.read_text()
    assert "<script" not in html
    assert "<img" not in html
    assert html.count("&lt;script&gt;") > 10
    assert "<script" not in re.sub(r"\\<", "", files.markdown.read_text().split("## Recipe")[0])
    ElementTree.parse(files.html.parent / "measures-domain.svg")


def bars(picture: str, kind: str) -> list[tuple[float, float, float]]:
    """(left, top, height) of each bar."""
    found = re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="[\d.]+" height="([\d.]+)" class="([^"]+)"', picture)
    return [(float(x), float(y), float(h)) for x, y, h, name in found if name == kind]


def test_bars_of_lengths_are_shares_of_the_documents():
    lengths = Spread((64.0, 128.0, 256.0, 512.0), (10, 30, 0, 60), (800, 5000, 0, 40_000), ((0.5, 600.0),))
    figure = length_figure("domain", lengths)
    for picture in (figure.wide, figure.narrow):
        drawn = bars(picture, "bar")
        assert [round(height / drawn[-1][2] * 60) for _, _, height in drawn] == [10, 30, 0, 60]
        assert all(top + height == pytest.approx(210, abs=0.11) for _, top, height in drawn)
        assert "half have at most 600 tokens" in picture
        assert re.findall(r">(\d+) %<", picture) == ["0", "20", "40", "60", "80"]


@pytest.mark.parametrize("is_maximum", [True, False])
def test_the_side_that_a_rule_speaks_against_is_coloured(is_maximum):
    counts = [0] * 41
    counts[0], counts[19], counts[20], counts[40] = 5, 10, 20, 40
    figure = measure_figure("domain", [Measured("gopher: x", 0.2, is_maximum, tuple(counts))])
    for picture in (figure.wide, figure.narrow):
        wrong, right = bars(picture, "bar lost"), bars(picture, "bar")
        below, above = (right, wrong) if is_maximum else (wrong, right)
        assert len(below) == len(above) == 2
        border = max(float(x) for x in re.findall(r'<line x1="([\d.]+)" y1="[\d.]+" x2="\1"', picture))
        assert max(x for x, _, _ in below) < border <= min(x for x, _, _ in above)
        assert ("80.0 %" if is_maximum else "20.0 %") in picture
    assert ("at most 0.2" if is_maximum else "at least 0.2") in figure.wide
    assert ("≤ 0.2" if is_maximum else "≥ 0.2") in figure.narrow


def test_a_share_that_rounds_to_nothing_is_not_none():
    counts = [10_000] + [0] * 39 + [1]
    assert ">&lt; 0.1 %<" in measure_figure("domain", [Measured("x", 0.2, True, tuple(counts))]).wide
    assert ">0.0 %<" in measure_figure("domain", [Measured("x", 0.2, True, (9, *[0] * 40))]).wide


def test_the_rules_that_speak_against_most_stand_first():
    counts = tuple([0] * 20 + list(range(20)) + [0])
    rules = [Measured(f"rule {n}", 1.0, True, tuple(n * count for count in counts)) for n in (1, 3, 2)]
    picture = measure_figure("domain", rules).wide
    assert [picture.index(f"rule {n}") for n in (3, 2, 1)] == sorted(picture.index(f"rule {n}") for n in (3, 2, 1))
