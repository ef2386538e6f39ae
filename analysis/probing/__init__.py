"""Test how well probes predict a label from each block's activations, compared with probes on the sound itself.

`probe` takes a `Dataset`, a cache, prompts or an array, and returns a `ProbeResult`.
"""

from analysis.probing.dataset import Dataset
from analysis.probing.experiment import probe
from analysis.probing.result import ProbeResult

__all__ = ["Dataset", "ProbeResult", "probe"]
