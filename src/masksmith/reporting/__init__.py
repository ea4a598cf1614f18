"""The report: one HTML page about data, training and score."""

from masksmith.reporting.page import ReportFacts, write_report

__all__ = ["ReportFacts", "write_report"]
