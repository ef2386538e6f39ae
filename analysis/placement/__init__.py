"""Choose where to apply a concept's direction from the model's predictions, without generating steered clips.

`place` returns a `Placement`, with the block and strategy, the evidence, the certainty of the choice, and a one-line
reason.
"""

from analysis.placement.experiment import place
from analysis.placement.result import Placement

__all__ = ["Placement", "place"]
