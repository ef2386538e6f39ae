"""Compare studies of several models, seeds, strategies or methods, and pool their effects.

`compare` takes studies or their folders and returns a `StudyComparison`. `fit_slopes` fits the mixed model behind the
pooled effects to the clips of one study.
"""

from typing import TYPE_CHECKING

from analysis.store.on_first_use import exports

if TYPE_CHECKING:
    from analysis.comparison.experiment import compare as compare
    from analysis.comparison.result import StudyComparison as StudyComparison
    from analysis.comparison.slopes import Slope as Slope
    from analysis.comparison.slopes import fit_slopes as fit_slopes

__all__ = ["Slope", "StudyComparison", "compare", "fit_slopes"]

_MODULES = {
    "compare": "experiment",
    "StudyComparison": "result",
    "Slope": "slopes",
    "fit_slopes": "slopes",
}
__getattr__, __dir__ = exports(__name__, _MODULES, globals())
