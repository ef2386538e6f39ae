"""Compare a model trained with the auxiliary head on its final state with one trained without it.

The head makes the final state linear in beat and attributes, so that what probes read there, and directions steer,
might be a product of it. `python benchmarks/auxiliary_head.py --update` reads both models with the same ridge probes on
the same labelled clips, takes their effects of steering from what `claims.py` stored, and writes both tables into
docs/claims.md. Both models also need the same codec, since the clips are encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from claims import ROOT, stored
from jaxtyping import Float
from pages import renewed
from replication.estimates import Estimate

from analysis.probing import Dataset, ProbeResult, probe
from analysis.resampling import CONFIDENCE, COVERAGE
from audiolens import AudioLens

PAGE = ROOT / "docs" / "claims.md"
CONCEPTS = ("tempo", "timbre", "register", "density", "loudness")
EFFECTS = ("effect/tempo/fast", "effect/tempo/slow", "effect/timbre/bright", "effect/timbre/dark")
"""The stored numbers that are compared."""
AIM = 0.7
"""The share of the effect that should remain without the head."""
DRAWS = 20_000


class Pair(NamedTuple):
    """What one concept's probes read from both models, and from the codec's vectors alone."""

    without: ProbeResult
    with_head: ProbeResult

    def lost(self, last: bool) -> tuple[float, float, float]:
        """R² with the head minus R² without it, at the last block or at the best of each, with a paired interval."""
        own, other = (-1 if last else one.best for one in self)
        against = replace(self.with_head, baselines={"without": self.without.scored[own]})
        found = against.gains(n_bootstrap=1000).iloc[other]
        return float(found.gain), float(found.low), float(found.high)


def main(
    without: Annotated[str, typer.Option(help="The model trained without the head.")] = "etude-plain",
    with_head: Annotated[str, typer.Option(help="A model trained by the same recipe, with it.")] = "etude-2",
    clips: Annotated[int, typer.Option(help="Labelled clips per concept.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of the clips; no training used it.")] = 9,
    update: Annotated[bool, typer.Option(help="Write the tables into docs/claims.md.")] = False,
) -> None:
    """Read and steer models with and without the head."""
    lenses = [AudioLens.from_pretrained(name) for name in (without, with_head)]
    pairs = {}
    for concept in CONCEPTS:
        data = Dataset.from_synth(lenses[0], concept, clips, task="regression", seed=seed)
        pairs[concept] = Pair(*(probe(lens, data, baselines=["codec"]) for lens in lenses))
        typer.echo(f"{concept}: {pairs[concept].without!r}; {pairs[concept].with_head!r}")
    names = (without, with_head)
    numbers = {name: one.numbers for name, one in stored().items() if name in names}
    text = "\n".join([*reading(pairs, names, clips), "", *steering(numbers, names)]) + "\n"
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "head", text), "utf-8")
    typer.echo(text)


def reading(pairs: Mapping[str, Pair], names: tuple[str, str], clips: int) -> list[str]:
    """How well probes read each concept from both models."""
    without, with_head = names
    lines = [
        f"**Reading.** R² of ridge probes for the synthesiser's labels, on the mean of `resid_post` over {clips} clips "
        "of music without text. Each clip is predicted by probes fitted to others. The codec's vectors, averaged in "
        f"the same way, show what the sound alone reveals. Differences have paired {COVERAGE} intervals over clips. "
        "The best block is chosen on the same clips.",
        "",
        f"| concept | codec's vectors | {without}, last block | {with_head}, last block | difference | {without}, best "
        f"block | {with_head}, best block | difference |",
        "|---|" + "---|" * 7,
    ]
    for concept, pair in pairs.items():
        cells = [f"{pair.without.baselines['codec'].score:.2f}"]
        for last in (True, False):
            for one in pair:
                at = -1 if last else one.best
                where = "" if last else f" ({one.sites[at].layer})"
                cells.append(f"{one.scores[at]:.2f}{where}")
            value, low, high = pair.lost(last)
            cells.append(f"{value:+.2f} [{low:+.2f}, {high:+.2f}]")
        lines.append(f"| {concept} | {' | '.join(cells)} |")
    return lines


def steering(numbers: Mapping[str, Mapping[str, Estimate]], names: tuple[str, str]) -> list[str]:
    """The effects of steering in both models, and the share that remains without the head."""
    if missing := [name for name in names if name not in numbers]:
        return [f"**Steering.** Not compared, because the claims about {' and '.join(missing)} were not measured."]
    without, with_head = names
    lines = [
        "**Steering.** The effects of the table below, and the effect without the head as a share of that with it (of "
        f"logarithms), with {COVERAGE} intervals. The models are independent, so the intervals are not paired. The aim "
        f"is a share of at least {AIM:.0%}.",
        "",
        f"| towards | {without} | failed | {with_head} | failed | share |",
        "|---|" + "---|" * 5,
    ]
    for effect in EFFECTS:
        own, other = (numbers[name][effect] for name in names)
        value, low, high = share(own, other)
        told = [cell for one in (own, other) for cell in (f"{one.value:+.0%} [{one.low:+.0%}, {one.high:+.0%}]",
                f"{one.failed:.0%}")]  # fmt: skip
        lines.append(f"| {Path(effect).name} | {' | '.join(told)} | {value:.0%} [{low:.0%}, {high:.0%}] |")
    return lines


def share(own: Estimate, other: Estimate) -> tuple[float, float, float]:
    """The ratio of two independent effects on the scale of logarithms, with an interval from normal errors."""
    rng = np.random.default_rng(0)
    above, below = (rng.normal(one.scaled, one.stderr, DRAWS) for one in (own, other))
    drawn: Float[np.ndarray, " draw"] = above / below
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return own.scaled / other.scaled, float(low), float(high)


if __name__ == "__main__":
    typer.run(main)
