"""Turn the option `--steer FILE:STRENGTH` into interventions on an open model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolens.checks import shown
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens, Directions
    from audiolens.interventions import Intervention

_STEER = re.compile(r"^(?P<file>.+?):(?P<strength>[^:]+)$")
MOST_OF_STREAM = 3.0
"""A vector whose norm exceeds that of the residual stream by more than this factor swamps the stream."""
_BAND = re.compile(r"^(?P<first>\d{1,6})-(?P<last>\d{1,6})$")


def asked(text: str) -> tuple[Path, float]:
    """Parse FILE:STRENGTH into a path and a number."""
    parts = _STEER.match(text)
    if parts is None:
        raise InputError(f"--steer {shown(text)}: expected FILE:STRENGTH, such as tempo.safetensors:+1.0.")
    try:
        strength = float(parts["strength"])
    except ValueError:
        raise InputError(f"--steer {shown(text)}: {shown(parts['strength'])} is not a number.") from None
    if not abs(strength) < float("inf"):
        raise InputError(f"--steer {shown(text)}: the strength is {strength}; expected a finite number.")
    file = Path(parts["file"])
    if not file.is_file():
        raise InputError(f"--steer {shown(text)}: {file}: no such file. `audiolens directions read` writes one.")
    return file, strength


def band_of(text: str | None) -> tuple[int, int] | None:
    """Parse FIRST-LAST into the first and last block of a band; both are included."""
    if text is None:
        return None
    parts = _BAND.match(text)
    if parts is None:
        raise InputError(f"--band {shown(text)}: expected FIRST-LAST, such as 4-8, both blocks included.")
    return int(parts["first"]), int(parts["last"])


def drowning(file: Path, directions: Directions, strength: float) -> str | None:
    """Return a warning if this strength swamps the residual stream, else `None`.

    The warning is needed because `measure.failed` does not recognise noise as a failure.
    """
    shares = abs(strength) * directions.norms / directions.residual_norms
    if float(shares.max()) <= MOST_OF_STREAM:
        return None
    layer = directions.layers[int(shares.argmax())]
    return (
        f"audiolens: {file}:{strength:+g} has {float(shares.max()):.3g} times the residual stream's norm at block "
        f"{layer}, which usually destroys the music; most strengths in use are at most 1"
    )


def placed(
    todo: Sequence[tuple[Path, float]],
    lens: AudioLens,
    *,
    layer: int | None,
    strategy: str | None,
    band: tuple[int, int] | None,
    branch: str,
    orthogonal: bool,
) -> tuple[list[Intervention], list[str]]:
    """Return the interventions for several direction files, and warnings about strengths to print after generation.

    `strategy=None` means one-to-band if a band is given, else one-to-one.
    """
    from audiolens import Directions, orthogonalised, steer
    from audiolens.directions.strategies import described

    chosen = strategy or ("one-to-one" if band is None else "one-to-band")
    found = [Directions.load(file, lens=lens) for file, _ in todo]
    if orthogonal:
        found = orthogonalised(*found)
    steps: list[Intervention] = []
    for directions, (_, strength) in zip(found, todo, strict=True):
        where: dict[str, Any] = {"band": band}
        if described(chosen).uses_one_layer:
            where["layer"] = directions.layers[len(directions.layers) // 2] if layer is None else layer
        elif layer is not None:
            raise InputError(f"--strategy {chosen} adds every block's own direction: leave --layer out.")
        steps += steer(directions, chosen, strength=strength, branch=branch, **where)  # pyright: ignore[reportArgumentType]
    cautions = [drowning(file, directions, strength) for directions, (file, strength) in zip(found, todo, strict=True)]
    return steps, [caution for caution in cautions if caution is not None]
