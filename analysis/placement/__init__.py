"""Placement: where a concept's direction is to be applied, from what the model says and not from how it then sounds.

`place` names the block and strategy, with the evidence, how sure it is, and a sentence why, as a `Placement`.
"""

from analysis.placement.experiment import place
from analysis.placement.result import Placement

__all__ = ["Placement", "place"]
