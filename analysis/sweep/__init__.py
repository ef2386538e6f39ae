"""Sweep over strengths, strategies, layers, branches, concepts, prompts and seeds, with one table row per clip.

`run` steers in every combination of these factors, and `play` generates clips under any given conditions. Both return a
`SweepResult`, whose methods analyse the sweep. `plan` estimates the cost of `run`. `load_folder` reads a folder that
`run` or `play` wrote.
"""

from analysis.sweep.conditions import BASELINE, Condition, Plan, PromptSeed, clips, merge, packed
from analysis.sweep.estimate import Estimate
from analysis.sweep.experiment import load_folder, plan, play, run
from analysis.sweep.playing import clips_per_second
from analysis.sweep.response import effects
from analysis.sweep.result import SweepResult

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
    "load_folder",
    "merge",
    "packed",
    "plan",
    "play",
    "run",
]
