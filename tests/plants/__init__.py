"""What is known because it was planted: concepts in a model's weights, and effects in a table of clips.

`head_plant` and `xor_plant` (`models.py`) rewrite a tiny model so that one place alone carries a concept; `corners.py`
does so with two concepts and many prompts, for probes; `tables.py` has what a sweep or a study would have measured.
"""

from plants.models import CLEAN, CORRUPTED, Plant, copied, deaf, head_plant, xor_plant

__all__ = ["CLEAN", "CORRUPTED", "Plant", "copied", "deaf", "head_plant", "xor_plant"]
