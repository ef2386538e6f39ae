"""How far shuffled directions point along the concept, from étude's stored samples.

Labels permuted freely, half of each pole in either group (`Directions.shuffled`), and half of the pairs swapped.

Reads the directions of étude's measured concepts and shuffles them; nothing is steered. `--update` writes the table
into docs/reading-results.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from pages import renewed

from analysis.similarity import chance_cosine
from analysis.sweep.concept_measures import MEASURED
from audiolens import AudioLens, Directions, difference_in_means, prompts

PAGE = Path(__file__).parent.parent / "docs" / "reading-results.md"


def main(
    model: Annotated[str, typer.Option(help="étude, or a folder from its training recipe.")] = "etude",
    poles: Annotated[int, typer.Option(help="Prompts per pole that directions are read from.")] = 48,
    shuffles: Annotated[int, typer.Option(help="Shuffles of each kind.")] = 199,
    update: Annotated[bool, typer.Option(help="Write the table into the documentation.")] = False,
) -> None:
    """Compare the cosine similarities of free and balanced shuffles with the direction, over all blocks."""
    torch.set_num_threads(1)
    lens = AudioLens.from_pretrained(model)
    found = {}
    for concept in MEASURED:
        sets = prompts.load(concept, lens=lens)
        found[concept] = difference_in_means(
            lens, sets.positive[:poles], sets.negative[:poles], codes="shared", neutral=sets.development, batch_size=64,
            label=concept, keep_samples=True,
        )  # fmt: skip
    text = page(table(found, shuffles), lens.config.d_model, poles, shuffles)
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "shuffles", text), "utf-8")
    typer.echo(text)


def free(directions: Directions, seed: int) -> Directions:
    """Labels permuted over all prompts."""
    return directions.shuffled(seed, match_norms=False, balanced=False)


def balanced(directions: Directions, seed: int) -> Directions:
    """Half of each pole in either group."""
    return directions.shuffled(seed, match_norms=False)


def swapped(directions: Directions, seed: int) -> Directions:
    """Half of the pairs swapped, which is also balanced; a pair is read on the same clip."""
    samples = directions.samples
    assert samples is not None
    pairs = samples.values[:, samples.labels] - samples.values[:, ~samples.labels]
    order = torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(seed))
    kept, turned = order.chunk(2)
    vectors = (pairs[:, kept].mean(1) - pairs[:, turned].mean(1)) / 2
    return replace(directions, vectors=vectors, evidence=None, samples=None)


KINDS = {"free": free, "balanced": balanced, "pairs swapped": swapped}


def table(found: dict[str, Directions], shuffles: int) -> pd.DataFrame:
    """One row per concept: |cosine| of its shuffles, and the factor by which they are scaled to the norm of the
    direction.
    """
    rows = []
    for concept, directions in found.items():
        row: dict[str, float | str] = {"concept": concept}
        for name, shuffle in KINDS.items():
            drawn = [shuffle(directions, seed) for seed in range(shuffles)]
            cosines = np.stack([one.cosine(directions).abs().numpy() for one in drawn])
            row |= {f"{name}_median": float(np.median(cosines)), f"{name}_high": float(np.quantile(cosines, 0.95))}
            row |= {f"{name}_most": float(cosines.max()), f"{name}_at": directions.layers[int(cosines.max(0).argmax())]}
            stretched = np.stack([(directions.norms / one.norms).numpy() for one in drawn])
            row[f"{name}_stretched"] = float(np.median(stretched))
        others = [directions.cosine(other).abs().numpy() for name, other in found.items() if name != concept]
        row |= {"others_median": float(np.median(others)), "others_most": float(np.max(others))}
        rows.append(row)
    return pd.DataFrame(rows)


def page(rows: pd.DataFrame, width: int, poles: int, shuffles: int) -> str:
    """The table as Markdown, with an explanation."""
    lines = [
        "The table shows the absolute cosine similarity to the real direction, over all blocks of étude, for "
        f"{shuffles} shuffles of {poles} + {poles} prompts (computed on shared codes, as in a study) and for the "
        "directions of the other concepts in this table. For comparison, 5% of random directions of this width have an "
        f"absolute cosine similarity above {chance_cosine(width):.2f}. "
        '"Stretched" is the factor by which a shuffle must be scaled to match the norm of the direction.',
        "",
        "| concept | shuffles | median | 95% below | largest | stretched | other concepts, median | largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows.to_dict("records"):
        for name in KINDS:
            cosines = f"{row[f'{name}_median']:.2f} | {row[f'{name}_high']:.2f}"
            largest = f"{row[f'{name}_most']:.2f} (block {row[f'{name}_at']})"
            beside = f"{row['others_median']:.2f} | {row['others_most']:.2f}" if name == "free" else "|"
            lines.append(
                f"| {row['concept']} | {name} | {cosines} | {largest} | {row[f'{name}_stretched']:.1f}x | {beside} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
