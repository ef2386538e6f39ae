"""Test at which blocks a probe can read a label from the activations, and whether it does better than from the sound.

`probe` takes a `Dataset`, a cache, prompts or an array, and returns a `ProbeResult`.
"""

from analysis.probing.dataset import Dataset
from analysis.probing.experiment import probe
from analysis.probing.result import ProbeResult

__all__ = ["Dataset", "ProbeResult", "probe"]
