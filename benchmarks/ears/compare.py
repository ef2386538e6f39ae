"""Compare audiolens's measures with third-party models, for `docs/ears.md`: `make agreement`.

Makes clips (`clips`), measures them here and, in the environment of `make ears`, with `hear.py`, and compares the two
(`agreement`). Clips and both tables stay in the output folder, and a stopped run continues there.
`PYTHONPATH=benchmarks python -m ears.compare --update` also replaces the tables in the docs.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from ears import agreement, clips
from ears.agreement import QUANTITIES, Quantity
from pages import renewed

from analysis.resampling import COVERAGE
from analysis.statistics import Effect
from audiolens import AudioLens
from audiolens.errors import InputError

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ears.md"
PYTHON = ROOT / ".ears" / "bin" / "python"
HEAR = Path(__file__).with_name("hear.py")
SETS = ("synthesised", "codec", "generated")
POLES = {
    "tempo": ("fast", "slow"),
    "timbre": ("bright", "dark"),
    "density": ("busy", "sparse"),
    "register": ("high", "low"),
    "mode": ("major", "minor"),
}
SHOWN = {
    "tempo": ("interval between onsets", "beat", "onsets per beat", "notes per beat", "onsets per second"),
    "timbre": ("brightness",),
    "density": ("onsets per beat", "notes per beat", "onsets per second", "notes per second"),
    "register": ("pitch", "pitch of the strongest voice"),
    "mode": ("mode", "mode of the notes"),
}
"""The quantities in which the effect of each concept is shown."""
MAJOR = {"mode": 0.0, "ear_major_probability": 0.5, "ear_note_mode": 0.0}
"""A clip counts as major above these values."""


def main(
    out: Annotated[Path, typer.Option(help="Folder for clips and tables; a stopped run continues.")] = Path(
        "runs/ears"
    ),
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    prompts: Annotated[int, typer.Option(help="Neutral test prompts.")] = 16,
    seeds: Annotated[int, typer.Option(help="Seeds per prompt.")] = 1,
    synthesised: Annotated[int, typer.Option(help="Clips of the synthesiser.")] = 48,
    seconds: Annotated[float, typer.Option(help="Length of each generated clip.")] = 5.0,
    place: Annotated[
        list[str] | None, typer.Option(help="Where to steer, such as tempo=one-to-one:3:1; may be repeated.")
    ] = None,
    codes: Annotated[clips.Codes, typer.Option(help="Over whose codes directions are read: own or shared.")] = "shared",
    prompted: Annotated[str, typer.Option(help="Concepts to ask for in words, with commas.")] = ",".join(
        clips.PROMPTED
    ),
    python: Annotated[Path, typer.Option(help="Python of the environment of `make ears`.")] = PYTHON,
    update: Annotated[bool, typer.Option(help="Write the tables into docs/ears.md.")] = False,
) -> None:
    """Measure the same clips with audiolens and with other models, and print how far they agree."""
    if not python.exists():
        raise InputError(f"{python} does not exist: run `make ears` first, or give --python.")
    places = {**clips.PLACES, **dict(clips.Place.read(text) for text in place or ())}
    lens = AudioLens.from_pretrained(model)
    out.mkdir(parents=True, exist_ok=True)
    words = tuple(prompted.split(","))
    # The clips with labels are made first, so that `hear.py` can be started on them meanwhile.
    ours = pd.concat(
        [
            clips.labelled(lens, out, synthesised),
            clips.generated(lens, out / "generated", places, words, codes, prompts, seeds, seconds),
        ],
        ignore_index=True,
    )
    table = joined(ours, heard(out, python))
    table.to_parquet(out / "clips.parquet")
    chosen = ", ".join(f"{name} ({where})" for name, where in places.items())
    settings = (
        f"`{model}`, with {prompts} neutral test prompts x {seeds} seed{'' if seeds == 1 else 's'} and clips of "
        f"{seconds:g} s. The clips were steered along directions computed on {codes} codes for {chosen}, or prompted "
        f"for {' or '.join(words)}. The labelled clips are {synthesised} clips from the synthesiser"
    )
    packages = json.loads((out / "ears.json").read_text("utf-8"))["packages"]
    text = page(table, settings, packages)
    (out / "ears.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "ears", text), "utf-8")
    typer.echo(text)


def heard(out: Path, python: Path) -> pd.DataFrame:
    """The rows of `hear.py` for all WAV files in a folder.

    Raises:
        InputError: if it stops with an error, which it has printed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    done = subprocess.run([str(python), str(HEAR), str(out)], env=environment, check=False)
    if done.returncode:
        raise InputError(f"{HEAR.name} ended with status {done.returncode}; it says why above.")
    return pd.read_csv(out / "ears.csv")


