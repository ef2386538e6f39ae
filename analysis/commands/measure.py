"""`audiolens measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.common import Json, cell, print_table, to_json
from audiolens.errors import InputError


def measure(files: Annotated[list[Path], typer.Argument(help="Sound files.")], as_json: Json = False) -> None:
    """What is heard in sound files: tempo, onset rate, brightness, loudness, register, mode.

    Example:

        audiolens measure clips/*.wav
    """
    from audiolens import measure as measures
    from audiolens import soundfiles

    rows = []
    for file in files:
        samples, sample_rate = soundfiles.read(file)
        try:
            values = measures.table(samples[None], sample_rate).iloc[0].to_dict()
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None
        rows.append({"file": str(file), **values})
    if as_json:
        typer.echo(to_json(rows))
        return
    units = {name: f"{name} [{unit}]" if unit else name for name, unit in measures.UNITS.items()}
    print_table([{units.get(key, key): cell(value) for key, value in row.items()} for row in rows])
