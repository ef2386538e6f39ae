"""Sweep: conditions x clips, packed into full batches by a fixed plan, one table row per clip.

A clip is a (prompt, seed) pair; a condition is what is done to it. Every condition is applied to the same clips, so
rows pair up by prompt and seed, and each is measured beside its unsteered baseline. One batch carries rows of many
conditions: the vectors they add are merged into one vector per row and block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from analysis.listening import Heard, Listener
from analysis.statistics import effect
from audiolens import measure
from audiolens.errors import InputError
from audiolens.interventions import Add, Branch, Intervention
from audiolens.timeline import Span

if TYPE_CHECKING:
    from audiolens import AudioLens

BASELINE = "baseline"
Clip = tuple[str, int]
"""A prompt and the seed it is drawn with."""


@dataclass(frozen=True)
class Condition:
    """What is done to every clip.

    Attributes:
        name: unique in a sweep; "baseline" is the clips as they are.
        interventions: applied to each row of the condition.
        ask: what is asked instead of a clip's prompt (same seed); `None` asks the prompt itself.
        labels: further columns of the condition's rows: strategy, layer, strength, ...
    """

    name: str
    interventions: tuple[Intervention, ...] = ()
    ask: Callable[[str], str] | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for intervention in self.interventions:
            if intervention.rows is not None or torch.as_tensor(intervention.strength).ndim:
                raise InputError(
                    f"condition {self.name!r}: an intervention names rows or has a strength per row; "
                    "a condition holds for all its rows, so give one strength and no rows."
                )


@dataclass(frozen=True)
class Plan:
    """Which rows a sweep generates, in which batches: a function of its arguments alone.

    Baselines come first, for every other row is measured beside its own.
    """

    conditions: tuple[Condition, ...]
    clips: tuple[Clip, ...]
    batch_size: int

    @property
    def batches(self) -> list[list[tuple[Condition, int]]]:
        """Each batch's rows: a condition, and the number of a clip. Sizes are equal (within one), none above
        `batch_size`; the baselines have batches of their own."""
        first = [condition for condition in self.conditions if condition.name == BASELINE]
        others = [condition for condition in self.conditions if condition.name != BASELINE]
        packed = []
        for group in (first, others):
            rows = [(condition, clip) for condition in group for clip in range(len(self.clips))]
            bounds = np.linspace(0, len(rows), -(-len(rows) // self.batch_size) + 1).astype(int)
            packed += [rows[start:stop] for start, stop in zip(bounds, bounds[1:], strict=False)]
        return packed

    def __len__(self) -> int:
        return len(self.conditions) * len(self.clips)


@dataclass(frozen=True, eq=False)
class SweepResult:
    """One row per clip with everything measured.

    `table` holds `condition` and its labels, `prompt`, `asked` (the prompt the model read), `seed`, the measures, and
    `rms_ratio`, `onsets`, `entropy_ratio`, `failed` beside the baseline of the same prompt and seed. `audio` holds the
    sound of the rows that were kept, by row number.

    It does not show that a direction means what it is called: see the controls of `analysis.outcome`.
    """

    table: pd.DataFrame
    measures: tuple[str, ...]
    settings: Mapping[str, Any]
    sample_rate: int
    audio: Mapping[int, np.ndarray] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def effects(self, measured: str, n_bootstrap: int = 1000) -> pd.DataFrame:
        """`effects` of this sweep's rows."""
        return effects(self.table, measured, n_bootstrap)

    def plot(self, measured: str | None = None) -> Any:
        """The effect of each condition against its strength (matplotlib figure)."""
        from analysis import plots

        name = measured or self.measures[0]
        return plots.strengths(self.effects(name), name)

    def figure(self, measured: str | None = None) -> Any:
        """The same for the screen (plotly figure)."""
        from analysis import screen

        name = measured or self.measures[0]
        return screen.strengths(self.effects(name), name)

    def __repr__(self) -> str:
        lost = self.table["failed"].mean()
        return (
            f"SweepResult({len(self.table)} clips: {self.table['condition'].nunique()} conditions, "
            f"{self.table['prompt'].nunique()} prompts, {lost:.0%} failed)"
        )


def clips(prompts: Sequence[str], seeds_per_prompt: int, first_seed: int = 0) -> list[Clip]:
    """Each prompt with its own seeds, no seed used twice, so that prompts are independent."""
    if not prompts or seeds_per_prompt < 1:
        raise InputError(f"{len(prompts)} prompts x {seeds_per_prompt} seeds: expected at least one of each.")
    seeds = iter(range(first_seed, first_seed + len(prompts) * seeds_per_prompt))
    return [(prompt, next(seeds)) for prompt in prompts for _ in range(seeds_per_prompt)]


