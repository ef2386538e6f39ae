"""What steering single attention heads does, compared with a direction added to the residual stream.

`python benchmarks/heads.py --update` reads étude's tempo and timbre at the outputs of the attention heads, steers clips
of neutral test prompts at the heads whose probes are best, at as many random other heads, and at the places of
docs/evidence.md, and writes the table in docs/steering.md. Stopped runs resume.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from pages import renewed
from selectivity import Place

import audiolens as al
from analysis import sweep
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.sweep import BASELINE, Condition
from analysis.workers import share_cores
from audiolens import measure
from audiolens.directions.heads import Heads
from audiolens.prompts import PromptSet, load

PAGE = Path(__file__).parent.parent / "docs" / "steering.md"
MEASURED = {"tempo": "tempo_ioi", "timbre": "brightness"}
PLACES = {"tempo": Place("one-to-one", 3, 1.0), "timbre": Place("one-to-all", 7, 0.25)}
"""The places of docs/evidence.md, with half its strength for timbre, at which most of the effect is reached."""
CODES: Mapping[str, Any] = {"attn.z": "own", "cross_attn.z": "shared", "resid_post": "shared"}
"""On which clips each site is read. On shared clips, steering self-attention moved the tempo the wrong way."""
STRENGTHS: Mapping[str, Mapping[int, float]] = {
    "attn.z": {4: 1.0, 12: 0.5, 30: 0.25}, "cross_attn.z": {4: 1.0, 12: 1.0, 30: 1.0},
}  # fmt: skip
"""The strength for each number of heads, chosen on four development clips of tempo."""
CHANCE = 12
"""How many heads are drawn at random, among those with an accuracy above .5 that are not as many best ones."""


@dataclass(frozen=True)
class Way:
    """A way of steering: its site and name, the arguments of `al.steer`, and the strength."""

    site: str
    name: str
    where: Mapping[str, Any]
    strength: float


def main(
    out: Annotated[Path, typer.Option(help="Folder for directions and clips (resumable).")] = Path("runs/heads"),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    test: Annotated[int, typer.Option(help="Neutral prompts.")] = 16,
    seeds: Annotated[int, typer.Option(help="Clips per prompt.")] = 2,
    poles: Annotated[int, typer.Option(help="Prompts per pole.")] = 48,
    seconds: Annotated[float, typer.Option(help="Length of each clip.")] = 4.0,
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
        read = {site: directions(lens, out, sets, poles, site) for site in CODES}
        for folder, ways in ((concept, chosen(concept, read)), (f"{concept}-as-far", as_far(read))):
            played = sweep.play(
                lens, conditions(ways, read), sweep.clips(sets.test[:test], seeds, TEST_SEED), seconds=seconds,
                measures=[*MEASURED.values()], also={"nats": nats}, out=out / folder, n_jobs=jobs, progress=folder,
            )  # fmt: skip
            rows += tabled(played, concept, name, read)
    told = f"{test} test prompts x {seeds} seeds, clips of {seconds:g} s, {poles} prompts per pole"
    text = page(rows, told)
    (out / "heads.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "heads", text), "utf-8")
    typer.echo(text)


def directions(lens: al.AudioLens, out: Path, sets: PromptSet, poles: int, site: str) -> al.Directions:
    """The directions at a site, which are kept in a file."""
    file = out / f"{sets.concept}-{site}.safetensors"
    if not file.is_file():
        neutral = sets.development if CODES[site] == "shared" else None
        al.difference_in_means(
            lens,
            sets.positive[:poles],
            sets.negative[:poles],
            site,
            label=sets.concept,
            codes=CODES[site],
            neutral=neutral,
            progress=False,
        ).save(file)
    return al.Directions.load(file, lens=lens)


def chosen(concept: str, read: Mapping[str, al.Directions]) -> list[Way]:
    """The placed direction and, at each site of heads, the best heads, and random ones at the same strength."""
    place = PLACES[concept]
    ways = [Way("resid_post", f"block {place.layer}, {place.strategy}", place.where, place.strength)]
    for site, strengths in STRENGTHS.items():
        for k, strength in strengths.items():
            ways.append(Way(site, f"{k} best heads", {"strategy": "heads", "heads": k}, strength))
        pairs = random_heads(read[site])
        where = {"strategy": "heads", "heads": pairs}
        ways.append(Way(site, f"{CHANCE} random heads", where, strengths[CHANCE]))
    return ways


def as_far(read: Mapping[str, al.Directions]) -> list[Way]:
    """Random heads at the strength at which they are pushed as far in total as the best ones."""
    ways = []
    for site, strengths in STRENGTHS.items():
        known, pairs = heads_of(read[site]), random_heads(read[site])
        strength = strengths[CHANCE] * _length(known, known.best(CHANCE)) / _length(known, pairs)
        where = {"strategy": "heads", "heads": pairs}
        ways.append(Way(site, f"{CHANCE} random heads, pushed as far", where, round(strength, 2)))
    return ways


def conditions(ways: Sequence[Way], read: Mapping[str, al.Directions]) -> list[Condition]:
    """The baseline, and both signs of every way."""
    return [
        Condition(BASELINE),
        *(
            Condition(
                f"{one.site} {one.name} {sign:+d}",
                tuple(al.steer(read[one.site], strength=sign * one.strength, **one.where)),
                labels={"site": one.site, "way": one.name, "sign": sign, "strength": one.strength},
            )
            for one in ways
            for sign in (1, -1)
        ),
    ]


def heads_of(found: al.Directions) -> Heads:
    assert found.heads is not None
    return found.heads


def _length(known: Heads, pairs: Sequence[tuple[int, int]]) -> float:
    """The length of what a strength of 1 adds to heads, over all of them."""
    return float(np.sqrt(sum(float(known.steps[known.layers.index(layer), head]) ** 2 for layer, head in pairs)))


def random_heads(found: al.Directions) -> list[tuple[int, int]]:
    """Heads drawn at random among those with an accuracy above .5 that are not among the best."""
    known = heads_of(found)
    rest = known.best(int((known.weights > 0).sum()))[CHANCE:]
    drawn = np.random.default_rng(0).choice(len(rest), CHANCE, replace=False)
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
        "unsteered model. `above chance` is the number of heads whose probes exceed chance (p <= .05, corrected for "
        "choosing among all heads). At heads, a strength of 1 is one standard deviation times the weight of the head.",
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
