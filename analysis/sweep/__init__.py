"""Sweep over strengths, strategies, layers, branches, concepts, prompts and seeds, with one table row per clip.

`run` steers in every combination of these factors, and `play` generates clips under any given conditions. Both return a
`SweepResult`, whose methods analyse the sweep. `plan` estimates the cost of `run`. `load_folder` reads a folder that
`run` or `play` wrote, and `load_arguments` the settings of a sweep of the command line.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.sweep.conditions import BASELINE as BASELINE
    from analysis.sweep.conditions import Condition as Condition
    from analysis.sweep.conditions import Plan as Plan
    from analysis.sweep.conditions import PromptSeed as PromptSeed
    from analysis.sweep.conditions import clips as clips
    from analysis.sweep.conditions import merge as merge
    from analysis.sweep.conditions import packed as packed
    from analysis.sweep.estimate import Estimate as Estimate
    from analysis.sweep.experiment import load_folder as load_folder
    from analysis.sweep.experiment import plan as plan
    from analysis.sweep.experiment import play as play
    from analysis.sweep.experiment import run as run
    from analysis.sweep.playing import clips_per_second as clips_per_second
    from analysis.sweep.response import effects as effects
    from analysis.sweep.result import SweepResult as SweepResult
    from analysis.sweep.sources import load_arguments as load_arguments

__all__ = [
    "BASELINE",
    "PromptSeed",
    "Condition",
    "Estimate",
    "Plan",
    "SweepResult",
    "clips",
    "clips_per_second",
    "effects",
    "load_arguments",
    "load_folder",
    "merge",
    "packed",
    "plan",
    "play",
    "run",
]

_MODULES = {
    "BASELINE": "conditions",
    "Condition": "conditions",
    "Plan": "conditions",
    "PromptSeed": "conditions",
    "clips": "conditions",
    "merge": "conditions",
    "packed": "conditions",
    "Estimate": "estimate",
    "load_folder": "experiment",
    "plan": "experiment",
    "play": "experiment",
    "run": "experiment",
    "clips_per_second": "playing",
    "effects": "response",
    "SweepResult": "result",
    "load_arguments": "sources",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
