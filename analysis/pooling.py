"""Pool the effect of one experiment over several models, as the random-effects meta-analysis of several studies.

The models are a sample: another model, trained in the same way, would have another true effect. The pooled value
estimates the mean effect over such models, and its interval reflects how much the models differ, as well as the
uncertainty within each model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.resampling import CONFIDENCE, checked_resampling
from audiolens.checks import numbers_of, shown
from audiolens.door import guarded
from audiolens.errors import InputError

_FEWEST = 2


@guarded
@dataclass(frozen=True)
class Pooled:
    """The mean effect over models, from `pooled`.

    Attributes:
        value, low, high: the mean and its interval, on the scale of the values given.
        stderr: standard error of the mean.
        tau: estimated standard deviation of the true effects between models.
        q: Cochran's Q. If all models had the same true effect, its expectation would be `n` - 1.
        n: number of models.
        confidence: coverage of the interval.

    The interval is that of the mean, not the range in which the effect of another model lies. With two or three models
    it is wide, because so few models say little about how much models differ.
    """

    value: float
    low: float
    high: float
    stderr: float
    tau: float
    q: float
    n: int
    confidence: float

    def __repr__(self) -> str:
        return f"Pooled({self.value:+.3g} [{self.low:+.3g}, {self.high:+.3g}], {self.n} models, tau {self.tau:.3g})"


@guarded
def pooled(values: ArrayLike, stderrs: ArrayLike, confidence: float = CONFIDENCE) -> Pooled:
    """Return the mean of several models' effects under a random-effects model.

    The variance between models is the moment estimate of DerSimonian and Laird (1986, "Meta-analysis in clinical
    trials"), and the interval is that of Hartung and Knapp (2001, "A refined method for the meta-analysis
    of controlled clinical trials with binary outcome") with n - 1 degrees of freedom. As Röver, Knapp and Friede (2015,
    "Hartung-Knapp-Sidik-Jonkman approach and its modification for random-effects meta-analysis with few studies")
    recommend for few studies, the standard error is never smaller than without the refinement.

    Args:
        values: the effect in each model, such as a log ratio. Pool ratios as logarithms.
        stderrs: the standard error of each effect, on the same scale.
        confidence: coverage of the interval.

    Raises:
        InputError: if there are fewer than two models, a number is missing, or a standard error is not above 0.
    """
    checked_resampling(confidence, 0)
    y, s = numbers_of("values", values), numbers_of("stderrs", stderrs)
    if y.ndim != 1 or y.shape != s.shape or len(y) < _FEWEST:
        raise InputError(
            f"values have shape {y.shape} and stderrs {s.shape}: expected one of each for at least {_FEWEST} models."
        )
    if not np.isfinite(y).all() or not np.isfinite(s).all() or not (s > 0).all():
        raise InputError(
            f"values={shown(y.tolist())} and stderrs={shown(s.tolist())}: expected finite numbers, and standard errors "
            "above 0. Leave out models without one."
        )
    fixed = 1 / s**2
    q = float(fixed @ (y - fixed @ y / fixed.sum()) ** 2)
    tau2 = max(0.0, (q - (len(y) - 1)) / float(fixed.sum() - fixed @ fixed / fixed.sum()))
    weights = 1 / (s**2 + tau2)
    mean = float(weights @ y / weights.sum())
    spread = float(weights @ (y - mean) ** 2) / (len(y) - 1)
    stderr = math.sqrt(max(1.0, spread) / float(weights.sum()))
    reach = float(stats.t.ppf((1 + float(confidence)) / 2, len(y) - 1)) * stderr
    return Pooled(mean, mean - reach, mean + reach, stderr, math.sqrt(tau2), q, len(y), float(confidence))
