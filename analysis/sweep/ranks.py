"""Rank the effect of a direction among those of its controls, for each kind of control and for all controls together.

The functions work on the table of `response.effects` and need no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from analysis.statistics import rank_test
from analysis.sweep.controls import KINDS, OTHER


@dataclass(frozen=True)
class Ranks:
    """The rank p-values of one effect among its controls.

    Attributes:
        p: p-values among the controls of each kind ("random", "shuffled", "other") and among all controls together
            ("controls"). A p-value is NaN if an effect could not be measured or there are no controls.
        n: number of controls of each kind and in total.
        rivals: other concepts whose direction, with either sign, has at least as large an effect.
    """

    p: Mapping[str, float]
    n: Mapping[str, int]
    rivals: tuple[str, ...]

    def columns(self) -> dict[str, Any]:
        """The p-values and numbers of controls as columns `p_random`, `n_random` and so on."""
        return {f"p_{name}": p for name, p in self.p.items()} | {f"n_{name}": n for name, n in self.n.items()}


def ranked(effect: float, strength: float, controls: pd.DataFrame) -> Ranks:
    """Rank an effect among the effects of controls at the same place and |strength|.

    Effects are ranked towards the pole that the strength's sign selects. `effect` is a mean change
    (`statistics.Effect.mean`), and so are the values in the column `mean_change` of `controls`. Means are used because,
    with few clips, they distinguish directions better than medians. `controls` also has the columns `kind`, `strength`
    and, if there are other concepts, `other`. Random directions and shuffles are compared at the same strength. The
    sign of another concept's direction is arbitrary, so only the larger of its two effects is used, and it counts as
    one control.
    """
    sign = 1 if strength > 0 else -1
    values: dict[str, np.ndarray] = {}
    rivals: list[str] = []
    for kind, name in KINDS.items():
        mine = controls[controls["kind"] == kind]
        if kind == OTHER and len(mine):
            largest = (sign * mine["mean_change"]).groupby(mine["other"], sort=False).agg(_largest) * sign
            rivals += [str(one) for one, value in largest.items() if sign * value >= sign * effect]
            values[name] = largest.to_numpy(dtype=float)
        else:
            values[name] = mine.loc[mine["strength"] == strength, "mean_change"].to_numpy(dtype=float)
    values["controls"] = np.concatenate(list(values.values()))
    found = {name: rank_among(effect, among, sign) for name, among in values.items()}
    return Ranks({name: p for name, (p, _) in found.items()}, {name: n for name, (_, n) in found.items()},
                 tuple(rivals))  # fmt: skip


def rank_among(observed: float, controls: ArrayLike, sign: int) -> tuple[float, int]:
    """Return the p-value from the rank of an effect among controls, towards `sign`, and the number of controls.

    The p-value is NaN if an effect could not be measured or there are no controls.
    """
    values = np.asarray(controls, dtype=float)
    if not len(values) or not np.isfinite(observed) or not np.isfinite(values).all():
        return float("nan"), len(values)
    return rank_test(observed, values, "greater" if sign > 0 else "less").p, len(values)


def _largest(values: pd.Series) -> float:
    """Return the maximum, or NaN if any value is NaN."""
    return float(values.max(skipna=False))
