"""Compare all ways of adding a direction, on étude's development prompts: `python benchmarks/steering.py`.

It compares the strategies, the conditional half with both halves, add with clamp and ablate, the plain sum of two
concepts with the orthogonalised pair, and directions read at different positions and branches. All conditions run in
one sweep on the same clips. The benchmark writes one Parquet file per table, one of all clips, and a page of Markdown
tables, which is also printed. The expected duration is printed before the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from analysis import reading_comparison, sweep
from analysis.resampling import COVERAGE
from analysis.sweep import BASELINE, Condition
from analysis.workers import share_cores
from audiolens import AudioLens, Directions, difference_in_means, steer
from audiolens.interventions import Intervention
from audiolens.prompts import PromptSet, load

MEASURED = {"tempo": "tempo_ioi", "timbre": "brightness"}
"""Concept -> the measure of its effect; each is also taken for the other concept."""
DOSES = {"one-to-one": 1.0, "one-to-band": 0.5, "one-to-all": 0.25, "all-to-all": 0.25}
"""Strategy -> the strength of a dose of 1: a vector added at many blocks needs a smaller one."""
LABELS = ("table", "concept", "strategy", "layer", "branch", "operator", "strength", "combine", "other_strength")


def main(
    out: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("runs/steering"),
    model: Annotated[str, typer.Option(help="étude, a folder, or a hub name.")] = "etude",
    prompts: Annotated[int, typer.Option(help="Neutral development prompts.")] = 8,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 2,
    poles: Annotated[int, typer.Option(help="Prompts per pole that directions are read from.")] = 100,
    compared: Annotated[int, typer.Option(help="Prompts per pole for comparing readings.")] = 32,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 5.0,
    reading_seconds: Annotated[float, typer.Option(help="Length of the clips that directions are read from.")] = 2.0,
    doses: Annotated[str, typer.Option(help="Doses, each with both signs.")] = "0.5,1",
    tempo_layer: Annotated[int | None, typer.Option(help="Block of tempo's direction [default: the middle].")] = None,
    timbre_layer: Annotated[int | None, typer.Option(help="Block of timbre's direction [default: the middle].")] = None,
    guidance: Annotated[float, typer.Option(help="Guidance scale, above 1.")] = 3.0,
    batch_size: Annotated[int, typer.Option(help="Rows per batch.")] = 64,
) -> None:
    """Run everything and print the page."""
    share_cores()
    lens = AudioLens.from_pretrained(model)
    if guidance <= 1:
        raise typer.BadParameter("the halves of the guidance are compared: give --guidance above 1.")
    middle = lens.config.n_layers // 2
    layers = {
        "tempo": middle if tempo_layer is None else tempo_layer,
        "timbre": middle if timbre_layer is None else timbre_layer,
    }
    sets = {concept: load(concept, lens=lens) for concept in MEASURED}
    out.mkdir(parents=True, exist_ok=True)
    read = {
        concept: difference_in_means(
            lens,
            one.positive[:poles],
            one.negative[:poles],
            guidance_scale=guidance,
            seconds=reading_seconds,
            batch_size=batch_size,
            label=concept,
            keep_samples=True,
        )
        for concept, one in sets.items()
    }
    amounts = [sign * float(dose) for dose in doses.split(",") for sign in (-1, 1)]
    todo = conditions(read, layers, amounts, guidance)
    clips = sweep.clips(sets["tempo"].development[:prompts], seeds)
    speed = sweep.clips_per_second(lens, clips[0][0], seconds, batch_size)
    count = len(todo) * len(clips)
    typer.echo(f"{count} clips of {seconds:g} s at about {speed:.1f} per second: {count / speed / 60:.1f} minutes, "
               "then the readings", err=True)  # fmt: skip
    heard = sweep.play(
        lens,
        todo,
        clips,
        seconds=seconds,
        guidance_scale=guidance,
        batch_size=batch_size,
        measures=("tempo_ioi", "brightness", "onset_rate", "loudness"),
        progress="steering",
    )
    heard.table.to_parquet(out / "clips.parquet", index=False)
    tables = tabled(heard)
    tables["first_order"] = first_orders(lens, read, layers, sets["tempo"].development[:prompts], guidance)
    tables["readings"] = pd.concat(
        [
            reading_comparison.compare(
                lens,
                one,
                positions=(*reading_comparison.POSITIONS, (0.5 * reading_seconds, reading_seconds)),
                seconds=reading_seconds,
                guidance_scale=guidance,
                prompts=min(poles, compared),
                batch_size=batch_size,
            )
            .to_frame()
            .assign(concept=concept)
            for concept, one in sets.items()
        ]
    )
    for name, table in tables.items():
        table.to_parquet(out / f"{name}.parquet", index=False)
    settings = {
        "model": lens.name,
        "development prompts": len(sets["tempo"].development[:prompts]),
        "seeds": seeds,
        "seconds": seconds,
        "guidance": guidance,
        "prompts per pole": min(poles, len(sets["tempo"].positive)),
        "prompts per pole in the readings": min(poles, compared, len(sets["tempo"].positive)),
        **{f"{concept} layer": layer for concept, layer in layers.items()},
    }
    text = page(tables, sets, layers, settings)
    (out / "steering.md").write_text(text, "utf-8")
    typer.echo(text)


def conditions(
    read: dict[str, Directions], layers: dict[str, int], amounts: Sequence[float], guidance: float
) -> list[Condition]:
    """The baseline, and all conditions of the three tables."""
    listed = [Condition(BASELINE, labels=_labels(table=BASELINE))]

    def add(steps: list[Intervention], **labels: Any) -> None:
        told = _labels(**labels)
        name = " ".join(f"{value:+.4g}" if isinstance(value, float) else str(value) for value in told.values() if value
                        is not None)  # fmt: skip
        listed.append(Condition(name, tuple(steps), labels=told))

    for concept, directions in read.items():
        layer, last = layers[concept], directions.meta.n_layers - 1
        where: dict[str, dict[str, Any]] = {
            "one-to-one": {"layer": layer},
            "one-to-band": {"layer": layer, "band": (max(0, layer - 1), min(last, layer + 1))},
            "one-to-all": {"layer": layer},
            "all-to-all": {},
        }
        for strategy, unit in DOSES.items():
            # To first order, the conditional half alone has `guidance` times the effect of both, hence 1 / guidance.
            for branch, shares in (("both", (1.0,)), ("cond", (1 / guidance, 1.0))):
                for strength in sorted({round(amount * unit * share, 6) for amount in amounts for share in shares}):
                    steps = steer(directions, strategy, strength=strength, branch=branch, **where[strategy])  # pyright: ignore[reportArgumentType]
                    add(steps, table="strategies", concept=concept, strategy=strategy, layer=layer, branch=branch,
                        operator="add", strength=strength)  # fmt: skip
        low, high = poles_along(directions, layer)
        for strategy in ("one-to-one", "one-to-all"):
            for operator, values in (("clamp", (low, (low + high) / 2, high)), ("ablate", (1.0,))):
                for value in values:
                    steps = steer(directions, strategy, layer=layer, strength=value, operator=operator)  # pyright: ignore[reportArgumentType]
                    add(steps, table="operators", concept=concept, strategy=strategy, layer=layer, branch="both",
                        operator=operator, strength=value)  # fmt: skip
    first, second = read
    unit = DOSES["one-to-all"] * max(amounts)
    ways: dict[str, tuple[str, str, Any]] = {
        "sum": (first, second, "sum"),
        f"{second} orthogonal to {first}": (first, second, "orthogonalised"),
        f"{first} orthogonal to {second}": (second, first, "orthogonalised"),
    }
    for way, (one, other, combine) in ways.items():
        where_from = [layers[one], layers[other]]
        pair = steer([read[one], read[other]], "one-to-all", layer=where_from, combine=combine)
        steps_of = dict(zip((one, other), pair, strict=True))
        for signs in product((-1.0, 0.0, 1.0), repeat=2):
            strengths = [sign * unit for sign in signs]
            steps = [replace(steps_of[c], strength=s) for c, s in zip(read, strengths, strict=True) if s]
            if steps:
                add(steps, table="pairs", concept=f"{first}, {second}", strategy="one-to-all", operator="add",
                    branch="both", strength=strengths[0], other_strength=strengths[1], combine=way)  # fmt: skip
    return listed


def poles_along(directions: Directions, layer: int) -> tuple[float, float]:
    """The projections of the negative and positive pole's means onto a direction, in units of its length: 1 apart."""
    samples = directions.samples
    assert samples is not None
    along = samples.values[directions.layers.index(layer)] @ directions[layer] / directions[layer].norm() ** 2
    return float(along[~samples.labels].mean()), float(along[samples.labels].mean())


