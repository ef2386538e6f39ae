"""What steering single attention heads does, compared with a direction added to the residual stream.

`python benchmarks/heads.py --update` reads étude's tempo and timbre at the outputs of the attention heads, steers clips
of neutral test prompts at the heads whose probes are best, at as many random other heads, and at the place of the
README's evidence, and writes the table in docs/steering.md. Stopped runs resume.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from pages import renewed
from selectivity import PLACES

import audiolens as al
from analysis import sweep
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE, Condition
from analysis.workers import share_cores
from audiolens import measure
from audiolens.prompts import PromptSet, load

PAGE = Path(__file__).parent.parent / "docs" / "steering.md"
MEASURED = {"tempo": "tempo_ioi", "timbre": "brightness"}
STRENGTHS: Mapping[str, float] = {"attn.z": 4.0, "cross_attn.z": 1.0}
"""The strengths at each site, chosen on development prompts."""
CHANCE = 12
"""How many heads are drawn at random, among those above chance that are not among the best."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for directions and clips (resumable).")] = Path("runs/heads"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    counts: Annotated[str, typer.Option(help="Numbers of heads, separated by commas.")] = "4,12,30",
    test: Annotated[int, typer.Option(help="Neutral prompts.")] = 4,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 2,
    poles: Annotated[int, typer.Option(help="Prompts per pole.")] = 48,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 4.0,
    scale: Annotated[float, typer.Option(help="Factor of all strengths.")] = 1.0,
    development: Annotated[bool, typer.Option(help="Steer development prompts, to choose strengths.")] = False,
    jobs: Annotated[int | None, typer.Option(help="Processes; 0: this one [default: one per core].")] = None,
    update: Annotated[bool, typer.Option(help="Write the table into docs/steering.md.")] = False,
) -> None:
    """Compare the effect and the drift of steering heads with those of steering the residual stream."""
    share_cores()
    lens = al.AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for concept, name in MEASURED.items():
        sets = load(concept, lens=lens)
        read = {site: directions(lens, out, sets, poles, site) for site in (*STRENGTHS, "resid_post")}
        prompts = (sets.development if development else sets.test)[:test]
        played = sweep.play(
            lens, conditions(concept, read, [int(one) for one in counts.split(",")], scale),
            sweep.clips(prompts, seeds, 0 if development else TEST_SEED), seconds=seconds,
            measures=[*MEASURED.values()], also={"nats": nats}, out=out / f"{concept}-{scale:g}", n_jobs=jobs,
            progress=concept,
        )  # fmt: skip
        rows += tabled(played, concept, name, read)
    split = "development" if development else "test"
    told = f"{test} {split} prompts x {seeds} seeds, clips of {seconds:g} s, {poles} prompts per pole"
    text = page(rows, told)
    (out / "heads.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "heads", text), "utf-8")
    typer.echo(text)


def directions(lens: al.AudioLens, out: Path, sets: PromptSet, poles: int, site: str) -> al.Directions:
    """The directions at a site, which are kept in a file. Those of heads are read on the clips of their own prompts."""
    file = out / f"{sets.concept}-{site}.safetensors"
    if not file.is_file():
        codes: dict[str, Any] = {"codes": "shared", "neutral": sets.development} if site == "resid_post" else {}
        al.difference_in_means(
            lens, sets.positive[:poles], sets.negative[:poles], site, label=sets.concept, progress=False, **codes
        ).save(file)
    return al.Directions.load(file, lens=lens)


def conditions(concept: str, read: Mapping[str, al.Directions], counts: Sequence[int], scale: float) -> list[Condition]:
    """The baseline, and both signs of the placed direction, of the best heads at each site, and of random heads."""
    place = PLACES[concept]
    ways: list[tuple[str, str, al.Directions, dict[str, Any], float]] = [
        ("resid_post", f"block {place.layer}, {place.strategy}", read["resid_post"], place.where, place.strength)
    ]
    for site, strength in STRENGTHS.items():
        for k in counts:
            where = {"strategy": "heads", "heads": k}
            ways.append((site, f"{k} best heads", read[site], where, strength * scale))
        pairs = random_heads(read[site])
        where = {"strategy": "heads", "heads": pairs}
        ways.append((site, f"{len(pairs)} random heads", read[site], where, strength * scale))
    return [
        Condition(BASELINE),
        *(
            Condition(
                f"{site} {way} {sign:+d}",
                tuple(al.steer(found, strength=sign * strength, **where)),
                labels={"site": site, "way": way, "sign": sign, "strength": strength},
            )
            for site, way, found, where, strength in ways
            for sign in (1, -1)
        ),
    ]


def random_heads(found: al.Directions) -> list[tuple[int, int]]:
    """Heads drawn at random among those that are above chance and not among the best."""
    known = found.heads
    assert known is not None
    best = set(known.best(CHANCE))
    rest = [pair for pair in known.best(int((known.weights > 0).sum())) if pair not in best]
    drawn = np.random.default_rng(0).choice(len(rest), min(CHANCE, len(rest)), replace=False)
    return sorted(rest[index] for index in drawn)


def nats(lens: al.AudioLens, clips: al.Generation) -> list[float]:
    """The nats per code of every clip under the unsteered model."""
    with torch.inference_mode():
        scored = measure.code_nats(lens, clips.prompts, clips.codes, guidance_scale=3.0)
    return scored.mean(dim=(1, 2)).double().tolist()


def tabled(
    played: sweep.SweepResult, concept: str, name: str, read: Mapping[str, al.Directions]
) -> list[dict[str, Any]]:
    """One row per way of steering, with effect, drift and failures of both signs."""
    effects = sweep.effects(played.table, name).set_index("condition")
    own = played.table[played.table["condition"] == BASELINE].set_index(["prompt", "seed"])["nats"]
    rows = []
    table = played.table[played.table["condition"] != BASELINE]
    for (site, way, strength), mine in table.groupby(["site", "way", "strength"], sort=False):
        row: dict[str, Any] = {"concept": concept, "site": site, "way": way, "strength": float(strength)}
        known = read[str(site)].heads
        row["above"] = "" if known is None else f"{known.n_above_chance} of {known.p.numel()}"
        for sign in (1, -1):
            one = effects.loc[f"{site} {way} {sign:+d}"]
            clips = mine[mine["sign"] == sign].set_index(["prompt", "seed"])["nats"]
            row[f"effect{sign:+d}"], row[f"failed{sign:+d}"] = _cell(one), float(np.asarray(one["failed"]))
            row[f"drift{sign:+d}"] = float((clips - own.loc[clips.index]).abs().mean())
        rows.append(row)
    return rows


def page(rows: Sequence[Mapping[str, Any]], told: str) -> str:
    """The table in Markdown."""
    lines = [
        f"Measured on étude: {told}. The effect on the concept's own measure is the median of (steered / baseline - 1) "
        f"over clips of the same prompt and seed, with {COVERAGE} intervals over prompts. Failed clips count as an "
        "effect of zero. `drift` is the mean absolute difference from the baseline clip in nats per code under the "
        "unsteered model. `above chance` is the number of heads whose probes are significant. The strengths at heads "
        "are in standard deviations times weights.",
        "",
        "| concept | site | steered | above chance | strength | effect, + | effect, - | drift, + / - | failed, + / - |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in pd.DataFrame(rows).to_dict("records"):
        drift = " / ".join(f"{row[f'drift{sign}']:.2f}" for sign in ("+1", "-1"))
        failed = " / ".join(f"{row[f'failed{sign}']:.0%}" for sign in ("+1", "-1"))
        lines.append(
            f"| {row['concept']} | `{row['site']}` | {row['way']} | {row['above']} | {row['strength']:g} "
            f"| {row['effect+1']} | {row['effect-1']} | {drift} | {failed} |"
        )
    return "\n".join(lines) + "\n"


def _cell(row: Any) -> str:
    return f"{row['effect']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}]"


if __name__ == "__main__":
    typer.run(main)
