"""Compare, in the Fisher metric, how words and a direction at each place shift the next-code logits.

In the Fisher metric, a small shift causes a Kullback-Leibler divergence of half its squared length. The inner product
of two shifts measures how much of one shift the other contains. A cosine near 1 means that the direction has the same
effect as the words, and little other effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.likelihood import by_frame
from analysis.placement.rules import place_name
from analysis.placement.shared_prefix import Unsteered
from audiolens.checks import shown
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer
from audiolens.directions.strategies import STRATEGIES, Strategy, changed_blocks
from audiolens.errors import InputError
from audiolens.model.sites import checked_layers
from audiolens.prompts import PromptSet
from audiolens.tracing.fitting import reading_fit
from audiolens.tracing.overflow import checked_logits

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.interventions import Intervention

STEP = 0.25
"""The strength at which shifts are measured, with both signs. It is divided by the number of changed blocks.

The strength is small, but the shifts are far above the rounding error of float32.
"""
COARSE_STEP = 1.0
"""The strength for models in half precision, which has a larger rounding error."""
FRAMES = 64
"""Number of frames compared at a time. A long clip's predictions might not all fit into memory at once."""
_Moved = tuple[Tensor, Tensor, float]
"""Logits "row codebook frame vocab" under a strength and under minus this strength, and the strength."""
_Part = tuple[np.ndarray, np.ndarray, int, int]
"""Sums of every place, "place sum row", and of the words, "sum row"; the steps of both, and those of the words."""
PLACED = tuple(name for name, placing in STRATEGIES.items() if placing.changes not in ("band", "heads"))
"""The strategies that a placement can choose. A band or a set of heads has no single block to compare with others."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A candidate place, with its strategy and the layer whose vector is added.

    `layer` is `None` if every block has its own vector.
    """

    strategy: Strategy
    layer: int | None
    directions: Directions

    @property
    def name(self) -> str:
        return place_name(self.strategy, self.layer)

    @cached_property
    def targets(self) -> int:
        """The number of blocks that are changed."""
        return len(changed_blocks(self.strategy, self.layer, self.directions))

    def steps(self, strength: float | list[float]) -> list[Intervention]:
        return steer(self.directions, self.strategy, layer=self.layer, strength=strength)


@dataclass(frozen=True, eq=False)
class Shifts:
    """Inner products of logit shifts, summed over the codes of each row, in squared logits.

    Candidates' shifts are per unit of strength.

    Attributes:
        inner: inner product of a candidate's shift with the shift of the words.
        own: inner product of a candidate's shift with itself.
        damage: Kullback-Leibler divergence from the unsteered predictions to those at the strength that was used,
            averaged over both signs and summed over the codes of each row, in nats.
        words: inner product of the shift of the words with itself.
        words_damage: divergence from the predictions for the neutral prompt to those for the prompt with a pole's
            words, averaged over both poles and summed over the codes of each row, in nats.
        constancy: cosine between the shift of the words and its mean over the frames of the row's clip.
        row_steps: number of decoder steps, summed over rows.
        words_steps: the part of `row_steps` in which no direction is added.
    """

    inner: Float[np.ndarray, "candidate row"]
    own: Float[np.ndarray, "candidate row"]
    damage: Float[np.ndarray, "candidate row"]
    words: Float[np.ndarray, " row"]
    words_damage: Float[np.ndarray, " row"]
    constancy: Float[np.ndarray, " row"]
    row_steps: int
    words_steps: int

    def alignment(self, rows: Int[np.ndarray, " row"] | slice = slice(None)) -> Float[np.ndarray, " candidate"]:
        """Return the cosine between each candidate's shift and that of the words, over all codes of the given rows."""
        length = np.sqrt(self.own[:, rows].sum(1) * self.words[rows].sum())
        return _quotient(self.inner[:, rows].sum(1), length)

    @property
    def gain(self) -> Float[np.ndarray, " candidate"]:
        """The size of the shift at a strength of 1, as a fraction of the shift from the negative to the positive pole's
        words.
        """
        return self.inner.sum(1) / self.words.sum()


