"""Attribution: what every site, head and step carries of a difference between two prompts, at the cost of a few passes.

`attribute` differentiates the metric by the activations; `direct` reads what each component writes straight into the
logits.
"""

from analysis.attribution.experiment import attribute
from analysis.attribution.logits import DirectResult, direct
from analysis.attribution.result import AttributionResult, Scores

__all__ = ["AttributionResult", "DirectResult", "Scores", "attribute", "direct"]
