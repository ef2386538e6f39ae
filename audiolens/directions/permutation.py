"""Test by permutation whether a difference in means is longer than it would be under shuffled labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.checks import checked_count
from audiolens.directions import shuffles
from audiolens.directions.samples import Samples, prompt_numbers
from audiolens.door import guarded

N_SHUFFLES = 199
LEVEL = 0.05


@guarded
@dataclass(frozen=True, eq=False)
class PermutationTest:
    """The length of a direction at each layer, compared with differences in means under shuffled labels.

    Attributes:
        layers: the block of each value.
        ratio: the norm of the direction divided by the median norm under shuffled labels.
        p: permutation p-value, family-wise over layers: the share of labellings, including the original one, whose
            largest norm over all layers is at least the direction's norm at this layer. All norms are relative to their
            layer's mean norm.
        least_p: the smallest possible `p`, which is large with few prompts.
        n_shuffles: number of shuffles.

    Labels are exchanged within pairs of prompts if the poles have the same number of prompts, and otherwise among all
    prompts. If a prompt has several clips, whole prompts are exchanged (`shuffles.permuted`). A small p shows that the
    poles differ in the activations. It does not show that the difference represents the concept, or that the model uses
    it.
    """

    layers: tuple[int, ...]
    ratio: Float[Tensor, " layer"]
    p: Float[Tensor, " layer"]
    least_p: float
    n_shuffles: int

    def __repr__(self) -> str:
        best = int(self.p.argmin())
        few = "too few prompts or shuffles to test: " if self.least_p > LEVEL else ""
        return (
            f"PermutationTest({float(self.ratio.min()):.1f} to {float(self.ratio.max()):.1f} times as long as under "
            f"{self.n_shuffles} shuffles of the labels; {few}smallest p = {float(self.p[best]):.3f}, at block "
            f"{self.layers[best]}, over {len(self.layers)} blocks)"
        )


def permutation_test(samples: Samples, n_shuffles: int, seed: int) -> PermutationTest:
    """Compare the difference in means of `samples` with those of random labellings (see `shuffles.permuted`)."""
    n_shuffles = checked_count("n_shuffles", n_shuffles)
    prompts = prompt_numbers(samples.prompts)
    weights = shuffles.permuted(samples.labels, n_shuffles, seed, prompts)
    norms = []
    for layer in samples.values.double():
        # The weights of a labelling sum to 0, so the mean cancels. Subtracting it first improves precision.
        norms.append((weights @ (layer - layer.mean(0))).norm(dim=-1))
    drawn = torch.stack(norms, dim=1)
    own = samples.difference().double().norm(dim=-1)
    # Norms grow with depth, so layers are compared relative to their mean norm. The mean includes the original
    # labelling, because the test is exact only if all labellings are treated alike.
    scale = torch.cat([own[None], drawn]).mean(0).clamp_min(torch.finfo(torch.float64).tiny)
    highest = (drawn / scale).amax(1)
    # Exchanging the two poles gives the same norm up to rounding errors.
    p = (1 + (highest[:, None] >= (own / scale)[None] * (1 - 1e-9)).sum(0)).double() / (n_shuffles + 1)
    return PermutationTest(
        layers=samples.layers,
        ratio=(own / drawn.median(0).values.clamp_min(torch.finfo(torch.float64).tiny)).float(),
        # Keep float64, because .05 is rounded up in float32.
        p=p,
        least_p=max(1 / (n_shuffles + 1), 1 / shuffles.orders(samples.labels, prompts)),
        n_shuffles=n_shuffles,
    )
