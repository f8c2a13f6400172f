"""What came of an evaluation: summaries, tables, charts and pages."""

from afmi.report.results_page import write_report

__all__ = ["write_report"]
