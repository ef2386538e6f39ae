"""The scan: steering on development prompts, at every block or at one place, and what is chosen from it.

The choice is made here and reported elsewhere, on test prompts: the best of many tries looks better than it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.statistics import MOST_FAILED
from analysis.sweep import BASELINE, Condition
from audiolens.directions.directions import Directions
from audiolens.directions.steering import Strategy, steer
from audiolens.errors import InputError
from audiolens.interventions import Branch

CHOSEN_FAILED = MOST_FAILED / 2
"""The most failed clips of a choice: half of what a claim allows, for what was chosen does worse on other clips."""


@dataclass(frozen=True)
class Choice:
    """Where and how strongly a direction is applied.

    Attributes:
        strategy, layer, strength: as `al.steer` takes them; the strength is used with both signs. `layer` is `None`
            where every block has its own vector.
        span: what it did on development clips: the measure at +strength over that at -strength, by medians; 2 is twice
            as fast.
        failed: the larger share of failed clips of the two signs.
        candidates: how many were compared. The more, the more `span` flatters.
    """

    strategy: Strategy
    layer: int | None
    strength: float
    span: float
    failed: float
    candidates: int

    @property
    def where(self) -> dict[str, Any]:
        """`al.steer(d, **choice.where, strength=...)`."""
        return {"strategy": self.strategy, "layer": self.layer}

    @property
    def told(self) -> str:
        """The place in words."""
        if self.layer is None:
            return f"{self.strategy}, every block its own direction"
        return f"{self.strategy}, {'added' if self.strategy == 'one-to-one' else 'read'} at block {self.layer}"

    def __repr__(self) -> str:
        return f"Choice({self.told}, strength ±{self.strength:g})"


def conditions(
    directions: Directions, strengths: Mapping[Strategy, Sequence[float]], branch: Branch = "both"
) -> list[Condition]:
    """The baseline, and every strategy at every block with every strength and both signs.

    Args:
        directions: one vector per block.
        strengths: for each strategy the positive strengths tried. One vector added at every block needs fewer of it
            than one added once.
        branch: the half of the guidance that is steered.
    """
    places = [{"strategy": strategy, "layer": layer} for strategy in strengths for layer in directions.layers]
    return at(directions, places, strengths, branch)


def at(
    directions: Directions,
    places: Iterable[Mapping[str, Any]],
    strengths: Mapping[Strategy, Sequence[float]],
    branch: Branch = "both",
) -> list[Condition]:
    """The baseline, and some places, as `al.steer` takes them, with their strategy's strengths and both signs."""
    listed = [Condition(BASELINE, labels=_labels())]
    for place in places:
        strategy, layer = place["strategy"], place.get("layer")
        for strength in sorted({sign * amount for amount in strengths[strategy] for sign in (-1, 1)}):
            steps = steer(directions, **place, strength=strength, branch=branch)
            name = " ".join([strategy, *([] if layer is None else [str(layer)]), f"{strength:+g}"])
            listed.append(Condition(name, tuple(steps), labels=_labels(strategy, layer, strength)))
    return listed


def beside(where: Mapping[str, Any], strategies: Iterable[Strategy]) -> list[dict[str, Any]]:
    """The same block in the other one-to strategies, to stand beside a place."""
    if where.get("layer") is None:
        return []
    others = (name for name in strategies if name != where["strategy"] and name != "all-to-all")
    return [{"strategy": name, "layer": where["layer"]} for name in others]


def choose(scan: pd.DataFrame, strategy: str | None = None) -> Choice:
    """The place and strength with the widest span between its two signs, of those that fail in at most `CHOSEN_FAILED`.

    Args:
        scan: `sweep.effects` of `conditions`: strategy, layer, strength, effect, failed.
        strategy: choose among this one's only.

    If all fail too often, the one that fails least is chosen; with no effect to compare (nothing could be measured),
    the first.
    """
    mine = scan[scan["strategy"].notna()] if strategy is None else scan[scan["strategy"] == strategy]
    found = []
    for key, pair in mine.groupby([mine["strategy"], mine["layer"], mine["strength"].abs()], dropna=False):
        name, layer, amount = cast(tuple[Any, Any, Any], key)
        up, down = (pair[pair["strength"] * sign > 0].iloc[0] for sign in (1, -1))
        span = (1 + up["effect"]) / max(1 + down["effect"], 1e-6)
        lost = float(max(up["failed"], down["failed"]))
        found.append((name, None if pd.isna(layer) else int(layer), float(amount), float(span), lost))
    if not found:
        raise InputError("the scan holds no steered condition: nothing to choose from.")
    sound = [item for item in found if item[4] <= CHOSEN_FAILED]
    best = max(sound, key=lambda item: np.nan_to_num(item[3])) if sound else min(found, key=lambda item: item[4])
    return Choice(*best, candidates=len(found))


def _labels(strategy: str | None = None, layer: int | None = None, strength: float = 0.0) -> dict[str, object]:
    return {"split": "development", "kind": "steered" if strategy else BASELINE, "strategy": strategy, "layer": layer,
            "strength": strength}  # fmt: skip