def joined(ours: pd.DataFrame, ears: pd.DataFrame) -> pd.DataFrame:
    """Both tables in one, by file.

    Raises:
        InputError: if a clip was not heard.
    """
    renamed = ears.rename(columns={name: f"ear_{name}" for name in ears.columns if name != "file"})
    table = ours.merge(renamed, on="file", how="left", validate="one_to_one", indicator="both")
    lost = table.loc[table["both"] != "both", "file"]
    if len(lost):
        raise InputError(f"{len(lost)} clips were not heard, such as {lost.iloc[0]}: run this again.")
    return table.drop(columns="both")


def page(table: pd.DataFrame, settings: str, packages: dict[str, str]) -> str:
    """All tables as Markdown."""
    generated = table[table["set"] == "generated"]
    versions = ", ".join(f"{name} {version}" for name, version in packages.items())
    lines = [
        f"Measured on {settings}. Package versions: {versions}.",
        "",
        "**Agreement.** The table shows Spearman's ρ between our measure and that of the other model, over the clips "
        "for which both have a value (the number of clips is in parentheses). For the generated clips, it also shows "
        f"a {COVERAGE} interval over prompts.",
        "",
        "| quantity | our measure | other model | synthesised | after the codec | generated |",
        "|---|---|---|---|---|---|",
        *(_agreement_row(table, one) for one in QUANTITIES),
        "",
        "**Agreement with the labels.** The table shows Spearman's ρ between each measure and the synthesiser's label. "
        "For mode, it shows the AUC for major versus minor.",
        "",
        "| quantity | label | our measure | our measure, after the codec | other model "
        "| other model, after the codec |",
        "|---|---|---|---|---|---|",
        *(_truth_row(table, one) for one in QUANTITIES if one.label),
        "",
        "**Metrical levels.** The table shows the share of clips for which the two tempo estimates agree (within 8%), "
        "differ by an octave (1:2), differ by another simple ratio (such as 1:3 or 2:3), or are unrelated. The last "
        "columns show which of the two is right (within 4% of the label) where they differ.",
        "",
        "| tempo estimates | clips | same | octave | other simple ratio | unrelated | clips that differ "
        "| our measure right | other model right | neither right |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row for one in QUANTITIES if one.tempo for row in _level_rows(table, one)),
        "",
        "**Effects.** The effect is the median of (steered / baseline - 1), where each steered or prompted clip is "
        "compared with the baseline clip of the same prompt and seed. For mode, it is the median difference. A failed "
        f"clip counts as an effect of zero. Intervals are {COVERAGE} intervals over prompts.",
        "",
        "| condition | quantity | our measure | other model | name of the other model |",
        "|---|---|---|---|---|",
        *_effect_rows(generated),
        "",
        "**Mode.** The table shows the share of clips that each measure classifies as major. The number of clips with "
        "a value is in parentheses.",
        "",
        "| clips | audiolens `mode` | madmom, key | Basic Pitch, notes |",
        "|---|---|---|---|",
        *_mode_rows(table),
    ]
    return "\n".join(lines) + "\n"


