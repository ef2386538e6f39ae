"""Measure every claim on several independently trained models, and tabulate in how many it holds.

`python benchmarks/claims.py --models etude,etude-2=FOLDER --update` measures these models (opened by name, or from a
folder), stores their numbers in docs/claims/, and writes docs/claims.md and the table in docs/paper.md from the numbers
of all models that were ever stored. Models can therefore be measured one by one, on different days. Stopped runs
resume. Without models, only the pages are written again. `--full` takes hours per model (`--plan` says how many clips).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from pages import renewed, rounded
from replication import further, measuring
from replication.measuring import FORMAT, Model, Numbers
from replication.page import MODELS, Measured, page, paper
from replication.sizes import Sizes

from analysis import sweep
from analysis.workers import share_cores
from audiolens import AudioLens
from audiolens.files.atomic import put
from audiolens.files.integrity import read_json, sealed_json

ROOT = Path(__file__).parent.parent
STORED = ROOT / "docs" / "claims"
PAGES: Mapping[Path, tuple[str, Any]] = {
    ROOT / "docs" / "claims.md": ("claims", page), ROOT / "docs" / "paper.md": ("paper", paper),
}  # fmt: skip


def main(
    models: Annotated[str, typer.Option(help="NAME or NAME=FOLDER, separated by commas.")] = "",
    out: Annotated[Path, typer.Option(help="Folder for the clips and numbers (resumable).")] = Path("runs/claims"),
    full: Annotated[bool, typer.Option(help="Sizes for narrow intervals; hours per model.")] = False,
    sizes: Annotated[str, typer.Option(help="Other sizes, such as test=8,controls=19.")] = "",
    jobs: Annotated[int | None, typer.Option(help="Processes [default: one per core].")] = None,
    plan: Annotated[bool, typer.Option(help="Only say how many clips it takes.")] = False,
    update: Annotated[bool, typer.Option(help="Store the numbers in docs/claims/, and write the pages.")] = False,
) -> None:
    """Measure models, and tabulate all claims."""
    share_cores()
    asked = sized(Sizes.full() if full else Sizes(), sizes)
    fresh = {}
    for name, where in named(models).items():
        lens = AudioLens.from_pretrained(where)
        model = Model(name, lens, out / name, asked, n_jobs=jobs, tell=typer.echo)
        expect(model)
        if not plan:
            model.out.mkdir(parents=True, exist_ok=True)
            fresh[name] = measured(model)
    if plan:
        return
    if update:
        store(fresh)
    found = in_order({**stored(), **fresh})
    for path, (mark, written) in PAGES.items():
        text = written(found)
        typer.echo(text)
        if update:
            path.write_text(renewed(path.read_text("utf-8"), mark, text), "utf-8")


def named(models: str) -> dict[str, str]:
    """The name of each model, and the name or folder from which it is opened."""
    parts = [part.strip().partition("=") for part in models.split(",") if part.strip()]
    found = {name: where or name for name, _, where in parts}
    if len(found) < len(parts) or not all(Path(name).name == name for name in found):
        raise typer.BadParameter(f"models={models!r}: expected different names, such as etude,etude-2=folder.")
    return found


def sized(sizes: Sizes, changes: str) -> Sizes:
    """Sizes with changes such as "test=8,doses=0.5:1"; the parts of a list are separated by colons."""
    found: dict[str, Any] = {}
    for part in filter(None, changes.split(",")):
        name, _, text = part.partition("=")
        if name not in vars(sizes) or not text:
            raise typer.BadParameter(f"sizes: {part!r}; expected NAME=NUMBER with one of {', '.join(vars(sizes))}.")
        own = getattr(sizes, name)
        kind = type(own[0]) if isinstance(own, tuple) else type(own)
        try:
            values = tuple(kind(one) for one in text.split(":"))
        except ValueError:
            raise typer.BadParameter(f"sizes: {part!r}; expected {kind.__name__} values.") from None
        found[name] = values if isinstance(own, tuple) else values[0]
    return replace(sizes, **found)


def expect(model: Model) -> None:
    """Say how many clips a model takes, and how long that is on this machine."""
    config, sizes = model.lens.config, model.sizes
    parts = sizes.clips(config.n_layers, config.has_prefix)
    speed = sweep.clips_per_second(model.lens, model.sets("tempo").test[0], sizes.seconds, n_jobs=model.n_jobs)
    count = sum(parts.values())
    told = ", ".join(f"{stage} {round(clips):,}" for stage, clips in parts.items())
    model.tell(
        f"{model.name}: about {round(count):,} clips of {sizes.seconds:g} s ({told}); at {speed:.1f} per second "
        f"{count / speed / 60:.0f} minutes, if no stage is kept from before"
    )


def measured(model: Model) -> Measured:
    """Run every stage that is not yet kept, and return all numbers."""
    numbers = Numbers()
    more, places = measuring.studied(model)
    numbers |= more
    numbers |= measuring.read_otherwise(model, places)
    more, names = further.called(model)
    numbers |= more
    numbers |= further.placed(model, names)
    if model.lens.config.has_prefix:
        numbers |= further.by_the_paper(model)
    sizes = {path.stem: read_json(path)["facts"]["sizes"] for path in sorted(model.out.glob("*.json"))}
    return Measured(model.facts, sizes, numbers)


def store(fresh: Mapping[str, Measured]) -> None:
    """Keep the numbers of models with the documentation, so that the pages can be written without the clips."""
    STORED.mkdir(exist_ok=True)
    for name, one in fresh.items():
        put(STORED / f"{name}.json", sealed_json({"format": FORMAT, **rounded(one.as_dict())}) + b"\n")


def stored() -> dict[str, Measured]:
    """The numbers that `store` kept."""
    return in_order({path.stem: Measured.of_dict(read_json(path)) for path in sorted(STORED.glob("*.json"))})


def in_order(found: Mapping[str, Measured]) -> dict[str, Measured]:
    """The models in the order in which the pages show them."""
    return {name: found[name] for name in [*MODELS, *(name for name in found if name not in MODELS)] if name in found}


if __name__ == "__main__":
    typer.run(main)
