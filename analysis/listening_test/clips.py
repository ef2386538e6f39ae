"""Find the clips of a study that a listening test compares, and decode further ones from their codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from analysis.listening_test.levels import Sound
from analysis.study import finished
from analysis.study.result import Study
from analysis.sweep import BASELINE, SweepResult
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens


@dataclass(frozen=True, eq=False)
class Item:
    """The clips of one prompt and seed, by role ("unsteered", "positive", "negative")."""

    prompt: str
    seed: int
    sounds: dict[str, Sound]


def items_of(study: Study, wanted: int) -> list[Item]:
    """Return the first items whose clips the study kept as sound, at most `wanted`."""
    names = _conditions(study)
    keys = dict.fromkeys((prompt, seed) for condition, prompt, seed in study.sounds if condition == names["unsteered"])
    whole = [key for key in keys if all((name, *key) in study.sounds for name in names.values())]
    return [
        Item(prompt, seed, {role: study.sounds[name, prompt, seed] for role, name in names.items()})
        for prompt, seed in whole[:wanted]
    ]


def items_in(folder: Path, wanted: int, model: str | None) -> tuple[Study, list[Item]]:
    """Return the study in a folder, and its first items, one seed of every prompt before the next seed.

    If the study kept fewer clips as sound, all are decoded from their codes. This opens the model that made the study,
    or the same one at another place, if `model` names it.

    Raises:
        InputError: if the folder has no finished study, if it has too few prompts and seeds, or if the model is not the
            one that made the study.
    """
    study = finished.load_folder(folder)
    kept = items_of(study, wanted)
    if len(kept) == wanted:
        return study, kept
    tested = finished.load_tested(folder)
    rows = tested.table[tested.table["condition"] == BASELINE]
    pairs = rows.assign(turn=rows.groupby("prompt").cumcount()).sort_values("turn", kind="stable")
    chosen = list(pairs[["prompt", "seed"]].itertuples(index=False, name=None))[:wanted]
    if len(chosen) < wanted:
        raise InputError(f"{folder} has {len(chosen)} prompts x seeds, but {wanted} are needed: ask for fewer pairs.")
    from audiolens import AudioLens

    lens = AudioLens.from_pretrained(study.model if model is None else model)
    study.directions.meta.refuse_other(lens)
    decoded = {role: _decoded(lens, tested, name, chosen) for role, name in _conditions(study).items()}
    return study, [
        Item(prompt, seed, {role: clips[place] for role, clips in decoded.items()})
        for place, (prompt, seed) in enumerate(chosen)
    ]


def _decoded(lens: AudioLens, tested: SweepResult, condition: str, chosen: list[tuple[str, int]]) -> list[np.ndarray]:
    own = tested.table[tested.table["condition"] == condition]
    places = {key: place for place, key in enumerate(own[["prompt", "seed"]].itertuples(index=False, name=None))}
    codes = tested.codes(condition)[[places[key] for key in chosen]]
    return list(lens.decode_codes(codes).detach().float().cpu().numpy())


def _conditions(study: Study) -> dict[str, str]:
    """Return the name of the condition of each role, at the chosen place and strength."""
    steered = study.response[study.response["kind"] == "steered"].set_index("strength")["condition"]
    strength = study.choice.strength
    return {"unsteered": BASELINE, "positive": steered[strength], "negative": steered[-strength]}
