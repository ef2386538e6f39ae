"""Recursive feature machines (RFM): the directions along which a kernel predictor of the labels changes most.

A kernel ridge regression with the Laplace kernel exp(-|x - z|_M / L), |v|_M^2 = v . M v, predicts the labels. M starts
as the identity. After each regression, M becomes the average gradient outer product (AGOP) of the predictor, the mean
over the samples of grad f grad f^T, so that the next regression looks at what mattered to this one (Radhakrishnan et
al. 2024, Science 383; arXiv 2212.13881). The top eigenvector of the AGOP is the direction (Beaglehole et al. 2025,
arXiv 2502.03708), which MusicRFM uses for MusicGen (Zhao et al. 2025, arXiv 2510.19127). A predictor that is not linear
also finds a concept whose poles have the same mean, such as "both or neither of two things".

L is a multiple of the median distance under M, so the scale of the activations does not matter. The bandwidth, the
ridge and the number of regressions are chosen by the squared error on held-out prompts, and all samples are then fitted
with them. With fewer samples than dimensions, everything is computed exactly in the span of the samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from audiolens.checks import checked_amount, checked_count, checked_seed, one_or_listed, shown
from audiolens.directions.fitted import Fitted
from audiolens.directions.labelling import Target
from audiolens.errors import InputError

BANDWIDTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
RIDGES = (1e-3, 1e-2, 1e-1)
ITERATIONS = (1, 2, 3, 5)
FEWEST = 4
"""The samples that each group needs, so that the held-out side and the other have both."""


@dataclass(frozen=True, eq=False)
class Machine:
    """A fitted predictor, in the span of its samples, and the AGOP of its last regression.

    Attributes:
        agop: the average gradient outer product of the output towards which the direction points.
        basis: the orthonormal axes of the span; a vector v of `agop`'s space is v @ basis in the features' own space.
    """

    centre: Float[Tensor, " d_model"]
    basis: Float[Tensor, "axis d_model"]
    points: Float[Tensor, "prompt axis"]
    metric: Float[Tensor, "axis axis"] | None
    weights: Float[Tensor, "prompt output"]
    scale: float
    agop: Float[Tensor, "axis axis"]
    offset: Float[Tensor, " output"]

    def __call__(self, values: Float[Tensor, "row d_model"]) -> Float[Tensor, "row output"]:
        """Return the predictions of samples."""
        centred = values.double() - self.centre
        inside = centred @ self.basis.T
        apart = _squares(inside, self.points, self.metric)
        if self.metric is None:
            # The identity also sees what is outside the span, which later metrics do not.
            apart = apart + (centred.square().sum(1) - inside.square().sum(1)).clamp_min(0)[:, None]
        return torch.exp(-apart.sqrt() / self.scale) @ self.weights + self.offset

    def eigenvectors(self) -> tuple[Float[Tensor, " axis"], Float[Tensor, "axis d_model"]]:
        """Return the eigenvalues of the AGOP in descending order, and its eigenvectors in the features' own space."""
        sizes, vectors = torch.linalg.eigh(self.agop)
        return sizes.flip(0), (vectors.flip(1).T @ self.basis)


def direction(
    values: Float[Tensor, "prompt d_model"],
    target: Target,
    *,
    bandwidth: float | Sequence[float] = BANDWIDTHS,
    ridge: float | Sequence[float] = RIDGES,
    iterations: int | Sequence[int] = ITERATIONS,
    component: int = 0,
    held_out: float = 0.25,
    seed: int = 0,
) -> Fitted:
    """Return an eigenvector of the AGOP: the top one, unless `component` counts further.

    Args:
        bandwidth: L in median distances; one number, or several to choose from.
        ridge: the ridge of the regression, in multiples of the kernel's largest value (1).
        iterations: how many regressions; 1 is a plain kernel regression.
        held_out, seed: the share of prompts by which settings are chosen, and the seed that draws them.
    """
    component = checked_count("component", component, 0)
    machine, notes = chosen(values, target, bandwidth, ridge, iterations, held_out, seed)
    sizes, vectors = machine.eigenvectors()
    if component >= len(vectors):
        raise InputError(f"component={component}: these samples span {len(vectors)} dimensions.")
    total = float(sizes.sum())

    def predictor(some: Tensor) -> Tensor:
        return machine(some)[:, target.output]

    share = float(sizes[component]) / total if total > 0 else 0.0
    return Fitted(vectors[component], predictor=predictor, share=share, notes=notes)


