"""Activation patching: put values of a clean run into a corrupted one (or the other way), and see what comes back.

`patch` runs a grid over pairs of prompts (`pairs` makes matched ones) and gives a `PatchingResult`; `plan` says what
that would take.
"""

from analysis.patching.experiment import LogLikelihood, patch, plan
from analysis.patching.plans import Plan, SoundPlan
from analysis.patching.result import Gap, PatchingResult
from analysis.patching.runs import Pairs, pairs
from analysis.patching.sound import Sound

__all__ = [
    "Gap",
    "LogLikelihood",
    "Pairs",
    "PatchingResult",
    "Plan",
    "Sound",
    "SoundPlan",
    "pairs",
    "patch",
    "plan",
]
