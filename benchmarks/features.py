"""Train a sparse autoencoder on étude, and measure what it keeps, and which taught attributes have their own latent.

`python benchmarks/features.py --update` synthesises clips with the music and captions that étude was trained on (other
seeds), harvests some blocks, trains an SAE on each, and writes the tables in docs/features.md. The attributes listed
are those of the block with the best one-to-one match. The script resumes: finished stages are kept. Speeds are those of
this machine, in one process and one after the other: training an SAE beside the forward pass that feeds it. `--quick`
runs all of it from start to end in minutes, at sizes from which nothing is concluded.
"""

import json
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from joblib import Parallel, delayed
from pages import renewed
from safetensors.torch import load_file, save_file

import audiolens as al
from analysis import features, harvest, sweep
from analysis.features.clips import labelled
from analysis.features.learning import Learner
from analysis.features.source import activations
from analysis.resampling import COVERAGE
from analysis.study.settings import TEST_SEED
from analysis.workers import share_cores
from audiolens.files.atomic import written
from audiolens.model.sites import Site

PAGE = Path(__file__).parent.parent / "docs" / "features.md"
SEED = 24
CLAMPED = ("tempo: high", "tempo: low", "timbre: high", "timbre: low")
MEASURED = {"tempo_ioi": "tempo", "brightness": "brightness"}
CLIPS = 8
BATCH = 256
"""Vectors per step. With the few vectors that fit in minutes, more and smaller steps get further."""
FULL = {"n": 1000, "indexed": 400, "blocks": "2,4,6", "vectors": 1_000_000}
QUICK = {"n": 128, "indexed": 96, "blocks": "4,6", "vectors": 40_000}
"""The clips to train on, the further clips with whose labels latents are compared, the blocks, and the vectors to train
each SAE on."""


def main(
    out: Annotated[
        Path | None, typer.Option(help="Folder for clips, harvest and SAEs (resumable) [default: runs/features].")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Few clips and vectors, and two blocks: minutes instead of hours.")
    ] = False,
    n: Annotated[int | None, typer.Option(help="Clips to train on; a tenth is held out [default: 1000].")] = None,
    indexed: Annotated[int | None, typer.Option(help="Further clips, to compare with [default: 400].")] = None,
    blocks: Annotated[str | None, typer.Option(help="Blocks to train an SAE on [default: 2,4,6].")] = None,
    k: Annotated[int, typer.Option(help="Active latents.")] = 32,
    width: Annotated[int, typer.Option(help="Latents.")] = 1536,
    vectors: Annotated[int | None, typer.Option(help="Vectors to train each SAE on [default: 1,000,000].")] = None,
    jobs: Annotated[int, typer.Option(help="Processes that train SAEs.")] = 1,
    update: Annotated[bool, typer.Option(help="Write the tables into docs/features.md.")] = False,
) -> None:
    """Train and measure."""
    if quick and update:
        raise typer.BadParameter("--update writes the tables of the full sizes: leave out --quick.")
    given = {"n": n, "indexed": indexed, "blocks": blocks, "vectors": vectors}
    size: dict[str, Any] = {name: value or (QUICK if quick else FULL)[name] for name, value in given.items()}
    n, vectors = int(size["n"]), int(size["vectors"])
    out = Path("runs/features-quick" if quick else "runs/features") if out is None else out
    share_cores()
    lens = al.AudioLens.from_pretrained("etude")
    prompts, codes, unseen = clips(lens, n, size["indexed"], out)
    layers = [int(block) for block in size["blocks"].split(",")]
    harvest.harvest(lens, prompts[:n], codes=codes[:n], layers=layers, dtype="float16", out=out / "harvest")
    asked: dict[str, Any] = {"kind": "topk", "k": k, "width": width, "batch_size": BATCH}
    run = Parallel(n_jobs=min(jobs, len(layers)))
    found = list(run(delayed(trained)(out, layer, n, size["indexed"], vectors, asked) for layer in layers))
    best = max(found, key=lambda one: one["matching"])["layer"]
    sae = features.load(out / f"sae-{best}", lens=lens)
    index = features.index(lens, sae, unseen)
    index.page(out / "features.html", lens)
    index.plot().savefig(out / "attributes.png", dpi=150)
    text = tables(found, sae, index, speeds(lens, sae, prompts, codes), n, vectors) + steered(lens, sae, index, out)
    (out / "features.md").write_text(text, "utf-8")
    if update:
        PAGE.write_text(renewed(PAGE.read_text("utf-8"), "features", text), "utf-8")
    typer.echo(text)


