"""Find, for every clip, the strength at which a measure takes a target value: `steer_to`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm

from audiolens import measure as measures
from audiolens.checks import checked_amount, checked_count, checked_flags, in_order, shown
from audiolens.control.search import Goal, Search, Try, rises
from audiolens.directions.calibrating import WIDEST, measured, refuse_other_operators
from audiolens.directions.calibration import PLACE, Calibration, normal_place
from audiolens.directions.directions import Directions
from audiolens.directions.steering import steer, steered_blocks
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.measure.targets import default_tolerance, in_range
from audiolens.model.timeline import Real
from audiolens.tracing.generation import Generation
from audiolens.tracing.plan import checked_interventions
from audiolens.tracing.sampling import checked_seeds

if TYPE_CHECKING:
    import pandas as pd


@guarded
@dataclass(frozen=True, eq=False)
class Targeted:
    """Clips steered to a target, each with a strength of its own.

    Attributes:
        clips: the clip of each row whose measured value is closest to the target, among those that did not fail.
        strengths: the strength of each of these clips.
        measured: the measured value of each of these clips; NaN if no clip could be measured.
        reached: whether the value is within the tolerance.
        reasons: why a row did not reach the target; an empty text if it did.
        measure, target, tolerance: what was asked for, in the unit of the measure. The tolerance is relative for
            measures in BPM, Hz or onsets/s, and absolute for others.
        tried: one row per generated clip: `row`, `strength`, `measured`, `failed`.
    """

    clips: Generation
    strengths: Float[np.ndarray, " row"]
    measured: Float[np.ndarray, " row"]
    reached: Bool[np.ndarray, " row"]
    reasons: tuple[str, ...]
    measure: str
    target: float
    tolerance: float
    tried: pd.DataFrame

    @property
    def n_clips(self) -> int:
        """The number of clips that were generated."""
        return len(self.tried)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per clip: prompt, seed, strength, measured value, whether it was reached, and why not."""
        import pandas as pd

        return pd.DataFrame(
            {
                "prompt": self.clips.prompts, "seed": self.clips.seeds, "strength": self.strengths,
                self.measure: self.measured, "reached": self.reached,
                "clips": self.tried.groupby("row").size().to_numpy(), "reason": self.reasons,
            }
        )  # fmt: skip

    def __repr__(self) -> str:
        unit = measures.UNITS[self.measure]
        return (
            f"Targeted({self.measure} {self.target:g} {unit}: {self.reached.sum()} of {len(self.reached)} rows reached "
            f"with {self.n_clips} clips)"
        )


@guarded
def steer_to(
    lens: AudioLens,
    directions: Directions,
    prompts: str | Sequence[str],
    measure: str,
    target: Real | str,
    tolerance: Real | None = None,
    seeds: int | Sequence[int] = 0,
    seconds: Real = 5.0,
    max_clips: int = 20,
    limits: tuple[Real, Real] | None = None,
    guidance_scale: Real = 3.0,
    batch_size: int = 32,
    progress: bool = True,
    **steering: Any,
) -> Targeted:
    """Steer every clip to a value of a measure, such as 120 BPM, by finding a strength for each row.

    Every row is first generated without steering. Each further round generates the rows that have not reached the
    target, with the same seeds and new strengths. The first strength follows from the calibration, if there is one for
    this measure and place. Otherwise it is a quarter of the limit, and then doubles, towards the side on which the
    clips of all rows so far suggest the target. Once two values of a row lie on either side of the target, the strength
    between them is interpolated (regula falsi). Since a small change of strength can change which notes are played, the
    widest interval that contains the target is divided first, and then others near the target, up to both limits. A
    clip that fails (`measure.failed`) or cannot be measured does not count. If it is the outermost one, it moves the
    limit of its row to halfway between its strength and the nearest smaller one.

    Since clips are chosen by what is measured in them, part of the agreement with the target can be chance: measure
    something else to judge how well steering works.

    Args:
        lens: the model that the directions were read from.
        directions: what to steer along. If they are calibrated for the measure, their place is that of the calibration,
            unless `steering` states a part of a place.
        prompts: one prompt per row.
        seeds: one seed per row, or one for all rows.
        measure: a measure, as in `measure.MEASURES`.
        target: the value to reach, in the unit of the measure, or text with a unit, such as "120 BPM" or "2.5 kHz".
        tolerance: the deviation that is accepted, as a share of the target for measures in BPM, Hz or onsets/s
            (default: .05), and otherwise in the unit of the measure (default: 1 dB for loudness, and .05).
        seconds, guidance_scale, batch_size: as in `lens.generate`.
        max_clips: the largest number of clips per row, including the unsteered one.
        limits: the lowest and highest strength (default: those of the calibration, or -2 and 2, divided by the number
            of steered blocks; with a `unit` other than "raw", and for "heads", there is no default).
        steering: where to steer, as in `steer`: `strategy`, `layer`, `band`, `unit`, `branch`, ... If a part of the
            place is stated, the whole place is what `steer` takes for it, and not that of the calibration.

    Raises:
        InputError: (or a subclass) if the measure is unknown, the target has another unit or is out of the measure's
            range, or a place, a limit or a prompt is invalid.
    """
    checked_flags(progress=progress)
    wanted = in_range(measure, target)
    allowed = default_tolerance(measure) if tolerance is None else checked_amount("tolerance", tolerance, above=0)
    budget = checked_count("max_clips", max_clips, least=1)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise InputError("prompts is empty: give at least one prompt.")
    for name in ("strength", "rows"):
        if name in steering:
            raise InputError(
                f"steer_to takes no {name}=: it finds a strength for every row. Use limits= to restrict it."
            )
    listed = checked_seeds(seeds, len(texts)) or []
    place, known = checked_place(directions, measure, steering, limits)
    steps = steer(directions, **place)
    directions.meta.refuse_other(lens)
    checked_interventions(steps, lens.traced_model, float(guidance_scale) > 1)
    goal = Goal(measure, wanted, allowed)
    low, high = _limits(limits, known, WIDEST / len(steered_blocks(steps)))
    rows = [Search(goal, low, high) for _ in texts]
    base: list[Generation] = []
    kept: dict[int, Generation] = {}
    with tqdm(total=budget, desc=f"steering to {goal.text(wanted)}", unit="round", disable=not progress) as bar:
        for _ in range(budget):
            rising = rises(rows, known)
            found = {number: row.following(known, rising) for number, row in enumerate(rows)}
            todo = {number: strength for number, strength in found.items() if strength is not None}
            if not todo:
                break
            made = lens.generate(
                [texts[number] for number in todo], float(seconds), seeds=[listed[number] for number in todo],
                guidance_scale=guidance_scale, batch_size=batch_size, progress=False,
                interventions=steer(directions, **{**place, "strength": [*todo.values()]}) if base else (),
            )  # fmt: skip
            base = base or [*made]
            # The next round begins with the rows that fitted in memory.
            batch_size = made.settings.get("at_once", batch_size)
            failed = measures.failed(made, joined([base[number] for number in todo]))
            tried = zip(made, todo.items(), measured(made, measure), failed, strict=True)
            for clip, (number, strength), value, broken in tried:
                if rows[number].add(Try(strength, float(value), bool(broken))):
                    kept[number] = clip
            bar.update()
            bar.set_postfix(reached=f"{sum(row.reached for row in rows)} of {len(rows)}")
    return _result(rows, joined([kept[number] for number in range(len(rows))]), goal)


