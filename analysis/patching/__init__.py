"""Copy activations of a clean run into a corrupted run, or the reverse, and measure the effect (activation patching).

`patch` runs a grid over pairs of prompts and returns a `PatchingResult`. `pairs` makes matched pairs, and `plan`
estimates what the grid would cost.
"""

from analysis.patching.experiment import LogLikelihood, patch, plan
from analysis.patching.plans import GridPlan, SoundPlan
from analysis.patching.result import Gap, PatchingResult
from analysis.patching.runs import Pairs, pairs
from analysis.patching.sound import Sound

__all__ = [
    "Gap",
    "LogLikelihood",
    "Pairs",
    "PatchingResult",
    "GridPlan",
    "Sound",
    "SoundPlan",
    "pairs",
    "patch",
    "plan",
]
