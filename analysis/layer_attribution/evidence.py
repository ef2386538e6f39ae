"""The layer-attribution plot: what each kind of evidence says of each block, in one figure.

`gather(probe=..., patching=..., attribution=..., norm=..., steering=...)` takes whatever there is, under any names: a
frame with a "layer" column, a series over layers, numbers for all layers, or the `Directions` themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.figures.canvas import drawable
from audiolens.checks import checked_flags, numbers_of
from audiolens.directions.directions import Directions
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError

UNITS: Mapping[str, str] = {
    "probe": "score (balanced accuracy or R²)",
    "patching": "nats",
    "attribution": "nats",
    "norm": "share of the residual length",
    "steering": "relative change",
}
"""Of the usual evidence, by name. A probe's own result says which score it is."""
_VALUES = ("effect", "value", "score", "mean", "norm")
_NOT_VALUES = {"layer", "low", "high"}


@guarded
@dataclass(frozen=True, eq=False)
class Evidence:
    """One number a layer, in its own unit; the ends of its intervals are NaN where there are none."""

    name: str
    unit: str
    layers: tuple[int, ...]
    values: Float[np.ndarray, " layer"]
    low: Float[np.ndarray, " layer"]
    high: Float[np.ndarray, " layer"]

    @property
    def peak(self) -> int:
        """The layer furthest from 0."""
        return self.layers[int(np.nanargmax(np.abs(self.values)))]


@guarded
@dataclass(frozen=True, eq=False)
class LayerAttribution:
    """Several kinds of evidence over the same blocks.

    It does not weigh them: kinds measure different things (what can be read off, what is passed on, what changes the
    output), so that they may peak apart and all be right.
    """

    evidence: tuple[Evidence, ...]

    def __getitem__(self, name: str) -> Evidence:
        for one in self.evidence:
            if one.name == name:
                return one
        raise InputError(f"no evidence {name!r}: there is {', '.join(one.name for one in self.evidence)}.")

    def to_frame(self) -> pd.DataFrame:
        """One row per kind of evidence and layer: `evidence`, `unit`, `layer`, `value`, `low`, `high`, and `share`, the
        value over the largest |value| of its kind."""
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
        """A panel per kind, one above the other, or (`normalised`) all as shares of their largest (matplotlib)."""
        checked_flags(normalised=normalised)
        from analysis.layer_attribution import figures

        return figures.paper(self, normalised)

    def figure(self, normalised: bool = False) -> Any:
        """The same on screen (plotly figure)."""
        checked_flags(normalised=normalised)
        from analysis.layer_attribution import figures

        return figures.screen(self, normalised)

    def __repr__(self) -> str:
        return f"LayerAttribution(largest of each, not tested against chance: {', '.join(map(_peak, self.evidence))})"


def _peak(one: Evidence) -> str:
    """Where a kind of evidence is largest, with its interval where it has one."""
    at = one.layers.index(one.peak)
    ends = f" [{one.low[at]:+.3g}, {one.high[at]:+.3g}]" if np.isfinite(one.low[at]) else ""
    return f"{one.name} {one.values[at]:+.3g}{ends} at block {one.peak}"


@guarded
def gather(*, units: Mapping[str, str] | None = None, **evidence: Any) -> LayerAttribution:
    """Put evidence over layers together.

    Args:
        units: of evidence by name; the usual ones are known (`UNITS`).
        evidence: by name. A frame has a "layer" column, one of values (called like the evidence, "effect", "value",
            "score", "mean" or "norm", or the only other number) and perhaps "low" and "high". `Directions` give their
            length as a share of the residual stream's. Numbers stand for layers 0, 1, ...; `None` is left out.

    Raises:
        InputError, InputTypeError: nothing given, several rows for one layer, or no one column of values.
    """
    given = {name: one for name, one in evidence.items() if one is not None}
    if not given:
        raise InputError("no evidence: give at least one, such as norm=directions.")
    known = {**UNITS, **(units or {})}
    return LayerAttribution(tuple(_evidence(name, one, known.get(name, "")) for name, one in given.items()))


def _evidence(name: str, given: Any, unit: str) -> Evidence:
    if isinstance(given, Evidence):
        return given
    if isinstance(given, Directions):
        shares = given.norms / given.residual_norms
        return _made(name, unit, pd.DataFrame({"layer": given.layers, "value": shares.cpu().numpy()}), "value")
    if hasattr(given, "to_frame") and not isinstance(given, pd.DataFrame | pd.Series):
        given = given.to_frame()
    if isinstance(given, pd.DataFrame) and {"layer", "metric"} <= {*given.columns}:
        # Of a probe; the sound itself, scored beside the blocks, stands in none.
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
            raise InputError(f"{name} of shape {values.shape}: expected one number a layer.")
        given = pd.DataFrame({"layer": np.arange(len(values)), "value": values})
    if "layer" not in given:
        raise InputError(f"{name}: a frame with columns {[*given.columns]} says no layer: name that column 'layer'.")
    numeric = [str(c) for c in given.select_dtypes("number").columns if str(c) not in _NOT_VALUES]
    named = [column for column in (name, *_VALUES) if column in numeric]
    if not named and len(numeric) != 1:
        raise InputError(
            f"{name}: which of {numeric} is the value? Rename it to 'value', or give frame[['layer', column]]."
        )
    return _made(name, unit, given, named[0] if named else numeric[0])


def _made(name: str, unit: str, table: pd.DataFrame, column: str) -> Evidence:
    if not np.isfinite(pd.to_numeric(table["layer"], errors="coerce")).all():
        raise InputError(f"{name}: its column 'layer' holds what is no layer number.")
    table = table.sort_values("layer")
    layers = tuple(int(layer) for layer in table["layer"])
    if len(set(layers)) < len(layers):
        twice = next(layer for layer in layers if layers.count(layer) > 1)
        raise InputError(f"{name}: several rows for layer {twice}: choose or average them before.")
    values = table[column].to_numpy(float)
    if not np.isfinite(values).any():
        raise InputError(f"{name}: no finite value in {column!r}.")
    ends = [table[end].to_numpy(float) if end in table else np.full(len(values), np.nan) for end in ("low", "high")]
    return Evidence(name, unit, layers, values, *ends)
