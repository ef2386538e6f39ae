"""Read the directions of bundled concepts and find their places, once per model, and keep both in the user's cache.

Those of étude come with the package (`etude/`, written by `benchmarks/playground.py`), also with their calibrations.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis import placement
from audiolens import prompts
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.errors import InputError
from audiolens.files.atomic import put
from audiolens.files.integrity import read_json, sealed_json
from audiolens.files.json_shapes import refuse_other
from audiolens.model.weight_hash import weights_hash

if TYPE_CHECKING:
    from audiolens import AudioLens

PROMPTS = 24
"""Prompts of each pole that are read. Directions are stable from about this number on."""
NEUTRAL = 8
"""Neutral prompts on whose clips they are read, and with which the place is found."""
BUNDLED = Path(__file__).with_name("etude")
_FORMAT = "audiolens.playground.1"
_SHAPE = {
    "format": str, "place": {"strategy": str, "layer?": (int, None)}, "strength": (float, None), "note": str,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Ready:
    """Directions and where to add them.

    Attributes:
        place: the arguments of `steer`, without the strength.
        strength: a strength to start from at this place, or `None` if none is known.
        note: why the place should not be trusted, or an empty string.
    """

    directions: Directions
    place: dict[str, Any]
    strength: float | None = None
    note: str = ""


def cache_folder() -> Path:
    """Return the folder in which directions are kept (`AUDIOLENS_CACHE`, or the user's cache folder)."""
    from platformdirs import user_cache_path

    own = os.environ.get("AUDIOLENS_CACHE")
    return Path(own) if own else user_cache_path("audiolens")


def folder_of(lens: AudioLens) -> Path:
    """Return the folder for the directions of one model, which its weights and its dtype name."""
    kind = str(lens.dtype).removeprefix("torch.")
    return cache_folder() / "playground" / f"{weights_hash(lens.model)[:16]}-{kind}"


def kept(lens: AudioLens, concept: str) -> Ready | None:
    """Return what the package or the cache has for a concept and this model, or `None` if neither has it."""
    return _found(lens, BUNDLED, concept) or _found(lens, folder_of(lens), concept)


def _found(lens: AudioLens, folder: Path, concept: str) -> Ready | None:
    try:
        facts = read_json(folder / f"{concept}.json")
        refuse_other(folder / f"{concept}.json", facts, _SHAPE)
        if facts["format"] != _FORMAT:
            return None
        directions = Directions.load(folder / f"{concept}.safetensors", lens)
    except (InputError, OSError):
        # There is no file, or it is damaged, older, or of another model: it is read again.
        return None
    return Ready(directions, facts["place"], facts["strength"], facts["note"])


def read(lens: AudioLens, concept: str) -> Ready:
    """Read a concept's directions and find its place, and keep both if the cache folder can be written."""
    found = placed(lens, concept)
    try:
        keep(found, folder_of(lens), concept)
    except (InputError, OSError):
        # Without a cache they are read again after the next start.
        return found
    return found


def placed(lens: AudioLens, concept: str) -> Ready:
    """Read a concept's directions and find its place."""
    sets = prompts.load(concept, lens=lens)
    neutral = sets.development[:NEUTRAL]
    directions = difference_in_means(
        lens, sets.positive[:PROMPTS], sets.negative[:PROMPTS], codes="shared", neutral=neutral, seconds=2.0,
        label=concept, keep_samples=False, progress=False,
    )  # fmt: skip
    found = placement.place(
        lens, sets, directions, prompts=neutral, screen_seconds=0, compute=(), progress=False
    )  # fmt: skip
    strength = None if found.rejected else round(found.strength, 4)
    return Ready(directions, found.where, strength, found.rejected)


def keep(ready: Ready, folder: Path, concept: str) -> None:
    """Write what `kept` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    ready.directions.save(folder / f"{concept}.safetensors")
    facts = {"format": _FORMAT, "place": ready.place, "strength": ready.strength, "note": ready.note}
    put(folder / f"{concept}.json", sealed_json(facts))
