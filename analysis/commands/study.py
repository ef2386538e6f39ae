"""`audiolens study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands.common import Force, Json, Model, command_line, open_lens
from audiolens.errors import InputError


def study(
    concept: Annotated[str, typer.Argument(help="tempo, timbre, density or register.")],
    model: Model = "etude",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write [default: study-CONCEPT].")] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="All controls and more prompts, or done in five minutes.")
    ] = False,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="The paper's protocol: read at the text's end, one-to-all, both branches, ±1.25."),
    ] = False,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    seed: Annotated[int, typer.Option(help="0 to 99: another one is an independent repetition.")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """The whole experiment: from a concept to what steering along its direction does, as a folder with a page.

    Directions are read at every block and compared; steering is tried at every block on development prompts; the best
    is reported on test prompts beside random directions and beside asking in words.

    Examples:

        audiolens study tempo

        audiolens study timbre --out runs/timbre --force

        audiolens study tempo --full --model facebook/musicgen-small

        audiolens study tempo --paper --model facebook/musicgen-melody
    """
    from analysis import folder
    from analysis import study as studies
    from analysis.listening import share_cores

    if paper and full:
        raise InputError("--full and --paper are two studies: give one of them.")
    target = out or Path(f"study-{concept}")
    studies.prompts_of(concept)
    folder.check(target, overwrite=force)
    changes: dict[str, Any] = {"seconds": seconds, "seed": seed}
    lens = open_lens(model)
    if paper:
        settings = studies.Settings.paper(lens, **changes)
    else:
        settings = studies.Settings.full(**changes) if full else studies.Settings(**changes)
    share_cores()
    found = studies.run(
        lens,
        concept,
        target,
        settings=settings,
        overwrite=force,
        progress=not as_json,
        tell=lambda line: typer.echo(line, err=True),
        command=command_line(),
    )
    if as_json:
        typer.echo((target / "summary.json").read_text("utf-8"))
        return
    typer.echo(f"\n{found.finding}\n\n{target / 'index.html'} shows it; the clips are in {target / 'audio'}.")
