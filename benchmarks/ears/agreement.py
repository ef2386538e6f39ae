"""How far audiolens's measures agree with the models of `hear.py`, and which of the two agrees with known labels.

The functions take one table with a row per clip and need no model. `compare` makes that table: `set` is "generated",
"synthesised" or "codec"; our measures have their own names, those of the other models begin with `ear_`, and the
synthesiser's labels begin with `label_`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

from analysis import statistics
from analysis.resampling import Interval, bootstrap
from analysis.statistics import Effect

LEAST_RHO = 0.85
"""A measure whose rank correlation with another model is lower is mended, or its claims are withdrawn."""
SAME = 0.08
"""Two tempos within this share of one another are the same; a beat tracker's grid alone gives up to 3%."""
RIGHT = 0.04
"""A tempo within this share of its label is right, as in MIREX's tempo task."""
LEVELS: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {"same": (1.0,), "octave": (0.5, 2.0), "other level": (0.25, 1 / 3, 2 / 3, 0.75, 4 / 3, 1.5, 3.0, 4.0)}
)
"""Ratios between two tempos of one metre; every other ratio is "unrelated"."""
EFFECTS_DRAWN = 1000


@dataclass(frozen=True)
class Quantity:
    """A property of sound with our measure, another model's, and the label that both should follow.

    Attributes:
        name: the property in words.
        ours, ear: columns of the two measures; the second one without `ear_`.
        by: the model behind `ear`.
        label: column of the label without `label_`, or "" if the synthesiser has none.
        relative: whether an effect is a ratio minus 1; otherwise it is a difference.
        tempo: whether the two can be an octave or another metrical level apart.
        kinds: whether the label is one of two kinds (1 or 0), so that agreement with it is an AUC.
    """

    name: str
    ours: str
    ear: str
    by: str
    label: str = ""
    relative: bool = True
    tempo: bool = False
    kinds: bool = False


QUANTITIES = (
    Quantity("beat", "tempo", "beat_bpm", "madmom, beats", "tempo_bpm", tempo=True),
    Quantity("interval, against the beat", "tempo_ioi", "beat_bpm", "madmom, beats", "tempo_bpm", tempo=True),
    Quantity("interval between onsets", "tempo_ioi", "ioi_bpm", "madmom, onsets", tempo=True),
    Quantity("onsets per second", "onset_rate", "onset_rate", "madmom, onsets", "onset_rate"),
    Quantity("notes per second", "onset_rate", "note_rate", "Basic Pitch", "onset_rate"),
    Quantity("onsets per beat", "onsets_per_beat", "onsets_per_beat", "madmom", "density"),
    Quantity("notes per beat", "onsets_per_beat", "notes_per_beat", "Basic Pitch, madmom", "density"),
    Quantity("pitch", "pitch", "note_hz", "Basic Pitch", "register_hz"),
    Quantity("pitch of the strongest voice", "pitch", "f0_hz", "SwiftF0", "register_hz"),
    Quantity("brightness", "brightness", "centroid_hz", "librosa", "centroid_hz"),
    Quantity("mode", "mode", "major_probability", "madmom, key", "major", relative=False, kinds=True),
    Quantity("mode of the notes", "mode", "note_mode", "Basic Pitch", "major", relative=False, kinds=True),
)


@dataclass(frozen=True)
class Agreement:
    """Spearman's rank correlation of two columns: its interval over prompts, and the clips that have both values."""

    rho: float
    interval: Interval
    n: int
    n_clips: int

    @property
    def enough(self) -> bool:
        """Whether the correlation reaches `LEAST_RHO`."""
        return self.rho >= LEAST_RHO


def agreement(
    table: pd.DataFrame, one: str, other: str, clusters: str = "prompt", n_bootstrap: int = EFFECTS_DRAWN
) -> Agreement:
    """The rank correlation of two columns, over the clips that have both, with an interval that resamples `clusters`.

    Raises:
        ValueError: if fewer than three clips have both, so that nothing can be ranked.
    """
    both = table[table[one].notna() & table[other].notna()]
    if len(both) < 3:
        raise ValueError(f"{one} and {other}: {len(both)} of {len(table)} clips have both, expected at least 3")
    x, y = both[one].to_numpy(dtype=float), both[other].to_numpy(dtype=float)

    def correlation(index: Int[np.ndarray, " draw"]) -> float:
        return rank_correlation(x[index], y[index])

    interval = bootstrap(correlation, both[clusters].to_numpy(), n_bootstrap=n_bootstrap)
    return Agreement(rank_correlation(x, y), interval, len(both), len(table))


