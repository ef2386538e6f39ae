"""Placement: choose where to apply a concept's direction from the model's predictions, without playing steered clips.

`place` returns a `Placement`: the block and strategy, the evidence, how certain the choice is, and a one-line reason.
"""

from analysis.placement.experiment import place
from analysis.placement.result import Placement

__all__ = ["Placement", "place"]
