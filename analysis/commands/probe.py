"""The command `audiolens probe`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import ETUDE, Json, ModelOptions, open_lens, opens_model, print_result, write_result
from analysis.commands.sizes import Sizes
from audiolens.checks import MOST_SEED, checked_count
from audiolens.errors import InputError

if TYPE_CHECKING:
    from analysis.probing.dataset import Dataset
    from audiolens import AudioLens

_SHOWN = ("place", "score", "low", "high", "auc", "shuffled", "shuffled_high", "selectivity", "p")


@opens_model
def probe(
    concept: Annotated[
        str,
        typer.Argument(
            help="tempo, timbre, register, density, loudness, mode, instrument, tonic or meter for synthesised clips; "
            "with --audio, a column of --labels."
        ),
    ],
    model: ModelOptions = ETUDE,
    site: Annotated[str, typer.Option(help="Any site with one vector per step: resid_post, attn_out, attn.z, ...")] = (
        "resid_post"
    ),
    layers: Annotated[str | None, typer.Option(help="Blocks, such as 0,3 or 2-5 [default: all].")] = None,
    heads: Annotated[str | None, typer.Option(help="Probe each of these heads separately, such as 0-3.")] = None,
    position: Annotated[str, typer.Option(help="mean, first, last, max, eos, or seconds such as 0-1.5.")] = "mean",
    n: Annotated[int, typer.Option("--n", help="Number of synthesised clips.")] = 200,
    kind: Annotated[str, typer.Option("--probe", help="ridge, logistic or mlp.")] = "ridge",
    quantity: Annotated[
        bool, typer.Option("--quantity", help="Predict the value (R²) instead of classifying low against high.")
    ] = False,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    shuffles: Annotated[int, typer.Option(help="Label shuffles; p is at least 1 / (shuffles + 1).")] = 20,
    audio: Annotated[Path | None, typer.Option(help="A folder with your own sound files.")] = None,
    labels: Annotated[Path | None, typer.Option(help="A CSV with the columns `file` and CONCEPT.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column of --labels with groups (piece, artist); a group stays in one fold.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(help="Length of each clip [default: 5.12, or that of the shortest sound of --audio]."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the clips, folds and shuffles; étude was trained on 1 and 2.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the table and the figure (PNG, SVG, HTML).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Test how well a concept can be predicted from each block's activations, compared with predictions from the sound.

    Examples:

        audiolens probe tempo

        audiolens probe instrument --site attn.z --layers 0-3 --heads 0-5 --n 120

        audiolens probe genre --audio songs --labels songs.csv --group artist
    """
    from analysis.store import folder

    if (audio is None) != (labels is None):
        raise InputError("--audio and --labels go together: a folder, and a CSV that labels its files.")
    options: dict[str, Any] = {"layers": early.numbers(layers, "--layers"), "heads": early.numbers(heads, "--heads")}
    span: Any = _position(position)
    if audio is None:
        from audiolens.etude.labels import attribute_of

        attribute_of(concept, quantity=quantity)
    if group is not None and audio is None:
        raise InputError("--group names a column of --labels, but synthesised clips have no groups: leave it out.")
    early.check_choice("kind", kind, early.PROBES)
    early.check_length(seconds)
    checked_count("seed", seed, 0, MOST_SEED)
    for name, value, least in (("--n", n, 2), ("--folds", folds, 2), ("--shuffles", shuffles, 1)):
        checked_count(name, value, least)
    if isinstance(span, str):
        early.check_choice("position", span, early.PROBED_POSITIONS)
    elif seconds is not None and span[1] > seconds:
        raise InputError(f"--position {position} ends after the clips, which last {seconds:g} s.")
    if audio is not None and labels is not None:
        for path, kind_of, there in ((audio, "folder", audio.is_dir()), (labels, "file", labels.is_file())):
            if not there:
                raise InputError(f"{path}: no such {kind_of}.")
    early.check_folder(out)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(**options, site=site, per_step=True, seconds=seconds, eos=span == "eos")
    from analysis import probing

    lens = open_lens(model)
    data = _data(lens, concept, n, quantity, seed, seconds, audio, labels, group)
    found = probing.probe(
        lens,
        data,
        kind=kind,  # pyright: ignore[reportArgumentType]  # checked there
        task="regression" if quantity else None,
        site=site,
        position=span,  # pyright: ignore[reportArgumentType]  # checked above
        folds=folds,
        n_shuffles=shuffles,
        seed=seed,
        progress=not as_json,
        **options,
    )
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            write_result(found, work, "probe")
    print_result(found, as_json, [name for name in _SHOWN if not (name == "auc" and quantity)])


def _data(
    lens: AudioLens,
    concept: str,
    n: int,
    quantity: bool,
    seed: int,
    seconds: float | None,
    audio: Path | None,
    labels: Path | None,
    group: str | None,
) -> Dataset:
    from analysis.probing import Dataset

    if audio is not None and labels is not None:
        return Dataset.from_folder(lens, audio, labels, concept, group=group, seconds=seconds)
    length = {} if seconds is None else {"seconds": seconds}
    return Dataset.from_synth(
        lens, concept, n, task="regression" if quantity else "classification", seed=seed, **length
    )


def _position(text: str) -> Any:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    return (float(match[1]), float(match[2])) if match else text
