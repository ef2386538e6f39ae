"""Report a study as sound, tables and figures in a folder, with a page that shows them together."""

from analysis.report.writer import write

__all__ = ["write"]
