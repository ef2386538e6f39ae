"""Fit a mixed model to the clips of a study, with prompts and seeds as random effects."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analysis.resampling import CONFIDENCE
from analysis.sweep import BASELINE
from analysis.sweep.concept_measures import is_ratio, unit_of_change
from analysis.sweep.response import KEYS
from audiolens.checks import checked_text, shown
from audiolens.door import guarded
from audiolens.errors import InputError

FEWEST_PROMPTS = 3
"""With fewer prompts, their variance cannot be estimated."""
LEAST_RATIO = 0.01


@guarded
@dataclass(frozen=True)
class Slope:
    """How much a measure changes with the strength of steering towards one pole, from `fit_slopes`.

    Attributes:
        value, low, high: the change at the chosen strength, with its interval. A ratio minus 1, or a difference if
            `unit` is not "ratio".
        scaled, stderr: the same change on the scale of the fit (a log ratio, or a difference), and its standard error.
        p: two-sided p-value of a slope of 0, by Student's t.
        unit: "ratio", or the unit of the difference.
        between_prompts: standard deviation of the prompts' own slopes. This and the following are on the scale of the
            fit.
        level_between_prompts, level_between_seeds: standard deviation of the level between prompts, and between the
            seeds of one prompt.
        residual: standard deviation of what remains.
        n_clips, n_prompts: the number of clips and prompts in the fit.
        converged: whether the optimiser found a maximum. If not, `value` and `scaled` are those of least squares, and
            all standard deviations and the interval are NaN.

    The slope assumes that the measure (or its logarithm) changes linearly with strength. It does not show where the
    response saturates.
    """

    value: float
    low: float
    high: float
    scaled: float
    stderr: float
    p: float
    unit: str
    between_prompts: float
    level_between_prompts: float
    level_between_seeds: float
    residual: float
    n_clips: int
    n_prompts: int
    converged: bool

    def from_scale(self, value: float) -> float:
        """Convert a value on the scale of the fit to this slope's unit."""
        return math.expm1(value) if self.unit == "ratio" else value

    def __repr__(self) -> str:
        form = "+.1%" if self.unit == "ratio" else "+.3g"
        ends = f"[{self.low:{form}}, {self.high:{form}}]" if self.converged else "(no interval: did not converge)"
        return f"Slope({self.value:{form}} {ends}, {self.n_clips} clips of {self.n_prompts} prompts)"


@guarded
def fit_slopes(clips: pd.DataFrame, measured: str, strength: float) -> tuple[Slope, Slope]:
    """Fit a linear mixed model of a measure over the strength of steering, for each sign of the strength by itself.

    The fixed effects are the level without steering and the slope. The random effects are the level and the slope of
    each prompt, and the level of each seed within its prompt. All are estimated by restricted maximum likelihood
    (`statsmodels.MixedLM`; Laird and Ware 1982, "Random-effects models for longitudinal data"). Intervals and p-values
    use Student's t with one degree of freedom less than there are prompts.

    Args:
        clips: one row per clip, with the columns `kind` ("baseline" or "steered"), `strength`, `prompt`, `seed`,
            `failed` and the measure. As in all reported effects, a steered clip that failed or cannot be measured
            counts as unchanged, and pairs whose baseline cannot be measured are left out.
        measured: the measure. Ratios are fitted as logarithms.
        strength: the strength at which the changes are stated, above 0.

    Returns:
        The slopes towards the positive pole (enhancement) and towards the negative pole (suppression). Each is the
        change at `strength` in its own direction.

    Raises:
        InputError: if fewer than three prompts remain, or no clip was steered with one of the signs.
    """
    if not (math.isfinite(strength) and strength > 0):
        raise InputError(f"strength={strength}: expected a number above 0.")
    rows = _rows(clips, measured, strength)
    n_prompts = rows["prompt"].nunique()
    if n_prompts < FEWEST_PROMPTS:
        raise InputError(
            f"a mixed model needs at least {FEWEST_PROMPTS} prompts whose unsteered clips can be measured; there are "
            f"{n_prompts}."
        )
    found = []
    for sign, word in ((1, "positive"), (-1, "negative")):
        mine = rows[sign * rows["dose"] >= 0].assign(dose=rows["dose"].abs())
        if not mine["dose"].any():
            raise InputError(f"no clip was steered with a {word} strength.")
        found.append(_fitted(mine, measured))
    return found[0], found[1]


