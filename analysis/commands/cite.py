"""The command `audiolens cite`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from analysis.commands.common import say
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens.model.provenance import Provenance

_ALWAYS = ("audiolens", "facchiano2025", "copet2023", "fiottokaufman2024")
_OF_ESTIMATOR: Mapping[str, str] = {
    "difference in means": "marks2023", "mean-centred": "jorgensen2023", "pca of pairs": "zou2023",
    "probe weights": "alain2016", "ridge weights": "alain2016", "leace": "belrose2023", "rfm": "radhakrishnan2024",
    "gradient": "subramani2022",
}  # fmt: skip
"""The source of each estimator, by the name that directions record. Estimators of our own have none."""
_OF_HEADS = ("li2023", "koo2024")
"""The sources of steering attention heads, for directions that were read at heads."""


def cite(
    path: Annotated[
        Path | None, typer.Argument(help="A file of directions or the folder of a study, whose methods are added.")
    ] = None,
) -> None:
    """Print BibTeX entries for audiolens, and for the methods behind your results.

    Examples:

        audiolens cite > references.bib

        audiolens cite study-tempo
    """
    keys = [*_ALWAYS, *(() if path is None else _used(path))]
    say("\n\n".join(entries(keys)))


def entries(keys: Iterable[str]) -> list[str]:
    """Return the BibTeX entries with these keys, once each."""
    text = files("analysis.commands").joinpath("references.bib").read_text("utf-8")
    known = {re.split(r"[{,]", part, maxsplit=2)[1]: part for part in text.strip().split("\n\n") if part[0] == "@"}
    return [known[key].replace("VERSION", version("audiolens")) for key in dict.fromkeys(keys)]


def _used(path: Path) -> list[str]:
    """Return the keys of the methods that directions, or a study, record."""
    from audiolens import Directions

    if not path.is_dir():
        return _of(Directions.load(path).meta)
    if not (path / "summary.json").is_file():
        raise InputError(f"{path} contains no finished study.")
    from analysis import study

    return _of(study.load_folder(path).directions.meta)


def _of(meta: Provenance) -> list[str]:
    source = [_OF_ESTIMATOR[meta.estimator]] if meta.estimator in _OF_ESTIMATOR else []
    return [*source, *(_OF_HEADS if meta.n_heads else ())]
