"""Control directions: random ones, balanced shuffles of the same prompts, and the directions of other concepts.

Every control is scaled to the norms of the real direction, and is added at the same places and strengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from audiolens.directions import shuffles
from audiolens.directions.directions import Directions
from audiolens.errors import InputError

RANDOM, BALANCED, OTHER = "random", "balanced", "other"
"""The kinds of control. Folders written by earlier versions also contain "shuffled", with freely permuted labels."""
KINDS: Mapping[str, str] = {RANDOM: "random", BALANCED: "shuffled", OTHER: "other"}
"""For each kind, its name in columns such as `p_shuffled` and `n_shuffled`."""
UNBALANCED = "shuffled"
"""The kind with freely permuted labels (earlier versions).

Figures show these controls, but effects are not ranked against them.
"""


@dataclass(frozen=True)
class Control:
    """One control, which is compared with the direction `real`.

    Attributes:
        kind: one of `KINDS`.
        draw: the number of this control among those of its kind.
        directions: the vectors of the control, scaled to the norms of `real`.
        real: the directions that this is a control for.
        concept: the name of the other concept; `None` for the other kinds.
    """

    kind: str
    draw: int
    directions: Directions
    real: Directions
    concept: str | None = None

    def labels(self, layer: int | None) -> dict[str, Any]:
        """Return the labels of the control's condition at a layer. With `None`, every layer has its own direction."""
        return {"draw": self.draw, "other": self.concept, "cosine": self.cosine(layer)}

    def cosine(self, layer: int | None) -> float:
        """Return the cosine with the real direction at a layer or, with `None`, the mean |cosine| over layers."""
        found = self.directions.cosine(self.real)
        value = found.abs().mean() if layer is None else found[self.real.layers.index(layer)]
        # Round, because labels identify a condition when a sweep resumes, and the last bits of a cosine may differ.
        return round(float(value), 4)


def drawn(
    directions: Directions,
    *,
    n_random: int,
    n_shuffled: int,
    others: Mapping[str, Directions] | None = None,
    first_draw: int = 0,
) -> list[Control]:
    """Return all controls. Random directions and shuffles use the seeds `first_draw`, `first_draw` + 1, ...

    No shuffle is drawn twice, so a small set of prompts can give fewer than `n_shuffled` shuffles.

    Raises:
        InputError: if shuffles are requested but the directions have no samples, or if another concept's directions
            were read from a different model, site or layers.
    """
    seeds = [first_draw + number for number in range(n_random)]
    found = [Control(RANDOM, at, directions.random_like(seed), directions) for at, seed in enumerate(seeds)]
    if n_shuffled:
        if directions.samples is None:
            raise InputError(
                f"n_shuffled={n_shuffled}: shuffles need one vector per prompt: read the directions with "
                "keep_samples=True, or give n_shuffled=0."
            )
        seeds = shuffles.different(directions.samples.labels, n_shuffled, first_draw)
        found += [Control(BALANCED, at, directions.shuffled(seed), directions) for at, seed in enumerate(seeds)]
    for at, (name, other) in enumerate((others or {}).items()):
        # The strategy "heads" then pushes the heads of the real direction, as far as it does.
        alike = replace(other.with_norms_of(directions), heads=directions.heads)
        found.append(Control(OTHER, at, alike, directions, name))
    return found
