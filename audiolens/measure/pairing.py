"""Check that clips and their unsteered baseline have the same model, prompts, seeds, length and sampling settings."""

from __future__ import annotations

from typing import Any

from audiolens.checks import shown
from audiolens.errors import InputError

SAMPLING = ("guidance_scale", "temperature", "top_k")


def refuse_unpaired(clips: Any, baseline: Any, called: str = "steered", *, by_order: bool = False) -> None:
    """Raise an error unless the baseline is unsteered and matches the clips in settings and, by row, prompt and seed.

    Args:
        clips, baseline: what `lens.generate` returned. Settings, prompts and seeds that an object does not state are
            not compared.
        called: the name of the clips in messages.
        by_order: whether clips without seeds can be paired by order alone with clips that have seeds.

    Raises:
        InputError: if the baseline does not match; the message names the difference.
    """
    if len(clips.codes) != len(baseline.codes):
        raise InputError(
            f"{called} has {len(clips.codes)} rows, baseline {len(baseline.codes)}; give the same prompts and seeds in "
            "the same order"
        )
    ours, theirs = (getattr(one, "settings", {}) for one in (clips, baseline))
    for name, mine, own in (
        ("codebooks", clips.codes.shape[-2], baseline.codes.shape[-2]),
        ("frames", clips.codes.shape[-1], baseline.codes.shape[-1]),
        ("sample rate", getattr(clips, "sample_rate", None), getattr(baseline, "sample_rate", None)),
        ("model", ours.get("model"), theirs.get("model")),
    ):
        if mine != own and None not in (mine, own):
            raise InputError(f"{called} has {name} {mine}, baseline {own}; give the same clips without steering")
    if theirs.get("interventions"):
        raise InputError("baseline was steered itself; give the same clips without steering")
    for name in (*SAMPLING, "audio_prompt_seconds", "window", "overlap"):
        # top_k=None means all codes, so only a setting that is not stated at all is skipped.
        if name in ours and name in theirs and ours[name] != theirs[name]:
            raise InputError(
                f"{called} was generated with {name}={ours[name]}, baseline with {theirs[name]}; use the same for both"
            )
    for name in ("prompts", "seeds"):
        if not (hasattr(clips, name) and hasattr(baseline, name)):
            continue
        sides = getattr(clips, name), getattr(baseline, name)
        if by_order and name == "seeds" and None in sides:
            continue
        mine, own = ((None,) * len(clips.codes) if side is None else tuple(side) for side in sides)
        other = [row for row, pair in enumerate(zip(mine, own, strict=True)) if pair[0] != pair[1]]
        if other:
            row = other[0]
            raise InputError(
                f"row {row}: the {name[:-1]} of {called} is {shown(mine[row])}, that of baseline {shown(own[row])}; "
                "give the same prompts and seeds in the same order"
            )
