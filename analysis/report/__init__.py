"""The report: a study as a folder of sound, tables and figures, and a page that shows them together."""

from analysis.report.folder import FORMAT, fresh_folder, is_study
from analysis.report.writer import write

__all__ = ["FORMAT", "fresh_folder", "is_study", "write"]