def plan(conditions: Sequence[Condition], clips: Sequence[Clip], batch_size: int = 64) -> Plan:
    """Check and order a sweep before it runs.

    Raises:
        InputError: for doubled names or clips, no baseline, or nothing to do.
    """
    names = [condition.name for condition in conditions]
    if len(set(names)) != len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two conditions are named {doubled!r}: give each its own name.")
    if BASELINE not in names:
        raise InputError(f"no condition is named {BASELINE!r}: add Condition({BASELINE!r}) to compare with.")
    if not clips or len(set(clips)) != len(clips):
        raise InputError(f"{len(clips)} clips, {len(set(clips))} of them different: give each (prompt, seed) once.")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: expected at least 1.")
    return Plan(tuple(conditions), tuple(clips), batch_size)


def run(
    lens: AudioLens,
    conditions: Sequence[Condition],
    clips: Sequence[Clip],
    *,
    seconds: float = 5.0,
    guidance_scale: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    measures: Sequence[str] = tuple(measure.MEASURES),
    batch_size: int = 64,
    n_jobs: int | None = None,
    listener: Listener | None = None,
    keep_audio: Callable[[Condition, Clip], bool] | None = None,
    progress: str | None = None,
) -> SweepResult:
    """Generate and measure every clip under every condition.

    Args:
        lens: the model.
        conditions: one of them "baseline".
        clips: (prompt, seed) pairs, the same for all conditions.
        seconds, guidance_scale, temperature, top_k: as in `lens.generate`.
        measures: names out of `audiolens.measure.MEASURES`.
        batch_size: most rows of a batch. The rows of each batch follow from the arguments alone.
        n_jobs: processes that decode and measure while the next batches are generated; 0 is none, `None` half the
            cores. The table does not depend on it.
        listener: one that is already there, for several sweeps; it then says what is measured, and by whom.
        keep_audio: which rows' sound the result keeps (default: none).
        progress: the label of a progress bar; `None` shows none.
    """
    todo = plan(conditions, clips, batch_size)
    baselines: dict[int, tuple[Heard, int]] = {}
    labels: list[dict[str, Any]] = []
    frames: list[pd.DataFrame] = []
    audio: dict[int, np.ndarray] = {}
    bar = tqdm(total=len(todo), desc=progress, unit="clip", disable=progress is None, smoothing=0.1)

    def collect(batch: list[tuple[Condition, int]], heard: Heard) -> None:
        for place, (condition, clip) in enumerate(batch):
            if condition.name == BASELINE:
                baselines[clip] = (heard, place)
            if keep_audio is not None and keep_audio(condition, todo.clips[clip]):
                audio[len(labels) + place] = heard.audio[place]
        labels.extend(_labels(condition, todo.clips[clip]) for condition, clip in batch)
        frames.append(heard.frame)
        bar.update(len(batch))

    waiting: list[tuple[list[tuple[Condition, int]], Future[Heard]]] = []
    hearing = nullcontext(listener) if listener is not None else Listener(lens, measures, n_jobs)
    with hearing as ear, bar:
        for batch in todo.batches:
            made = lens.generate(
                [_asked(condition, todo.clips[clip][0]) for condition, clip in batch],
                seconds=seconds,
                seeds=[todo.clips[clip][1] for _, clip in batch],
                guidance_scale=guidance_scale,
                temperature=temperature,
                top_k=top_k,
                interventions=list(merge([condition for condition, _ in batch], lens.config.n_layers)),
                decode=False,
            )
            steered = batch[0][0].name != BASELINE
            # Waited for only now, so that the batches before were heard while this one was generated.
            while len(waiting) > max(1, ear.n_jobs) or (steered and waiting and len(baselines) < len(todo.clips)):
                collect(waiting[0][0], waiting.pop(0)[1].result())
            reference = _reference(batch, baselines) if steered else None
            waiting.append((batch, ear.hear(made.codes, reference)))
        for batch, heard in waiting:
            collect(batch, heard.result())
    table = pd.concat([pd.DataFrame(labels), pd.concat(frames, ignore_index=True)], axis=1)
    settings = {
        "model": lens.name,
        "seconds": seconds,
        "guidance_scale": guidance_scale,
        "temperature": temperature,
        "top_k": top_k,
        "batch_size": batch_size,
    }
    return SweepResult(table, tuple(ear.measures), settings, lens.config.sample_rate, audio)


def clips_per_second(lens: AudioLens, prompt: str, seconds: float, batch_size: int = 64) -> float:
    """How fast this machine generates, from one short batch: for estimates shown before a sweep."""
    short = min(1.0, seconds)
    started = time.perf_counter()
    made = lens.generate([prompt] * batch_size, seconds=short, seeds=list(range(batch_size)), decode=False)
    generating = (time.perf_counter() - started) * seconds / short
    started = time.perf_counter()
    heard = made.codes[:4].split(1)
    for clip in heard:
        lens.decode_codes(clip)
    listening = (time.perf_counter() - started) * seconds / short * batch_size / len(heard)
    # a worker listens while the next batch is generated
    return batch_size / max(generating, listening)


