"""Copy activations of a clean run into a corrupted run, or the reverse, and measure the effect (activation patching).

`patch` runs a grid over pairs of prompts and returns a `PatchingResult`. `pairs` makes matched pairs, and `plan`
estimates what the grid would cost.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.patching.experiment import LogLikelihood as LogLikelihood
    from analysis.patching.experiment import patch as patch
    from analysis.patching.experiment import plan as plan
    from analysis.patching.plans import GridPlan as GridPlan
    from analysis.patching.plans import SoundPlan as SoundPlan
    from analysis.patching.result import Gap as Gap
    from analysis.patching.result import PatchingResult as PatchingResult
    from analysis.patching.runs import Pairs as Pairs
    from analysis.patching.runs import pairs as pairs
    from analysis.patching.sound import Sound as Sound

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

_MODULES = {
    "LogLikelihood": "experiment",
    "patch": "experiment",
    "plan": "experiment",
    "GridPlan": "plans",
    "SoundPlan": "plans",
    "Gap": "result",
    "PatchingResult": "result",
    "Pairs": "runs",
    "pairs": "runs",
    "Sound": "sound",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
