"""Findings to pages: a self-contained index.html and report.md, from the files of a run alone."""

from onward.reporting.report import Findings, ReportFiles, StageFinding, report
from onward.reporting.summary import StageSummary, SummaryRow, summary_rows

__all__ = ["Findings", "ReportFiles", "StageFinding", "StageSummary", "SummaryRow", "report", "summary_rows"]
