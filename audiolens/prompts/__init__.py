"""The curated contrast sets, as data, and their loader: `al.prompts.load("tempo")`.

A set holds two poles of matched prompts, from which a direction is read, and neutral prompts, split in two, on which
it is chosen (development) and reported (test). `load` gives the bundled sets (in étude's words, or in free English for
MusicGen models that read it), `from_file` and `from_files` your own.
"""

from audiolens.prompts.balance import Balance
from audiolens.prompts.files import concepts, from_file, from_files, load
from audiolens.prompts.sets import PromptSet

__all__ = ["Balance", "PromptSet", "concepts", "from_file", "from_files", "load"]
