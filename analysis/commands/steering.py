"""Turn the option `--steer FILE:STRENGTH` into interventions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolens.checks import shown
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import Directions
    from audiolens.interventions import Intervention

_STEER = re.compile(r"^(?P<file>.+?):(?P<strength>[^:]+)$")
MOST_OF_STREAM = 3.0
"""A vector whose norm exceeds that of the residual stream by more than this factor swamps the stream."""
_WITH_UNIT = re.compile(r"^\s*[-+]?(\d+\.?\d*|\.\d+)\s*[^\d\s]")
_BAND = re.compile(r"^(?P<first>\d{1,6})-(?P<last>\d{1,6})$")


def asked(text: str) -> tuple[Path, float | str]:
    """Parse FILE:STRENGTH into a path and a number, or an amount with a unit such as "120 BPM"."""
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
    return existing("--steer", text, parts["file"]), strength


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
    todo: Sequence[tuple[Path, float | str]],
    *,
    layer: int | None,
    strategy: str | None,
    band: tuple[int, int] | None,
    branch: str | None,
    orthogonal: bool,
    heads: int | None = None,
) -> Steered:
    """Read direction files and return their interventions. This does not need the model to be open.

    `strategy=None` means one-to-band if a band is given, else one-to-one.
    """
    if not todo:
        return Steered([], [], [])
    from audiolens import Directions, orthogonalised, steer
    from audiolens.directions.calibration import refuse_elsewhere
    from audiolens.directions.strategies import described

    chosen = strategy or ("one-to-one" if band is None else "one-to-band")
    read = [Directions.load(file) for file, _ in todo]
    found = orthogonalised(*read) if orthogonal else read
    steps: list[Intervention] = []
    for directions, (_, strength) in zip(found, todo, strict=True):
        if isinstance(strength, str):
            place = stated(strategy=strategy, layer=layer, band=band, branch=branch, heads=heads)
            if directions.calibration is None:
                why = "--orthogonal changes directions, so a calibration no longer holds" if orthogonal else (
                    "the file has no calibration; `audiolens directions calibrate` writes one"
                )  # fmt: skip
                raise InputError(f"strength {shown(strength)}: {why}. Give a number.")
            refuse_elsewhere(directions.calibration, place)
            steps += steer(directions, strength=strength)
            continue
        where: dict[str, Any] = {"band": band, "heads": heads}
        if described(chosen).uses_one_layer:
            where["layer"] = middle(directions) if layer is None else layer
        elif layer is not None:
            raise InputError(f"--strategy {chosen} adds to every block its own directions: leave --layer out.")
        steps += steer(directions, chosen, strength=strength, branch=branch or "both", **where)  # pyright: ignore[reportArgumentType]
    cautions = [
        drowning(file, directions, strength)
        for directions, (file, strength) in zip(found, todo, strict=True)
        # At chosen heads, a strength is not a multiple of the direction.
        if not isinstance(strength, str) and chosen != "heads"
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
