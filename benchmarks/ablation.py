"""Ablate the ingredients of étude's training recipe one at a time: `python benchmarks/ablation.py`.

The decoder is trained without one ingredient at a time, briefly, on part of the corpus and a finished model's codes.
Two numbers are reported. The first is by how many nats a held-out clip is likelier with its caption than without (0 if
the text is ignored). The second is how well the poles of held-out captions are separated in the generated clips. A
second run of the whole recipe from another initialisation shows the variation due to chance. Short runs show which
ingredient causes the text to take effect *early*, not the result of 17,000 steps without it. A stopped run can be
resumed. With `--update` the table replaces the one in étude's model card. `--recipe` and `--model` ablate another
étude, whose codec is read from MODEL.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from jaxtyping import Float, Int
from pages import renewed
from torch import Tensor

from analysis.resampling import CONFIDENCE, COVERAGE
from audiolens import AudioLens, measure
from audiolens.etude.training import corpus, decoder, evaluate, export, instruments, listener, recipes, text, train
from audiolens.model.timeline import delay, delays_of

CARD = train.WEIGHTS / "README.md"
HELD_OUT_SEED, HELD_OUT = 77, 256
"""Seed of the clips that no training used."""
HEARD = {"tempo": "tempo_ioi", "timbre": "brightness"}
NO_HEAD = {"listening_weight": 0.0}
NO_HIDING = {"history_dropout": 0.0}
NO_BEGINNING = {"beginning": (0, 1.0)}


@dataclass(frozen=True)
class Variant:
    """A variant of a recipe, described by its changes."""

    name: str
    schedule: dict[str, Any] = field(default_factory=dict)
    pretrained_text: bool = True
    start: int = 0

    def of(self, recipe: recipes.Recipe, steps: int) -> recipes.Recipe:
        """The recipe with these changes, trained for `steps` steps."""
        return replace(
            recipe,
            reading=recipe.reading if self.pretrained_text else replace(recipe.reading, steps=0),
            schedule=replace(recipe.schedule, steps=steps, **self.schedule),
            weights_seed=self.start,
        )


VARIANTS = (
    Variant("full recipe"),
    Variant("full recipe, different initialisation", start=1),
    Variant("without all four ingredients", {**NO_HEAD, **NO_HIDING, **NO_BEGINNING}, pretrained_text=False),
    Variant("text encoder not pre-trained", pretrained_text=False),
    Variant("no head on the final state", NO_HEAD),
    Variant("no hidden history", NO_HIDING),
    Variant("beginnings not weighted more", NO_BEGINNING),
)


def main(
    work: Annotated[Path, typer.Option(help="Folder of checkpoints and results (resumable).")] = Path("runs/ablation"),
    steps: Annotated[int, typer.Option(help="Decoder steps of each run.")] = 1200,
    clips: Annotated[int, typer.Option(help="Training clips of each run.")] = 8192,
    draws: Annotated[int, typer.Option(help="Clips per held-out caption.")] = 2,
    codes: Annotated[Path | None, typer.Option(help="Codes of an earlier training [default: in WORK].")] = None,
    update: Annotated[bool, typer.Option(help="Write the table into the model card.")] = False,
    recipe: Annotated[str, typer.Option(help="The recipe to ablate.")] = "etude-0",
    model: Annotated[Path, typer.Option(help="A finished model of this recipe, for its codec.")] = train.WEIGHTS,
) -> None:
    """Train the decoder without each ingredient, and print the effect of text on each."""
    whole = recipes.named(recipe)
    material = whole.material
    work = work if recipe == "etude-0" else work / recipe
    work.mkdir(parents=True, exist_ok=True)
    codec: Any = AudioLens.from_pretrained(str(model)).model.audio_encoder
    folder = codes or work / "codes"
    sound = {"seconds": material.seconds, "music": material.music}
    learnt = corpus.codes(clips, material.seed, codec, folder, train.bar("encode"), **sound)
    held_out = corpus.codes(HELD_OUT, HELD_OUT_SEED, codec, work / "held-out", **sound)
    rows = []
    for variant in VARIANTS:
        out = work / variant.name.replace(" ", "-").replace(",", "")
        out.mkdir(exist_ok=True)
        result = out / f"{steps}-{clips}-{draws}.json"
        if not result.exists():
            changed = variant.of(whole, steps)
            finished = trained(changed, codec, learnt, out, work)
            found = {"recipe": variant.name, **gap(finished, changed, held_out)}
            result.write_text(json.dumps(found | words(out / "model", draws), indent=1))
        rows.append(json.loads(result.read_text()))
    told = page(pd.DataFrame(rows), steps, clips, draws)
    typer.echo(told)
    if update:
        CARD.write_text(renewed(CARD.read_text("utf-8"), "ablation", told), "utf-8")


def trained(recipe: recipes.Recipe, codec: Any, codes: np.ndarray, out: Path, work: Path) -> decoder.Etude:
    """Train a model by this recipe on these codes; it is also written to `out` / "model"."""
    reading, schedule, start = recipe.reading, recipe.schedule, recipe.weights_seed or 0
    tokenizer = reading.tokenizer()
    torch.manual_seed(start)
    reader = reading.encoder(tokenizer)
    if reading.steps:
        kept = work / f"text-{start}.safetensors"
        text.pretrain(reader, tokenizer, kept, reading.steps, report=train.bar("text"), reading=reading)
    torch.manual_seed(start)
    model = decoder.build(reader, codec.cpu(), recipe.form)
    state, music = out / f"decoder-{schedule.steps}.safetensors", recipe.material.music
    decoder.train(
        model, tokenizer, codes, recipe.material.seed, state, schedule, train.bar(out.name), reading=reading,
        music=music,
    )  # fmt: skip
    export.model(model, tokenizer, out / "model", recipe.half)
    return model


@torch.no_grad()
def gap(
    model: Any, recipe: recipes.Recipe, codes: Int[np.ndarray, "clip codebook frame"], rows: int = 32
) -> dict[str, float]:
    """Nats per code with text, and by how many nats a clip is likelier with its own caption than without."""
    tokenizer, delays = recipe.reading.tokenizer(), delays_of(codes.shape[1], channels=1)
    captions = listener.Labels.of(len(codes), HELD_OUT_SEED, recipe.material.music, recipe.reading.wording).captions
    nats = {kept: [] for kept in (True, False)}
    for start in range(0, len(codes), rows):
        part = torch.from_numpy(codes[start : start + rows]).long()
        columns = delay(part, delays, decoder.START)
        tokens = dict(text.tokenize(tokenizer, captions[start : start + rows]))
        for kept, found in nats.items():
            found.append(_nats(model, columns, tokens, kept))
    told, untold = (torch.cat(nats[kept]) for kept in (True, False))
    saved = (untold - told).numpy()
    outside = (1 - CONFIDENCE) / 2
    means = np.random.default_rng(0).choice(saved, (2000, len(saved))).mean(1)
    low, high = np.quantile(means, (outside, 1 - outside))
    return {"nats": float(told.mean() / codes[0].size), "gap": float(saved.mean()), "low": low, "high": high}


def _nats(
    model: Any, columns: Int[Tensor, "row codebook column"], tokens: dict[str, Tensor], kept: bool
) -> Float[Tensor, " row"]:
    """Nats of each row's codes, with or without its text."""
    states = decoder.final_states(model, columns[..., :-1], tokens, torch.full((len(columns),), kept))
    losses, real = decoder.code_losses(model, states, columns)
    return (losses * real).sum((1, 2))


