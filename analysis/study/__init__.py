"""The study: one concept from prompts to a report, its place from evidence, its stages kept as they are finished.

`run` makes a `Study`, `Settings` say how much of everything, `prompts_of` which prompts a concept has; `load_folder`
reads a finished study again, `redraw` draws its page anew.
"""

from analysis.study.experiment import prompts_of, run
from analysis.study.finished import load_folder, redraw
from analysis.study.result import Study
from analysis.study.settings import Settings

__all__ = ["Settings", "Study", "load_folder", "prompts_of", "redraw", "run"]
