"""Alternatives to the difference in means for estimating a direction, which also return `Directions`.

`principal_component` and `probe_weights` take `Directions` read with `keep_samples=True` and return `Directions` at the
same site and layers, so that estimators can be compared on the same activations. Their vectors point towards the
positive pole and are scaled to the length of the difference of means projected onto them, so that a strength of 1 means
the same step for every estimator. `mean_centred` instead reads new activations, under the prompts of one pole and under
neutral prompts.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.directions.pole_reader import Samples
from audiolens.errors import InputError
from audiolens.lens import AudioLens


def mean_centred(
    lens: AudioLens, pole: Sequence[str | None], neutral: Sequence[str | None], **reading: Any
) -> Directions:
    """Return the mean activation under one pole's prompts minus that under neutral prompts (such as
    `sets.development`).

    The method is that of Jorgensen et al. (2023). Use it for a concept without an opposite. The vector is half as long
    as the difference between two poles that are symmetric about the neutral prompts. `reading` is passed to
    `difference_in_means`, which raises any errors. With `codes="shared"`, the pole and the neutral prompts are both
    read on the clips of the neutral prompts.
    """
    if isinstance(reading.get("codes"), str) and reading["codes"] == "shared":
        reading = {**reading, "neutral": neutral}
    found = difference_in_means(lens, pole, neutral, **reading)
    return replace(found, meta=replace(found.meta, estimator="mean-centred"))


def principal_component(directions: Directions) -> Directions:
    """Return the first principal component of the uncentred differences between matched prompts.

    The method is that of Zou et al. (2023, representation engineering), without their random sign flips. This method
    needs as many positive as negative prompts, matched in order.

    Raises:
        InputError: if samples were not stored, or if the poles have different numbers of prompts.
    """
    samples = _samples(directions)
    positive, negative = samples.values[:, samples.labels], samples.values[:, ~samples.labels]
    if positive.shape != negative.shape:
        raise InputError(
            f"{positive.shape[1]} positive and {negative.shape[1]} negative prompts: give pairs of matched prompts."
        )
    return _oriented(directions, torch.linalg.svd(positive - negative, full_matrices=False).Vh[:, 0], "pca of pairs")


def probe_weights(directions: Directions, penalty: float = 1.0) -> Directions:
    """Return, for each layer, the weights of a logistic regression that separates the poles (scikit-learn).

    The method is that of Alain and Bengio (2016). The features are standardised before the fit. `penalty` is the weight
    of the squared-norm penalty, which is 1 / C in scikit-learn. The direction that separates best need not be the one
    that changes the model's output most, because a probe can find information that the model never uses.

    Raises:
        InputError: if samples were not stored, or if the penalty is not positive.
    """
    from sklearn.linear_model import LogisticRegression

    samples = _samples(directions)
    if not penalty > 0:
        raise InputError(f"penalty={penalty}: expected a number above 0.")
    weights = []
    for values in samples.values:
        spread = values.std(0).clamp_min(1e-8)
        fit = LogisticRegression(C=1 / penalty, max_iter=1000)
        fit.fit(((values - values.mean(0)) / spread).numpy(), samples.labels.numpy())
        weights.append(torch.from_numpy(fit.coef_[0]).float() / spread)
    return _oriented(directions, torch.stack(weights), "probe weights")


def _samples(directions: Directions) -> Samples:
    if directions.samples is None:
        raise InputError("estimators need one vector per prompt: read the directions with keep_samples=True.")
    return directions.samples


def _oriented(directions: Directions, vectors: Float[Tensor, "layer d_model"], estimator: str) -> Directions:
    """Point vectors towards the positive pole, and scale them to the length of the difference of means along them."""
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    along = (unit * _samples(directions).difference()).sum(-1, keepdim=True)
    return replace(directions, vectors=unit * along, evidence=None, meta=replace(directions.meta, estimator=estimator))
