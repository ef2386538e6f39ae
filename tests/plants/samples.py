"""Synthetic samples with a planted concept, of two poles or without a difference in means."""

from typing import Any, Literal

import torch

from audiolens.directions.samples import Samples
from audiolens.model.provenance import Provenance

WIDTH = 16
META = Provenance(model="synthetic", weights="", n_layers=4, label="planted")
Plant = Literal["shift", "nothing", "even", "xor", "radial"]


def samples_of(values: torch.Tensor, labels: torch.Tensor, **more: Any) -> Samples:
    """Samples that state how they were read, with a prompt each."""
    prompts = more.pop("prompts", tuple(map(str, range(len(labels)))))
    layers = tuple(range(len(values)))
    return Samples(values, labels, layers, prompts, META, values.norm(dim=-1).mean(1), **more)


def planted(kind: Plant, pairs: int = 150, seed: int = 0, shift: float = 2.0) -> Samples:
    """Noise of variance 1 along every axis, in which the poles (whose pairs share a part) differ in axis 0 or axes 0
    and 1.

    "shift": the means differ along axis 0. "nothing": the poles do not differ. In the others, the means are the same,
    and so is the covariance of both poles together: "even": axis 0 is large, with either sign, or small; "xor": axes 0
    and 1 have the same sign, or opposite ones; "radial": axes 0 and 1 are far from the origin, or near.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(2 * pairs) < pairs
    values = torch.randn(2 * pairs, WIDTH, generator=generator)
    sign = torch.randint(0, 2, (2, 2 * pairs), generator=generator) * 2.0 - 1
    if kind == "shift":
        values[labels, 0] += shift
    if kind == "even":
        values[:, 0] = torch.where(labels, 1.35, 0.2) * sign[0] + 0.2 * values[:, 0]
    if kind == "xor":
        both = torch.stack([sign[0], torch.where(labels, 1, -1) * sign[0]], dim=1)
        values[:, :2] = 0.95 * both + 0.3 * values[:, :2]
    if kind == "radial":
        ring = torch.nn.functional.normalize(values[:, :2], dim=1)
        values[:, :2] = torch.where(labels, 1.9, 0.5)[:, None] * ring + 0.2 * torch.randn(
            2 * pairs, 2, generator=generator
        )
    return samples_of(values[None], labels)
