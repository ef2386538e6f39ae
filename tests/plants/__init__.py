"""Test data with known answers: concepts planted in a model's weights, and effects planted in tables of clips.

`head_plant` and `xor_plant` (`models.py`) rewrite a tiny model so that a single component carries a concept;
`corners.py` does the same with two concepts and many prompts, for probes; `tables.py` imitates the measurements of a
sweep or a study.
"""

from plants.models import CLEAN, CORRUPTED, Plant, copied, deaf, head_plant, xor_plant

__all__ = ["CLEAN", "CORRUPTED", "Plant", "copied", "deaf", "head_plant", "xor_plant"]