def tabled(heard: sweep.SweepResult, n_bootstrap: int = 1000) -> dict[str, pd.DataFrame]:
    """The effects on both concepts' measures, one row per condition, split into the tables."""
    effects = [heard.effects(measured, n_bootstrap).assign(measure=measured) for measured in MEASURED.values()]
    whole = pd.concat(effects, ignore_index=True)
    return {name: whole[whole["table"] == name].drop(columns="table") for name in ("strategies", "operators", "pairs")}


def first_orders(
    lens: AudioLens, read: dict[str, Directions], layers: dict[str, int], prompts: Sequence[str], guidance: float
) -> pd.DataFrame:
    """`first_order` for both concepts, on codes generated from the prompts."""
    codes = lens.generate(list(prompts), 1.0, seeds=list(range(len(prompts))), decode=False).codes
    rows = [
        {"concept": concept, "layer": layers[concept], "strategy": strategy, "guidance": guidance}
        | first_order(lens, directions, layers[concept], strategy, list(prompts), codes, guidance)
        for concept, directions in read.items()
        for strategy in ("one-to-one", "one-to-all")
    ]
    return pd.DataFrame(rows)


def first_order(
    lens: AudioLens,
    directions: Directions,
    layer: int,
    strategy: Any,
    prompts: list[str],
    codes: torch.Tensor,
    guidance: float,
    strength: float = 0.02,
) -> dict[str, float]:
    """Compare the effect on the guided logits of steering the conditional half alone with that of both halves.

    `factor` is the projection onto the effect of both halves; it equals `guidance` if the two halves respond in the
    same way. `cosine` is the cosine similarity of the two effects. `bend` is the relative deviation from linearity when
    the strength is doubled (0: purely first order).
    """

    def guided(branch: Any, amount: float) -> torch.Tensor:
        steps = steer(directions, strategy, layer=layer, strength=amount, branch=branch)
        cond, null = lens.run_with_interventions(prompts, codes, steps, branch="both", guidance_scale=guidance)
        return (null + guidance * (cond - null)).double()

    plain = guided("both", 0.0)
    cond, both = (guided(branch, strength) - plain for branch in ("cond", "both"))
    twice = guided("both", 2 * strength) - plain
    return {
        "factor": float((cond * both).sum() / both.square().sum()),
        "cosine": float((cond * both).sum() / cond.norm() / both.norm()),
        "bend": float((twice - 2 * both).norm() / twice.norm()),
    }


