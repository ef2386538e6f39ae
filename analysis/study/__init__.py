"""Run the whole experiment for one concept: read directions, choose a place, steer and measure.

`run` returns a `Study`, and `Settings` sets the study's sizes and sampling. `prompts_of` returns the prompts of a
concept. `load_folder` reads a finished study, and `redraw` draws its page again. Finished stages are kept in the
study's folder.
"""

from analysis.study.experiment import prompts_of, run
from analysis.study.finished import load_folder, redraw
from analysis.study.result import Study
from analysis.study.settings import Settings

__all__ = ["Settings", "Study", "load_folder", "prompts_of", "redraw", "run"]
