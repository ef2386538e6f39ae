"""Choose a place (a strategy and a block) and a strength by steering on development prompts.

The results of the chosen candidate are reported on test prompts (`test_result`), because the best of many candidates
looks better than it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd

from analysis.statistics import CHOSEN_FAILED
from analysis.sweep import BASELINE, Condition
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer
from audiolens.directions.strategies import Strategy, described
from audiolens.errors import InputError
from audiolens.interventions import Branch


@dataclass(frozen=True)
class Choice:
    """Where and how strongly a direction is applied.

    Attributes:
        strategy, layer, strength: as in `al.steer`. The strength is used with both signs. `layer` is `None` if every
            block has its own vector.
        span: the ratio of the measure at +strength to the measure at -strength, from the median effects on development
            clips. For tempo, 2 means twice as fast.
        failed: the share of failed clips at +strength or -strength, whichever is larger.
        candidates: number of candidates that were compared. The more candidates there are, the more optimistic `span`
            is.
    """

    strategy: Strategy
    layer: int | None
    strength: float
    span: float
    failed: float
    candidates: int

    @property
    def where(self) -> dict[str, Any]:
        """The arguments for `al.steer(d, **choice.where, strength=...)`."""
        return {"strategy": self.strategy, "layer": self.layer}

    @property
    def description(self) -> str:
        """The place in words."""
        if self.layer is None:
            return f"{self.strategy}, with every block's own direction"
        return f"{self.strategy}, {described(self.strategy).where} block {self.layer}"

    def __repr__(self) -> str:
        return f"Choice({self.description}, strength ±{self.strength:g})"


def conditions(
    directions: Directions, strengths: Mapping[Strategy, Sequence[float]], branch: Branch = "both"
) -> list[Condition]:
    """Return conditions for the baseline and for every strategy at every block, at each strength with both signs.

    Args:
        directions: one vector per block.
        strengths: the positive strengths to try, per strategy. A vector that is added at every block needs smaller
            strengths than a vector that is added once.
        branch: the guidance branch to steer.
    """
    places = [{"strategy": strategy, "layer": layer} for strategy in strengths for layer in directions.layers]
    return at(directions, places, strengths, branch)


def at(
    directions: Directions,
    places: Iterable[Mapping[str, Any]],
    strengths: Mapping[Strategy, Sequence[float]],
    branch: Branch = "both",
) -> list[Condition]:
    """Return conditions for the baseline and for each given place, at its strategy's strengths with both signs."""
    listed = [Condition(BASELINE, labels=_labels())]
    for place in places:
        strategy, layer = place["strategy"], place.get("layer")
        for strength in sorted({sign * amount for amount in strengths[strategy] for sign in (-1, 1)}):
            steps = steer(directions, **place, strength=strength, branch=branch)
            name = " ".join([strategy, *([] if layer is None else [str(layer)]), f"{strength:+g}"])
            listed.append(Condition(name, tuple(steps), labels=_labels(strategy, layer, strength)))
    return listed


def other_strategies(where: Mapping[str, Any], strategies: Iterable[Strategy]) -> list[dict[str, Any]]:
    """Return the places with the same block and another strategy that uses a single vector."""
    if where.get("layer") is None:
        return []
    others = (name for name in strategies if name != where["strategy"] and described(name).uses_one_layer)
    return [{"strategy": name, "layer": where["layer"]} for name in others]


def choose(scan: pd.DataFrame, strategy: str | None = None) -> Choice:
    """Return the place and strength with the largest `span` (see `Choice`).

    Only candidates whose share of failed clips is at most `CHOSEN_FAILED` are considered. If every candidate has a
    larger share, the one with the smallest share is chosen. If no effect could be measured, the first candidate is
    chosen.

    Args:
        scan: `sweep.effects` of `conditions`, with the columns strategy, layer, strength, effect and failed.
        strategy: choose only within this strategy.
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
        raise InputError("the scan contains no steered condition, so there is nothing to choose from.")
    sound = [item for item in found if item[4] <= CHOSEN_FAILED]
    best = max(sound, key=lambda item: np.nan_to_num(item[3])) if sound else min(found, key=lambda item: item[4])
    return Choice(*best, candidates=len(found))


def _labels(strategy: str | None = None, layer: int | None = None, strength: float = 0.0) -> dict[str, object]:
    return {"split": "development", "kind": "steered" if strategy else BASELINE, "strategy": strategy, "layer": layer,
            "strength": strength}  # fmt: skip