def chosen(
    values: Float[Tensor, "prompt d_model"],
    target: Target,
    bandwidth: Any = BANDWIDTHS,
    ridge: Any = RIDGES,
    iterations: Any = ITERATIONS,
    held_out: float = 0.25,
    seed: int = 0,
) -> tuple[Machine, dict[str, float]]:
    """Choose the settings on held-out prompts, and return the machine of all samples with the settings."""
    widths, ridges = _amounts("bandwidth", bandwidth), _amounts("ridge", ridge)
    given = one_or_listed("iterations", iterations)
    rounds = sorted(
        {checked_count("iterations", one, 1, 100) for one in (given if isinstance(given, list) else [given])}
    )
    if not rounds:
        raise InputError("iterations=[]: expected at least one number.")
    share = checked_amount("held_out", held_out, above=0)
    if share >= 1:
        raise InputError(f"held_out={shown(held_out)}: expected a share of the prompts below 1.")
    combinations = list(product(widths, ridges))
    best = (combinations[0][0], combinations[0][1], rounds[-1])
    if len(combinations) * len(rounds) > 1:
        kept, held = target.split(share, checked_seed(seed))
        losses = {}
        span = _span(values)
        for width, amount in combinations:
            found = _machines(values[kept], target.rows(kept), span, width, amount, rounds[-1])
            for number in rounds:
                error = (found[number - 1](values[held]) - target.outputs[torch.from_numpy(held)]).square().mean()
                losses[width, amount, number] = float(error)
        best = min(losses, key=lambda one: losses[one])
    width, amount, number = best
    machine = _machines(values, target, _span(values), width, amount, number)[-1]
    return machine, {"bandwidth": width, "ridge": amount, "iterations": number}


def _machines(
    values: Tensor, target: Target, span: tuple[Tensor, Tensor], width: float, ridge: float, rounds: int
) -> list[Machine]:
    """Return the machine after each regression."""
    centre, basis = span
    points = (values.double() - centre) @ basis.T
    offset = target.outputs.mean(0)
    wanted = target.outputs - offset
    metric: Tensor | None = None
    found = []
    identity = torch.eye(len(points), dtype=torch.float64, device="cpu")
    for _ in range(rounds):
        apart = _squares(points, points, metric).sqrt()
        # Rounding leaves a small distance between a sample and itself.
        apart.fill_diagonal_(0)
        others = apart[~identity.bool()]
        scale = width * float(others.median()) if len(others) and float(others.median()) > 0 else width
        kernel = torch.exp(-apart / scale)
        weights = torch.linalg.solve(kernel + ridge * identity, wanted)
        # grad f(x) = -(1 / L) sum_j w_j k(x, x_j) M (x - x_j) / |x - x_j|_M; where x = x_j the kernel has no gradient.
        slopes = torch.where(apart > 0, kernel / apart.clamp_min(1e-300), torch.zeros_like(apart)) / scale
        grams = []
        for column in weights.T:
            pulls = slopes * column
            gradient = pulls @ points - pulls.sum(1, keepdim=True) * points
            gradient = gradient if metric is None else gradient @ metric
            grams.append(gradient.T @ gradient / len(points))
        agop = grams[target.output]
        found.append(Machine(centre, basis, points, metric, weights, scale, agop, offset))
        summed = torch.stack(grams).sum(0)
        metric = summed / summed.trace().clamp_min(1e-300)
    return found


def _span(values: Float[Tensor, "prompt d_model"]) -> tuple[Float[Tensor, " d_model"], Float[Tensor, "axis d_model"]]:
    """Return the mean of the samples and the orthonormal axes of their span: a rotation, which keeps all distances."""
    centre = values.double().mean(0)
    _, sizes, axes = torch.linalg.svd(values.double() - centre, full_matrices=False)
    kept = sizes > sizes.max() * 1e-10
    return centre, axes[kept] if bool(kept.any()) else axes[:1]


def _squares(
    rows: Float[Tensor, "row axis"], others: Float[Tensor, "other axis"], metric: Float[Tensor, "axis axis"] | None
) -> Float[Tensor, "row other"]:
    """Return the squared distances under a metric; the identity if it is `None`."""
    left = rows if metric is None else rows @ metric
    right = others if metric is None else others @ metric
    own, their = (left * rows).sum(1, keepdim=True), (right * others).sum(1)
    return (own + their - 2 * left @ others.T).clamp_min(0)


def _amounts(name: str, given: Any) -> list[float]:
    listed = one_or_listed(name, given)
    found = [checked_amount(name, one, above=0) for one in (listed if isinstance(listed, list) else [listed])]
    if not found:
        raise InputError(f"{name}=[]: expected at least one number.")
    return list(np.unique(found))
