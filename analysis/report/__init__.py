"""Write the results of a study to a folder of sounds, tables and figures, with a page that shows them together."""

from analysis.report.writer import write

__all__ = ["write"]