def merge(conditions: Sequence[Condition], n_layers: int) -> Iterator[Intervention]:
    """The interventions of a batch whose row i is under `conditions[i]`.

    Conditions of plain additions alone share one addition per place, with a vector per row, which costs a decoder
    step the same however many conditions a batch holds. The others keep their steps, in their order.
    """
    added: dict[tuple[str, int, Branch, Span | None], dict[int, torch.Tensor]] = {}
    others: dict[str, list[int]] = {}
    for row, condition in enumerate(conditions):
        additions = [step for step in condition.interventions if _plain(step)]
        if len(additions) < len(condition.interventions):
            others.setdefault(condition.name, []).append(row)
            continue
        for step in additions:
            vector = torch.as_tensor(step.strength) * torch.as_tensor(step.vector)
            for layer in _layers(step, n_layers):
                rows = added.setdefault((step.site, layer, step.branch, step.seconds), {})
                rows[row] = rows[row] + vector if row in rows else vector
    for (site, layer, branch, seconds), rows in added.items():
        vectors = torch.stack(list(rows.values()))
        yield Add(vectors, site=site, layers=[layer], branch=branch, seconds=seconds, rows=list(rows))
    for rows_here in others.values():
        for step in conditions[rows_here[0]].interventions:
            yield replace(step, rows=rows_here)


def effects(table: pd.DataFrame, measured: str, n_bootstrap: int = 1000) -> pd.DataFrame:
    """The effect of every condition on a measure, beside the baseline clips of the same prompt and seed.

    One row per condition with its labels, `median` (of the measure, failed clips left out), `effect`, `low`, `high`
    (statistics.effect; NaN where no baseline could be measured), `failed` (the share), `left_out` (pairs without a
    baseline measure, which are in neither) and `clips`.
    """
    keys = ["prompt", "seed"]
    baseline = table[table["condition"] == BASELINE].set_index(keys)[measured]
    heard = {*measure.MEASURES, "rms_ratio", "onsets", "entropy_ratio", "failed", "asked", *keys}
    labels = [column for column in table.columns if column not in heard]
    rows = []
    for _, group in table.groupby("condition", sort=False):
        before = baseline.reindex(pd.MultiIndex.from_frame(group[keys])).to_numpy()
        sound = group.loc[~group["failed"], measured]
        rows.append(
            {
                **group[labels].iloc[0].to_dict(),
                "median": float(sound.median()) if sound.notna().any() else float("nan"),
                **_effect(group, measured, before, n_bootstrap),
                "clips": len(group),
            }
        )
    return pd.DataFrame(rows)


def _effect(group: pd.DataFrame, measured: str, before: np.ndarray, n_bootstrap: int) -> dict[str, float]:
    usable = np.isfinite(before) & (before > 0)
    if not usable.any():
        nothing, failed = float("nan"), float(group["failed"].mean())
        return {"effect": nothing, "low": nothing, "high": nothing, "failed": failed, "left_out": len(group)}
    found = effect(group[measured], before, group["prompt"], group["failed"], n_bootstrap=n_bootstrap)
    return {
        "effect": found.value,
        "low": found.interval.low,
        "high": found.interval.high,
        "failed": found.failed_share,
        "left_out": found.n_left_out,
    }


def _asked(condition: Condition, prompt: str) -> str:
    return prompt if condition.ask is None else condition.ask(prompt)


def _plain(step: Intervention) -> TypeGuard[Add]:
    return (
        type(step) is Add
        and torch.as_tensor(step.vector).ndim == 1
        and step.heads is None
        and step.schedule is None
        and not step.preserve_norm
        and not step.prefix
    )


def _layers(step: Intervention, n_layers: int) -> list[int]:
    if step.layers is None:
        return list(range(n_layers))
    return [step.layers] if isinstance(step.layers, int) else list(step.layers)


def _labels(condition: Condition, clip: Clip) -> dict[str, Any]:
    """The columns that say what a row is."""
    prompt, seed = clip
    asked = _asked(condition, prompt)
    return {"condition": condition.name, **condition.labels, "prompt": prompt, "asked": asked, "seed": seed}


def _reference(batch: list[tuple[Condition, int]], baselines: Mapping[int, tuple[Heard, int]]) -> Heard:
    """The baseline clips beside a batch's rows."""
    pairs = [baselines[clip] for _, clip in batch]
    return Heard(
        codes=np.stack([heard.codes[place] for heard, place in pairs]),
        audio=np.stack([heard.audio[place] for heard, place in pairs]),
        frame=pd.DataFrame(),
        sample_rate=pairs[0][0].sample_rate,
    )
