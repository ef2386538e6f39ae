"""Decide whether a claim holds on a model, from the model's numbers.

Every function raises `KeyError` if the number was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import selectivity

from analysis.statistics import LEVEL, MOST_FAILED
from audiolens.prompts import concepts, load
from replication.estimates import Estimate
from replication.measuring import ENOUGH
from replication.sizes import SCANNED

POLES: Mapping[str, tuple[str, str]] = {concept: load(concept, "etude").poles for concept in concepts("etude")}
NEXT_TO: Mapping[str, tuple[str, ...]] = {
    concept: tuple(one for one in selectivity.MEASURES if one not in own)
    for concept, own in (("tempo", ("tempo_ioi",)), ("timbre", ("brightness", "ltas_centroid")))
}
"""The measures that steering a concept should leave alone."""
ASIDE: Mapping[str, float] = {"ratio": 0.10, "dB": 1.0}
"""The largest change of another measure that counts as none, by its unit."""
AS_FAR = 0.10
"""A span that is narrower by no more than this share counts as equally wide."""
WELL_PLACED, MOST_PLACED = 0.9, 0.8
SETTLED = 0.05
"""The largest gain in cosine similarity from more prompts at which a direction counts as stable."""
PAPER_DEPTH: Mapping[str, float] = {"tempo": 16 / 47, "timbre": 10 / 47}
"""The depth of the paper's source layers, 16 and 10 of 48."""
PAPER_STRENGTH, PAPER_FALLS, NEAR = 1.25, 2.0, 0.2
Numbers = Mapping[str, Estimate]


@dataclass(frozen=True)
class Verdict:
    """Whether a claim holds on one model, and the number that decides.

    `instead` is shown in place of the number, if there is none.
    """

    holds: bool
    estimate: Estimate
    note: str = ""
    instead: str = ""

    def given(self, condition: bool) -> Verdict:
        """The same verdict, which holds only under a further condition."""
        return replace(self, holds=self.holds and condition)


def every_pole(among: tuple[str, ...] = tuple(POLES)) -> Iterator[tuple[str, str, int]]:
    """Every concept and pole, and the sign that steers towards the pole."""
    for concept in among:
        for pole, sign in zip(POLES[concept], (1, -1), strict=True):
            yield concept, pole, sign


_SIGNS: Mapping[str, int] = {f"{concept}/{pole}": sign for concept, pole, sign in every_pole()}


def towards(key: str, sign: int, numbers: Numbers) -> Verdict:
    """The interval excludes 0 in the direction of `sign`, and few clips failed."""
    found = numbers[key]
    apart = found.low > 0 if sign > 0 else found.high < 0
    return Verdict(apart and not found.failed > MOST_FAILED, found)


def at_most(key: str, most: float, numbers: Numbers) -> Verdict:
    """The number, without its sign, is at most `most`."""
    return Verdict(abs(numbers[key].value) <= most, numbers[key], numbers[key].note)


def at_least(key: str, least: float, numbers: Numbers) -> Verdict:
    return Verdict(numbers[key].value >= least, numbers[key], numbers[key].note)


def moves(key: str, numbers: Numbers) -> bool:
    """Whether steering towards a pole has an effect. Without one, it neither has side effects nor equals another."""
    return towards(f"effect/{key}", _SIGNS[key], numbers).holds


def steers(concept: str, numbers: Numbers) -> bool:
    """Whether steering has an effect towards either pole of a concept."""
    return any(moves(f"{concept}/{pole}", numbers) for pole in POLES[concept])


def beyond_controls(key: str, numbers: Numbers) -> Verdict:
    found, rivals = numbers[f"controls/{key}"], numbers[f"rivals/{key}"].value
    return Verdict(found.value <= LEVEL and not rivals, found, found.note).given(moves(key, numbers))


def as_far_as_words(key: str, numbers: Numbers) -> Verdict:
    return at_least(f"over-words/{key}", 0.0, numbers).given(moves(key, numbers))


def by_one_call(key: str, numbers: Numbers) -> Verdict:
    return _rejected(f"called/{key}", numbers) or towards(f"called/{key}", _SIGNS[key], numbers)


def called_as_far(key: str, numbers: Numbers) -> Verdict:
    name = f"called-over-words/{key}"
    return _rejected(name, numbers) or at_least(name, 0.0, numbers).given(by_one_call(key, numbers).holds)


def _rejected(key: str, numbers: Numbers) -> Verdict | None:
    """The verdict on a concept that was placed, but not steered."""
    concept = key.split("/")[1]
    there = f"called/{concept}" in numbers and key not in numbers
    return Verdict(False, Estimate(math.nan), instead="rejected") if there else None


