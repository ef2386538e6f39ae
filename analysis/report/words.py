"""Write the sentences on a study's page that state how place and strength were chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.figures.style import name_of
from analysis.statistics import CHOSEN_FAILED
from analysis.sweep.controls import BALANCED, OTHER, RANDOM
from analysis.wording import clips_of

if TYPE_CHECKING:
    from analysis.study.result import Study


def number(value: Any, form: str, missing: str = "not measured") -> str:
    """Format a number with a typographic minus sign."""
    return format(value, form).replace("-", "−") if np.isfinite(value) else missing


def place(study: Study) -> str:
    """Describe how the place was chosen."""
    placed = study.placement
    if placed is None:
        return "Place and strength were chosen by steering at every block on development prompts."
    reason = placed.reason
    if np.isfinite(placed.at_strength):
        reason += (
            f" This cosine was computed at a small strength. It is {placed.at_strength:.2f} at strength "
            f"{placed.words_strength:.2g}, which shifts the predictions about as far as naming the pole does, without "
            "guidance."
        )
    if placed.rejected:
        reason += f" {placed.rejected} The study steered there nevertheless."
    return f"{reason} Only the strength was chosen by steering, on development prompts at this place."


def strength(study: Study) -> str:
    """Describe how the strength was chosen, with the candidates, the rule, and the effect of the best candidate."""
    choice, settings, scan = study.choice, study.settings, study.scan
    mine = scan[scan["strategy"] == choice.strategy]
    mine = mine[mine["layer"].isna() if choice.layer is None else mine["layer"] == choice.layer]
    if "stage" in mine and study.placement is not None:
        mine = mine[mine["stage"] == "strength"]
    tried = ", ".join(f"±{amount:g}" for amount in np.unique(mine["strength"].abs()))
    where = "" if study.placement is not None else f", the best of {choice.candidates} places and strengths"
    rule = (
        f"it has the widest span between its two signs among those with at most {100 * CHOSEN_FAILED:g}% failed clips"
        if choice.failed <= CHOSEN_FAILED
        else f"it has the fewest failed clips, because more than {100 * CHOSEN_FAILED:g}% failed at every strength"
    )
    chosen = f"{choice.strength:g}"
    span = f"{name_of(study.measure)} at +{chosen} is {choice.span:.3g} times that at −{chosen}"
    return (
        f"Strength ±{chosen} was chosen from {tried} on "
        f"{clips_of(settings.development, settings.development_seeds, 'development prompt')}{where}, because {rule} "
        f"({span if np.isfinite(choice.span) else 'not measured'}; {choice.failed:.0%} failed)."
    )


def controls(study: Study) -> str:
    """State the cosine similarities between controls and direction. The text is empty if they were not stored."""
    table = study.controls
    if not table["cosine"].notna().any():
        return ""
    table = table.assign(cosine=table["cosine"].abs())
    found = []
    for kind, words in ((RANDOM, "random directions"), (BALANCED, "balanced shuffles")):
        mine = table.loc[table["kind"] == kind, "cosine"]
        if len(mine):
            found.append(f"{words} {mine.median():.2f} in the median, at most {mine.max():.2f}")
    mine = table[table["kind"] == OTHER]
    found += [f"{row.other} {row.cosine:.2f}" for row in mine.itertuples()]
    clips = study.settings.test * study.settings.control_seeds
    ran = "one of the test clips" if clips == 1 else f"{clips} of the test clips"
    return (
        f"Cosine similarity of the controls to the direction at its place, without sign: {'; '.join(found)}. The "
        f"controls were run on {ran}, and steering is ranked by its effect on the same clips."
    )
