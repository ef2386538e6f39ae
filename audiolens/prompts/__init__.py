"""Contrastive prompt sets: bundled ones (`al.prompts.load("tempo")`), and your own from files.

A set has two poles of matched prompts, from which a direction is computed, and two lists of neutral prompts. Layer and
strength are chosen on one list (development), and results are reported on the other (test). `load` returns the bundled
sets, in étude's vocabulary or, for MusicGen models, in unrestricted English. `from_file` and `from_files` read your own
sets, and `counterfactuals` makes a set from captions of music.
"""

from audiolens.prompts.balance import Balance
from audiolens.prompts.counterfactual import Counterfactuals, Rejected, counterfactuals
from audiolens.prompts.files import concepts, from_file, from_files, load
from audiolens.prompts.sets import PromptSet

__all__ = [
    "Balance", "Counterfactuals", "PromptSet", "Rejected", "concepts", "counterfactuals", "from_file", "from_files",
    "load",
]  # fmt: skip