def asked_in_words(lens: AudioLens, sets: PromptSet, neutral: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the neutral prompts with the positive pole's words, and the same prompts with the negative pole's words.

    If the set has no words for its poles, its own pairs are returned.

    Raises:
        InputError: if there are too few pairs, or if the text is a prefix and the prompts of a pair have different
            numbers of tokens. Different numbers of tokens would displace all later steps, and the shift would include
            this displacement.
    """
    positive, negative = words_of(sets, neutral)
    if lens.config.has_prefix:
        sizes = [[len(tokens) for tokens in lens.text_tokens(side)] for side in (positive, negative)]
        apart = [row for row, (a, b) in enumerate(zip(*sizes, strict=True)) if a != b]
        if apart:
            row = apart[0]
            raise InputError(
                f"{shown(positive[row])} and {shown(negative[row])} have {sizes[0][row]} and {sizes[1][row]} tokens. "
                "If the text is a prefix, words of unequal length displace every step: use words with the same number "
                "of tokens."
            )
    return positive, negative


def words_of(sets: PromptSet, neutral: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the prompts whose effect is compared with the effect of the direction.

    They are neutral prompts with each pole's words, or the pairs of the set.
    """
    if sets.positive_words and sets.negative_words:
        positive, negative = ([sets.prompted(prompt, pole) for prompt in neutral] for pole in sets.poles)
        return positive, negative
    wanted = len(neutral)
    if not sets.matched:
        raise InputError(
            f"{sets.concept}: a set without words for its poles is compared pair by pair, but its poles have "
            f"{len(sets.positive)} and {len(sets.negative)} prompts: give words, or the same number of prompts per "
            "pole."
        )
    if min(len(sets.positive), len(sets.negative)) < wanted:
        raise InputError(f"{sets.concept}: a set without words for its poles needs {wanted} prompts per pole here.")
    return list(sets.positive[:wanted]), list(sets.negative[:wanted])


def checked_strategies(strategies: Sequence[str]) -> None:
    if isinstance(strategies, str):
        raise InputError(f"strategies={shown(strategies)}: expected a list, such as [{shown(strategies)}].")
    for strategy in strategies:
        if strategy not in PLACED:
            raise InputError(f"strategy={shown(strategy)} is not a candidate: expected some of {', '.join(PLACED)}.")
    if not strategies:
        raise InputError(f"no strategies: give some of {', '.join(PLACED)}.")


def candidates(
    directions: Directions, strategies: Sequence[Strategy], layers: int | Sequence[int] | None
) -> list[Candidate]:
    """Return a candidate for every strategy at every layer whose vector is not zero."""
    checked_strategies(strategies)
    wanted = directions.layers if layers is None else checked_layers(layers, directions.meta.n_layers)
    missing = [layer for layer in wanted if layer not in directions]
    if missing:
        raise InputError(f"no direction at layers {missing}: these directions have layers {list(directions.layers)}.")
    longest = float(directions.norms.max())
    there = [layer for layer in wanted if float(directions[layer].norm()) > 1e-6 * longest]
    if not there or longest == 0:
        raise InputError("every direction has length 0, so the poles do not differ: give poles that differ.")
    found = []
    for strategy in dict.fromkeys(strategies):
        if STRATEGIES[strategy].uses_one_layer:
            found += [Candidate(strategy, layer, directions) for layer in there]
        else:
            found.append(Candidate(strategy, None, directions.at(there)))
    return found


def shifts_of(
    lens: AudioLens,
    neutral: Sequence[str],
    poles: tuple[Sequence[str], Sequence[str]],
    codes: Int[Tensor, "row codebook frame"],
    places: Sequence[Candidate],
    *,
    batch_size: int,
    strengths: Sequence[float] | None = None,
    words_added: bool = False,
    progress: str | None = None,
) -> Shifts:
    """Return the shifts caused by the poles' words and by the direction at every place, on the same codes.

    `strengths` are the strengths at which the direction is added at each place, with both signs. They default to `STEP`
    divided by the number of blocks that are changed. `words_added` states that the poles' prompts are the neutral ones
    with a pole's words, and can be compared with them step by step. Otherwise, each pole is taken to shift the
    predictions by half of the shift between the poles.
    """
    half = max(1, batch_size // 2)
    each = 3 + len(places)
    bar = tqdm(total=len(neutral) * each, desc=progress, unit="row", disable=progress is None)

    def part(rows: slice) -> _Part:
        run = _Run(lens, list(neutral[rows]), codes[rows])
        # A batch that is divided begins again.
        bar.update(rows.start * each - bar.n)
        unsteered = run.logits(run.prompts)
        base = unsteered.softmax(-1)
        ends = [run.logits(list(side[rows])) for side in poles]
        words = ends[0] - ends[1]
        if not words_added:
            ends = [unsteered + words / 2, unsteered - words / 2]
        words_steps = run.row_steps
        of_words = np.array([_product(base, words, words), _divergence(unsteered, ends), _constancy(base, words)])
        bar.update(3 * len(run.prompts))
        found = []
        for up, down, size in run.moved(places, strengths):
            shift = (up - down) / (2 * size)
            found.append(
                (_product(base, shift, words), _product(base, shift, shift), _divergence(unsteered, (up, down)))
            )
            bar.update(len(run.prompts))
        return np.array(found).reshape(len(places), 3, -1), of_words, run.row_steps, words_steps

    traced, config = lens.traced_model, lens.config
    # Every place is compared with the logits of the unsteered run and of both poles, in single precision.
    logits = 4 * config.n_codebooks * codes.shape[-1] * config.vocab_size
    fit = reading_fit(traced, list(neutral), codes.shape[-1], half, rows="rows being steered at every place",
                      kept_blocks=config.n_layers, more=lambda: 8 * logits)  # fmt: skip
    with bar, torch.no_grad():
        parts = [found for _, found in fit.run(len(neutral), part)]
    of_places, of_words, spent, words_steps = zip(*parts, strict=True)
    inner, own, damage = np.concatenate(of_places, axis=2).swapaxes(0, 1)
    lengths, words_damage, constancy = np.concatenate(of_words, axis=1)
    return Shifts(inner, own, damage, lengths, words_damage, constancy, sum(spent), sum(words_steps))


class _Run:
    """Run forward passes over one batch of rows, and count their steps."""

    def __init__(self, lens: AudioLens, prompts: list[str], codes: Tensor) -> None:
        self.lens, self.prompts, self.codes = lens, prompts, codes
        self.delays = lens.timeline(codes.shape[-1]).delays
        self.row_steps = 0

    def logits(
        self, prompts: list[str], steps: Sequence[Intervention] = ()
    ) -> Float[Tensor, "row codebook frame vocab"]:
        codes = self.codes.repeat(len(prompts) // len(self.codes), 1, 1)
        logits = self.lens.run_with_interventions(prompts, codes, list(steps))
        self.row_steps += len(prompts) * logits.shape[2]
        return self._by_frame(logits)

    def moved(self, places: Sequence[Candidate], strengths: Sequence[float] | None) -> Iterator[_Moved]:
        """Yield the logits under the direction at every place, in order.

        Places of one block each share the blocks below them.
        """
        sizes = list(strengths) if strengths is not None else [self._size(place) for place in places]
        # A pass serves several blocks, but only one vector for each of them.
        for directions, group in groupby(zip(places, sizes, strict=True), key=lambda pair: self._shared(pair[0])):
            mine = list(group)
            if directions is None:
                yield from (self._both(place, size) for place, size in mine)
                continue
            by_layer = {place.layer: size for place, size in mine if place.layer is not None}
            logits = self.unsteered.both_signs(directions, by_layer)
            for (up, down), size in zip(logits, by_layer.values(), strict=True):
                self.row_steps += 2 * len(self.prompts) * up.shape[2]
                yield self._by_frame(up), self._by_frame(down), size

    @cached_property
    def unsteered(self) -> Unsteered:
        return Unsteered.of(self.lens, self.prompts, self.codes)

    def _shared(self, place: Candidate) -> Directions | None:
        """Return the directions of a candidate that shares its prefix, or `None` if it takes a pass of its own."""
        one = place.strategy == "one-to-one" and Unsteered.serves(self.lens, place.directions, self.codes)
        return place.directions if one else None

    def _size(self, place: Candidate) -> float:
        fine = torch.finfo(self.lens.dtype).eps < 1e-6
        return (STEP if fine else COARSE_STEP) / place.targets

    def _by_frame(self, logits: Float[Tensor, "row codebook step vocab"]) -> Float[Tensor, "row codebook frame vocab"]:
        checked_logits(logits, self.lens.config.frame_rate)
        return by_frame(logits.float(), self.delays, self.codes.shape[-1])

    def _both(self, place: Candidate, size: float) -> _Moved:
        """Return the logits under both signs of a strength, from one forward pass."""
        n = len(self.prompts)
        both = self.logits(self.prompts * 2, place.steps([size] * n + [-size] * n))
        return both[:n], both[n:], size


def _product(
    weight: Float[Tensor, "row codebook frame vocab"],
    one: Float[Tensor, "row codebook frame vocab"],
    other: Float[Tensor, "row codebook frame vocab"],
) -> Float[np.ndarray, " row"]:
    """Return the inner product in the Fisher metric (a probability-weighted covariance), summed over all codes."""
    total = np.zeros(len(one))
    for p, a, b in _parts(weight, one, other):
        centred = a - (p * a).sum(-1, keepdim=True)
        total += (p * centred * b).sum((1, 2, 3)).cpu().numpy()
    return total


def _divergence(
    unsteered: Float[Tensor, "row codebook frame vocab"], others: Sequence[Float[Tensor, "row codebook frame vocab"]]
) -> Float[np.ndarray, " row"]:
    """Return the Kullback-Leibler divergence from the unsteered predictions to others, averaged over the others and
    summed over all codes."""
    total = np.zeros(len(unsteered))
    for base, *ends in _parts(unsteered, *others):
        own = base.log_softmax(-1)
        for end in ends:
            total += (own.exp() * (own - end.log_softmax(-1))).sum((1, 2, 3)).cpu().numpy() / len(others)
    return total


def _constancy(
    weight: Float[Tensor, "row codebook frame vocab"], shift: Float[Tensor, "row codebook frame vocab"]
) -> Float[np.ndarray, " row"]:
    """Return the cosine between a shift and its mean over frames. It is 0 if the mean is 0."""
    mean = shift.mean(2, keepdim=True).expand_as(shift)
    length = np.sqrt(_product(weight, shift, shift) * _product(weight, mean, mean))
    return _quotient(_product(weight, shift, mean), length)


def _parts(*tensors: Float[Tensor, "row codebook frame vocab"]) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same frames of all tensors, a few at a time, in double precision."""
    for part in zip(*(tensor.split(FRAMES, dim=2) for tensor in tensors), strict=True):
        # Only Apple's accelerator lacks float64. Elsewhere, the vocabulary's values stay on the device.
        yield tuple((values.cpu() if values.device.type == "mps" else values).double() for values in part)


def _quotient(inner: Float[np.ndarray, " _"], length: Float[np.ndarray, " _"]) -> Float[np.ndarray, " _"]:
    return np.divide(inner, length, out=np.zeros(len(length)), where=length > 0)