def clips(lens: al.AudioLens, n: int, indexed: int, out: Path) -> tuple[tuple[str, ...], torch.Tensor, features.Clips]:
    """The prompts and codes of all clips, and those that no SAE is trained on with their labels."""
    prompts, labels = labelled(n + indexed, SEED)
    codes = encoded(lens, n + indexed, out)
    return prompts, codes, features.Clips(prompts[n:], codes[n:], labels[n:])


def trained(out: Path, layer: int, n: int, indexed: int, vectors: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What the SAE of one block keeps and finds; it is trained and measured once."""
    path = out / f"sae-{layer}.json"
    if path.is_file():
        found = json.loads(path.read_text("utf-8"))
        if found["asked"] == [n, indexed, vectors, asked]:
            return found
    share_cores()
    lens = al.AudioLens.from_pretrained("etude")
    kept = harvest.Harvest.load(out / "harvest")
    sae = features.train(lens, kept, layer=layer, n_vectors=vectors, out=out / f"sae-{layer}", **asked)
    index = features.index(lens, sae, clips(lens, n, indexed, out)[2])
    found = {
        "layer": layer, "asked": [n, indexed, vectors, asked], "matching": index.matching_score,
        "row": measured(sae, index),
    }  # fmt: skip
    with written(path) as whole:
        whole.write_text(json.dumps(found), "utf-8")
    return found


def encoded(lens: al.AudioLens, n: int, out: Path) -> torch.Tensor:
    """The codes of the synthesiser's clips, encoded once."""
    path = out / "codes.safetensors"
    if path.is_file():
        found = load_file(path)["codes"]
        if len(found) >= n:
            return found[:n].long()
    codes = features.synthesised(lens, n, seed=SEED, progress=True).codes
    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as whole:
        save_file({"codes": codes.to(torch.int16)}, whole)
    return codes


def steered(lens: al.AudioLens, sae: features.SAE, index: features.FeatureIndex, out: Path) -> str:
    """What clamping the best latents of some attributes to their peak does to the sound, as a table in Markdown."""
    sets = al.prompts.load("tempo", lens=lens)
    best = index.attributes.set_index("attribute")["latent"]
    conditions = [sweep.Condition(sweep.BASELINE)]
    for name in CLAMPED:
        latent = int(best[name])
        value = float(index.latents["peak"][latent])
        conditions.append(sweep.Condition(name, (features.splice(sae, clamp={latent: value}),)))
    played = sweep.play(
        lens, conditions, sweep.clips(sets.test[:CLIPS], 1, TEST_SEED), seconds=4.0, measures=list(MEASURED),
        out=out / f"clips-{sae.layer}", n_jobs=0,
    )  # fmt: skip
    effects = {name: sweep.effects(played.table, name).set_index("condition") for name in MEASURED}
    rows = []
    for name in CLAMPED:
        cells = {words: _cell(effects[measure].loc[name]) for measure, words in MEASURED.items()}
        failed = effects["tempo_ioi"].loc[name].to_dict()["failed"]
        rows.append({"latent of": name, **cells, "failed clips": f"{failed:.0%}"})
    return (
        f"\nClamping a latent to the largest value that it had on the {len(index.clips)} clips, at every step and in "
        f"both branches, changes the clips of {CLIPS} neutral test prompts by (median, {COVERAGE} interval over "
        f"prompts; failed clips count as no change):\n\n{markdown(pd.DataFrame(rows))}\n"
    )


def _cell(row: Any) -> str:
    return f"{row['effect']:+.0%} [{row['low']:+.0%}, {row['high']:+.0%}]"


def speeds(
    lens: al.AudioLens, sae: features.SAE, prompts: tuple[str, ...], codes: torch.Tensor, repeats: int = 5
) -> dict[str, float]:
    """Vectors per second of a forward pass up to the block, and of training on what it read, medians of `repeats`."""
    rows = range(16)
    site = Site(sae.site, sae.layer)
    reading, training = [], []
    vectors = torch.empty(0)
    for _ in range(repeats):
        begun = time.perf_counter()
        vectors = activations(lens, site, [prompts[row] for row in rows], codes[list(rows)]).flatten(0, 1)
        reading.append(len(vectors) / (time.perf_counter() - begun))
    learner = Learner.begin("topk", sae.k or 1, sae.width, 1e-3, 10**9, vectors, 0)
    for _ in range(repeats):
        begun = time.perf_counter()
        for batch in vectors.split(BATCH):
            learner.learn(batch)
        training.append(len(vectors) / (time.perf_counter() - begun))
    return {"reading": median(reading), "training": median(training)}


def tables(
    measurements: list[dict[str, Any]],
    sae: features.SAE,
    index: features.FeatureIndex,
    speed: dict[str, float],
    n: int,
    vectors: int,
) -> str:
    """The tables of the page, in Markdown."""
    rows = [{"block": one["layer"], **one["row"]} for one in measurements]
    found = index.attributes.sort_values("auc", ascending=False)
    named = pd.DataFrame(
        {
            "attribute": found["attribute"],
            "best latent": found["latent"],
            "AUC": found["auc"].map("{:.3f}".format),
            "matched alone": found["matched_auc"].map("{:.3f}".format),
            f"latents of AUC ≥ {index.threshold:g}": found["above"],
            f"sum of {index.several}": found["several_auc"].map("{:.3f}".format),
            "absorbed": found["absorbed"].map("{:.0%}".format),
        }
    )
    scores = sae.scores
    loss, spliced, mean, zero = (f"{scores[name]:.4f}" for name in ("loss", "spliced", "mean", "zero"))
    words = (
        f"SAEs of {sae.width} latents, TopK with k = {sae.k}, at `resid_post` of étude, trained on {vectors:,} vectors "
        f"from {n} clips of the synthesiser (a tenth held out, of which {scores['n_clips']:.0f} are scored), and "
        f"compared with the labels of {len(index.clips)} others.",
        markdown(pd.DataFrame(rows)),
        f"**Block {sae.layer}** has the best one-to-one match, by which it was chosen for what follows. Of "
        f"{len(named)} attributes, {index.own} have a latent with an AUC of at least {index.threshold:g} on the half "
        f"of the clips that latents were not chosen on. Matched one to one, the mean AUC is "
        f"{index.matching_score:.3f}. The next-code loss on held-out clips is {loss} nats per code, {spliced} with the "
        f"reconstruction, {mean} with the mean and {zero} with zeros.",
        markdown(named),
        f"In one process on one core, the forward pass up to the block reads {speed['reading']:,.0f} vectors per "
        f"second, and the SAE trains on {speed['training']:,.0f}: {speed['training'] / speed['reading']:.1f} times as "
        "many. The speeds are those of a busy machine; the ratio is what to expect elsewhere.",
    )
    return "\n\n".join(words) + "\n"


def measured(sae: features.SAE, index: features.FeatureIndex) -> dict[str, str]:
    scores = sae.scores
    return {
        "variance explained": f"{scores['explained_variance']:.1%}",
        "L0": f"{scores['l0']:.1f}",
        "dead": f"{scores['dead']:.1%}",
        "loss recovered (zeros)": f"{scores['loss_recovered']:.1%}",
        "loss recovered (mean)": f"{scores['loss_recovered_of_mean']:.1%}",
        f"attributes of AUC ≥ {index.threshold:g}": f"{index.own} of {len(index.attributes)}",
        "mean matched AUC": f"{index.matching_score:.3f}",
    }


def markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


if __name__ == "__main__":
    typer.run(main)
