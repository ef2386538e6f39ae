"""Run a whole study in one call, from a concept to the effect of steering along its direction.

Directions are read at every block and compared between blocks. The place (a strategy and a block) is chosen from
evidence without steering, or by steering at every block on development prompts. The chosen place and strength are then
tested on test prompts. The effect is compared with the effects of control directions and of prompts that ask for the
concept. Finished stages stay in the folder, so repeating the call resumes an interrupted study.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.distributed.opening import check_ray
from analysis.distributed.settings import Ray
from analysis.study import others as other_concepts
from analysis.study import pipeline, stages
from analysis.study.made import made_of
from analysis.study.result import Study
from analysis.study.settings import Settings, settings_or_default
from analysis.study.stages import Stages
from analysis.sweep.concept_measures import refuse_unknown
from analysis.sweep.rows import OnRows, handing
from audiolens.checks import checked_flags, checked_text
from audiolens.door import guarded
from audiolens.files.atomic import aside, settle
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet, load

if TYPE_CHECKING:
    from audiolens import AudioLens


@guarded
def prompts_of(concept: str | PromptSet, lens: AudioLens | None = None, settings: Settings | None = None) -> PromptSet:
    """Return the prompts of a concept. With a lens, the prompts use words that its tokenizer knows (`prompts.load`).

    Raises:
        InputError: if the concept is unknown (the error names the nearest known one) or has no measure.
    """
    chosen = settings_or_default(settings)
    sets = concept if isinstance(concept, PromptSet) else None
    if sets is None:
        refuse_unknown(concept, chosen.measured)
        sets = load(concept, lens=lens)  # pyright: ignore[reportArgumentType]
    chosen.measure_of(sets.concept)
    return sets


@guarded
@named_once
def run(
    lens: AudioLens,
    concept: str | PromptSet,
    out: str | os.PathLike[str] | None = None,
    *,
    settings: Settings | None = None,
    others: Sequence[str | PromptSet] | None = None,
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    command: str = "",
    ray: Ray | None = None,
    figures: Sequence[str] = (),
    on_rows: OnRows | None = None,
) -> Study:
    """Study a concept on a model and write the results to a folder.

    Args:
        lens: the model.
        concept: "tempo", "timbre", "density", "register", or a prompt set. A prompt set with any other name needs
            `settings.measured`.
        out: folder to write. With `None` nothing is written, but `study.save` can still write the study. Finished
            stages stay in the folder, so if a run is interrupted at any point, repeating the call resumes it and
            produces the same tables. If the settings changed, only the stages that depend on them run again. A finished
            study with different settings is replaced only with `overwrite`.
        settings: sizes and sampling (default: `Settings()`, a quick study; use `Settings.full()` for evidence).
        others: other concepts, by name or as prompt sets, whose directions are controls. By default, these are
            the bundled concepts that the model can read and that have a different measure. An effect is claimed only
            if none of their directions has as large an effect.
        overwrite: replace a study that has a different concept, model, version or settings. If the folder contains
            anything else, an error is raised. Stages that this study can reuse are kept. To redo every stage, remove
            the folder first.
        progress: show progress bars.
        tell: a function that is called with each line of progress. The first lines describe the plan, and later lines
            describe each stage.
        command: the command that reproduces this study, to be shown on its page.
        ray: a Ray cluster whose workers generate and measure the clips of the study's sweeps, as in `sweep.play`. The
            other stages run in this process.
        figures: the kinds of files in which figures are written besides SVG ("pdf", "png").
        on_rows: a function that is called with the rows of every batch of the study's sweeps, as in `sweep.play`. The
            first column, `stage`, names the sweep ("scan", "strength", "dose-response" or "controls").

    Raises:
        InputError: before the model runs, if the concept is unknown, the settings are out of range, or the folder
            contains something else or cannot be created or written to.
        BusyError: if another process is working in the folder.
        StoppedError: if the disk is full or a worker process died. Finished stages are kept.
    """
    checked_flags(overwrite=overwrite, progress=progress)
    checked_text("command", command)
    from analysis.report.writer import checked_kinds

    checked_kinds(figures)
    hand = None if on_rows is None else handing(on_rows)
    chosen = settings_or_default(settings)
    check_ray(chosen.n_jobs, ray)
    sets = prompts_of(concept, lens, chosen)
    chosen.check(lens, sets)
    compared = other_concepts.chosen(lens, sets, chosen.measure_of(sets.concept), others)
    if out is not None and not overwrite:
        names = [one.concept for one in compared]
        stages.refuse_other_settings(Path(out), {**asdict(chosen), "others": names})
    if out is None:
        return _run(lens, sets, chosen, Stages(), progress, tell, compared, ray, hand)
    common = stages.common_of(lens)
    facts = {"concept": sets.concept, "model": lens.name, "weights": common["weights"], "versions": common["versions"]}
    with stages.begun(out, facts, common, overwrite=overwrite) as kept:
        study = _run(lens, sets, chosen, kept, progress, tell, compared, ray, hand)
        started = time.perf_counter()
        write(study, Path(out), command, kept.used, kept.check, figures)
        tell(f"figures and page: {time.perf_counter() - started:.0f} s")
    return study


def write(
    study: Study,
    folder: Path,
    command: str,
    used: Iterable[str],
    check: Callable[[], None],
    figures: Sequence[str] = (),
) -> None:
    """Write tables, figures, sounds and the page next to the stages `used`.

    The function `check` raises an error if a stage is gone. `figures` are further kinds of files (`Study.save`).
    """
    from analysis import report

    check()
    with aside(folder) as work:
        report.write(study, work, command=command, figures=figures)
        check()
        (work / stages.MADE).write_bytes(made_of(folder, work, used))
        settle(work)
        stages.show(work, folder)


def _run(
    lens: AudioLens,
    sets: PromptSet,
    settings: Settings,
    kept: Stages,
    progress: bool,
    tell: Callable[[str], None],
    others: Sequence[PromptSet],
    ray: Ray | None,
    on_rows: OnRows | None,
) -> Study:
    return pipeline.follow(lens, sets, settings, kept, progress, tell, others, ray, on_rows)