def rank_correlation(x: Float[np.ndarray, " clip"], y: Float[np.ndarray, " clip"]) -> float:
    """Spearman's rank correlation; 0 if either does not vary, because constant values say nothing about the other."""
    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    length = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / length) if length > 0 else 0.0


def levels(ours: Float[np.ndarray, " clip"], ear: Float[np.ndarray, " clip"]) -> dict[str, float]:
    """The share of clips whose two tempos are the same, an octave apart, at another metrical level, or unrelated.

    Clips without one of the tempos are left out; `n` counts those that have both.
    """
    known = np.isfinite(ours) & np.isfinite(ear)
    ratio = ours[known] / ear[known]
    left = np.ones(len(ratio), dtype=bool)
    shares: dict[str, float] = {}
    for name, ratios in LEVELS.items():
        here = left & _near(ratio, ratios, SAME)
        shares[name] = _share(here)
        left &= ~here
    return {**shares, "unrelated": _share(left), "n": float(known.sum())}


def right(table: pd.DataFrame, quantity: Quantity) -> dict[str, float]:
    """Who is right about tempo where the two differ: the share of those clips in which ours is, the ear is, neither is.

    Right means within `RIGHT` of the label. `n` counts the clips in which they differ by more than `SAME`.
    """
    ours, ear = (table[name].to_numpy(dtype=float) for name in (quantity.ours, f"ear_{quantity.ear}"))
    label = table[f"label_{quantity.label}"].to_numpy(dtype=float)
    differ = np.isfinite(ours) & np.isfinite(ear) & ~_near(ours / ear, (1.0,), SAME)
    mine, theirs = (_near(value / label, (1.0,), RIGHT)[differ] for value in (ours, ear))
    return {"ours": _share(mine), "ear": _share(theirs), "neither": _share(~mine & ~theirs), "n": float(differ.sum())}


def truth(table: pd.DataFrame, quantity: Quantity, column: str) -> float:
    """How well a column follows the quantity's label: Spearman's rho, or the AUC if the label is one of two kinds."""
    label, values = table[f"label_{quantity.label}"], table[column]
    if quantity.kinds:
        return statistics.auc(values, label.astype(bool), n_bootstrap=0).value
    known = values.notna()
    return rank_correlation(values[known].to_numpy(dtype=float), label[known].to_numpy(dtype=float))


def effects(
    table: pd.DataFrame, conditions: Sequence[str], quantity: Quantity, n_bootstrap: int = EFFECTS_DRAWN
) -> dict[str, tuple[Effect, Effect]]:
    """The effect of every condition by our measure and by the ear, on the same clips with the same statistics.

    The table has the rows of the baseline and of the conditions, paired by prompt and seed. Clips that failed count as
    no effect in both.
    """
    paired = table.set_index(["prompt", "seed"])
    before = paired[paired["condition"] == "baseline"]
    found = {}
    for name in conditions:
        after = paired[paired["condition"] == name]
        if after.empty:
            raise ValueError(f"no clip has the condition {name!r}; there are {sorted(table['condition'].unique())}")
        reference = before.reindex(after.index)
        ours, ear = (
            statistics.effect(
                after[column].to_numpy(dtype=float),
                reference[column].to_numpy(dtype=float),
                after.index.get_level_values("prompt").to_numpy(),
                after["failed"].to_numpy(dtype=bool),
                relative=quantity.relative,
                n_bootstrap=n_bootstrap,
            )
            for column in (quantity.ours, f"ear_{quantity.ear}")
        )
        found[name] = (ours, ear)
    return found


def _near(ratio: np.ndarray, targets: Sequence[float], share: float) -> Bool[np.ndarray, " clip"]:
    """Whether each ratio is within `share` of one of the targets; False for NaN."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.any(np.abs(ratio[:, None] / np.asarray(targets) - 1) <= share, axis=1))


def _share(which: np.ndarray) -> float:
    return float(which.mean()) if len(which) else float("nan")
