"""Probing: test whether a label can be read from the activations, at which blocks, and better than from the sound.

`probe` takes a `Dataset`, a cache, prompts or an array, and returns a `ProbeResult`.
"""

from analysis.probing.dataset import Dataset
from analysis.probing.experiment import probe
from analysis.probing.result import ProbeResult

__all__ = ["Dataset", "ProbeResult", "probe"]
