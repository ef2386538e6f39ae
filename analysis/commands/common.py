"""What the commands share: options, opening the model, printing for people and for programs."""

from __future__ import annotations

import json
import math
import shlex
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audiolens.characters import printable
from audiolens.errors import AudioLensWarning

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

Model = Annotated[
    str, typer.Option("--model", "-m", help="`etude` (bundled), a folder, or a hub name like facebook/musicgen-small.")
]
Force = Annotated[bool, typer.Option("--force", "--overwrite", help="Replace a result that is there already.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]


def open_lens(model: str) -> AudioLens:
    from audiolens import AudioLens

    return AudioLens.from_pretrained(model)


def prompt_set(concept: str, lens: AudioLens) -> PromptSet:
    """A bundled concept's prompts in the words that the model reads, or those of a file, `completed`."""
    from audiolens import prompts

    return completed(own_prompts(concept), lens) if is_prompt_file(concept) else prompts.load(concept, lens=lens)


def own_prompts(*paths: str | Path, **options: Any) -> PromptSet:
    """The prompts of one file, or of a pole's file each; what gives a pole away is a line on stderr."""
    from audiolens import prompts

    read: Any = prompts.from_file if len(paths) == 1 else prompts.from_files
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", AudioLensWarning)
        sets = read(*paths, **options)
    for one in told:
        say(f"audiolens: {one.message}", err=True)
    return sets


def completed(own: PromptSet, lens: AudioLens, words: tuple[str, str] | None = None) -> PromptSet:
    """One's own prompts with the bundled neutral ones, and words for the poles, where they have none."""
    from audiolens import prompts

    return own.completed(prompts.load("tempo", lens=lens), words)


def words_unread(sets: PromptSet, lens: AudioLens) -> str | None:
    """Says that the model tells the poles' words not apart, if it does not."""
    from audiolens.model import text

    high, low = (sets.words(pole)[0] for pole in sets.poles)
    if text.read_alike(high, low, lens.tokenizer):
        return f"audiolens: {sets.concept!r}: the model reads {high!r} and {low!r} alike, for it knows neither"
    return None


def is_prompt_file(name: str) -> bool:
    """Whether a concept is given as a file of prompts, by its ending."""
    return Path(name).suffix.lower() in (".csv", ".json", ".toml")


def command_line() -> str:
    """What was typed; a file's name may hold bytes that are no text, and a page cannot."""
    return printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def say(text: str = "", *, err: bool = False) -> None:
    """A line of output; names and labels come from files of others, and a terminal obeys some characters."""
    typer.echo(printable(text), err=err)


def say_json(file: Path) -> None:
    """A file of JSON, for programs: what is no plain letter in it as an escape."""
    typer.echo(json.dumps(json.loads(file.read_text("utf-8")), indent=2))


def print_table(rows: Sequence[Mapping[Any, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(printable(name))
    for row in rows:
        table.add_row(*(printable(str(value)) for value in row.values()))
    # A pipe has no width: programs that read lines get whole ones.
    # No markup: "[dBFS]" is a unit, and a file's name may hold brackets too.
    wide = None if sys.stdout.isatty() else max(200, sum(len(n) + 12 for n in rows[0]))
    console = Console(width=wide, markup=False)
    console.print(table)


def cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def write_result(found: Any, folder: Path, name: str) -> None:
    """A result's table (CSV) and figure (PNG, SVG, HTML) under a name."""
    import matplotlib as mpl

    from analysis.figures.literal import as_typed
    from analysis.report import live
    from analysis.spreadsheets import csv_of

    (folder / f"{name}.csv").write_text(csv_of(found.to_frame()), "utf-8")
    figure = found.plot()
    # Without a salt of its own, an SVG names its parts by chance.
    with as_typed(), mpl.rc_context({"svg.hashsalt": "audiolens"}):
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    live.write(found.figure(), folder / f"{name}.html", name)


def shown(found: Any, as_json: bool, columns: Sequence[str], **only: Any) -> None:
    """A result's finding and table: all of it for programs; for people these columns, and `only` the rows with them."""
    if as_json:
        say(to_json(told(found)))
        return
    table = found.to_frame()
    say(repr(found))
    for name, value in only.items():
        table = table[table[name] == value]
    kept = table[[name for name in columns if name in table]]
    print_table([{key: cell(value) for key, value in row.items()} for row in kept.to_dict("records")])


def told(found: Any) -> dict[str, Any]:
    """A result's finding and the whole of its table."""
    table = found.to_frame()
    return {"finding": repr(found), "rows": table.astype(object).where(table.notna(), None).to_dict("records")}


def to_json(value: Any) -> str:
    return json.dumps(_null(value), default=str, allow_nan=False)


def _null(value: Any) -> Any:
    """The same with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
