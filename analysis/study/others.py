"""Choose the other concepts and read their directions, which serve as controls.

Any direction can change the measure, so a direction's effect is compared with the effects of other concepts'
directions.

By default, the other concepts are the bundled ones that the model can read and that have a different measure. Their
directions are read in the same way as the study's own direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.sweep.concept_measures import MEASURED
from audiolens.checks import in_order
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.errors import InputError
from audiolens.measure import UNITS
from audiolens.model import text, tokens
from audiolens.prompts import PromptSet, load

if TYPE_CHECKING:
    from audiolens import AudioLens

_BEATS = "BPM"


def chosen(
    lens: AudioLens, sets: PromptSet, measured: str, given: Sequence[str | PromptSet] | None
) -> tuple[PromptSet, ...]:
    """Return the prompt sets of the other concepts, which are either given (by name or as sets) or the defaults.

    Raises:
        InputError: if a concept is given twice, is the study's own concept, or has poles whose prompts the model reads
            as the same tokens.
    """
    if given is None:
        return _default(lens, sets, measured)
    if isinstance(given, str):
        raise InputError(f"others={given!r}: expected a list of concepts or prompt sets, such as ['timbre'].")
    found = tuple(
        one if isinstance(one, PromptSet) else load(one, lens=lens) for one in in_order("others", given, "concepts")
    )
    names = [one.concept for one in found]
    if sets.concept in names or len(set(names)) < len(names):
        raise InputError(f"others={names}: expected different concepts other than {sets.concept!r}.")
    for one in found:
        if not _reads(lens, one):
            raise InputError(
                f"others: the model reads both poles of {one.concept!r} alike, so it has no direction: leave it out."
            )
        text.checked([*one.positive, *one.negative], lens.model, lens.tokenizer)
    return found


def read(lens: AudioLens, others: Sequence[PromptSet], poles: int, asked: Mapping[str, Any]) -> dict[str, Directions]:
    """Return the direction of every other concept, read from its first `poles` prompts per pole.

    `asked` contains the arguments with which the study's own direction is read.
    """
    return {
        one.concept: difference_in_means(
            lens, one.positive[:poles], one.negative[:poles],
            **{**asked, "label": one.concept, "seeds": _seeds(asked["seeds"], one, poles)},
        )
        for one in others
    }  # fmt: skip


def write(found: Mapping[str, Directions], folder: Path) -> None:
    """Write the directions to numbered files, in order. The label of each file's directions names their concept."""
    for number, directions in enumerate(found.values()):
        directions.save(folder / f"{number:03d}.safetensors")


def read_back(folder: Path) -> dict[str, Directions]:
    """Return the directions that `write` stored, by concept."""
    kept = [Directions.load(path) for path in sorted(folder.glob("*.safetensors"))]
    return {directions.meta.label: directions for directions in kept}


def _seeds(own: Sequence[int], one: PromptSet, poles: int) -> list[int]:
    count = min(poles, max(len(one.positive), len(one.negative)))
    first = own[0]
    return list(range(first, first + count))


def _default(lens: AudioLens, sets: PromptSet, measured: str) -> tuple[PromptSet, ...]:
    """Return the bundled concepts that have a different measure and use only words that the model knows.

    The prompts are in free English if the model reads it, and otherwise in the fixed vocabulary of the étude models.
    """
    named = [name for name, measure in MEASURED.items() if name != sets.concept and not _same(measure, measured)]
    found = [load(name, lens=lens) for name in named]
    english = load("tempo", lens=lens).vocabulary == "english"
    known = [one for one in found if (one.vocabulary == "english") == english]
    return tuple(one for one in known if not tokens.unread([*one.positive, *one.negative], lens.tokenizer))


def _same(one: str, other: str) -> bool:
    """Return whether two measures measure the same quantity, in which case their concepts might be the same."""
    return one == other or UNITS.get(one) == UNITS.get(other) == _BEATS


def _reads(lens: AudioLens, one: PromptSet) -> bool:
    return not text.read_alike(one.positive, one.negative, lens.tokenizer)
