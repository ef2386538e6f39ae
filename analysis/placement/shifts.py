"""What words, and a direction at each place, do to the next codes: shifts of the logits, in the Fisher metric.

To first order the Kullback-Leibler divergence that a shift causes is half its squared length in that metric, and the
inner product of two shifts says how much of one the other brings about. A cosine near 1: the direction says what the
words say, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.likelihood import by_frame
from audiolens.directions import Directions
from audiolens.errors import InputError
from audiolens.prompts import PromptSet
from audiolens.sites import checked_layers
from audiolens.steering import Strategy, steer

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.interventions import Intervention

STEP = 0.25
"""The strength of either sign that shifts are read at, all blocks together: small, and far above rounding."""
PLACED = ("one-to-one", "one-to-all", "all-to-all")


@dataclass(frozen=True, eq=False)
class Candidate:
    """A place: whose vector goes where. `layer` is `None` where every block has its own."""

    strategy: Strategy
    layer: int | None
    directions: Directions

    @property
    def name(self) -> str:
        return self.strategy if self.layer is None else f"{self.strategy} {self.layer}"

    @cached_property
    def targets(self) -> int:
        counts = {"one-to-one": 1, "one-to-all": self.directions.meta.n_layers, "all-to-all": len(self.directions)}
        return counts[self.strategy]

    def steps(self, strength: float | list[float]) -> list[Intervention]:
        return steer(self.directions, self.strategy, layer=self.layer, strength=strength)


@dataclass(frozen=True, eq=False)
class Shifts:
    """Sums over the codes of each row: inner products of shifts a unit of strength, in squared logits.

    Attributes:
        inner: of a candidate's shift with the words'.
        own: of a candidate's with itself.
        words: of the words' with themselves.
        row_steps: steps of rows that the decoder ran for it.
    """

    inner: Float[np.ndarray, "candidate row"]
    own: Float[np.ndarray, "candidate row"]
    words: Float[np.ndarray, " row"]
    row_steps: int

    def alignment(self, rows: Int[np.ndarray, " row"] | slice = slice(None)) -> Float[np.ndarray, " candidate"]:
        """The cosine of each candidate's shift and the words', over all codes of some rows."""
        length = np.sqrt(self.own[:, rows].sum(1) * self.words[rows].sum())
        return np.divide(self.inner[:, rows].sum(1), length, out=np.zeros(len(length)), where=length > 0)

    @property
    def gain(self) -> Float[np.ndarray, " candidate"]:
        """How much of the words' shift, from the negative pole to the positive, a strength of 1 brings about."""
        return self.inner.sum(1) / self.words.sum()


def asked_in_words(sets: PromptSet, neutral: Sequence[str]) -> tuple[list[str], list[str]]:
    """Neutral prompts asked for the positive pole and for the negative; the set's own pairs where it has no words."""
    if sets.positive_words and sets.negative_words:
        positive, negative = ([sets.prompted(prompt, pole) for prompt in neutral] for pole in sets.poles)
        return positive, negative
    wanted = len(neutral)
    if min(len(sets.positive), len(sets.negative)) < wanted:
        raise InputError(f"{sets.concept}: a set without words for its poles needs {wanted} prompts of either here.")
    return list(sets.positive[:wanted]), list(sets.negative[:wanted])


def checked_strategies(strategies: Sequence[str]) -> None:
    for strategy in strategies:
        if strategy not in PLACED:
            raise InputError(f"strategy={strategy!r} is not placed: expected some of {', '.join(PLACED)}.")
    if not strategies:
        raise InputError(f"no strategies: give some of {', '.join(PLACED)}.")


def candidates(
    directions: Directions, strategies: Sequence[Strategy], layers: int | Sequence[int] | None
) -> list[Candidate]:
    """Every strategy at every layer whose vector has a length."""
    checked_strategies(strategies)
    wanted = directions.layers if layers is None else checked_layers(layers, directions.meta.n_layers)
    missing = [layer for layer in wanted if layer not in directions]
    if missing:
        raise InputError(f"no direction at layers {missing}: there are {list(directions.layers)}.")
    longest = float(directions.norms.max())
    there = [layer for layer in wanted if float(directions[layer].norm()) > 1e-6 * longest]
    if not there or longest == 0:
        raise InputError("every direction is of length 0: the poles do not differ, and there is nothing to place.")
    found = []
    for strategy in dict.fromkeys(strategies):
        if strategy == "all-to-all":
            found.append(Candidate(strategy, None, directions.at(there)))
        else:
            found += [Candidate(strategy, layer, directions) for layer in there]
    return found


def shifts_of(
    lens: AudioLens,
    neutral: Sequence[str],
    poles: tuple[Sequence[str], Sequence[str]],
    codes: Int[Tensor, "row codebook frame"],
    places: Sequence[Candidate],
    *,
    batch_size: int,
    progress: str | None = None,
) -> Shifts:
    """The shifts that the poles' words and every place make, on the same codes."""
    half = max(1, batch_size // 2)
    batches = [slice(first, first + half) for first in range(0, len(neutral), half)]
    bar = tqdm(total=len(batches) * (3 + len(places)), desc=progress, unit="pass", disable=progress is None)
    columns, spent = [], 0
    with bar, torch.no_grad():
        for rows in batches:
            run = _Run(lens, list(neutral[rows]), codes[rows])
            base = run.logits(run.prompts).softmax(-1)
            words = run.logits(list(poles[0][rows])) - run.logits(list(poles[1][rows]))
            bar.update(3)
            words = words - (base * words).sum(-1, keepdim=True)
            inner, own = [], []
            for shift in run.shifts(places):
                inner.append(_product(base, shift, words))
                own.append(_product(base, shift - (base * shift).sum(-1, keepdim=True), shift))
                bar.update()
            columns.append((np.stack(inner), np.stack(own), _product(base, words, words)))
            spent += run.row_steps
    inner, own = (np.concatenate([column[part] for column in columns], axis=1) for part in (0, 1))
    return Shifts(inner, own, np.concatenate([column[2] for column in columns]), spent)


class _Run:
    """Forward passes over one batch of rows, counted."""

    def __init__(self, lens: AudioLens, prompts: list[str], codes: Tensor) -> None:
        self.lens, self.prompts, self.codes = lens, prompts, codes
        self.delays = lens.timeline(codes.shape[-1]).delays
        self.row_steps = 0

    def logits(
        self, prompts: list[str], steps: Sequence[Intervention] = ()
    ) -> Float[Tensor, "row codebook frame vocab"]:
        codes = self.codes.repeat(len(prompts) // len(self.codes), 1, 1)
        told = self.lens.run_with_interventions(prompts, codes, list(steps))
        self.row_steps += len(prompts) * told.shape[2]
        return by_frame(told.float(), self.delays, codes.shape[-1]).double()

    def shifts(self, places: Sequence[Candidate]) -> Iterator[Float[Tensor, "row codebook frame vocab"]]:
        """Of a strength of 1, by a central difference: both signs are rows of one pass."""
        n = len(self.prompts)
        for place in places:
            step = STEP / place.targets
            both = self.logits(self.prompts * 2, place.steps([step] * n + [-step] * n))
            yield (both[:n] - both[n:]) / (2 * step)


def _product(
    weight: Float[Tensor, "row codebook frame vocab"],
    one: Float[Tensor, "row codebook frame vocab"],
    other: Float[Tensor, "row codebook frame vocab"],
) -> Float[np.ndarray, " row"]:
    """Sum over all codes; exact in the metric where one of them has no mean."""
    return (weight * one * other).sum((1, 2, 3)).cpu().numpy()
