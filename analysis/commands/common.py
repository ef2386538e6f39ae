"""Code shared by the commands: common options, opening the model, and printing text or JSON."""

from __future__ import annotations

import inspect
import json
import math
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from audiolens.characters import printable
from audiolens.errors import AudioLensWarning, InputError

if TYPE_CHECKING:
    from pandas import DataFrame

    from audiolens import AudioLens
    from audiolens.prompts import PromptSet

STOPPED = 130
"""The exit code after Ctrl-C."""
_PANEL = "Model and device"
Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="`etude` (bundled), a folder, or a hub name like facebook/musicgen-small.",
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|cuda:1|mps", help="Device of the model. auto takes a GPU if there is one, and says so.",
        rich_help_panel=_PANEL,
    ),
]  # fmt: skip
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        help="Number format. auto is bfloat16 on a GPU that computes in it natively, and float32 elsewhere.",
        rich_help_panel=_PANEL,
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(help="Branch, tag or commit of a hub model [default: the newest].", rich_help_panel=_PANEL),
]
DeviceMap = Annotated[
    Literal["auto", "balanced", "balanced_low_0", "sequential"] | None,
    typer.Option(help="Distribute the model over several GPUs (needs accelerate).", rich_help_panel=_PANEL),
]
Attention = Annotated[
    Literal["sdpa", "flash_attention_2", "eager"] | None,
    typer.Option(
        help="Attention of the decoder. flash_attention_2 needs flash-attn, a CUDA GPU and half precision "
        "[default: sdpa].",
        rich_help_panel=_PANEL,
    ),
]
Force = Annotated[bool, typer.Option("--force", "--overwrite", help="Replace an existing result.")]
Engine = Annotated[
    Literal["auto", "exact", "fast"],
    typer.Option(
        help="exact (transformers), fast (the same codes sooner, up to rounding), or auto (fast, if both agree on "
        "the first of several batches).",
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Distribute the clips over a Ray cluster: auto (that of this machine, started if needed), or an address "
        "such as 10.0.0.1:6379.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Workers on the Ray cluster, each with its own model [default: as many as it has room for]."),
]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(help="GPUs of each Ray worker, such as 1 or 0.5 [default: 1 if the model is on a GPU]."),
]
Batch = Annotated[
    str,
    typer.Option(
        "--batch-size",
        "--batch",
        metavar="auto|N",
        help="Maximum number of clips per batch; auto is 64. A batch that does not fit in memory is halved.",
    ),
]
Assigned = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="A setting by its name in such a file, such as seed=1 in a study's or seeds=4 in a sweep's; repeatable.",
    ),
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="tensorboard:FOLDER|wandb:PROJECT|mlflow:EXPERIMENT",
        help="Log every finished clip to a tracker, whose package must be installed; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print machine-readable JSON instead of text.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model that a command opens, and the device, dtype and attention with which it runs."""

    model: Model = "etude"
    device: Device = "auto"
    dtype: Dtype = "auto"
    revision: Revision = None
    device_map: DeviceMap = None
    attention: Attention = None


ETUDE = ModelOptions()
"""The defaults of the options."""


def opens_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command all options in `ModelOptions`. It receives them as one value, its parameter `model`."""
    options = inspect.signature(ModelOptions, eval_str=True).parameters
    parameters: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        parameters |= options if name == "model" else {name: parameter}

    @wraps(command)
    def given(**arguments: Any) -> None:
        chosen = {name: arguments.pop(name) for name in options}
        command(**arguments, model=ModelOptions(**chosen))

    vars(given)["__signature__"] = inspect.Signature([*parameters.values()])
    return given


def typed(context: typer.Context) -> frozenset[str]:
    """Return the names of the parameters that the command line gives, rather than their defaults."""
    return frozenset(name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE"))


def given_once(assigned: Mapping[str, Any], given: frozenset[str], options: Mapping[str, str]) -> Mapping[str, Any]:
    """Return the settings of `--set`, after checking that no option gives one of them too.

    `options` has the name of a setting's option where it differs.
    """
    for name in assigned:
        if (option := options.get(name, name)) in given:
            raise InputError(f"--set {name} and an option ({option}) were both given: give one.")
    return assigned


def with_stated(options: ModelOptions, given: frozenset[str], model: str | None, revision: str | None) -> ModelOptions:
    """Return the options of a model, with what a file of settings states where the command line gives nothing.

    The revision in a file is one of the model in the file, so it is not taken for another model.
    """
    if model is not None and "model" not in given:
        options = replace(options, model=model)
    if revision is not None and "revision" not in given and options.model == model:
        options = replace(options, revision=revision)
    return options


@contextmanager
def logging_to(trackers: Sequence[tuple[str, str]]) -> Iterator[Callable[[DataFrame], None] | None]:
    """Open the trackers of `--log`, and yield a function that logs rows to all of them, or `None` if there is none."""
    if not trackers:
        yield None
        return
    from analysis.sweep.rows import handing
    from analysis.trackers import opened

    with ExitStack() as stack:
        # One that fails must not keep rows from the others.
        hands = [handing(stack.enter_context(opened(*one))) for one in trackers]

        def log(rows: DataFrame) -> None:
            for hand in hands:
                hand(rows)

        yield log


def open_lens(options: ModelOptions) -> AudioLens:
    """Open the model of a command, and print a line if `--device auto` has found a GPU."""
    from audiolens import AudioLens

    lens = AudioLens.from_pretrained(
        options.model,
        device=None if options.device_map else options.device,
        dtype=options.dtype,
        revision=options.revision,
        device_map=options.device_map,
        attention=options.attention,
    )
    if options.device == "auto" and lens.device.type != "cpu":
        from audiolens.model.devices import described

        say(
            f"audiolens: running on {described(lens.device)} in {str(lens.dtype).removeprefix('torch.')} (--device cpu "
            "and --dtype float32 change this).",
            err=True,
        )
    return lens


def prompt_set(concept: str, lens: AudioLens) -> PromptSet:
    """Return the prompts of a bundled concept, in words that the model knows, or those in a file (see `completed`)."""
    from audiolens import prompts

    return completed(own_prompts(concept), lens) if is_prompt_file(concept) else prompts.load(concept, lens=lens)


def own_prompts(*paths: str | Path, **options: Any) -> PromptSet:
    """Read the prompts in one file, or in one file per pole, and print any warnings about them on stderr."""
    from audiolens import prompts

    read: Any = prompts.from_file if len(paths) == 1 else prompts.from_files
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AudioLensWarning)
        sets = read(*paths, **options)
    for one in caught:
        say(f"audiolens: {one.message}", err=True)
    return sets


def completed(own: PromptSet, lens: AudioLens, words: tuple[str, str] | None = None) -> PromptSet:
    """Return the user's prompts, adding bundled neutral prompts and words for the poles if they are missing."""
    from audiolens import prompts

    return own.completed(prompts.load("tempo", lens=lens), words)


