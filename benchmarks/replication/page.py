"""The table of claims over all models, side effects of every reading, and our figures next to the paper's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import selectivity

from analysis.pooling import Pooled, pooled
from analysis.resampling import COVERAGE
from audiolens.etude.training.recipes import BUNDLED, RECIPES
from replication.claims import TOPICS, Claim, Topic
from replication.estimates import Estimate
from replication.verdicts import POLES, Verdict

MODELS = tuple(name for name in RECIPES if name != BUNDLED.name)
"""The models in which the claims are to be measured."""
SEEDS = ("etude-2", "etude-3")
"""Models that differ only in their seeds. The bundled `etude` is from an earlier recipe."""
"""Models that differ only in the seeds of their weights and of the order of the data."""
PAPER: Mapping[str, tuple[str, str]] = {
    "fast": ("176.0 BPM", "+30.1%"), "slow": ("85.9 BPM", "-36.1%"), "bright": ("2,161 Hz", "+20%"),
    "dark": ("1,077 Hz", "-40.1%"),
}  # fmt: skip
"""The paper's medians and changes, as far as we know."""
PAPER_LAYER = {"tempo": "16 of 48 (34%)", "timbre": "10 of 48 (21%)"}
_SIGNED = {"ratio", "points"}
_NONE = "–"


@dataclass(frozen=True)
class Measured:
    """What was measured on one model: facts about it, the sizes of every stage, and the numbers."""

    facts: Mapping[str, Any]
    sizes: Mapping[str, Mapping[str, Any]]
    numbers: Mapping[str, Estimate]

    def as_dict(self) -> dict[str, Any]:
        numbers = {key: one.as_dict() for key, one in sorted(self.numbers.items())}
        return {"facts": dict(self.facts), "sizes": dict(self.sizes), "numbers": numbers}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Measured:
        numbers = {key: Estimate.of_dict(one) for key, one in found["numbers"].items()}
        return cls(found["facts"], found["sizes"], numbers)


@dataclass(frozen=True)
class Row:
    """A claim with its verdict on each model; `None` for a model that was not measured for it."""

    claim: Claim
    verdicts: Mapping[str, Verdict | None] = field(default_factory=dict)

    @property
    def known(self) -> dict[str, Verdict]:
        return {name: one for name, one in self.verdicts.items() if one is not None}

    @property
    def holding(self) -> int:
        return sum(one.holds for one in self.known.values())

    @property
    def in_most(self) -> bool:
        """Whether the claim holds in more than half of the models, of which there are at least two."""
        return len(self.known) > 1 and 2 * self.holding > len(self.known)

    @cached_property
    def pooled(self) -> Pooled | None:
        """The mean over models, on the scale of the estimates; `None` with fewer than two standard errors."""
        found = [one.estimate for one in self.known.values()]
        usable = [one for one in found if np.isfinite(one.scaled) and np.isfinite(one.stderr) and one.stderr > 0]
        return pooled([one.scaled for one in usable], [one.stderr for one in usable]) if len(usable) > 1 else None

    @property
    def between_seeds(self) -> float:
        """The standard deviation between models of different seeds, on the scale of the estimates."""
        found = [self.known[name].estimate.scaled for name in SEEDS if name in self.known]
        found = [one for one in found if math.isfinite(one)]
        return float(np.std(found, ddof=1)) if len(found) > 1 else math.nan

    def cells(self, names: Sequence[str]) -> list[str]:
        one = next(iter(self.known.values()), None)
        most = f"{self.holding} of {len(self.known)}" if self.known else _NONE
        own = [_verdict(self.verdicts.get(name)) for name in names]
        if one is None:
            return [most, *own, _NONE, _NONE, _NONE]
        unit, both = one.estimate, self.pooled
        mean = _NONE
        if both is not None:
            value, low, high = (unit.from_scale(part) for part in (both.value, both.low, both.high))
            mean = f"{shown(Estimate(value, low, high, unit=unit.unit))} ({both.n})"
        return [most, *own, mean, _spread(unit, math.nan if both is None else both.tau), _spread(unit,
                self.between_seeds)]  # fmt: skip


def rows(measured: Mapping[str, Measured], topic: Topic) -> list[Row]:
    """The claims of a topic, with their verdicts on every model."""
    return [Row(claim, {name: claim.verdict(one.numbers) for name, one in measured.items()}) for claim in topic.claims]