def checked_place(
    directions: Directions, measure: str, stated: Mapping[str, Any], limits: Any
) -> tuple[dict[str, Any], Calibration | None]:
    """Return the arguments of `steer`, and the calibration if it holds for them. No model is needed.

    Raises:
        InputError: if the operator is not "add", or if limits are missing and have no default at this place.
    """
    known = directions.calibration
    if known is not None and known.measure != measure:
        known = None
    place = {name: value for name, value in stated.items() if name in PLACE}
    others = {name: value for name, value in stated.items() if name not in PLACE}
    own = None if known is None else {**PLACE, **known.place}
    whole = own if own and not place else normal_place(place, directions.layers, directions.meta.n_layers)
    refuse_other_operators(whole)
    # A calibration does not hold for part of a clip, or with another schedule.
    known = known if whole == own and not others else None
    if limits is None and known is None and (whole["unit"] != "raw" or whole["strategy"] == "heads"):
        name = "strategy" if whole["strategy"] == "heads" else "unit"
        raise InputError(
            f"{name}={shown(whole[name])} needs limits=, the lowest and the highest strength, or directions that are "
            f"calibrated for {measure} at this place."
        )
    return {**whole, **others}, known


def joined(clips: Sequence[Generation]) -> Generation:
    """Return clips of the same length and settings as one `Generation`, without recordings."""
    audio = [one.audio for one in clips if one.audio is not None]
    return replace(
        clips[0],
        codes=torch.cat([one.codes for one in clips]),
        audio=torch.cat(audio) if audio else None,
        prompts=tuple(prompt for one in clips for prompt in one.prompts),
        seeds=tuple(seed for one in clips for seed in one.seeds or ()),
        cache=None,
        gates=None,
    )


def _result(rows: Sequence[Search], clips: Generation, goal: Goal) -> Targeted:
    import pandas as pd

    best = [row.best or row.tries[0] for row in rows]
    tried = [(number, one.strength, one.value, one.failed) for number, row in enumerate(rows) for one in row.tries]
    reached = {"measure": goal.measure, "target": goal.target, "strengths": [one.strength for one in best]}
    settings = {**clips.settings, "interventions": ["Add"], "steered_to": reached}
    return Targeted(
        clips=replace(clips, settings=settings),
        strengths=np.array([one.strength for one in best]),
        measured=np.array([one.value for one in best]),
        reached=np.array([row.reached for row in rows], dtype=bool),
        reasons=tuple("" if row.reached else row.stuck or _spent(row) for row in rows),
        measure=goal.measure,
        target=goal.target,
        tolerance=goal.tolerance,
        tried=pd.DataFrame(tried, columns=["row", "strength", "measured", "failed"]),
    )


def _spent(row: Search) -> str:
    best = row.best
    closest = "no clip could be measured" if best is None else f"the closest value is {row.goal.text(best.value)}"
    return f"after {len(row.tries)} clips, {closest}"


def _limits(limits: Any, known: Calibration | None, widest: float) -> tuple[float, float]:
    """Return the lowest and the highest strength to try."""
    if limits is None:
        return (known.strengths[0], known.strengths[-1]) if known is not None else (-widest, widest)
    given = in_order("limits", limits, "two numbers")
    low, high = (checked_amount("limits", one) for one in given) if len(given) == 2 else (0.0, 0.0)
    if not low <= 0 <= high or low == high:
        raise InputError(f"limits={shown(limits)}: expected the lowest and the highest strength, around 0.")
    return low, high
