"""The loss of a sparse autoencoder, one step of its training, and the weights that result.

Inputs are scaled so that their variance per feature is 1. The loss is the squared error relative to that variance, plus
an auxiliary term with which latents that are dead (no longer active) learn to reconstruct what the others leave (Gao
et al. 2024, arXiv 2406.04093). "topk" keeps the k largest latents of each vector (the same paper), "batchtopk" the
k x n largest of a batch of n (Bussmann et al. 2024, arXiv 2412.06410), and "jumprelu" those above a learned threshold,
with straight-through gradients (Rajamanoharan et al. 2024, arXiv 2407.14435) and a penalty on the squared relative
deviation of the number of active latents from k. Rows of the decoder have norm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.features.sae import SAE, top
from audiolens.errors import InputError

Kind = Literal["topk", "batchtopk", "jumprelu"]
AUXILIARY = 1 / 32
"""The weight of the auxiliary loss, as in Gao et al."""
BANDWIDTH = 0.1
"""The width of the kernel with which gradients reach a threshold, in units of a typical pre-activation."""
SPARSITY = 0.3
"""The weight of the penalty on the number of active latents of "jumprelu"."""
THRESHOLD_RATE = 0.01
"""The rate at which the threshold of "batchtopk" follows the smallest active latent of a batch."""
WARM_UP, DECAY = 0.02, 0.2
"""The shares of the training in which the learning rate rises from 0, and falls to 0."""
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")
_ALIKE = 1e-10
"""The variance of activations that are alike up to rounding, relative to their squared norm."""


class _Above(torch.autograd.Function):
    """Whether pre-activations exceed their threshold, times `value`, with straight-through gradients."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, counted: bool) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        ctx.counted = counted
        above = (pre > threshold).to(pre.dtype)
        return above if counted else above * pre.relu()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        pre, threshold = ctx.saved_tensors
        near = (((pre - threshold) / BANDWIDTH).abs() < 0.5).to(pre.dtype) / BANDWIDTH
        if ctx.counted:
            return None, (-near * grads[0]).sum(0), None
        return (pre > threshold).to(pre.dtype) * grads[0], (-threshold * near * grads[0]).sum(0), None