def words_unread(sets: PromptSet, lens: AudioLens) -> str | None:
    """Return a message if the model cannot distinguish the words for the two poles, else `None`."""
    from audiolens.model import text

    high, low = (sets.words(pole)[0] for pole in sets.poles)
    if text.read_alike(high, low, lens.tokenizer):
        return f"audiolens: {sets.concept!r}: the model does not know {high!r} or {low!r}, so it reads them alike"
    return None


def is_prompt_file(name: str) -> bool:
    """Return whether a name refers to a prompt file instead of a bundled concept, judging by its suffix."""
    return Path(name).suffix.lower() in (".csv", ".json", ".toml")


def command_line() -> str:
    """Return the command line as typed, with undecodable bytes in file names escaped."""
    return printable(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]))


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line with control characters escaped, because names and labels can come from untrusted files."""
    typer.echo(printable(text), err=err)


def stop(kept: str) -> NoReturn:
    """State what a command that was interrupted has kept, and exit."""
    say(f"\nStopped; {kept}. Run the same command again to resume.", err=True)
    raise SystemExit(STOPPED)


def say_json(file: Path) -> None:
    """Print the contents of a JSON file, with non-ASCII characters escaped."""
    typer.echo(json.dumps(json.loads(file.read_text("utf-8")), indent=2))


def print_table(rows: Sequence[Mapping[Any, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(printable(name))
    for row in rows:
        table.add_row(*(printable(str(value)) for value in row.values()))
    # A pipe has no width, so lines are not wrapped when the output is piped. Markup is off because units such as
    # "[dBFS]" and file names can contain brackets.
    wide = None if sys.stdout.isatty() else max(200, sum(len(n) + 12 for n in rows[0]))
    console = Console(width=wide, markup=False)
    console.print(table)


def cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def write_result(found: Any, folder: Path, name: str) -> None:
    """Write a result's table (CSV) and figure (PNG, SVG, HTML) to files with this name."""
    import matplotlib as mpl

    from analysis.figures.literal import as_typed
    from analysis.report import live
    from analysis.spreadsheets import csv_of

    (folder / f"{name}.csv").write_text(csv_of(found.to_frame()), "utf-8")
    figure = found.plot()
    # Without a fixed salt, the ids in an SVG are random.
    with as_typed(), mpl.rc_context({"svg.hashsalt": "audiolens"}):
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    live.write(found.figure(), folder / f"{name}.html", name)


def print_result(found: Any, as_json: bool, columns: Sequence[str], **only: Any) -> None:
    """Print a result's finding and table.

    JSON output contains the whole table. Text output contains only the given columns, and only the rows that match
    `only`.
    """
    if as_json:
        say(to_json(as_facts(found)))
        return
    table = found.to_frame()
    say(repr(found))
    for name, value in only.items():
        table = table[table[name] == value]
    kept = table[[name for name in columns if name in table]]
    print_table([{key: cell(value) for key, value in row.items()} for row in kept.to_dict("records")])


def as_facts(found: Any) -> dict[str, Any]:
    """Return a result's finding and its whole table as plain values."""
    return {"finding": repr(found), "rows": rows_of(found.to_frame())}


def rows_of(table: DataFrame) -> list[dict[Any, Any]]:
    """Return a table's rows as plain values, with None for what is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def to_json(value: Any) -> str:
    return json.dumps(_null(value), default=str, allow_nan=False)


def _null(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, with null."""
    if isinstance(value, Mapping):
        return {key: _null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
