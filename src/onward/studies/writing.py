"""The files of a study: figures as JSON and CSV, table and findings as text, the plot, and a page of all of it."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onward.artifact import write_json, write_text
from onward.errors import in_a_line
from onward.reporting.drawing import standalone
from onward.reporting.figures import WIDE
from onward.reporting.markdown import plain, table_markdown
from onward.reporting.page import StudyText, render_study_page
from onward.studies.budgets import budget_words
from onward.studies.execution import Counts, Failure, scores_name
from onward.studies.outcome import Outcome, number_of, training_seconds
from onward.studies.plan import StudyPlan

_TABLES = ("table.csv", "pairs.csv", "table.md", "plot.svg")


def write_study(plan: StudyPlan, outcome: Outcome | None, failures: Sequence[Failure], counts: Counts) -> Path:
    """Write study.json, table.csv, pairs.csv, table.md, findings.md, plot.svg and index.html; return the page.

    Where nothing could be compared, an earlier call's tables and plot stay, and the page says whose they are and what
    was found then (`earlier_words`).
    """
    folder = plan.folder
    earlier = None if outcome is not None else _earlier(folder)
    page = _page(plan, outcome, failures, earlier)
    write_json(folder / "study.json", _as_json(plan, outcome, failures, counts) | {"earlier": earlier})
    if outcome is not None:
        figure = outcome.figure
        _replace(folder / "table.csv", _csv(outcome.rows))
        _replace(folder / "pairs.csv", _csv(outcome.pairs) if outcome.pairs else None)
        _replace(folder / "table.md", table_markdown(outcome.table) + "\n")
        _replace(folder / "plot.svg", None if figure is None else standalone(figure.wide, WIDE))
    write_text(folder / "findings.md", _findings(page))
    write_text(folder / "index.html", render_study_page(page))
    return folder / "index.html"


def nothing_words(folder: Path) -> str:
    """Say in a headline that a study could compare nothing."""
    return "No member was made." if earlier_words(folder) is None else "No member could be read."


def earlier_words(folder: Path) -> str | None:
    """Say which files of a study that could compare nothing are of an earlier call; None where there are none."""
    there = [name for name in _TABLES if (folder / name).exists()]
    if not there:
        return None
    *most, last = there
    names = f"{', '.join(most)} and {last}" if most else last
    return f"Nothing could be read this time; {names} {'are' if most else 'is'} of an earlier run."


def _earlier(folder: Path) -> dict[str, Any] | None:
    """Return what an earlier call has found, as study.json has it; None where none has, or it cannot be read."""
    try:
        content = json.loads((folder / "study.json").read_bytes())
        told = content if content["headline"] is not None else content.get("earlier")
        return None if told is None else {key: told[key] for key in ("headline", "findings", "points", "rows")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _replace(path: Path, text: str | None) -> None:
    """Write a file, or remove it where there is nothing to write."""
    if text is None:
        path.unlink(missing_ok=True)
    else:
        write_text(path, text)


def _page(
    plan: StudyPlan, outcome: Outcome | None, failures: Sequence[Failure], earlier: Mapping[str, Any] | None
) -> StudyText:
    facts = "" if plan.study == "sizes" else f"Base {plan.recipe.model.base}; "
    facts += (
        "nothing is trained" if plan.study == "baseline" else
        f"{budget_words(plan.study, plan.recipe, plan.tokens)}; "
        f"{number_of(plan.seeds, 'seed')}; {number_of(len(plan.members), 'training')}"
    )  # fmt: skip
    told = tuple((failure.member, in_a_line(failure.message)) for failure in failures)
    if outcome is None:
        words = earlier_words(plan.folder)
        findings: tuple[str, ...] = () if words is None else (words,)
        points: tuple[tuple[str, str], ...] = ()
        if words is not None and earlier is not None:
            findings = (words, "It said:", earlier["headline"], *earlier["findings"])
            points = tuple((name, said) for name, said in earlier["points"])
        headline = nothing_words(plan.folder)
        return StudyText(plan.recipe.name, plan.study, headline, facts, findings, points, None, None, told)
    return StudyText(
        plan.recipe.name,
        plan.study,
        outcome.headline,
        facts,
        outcome.findings,
        outcome.points,
        outcome.table,
        outcome.figure,
        told,
    )


def _as_json(plan: StudyPlan, outcome: Outcome | None, failures: Sequence[Failure], counts: Counts) -> dict[str, Any]:
    failed = {failure.member: failure for failure in failures}
    members = []
    for member in plan.members:
        failure = failed.get(member.name) or failed.get(scores_name(member))
        row: dict[str, Any] = {
            "member": member.name,
            "variant": member.variant.name,
            "seed": member.recipe.training.seed,
            "recipe": str(plan.recipe_file(member).relative_to(plan.folder)),
            "state": "done" if failure is None else "failed",
        }
        if failure is not None:
            row |= {"message": failure.message, "traceback": _place(plan, failure)}
        row |= {"training_seconds": training_seconds(plan.runs / member.name)}
        members.append(row)
    return {
        "study": plan.study,
        "recipe": plan.recipe.name,
        "base": plan.recipe.model.base,
        "tokens": plan.tokens,
        "seeds": plan.seeds,
        "counts": asdict(counts),
        "headline": None if outcome is None else outcome.headline,
        "findings": [] if outcome is None else list(outcome.findings),
        "points": [] if outcome is None else [list(point) for point in outcome.points],
        "rows": [] if outcome is None else list(outcome.rows),
        "members": members,
        # All of them: blends that cannot be scored fail beside a member that is done.
        "failures": [
            {"name": each.member, "message": each.message, "traceback": _place(plan, each), "is_users": each.is_users}
            for each in failures
        ],
    }


def _place(plan: StudyPlan, failure: Failure) -> str:
    return str(failure.traceback.relative_to(plan.folder))


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _findings(page: StudyText) -> str:
    parts = [f"# {plain(page.name)}: study of {plain(page.study)}", f"**{plain(page.headline)}**", plain(page.facts)]
    parts += [" ".join(map(plain, page.findings))] if page.findings else []
    parts += ["\n".join(f"- **{plain(name)}**: {plain(words)}" for name, words in page.points)] if page.points else []
    if page.failures:
        rows = "\n".join(f"- {plain(name)}: {plain(message)}" for name, message in page.failures)
        parts.append(f"Not made:\n\n{rows}")
    return "\n\n".join(parts) + "\n"
