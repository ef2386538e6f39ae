"""Probing: can a label be read from the activations, from which block on, and better than from the sound itself?

`probe` takes a `Dataset`, a cache, prompts or an array, and gives a `ProbeResult`.
"""

from analysis.probing.dataset import Dataset
from analysis.probing.experiment import probe
from analysis.probing.result import ProbeResult

__all__ = ["Dataset", "ProbeResult", "probe"]
