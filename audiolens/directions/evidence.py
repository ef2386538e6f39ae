"""Compute the difference in means of two poles from running sums, and measure how reliable the direction is.

Prompts arrive one by one, the first half of each pole before the second, and only sums are stored. The halves give two
independent directions, whose cosine similarity shows how much of a direction is noise. The first half's direction is
tested on the second half's prompts, which are held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cosine_similarity

from audiolens.directions import shuffles
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.ranking import area, auc, ranks
from audiolens.vectors import unit

FEWEST_HALF = 4
"""`Evidence.stable_at` needs this many prompts per pole in the first half, to have curve points at 1, 2 and 4."""

N_SHUFFLES = 999
_OPTIONAL = ("means_p", "predictor_auc", "share", "gain")
LEVEL = 0.05


@guarded
@dataclass(frozen=True, eq=False)
class Evidence:
    """The reliability of a direction at each layer.

    Attributes:
        split_half_cosine: cosine similarity between the directions of the two halves of the prompts; 1 means no noise.
        separation: distance between the poles' means along the first half's direction, in pooled standard deviations
            of the held-out prompts (Cohen's d); it is NaN with fewer than two held-out prompts per pole.
        auc: probability that the projection onto the first half's direction is larger for a held-out positive prompt
            than for a held-out negative one.
        counts, stability: `stability[i]` is the cosine similarity between the direction of the first `counts[i]`
            prompts per pole and the direction of the other half. Where this curve is flat, more prompts change the
            direction little.
        p: permutation p-value of the AUC: the fraction of shuffles of the held-out prompts' labels whose largest AUC
            over all layers is at least this layer's AUC. Taking the largest AUC corrects for choosing the best layer.
            If a prompt has several clips, the labels of whole prompts are exchanged.
            `p` is `None` in files written by earlier versions.
        least_p: the smallest possible `p`, which an AUC of 1 would have. It is large if there are few held-out prompts,
            because many shuffles then reach an AUC of 1 at some layer. It is `None` in files written by earlier
            versions.
        means_p: permutation p-value of the distance between the poles' means, family-wise over layers. If it is large,
            there may be no difference in means to steer along, whatever an estimator returns. `al.estimate` computes
            it. It is `None` if there are too few prompts to test, and in directions of `difference_in_means`.
        predictor_auc: the AUC of the estimator's own predictor, which was fitted to the first half, on held-out
            prompts. Only estimators that are not linear have one ("rfm"). If it is high and `auc` is near .5, the
            concept is there, but along no single direction.
        share: the share of the gradients' squared length that is along the direction ("rfm"). If two directions have
            half each, the concept needs both.
        gain: by how many nats per code adding the vector made held-out clips likelier ("gradient").

    This evidence shows that the poles differ consistently. It does not show that the difference represents the concept,
    or that the model uses it.
    """

    split_half_cosine: Float[Tensor, " layer"]
    separation: Float[Tensor, " layer"]
    auc: Float[Tensor, " layer"]
    counts: Int[Tensor, " count"]
    stability: Float[Tensor, "count layer"]
    p: Float[Tensor, " layer"] | None = None
    least_p: Float[Tensor, ""] | None = None
    means_p: Float[Tensor, " layer"] | None = None
    predictor_auc: Float[Tensor, " layer"] | None = None
    share: Float[Tensor, " layer"] | None = None
    gain: Float[Tensor, " layer"] | None = None

    @classmethod
    def of_file(cls, tensors: Mapping[str, Tensor], n_layers: int) -> "Evidence":
        """Build the evidence from the tensors of a file.

        Raises:
            InputError: if a tensor is missing or unknown, or does not have one value per layer.
        """
        n_counts = len(tensors["counts"]) if "counts" in tensors and tensors["counts"].ndim == 1 else 0
        found_shapes = {name: (tuple(tensor.shape), _kind(tensor)) for name, tensor in tensors.items()}
        each = ((n_layers,), "real")
        expected = {"split_half_cosine": each, "separation": each, "auc": each, "counts": ((n_counts,), "whole")}
        expected["stability"] = ((n_counts, n_layers), "real")
        optional = {"p": each, "least_p": ((), "real"), **dict.fromkeys(_OPTIONAL, each)}
        wanted = {**expected, **{name: shape for name, shape in optional.items() if name in found_shapes}}
        if found_shapes != wanted or not n_counts:
            raise InputError(f"its evidence is not for {n_layers} layers.")
        return cls(**tensors)

    def stable_at(self, tolerance: float = 0.05) -> Float[Tensor, " layer"]:
        """Return how many prompts per pole are enough for a stable direction at each layer.

        The result is the smallest of `counts` from which the cosine similarity to the other half's direction stays
        within `tolerance` of the value for the whole first half. It is NaN if the first half has fewer than 4 prompts
        per pole (that is, fewer than 7 per pole in total), because the curve is then too short to judge.

        Facchiano et al. (2025) report that about 25 are enough. The counts double from each point to the next, so the
        resolution is coarse. The result is at most half the prompts per pole. It shows where more prompts stop helping,
        not that the direction is good. For the quality of the direction, see `split_half_cosine`.
        """
        if self.counts[-1] < FEWEST_HALF:
            return torch.full_like(self.split_half_cosine, torch.nan)
        near = (self.stability - self.stability[-1]).abs() <= tolerance
        settled = near.flip(0).long().cumprod(0).sum(0)
        # A curve that contains NaN never counts as settled.
        known = self.counts[len(self.counts) - settled.clamp(min=1)].to(self.stability.dtype)
        return known.masked_fill(settled == 0, torch.nan)

    @property
    def finding(self) -> str:
        """How well the best layer separates held-out prompts, compared with the best layer under shuffled labels."""
        layers = len(self.auc)
        highest = f"held-out AUC up to {float(self.auc.max()):.2f}"
        if self.p is None:
            return f"{highest}, the best of {layers}"
        least = float(self.p.min())
        return f"{self._means}{highest} ({self._caution(least)}p = {least:.3f}, the best of {layers}){self._predictor}"

    def columns(self) -> dict[str, Any]:
        """Return the values per layer, by the name of their column in `Directions.to_frame`."""
        named = {"split_half_cosine": self.split_half_cosine, "separation": self.separation, "auc": self.auc}
        named |= {"auc_p": self.p, **{name: getattr(self, name) for name in _OPTIONAL}}
        return {name: value.numpy() for name, value in named.items() if value is not None}

    @property
    def _means(self) -> str:
        if self.means_p is None or float(self.means_p.min()) <= LEVEL:
            return ""
        return f"the poles' means coincide within chance (p = {float(self.means_p.min()):.3f}), "

    @property
    def _predictor(self) -> str:
        if self.gain is not None:
            return f", held-out clips likelier by up to {float(self.gain.max()):.3f} nats per code"
        if self.predictor_auc is None:
            return ""
        return f", held-out AUC of the predictor up to {float(self.predictor_auc.max()):.2f}"

    def _caution(self, p: float) -> str:
        if p <= LEVEL:
            return ""
        few = self.least_p is not None and float(self.least_p) >= LEVEL
        return "too few held-out prompts to test: " if few else "no better than shuffled poles: "

    def __repr__(self) -> str:
        return f"Evidence(split-half cosine {_span(self.split_half_cosine)}, {self.finding})"


class Contrast:
    """Running sums of the activations of two poles (index 0 negative, 1 positive), each split into two halves."""

    def __init__(self, n_negative: int, n_positive: int) -> None:
        self.sizes = (n_negative, n_positive)
        # If the number of prompts is odd, the first half has one prompt more. Even a single prompt therefore gives a
        # direction (without a second half).
        self.first = tuple((size + 1) // 2 for size in self.sizes)
        self.counts = [0, 0]
        self.sums: Tensor | None = None
        self.norms = torch.zeros(0, dtype=torch.float32, device="cpu")
        self.snapshots: dict[int, Tensor] = {}
        self.scores: tuple[list[Tensor], list[Tensor]] = ([], [])

    def add(
        self,
        values: Float[Tensor, "layer row d_model"],
        norms: Float[Tensor, "layer row"],
        positive: Bool[Tensor, " row"],
    ) -> None:
        """Add one vector per prompt and layer, with the mean norm of the activations that the vector averages."""
        # Sums of many similar numbers lose precision in float32.
        values = values.double()
        if self.sums is None:
            self.sums = values.new_zeros(2, 2, values.shape[0], values.shape[-1])
            self.norms = values.new_zeros(values.shape[0])
        self.norms += norms.double().sum(1)
        for row, pole in enumerate(positive.long().tolist()):
            half = int(self.counts[pole] >= self.first[pole])
            vector = values[:, row]
            if half:
                self.scores[pole].append((vector * unit(self._half(0))).sum(-1))
            self.sums[half, pole] += vector
            self.counts[pole] += 1
            self._snap()

    def difference(self) -> Float[Tensor, "layer d_model"]:
        """Return the positive pole's mean minus the negative pole's, over all prompts added."""
        negative, positive = self._sums().sum(0)
        return positive / self.counts[1] - negative / self.counts[0]

    def residual_norms(self) -> Float[Tensor, " layer"]:
        """Return the mean norm of the activations, over both poles."""
        return self.norms / sum(self.counts)

    def evidence(self) -> Evidence | None:
        """Return the evidence, or `None` if a pole has a single prompt and cannot be split into halves."""
        if min(self.sizes) < 2:
            return None
        negative, positive = (torch.stack(scores, dim=1) for scores in self.scores)
        return measured(positive, negative, self._half(0), self._half(1), self.snapshots)

    def _sums(self) -> Tensor:
        if self.sums is None:
            raise RuntimeError("nothing was added.")
        return self.sums

    def _half(self, half: int) -> Tensor:
        negative, positive = self._sums()[half]
        sizes = [self.first[pole] if half == 0 else self.sizes[pole] - self.first[pole] for pole in (0, 1)]
        return positive / sizes[1] - negative / sizes[0]

    def _snap(self) -> None:
        """Store the direction of the first 1, 2, 4, ... prompts per pole, and the direction of the whole first half."""
        seen = min(self.counts)
        whole = min(self.first)
        due = seen == whole or (seen & (seen - 1)) == 0
        if due and 0 < seen <= whole and seen not in self.snapshots and max(self.counts) <= max(self.first):
            negative, positive = self._sums()[0]
            self.snapshots[seen] = positive / self.counts[1] - negative / self.counts[0]


def measured(
    positive: Float[Tensor, "layer prompt"],
    negative: Float[Tensor, "layer other_prompt"],
    first: Float[Tensor, "layer d_model"],
    second: Float[Tensor, "layer d_model"],
    early: Mapping[int, Float[Tensor, "layer d_model"]],
    prompts: Int[np.ndarray, " any_prompt"] | None = None,
) -> Evidence:
    """Return the evidence of a direction, given those of both halves.

    Args:
        positive, negative: projections of the prompts of the second half onto the direction of the first.
        early: the direction of the first n prompts per pole, by n, of which the last is the whole first half.
        prompts: the number of the prompt of each projection, positive ones first, if a prompt may have several.
    """
    found = _auc(positive, negative)
    return Evidence(
        split_half_cosine=cosine_similarity(first, second, dim=-1).float(),
        separation=_cohens_d(positive, negative).float(),
        auc=found.float(),
        counts=torch.tensor(list(early), device="cpu"),
        stability=torch.stack([cosine_similarity(one, second, dim=-1) for one in early.values()]).float(),
        p=_p_of_auc(positive, negative, found, prompts).float(),
        least_p=_p_of_auc(positive, negative, torch.ones(1, device="cpu"), prompts)[0].float(),
    )


def _cohens_d(
    positive: Float[Tensor, "layer prompt"], negative: Float[Tensor, "layer other_prompt"]
) -> Float[Tensor, " layer"]:
    sizes = (positive.shape[1], negative.shape[1])
    if min(sizes) < 2:
        return positive.new_full((len(positive),), torch.nan)
    squares = [(side - side.mean(1, keepdim=True)).square().sum(1) for side in (positive, negative)]
    pooled = ((squares[0] + squares[1]) / (sum(sizes) - 2)).sqrt()
    return (positive.mean(1) - negative.mean(1)) / pooled


def _auc(
    positive: Float[Tensor, "layer prompt"], negative: Float[Tensor, "layer other_prompt"]
) -> Float[Tensor, " layer"]:
    return torch.from_numpy(auc(positive.numpy(), negative.numpy()))


def _p_of_auc(
    positive: Float[Tensor, "layer prompt"],
    negative: Float[Tensor, "layer other_prompt"],
    found: Float[Tensor, " auc"],
    prompts: Int[np.ndarray, " any_prompt"] | None,
) -> Float[Tensor, " auc"]:
    """Return family-wise p-values over the layers: each shuffle of the labels contributes the AUC of its best layer."""
    sizes = positive.shape[1], negative.shape[1]
    if prompts is not None and len(np.unique(prompts)) < len(prompts):
        labels = torch.arange(sum(sizes), device="cpu") < sizes[0]
        dealt = (shuffles.permuted(labels, N_SHUFFLES, 0, prompts).T > 0).double().numpy()
    else:
        poles = np.zeros((sum(sizes), N_SHUFFLES))
        poles[: sizes[0]] = 1
        dealt = np.random.default_rng(0).permuted(poles, axis=0)
    highest = torch.from_numpy(area(ranks(torch.cat([positive, negative], dim=1).numpy()) @ dealt, *sizes)).amax(0)
    return (1 + (highest[None] >= found[:, None]).sum(1)).float() / (N_SHUFFLES + 1)


def _span(values: Tensor) -> str:
    return f"{float(values.min()):.2f} to {float(values.max()):.2f}"


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "real"
    return "other" if tensor.is_complex() or tensor.dtype == torch.bool else "whole"
