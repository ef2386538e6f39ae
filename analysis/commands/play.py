"""The command `audiolens play`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from analysis.commands import early
from analysis.commands.common import ETUDE, ModelOptions, open_lens, opens_model, say
from audiolens.checks import checked_amount, checked_count
from audiolens.errors import InputError, MissingPackageError

NEEDED = ("starlette", "uvicorn", "platformdirs")
_MOST_SECONDS = 120.0


@opens_model
def play(
    given: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE|FOLDER]...", help="Files of directions, or folders of finished studies, as further sliders."
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. 127.0.0.1 is this machine alone, 0.0.0.0 its whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 7860,
    longest: Annotated[
        float, typer.Option(help="The longest clip in seconds that a visitor can ask for, at most 120.")
    ] = 30.0,
    model: ModelOptions = ETUDE,
) -> None:
    """Open a page on this machine on which sliders steer clips.

    The page fetches nothing from elsewhere. Ctrl-C stops it.

    Examples:

        audiolens play

        audiolens play tempo.safetensors study-timbre --port 8000
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise MissingPackageError(
            f"the playground needs {', '.join(missing)}, not installed here: pip install 'audiolens[play]'."
        )
    for path in given or []:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder.")
    checked_count("--port", port, 0, 65535)
    if not checked_amount("--longest", longest, above=0) <= _MOST_SECONDS:
        raise InputError(f"--longest {longest:g}: expected at most {_MOST_SECONDS:g} seconds.")
    early.check_model(model)
    from analysis.playground.address import is_local, listening

    with listening(host, port) as bound:
        lens = open_lens(model)
        from analysis.playground import server
        from analysis.playground.shelf import Shelf
        from analysis.playground.studio import Studio

        opened = {
            "name": model.model,
            "device": None if model.device_map else str(lens.device),
            "dtype": str(lens.dtype).removeprefix("torch."),
            "revision": model.revision,
            "device_map": model.device_map,
            "attention": model.attention,
        }
        studio = Studio(lens, Shelf(lens, given or []), opened, longest)
        studio.warm()
        others = "" if is_local(host) else " Everybody whose network reaches this machine can use it."
        server.serve(studio, bound, host, lambda address: say(f"Open {address} in a browser. Ctrl-C stops it.{others}"))