def page(measured: Mapping[str, Measured]) -> str:
    """Every claim in every model, in Markdown."""
    if not measured:
        return "No model has been measured yet.\n"
    lines = [*_models(measured), *_legend()]
    for topic in TOPICS:
        names = list(measured)
        if all(claim.prefix_only for claim in topic.claims):
            names = [name for name in names if measured[name].facts["prefix"]]
        if not names:
            continue
        lines += ["", f"### {topic.title}", "", f"{topic.measured} **Holds if:** {topic.when}", ""]
        heads = ["claim", "", "holds in", *names, "mean (models)", "between models", "between seeds"]
        lines += _table(heads, ([f'<a id="{row.claim.id}"></a>`{row.claim.id}`', row.claim.sentence, *row.cells(names)]
                                for row in rows(measured, topic)))  # fmt: skip
    return "\n".join([*lines, *_side_effects(measured)]) + "\n"


def _models(measured: Mapping[str, Measured]) -> list[str]:
    missing = [name for name in MODELS if name not in measured]
    heads = [
        "model",
        "blocks x width",
        "text",
        "clips [s]",
        "test prompts x seeds",
        "controls",
        "steered at",
        "weights",
    ]
    cells = []
    for name, one in measured.items():
        facts, sizes = one.facts, {key: value for stage in one.sizes.values() for key, value in stage.items()}
        places = [f"{key.split('/')[1]}: {found.note}, strength {found.value:g}"
                  for key, found in one.numbers.items() if key.startswith("place/")]  # fmt: skip
        cells.append([
            name, f"{facts['blocks']} x {facts['width']}",
            "in the decoder's sequence" if facts["prefix"] else "cross-attention", f"{sizes['seconds']:g}",
            f"{sizes['test']} x {sizes['test_seeds']}", f"2 x {sizes['controls']}", "; ".join(places),
            facts["weights"][:8],
        ])  # fmt: skip
    left = f"Not yet measured: {', '.join(missing)}." if missing else "All models have been measured."
    return [*_table(heads, cells), "", left]


def _legend() -> list[str]:
    return [
        "",
        f"Brackets show {COVERAGE} intervals over prompts. ✓: the claim holds in this model; ✗: it does not; {_NONE}: "
        "it does not apply, or was not measured. The mean is that of a random-effects model (`analysis.pooling`), over "
        "the number of models in brackets, and ratios are pooled as logarithms. Models without a value or without a "
        "standard error are left out of it. \"Between models\" is the estimated "
        "standard deviation of the true value between models. \"Between seeds\" is the standard deviation of the "
        f"measured value between {' and '.join(SEEDS)}, which differ only in their seeds.",
    ]  # fmt: skip


def _side_effects(measured: Mapping[str, Measured]) -> list[str]:
    """Effects on every measure, for words and for every reading of the directions."""
    ways = {"words": "words", "shared": "shared codes", "own": "own codes", "first": "first step", "last": "last step",
            "eos": "last token"}  # fmt: skip
    lines = [
        "", "### Effects of words and of every reading on all measures", "",
        "Changes are medians over the clips of one prompt and seed. All readings have the same norm and place. "
        '"Instruments" is the total variation distance from the unsteered clips. Drift is in multiples of that between '
        "two seeds.",
    ]  # fmt: skip
    heads = ["towards", "by", *(name.replace("_", " ") for name in selectivity.MEASURES), "instruments", "drift"]
    for name, one in measured.items():
        cells = []
        for concept in selectivity.OWN:
            for pole in POLES[concept]:
                for way, told in ways.items():
                    keys = [f"{way}/{concept}/{pole}/{part}" for part in (*selectivity.MEASURES, "instruments",
                            "drift")]  # fmt: skip
                    if all(key in one.numbers for key in keys):
                        cells.append([pole, told, *(shown(one.numbers[key]) for key in keys)])
        if cells:
            lines += ["", f"<details><summary>{name}</summary>", "", *_table(heads, cells), "", "</details>"]
    return lines


