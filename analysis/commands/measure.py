"""The command `audiolens measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.commands.common import Json, cell, print_table, say, to_json
from audiolens.errors import InputError


def measure(
    files: Annotated[list[Path], typer.Argument(help="Sound files (WAV, FLAC, OGG, MP3, AIFF), mono or stereo.")],
    measures: Annotated[
        str | None, typer.Option(help="Measures, such as tempo,brightness; tempo_beat_this needs audiolens[beats].")
    ] = None,
    seconds: Annotated[
        str | None,
        typer.Option(metavar="FROM:TO", help="Measure only this span; required for files over ten minutes."),
    ] = None,
    jobs: Annotated[int, typer.Option(help="Number of processes (-1: one per core); does not affect results.")] = 1,
    as_json: Json = False,
) -> None:
    """Measure the tempo, onsets, brightness, loudness, register, key and mode of sound files.

    A cell is empty (null in JSON) if the measure is undefined, such as the tempo of silence or the pitch of noise.
    Files that cannot be measured are listed with the reason below the table, and the exit code is then 2.

    Example:

        audiolens measure clips/*.wav --measures tempo,brightness
    """
    if jobs == 0 or jobs < -1:
        raise InputError(f"--jobs {jobs}: expected a number of processes, or -1 for one per core.")
    from audiolens import measure as hearing

    names = None if measures is None else [name.strip() for name in measures.split(",")]
    frame, refused = hearing.table_of_files(files, names, n_jobs=jobs, seconds=_span(seconds))
    rows: list[dict[str, Any]] = frame.to_dict("records")  # pyright: ignore[reportAssignmentType]
    if as_json:
        say(to_json([*rows, *({"file": file, "error": why} for file, why in refused.items())]))
    elif rows:
        units = {"seconds": "s", **hearing.UNITS}
        heads = {name: f"{name} [{units[name]}]" if units.get(name) else name for name in map(str, frame.columns)}
        print_table([{heads[name]: _shown(value) for name, value in row.items()} for row in rows])
    for why in refused.values():
        say(f"audiolens: {' '.join(why.split())}", err=True)
    if refused:
        raise typer.Exit(2)


def _shown(value: Any) -> str:
    return "" if value != value else cell(value)


def _span(seconds: str | None) -> tuple[float, float] | None:
    if seconds is None:
        return None
    try:
        start, stop = (float(part) for part in seconds.split(":"))
    except ValueError:
        raise InputError(f"--seconds {seconds}: expected FROM:TO in seconds, such as 0:60.") from None
    return start, stop
