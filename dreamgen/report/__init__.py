"""The run on one self-contained page, report.html."""

from dreamgen.report.page import report

__all__ = ["report"]
