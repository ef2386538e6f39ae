"""Turn the option `--steer FILE:STRENGTH` into interventions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolens.checks import shown
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import Directions
    from audiolens.interventions import Intervention

_STEER = re.compile(r"^(?P<file>.+?):(?P<strength>[^:@]+)(?:@(?P<place>[^:@]+))?$")
_PLACE = re.compile(r"^(?P<layer>-?\d{1,6})(?:/(?P<strategy>.+))?$")
MOST_OF_STREAM = 3.0
"""A vector whose norm exceeds that of the residual stream by more than this factor swamps the stream."""
_WITH_UNIT = re.compile(r"^\s*[-+]?(\d+\.?\d*|\.\d+)\s*[^\d\s]")
_BAND = re.compile(r"^(?P<first>\d{1,6})-(?P<last>\d{1,6})$")


@dataclass(frozen=True)
class Asked:
    """What one `--steer` asks for: the file, the strength as a number or an amount with a unit such as "120 BPM", and
    the place that it states for this file alone, as arguments of `steer`."""

    file: Path
    strength: float | str
    place: Mapping[str, Any] = field(default_factory=dict)


def asked(text: str) -> Asked:
    """Parse FILE:STRENGTH or FILE:STRENGTH@PLACE."""
    parts = _STEER.match(text)
    if parts is None:
        raise InputError(f"--steer {shown(text)}: expected FILE:STRENGTH, such as tempo.safetensors:+1.0.")
    strength: float | str = parts["strength"]
    try:
        strength = float(parts["strength"])
    except ValueError:
        if not _WITH_UNIT.match(parts["strength"]):
            raise InputError(f"--steer {shown(text)}: {shown(parts['strength'])} is not a number.") from None
    if isinstance(strength, float) and not abs(strength) < float("inf"):
        raise InputError(f"--steer {shown(text)}: the strength is {strength}; expected a finite number.")
    place = {} if parts["place"] is None else _place(text, parts["place"])
    if place and isinstance(strength, str):
        raise InputError(f"--steer {shown(text)}: a strength in a unit applies at the place of the calibration; leave "
                         f"@{parts['place']} out.")  # fmt: skip
    return Asked(existing("--steer", text, parts["file"]), strength, place)


def _place(option: str, text: str) -> dict[str, Any]:
    """Parse LAYER, LAYER/STRATEGY or all-to-all."""
    if text == "all-to-all":
        return {"strategy": text}
    parts, strategies = _PLACE.match(text), ("one-to-one", "one-to-all")
    if parts is None or parts["strategy"] not in (None, *strategies):
        raise InputError(
            f"--steer {shown(option)}: {shown(text)} is not a place; expected a block (3), a block and a strategy "
            "(3/one-to-all), or all-to-all."
        )
    return {"layer": int(parts["layer"]), "strategy": parts["strategy"] or strategies[0]}


def curves(texts: Sequence[str], directions: int) -> list[tuple[tuple[float, float], ...] | None]:
    """Parse each `--curve SECONDS:FACTOR,...`, and return the points for every direction.

    One curve applies to all directions, and several apply to one direction each.
    """
    if not texts:
        return [None] * directions
    if not directions:
        raise InputError("--curve applies to a direction, and none was given: give one with --steer.")
    if len(texts) not in (1, directions):
        raise InputError(f"--curve was given {len(texts)} times for {directions} directions: give one for all, or one "
                         "for each.")  # fmt: skip
    found = [_points(text) for text in texts]
    return [found[0]] * directions if len(found) == 1 else [*found]


def _points(text: str) -> tuple[tuple[float, float], ...]:
    try:
        pairs = [part.split(":") for part in text.split(",")]
        points = tuple((float(seconds), float(factor)) for seconds, factor in pairs)
        if not all(isfinite(number) for point in points for number in point):
            raise ValueError("NaN or infinite")
        if points[0][0] < 0 or any(later[0] <= earlier[0] for earlier, later in pairwise(points)):
            raise ValueError("times do not rise")
    except ValueError:
        raise InputError(
            f"--curve {shown(text)}: expected SECONDS:FACTOR,..., with seconds that rise from 0 or later, such as "
            "0:0,2.5:1."
        ) from None
    return points


def existing(option: str, text: str, file: str) -> Path:
    """Return the path of a directions file that an option names."""
    if not Path(file).is_file():
        raise InputError(f"{option} {shown(text)}: {file}: no such file. `audiolens directions read` writes one.")
    return Path(file)


def target_of(text: str) -> tuple[str, float | str]:
    """Parse MEASURE=VALUE into a measure and a value in its unit."""
    from audiolens.measure.targets import in_range

    measure, separator, value = text.partition("=")
    if not separator or not value.strip():
        raise InputError(f"--to {shown(text)}: expected MEASURE=VALUE, such as tempo=120 or 'brightness=2 kHz'.")
    try:
        target: float | str = float(value)
    except ValueError:
        target = value.strip()
    return measure.strip(), in_range(measure.strip(), target)


def band_of(text: str | None) -> tuple[int, int] | None:
    """Parse FIRST-LAST into the first and last block of a band; both are included."""
    if text is None:
        return None
    parts = _BAND.match(text)
    if parts is None:
        raise InputError(f"--band {shown(text)}: expected FIRST-LAST, such as 4-8, both blocks included.")
    first, last = int(parts["first"]), int(parts["last"])
    if first > last:
        raise InputError(f"--band {shown(text)}: the first block comes after the last.")
    return first, last


def limits_of(text: str | None) -> tuple[float, float] | None:
    """Parse LOW,HIGH into the lowest and the highest strength to try."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not -float("inf") < low <= 0 <= high < float("inf") or low == high:
        raise InputError(f"--limits {shown(text)}: expected the lowest and the highest strength, such as -8,8.")
    return low, high


