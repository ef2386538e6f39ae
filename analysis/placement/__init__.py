"""Use the model's predictions to choose where to add a concept's direction, without generating steered clips.

`place` returns a `Placement`, which contains the chosen block and strategy, the evidence, the certainty of the choice,
and the reason in one sentence.
"""

from analysis.placement.experiment import place
from analysis.placement.result import Placement

__all__ = ["Placement", "place"]
