"""Divide a site into cells by time step (or text token) and head, and select one cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.model.sites import names_once

_TIME = ("step", "query", "token")


@dataclass(frozen=True)
class GridSite:
    """One site at one layer.

    `axes` names the axes of the site's values. `cell_unit` states whether its cells are steps or text tokens. `on_text`
    is true if the values can be compared only between prompts with the same number of tokens.
    """

    name: str
    short: str
    layer: int | None
    axes: tuple[str, ...]
    on_text: bool

    @property
    def cell_unit(self) -> Literal["step", "token"]:
        return "token" if "token" in self.axes else "step"

    @property
    def heads(self) -> bool:
        return "head" in self.axes

    def summed(self, values: Float[Tensor, "codebook row ..."]) -> Float[Tensor, "codebook row place head"]:
        """Return the values summed over features and, for an attention pattern, over keys.

        The head axis has length 1 if the site has no heads.
        """
        features = [1 + at for at, axis in enumerate(self.axes) if axis not in ("row", *_TIME, "head")]
        cells = values.sum(dim=features) if features else values
        if not self.heads:
            return cells[..., None]
        return cells if self.axes.index("head") > 1 else cells.transpose(-1, -2)

    def cell(
        self, values: Float[Tensor, "row ..."], start: int, stop: int, head: int | None
    ) -> Bool[Tensor, "row ..."]:
        """Return a mask that selects steps (or tokens) `start` to `stop`, for one head or (with `None`) all heads."""
        mask = torch.zeros_like(values, dtype=torch.bool)
        time = next(at for at, axis in enumerate(self.axes) if axis in _TIME)
        chosen = mask.narrow(time, start, stop - start)
        if head is not None:
            chosen = chosen.narrow(self.axes.index("head"), head, 1)
        chosen.fill_(True)
        return mask


def grid_sites(
    lens: AudioLens, sites: str | Sequence[str], layers: int | Sequence[int] | None
) -> dict[str, tuple[GridSite, ...]]:
    """Return the sites selected by names and layers, grouped by short name.

    Raises:
        SiteError: if the model lacks a selected site or layer.
        InputError: if no site is named.
    """
    asked = names_once("sites", sites)
    if not asked:
        raise InputError("sites is empty: name at least one site.")
    found: dict[str, list[GridSite]] = {}
    for site in lens.find_sites(asked, layers):
        on_text = lens.traced_model.family.form(site.hook).on_text
        found.setdefault(site.short, []).append(GridSite(site.name, site.short, site.layer, site.axes, on_text))
    return {short: tuple(sorted(group, key=lambda site: site.layer or 0)) for short, group in found.items()}


def spans(length: int, cells: int) -> list[tuple[int, int]]:
    """Split `length` steps into at most `cells` spans of nearly equal length, and return their (start, end) pairs."""
    n = min(cells, length)
    edges = [round(at * length / n) for at in range(n + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
