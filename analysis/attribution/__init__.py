"""Attribute the difference between two prompts to sites, heads and steps, in a few passes through the model.

`attribute` uses the gradient of a metric with respect to the activations, and `direct` measures what each component
writes directly to the logits.
"""

from analysis.attribution.experiment import attribute
from analysis.attribution.logits import DirectResult, direct
from analysis.attribution.result import AttributionResult, Scores

__all__ = ["AttributionResult", "DirectResult", "Scores", "attribute", "direct"]