def page(
    tables: dict[str, pd.DataFrame], sets: dict[str, PromptSet], layers: dict[str, int], settings: dict[str, Any]
) -> str:
    """The tables as Markdown, each with an explanation."""
    told = ", ".join(f"{name} = {value}" for name, value in settings.items())
    lines = [
        f"Settings: {told}. The effect is the median of (steered / baseline - 1), where each steered clip is compared "
        f"with the baseline clip of the same prompt and seed. Intervals are {COVERAGE} intervals over prompts. A "
        "failed clip counts as an effect of zero. The clips are from development prompts, on which places and "
        "strengths are chosen, so these results are not evidence for a claim.",
        "",
    ]
    first, second = sets
    heads = {
        "strategies": "**Strategies and branches.** The conditional half alone was steered at the strengths used for "
        "both halves, and at these strengths divided by the guidance scale.",
        "operators": "**Clamp and ablate.** These rows can be compared with the rows for `add` in the table above. The "
        "strength of a clamp is the projection that it sets, in multiples of the direction's length. Its three values "
        "are the mean projection of the negative pole, the midpoint, and the mean projection of the positive pole.",
        "pairs": "**Two concepts.** Both directions were added at every block (one-to-all). `strength` is the strength "
        f"of {first}, and `other_strength` is the strength of {second}. `combine` states whether the component of one "
        "direction along the other was removed.",
    }
    keys = ["concept", "strategy", "branch", "operator", "strength", "other_strength", "combine"]
    for name, head in heads.items():
        wide = tables[name].copy()
        wide["cell"] = [_effect(row.effect, row.low, row.high) for row in wide.itertuples()]
        shown = [key for key in keys if wide[key].notna().any()]
        pivot = wide.pivot_table(
            index=shown, columns="measure", values="cell", aggfunc="first", dropna=True, sort=False
        )
        failed = wide.groupby(shown, sort=False)["failed"].max().map("{:.0%}".format)
        lines += [head, "", *_markdown(pivot.join(failed).reset_index()), ""]
    read = tables["readings"]
    mine = read[read["layer"] == read["concept"].map(layers)].drop(columns=["residual_norm"])
    lines += [
        "**First-order effect.** The table compares the effect of a small addition to the conditional half on the "
        "guided logits with the effect of the same addition to both halves. `factor` is the projection of the first "
        "effect onto the second, relative to the size of the second. It equals `guidance` if the two halves respond in "
        "the same way. `cosine` is the cosine similarity between the two effects, and `bend` is the relative deviation "
        "from linearity when the strength is doubled.",
        "",
        *_markdown(tables["first_order"]),
        "",
        "**Readings.** Each direction was read at the steered block, at several positions and in each branch. `cosine` "
        "is the cosine similarity with the direction in the concept's first row.",
        "",
        *_markdown(mine[["concept", *[name for name in mine.columns if name != "concept"]]]),
    ]
    return "\n".join(lines) + "\n"


def _effect(effect: Any, low: Any, high: Any) -> str:
    if effect != effect:
        return "none measured"
    # With a single measurable prompt there is no interval.
    return f"{effect:+.0%} [{low:+.0%}, {high:+.0%}]" if low == low else f"{effect:+.0%}"


def _labels(**told: Any) -> dict[str, Any]:
    return {name: told.get(name) for name in LABELS}


def _markdown(table: pd.DataFrame) -> list[str]:
    cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    rule = "|" + "---|" * len(table.columns)
    return [f"| {' | '.join(map(str, table.columns))} |", rule, *(f"| {' | '.join(row)} |" for row in cells)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    typer.run(main)
