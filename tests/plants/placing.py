"""Place a planted concept, with small sizes and shared codes."""

from typing import Any

import audiolens as al
from analysis import placement
from audiolens.prompts import PromptSet
from plants.models import Plant

NEUTRAL = ("piano", "guitar music", "the song", "a jazz song")


def set_of(plant: Plant, words: bool = False) -> PromptSet:
    """The plant's poles as a set, with words for its poles, or without: pairs are then the words."""
    own = {"positive_words": ("fast",), "negative_words": ("slow",)} if words else {}
    return PromptSet("planted", ("high", "low"), plant.positive, plant.negative, NEUTRAL, **own)


def codes_of(plant: Plant, n: int) -> Any:
    """Codes of clips of the first n neutral prompts."""
    neutral = list(NEUTRAL[:n])
    return plant.lens.generate(neutral, 0.6, seeds=list(range(n)), guidance_scale=1.0, decode=False).codes


def placed(plant: Plant, sets: PromptSet | None = None, **options: Any) -> placement.Placement:
    lens, sets = plant.lens, sets or set_of(plant)
    n = min(len(plant.positive), len(plant.negative))
    codes = codes_of(plant, n)
    directions = al.difference_in_means(lens, sets.positive, sets.negative, codes=codes[[0] * n])
    plain: dict[str, Any] = {"compute": (), "n_random": 3, "n_bootstrap": 50, "progress": False, "prompts": NEUTRAL[:n]}
    return placement.place(lens, sets, directions, codes=codes, **{**plain, **options})
