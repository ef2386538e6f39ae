"""The first principal component of the differences between matched prompts (RepE, Zou et al. 2023)."""

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.directions.fitted import Fitted
from audiolens.directions.labelling import Target
from audiolens.errors import InputError


def principal_component(values: Float[Tensor, "prompt d_model"], target: Target) -> Fitted:
    """Return the first principal component of the uncentred differences between matched prompts.

    The method is that of Zou et al. (2023, arXiv 2310.01405), without their random sign flips: the sign is that of the
    difference in means.
    """
    positive, negative = values[target.positive], values[~target.positive]
    if not target.paired or positive.shape != negative.shape:
        raise InputError(
            f"{len(positive)} positive and {len(negative)} negative prompts: 'principal_component' needs pairs of "
            "matched prompts, the two poles in the same order."
        )
    return Fitted(torch.linalg.svd((positive - negative).double(), full_matrices=False).Vh[0])