def _fitted(rows: pd.DataFrame, measured: str) -> Slope:
    from statsmodels.regression.mixed_linear_model import MixedLM
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    back: Callable[[float], float] = math.expm1 if is_ratio(measured) else float
    sizes = {"unit": unit_of_change(measured), "n_clips": len(rows), "n_prompts": rows["prompt"].nunique()}
    # Prompts are numbered, so that no text of a prompt reaches the formula's parser.
    model: Any = MixedLM.from_formula(
        "level ~ dose", rows, groups=rows["prompt"], re_formula="1",
        vc_formula={"seed": "0 + C(seed)", "slope": "0 + dose"},
    )  # fmt: skip
    with warnings.catch_warnings():
        # Whether the fit converged is read from the result. Variances of 0 are at the edge of what is allowed.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        with suppress(np.linalg.LinAlgError):
            found = model.fit(reml=True, method=["lbfgs", "powell"])
            value, stderr = float(found.fe_params.iloc[1]), float(found.bse_fe.iloc[1])
            if found.converged and stderr > 0:
                reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, sizes["n_prompts"] - 1)) * stderr
                variances = dict(zip(model.exog_vc.names, map(float, found.vcomp), strict=True))
                return Slope(
                    value=back(value), low=back(value - reach), high=back(value + reach), scaled=value, stderr=stderr,
                    p=float(2 * stats.t.sf(abs(value) / stderr, sizes["n_prompts"] - 1)),
                    between_prompts=_root(variances["slope"]), level_between_seeds=_root(variances["seed"]),
                    level_between_prompts=_root(float(found.cov_re.iloc[0, 0])), residual=_root(float(found.scale)),
                    converged=True, **sizes,
                )  # fmt: skip
    design = np.column_stack([np.ones(len(rows)), rows["dose"]])
    value = float(np.linalg.lstsq(design, rows["level"].to_numpy(), rcond=None)[0][1])
    unknown = dict.fromkeys(("low", "high", "stderr", "p", "between_prompts", "level_between_prompts",
                             "level_between_seeds", "residual"), math.nan)  # fmt: skip
    return Slope(value=back(value), scaled=value, converged=False, **unknown, **sizes)


def _root(variance: float) -> float:
    return math.sqrt(max(variance, 0.0))


def _rows(clips: pd.DataFrame, measured: str, strength: float) -> pd.DataFrame:
    """Return the clips of the fit, with `level` (a logarithm for ratios) and `dose` (in multiples of `strength`)."""
    checked_text("measured", measured)
    for name in ("kind", "strength", *KEYS, "failed", measured):
        if name not in clips:
            raise InputError(f"clips has no column {shown(name)}: expected the table of a study's clips.")
    mine = clips[clips["kind"].isin([BASELINE, "steered"])]
    base = mine[mine["kind"] == BASELINE].set_index(KEYS)[measured]
    if base.index.has_duplicates:
        raise InputError("a prompt and seed have several unsteered clips: give the clips of one study.")
    before = base.reindex(pd.MultiIndex.from_frame(mine[KEYS])).to_numpy(dtype=float)
    after = mine[measured].to_numpy(dtype=float)
    relative = is_ratio(measured)
    after = np.where(mine["failed"].to_numpy(dtype=bool) | ~np.isfinite(after), before, after)
    usable = np.isfinite(before) & ((before > 0) | (not relative))
    if relative:
        with np.errstate(divide="ignore", invalid="ignore"):
            after = np.log(np.maximum(after, LEAST_RATIO * before))
    found = {
        "prompt": pd.factorize(mine["prompt"])[0], "seed": mine["seed"].to_numpy(), "level": after,
        "dose": mine["strength"].to_numpy(dtype=float) / strength,
    }  # fmt: skip
    return pd.DataFrame(found)[usable].reset_index(drop=True)