def _agreement_row(table: pd.DataFrame, one: Quantity) -> str:
    cells = []
    for name in SETS:
        found = agreement.agreement(table[table["set"] == name], one.ours, f"ear_{one.ear}")
        interval = f" [{found.interval.low:.2f}, {found.interval.high:.2f}]" if name == "generated" else ""
        cells.append(f"{found.rho:.2f}{interval} ({found.n})")
    return f"| {one.name} | `{one.ours}` | {one.by}: `{one.ear}` | {' | '.join(cells)} |"


def _truth_row(table: pd.DataFrame, one: Quantity) -> str:
    cells = [
        f"{agreement.truth(table[table['set'] == name], one, column):.2f}"
        for column in (one.ours, f"ear_{one.ear}")
        for name in ("synthesised", "codec")
    ]
    return f"| {one.name} | {one.label} | {' | '.join(cells)} |"


def _level_rows(table: pd.DataFrame, one: Quantity) -> list[str]:
    chosen = {"synthesised": table["set"] == "synthesised", "after the codec": table["set"] == "codec"}
    chosen["all generated"] = table["set"] == "generated"
    chosen |= {
        f"{way} {pole}": table["condition"] == f"{way} {pole}"
        for way in ("steered", "prompted")
        for pole in POLES["tempo"]
    }
    rows = []
    for name, which in chosen.items():
        here = table[which]
        ours, ear = (here[column].to_numpy(dtype=float) for column in (one.ours, f"ear_{one.ear}"))
        found = agreement.levels(ours, ear)
        shares = " | ".join(f"{found[level]:.0%}" for level in (*agreement.LEVELS, "unrelated"))
        judged = " |  |  | "
        if one.label and here[f"label_{one.label}"].notna().all():
            who = agreement.right(here, one)
            share = [f"{who[side]:.0%}" if who["n"] else "" for side in ("ours", "ear", "neither")]
            judged = f"{who['n']:.0f} | {' | '.join(share)}"
        rows.append(f"| {one.name} | {name} ({found['n']:.0f}) | {shares} | {judged} |")
    return rows


def _effect_rows(generated: pd.DataFrame) -> list[str]:
    by_name = {one.name: one for one in QUANTITIES}
    there = set(generated["condition"])
    rows = []
    for concept, names in SHOWN.items():
        for way in ("steered", "prompted"):
            for pole in POLES[concept]:
                condition = f"{way} {pole}"
                for name in names if condition in there else ():
                    one = by_name[name]
                    mine, theirs = agreement.effects(generated, [condition], one)[condition]
                    rows.append(f"| {condition} | {name} | {_effect(mine)} | {_effect(theirs)} | {one.by} |")
    return rows


def _mode_rows(table: pd.DataFrame) -> list[str]:
    rows = []
    for name in ("synthesised", "codec"):
        for kind, label in (("major", 1.0), ("minor", 0.0)):
            rows.append((f"{name}, {kind}", table[(table["set"] == name) & (table["label_major"] == label)]))
    for way in ("steered", "prompted"):
        rows += [(f"{way} {pole}", table[table["condition"] == f"{way} {pole}"]) for pole in POLES["mode"]]
    rows.append(("unsteered", table[table["condition"] == "baseline"]))
    return [f"| {name} | {' | '.join(_major(here, column) for column in MAJOR)} |" for name, here in rows if len(here)]


def _major(table: pd.DataFrame, column: str) -> str:
    values = table[column].dropna()
    return f"{(values > MAJOR[column]).mean():.0%} ({len(values)})" if len(values) else "none measured"


def _effect(found: Effect) -> str:
    form = "+.0%" if found.relative else "+.2f"
    ends: Sequence[float] = (found.interval.low, found.interval.high)
    interval = f" [{ends[0]:{form}}, {ends[1]:{form}}]" if np.isfinite(ends).all() else ""
    return f"{found.value:{form}}{interval}"


if __name__ == "__main__":
    typer.run(main)