def paper(measured: Mapping[str, Measured]) -> str:
    """The paper's figures next to those of every model whose text stands in the decoder's own sequence."""
    lines = []
    for name, one in measured.items():
        numbers = one.numbers
        if "paper/fast" not in numbers:
            continue
        lines += ["", f"**{name}**, at strength 1.25:", ""]
        cells = []
        for pole, (median, change) in PAPER.items():
            found = numbers[f"paper-median/{pole}"]
            falls = numbers[f"paper-falls/{pole}"]
            cells.append([
                pole, median, shown(found), change, shown(numbers[f"paper/{pole}"]),
                f"{found.failed:.0%}", "about 1.5", _falls(falls),
            ])  # fmt: skip
        heads = ["towards", "median, paper", f"median, {name}", "change, paper", f"change, {name}", "failed",
                 "quality falls at, paper", f"quality falls at, {name}"]  # fmt: skip
        lines += [*_table(heads, cells), ""]
        cells = []
        for concept in ("tempo", "timbre"):
            source = numbers[f"paper-source/{concept}"]
            cells.append([concept, PAPER_LAYER[concept], f"{source.note} ({source.value:.0%})",
                          *(_known(numbers, f"{key}/{concept}") for key in _COMPARED)])  # fmt: skip
        heads = ["concept", "best source layer, paper", f"best source layer, {name}", *_COMPARED.values()]
        lines += [*_table(heads, cells), "", *_doses(numbers)]
    return "\n".join(lines[1:]) + "\n" if lines else "No model of this form has been measured yet.\n"


_COMPARED = {
    "strategies": "span, one-to-all relative to one-to-one", "prompts-25": "cosine similarity from 25 prompts",
    "span/eos": "span, last token relative to mean", "span/last": "span, last step relative to mean",
}  # fmt: skip


def _doses(numbers: Mapping[str, Estimate]) -> list[str]:
    """The change towards every pole at every strength that was tried, as a table."""
    keys = [key.split("/") for key in numbers if key.startswith("paper-dose/")]
    strengths = sorted({strength for _, _, strength in keys}, key=float)
    cells = [[strength, *(_with_failed(numbers.get(f"paper-dose/{pole}/{strength}")) for pole in PAPER)]
             for strength in strengths]  # fmt: skip
    return ["Change at every strength that was tried:", "", *_table(["strength", *PAPER], cells)] if cells else []


def _with_failed(found: Estimate | None) -> str:
    """A number, and the share of clips that failed, if any did."""
    if found is None:
        return _NONE
    return shown(found) + (f", {found.failed:.0%} failed" if found.failed > 0 else "")


def _falls(found: Estimate) -> str:
    return f"{'none' if math.isnan(found.value) else f'{found.value:g}'} ({found.note})"


def _known(numbers: Mapping[str, Estimate], key: str) -> str:
    return shown(numbers[key]) if key in numbers else _NONE


def _verdict(found: Verdict | None) -> str:
    if found is None:
        return _NONE
    note = f" ({found.note})" if found.note else ""
    return f"{'✓' if found.holds else '✗'} {found.instead or shown(found.estimate)}{note}"


def shown(found: Estimate) -> str:
    """A number with its interval, in its unit."""
    if math.isnan(found.value):
        return "not measurable"
    text = _number(found.value, found.unit)
    if math.isnan(found.low):
        return text
    ends = ", ".join(_number(one, found.unit, bare=True) for one in (found.low, found.high))
    return f"{text} [{ends}]"


def _number(value: float, unit: str, bare: bool = False) -> str:
    if unit == "ratio":
        return f"{value:+.0%}"
    if unit in ("share", "depth"):
        return f"{value:.0%}"
    if unit == "points":
        return f"{100 * value:+.0f}" + ("" if bare else " points")
    if unit == "times":
        return f"{value:.2g}" + ("" if bare else " times")
    if unit == "p":
        return f"p = {value:.3f}"
    if unit in ("BPM", "Hz"):
        return f"{value:,.1f} {unit}"
    if unit == "cosine":
        return f"{value:.2f}"
    if unit == "strength":
        return f"{value:g}"
    return f"{value:+.2g}" + ("" if bare else f" {unit}")


def _spread(found: Estimate, spread: float) -> str:
    """A standard deviation on the scale of an estimate, in its unit."""
    if math.isnan(spread):
        return _NONE
    if found.unit in ("ratio", "times"):
        return f"x{math.exp(spread):.2f}"
    return _number(spread, found.unit).lstrip("+")


def _table(heads: Sequence[str], cells: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads), *(f"| {' | '.join(row)} |" for row in cells)]
