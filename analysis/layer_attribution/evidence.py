"""Gather several kinds of evidence about each block for the layer-attribution plot.

`gather(probe=..., patching=..., attribution=..., norm=..., steering=...)` takes evidence under any name. Each piece of
evidence can be a data frame with a "layer" column, a series over layers, one number per layer, or `Directions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from audiolens.checks import checked_flags, numbers_of, shown
from audiolens.directions.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError

UNITS: Mapping[str, str] = {
    "probe": "score (balanced accuracy or R²)",
    "patching": "nats",
    "attribution": "nats",
    "norm": "norm relative to the residual stream",
    "steering": "relative change",
}
"""Units of the usual kinds of evidence, by name. The unit of a probe result is its metric."""
TWO_POLES = "balanced accuracy (2 poles)"
"""The unit of a probe that tells two poles apart."""
CHANCE: Mapping[str, float] = {"held-out AUC": 0.5, TWO_POLES: 0.5}
"""What an uninformative block scores, for units in which this is not 0."""
_VALUES = ("effect", "value", "score", "mean", "norm")
_NOT_VALUES = {"layer", "low", "high"}


@guarded
@dataclass(frozen=True, eq=False)
class LayerEvidence:
    """One kind of evidence, as a number per layer. `low` and `high` are NaN if there is no interval."""

    name: str
    unit: str
    layers: tuple[int, ...]
    values: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    high: Float[np.ndarray, " layer"]

    @property
    def peak(self) -> int:
        """The layer whose value is furthest from 0."""
        return self.layers[int(np.nanargmax(np.abs(self.values)))]

    @property
    def chance(self) -> float:
        """The value of an uninformative block, which figures draw as a line."""
        return CHANCE.get(self.unit, 0.0)


@guarded
@dataclass(frozen=True, eq=False)
class LayerAttribution:
    """Several kinds of evidence over the same blocks.

    The kinds are not weighted against each other, because they measure different things: what can be decoded from a
    block, what a block passes on, or what changes the output. They can therefore peak at different blocks and all be
    right.
    """

    evidence: tuple[LayerEvidence, ...]

    def __getitem__(self, name: str) -> LayerEvidence:
        for one in self.evidence:
            if one.name == name:
                return one
        raise InputError(f"no evidence {shown(name)}; available: {', '.join(one.name for one in self.evidence)}.")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per kind of evidence and layer.

        The columns are `evidence`, `unit`, `layer`, `value`, `low`, `high`, and `share`, which is the value divided by
        the largest |value| of its kind.
        """
        tables = [
            pd.DataFrame(
                {
                    "evidence": one.name, "unit": one.unit, "layer": one.layers, "value": one.values, "low": one.low,
                    "high": one.high, "share": one.values / (np.nanmax(np.abs(one.values)) or 1.0),
                }
            )
            for one in self.evidence
        ]  # fmt: skip
        return pd.concat(tables, ignore_index=True)

    @drawable
    def plot(self, normalised: bool = False) -> Any:
        """Draw one panel per kind (matplotlib figure).

        With `normalised`, draw a single panel that shows each value as a share of the largest value of its kind.
        """
        checked_flags(normalised=normalised)
        from analysis.layer_attribution import figures

        return figures.paper(self, normalised)

    @interactive
    def figure(self, normalised: bool = False) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        checked_flags(normalised=normalised)
        from analysis.layer_attribution import figures

        return figures.screen(self, normalised)

    def __repr__(self) -> str:
        return f"LayerAttribution(largest of each, not tested against chance: {', '.join(map(_peak, self.evidence))})"


def _peak(one: LayerEvidence) -> str:
    """Return the largest value of a kind of evidence and its block, with the interval if there is one."""
    at = one.layers.index(one.peak)
    ends = f" [{one.low[at]:+.3g}, {one.high[at]:+.3g}]" if np.isfinite(one.low[at]) else ""
    return f"{one.name} {one.values[at]:+.3g}{ends} at block {one.peak}"


