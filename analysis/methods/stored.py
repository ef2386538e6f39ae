"""Store what a comparison computes before it generates clips: places and directions, as stages of its folder.

`Stages` keys a stage by everything that it depends on, its code included, so that only code which computes it is
imported here.
"""

import json
from pathlib import Path

from analysis.study import storage
from audiolens.directions.directions import Directions
from audiolens.errors import InputTypeError
from audiolens.files.bounded import read_object
from audiolens.files.json_shapes import refuse_other

_PLACE = {"strategy": str, "layer": (int, None), "strength": float}


def checked_directions(made: object) -> Directions:
    """Return what a user's function made, or raise `InputTypeError` if it is something else."""
    if not isinstance(made, Directions):
        raise InputTypeError(f"make returned {type(made).__name__}: expected Directions.")
    return made


def write_directions(directions: Directions, folder: Path) -> None:
    """Write directions, with their samples if they have any."""
    made = checked_directions(directions)
    if made.samples is not None:
        storage.write_directions(made, folder)
    else:
        made.save(folder / "directions.safetensors")


def read_directions(folder: Path) -> Directions:
    """Read directions that `write_directions` stored."""
    if (folder / "samples.safetensors").is_file():
        return storage.read_directions(folder)
    return Directions.load(folder / "directions.safetensors")


def write_place(place: tuple[str, int | None, float], folder: Path) -> None:
    """Write the strategy, layer and strength of a place."""
    (folder / "place.json").write_text(json.dumps(dict(zip(_PLACE, place, strict=True))), "utf-8")


def read_place(folder: Path) -> tuple[str, int | None, float]:
    """Read what `write_place` stored."""
    found = read_object(folder / "place.json")
    refuse_other(folder / "place.json", found, _PLACE)
    return found["strategy"], found["layer"], found["strength"]