def every_call(numbers: Numbers) -> Verdict:
    found = [by_one_call(key, numbers).holds for key in _SIGNS]
    return Verdict(all(found), Estimate(sum(found) / len(found), unit="share"), f"{sum(found)} of {len(found)} poles")


def unchanged(key: str, measure: str, numbers: Numbers) -> Verdict:
    """Another measure changes by no more than counts as none."""
    name = f"shared/{key}/{measure}"
    return at_most(name, ASIDE[numbers[name].unit], numbers).given(moves(key, numbers))


def unmixed(key: str, numbers: Numbers) -> Verdict:
    """The mix of instruments moves little, or no further than with other seeds."""
    found, seeds = numbers[f"shared/{key}/instruments"], numbers["seeds/instruments"].value
    holds = found.value <= max(ASIDE["ratio"], seeds)
    return Verdict(holds, found, f"other seeds: {seeds:.0%}").given(moves(key, numbers))


def as_likely(key: str, numbers: Numbers) -> Verdict:
    """Drift is at most that of another seed."""
    return at_most(f"shared/{key}/drift", 1.0, numbers).given(moves(key, numbers))


def shared_as_far(concept: str, numbers: Numbers) -> Verdict:
    """The span with shared codes is not much narrower than with own codes."""
    found = numbers[f"span/own/{concept}"]
    value, low, high = (found.from_scale(-found.to_scale(one)) for one in (found.value, found.low, found.high))
    found = replace(found, value=value, low=high, high=low)
    return Verdict(value >= -AS_FAR, found).given(steers(concept, numbers))


def as_far_as_the_mean(way: str, concept: str, numbers: Numbers) -> Verdict:
    """The span of another reading is not much narrower than that of the mean over the clip."""
    return at_least(f"span/{way}/{concept}", -AS_FAR, numbers).given(steers(concept, numbers))


def less_aside(concept: str, pole: str, numbers: Numbers) -> Verdict:
    """The mean side effect with shared codes, in multiples of that with own codes."""
    sums = []
    for way in ("shared", "own"):
        found = [numbers[f"{way}/{concept}/{pole}/{measure}"] for measure in NEXT_TO[concept]]
        sums.append(sum(abs(one.value) / ASIDE[one.unit] for one in found))
    times = sums[0] / sums[1] if sums[1] else math.nan
    return Verdict(times < 1, Estimate(times, unit="times")).given(moves(f"{concept}/{pole}", numbers))


def settled(concept: str, numbers: Numbers) -> Verdict:
    few, more = numbers[f"prompts-{ENOUGH}/{concept}"], numbers[f"prompts-more/{concept}"].value
    if math.isnan(more):
        raise KeyError("too few prompts")
    return Verdict(more - few.value <= SETTLED, few, f"{more:.2f} from half of all prompts")


def mostly_placed(numbers: Numbers) -> Verdict:
    shares = [numbers[f"placed/{concept}"].value for concept in _scanned(numbers)]
    good = sum(share >= WELL_PLACED for share in shares)
    return Verdict(
        good / len(shares) >= MOST_PLACED,
        Estimate(good / len(shares), unit="share"),
        f"{good} of {len(shares)} concepts",
    )


def beats_the_middle(numbers: Numbers) -> Verdict:
    known = _scanned(numbers)
    shares = [[numbers[f"{by}/{one}"].value for by in ("placed", "middle")] for one in known]
    apart = sum(placed - middle for placed, middle in shares) / len(known)
    return Verdict(apart > 0, Estimate(apart, unit="points"))


def _scanned(numbers: Numbers) -> list[str]:
    known = [one for one in SCANNED if f"placed/{one}" in numbers and not math.isnan(numbers[f"placed/{one}"].value)]
    if not known:
        raise KeyError("placement")
    return known


def near_the_papers(concept: str, numbers: Numbers) -> Verdict:
    found, paper = numbers[f"paper-source/{concept}"], PAPER_DEPTH[concept]
    return Verdict(abs(found.value - paper) <= NEAR, found, f"paper: {paper:.0%}")


def falls_as_the_papers(concept: str, numbers: Numbers) -> Verdict:
    """Quality holds at the paper's strength, and is lost at the largest strength that is tried."""
    poles = [numbers[f"paper-falls/{pole}"] for pole in POLES[concept]]
    found = min(poles, key=lambda one: math.inf if math.isnan(one.value) else one.value)
    return Verdict(PAPER_STRENGTH < found.value <= PAPER_FALLS, found, found.note)
