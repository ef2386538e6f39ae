"""Run the whole experiment for one concept: read directions, choose a place, steer and measure.

`run` returns a `Study`, and `Settings` sets the study's sizes and sampling. `load_arguments` reads a study's settings
from its `study.toml`, and `prompts_of` returns the prompts of a concept. `load_folder` reads a finished study, `redraw`
draws its page again, and `write_index` writes a page that lists several. Finished stages are kept in the study's
folder. `push_to_hub` and `from_hub` share it on the Hugging Face hub.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.study.config import load_arguments as load_arguments
    from analysis.study.experiment import prompts_of as prompts_of
    from analysis.study.experiment import run as run
    from analysis.study.finished import load_folder as load_folder
    from analysis.study.finished import redraw as redraw
    from analysis.study.finished import write_index as write_index
    from analysis.study.hub import from_hub as from_hub
    from analysis.study.hub import push_to_hub as push_to_hub
    from analysis.study.result import Study as Study
    from analysis.study.settings import Settings as Settings

__all__ = [
    "Settings", "Study", "from_hub", "load_arguments", "load_folder", "prompts_of", "push_to_hub", "redraw", "run",
    "write_index",
]  # fmt: skip

_MODULES = {
    "load_arguments": "config",
    "prompts_of": "experiment",
    "run": "experiment",
    "load_folder": "finished",
    "redraw": "finished",
    "write_index": "finished",
    "from_hub": "hub",
    "push_to_hub": "hub",
    "Study": "result",
    "Settings": "settings",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
