"""The `audiolens` command: studies, steered clips, directions, measures and models, without writing Python.

Nothing heavy is imported before a command needs it, so help appears at once. Whatever audiolens refuses ends in one
line on stderr and exit code 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from audiolens.errors import AudioLensError, InputError

if TYPE_CHECKING:
    from audiolens import AudioLens

app = typer.Typer(
    name="audiolens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Open a text-to-music model, find where a musical concept lives, and turn it up or down while it plays.\n\n"
    "Start with `audiolens study tempo`: it runs offline on the bundled model, **étude**, in a few minutes.",
)


class _Read(TyperGroup):
    """`audiolens directions tempo` is `audiolens directions read tempo`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["read", *args])


directions_app = typer.Typer(
    cls=_Read,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Read a concept's directions (`audiolens directions tempo -o tempo.safetensors`), or `show` a file of them.",
)
app.add_typer(directions_app, name="directions")

Model = Annotated[
    str, typer.Option("--model", "-m", help="`etude` (bundled), a folder, or a hub name like facebook/musicgen-small.")
]
Force = Annotated[bool, typer.Option("--force", "--overwrite", help="Replace a result that is there already.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]
_STOPPED = 130
# Some versions of typer carry a click of their own, others take the installed one: this is the right class in both.
_UsageError: Any = typer.BadParameter.__bases__[0]


@app.command()
def study(
    concept: Annotated[str, typer.Argument(help="tempo, timbre, density or register.")],
    model: Model = "etude",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write [default: study-CONCEPT].")] = None,
    full: Annotated[
        bool, typer.Option("--full/--quick", help="All controls and more prompts, or done in five minutes.")
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
    """
    from analysis import folder
    from analysis import study as studies
    from analysis.listening import share_cores

    target = out or Path(f"study-{concept}")
    studies.prompts_of(concept)
    folder.check(target, overwrite=force)
    changes: dict[str, Any] = {"seconds": seconds, "seed": seed}
    settings = studies.Settings.full(**changes) if full else studies.Settings(**changes)
    lens = _open(model)
    share_cores()
    found = studies.run(
        lens,
        concept,
        target,
        settings=settings,
        overwrite=force,
        progress=not as_json,
        tell=lambda line: typer.echo(line, err=True),
        command=_command(),
    )
    if as_json:
        typer.echo((target / "summary.json").read_text("utf-8"))
        return
    typer.echo(f"\n{found.finding}\n\n{target / 'index.html'} shows it; the clips are in {target / 'audio'}.")


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="One or more prompts, each in quotes.")],
    steer: Annotated[
        list[str] | None,
        typer.Option("--steer", "-s", help="FILE:STRENGTH, e.g. tempo.safetensors:+0.125. May be given several times."),
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Whose block's direction [default: the middle one's].")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="one-to-one, one-to-all, one-to-band or all-to-all [default: one-to-all].")
    ] = None,
    band: Annotated[
        str | None, typer.Option(help="Blocks of one-to-band, such as 4-8, which this option chooses.")
    ] = None,
    branch: Annotated[
        str | None, typer.Option(help="Which half of the guidance is steered: cond, null or both [default: both].")
    ] = None,
    orthogonal: Annotated[
        bool, typer.Option("--orthogonal", help="Free each direction of those given before it.")
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Write the unsteered clips of the same seeds too.")
    ] = False,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Of the first prompt; the next takes the next.")] = 0,
    guidance: Annotated[float, typer.Option(help="How closely the prompt is followed; 1 is no guidance.")] = 3.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for the WAVs.")] = Path("clips"),
    model: Model = "etude",
    as_json: Json = False,
) -> None:
    """Generate clips, steered or not. The same prompt and seed always give the same clip.

    Examples:

        audiolens generate "a little tune with drums" -o tune

        audiolens generate "a little tune with drums" --steer study-tempo/directions.safetensors:+0.125 --baseline

        audiolens generate "a little tune" -s tempo.safetensors:+0.125 -s timbre.safetensors:-0.125 --orthogonal
    """
    from analysis import folder, placing

    todo = [placing.asked(text) for text in steer or []]
    blocks = placing.band_of(band)
    where = {"--layer": layer, "--strategy": strategy, "--band": band, "--branch": branch}
    for option, value in {**where, "--orthogonal": orthogonal or None}.items():
        if value is not None and not todo:
            raise InputError(f"{option} says where a direction is added, and there is none: give one with --steer.")
    folder.check(out, overwrite=None)
    lens = _open(model)
    steps = placing.placed(
        todo, lens, layer=layer, strategy=strategy, band=blocks, branch=branch or "both", orthogonal=orthogonal
    )
    made: dict[str, Any] = {
        "seconds": seconds,
        "seeds": list(range(seed, seed + len(prompts))),
        "guidance_scale": guidance,
    }
    with folder.fresh(out, overwrite=None) as work:
        clips = lens.generate(prompts, interventions=steps, **made)
        if baseline and steps:
            lens.generate(prompts, **made).save(work / "baseline")
            clips.save(work / "steered")
        else:
            clips.save(work)
    written = sorted(str(path) for path in out.rglob("*.wav"))
    typer.echo(_json(written) if as_json else "\n".join(written))


@directions_app.command("read")
def directions_read(
    concept: Annotated[str, typer.Argument(help="A bundled concept, or a .csv, .json or .toml file of prompts.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write.")] = Path("directions.safetensors"),
    model: Model = "etude",
    position: Annotated[str, typer.Option(help="mean, first, last, or eos (MusicGen Melody).")] = "mean",
    branch: Annotated[str, typer.Option(help="Which half of the guidance is read: cond, null or both.")] = "cond",
    seconds: Annotated[float, typer.Option(help="Length of the clips generated for reading.")] = 2.0,
    vocabulary: Annotated[
        str | None, typer.Option(help="Of a bundled concept: etude or english [default: what the model reads].")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Read a concept's direction at every block (difference of means), into a safetensors file.

    Examples:

        audiolens directions tempo -o tempo.safetensors

        audiolens directions my-prompts.csv -o mine.safetensors
    """
    from analysis import folder
    from audiolens import difference_in_means
    from audiolens import prompts as sets_of

    folder.check_file(out, overwrite=force)
    own = bool(Path(concept).suffix)
    sets = sets_of.from_file(concept) if own else sets_of.load(concept, vocabulary)
    lens = _open(model)
    if not own:
        sets = sets_of.load(concept, vocabulary, lens=lens)
    found = difference_in_means(
        lens,
        sets.positive,
        sets.negative,
        position=position,  # pyright: ignore[reportArgumentType]  # checked there
        branch=branch,  # pyright: ignore[reportArgumentType]
        seconds=seconds,
        label=sets.concept,
        progress=not as_json,
    )
    found.save(out)
    _show(found, out, as_json)


@directions_app.command("show")
def directions_show(file: Annotated[Path, typer.Argument(help="A directions file.")], as_json: Json = False) -> None:
    """What a directions file holds: model, place, prompts, and the evidence at every block."""
    from audiolens import Directions

    _show(Directions.load(file), file, as_json)


@app.command()
def models(as_json: Json = False) -> None:
    """The models there are: what is on this disk works offline; any other hub name or folder of the family will do."""
    from audiolens.loading import BUNDLED, HUB

    rows = [
        {"model": name, "kind": "bundled", "here": (folder / "config.json").is_file()}
        for name, folder in BUNDLED.items()
    ] + [{"model": name, "kind": "hub", "here": _downloaded(name)} for name in HUB]
    if as_json:
        typer.echo(_json(rows))
        return
    _table([{**row, "here": "ready, works offline" if row["here"] else "not on this disk"} for row in rows])


@app.command()
def measure(files: Annotated[list[Path], typer.Argument(help="Sound files.")], as_json: Json = False) -> None:
    """What is heard in sound files: tempo, onset rate, brightness, loudness, register, mode.

    Example:

        audiolens measure clips/*.wav
    """
    from audiolens import measure as measures

    rows = []
    for file in files:
        samples, sample_rate = _sound(file)
        try:
            values = measures.table(samples, sample_rate).iloc[0].to_dict()
        except ValueError as error:
            raise InputError(f"{file}: {error}") from None
        rows.append({"file": str(file), **values})
    if as_json:
        typer.echo(_json(rows))
        return
    units = {name: f"{name} [{unit}]" if unit else name for name, unit in measures.UNITS.items()}
    _table([{units.get(key, key): _cell(value) for key, value in row.items()} for row in rows])


def main() -> None:
    """Run the command line: one line and exit code 2 for what audiolens refuses, a traceback for bugs."""
    # Their notes on configurations and retries would bury the one line that matters. Read when they are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        code = app(prog_name="audiolens", standalone_mode=False)
    except _UsageError as error:
        message = error.format_message()
        if not message:
            # No arguments: help has been printed instead.
            sys.exit(error.exit_code)
        command = error.ctx.command_path if error.ctx else "audiolens"
        _refuse(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {command} --help.")
    except AudioLensError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror or error}.")
    else:
        # What a command returns is nothing; typer returns the code of --help, and of Ctrl-C.
        if code == _STOPPED:
            typer.echo("Stopped; nothing was written.", err=True)
        sys.exit(code or 0)


def _refuse(message: str) -> None:
    typer.echo(f"audiolens: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _open(model: str) -> AudioLens:
    from audiolens import AudioLens

    return AudioLens.from_pretrained(model)


def _show(found: Any, file: Path, as_json: bool) -> None:
    facts = {"file": str(file), **found.meta.as_dict(), "layers": found.to_frame().to_dict("records")}
    if as_json:
        typer.echo(_json(facts))
        return
    meta = found.meta
    clips = "" if meta.seconds is None else f" of {meta.seconds:g} s"
    versions = ", ".join(f"{name} {number}" for name, number in meta.versions.items())
    typer.echo(f"{file}: {found!r}")
    typer.echo(f"read at position {meta.position}, branch {meta.branch}, guidance {meta.guidance_scale:g}, "
               f"from {meta.source}{clips}")  # fmt: skip
    typer.echo(f"weights {meta.weights}, revision {meta.revision or 'none'}, prompts {meta.prompts}; {versions}")
    _table([{key: _cell(value) for key, value in row.items()} for row in facts["layers"]])


def _sound(file: Path) -> tuple[Any, int]:
    import soundfile

    if not file.is_file():
        raise InputError(f"{file}: no such file.")
    try:
        samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"{file} is not a sound file that can be read: {error.error_string}") from None
    return samples.T[None], sample_rate


def _downloaded(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json"), str)


def _table(rows: Sequence[Mapping[Any, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    # A pipe has no width: programs that read lines get whole ones.
    console = Console() if sys.stdout.isatty() else Console(width=max(200, sum(len(n) + 12 for n in rows[0])))
    console.print(table)


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def _json(value: Any) -> str:
    return json.dumps(_null(value), default=str, allow_nan=False)


def _null(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _command() -> str:
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


if __name__ == "__main__":
    main()
