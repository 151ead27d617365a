"""The step `report`: a run folder in, a page to read out. It reads files only and may be run at any time."""

from dataclasses import dataclass
from pathlib import Path

from onward.analysis import Comparison, LossCurve, compare, headline, loss_curve
from onward.artifact import disk_errors, write_text
from onward.progress import Progress, Silent
from onward.recipe import format_tokens
from onward.reporting import content
from onward.reporting.content import Content
from onward.reporting.corpora import corpus_section
from onward.reporting.details import Labelled, detail_tables
from onward.reporting.drawing import standalone
from onward.reporting.figures import WIDE, Figure, ForestRow, forest_figure, loss_figure
from onward.reporting.markdown import render_markdown
from onward.reporting.page import render_page
from onward.reporting.run_files import RunFiles, read_run
from onward.reporting.summary import StageSummary, summary_rows


@dataclass(frozen=True)
class StageFinding:
    """The end of a stage (cumulative tokens) compared with the base model."""

    tokens: int
    comparison: Comparison


@dataclass(frozen=True)
class Findings:
    """What the report says first: one headline, the sentences under it, and the comparison of every scored stage."""

    headline: str
    sentences: tuple[str, ...]
    stages: tuple[StageFinding, ...]


@dataclass(frozen=True)
class ReportFiles:
    """The files written, and for a caller who wants no page the findings and the before/after table as text."""

    html: Path
    markdown: Path
    findings: Findings
    summary: tuple[StageSummary, ...]


def report(run_folder: Path, progress: Progress | None = None) -> ReportFiles:
    """Write report/index.html, report.md and the figures of a run, finished or not; same files in, same bytes out.

    Raises UserError when `run_folder` is no run, or its scores are not of the same items.
    """
    progress = progress or Silent()
    run = read_run(run_folder)
    findings = _findings(run, progress)
    curve = loss_curve(run.metrics)
    figures = _figures(run, findings, curve)
    summary = tuple(map(_summary, findings.stages))
    page = _content(run, findings, summary, curve, figures)
    pictures = (*figures, *(figure for section in page.corpora for figure in section.figures))
    folder = run_folder / "report"
    with disk_errors(folder):
        folder.mkdir(exist_ok=True)
        for stale in {path.name for path in folder.glob("*.svg")} - {f"{figure.name}.svg" for figure in pictures}:
            (folder / stale).unlink()
        for figure in pictures:
            write_text(folder / f"{figure.name}.svg", standalone(figure.wide, WIDE))
        write_text(folder / "report.md", render_markdown(page))
        write_text(folder / "index.html", render_page(page))
    return ReportFiles(folder / "index.html", folder / "report.md", findings, summary)


def _summary(stage: StageFinding) -> StageSummary:
    title = f"After {format_tokens(stage.tokens)} tokens, compared with the base"
    return StageSummary(title, summary_rows(stage.comparison))


def _findings(run: RunFiles, progress: Progress) -> Findings:
    stages = run.stage_scores if run.base_scores is not None else ()
    progress.begin("comparing with the base model", len(stages), "stages")
    found = []
    for tokens, folder in stages:
        assert run.base_scores is not None
        comparison = compare(run.base_scores, folder, run.recipe.evaluation.resamples, run.recipe.seed)
        found.append(StageFinding(tokens, comparison))
        progress.advance(len(found))
    if not found:
        return Findings("Nothing has been compared yet.", (), ())
    last = found[-1].comparison
    return Findings(headline(last), content.finding_sentences(last), tuple(found))


def _figures(run: RunFiles, findings: Findings, curve: LossCurve | None) -> tuple[Figure, ...]:
    figures = [loss_figure(curve, run.recipe.training.stages)] if curve is not None else []
    for text_rows in (True, False):
        rows = [
            ForestRow(format_tokens(stage.tokens), difference)
            for stage in findings.stages
            for difference in stage.comparison.differences
            if (difference.is_text if text_rows else difference.is_share)
        ]
        order = list(dict.fromkeys((row.difference.name, row.difference.metric) for row in rows))
        rows.sort(key=lambda row: order.index((row.difference.name, row.difference.metric)))
        if rows:
            figures.append(forest_figure(rows, text_rows))
    return tuple(figures)


def _content(
    run: RunFiles,
    findings: Findings,
    summary: tuple[StageSummary, ...],
    curve: LossCurve | None,
    figures: tuple[Figure, ...],
) -> Content:
    return Content(
        name=run.recipe.name,
        headline=findings.headline,
        sentences=findings.sentences,
        notes=content.missing_notes(run),
        comparisons=tuple(map(content.comparison_table, summary)),
        reading_help=content.READING_HELP,
        details=detail_tables(
            [Labelled(f"after {format_tokens(s.tokens)} tokens", s.comparison) for s in findings.stages]
        ),
        forests=tuple(figure for figure in figures if figure.name != "training"),
        run=content.run_facts(run),
        training=next((figure for figure in figures if figure.name == "training"), None),
        training_notes=content.training_notes(run, 0 if curve is None else curve.skipped),
        corpora=tuple(map(corpus_section, run.corpora)),
        checkpoints=content.checkpoint_table(run),
        environment=content.environment_facts(run),
        fingerprints=content.fingerprint_facts(run),
        recipe=run.recipe_text,
    )
