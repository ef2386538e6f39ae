"""Run the whole experiment for one concept: read directions, choose a place, steer and measure.

`run` returns a `Study`, and `Settings` sets the study's sizes and sampling. `prompts_of` returns the prompts of a
concept. `load_folder` reads a finished study, and `redraw` draws its page again. Finished stages are kept in the
study's folder.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.study.experiment import prompts_of as prompts_of
    from analysis.study.experiment import run as run
    from analysis.study.finished import load_folder as load_folder
    from analysis.study.finished import redraw as redraw
    from analysis.study.result import Study as Study
    from analysis.study.settings import Settings as Settings

__all__ = ["Settings", "Study", "load_folder", "prompts_of", "redraw", "run"]

_MODULES = {
    "prompts_of": "experiment",
    "run": "experiment",
    "load_folder": "finished",
    "redraw": "finished",
    "Study": "result",
    "Settings": "settings",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
