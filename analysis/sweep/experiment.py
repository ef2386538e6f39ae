"""Sweep over strengths, strategies, layers, branches, concepts, prompts and seeds, with one table row per clip.

`run` steers in every combination of these factors. It calls `play`, which takes any conditions. Every condition is
applied to the same clips, so that rows pair up by prompt and seed, and each row is compared with its unsteered
baseline. With `out=`, finished batches are kept in a folder (`ledger.py`). If the sweep is interrupted, repeating the
call resumes it and gives the same table, bit for bit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from analysis.distributed.backend import Backend
from analysis.distributed.opening import backend_of, check_ray
from analysis.distributed.settings import Ray
from analysis.store.threads import threads
from analysis.sweep import ledger as ledgers
from analysis.sweep import response, runs
from analysis.sweep.conditions import Condition, Plan, PromptSeed, packed
from analysis.sweep.engine import chosen
from analysis.sweep.estimate import Estimate, Prepared
from analysis.sweep.factorial import Factors
from analysis.sweep.planned import completed, facts_of, used_engine
from analysis.sweep.playing import Also, Making, heard_batches
from analysis.sweep.result import SweepResult
from analysis.sweep.rows import OnRows, handing
from analysis.sweep.storage import (
    SoundFormat,
    check_sound,
    devices_of,
    in_memory,
    into_folder,
    size_of,
    stops,
    with_devices,
)  # fmt: skip
from audiolens import measure
from audiolens.checks import MOST_JOBS, checked_amount, checked_count, checked_flags, checked_text
from audiolens.directions.directions import Directions
from audiolens.directions.steering import Unit
from audiolens.directions.strategies import Strategy
from audiolens.door import guarded
from audiolens.files.atomic import as_path, refuse_links
from audiolens.groups import loosened, takes
from audiolens.interventions import Branch
from audiolens.model import devices
from audiolens.model.timeline import clip_timeline
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.engines import Engine, checked_engine
from audiolens.tracing.plan import refuse_foreign
from audiolens.tracing.sampling import Sampling, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens


_SETTINGS = ("seconds", "guidance_scale", "temperature", "top_k", "batch_size")


@guarded
@named_once
def plan(lens: AudioLens, directions: Any, *, timed: bool = True, **asked: Any) -> Estimate:
    """Return what `run` would do with these arguments and how long it would take, without writing anything.

    With `timed`, one short batch measures this machine's speed.

    Raises:
        InputError: in the same cases as in `run`, for example if the folder contains another sweep.
    """
    checked_flags(timed=timed)
    asked = loosened(run, lens, directions, **asked)
    check_sound(asked.get("sound"), asked.get("out"))
    if asked.get("out") is not None:
        ledgers.check(Path(asked["out"]))
    prepared = Prepared.of(lens, directions, **asked)
    if asked.get("out") is not None and ledgers.finished(Path(asked["out"])):
        given = signature(run).bind(lens, directions, **asked)
        given.apply_defaults()
        settings = _settings(*(given.arguments[name] for name in _SETTINGS))
        names = response.checked_names(given.arguments["measures"], given.arguments["also"] or {})
        plan, further, sound = prepared.plan, given.arguments["also"], asked.get("sound")
        facts = partial(_facts, lens, plan, settings, names=names, also=further, sound=sound)
        ledgers.refuse_begun(Path(asked["out"]), facts(ledgers.engine_of(asked["out"], facts) or "exact"))
    # This machine alone does not show the speed of a cluster.
    timed = timed and asked.get("ray") is None
    return prepared.estimate(
        lens,
        asked.get("out"),
        asked.get("sound"),
        timed,
        asked.get("n_jobs"),
        checked_engine(asked.get("engine", "auto")),
    )


@guarded
@named_once
@takes("sampling", Sampling)
def run(
    lens: AudioLens,
    directions: Directions | Sequence[Directions] | Mapping[str, Directions],
    *,
    strengths: Sequence[float] = Factors.strengths,
    strategies: Sequence[Strategy] = Factors.strategies,
    layers: int | Sequence[int] | None = None,
    band: tuple[int, int] | None = None,
    branches: Sequence[Branch] = Factors.branches,
    unit: Unit = "raw",
    prompts: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 2,
    sets: Mapping[str, PromptSet] | None = None,
    n_random: int = Factors.n_random,
    n_shuffled: int = Factors.n_shuffled,
    others: Directions | Sequence[Directions] | Mapping[str, Directions] | None = None,
    control_strengths: Sequence[float] | None = None,
    opposed: bool = False,
    heads: int | None = None,
    seconds: float = 5.0,
    guidance_scale: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    measures: Sequence[str] = tuple(measure.MEASURES),
    also: Also | None = None,
    batch_size: int = 64,
    out: str | os.PathLike[str] | None = None,
    sound: SoundFormat | None = None,
    n_jobs: int | None = None,
    ray: Ray | None = None,
    engine: Engine = "auto",
    progress: bool = True,
    tell: Callable[[str], None] | None = None,
    on_rows: OnRows | None = None,
    config: str = "",
    sampling: Sampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> SweepResult:
    """Steer along directions in every combination of the factors, and measure every clip.

    Every combination of concept, strategy, layer, branch and strength is applied to the same clips. The sweep also has
    the unsteered baseline, the baseline with other seeds, control directions at the same places and strengths, and
    clips with the same seeds whose prompts ask for the poles in words.

    Args:
        directions: directions of one or several concepts. Each concept is named by its label, or by its key in a
            mapping.
        strengths: coefficients of the directions, with either sign. 0 is the baseline and is always included.
        strategies, unit, heads: as in `al.steer`. "one-to-band" needs `band`. "heads" needs `heads`, the number of
            heads, and directions that were read at a site with heads. Its controls are added to the same heads.
        layers: layers whose vectors the "one-to" strategies use (default: every layer that was read).
        branches: the guidance branches to steer. Strengths are comparable only within one branch.
        prompts: neutral prompts (default: the development prompts of the first concept's set). Choose settings on
            these prompts, and report results on others.
        seeds: either the number of seeds per prompt (no two prompts share a seed) or a list of seeds that every prompt
            uses.
        sets: prompt sets by concept, which contain the poles' words (default: the bundled sets with these names).
        n_random, n_shuffled: numbers of random control directions and of balanced shuffles (`Directions.shuffled`).
            With 19 controls, p can reach .05. Shuffles need directions read with `keep_samples=True`.
        others: directions of other concepts, read at the same site and layers. They are further controls, and are
            scaled to the norms of the steered direction. A concept is never a control for itself.
        control_strengths: the strengths at which controls are run (default: all strengths).
        opposed: whether to also steer while the prompt asks for the other pole, at the strengths of the controls.
        seconds, guidance_scale, temperature, top_k: as in `lens.generate`.
        measures: names from `audiolens.measure.MEASURES` or `EXTRA_MEASURES`.
        also: further columns (see `play`).
        batch_size: maximum number of rows per batch. A batch that does not fit in memory is generated in halves, with a
            warning; the batches of the plan stay the same.
        out: a folder for finished batches. If the sweep is interrupted, repeating the call resumes it and gives the
            same table. `None` writes nothing to disk.
        sound: "wav" or "flac", to also write each clip's sound to the folder.
        n_jobs, ray, engine: as in `play`.
        progress: show a progress bar.
        tell: a function that is called with the plan before the sweep starts. Timing the plan takes one short batch,
            and is left out with `ray`.
        on_rows, config: as in `play`.
        sampling: a `Sampling` that replaces guidance_scale, temperature, top_k and, if it sets a length, seconds.

    Raises:
        InputError: (or a subclass) if values are out of range or the folder contains another sweep. The error is raised
            before the model runs.
        StoppedError: if the disk is full or a worker process died. Finished batches are kept.
    """
    checked_flags(opposed=opposed, progress=progress)
    prepared = Prepared.of(
        lens, directions, strengths=strengths, strategies=strategies, layers=layers, band=band, branches=branches,
        unit=unit, prompts=prompts, seeds=seeds, sets=sets, n_random=n_random, n_shuffled=n_shuffled, others=others,
        control_strengths=control_strengths, opposed=opposed, heads=heads, seconds=seconds,
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, batch_size=batch_size,
    )  # fmt: skip
    if tell is not None:
        tell(repr(prepared.estimate(lens, out, sound, timed=ray is None, n_jobs=n_jobs, engine=checked_engine(engine))))
    return play(
        lens, prepared.plan.conditions, prepared.plan.clips, seconds=seconds, guidance_scale=guidance_scale,
        temperature=temperature, top_k=top_k, measures=measures, also=also, batch_size=batch_size, out=out, sound=sound,
        n_jobs=n_jobs, ray=ray, engine=engine, progress="sweeping" if progress else None, on_rows=on_rows,
        config=config,
    )  # fmt: skip


@guarded
@named_once
@takes("sampling", Sampling)
def play(
    lens: AudioLens,
    conditions: Sequence[Condition],
    clips: Sequence[PromptSeed],
    *,
    seconds: float = 5.0,
    guidance_scale: float = 3.0,
    temperature: float = 1.0,
    top_k: int | None = 250,
    measures: Sequence[str] = tuple(measure.MEASURES),
    also: Also | None = None,
    batch_size: int = 64,
    n_jobs: int | None = None,
    ray: Ray | None = None,
    engine: Engine = "auto",
    listener: Backend | None = None,
    keep_audio: Callable[[Condition, PromptSeed], bool] | None = None,
    out: str | os.PathLike[str] | None = None,
    sound: SoundFormat | None = None,
    progress: str | None = None,
    on_rows: OnRows | None = None,
    config: str = "",
    sampling: Sampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> SweepResult:
    """Generate and measure every clip under every condition.

    Args:
        lens: the model.
        conditions: the conditions, one of which must be named "baseline".
        clips: (prompt, seed) pairs, the same for all conditions.
        seconds, guidance_scale, temperature, top_k: as in `lens.generate`.
        measures: names from `audiolens.measure.MEASURES` or `EXTRA_MEASURES`.
        also: further columns by name, as functions of (lens, generated clips) that return one number per row. They run
            in this process. A column `nats` (nats per code under the unsteered model) is used for `drift`.
        batch_size: maximum number of rows per batch. The rows of each batch depend on the arguments alone. A batch that
            does not fit in memory is generated in halves, with a warning, and the following ones begin with the number
            of rows that fitted, also if the sweep is resumed. `result.runs` states that number and the device.
        n_jobs: number of worker processes. Each opens the model, and generates and measures whole batches, with as many
            threads as `torch.get_num_threads()`, because another number could change results. Call
            `torch.set_num_threads(1)` first to use one core per process. 0 uses no further process. `None` uses all
            cores or, for a few batches, generates in this process while others measure. If the model is on an
            accelerator, was given in memory or was changed, this process generates and the workers only measure. Clips
            with a function of the user's (`Apply`) are also generated in this process. Results do not depend on this
            number.
        ray: a Ray cluster whose workers generate and measure the clips instead (`analysis.distributed.Ray`). The model
            must have been opened by name, or from a folder that every machine of the cluster has. A worker that is
            killed is started again, and its batch is generated again.
        engine: as in `lens.generate`. With "auto", a sweep of at least 64 clips generates some of its unsteered and
            steered clips with both engines, once per model, and uses the fast one only if all their codes are equal.
            `result.settings["engine"]` states the engine that was used. A sweep that was begun in a folder keeps its
            engine.
        listener: an open backend that several sweeps can share. If one is given, it determines the measures and the
            processes.
        keep_audio: a function that selects the rows whose sound is kept in the result (default: no rows) or, with
            `sound`, in the folder (default: all rows).
        out, sound, sampling: as in `run`.
        progress: the label of a progress bar; `None` shows no bar.
        on_rows: a function that is called with the rows of every batch once it is finished and, with `out`, stored. The
            index of the rows is their number in the sweep's table. A resumed sweep calls it only with new rows. If it
            fails, a warning says so once, and the sweep goes on. `analysis.trackers` has functions that log the rows.
        config: text to keep in the folder as `sweep.toml`, such as the settings that `load_arguments` returns.
    """
    hand = handing(on_rows)
    checked_text("config", config)
    todo = packed(conditions, clips, batch_size)
    refuse_foreign([step for condition in todo.conditions for step in condition.interventions], lens.traced_model)
    clip_timeline(seconds, lens.config)
    settings = _settings(seconds, guidance_scale, temperature, top_k, batch_size)
    seconds, guidance_scale, temperature, top_k, batch_size = settings.values()
    making = Making(seconds, guidance_scale, temperature, top_k, also)
    making.check(lens, todo)
    checked_engine(engine)
    names = response.checked_names(listener.measures if listener is not None else measures, also or {})
    n_jobs = None if n_jobs is None else checked_count("n_jobs", n_jobs, 0, MOST_JOBS)
    check_ray(n_jobs, ray)
    check_sound(sound, out)

    @contextmanager
    def hearing(n_batches: int) -> Iterator[Backend]:
        # Start workers only once the folder is known to be usable, because they take seconds to start.
        opened = nullcontext(listener) if listener is not None else backend_of(lens, measures, n_jobs, ray, n_batches)
        with opened as ear:
            if listener is None and ear.about and progress is not None:
                tqdm.write(ear.about, file=sys.stderr)
            yield ear

    elsewhere = ray is not None or (listener is not None and listener.elsewhere)
    described = partial(_facts, lens, todo, settings, names=names, also=also, sound=sound, elsewhere=elsewhere)
    bar = partial(tqdm, total=len(todo), desc=progress, unit="clip", disable=progress is None, smoothing=0.1)
    if out is None:
        making = replace(making, engine=chosen(lens, todo, making, engine, None, described))
        done = {"model": lens.name, **settings, "engine": making.engine}
        # The whole facts contain a hash of the weights, which takes long for a large model.
        facts = _run_facts(lens, todo, elsewhere)

        def note(left: list[int], **change: Any) -> None:
            facts.update(runs.changed(facts, left, **change))

        with stops(None, todo), hearing(len(todo.batches)) as ear, bar() as bar_shown:
            heard = heard_batches(lens, todo, making, ear, keep_audio=keep_audio, note=note)
            table, codes, audio = in_memory(heard, todo, bar_shown, hand)
            done |= {"devices": dict(ear.differences)} if ear.differences else {}
        rate, made = lens.config.sample_rate, runs.made(facts, range(len(todo.batches)))
        return SweepResult(table, names, done, rate, audio, tuple(also or ()), runs=made, _codes=codes)
    ledgers.check(Path(out), len(todo))
    making = replace(making, engine=chosen(lens, todo, making, engine, out, described))
    facts = described(making.engine)
    columns = [*names, *response.LOST, *(also or ()), *(["file"] if sound else [])]
    need = size_of(lens, todo, seconds, sound)
    with (
        stops(Path(out), todo),
        ledgers.ledger(out, facts, todo.labels, columns, need, config) as kept,
        threads(kept.threads),
        bar(initial=sum(len(todo.batches[number]) for number in kept.done)) as bar_shown,
    ):
        if len(kept.done) < len(todo.batches):
            with hearing(len(todo.batches) - len(kept.done)) as ear:
                codes_of_done = {number: partial(kept.codes, number) for number in kept.done}
                shown = None if sound is None else keep_audio or (lambda *_: True)
                making, note = replace(making, at_once=ledgers.at_once_of(out)), partial(ledgers.note_run, kept)
                heard = heard_batches(lens, todo, making, ear, codes_of_done, kept.levels, shown, note)
                into_folder(kept, with_devices(Path(out), ear, heard), todo, sound, bar_shown, hand)
        kept.close()
    return load_folder(out)


def _settings(seconds: Any, guidance_scale: Any, temperature: Any, top_k: Any, batch_size: Any) -> dict[str, Any]:
    """Return settings as plain Python numbers, so that the caller's types do not change what a folder stores."""
    drawn = checked_settings(guidance_scale, temperature, top_k)
    return dict(zip(_SETTINGS, (checked_amount("seconds", seconds), *drawn, whole_batch_size(batch_size)), strict=True))


def _facts(
    lens: AudioLens,
    todo: Plan,
    settings: Mapping[str, Any],
    engine: str,
    names: Sequence[str],
    also: Also | None,
    sound: SoundFormat | None,
    elsewhere: bool = False,
) -> dict[str, Any]:
    """Return the facts about a sweep that `plan.json` records."""
    further = {"measures": list(names), "also": sorted(also or ()), "sound": sound}
    return facts_of(
        lens,
        todo.conditions,
        {**settings, **further},
        engine,
        clips=[list(clip) for clip in todo.clips],
        asked={one.name: [one.asked(prompt) for prompt, _ in todo.clips] for one in todo.conditions if one.ask},
        **_run_facts(lens, todo, elsewhere),
        sample_rate=lens.config.sample_rate,
        rows=len(todo),
    )


def _run_facts(lens: AudioLens, todo: Plan, elsewhere: bool) -> dict[str, Any]:
    """Return the sizes of the batches, and where they are generated."""
    device = lens.device.type if elsewhere else devices.described(lens.device)
    return {"batches": [len(batch) for batch in todo.batches], "runs": runs.first(device, len(todo.batches))}


@guarded
def load_folder(folder: str | os.PathLike[str]) -> SweepResult:
    """Load a sweep that was written with `out=`. If the sweep is unfinished, load the batches that are finished so far.

    Raises:
        InputError: if the folder contains no sweep, if none of its batches is finished, or if its format is that of
            another version.
        DamagedError: (an InputError) if a file is damaged. The error names the file. Codes and sound are checked only
            when they are requested.
    """
    path = as_path(folder)
    if path.is_dir():
        refuse_links(path)
    facts = ledgers.read_facts(path)
    own = ("measures", "also", "sound")
    settings = {"model": facts["model"]["name"]} | completed(
        {name: value for name, value in facts["settings"].items() if name not in own}
    )
    settings["engine"] = used_engine(facts)
    if found := devices_of(path):
        settings["devices"] = found
    batches = ledgers.batches_of(path, facts)
    table, done = batches.table()
    return SweepResult(
        table,
        tuple(facts["settings"]["measures"]),
        settings,
        facts["sample_rate"],
        also=tuple(facts["settings"]["also"]),
        folder=path,
        planned=facts["rows"],
        runs=runs.made(facts, done),
        _batches=batches,
        _done=done,
    )
