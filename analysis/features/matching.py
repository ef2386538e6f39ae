"""Compare latents with known attributes: AUC, one-to-one matching, splitting and absorption.

Of many latents, the best one matches any attribute somewhat by chance. All choices are therefore made on one half of
the clips, and all numbers are those of the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import roc_curve

from analysis.features.source import grouped
from audiolens import ranking


@dataclass(frozen=True, eq=False)
class Half:
    """One half of the clips: latents per clip, and the attributes."""

    pooled: Float[np.ndarray, "clip latent"]
    truths: Mapping[str, np.ndarray]

    def known(self, attribute: str) -> tuple[Float[np.ndarray, "clip latent"], np.ndarray]:
        """Return the clips that have an attribute or do not have it, and which of them do."""
        truth = self.truths[attribute]
        there = ~np.isnan(truth)
        return self.pooled[there], truth[there] > 0

    def aucs(self) -> Float[np.ndarray, "attribute latent"]:
        """Return the AUC of every latent for every attribute."""
        return np.stack([aucs(*self.known(name)) for name in self.truths])


def aucs(pooled: Float[np.ndarray, "clip latent"], truth: np.ndarray) -> Float[np.ndarray, " latent"]:
    """Return the probability that a latent is larger in a clip with an attribute than in one without it."""
    sums = ranking.ranks(pooled.T)[:, truth].sum(-1)
    return ranking.area(sums, int(truth.sum()), int((~truth).sum()))


def halves(
    pooled: np.ndarray, truths: Mapping[str, np.ndarray], prompts: Sequence[str | None], seed: int
) -> tuple[Half, Half]:
    """Divide the clips into two halves at random, so that clips of one prompt stay together.

    Otherwise a latent that reads a prompt would be chosen on some of its clips, and reported on the others. If the
    clips have too few different prompts, they are divided one by one (`source.grouped`).
    """
    groups = grouped(prompts)
    order = np.random.default_rng(seed).permutation(groups.max() + 1)
    reached = np.bincount(groups)[order].cumsum()
    first = np.isin(groups, order[: int(np.searchsorted(reached, len(groups) // 2)) + 1])
    one, two = (Half(pooled[part], {name: truth[part] for name, truth in truths.items()}) for part in (first, ~first))
    return one, two


def lacking(half: Half) -> str | None:
    """Return an attribute that a half of the clips does not both have and lack; `None` if there is none."""
    for name in half.truths:
        _, truth = half.known(name)
        if not 0 < truth.sum() < len(truth):
            return name
    return None


def table(choosing: Half, reporting: Half, threshold: float, several: int) -> pd.DataFrame:
    """Return one row per attribute; see `FeatureIndex.attributes`."""
    chosen, reported = choosing.aucs(), reporting.aucs()
    # The matching leaves attributes out if there are more of them than latents.
    matched = dict(zip(*(one.tolist() for one in linear_sum_assignment(-chosen)), strict=True))
    rows = []
    for number, name in enumerate(choosing.truths):
        order = np.argsort(-chosen[number], kind="stable")[:several]
        best = int(order[0])
        truth = reporting.known(name)[1]
        partner = matched.get(number, -1)
        rows.append(
            {
                "attribute": name, "with": int(truth.sum()), "without": int((~truth).sum()), "latent": best,
                "auc": reported[number, best], "matched": partner,
                "matched_auc": reported[number, partner] if partner >= 0 else np.nan,
                "above": int(((chosen[number] >= threshold) & (reported[number] >= threshold)).sum()),
                "several_auc": _together(choosing, reporting, name, order),
                "absorbed": _absorbed(choosing, reporting, name, order),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _together(choosing: Half, reporting: Half, name: str, latents: np.ndarray) -> float:
    """Return the AUC of the sum of several latents, each in units of its own spread."""
    seen, _ = choosing.known(name)
    values, truth = reporting.known(name)
    spread = seen[:, latents].std(0)
    total = (values[:, latents] / np.where(spread > 0, spread, 1)).sum(-1, keepdims=True)
    return float(aucs(total, truth)[0])


def _absorbed(choosing: Half, reporting: Half, name: str, latents: Sequence[int] | np.ndarray) -> float:
    """Return the share of clips with an attribute that the best latent misses and another of several finds.

    A latent finds a clip if it is above the cut that separates best on the other half (Youden's).
    """
    seen, known = choosing.known(name)
    values, truth = reporting.known(name)
    found = np.stack([values[truth, one] > _cut(seen[:, one], known) for one in latents])
    return float((~found[0] & found[1:].any(0)).mean())


def _cut(values: np.ndarray, truth: np.ndarray) -> float:
    false, true, cuts = roc_curve(truth, values)
    at = int(np.argmax(true - false))
    below = values[values < cuts[at]]
    # In the middle of the gap, so that a value equal to the cut is not decided by rounding.
    return float((cuts[at] + below.max()) / 2) if len(below) and np.isfinite(cuts[at]) else float(cuts[at])
