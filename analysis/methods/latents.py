"""Steer along a latent of a sparse autoencoder: the one that tells the poles of a concept apart best."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from analysis import features
from analysis.features import matching
from analysis.methods.reading import NotApplicable, Reading, Steering
from audiolens.directions.directions import Directions

if TYPE_CHECKING:
    from audiolens import AudioLens

CLIPS_PER_PROMPT, SECONDS = 2, 4.0
"""The clips of each of the poles' prompts on which the autoencoder is trained, and their length."""
VECTORS, ACTIVE = 200_000, 32
"""The number of vectors that it is trained on, and its active latents per vector. Its width is the default."""


def latent(lens: AudioLens, reading: Reading) -> Steering:
    """Steer along a latent of an autoencoder that is trained at the block of the place, on the poles' own clips.

    Its direction gets the norm of the difference in means, as every other one does.

    Raises:
        NotApplicable: if the place steers every block along its own direction.
    """
    if reading.place.layer is None:
        raise NotApplicable("every block is steered along its own direction, and an autoencoder is that of one block.")
    found = reading.kept(
        "latent", best_latent, lens, *reading.poles, site=reading.directions.meta.site, layer=reading.place.layer,
        n_vectors=VECTORS, k=ACTIVE,
    )  # fmt: skip
    return reading.along(found)


def best_latent(
    lens: AudioLens,
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    site: str,
    layer: int,
    n_vectors: int,
    k: int,
) -> Directions:
    """Train an autoencoder on clips of both poles, and return the latent that tells them apart best.

    That is the latent whose mean over a clip has the AUC furthest from .5, of equal ones that whose means differ most.
    It points to the positive pole.

    Raises:
        NotApplicable: if no latent tells the poles apart.
    """
    prompts = [prompt for prompt in (*positive, *negative) for _ in range(CLIPS_PER_PROMPT)]
    codes = lens.generate(
        prompts, SECONDS, seeds=list(range(len(prompts))), decode=False, batch_size=32, progress=False
    ).codes.cpu()
    sae = features.train(
        lens, prompts, site=site, layer=layer, codes=codes, n_vectors=n_vectors, k=k, held_out=0.0, progress=False
    )
    pooled = features.index(lens, sae, features.Clips(prompts, codes), progress=False).pooled
    truth = np.arange(len(prompts)) < CLIPS_PER_PROMPT * len(positive)
    areas = matching.aucs(pooled, truth) - 0.5
    gaps = np.abs(pooled[truth].mean(0) - pooled[~truth].mean(0))
    best = int(np.lexsort((gaps, np.abs(areas)))[-1])
    if not areas[best]:
        raise NotApplicable("no latent of the autoencoder tells the clips of the poles apart.")
    return float(np.sign(areas[best])) * sae.directions(best)