def words(folder: Path, draws: int) -> dict[str, float]:
    """AUC of the high over the low pole for held-out captions, by concept."""
    lens = AudioLens.from_pretrained(str(folder))
    found = {}
    for concept, measured in HEARD.items():
        asked = [
            (caption, level == "high", frame * draws + draw)
            for level in evaluate.POLES[concept]
            for frame, caption in enumerate(evaluate.held_out_captions(concept, level))
            for draw in range(draws)
        ]
        captions, high, seeds = zip(*asked, strict=True)
        played = lens.generate(list(captions), 5.0, seeds=list(seeds), batch_size=instruments.ROWS, progress=True)
        table = measure.table(played, measures=[measured])
        found[concept] = evaluate.pole_auc(table[measured], pd.Series(high))
    return found


def page(table: pd.DataFrame, steps: int, clips: int, draws: int) -> str:
    """The table in Markdown."""
    frames = len(evaluate.FRAMES)
    lines = [
        f"The decoder was trained from scratch for {steps:,} steps on {clips:,} clips, with the full recipe and "
        "without some of its ingredients (`python benchmarks/ablation.py`). The gap is the log-likelihood of a clip "
        f"with its caption minus its log-likelihood without the caption, averaged over {HELD_OUT} held-out clips, "
        f"with a {COVERAGE} interval over clips. AUCs are computed on clips generated from {frames} held-out captions "
        f"per pole, with {draws} clips per caption.",
        "",
        "| recipe | nats per code | gap, nats per clip | tempo (interval), AUC | timbre, AUC |",
        "|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        told = f"{row['gap']:.1f} [{row['low']:.1f}, {row['high']:.1f}] | {row['tempo']:.2f} | {row['timbre']:.2f}"
        lines.append(f"| {row['recipe']} | {row['nats']:.3f} | {told} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    typer.run(main)
