"""The study: from a concept to what steering along its direction does, in one call.

Directions are read at every block, compared and looked at; evidence says where one is added, or else steering is tried
at every block on development prompts; the place and the best strength are reported on test prompts, beside random
directions and beside asking in words. What is finished stays in the folder, and the same call goes on with it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.study import pipeline, stages
from analysis.study.made import made_of
from analysis.study.result import Study
from analysis.study.settings import Settings
from analysis.study.stages import Stages
from analysis.sweep.response import MEASURED
from audiolens.checks import checked_flags, checked_text
from audiolens.door import guarded
from audiolens.errors import InputError, nearest, shortened
from audiolens.files.atomic import aside
from audiolens.model.tokens import named_once
from audiolens.prompts import PromptSet, concepts, load

if TYPE_CHECKING:
    from audiolens import AudioLens


@guarded
def prompts_of(concept: str | PromptSet, lens: AudioLens | None = None, settings: Settings | None = None) -> PromptSet:
    """The prompts of a concept that can be studied, with a lens in the words that it reads (`prompts.load`).

    Raises:
        InputError: for an unknown concept, naming the nearest that can be studied, or one that no measure hears.
    """
    chosen = settings or Settings()
    sets = concept if isinstance(concept, PromptSet) else None
    if sets is None:
        if concept not in concepts():
            known = [name for name in concepts() if chosen.measured or name in MEASURED]
            raise InputError(
                f"unknown concept {concept!r}.{nearest(str(concept), known)} Known: {shortened(known)}; or a .csv, "
                ".json or .toml file of prompts."
            )
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
    overwrite: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> Study:
    """Study a concept on a model, and write the results to a folder.

    Args:
        lens: the model.
        concept: "tempo", "timbre", "density", "register", or a prompt set (of another name with `settings.measured`).
        out: folder to write (`None` writes nothing; `study.save` still can). Finished stages stay in it: the same call
            goes on where it was stopped, at any moment, and ends with the same tables. Other settings make only what
            follows from them anew; a finished study of other settings is replaced only with `overwrite`.
        settings: how much of everything (default: `Settings()`, which hurries; `Settings.full()` is the evidence).
        overwrite: let this study take the place of one of other settings, concept, model or version. Any other folder
            is refused. Stages that this study follows from are kept; to make all anew, remove the folder.
        progress: show bars.
        tell: is told the plan and the stages, a line at a time.
        command: what reproduces this study; stands in its page.

    Raises:
        InputError: before the model runs: for an unknown concept, a folder that holds something else or cannot be
            written, or settings out of range.
        BusyError: if another process is at work in the folder.
        StoppedError: for a disk that is full or a process that died; what is finished is kept.
    """
    checked_flags(overwrite=overwrite, progress=progress)
    checked_text("command", command)
    chosen = settings or Settings()
    sets = prompts_of(concept, lens, chosen)
    chosen.check(lens, sets)
    if out is not None and not overwrite:
        stages.refuse_other_settings(Path(out), asdict(chosen))
    if out is None:
        return _run(lens, sets, chosen, Stages(), progress, tell)
    common = stages.common_of(lens)
    facts = {"concept": sets.concept, "model": lens.name, "weights": common["weights"], "versions": common["versions"]}
    with stages.begun(out, facts, common, overwrite=overwrite) as kept:
        study = _run(lens, sets, chosen, kept, progress, tell)
        started = time.perf_counter()
        write(study, Path(out), command, kept.used, kept.check)
        tell(f"figures and page: {time.perf_counter() - started:.0f} s")
    return study


def write(study: Study, folder: Path, command: str, used: Iterable[str], check: Callable[[], None]) -> None:
    """Put tables, figures, sound and page into a folder that holds the stages `used`, if `check` finds them there."""
    from analysis import report

    check()
    with aside(folder) as work:
        report.write(study, work, command=command)
        check()
        (work / stages.MADE).write_bytes(made_of(folder, work, used))
        stages.show(work, folder)


def _run(
    lens: AudioLens,
    sets: PromptSet,
    settings: Settings,
    kept: Stages,
    progress: bool,
    tell: Callable[[str], None],
) -> Study:
    return pipeline.follow(lens, sets, settings, kept, progress, tell)
