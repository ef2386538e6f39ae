"""The `audiolens` command line, for running studies, steering clips and measuring sound without Python code.

Slow modules are imported only when a command needs them, so that help appears at once. If audiolens rejects the
input, the command prints one line on stderr and exits with code 2. Any other exception is a bug and shows its
traceback.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from analysis.commands import (
    cite,
    compare,
    directions,
    features,
    generate,
    harvest,
    hub,
    listen_test,
    measure,
    models,
    patch,
    place,
    play,
    probe,
    prompts,
    report,
    study,
    sweep,
)
from analysis.commands.common import STOPPED, say
from audiolens.characters import printable
from audiolens.errors import AudioLensError, AudioLensWarning
from audiolens.model.tokens import naming_once

app = typer.Typer(
    name="audiolens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Open a text-to-music model, find where a musical concept lives, and turn it up or down while it plays.\n\n"
    "Start with `audiolens study tempo`: it runs offline on the bundled model, **étude**, in a few minutes.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        say(f"audiolens {version('audiolens')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


for command in (
    study.study, report.report, compare.compare, place.place, probe.probe, patch.patch, sweep.sweep, generate.generate,
    harvest.harvest, features.train_sae, features.features, models.models, measure.measure, listen_test.listen_test,
    cite.cite, play.play,
):  # fmt: skip
    app.command()(command)
app.add_typer(directions.app, name="directions")
app.add_typer(prompts.app, name="prompts")
app.add_typer(hub.app, name="hub")

# Some versions of typer bundle click, and others use the installed click. This finds the right class in both cases.
_UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line. For rejected input, print one line and exit with code 2; for a bug, show the traceback."""
    # Both libraries read these variables on import. Their log messages would otherwise hide the error line.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        with naming_once(), _plainly_warned():
            code = app(prog_name="audiolens", standalone_mode=False)
    except _UsageError as error:
        message = error.format_message()
        if not message:
            # No arguments were given, and the help has already been printed.
            sys.exit(error.exit_code)
        command = error.ctx.command_path if error.ctx else "audiolens"
        _refuse(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {command} --help.")
    except AudioLensError as error:
        _refuse(str(error))
    except BrokenPipeError:
        # The reader has closed the pipe, as `head` does. Send what is still buffered to /dev/null.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        refused = _refused_by_the_disk(error) or _refused_by_the_memory(error)
        if refused is None:
            raise
        _refuse(refused)
    else:
        # Commands return None; typer returns an exit code after --help and Ctrl-C.
        if code == STOPPED:
            say("Stopped; nothing was written.", err=True)
        sys.exit(code or 0)


@contextmanager
def _plainly_warned() -> Iterator[None]:
    """Print each audiolens warning once, as one line on stderr."""
    said: set[str] = set()
    with warnings.catch_warnings():
        shown: Callable[..., None] = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, AudioLensWarning):
                shown(printable(str(message)), category, *where)
            elif str(message) not in said:
                said.add(str(message))
                say(f"audiolens: {message}", err=True)

        warnings.simplefilter("always", AudioLensWarning)
        warnings.showwarning = show
        yield


def _refused_by_the_disk(error: Exception) -> str | None:
    """Return the error line if reading or writing failed (for example because the disk is full), else `None`."""
    if isinstance(error, OSError):
        return f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}."
    libraries = (("soundfile", "LibsndfileError"), ("safetensors", "SafetensorError"), ("pyarrow", "ArrowException"))
    # Only a library that is loaded can have raised the error.
    kinds = tuple(getattr(sys.modules[name], kind) for name, kind in libraries if name in sys.modules)
    return (
        f"a file could not be written or read ({error}). Check that the disk is not full and that the file exists."
        if isinstance(error, kinds)
        else None
    )


def _refused_by_the_memory(error: Exception) -> str | None:
    """Return the error line if the device has too little memory, else `None`."""
    # Only a command that has opened a model can run out of memory.
    memory = sys.modules.get("audiolens.model.memory")
    if memory is None or not memory.ran_out(error):
        return None
    return (
        f"the device ran out of memory ({str(error).splitlines()[0]}). Use fewer or shorter clips, --dtype bfloat16, "
        "or another device."
    )


def _refuse(message: str) -> None:
    say(f"audiolens: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
