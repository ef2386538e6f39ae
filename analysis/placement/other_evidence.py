"""Compute evidence in addition to alignment, from probes, activation patching and gradient attribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from analysis.layer_attribution.evidence import TWO_POLES
from audiolens.checks import shown
from audiolens.directions.directions import Directions
from audiolens.errors import InputError
from audiolens.prompts import PromptSet

if TYPE_CHECKING:
    from audiolens import AudioLens

Computable = Literal["probe", "patching", "attribution"]
PROBED = 24
"""Number of prompts per pole on which a probe is trained and tested."""
EVIDENCE_SECONDS = 1.0
"""Length of the clips on which the evidence is computed, in seconds."""


@dataclass
class Computed:
    """The evidence that was computed, the reasons for any missing evidence, and the cost.

    `found` maps each kind of evidence to a data frame with the columns layer, value, low and high. The cost is the
    number of decoder steps, summed over rows.
    """

    found: dict[str, pd.DataFrame] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    row_steps: int = 0

    @property
    def units(self) -> dict[str, str]:
        """The units that differ from the usual ones."""
        return {"probe": TWO_POLES} if "probe" in self.found else {}


def checked_kinds(wanted: Sequence[str]) -> None:
    if isinstance(wanted, str):
        raise InputError(f"compute={shown(wanted)}: expected a list, such as [{shown(wanted)}].")
    for name in wanted:
        if name not in get_args(Computable):
            raise InputError(f"compute={shown(name)}: expected some of {', '.join(get_args(Computable))}.")


def generated_steps(lens: AudioLens, rows: int, seconds: float) -> int:
    """Return the number of decoder steps, summed over rows, needed to generate clips with both guidance branches."""
    return 2 * rows * (round(seconds * lens.config.frame_rate) + max(lens.config.delays))


def computed(
    lens: AudioLens,
    sets: PromptSet,
    directions: Directions,
    poles: tuple[Sequence[str], Sequence[str]],
    codes: Int[Tensor, "row codebook frame"],
    wanted: Sequence[Computable],
    *,
    batch_size: int,
) -> Computed:
    """Return the requested evidence, and the reasons why any of it could not be computed.

    Probes distinguish the two poles' prompts while the model reads the *same* codes, so that the codes do not reveal
    the pole. Patching copies the residual stream of the positive pole's runs into the negative pole's runs, and
    attribution estimates the effect of such copies. Both are scored on the first second of the positive pole's clips.
    """
    checked_kinds(wanted)
    result = Computed()
    clean, corrupted = list(poles[0]), list(poles[1])
    played = None
    if {"patching", "attribution"} & set(wanted):
        length = min(EVIDENCE_SECONDS, codes.shape[-1] / lens.config.frame_rate)
        played = lens.generate(clean, length, seeds=list(range(len(clean))), decode=False, batch_size=batch_size).codes
        result.row_steps += generated_steps(lens, len(clean), length)
    for name in dict.fromkeys(wanted):
        try:
            if name == "probe":
                table, spent = _probed(lens, sets, directions, codes, batch_size)
            else:
                assert played is not None
                carry = _patched if name == "patching" else _attributed
                table, spent = carry(lens, clean, corrupted, played, directions, batch_size)
        except InputError as error:
            result.left_out[name] = str(error)
            continue
        result.found[name] = table
        result.row_steps += spent
    return result


def _probed(
    lens: AudioLens, sets: PromptSet, directions: Directions, codes: Tensor, batch_size: int
) -> tuple[pd.DataFrame, int]:
    from analysis import probing

    if len(codes) < 2:
        raise InputError("a probe is trained on some clips and tested on others: one neutral prompt is too few.")
    each = min(PROBED, len(sets.positive), len(sets.negative))
    prompts = [*sets.positive[:each], *sets.negative[:each]]
    frames = min(codes.shape[-1], round(EVIDENCE_SECONDS * lens.config.frame_rate))
    # Both prompts of a pair read the same clip, so all rows of a clip stay on one side of the train-test split.
    clips = [row % len(codes) for row in range(each)] * 2
    folds = max(2, min(5, len(set(clips))))
    result = probing.probe(
        lens, prompts, [pole for pole in sets.poles for _ in range(each)], site=directions.meta.site,
        layers=list(directions.layers), codes=codes[clips, :, :frames], groups=clips, folds=folds,
        baselines=(), n_shuffles=5, n_bootstrap=200, batch_size=batch_size,
    )  # fmt: skip
    table = result.to_frame()
    return _frame(table.layer, table.score, table.low, table.high), len(prompts) * (frames + max(lens.config.delays))


def _patched(
    lens: AudioLens, clean: list[str], corrupted: list[str], codes: Tensor, directions: Directions, _: int
) -> tuple[pd.DataFrame, int]:
    from analysis import patching

    asked: dict[str, Any] = {"site": directions.meta.site, "layers": list(directions.layers), "windows": 1}
    result = patching.patch(lens, clean, corrupted, codes, **asked, n_permutations=100, progress=False)
    plan = patching.plan(lens, clean, corrupted, codes, **asked, timed=False)
    total = (-1, slice(None), 0)
    found = result.means
    table = _frame(directions.layers, found.value[total], found.low[total], found.high[total])
    return table, round(plan.row_steps / lens.config.n_layers)


def _attributed(
    lens: AudioLens, clean: list[str], corrupted: list[str], codes: Tensor, directions: Directions, batch_size: int
) -> tuple[pd.DataFrame, int]:
    from analysis import attribution

    result = attribution.attribute(
        lens, clean, corrupted, codes, sites=directions.meta.site, layers=list(directions.layers), check=0,
        batch_size=batch_size,
    )  # fmt: skip
    table = result.by_layer(directions.meta.site)
    # Attribution takes two forward passes, and one backward pass that costs as much as two forward passes.
    spent = 4 * len(clean) * (codes.shape[-1] + max(lens.config.delays))
    return _frame(table.layer, table.effect, table.low, table.high), spent


def _frame(layer: Any, value: Any, low: Any, high: Any) -> pd.DataFrame:
    columns = {"layer": layer, "value": value, "low": low, "high": high}
    return pd.DataFrame({name: np.asarray(one) for name, one in columns.items()})
