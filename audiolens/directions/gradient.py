"""Trained directions: the vector under which the model finds the other pole's clips least surprising.

Both poles' clips are read with the prompts of the *other* pole. The vector is added for positive clips and subtracted
for negative ones, and is trained by gradient descent (Adam) to minimise the mean negative log-likelihood per code. A
strength of 1 should thus make up for the opposite prompt. Vectors trained on a model's own loss are those of Subramani
et al. (2022, arXiv 2205.05124); training both signs of one vector at once follows Cao et al. (2024, arXiv 2406.00045),
who train on preferences. The vector's norm is bounded by that of the difference in means, because a longer vector would
be another strength rather than another direction. Training stops when pairs of prompts that were held out do not
become likelier any more, and the best vector until then is returned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from audiolens.checks import checked_amount, checked_count, checked_seed, shown
from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.model import text
from audiolens.model.sites import Site
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit


@dataclass(frozen=True)
class Training:
    """The settings of the training.

    Attributes:
        steps: the largest number of steps of gradient descent.
        learning_rate: how far a step moves the vector, in multiples of the bound.
        max_norm: the bound, in multiples of the norm of the difference in means.
        held_out: the share of pairs of prompts that decide when to stop.
        patience: how many checks in a row (one every `every` steps) may bring no improvement.
        train_batch: the number of clips per step.
        seed: which pairs are held out, and the order of the others.
    """

    steps: int = 60
    learning_rate: float = 0.1
    max_norm: float = 1.0
    held_out: float = 0.25
    patience: int = 3
    every: int = 5
    train_batch: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "patience", "every", "train_batch"):
            checked_count(name, getattr(self, name))
        for name in ("learning_rate", "max_norm", "held_out"):
            checked_amount(name, getattr(self, name), above=0)
        if self.held_out >= 1:
            raise InputError(f"held_out={shown(self.held_out)}: expected a share of the pairs below 1.")
        checked_seed(self.seed)

    def held_pairs(self, n: int) -> set[int]:
        """Return which of `n` pairs of prompts are held out.

        Raises:
            InputError: if there are fewer than two pairs.
        """
        if n < 2:
            raise InputError("method='gradient' needs at least 2 prompts per pole, because one of them is held out.")
        order = torch.randperm(n, generator=_generator(self), device="cpu")
        return set(order[: min(n - 1, max(1, round(self.held_out * n)))].tolist())


@dataclass(frozen=True, eq=False)
class Clips:
    """The clips of both poles, each with a prompt of the other pole, and the sign with which the vector is added.

    Clip i of either pole belongs to pair i.
    """

    prompts: tuple[str | None, ...]
    codes: Int[Tensor, "row codebook frame"]
    signs: Float[Tensor, " row"]
    pairs: Int[Tensor, " row"]

    @classmethod
    def of(
        cls,
        positive: Sequence[str | None],
        negative: Sequence[str | None],
        codes: tuple[Int[Tensor, "row codebook frame"], Int[Tensor, "row codebook frame"]],
    ) -> "Clips":
        n, m = len(positive), len(negative)
        opposed = [negative[row % m] for row in range(n)] + [positive[row % n] for row in range(m)]
        signs = torch.cat([torch.ones(n, device="cpu"), -torch.ones(m, device="cpu")])
        pairs = torch.cat([torch.arange(n, device="cpu"), torch.arange(m, device="cpu")])
        return cls(tuple(opposed), torch.cat([part.cpu() for part in codes]), signs, pairs)

    def divided(self, training: Training) -> tuple[list[int], list[int]]:
        """Return the rows to train on and the rows to hold out, by pair."""
        held = training.held_pairs(int(self.pairs.max()) + 1)
        sides: tuple[list[int], list[int]] = ([], [])
        for row, pair in enumerate(self.pairs.tolist()):
            sides[pair in held].append(row)
        return sides


@dataclass(frozen=True, eq=False)
class Trained:
    """The vector of one layer; the rows that were held out; their nats per code with the vector and without."""

    vector: Float[Tensor, " d_model"]
    held: list[int]
    before: float
    after: float
    steps: int


def train(
    lens: AudioLens, clips: Clips, site: Site, width: int, bound: float, training: Training, progress: bool
) -> Trained:
    """Train the vector of one site, of the site's `width`, from zero, within a norm of `bound`.

    Raises:
        InputError: if `bound` is 0, or if gradients are off (`torch.inference_mode`).
    """
    if torch.is_inference_mode_enabled():
        raise InputError("torch.inference_mode() is active, but training needs gradients: leave this mode first.")
    if not bound > 0:
        raise InputError(f"the poles have the same mean at {site.name}, so the norm of a trained vector has no bound.")
    kept, held = clips.divided(training)
    batches = _Batches(lens, clips, training)
    vector = torch.zeros(width, device=lens.device, requires_grad=True)
    # A step of Adam moves every coordinate by about the learning rate.
    rate = training.learning_rate * bound / width**0.5
    adam = torch.optim.Adam([vector], lr=rate)
    before = least = batches.nats(held, site, vector)
    best, waited, done = vector.detach().clone(), 0, 0
    draws = batches.endless(kept)
    for step in tqdm(range(1, training.steps + 1), desc=site.name, unit="step", disable=not progress):
        done = step
        vector.grad = batches.gradient(next(draws), site, vector)
        adam.step()
        with torch.no_grad():
            vector *= min(1.0, bound / float(vector.norm().clamp_min(1e-30)))
        if step % training.every and step < training.steps:
            continue
        now = batches.nats(held, site, vector)
        if now < least:
            best, least, waited = vector.detach().clone(), now, 0
        else:
            waited += 1
            if waited >= training.patience:
                break
    return Trained(best.cpu(), held, before, least, done)


class _Batches:
    """Runs the model on batches of rows. Without a mask for the text, a batch has prompts of one length."""

    def __init__(self, lens: AudioLens, clips: Clips, training: Training) -> None:
        self.lens, self.clips, self.training = lens, clips, training
        self.size = whole_batch_size(training.train_batch)
        limit = text.token_limit(lens.model, lens.tokenizer)
        sizes = text.lengths(clips.prompts, lens.tokenizer, limit)
        # Gradients keep the activations of every block, and copies of the logits over all codes.
        self.fit = reading_fit(
            lens.traced_model, clips.prompts, clips.codes.shape[-1], rows="clips being trained on",
            kept_blocks=lens.config.n_layers,
        )  # fmt: skip
        self.lengths = [lens.config.prefix(size) for size in sizes]

    def cut(self, rows: Sequence[int]) -> list[list[int]]:
        """Return the rows in batches, in the order given."""
        parts: list[list[int]] = []
        for length in dict.fromkeys(self.lengths[row] for row in rows):
            mine = [row for row in rows if self.lengths[row] == length]
            parts += [mine[start : start + self.size] for start in range(0, len(mine), self.size)]
        return parts

    def endless(self, rows: list[int]) -> Iterator[list[int]]:
        """Yield batches for ever, in another order each time round."""
        generator = _generator(self.training)
        while True:
            order = torch.randperm(len(rows), generator=generator, device="cpu").tolist()
            yield from self.cut([rows[place] for place in order])

    def nats(self, rows: list[int], site: Site, vector: Tensor) -> float:
        """Return the mean nats per code of rows."""
        with torch.no_grad():
            found = self.fit.each(self.cut(rows), lambda part: float(self._loss(part, site, vector.detach())))
            return sum(len(part) * nats for part, nats in found) / len(rows)

    def gradient(self, rows: list[int], site: Site, vector: Tensor) -> Tensor:
        """Return the gradient of the mean nats per code of rows: that of their parts, weighted by size."""

        def part(some: list[int]) -> Tensor:
            with torch.enable_grad():
                share = len(some) / len(rows)
                return torch.autograd.grad(share * self._loss(some, site, vector), vector)[0]

        return torch.stack([found for _, found in self.fit.each([rows], part)]).sum(0)

    def _loss(self, rows: list[int], site: Site, vector: Tensor) -> Tensor:
        """Return the mean nats per code, with the vector added at every step of the conditional branch."""
        clips, lens = self.clips, self.lens
        codes = clips.codes[rows]
        added = clips.signs[rows].to(vector)[:, None, None] * vector
        with lens.trace([clips.prompts[row] for row in rows], codes=codes) as tracer:
            place = lens.site(site.name)
            value = place.value
            place.value = value + added.to(value.dtype)
            logits = nnsight.save(tracer.result)
        frames = codes.shape[-1]
        aligned = [logits[:, book, delay : delay + frames] for book, delay in enumerate(lens.config.delays)]
        flat = torch.stack(aligned, dim=1).float().flatten(0, 2)
        return cross_entropy(flat, codes.flatten().to(flat.device))


def _generator(training: Training) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(training.seed)
