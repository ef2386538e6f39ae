"""Permutation test of directions: whether a difference in means is longer than under shuffled labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.checks import checked_count
from audiolens.directions import shuffles
from audiolens.directions.pole_reader import Samples
from audiolens.door import guarded

N_SHUFFLES = 199
LEVEL = 0.05


@guarded
@dataclass(frozen=True, eq=False)
class PermutationTest:
    """How long a direction is, per layer, compared with the same estimate under shuffled labels.

    Attributes:
        layers: the block of each value.
        ratio: the norm of the direction divided by the median norm under shuffled labels.
        p: permutation p-value, family-wise over layers: the share of shuffles whose largest ratio at any layer is at
            least as large, the labels as they are counted as one of them.
        least_p: the smallest possible `p`; it is large with few prompts.
        n_shuffles: number of shuffles.

    Labels are exchanged within pairs of prompts if the poles have the same number of them, otherwise between all
    prompts. A small p shows that the poles differ in the activations. It does not show that the difference is the
    concept, nor that the model uses it.
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
    weights = shuffles.permuted(samples.labels, n_shuffles, seed)
    norms = []
    for layer in samples.values.double():
        # The weights of a labelling sum to 0, so the mean only costs precision.
        norms.append((weights @ (layer - layer.mean(0))).norm(dim=-1))
    drawn = torch.stack(norms, dim=1)
    own = samples.difference().double().norm(dim=-1)
    # Norms grow with depth, so that layers are comparable only relative to their own mean, which includes the labels as
    # they are: the test is exact only if all labellings are treated alike.
    scale = torch.cat([own[None], drawn]).mean(0).clamp_min(torch.finfo(torch.float64).tiny)
    highest = (drawn / scale).amax(1)
    # Two labellings that are one another's mirror image have the same norm, but for rounding.
    p = (1 + (highest[:, None] >= (own / scale)[None] * (1 - 1e-9)).sum(0)).double() / (n_shuffles + 1)
    return PermutationTest(
        layers=samples.layers,
        ratio=(own / drawn.median(0).values.clamp_min(torch.finfo(torch.float64).tiny)).float(),
        # In float32, .05 would be above .05.
        p=p,
        least_p=max(1 / (n_shuffles + 1), 1 / shuffles.orders(samples.labels)),
        n_shuffles=n_shuffles,
    )
