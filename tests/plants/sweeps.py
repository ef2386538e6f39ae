"""A sweep whose effects and failures are planted."""

from typing import Any

import numpy as np

from analysis.sweep.factorial import Factors, conditions
from analysis.sweep.result import SweepResult
from plants import tables as planted

STRENGTHS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
LAYERS = (2, 3, 4)


def factor(labels: dict[str, Any]) -> float:
    """One-to-all at block 3 doubles and halves the tempo; other blocks do half, one-to-one a quarter of that."""
    if labels["kind"] == "steered":
        share = (1.0 if labels["layer"] == 3 else 0.5) * (1.0 if labels["strategy"] == "one-to-all" else 0.25)
        return float(np.exp(np.log(2) * share * labels["strength"]))
    if labels["kind"] == "prompted":
        return 1.5 if labels["pole"] == "fast" else 0.7
    return 1.0


def failing(labels: dict[str, Any]) -> float:
    """One-to-all breaks clips at the largest strengths, upwards already at half."""
    strong = labels["kind"] == "steered" and labels["strategy"] == "one-to-all" and labels["layer"] == 3
    return float(strong and (labels["strength"] >= 0.5 or labels["strength"] <= -1))


def swept(n_random: int = 0, noise: float = 0.02, **options: Any) -> SweepResult:
    factors = Factors(
        strengths=STRENGTHS, strategies=("one-to-one", "one-to-all"), layers=LAYERS, n_random=n_random,
        control_strengths=(-0.25, 0.25),
    )  # fmt: skip
    sets = planted.tempo()
    todo = conditions({"tempo": planted.directions()}, factors, {"tempo": sets})
    table = planted.heard(todo, factor, prompts=sets.test[:6], seeds=2, noise=noise, **options)
    return SweepResult(table, ("tempo_ioi", "brightness", "loudness"), {}, planted.RATE)