@dataclass(eq=False)
class Learner:
    """A sparse autoencoder while it is trained, in units of scaled inputs.

    Attributes:
        weights: the weights, with "threshold" for "jumprelu" (per latent) and "batchtopk" (one).
        adam: the optimiser of the weights.
        silent: for each latent, the number of vectors since it was last active.
        scale: the factor of the inputs.
        step, seen: the numbers of batches and of vectors so far.
    """

    kind: Kind
    k: int
    rate: float
    n_vectors: int
    dead_after: int
    weights: dict[str, Tensor]
    silent: Int[Tensor, " latent"]
    scale: float
    step: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        for name, value in self.weights.items():
            value.requires_grad_(name != "threshold" or self.kind == "jumprelu")
        trained = [value for value in self.weights.values() if value.requires_grad]
        self.adam = torch.optim.Adam(trained, lr=self.rate, betas=(0.9, 0.999), eps=1e-8)

    @classmethod
    def begin(
        cls, kind: Kind, k: int, width: int, rate: float, n_vectors: int, first: Float[Tensor, "vector d_in"], seed: int
    ) -> Learner:
        """Return a learner with random weights, fitted to the mean and the scale of the first vectors.

        Raises:
            InputError: if the vectors are not finite, or are all alike.
        """
        if not bool(torch.isfinite(first).all()):
            raise InputError(
                "the activations contain NaN or infinite values: read them in a dtype with a larger range, such as "
                "bfloat16 or float32."
            )
        mean = first.mean(0)
        spread = float((first - mean).pow(2).sum(-1).mean())
        if not spread > _ALIKE * float(first.pow(2).sum(-1).mean()):
            raise InputError("the activations of all clips and steps are alike: choose another site.")
        scale = (first.shape[1] / spread) ** 0.5
        # Drawn on the CPU, so that a seed gives the same weights on every device.
        drawn = torch.randn(width, first.shape[1], generator=torch.Generator().manual_seed(seed)).to(first.device)
        decoder = drawn / drawn.norm(dim=-1, keepdim=True)
        weights = {
            "W_enc": decoder.T.contiguous().clone(), "b_enc": first.new_zeros(width), "W_dec": decoder,
            "b_dec": mean * scale,
        }  # fmt: skip
        if kind == "batchtopk":
            weights["threshold"] = first.new_zeros(())
        if kind == "jumprelu":
            pre = (first * scale - weights["b_dec"]) @ weights["W_enc"]
            # A batch begins with about twice as many active latents as asked for.
            count = min(2 * k * len(first), pre.numel() // 2)
            weights["threshold"] = first.new_full((width,), max(float(pre.flatten().topk(count).values[-1]), BANDWIDTH))
        silent = torch.zeros(width, dtype=torch.long, device=first.device)
        return cls(kind, k, rate, n_vectors, max(n_vectors // 20, 1), weights, silent, scale)

    def learn(self, vectors: Float[Tensor, "vector d_in"]) -> dict[str, Tensor]:
        """Take one step, and return the share of variance not explained and the mean number of active latents."""
        x = vectors * self.scale
        W_enc, b_enc, W_dec, b_dec = (self.weights[name] for name in NAMES)
        pre = (x - b_dec) @ W_enc + b_enc
        latents, penalty = self._latents(pre)
        error = x - (latents @ W_dec + b_dec)
        loss = error.pow(2).sum(-1).mean() / x.shape[1]
        total = loss + penalty
        active = (latents.detach() > 0).any(0)
        dead = self.silent > self.dead_after
        if bool(dead.any()):
            total = total + AUXILIARY * self._auxiliary(pre[:, dead], W_dec[dead], error.detach())
        self._move(total)
        self.silent = torch.where(active, 0, self.silent + len(x))
        self.step, self.seen = self.step + 1, self.seen + len(x)
        return {"unexplained": loss.detach(), "l0": (latents.detach() > 0).float().sum(-1).mean()}

    def refuse_infinite(self) -> None:
        """Raise an error if a weight is NaN or infinite, because no later step can change that.

        Raises:
            InputError: if one is.
        """
        if not all(bool(torch.isfinite(value).all()) for value in self.weights.values()):
            raise InputError(
                f"the weights of the SAE are NaN or infinite after {self.step} steps: give a smaller learning_rate "
                f"than {self.rate:g}, or activations without NaN and infinity."
            )

    def sae(self, **facts: Any) -> SAE:
        """Return the SAE for inputs that are not scaled: latents and biases shrink, and directions keep their norm."""
        found = {name: self.weights[name].detach().clone() for name in NAMES}
        found |= {name: found[name] / self.scale for name in ("b_enc", "b_dec")}
        threshold = self.weights.get("threshold")
        if threshold is not None:
            threshold = threshold.detach().expand(len(self.silent)).clone() / self.scale
        topk = self.kind == "topk"
        return SAE(
            **found, activation="topk" if topk else "jumprelu", k=self.k if topk else None, threshold=threshold,
            kind=self.kind, **facts,
        )  # fmt: skip

    def _latents(self, pre: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return the latents, and the penalty on the number of active ones."""
        if self.kind == "topk":
            return top(pre, self.k), 0.0
        threshold = self.weights["threshold"]
        if self.kind == "jumprelu":
            latents = cast(Tensor, _Above.apply(pre, threshold, False))
            count = cast(Tensor, _Above.apply(pre, threshold, True)).sum(-1).mean()
            return latents, SPARSITY * (count / self.k - 1) ** 2
        found = top(pre.flatten(), self.k * len(pre)).view_as(pre)
        with torch.no_grad():
            least = torch.where(found > 0, found, torch.inf).min()
            moved = threshold + THRESHOLD_RATE * (least - threshold) if self.step else least
            threshold.copy_(torch.where(least.isfinite(), moved, threshold))
        return found, 0.0

    def _auxiliary(self, pre: Tensor, decoder: Tensor, error: Tensor) -> Tensor:
        """Return the error with which the dead latents reconstruct the error of the others, relative to it."""
        found = top(pre, min(pre.shape[-1], max(self.k, error.shape[1] // 2))) @ decoder
        return (error - found).pow(2).sum(-1).mean() / error.pow(2).sum(-1).mean().clamp_min(1e-12)

    def _move(self, loss: Tensor) -> None:
        done = self.seen / self.n_vectors
        factor = min(1.0, (done + 1e-3) / WARM_UP, max(0.0, 1 - done) / DECAY)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * factor
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        decoder = self.weights["W_dec"]
        with torch.no_grad():
            assert decoder.grad is not None
            # A step along a row would only change its norm, which is set to 1 below.
            decoder.grad -= (decoder.grad * decoder).sum(-1, keepdim=True) * decoder
            trained = [value for value in self.weights.values() if value.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            self.adam.step()
            decoder /= decoder.norm(dim=-1, keepdim=True).clamp_min(1e-8)
            if self.kind == "jumprelu":
                self.weights["threshold"].clamp_(min=0)
