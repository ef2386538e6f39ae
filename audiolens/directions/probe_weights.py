"""The weights of linear probes as directions: logistic regression and ridge regression (scikit-learn).

Features are standardised before the fit, and the weights are returned in the features' own units. The direction that
separates best need not be the one that changes the model's output most, because a probe can find information that the
model never uses, and down-weights whatever varies for other reasons (Alain and Bengio 2016; Haufe et al. 2014).
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.checks import checked_amount
from audiolens.directions.fitted import Fitted
from audiolens.directions.labelling import Target

PENALTIES = np.logspace(0, 6, 13)
"""Ridge penalties among which leave-one-out cross-validation chooses."""


def logistic(values: Float[Tensor, "prompt d_model"], target: Target, *, penalty: float | None = None) -> Fitted:
    """Return the weights of a logistic regression that separates the two groups.

    `penalty` is 1 / C in scikit-learn. The default is the number of features, as in `analysis.probing`.
    """
    from sklearn.linear_model import LogisticRegression

    weight = float(values.shape[1]) if penalty is None else checked_amount("penalty", penalty, above=0)
    scaled, spread = _standardised(values)
    fit = LogisticRegression(C=1 / weight, max_iter=1000).fit(scaled, target.positive.numpy())
    return Fitted(torch.from_numpy(fit.coef_[0]) / spread)


def ridge(values: Float[Tensor, "prompt d_model"], target: Target, *, penalty: float | None = None) -> Fitted:
    """Return the weights of a ridge regression on the labels (+1 and -1) or on the quantity.

    `penalty=None` chooses the penalty by leave-one-out cross-validation.
    """
    from sklearn.linear_model import RidgeCV

    choices = PENALTIES if penalty is None else [checked_amount("penalty", penalty, above=0)]
    scaled, spread = _standardised(values)
    fit = RidgeCV(choices).fit(scaled, target.outputs[:, target.output].numpy())
    return Fitted(torch.from_numpy(fit.coef_) / spread, notes={"penalty": float(np.asarray(fit.alpha_))})


def _standardised(values: Float[Tensor, "prompt d_model"]) -> tuple[np.ndarray, Float[Tensor, " d_model"]]:
    wide = values.double()
    spread = wide.std(0).clamp_min(1e-8)
    return ((wide - wide.mean(0)) / spread).numpy(), spread