def targeted(
    directions: Directions, measure: str, place: dict[str, Any], limits: tuple[float, float] | None
) -> dict[str, Any]:
    """Return the place for `steer_to`, which is that of a calibration if no option states one.

    Raises:
        InputError: if the place needs limits, and none were given.
    """
    from audiolens.control.target import checked_place

    known = directions.calibration is not None and directions.calibration.measure == measure
    if not (known and not place) and place.get("strategy") not in ("all-to-all", "heads"):
        place = {"layer": middle(directions), **place}
    _, found = checked_place(directions, measure, place, limits or (-1.0, 1.0))
    if limits is None and found is None and place.get("strategy") == "heads":
        raise InputError(
            "--strategy heads needs --limits, such as -8,8, or a file that `audiolens directions calibrate` wrote for "
            f"these heads and {measure}."
        )
    return place


def drowning(file: Path, directions: Directions, strength: float) -> str | None:
    """Return a warning if this strength swamps the residual stream, else `None` (also if its norm is unknown).

    The warning is needed because `measure.failed` does not recognise noise as a failure.
    """
    if bool(directions.residual_norms.isnan().any()):
        return None
    shares = abs(strength) * directions.norms / directions.residual_norms
    if float(shares.max()) <= MOST_OF_STREAM:
        return None
    layer = directions.layers[int(shares.argmax())]
    return (
        f"audiolens: {file}:{strength:+g} has {float(shares.max()):.3g} times the residual stream's norm at block "
        f"{layer}, which usually destroys the music; most strengths in use are at most 1"
    )


@dataclass(frozen=True)
class Steered:
    """The interventions for direction files.

    Attributes:
        directions: the directions in the files.
        cautions: warnings about strengths, to print after generation.
    """

    steps: list[Intervention]
    directions: list[Directions]
    cautions: list[str]


def placed(
    todo: Sequence[Asked],
    *,
    curves: Sequence[tuple[tuple[float, float], ...] | None],
    layer: int | None,
    strategy: str | None,
    band: tuple[int, int] | None,
    branch: str | None,
    orthogonal: bool,
    heads: int | None = None,
) -> Steered:
    """Read direction files and return their interventions. This does not need the model to be open.

    `strategy=None` means one-to-band if a band is given, else one-to-one. `curves` has the points of a schedule for
    each direction.
    """
    if not todo:
        return Steered([], [], [])
    from audiolens import Directions, orthogonalised, schedules, steer
    from audiolens.directions.calibration import normal_place, refuse_elsewhere
    from audiolens.directions.strategies import described

    chosen = strategy or ("one-to-one" if band is None else "one-to-band")
    read = [Directions.load(one.file) for one in todo]
    found = orthogonalised(*read) if orthogonal else read
    steps: list[Intervention] = []
    for directions, one, points in zip(found, todo, curves, strict=True):
        strength, schedule = one.strength, None if points is None else schedules.piecewise(points)
        if isinstance(strength, str):
            place = stated(strategy=strategy, layer=layer, band=band, branch=branch, heads=heads)
            if directions.calibration is None:
                why = "--orthogonal changes directions, so a calibration no longer holds" if orthogonal else (
                    "the file has no calibration; `audiolens directions calibrate` writes one"
                )  # fmt: skip
                raise InputError(f"strength {shown(strength)}: {why}. Give a number.")
            whole = normal_place(place, directions.layers, directions.meta.n_layers)
            refuse_elsewhere(directions.calibration, {name: whole[name] for name in place})
            steps += steer(directions, strength=strength, schedule=schedule)
            continue
        if one.place:
            given = {"--layer": layer, "--strategy": strategy, "--band": band, "--heads": heads}
            if both := [option for option, value in given.items() if value is not None]:
                raise InputError(f"{both[0]} and a place after @ in --steer were both given: give one.")
            steps += steer(directions, **one.place, strength=strength, branch=branch or "both", schedule=schedule)  # pyright: ignore[reportArgumentType]
            continue
        where: dict[str, Any] = {"band": band, "heads": heads}
        if described(chosen).uses_one_layer:
            where["layer"] = middle(directions) if layer is None else layer
        elif layer is not None:
            raise InputError(f"--strategy {chosen} adds to every block its own directions: leave --layer out.")
        steps += steer(directions, chosen, strength=strength, branch=branch or "both", schedule=schedule, **where)  # pyright: ignore[reportArgumentType]
    cautions = [
        drowning(one.file, directions, one.strength)
        for directions, one in zip(found, todo, strict=True)
        # At chosen heads, a strength is not a multiple of the direction.
        if not isinstance(one.strength, str) and chosen != "heads"
    ]
    return Steered(steps, read, [caution for caution in cautions if caution is not None])


def middle(directions: Directions) -> int:
    """Return the middle block of those at which directions were read."""
    return directions.layers[len(directions.layers) // 2]


def stated(*, branch: str | None, **place: Any) -> dict[str, Any]:
    """Return the arguments of `steer` for a place, of which a calibration gives what the options do not state."""
    given = {**place, "branch": branch}
    if given.get("band") is not None and given.get("strategy") is None:
        given["strategy"] = "one-to-band"
    return {name: value for name, value in given.items() if value is not None}
