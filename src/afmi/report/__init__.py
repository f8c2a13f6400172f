"""Report an evaluation: summaries, tables, charts and pages."""

from afmi.report.evaluation_report import write_report

__all__ = ["write_report"]