@guarded
def gather(*, units: Mapping[str, str] | None = None, **evidence: Any) -> LayerAttribution:
    """Return the given evidence over layers as one `LayerAttribution`.

    Args:
        units: the unit of each kind of evidence, by name. The usual kinds have default units (`UNITS`).
        evidence: the evidence of each kind, by name. A data frame needs a "layer" column and a column of values, and
            can also have the columns "low" and "high". The column of values has the name of the evidence, or one of
            "effect", "value", "score", "mean" and "norm". If there is no such column, the only other numeric column is
            used. For `Directions`, the value is the direction's norm relative to that of the residual stream. An array
            contains one value per layer, starting at layer 0. Evidence of `None` is ignored.

    Raises:
        InputError, InputTypeError: if no evidence is given, if a layer has several rows, or if it is unclear which
            column contains the values.
    """
    given = {name: one for name, one in evidence.items() if one is not None}
    if not given:
        raise InputError("no evidence: give at least one, such as norm=directions.")
    known = {**UNITS, **(units or {})}
    return LayerAttribution(tuple(_evidence(name, one, known.get(name, "")) for name, one in given.items()))


def _evidence(name: str, given: Any, unit: str) -> LayerEvidence:
    if isinstance(given, LayerEvidence):
        return given
    if isinstance(given, Directions):
        shares = given.norms / given.residual_norms
        return _made(name, unit, pd.DataFrame({"layer": given.layers, "value": shares.cpu().numpy()}), "value")
    if hasattr(given, "to_frame") and not isinstance(given, pd.DataFrame | pd.Series):
        given = given.to_frame()
    if isinstance(given, pd.DataFrame) and {"layer", "metric"} <= {*given.columns}:
        # The baselines in a probe's table have no layer, so they are dropped.
        given = given[given["layer"].notna()]
        if unit in ("", UNITS["probe"]) and given["metric"].nunique() == 1:
            unit = str(given["metric"].iloc[0])
    if isinstance(given, pd.Series):
        given = pd.DataFrame({"layer": given.index, "value": given.to_numpy()})
    if not isinstance(given, pd.DataFrame):
        try:
            values = numbers_of(name, given)
        except (TypeError, ValueError):
            raise InputTypeError(f"{name}={type(given).__name__}: expected a frame, a series or numbers.") from None
        if values.ndim != 1 or not len(values):
            raise InputError(f"{name} of shape {values.shape}: expected one number per layer.")
        given = pd.DataFrame({"layer": np.arange(len(values)), "value": values})
    if "layer" not in given:
        raise InputError(f"{name}: a frame with columns {[*given.columns]} has no 'layer': rename one to 'layer'.")
    numeric = [str(c) for c in given.select_dtypes("number").columns if str(c) not in _NOT_VALUES]
    named = [column for column in (name, *_VALUES) if column in numeric]
    if not named and len(numeric) != 1:
        raise InputError(
            f"{name}: any of {numeric} could be the value: rename one to 'value', or give frame[['layer', column]]."
        )
    return _made(name, unit, given, named[0] if named else numeric[0])


def _made(name: str, unit: str, table: pd.DataFrame, column: str) -> LayerEvidence:
    if not np.isfinite(pd.to_numeric(table["layer"], errors="coerce")).all():
        raise InputError(f"{name}: its column 'layer' contains values that are not layer numbers.")
    table = table.sort_values("layer")
    layers = tuple(int(layer) for layer in table["layer"])
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        raise InputError(f"{name}: several rows for layer {twice}: choose one or average them first.")
    values = table[column].to_numpy(float)
    if not np.isfinite(values).any():
        raise InputError(f"{name}: no finite value in {shown(column)}.")
    ends = [table[end].to_numpy(float) if end in table else np.full(len(values), np.nan) for end in ("low", "high")]
    return LayerEvidence(name, unit, layers, values, *ends)
