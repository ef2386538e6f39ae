"""Compare the directions that a concept has at different positions in time and in different guidance branches.

A mean over time depends not only on what the prompts ask for but also on how many of its frames contain an onset, so a
tempo direction may in fact represent busyness. The start token depends on the text alone. The table compares all
readings on the same clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from audiolens import measure
from audiolens.checks import as_array, checked_amount, checked_count, checked_flags, listed, numbers_of, shown
from audiolens.directions.difference_in_means import read_poles
from audiolens.directions.directions import Directions
from audiolens.directions.pole_reader import PoleReader, Position
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.groups import takes
from audiolens.interventions import Branch, checked_branch
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens

POSITIONS: tuple[Position, ...] = ("mean", "first", "last")
BRANCHES: tuple[Branch, ...] = ("cond", "null", "both")


@guarded
@dataclass(frozen=True, eq=False)
class Readings:
    """The directions read at each position and in each branch.

    `table` has one row per position, branch and layer:
        norm: length of the difference in means; `relative_norm` is that length divided by the mean activation norm.
        separation, auc, split_half_cosine, stable_at: as in `Evidence`.
        cosine: cosine similarity to the direction of the first position and branch (`reference`) at that layer.
        onset_correlation: Spearman's correlation between a clip's projection onto the direction and its onsets per
            second, computed within each pole and averaged. It shows how strongly the reading reflects busyness,
            independently of the poles.

    In the `null` branch only the codes sampled so far can separate the poles. At the position "first", the activations
    of this branch are the same for all prompts, so the direction is zero and its columns are NaN. The table does not
    show which reading steers best; a sweep is needed for that. A low cosine does not show which of two readings
    represents the concept.
    """

    table: pd.DataFrame
    concept: str
    model: str
    reference: tuple[str, str]
    prompts: tuple[int, int]
    seconds: float

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def summary(self) -> pd.DataFrame:
        """Return one row per position and branch, with medians over layers of cosine, AUC and onset correlation."""
        kept = self.table.groupby(["position", "branch"], sort=False)
        return kept[["relative_norm", "cosine", "auc", "onset_correlation"]].median().reset_index()

    @drawable
    def plot(self) -> Any:
        """Draw the cosine to the reference, held-out AUC and onset correlation over the blocks (matplotlib figure)."""
        from analysis.reading_comparison import figures

        return figures.paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.reading_comparison import figures

        return figures.screen(self)

    def __repr__(self) -> str:
        known = self.summary().dropna(subset="cosine")
        others = known[(known["position"] != self.reference[0]) | (known["branch"] != self.reference[1])]
        sides = [f"{row.position} {row.branch} {row.cosine:+.2f}" for row in others.itertuples()]
        carried = known.set_index(["position", "branch"])["onset_correlation"].get(self.reference, float("nan"))
        onsets = f"; correlation of {' '.join(self.reference)} with onsets {carried:+.2f}" if carried == carried else ""
        alike = (
            f"cosine to {' '.join(self.reference)}, median over blocks: {', '.join(sides)}" if sides else "one reading"
        )
        return f"Readings({self.concept} on {self.model!r}: {alike}{onsets})"


@guarded
@named_once
@takes("sampling", Sampling, keeps="all")
def compare(
    lens: AudioLens,
    sets: PromptSet,
    *,
    positions: Sequence[Position] = POSITIONS,
    branches: Sequence[Branch] = BRANCHES,
    seconds: float = 2.0,
    guidance_scale: float = 3.0,
    prompts: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
    sampling: Sampling | None = None,
) -> Readings:
    """Return a concept's directions at every position and in every branch, read from the same clips.

    Args:
        positions, branches: as in `difference_in_means`. The first position and the first branch are the reference for
            the others.
        seconds, guidance_scale: length and guidance of the clips; prompt i of either pole is generated from seed i.
        prompts: number of prompts per pole; `None` uses all of them.
        sampling: a `Sampling` instead of guidance_scale and, if it contains a clip length, seconds. Its temperature and
            top_k also apply.

    Raises:
        InputError: (or a subclass) if no position or branch is given, or if this model lacks one of them. Positions are
            checked before the clips are generated.
    """
    checked_flags(progress=progress)
    if not isinstance(sets, PromptSet):
        raise InputTypeError(f"sets={shown(sets)}: expected a PromptSet, as audiolens.prompts.load returns.")
    positions, branches = listed("positions", positions), listed("branches", branches)
    if not positions or not branches:
        raise InputError(f"positions={positions}, branches={branches}: give at least one of each.")
    if prompts is not None:
        prompts = checked_count("prompts", prompts)
    batch_size = checked_count("batch_size", batch_size)
    guidance_scale = checked_amount("guidance_scale", guidance_scale)
    poles = [list(side[:prompts]) for side in (sets.positive, sets.negative)]

    def reader(position: Position, branch: Branch, codes: Any = None, bar: bool = False) -> PoleReader:
        return PoleReader(
            lens, *poles, site="resid_post", layers=None, position=position, branch=branch, codes=codes, audio=None,
            guidance_scale=guidance_scale, seeds=None, seconds=seconds, batch_size=batch_size, progress=bar,
        )  # fmt: skip

    for position, branch in product(positions, branches):
        checked_branch(branch, guidance_scale > 1)
        reader(position, branch).check_text()
    drawing = replace(sampling or Sampling(guidance_scale), seconds=seconds)
    made: dict[str, Any] = {"sampling": drawing, "batch_size": batch_size, "progress": progress}
    codes = [lens.generate(side, seeds=list(range(len(side))), decode=False, **made).codes.cpu() for side in poles]
    rates = np.concatenate([_onset_rates(lens, clip) for side in codes for clip in side.split(batch_size)])
    frames, reference = [], None
    for position in positions:
        for branch in branches:
            # Poles that do not differ in a reading are a finding, so they are reported with a zero direction.
            found = read_poles(lens, reader(position, branch, (codes[0], codes[1]), progress), "", keep_samples=True)
            reference = found if reference is None else reference
            frames.append(_rows(found, reference, rates).assign(position=str(position), branch=branch))
    table = pd.concat(frames, ignore_index=True)
    first = ["position", "branch"]
    return Readings(
        table=table[[*first, *[name for name in table.columns if name not in first]]],
        concept=sets.concept,
        model=lens.name,
        reference=(str(positions[0]), branches[0]),
        prompts=(len(poles[0]), len(poles[1])),
        seconds=seconds,
    )


@guarded
def within_poles(
    projections: np.ndarray,
    rates: np.ndarray,
    labels: np.ndarray,
) -> float:
    """Return Spearman's correlation within the positive and within the negative rows, averaged; NaN if nothing varies.

    Raises:
        InputTypeError, InputError: unless there is one number or Boolean per row.
    """
    projections, rates = numbers_of("projections", projections), numbers_of("rates", rates)
    labels = as_array("labels", labels)
    if projections.ndim != 1 or not projections.shape == rates.shape == labels.shape:
        raise InputError(
            f"projections, rates and labels of shapes {projections.shape}, {rates.shape} and {labels.shape}: "
            "expected one of each per row."
        )
    found = []
    for pole in (True, False):
        mine = (labels == pole) & np.isfinite(rates)
        x, y = projections[mine], rates[mine]
        varied = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        found.append(float(spearmanr(x, y).statistic) if varied else float("nan"))  # pyright: ignore[reportAttributeAccessIssue]
    return float(np.mean(found))


def _rows(found: Directions, reference: Directions, rates: np.ndarray) -> pd.DataFrame:
    table = found.to_frame()
    table.insert(2, "relative_norm", table["norm"] / table["residual_norm"])
    table["cosine"] = found.cosine(reference).numpy()
    samples = found.samples
    assert samples is not None
    along = torch.einsum("lpd,ld->lp", samples.values, found.unit().vectors).double().numpy()
    table["onset_correlation"] = [within_poles(layer, rates, samples.labels.numpy()) for layer in along]
    # If the prompts cannot be separated, their difference is only rounding error.
    nothing = table["relative_norm"] < 1e-5
    undefined = ["split_half_cosine", "separation", "auc", "stable_at", "cosine", "onset_correlation"]
    table = table.astype(dict.fromkeys(undefined, float))
    table.loc[nothing, undefined] = float("nan")
    return table


def _onset_rates(lens: AudioLens, codes: torch.Tensor) -> np.ndarray:
    audio = lens.decode_codes(codes).float().cpu().numpy()
    return np.atleast_1d(measure.onset_rate(audio, lens.config.sample_rate))
