"""The commands `audiolens train-sae` and `audiolens features`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    GpusPerWorker,
    Json,
    ModelOptions,
    RayAddress,
    Workers,
    as_facts,
    cell,
    is_prompt_file,
    open_lens,
    opens_model,
    own_prompts,
    print_table,
    say,
    stop,
    to_json,
    write_result,
)
from analysis.commands.sizes import Sizes
from analysis.features.described import MOST_VECTORS, OWN_AUC
from audiolens.checks import MOST_SEED, checked_amount, checked_count
from audiolens.errors import InputError

if TYPE_CHECKING:
    from analysis.features import Clips, FeatureIndex
    from audiolens import AudioLens

_SHOWN = {"attribute": "attribute", "latent": "latent", "auc": "AUC", "matched": "matched", "matched_auc": "AUC ",
          "above": "latents above", "several_auc": "several together", "absorbed": "absorbed"}  # fmt: skip


@opens_model
def train_sae(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS|FOLDER",
            help="A .txt file with one prompt per line, a .csv, .json or .toml file of prompts, a bundled concept "
            "(tempo, timbre, ...), or a folder that `audiolens generate` or `audiolens harvest` wrote.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder to write; the same command resumes a stopped training.")
    ],
    layer: Annotated[int | None, typer.Option(help="Block [default: the only one of a harvest].")] = None,
    site: Annotated[str, typer.Option(help="Site with one vector per step.")] = "resid_post",
    kind: Annotated[str, typer.Option(help="topk, batchtopk or jumprelu.")] = "topk",
    width: Annotated[int | None, typer.Option(help="Number of latents [default: 8 per feature].")] = None,
    k: Annotated[int, typer.Option(help="Number of active latents per step.")] = 32,
    vectors: Annotated[int, typer.Option(help="Number of vectors to train on.")] = 2_000_000,
    batch_size: Annotated[int, typer.Option(help="Vectors per step of the training.")] = 512,
    rate: Annotated[float | None, typer.Option(help="Learning rate [default: 0.001 up to 2048 latents].")] = None,
    seeds: Annotated[int, typer.Option(help="Number of clips to generate per prompt.")] = 1,
    seconds: Annotated[float, typer.Option(help="Length of each generated clip.")] = 4.0,
    guidance: Annotated[float, typer.Option(help="Guidance scale with which clips are generated.")] = 3.0,
    held_out: Annotated[float, typer.Option(help="Share of the prompts to score on instead of training.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the first weights and of the order.")] = 0,
    ray: RayAddress = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    model: ModelOptions = ETUDE,
    as_json: Json = False,
) -> None:
    """Train a sparse autoencoder on the activations of a site, and write it in the file format of SAELens.

    With `--ray`, the cluster first records the activations of all clips in the folder OUT-activations, as `audiolens
    harvest` does. This process then trains on them.

    Examples:

        audiolens harvest prompts.txt --layers 4 --seeds 2 --store float16 -o runs/all

        audiolens train-sae runs/all --k 32 -o runs/sae
    """
    from analysis.features import described
    from analysis.harvest import described as harvests
    from analysis.harvest import sources

    early.check_choice("kind", kind, described.KINDS)
    for name, value, least in (("k", k, 1), ("batch_size", batch_size, 1), ("seeds", seeds, 1)):
        checked_count(name, value, least)
    checked_count("vectors", vectors, 1, MOST_VECTORS)
    checked_count("seed", seed, 0, MOST_SEED)
    if width is not None and k > checked_count("width", width) // 2:
        raise InputError(f"k={k} of width={width}: expected at most half of the latents to be active.")
    if rate is not None:
        checked_amount("rate", rate, above=0)
    if not 0 <= checked_amount("held_out", held_out) < 1:
        raise InputError(f"held_out={held_out}: expected a share of at least 0 and below 1.")
    early.check_length(seconds)
    early.check_guidance(guidance)
    place = Path(source)
    harvested = (place / harvests.PLAN).is_file()
    given, prompts = None, None
    if place.is_dir() and not harvested:
        given = sources.Clips.of(place)
    elif place.suffix.lower() == ".txt":
        prompts = sources.prompts_in(place)
    elif not harvested:
        early.check_concept(source)
    if layer is None and not harvested:
        raise InputError("--layer is missing: give the block whose activations the SAE reads.")
    described.check(out)
    # The current folder has no name in "." alone.
    beside = out if out.name else out.absolute()
    activations = beside.with_name(f"{beside.name}-activations")
    if ray is not None:
        if harvested:
            raise InputError(f"--ray {ray}: {source} already contains the activations, and one process trains on them.")
        harvests.check(activations)
    cluster = early.checked_ray(ray, workers, gpus_per_worker)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(layers=None if layer is None else [layer], site=site, per_step=True, seconds=seconds)
    from analysis import features, harvest

    lens = open_lens(model)
    data: Any = harvest.Harvest.load(place) if harvested else prompts
    if given is not None:
        data = given.prompts
    elif data is None:
        from audiolens import prompts as sets

        data = sources.prompts_of(own_prompts(source) if is_prompt_file(source) else sets.load(source, lens=lens))
    codes = None if given is None else given.codes()
    try:
        if cluster is not None:
            made = {"seconds": seconds, "guidance_scale": guidance} if codes is None else {"codes": codes}
            asked: dict[str, Any] = {**made, "seeds": seeds if given is None else given.seeds, "ray": cluster}
            data, codes = harvest.harvest(lens, data, site, layer, out=activations, **asked, progress=not as_json), None
        sae = features.train(
            lens, data, site=site, layer=layer, kind=kind,  # pyright: ignore[reportArgumentType]  # checked above
            width=width, k=k, codes=codes, seeds=seeds, seconds=seconds,
            guidance_scale=guidance, n_vectors=vectors, batch_size=batch_size, learning_rate=rate, held_out=held_out,
            seed=seed, out=out, progress=not as_json,
        )  # fmt: skip
    except KeyboardInterrupt:
        stop(f"the last checkpoint is kept in {out}{'' if cluster is None else f', and activations in {activations}'}")
    say(
        to_json({"folder": str(out), "width": sae.width, "site": sae.name, **sae.scores})
        if as_json
        else f"{out}: {sae!r}"
    )


@opens_model
def features(
    sae: Annotated[
        str, typer.Argument(metavar="SAE", help="A folder in the format of SAELens, or a hub name (owner/name/folder).")
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="New folder for the page, tables and figure.")] = None,
    clips: Annotated[
        Path | None,
        typer.Option(help="A folder that `audiolens generate` wrote [default: labelled clips of the synthesiser]."),
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Number of synthesised clips.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the synthesised clips; étude was trained with 1 and 2.")] = 9,
    latents: Annotated[str | None, typer.Option(help="Latents on the page, such as 3,17 [default: chosen].")] = None,
    top: Annotated[int, typer.Option(help="Number of sounds per latent.")] = 4,
    seconds: Annotated[float, typer.Option(help="Length of each sound.")] = 1.0,
    threshold: Annotated[float, typer.Option(help="AUC from which a latent counts as an attribute's own.")] = OWN_AUC,
    site: Annotated[str | None, typer.Option(help="Site, if the file names a hook of another program.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block, if the file names none.")] = None,
    model: ModelOptions = ETUDE,
    as_json: Json = False,
) -> None:
    """Find the sounds and attributes of a sparse autoencoder's latents, and write a page that plays them.

    Examples:

        audiolens features runs/sae -o runs/features

        audiolens features runs/sae --latents 12,80 --clips runs/clips -o runs/two
    """
    from analysis.features import described
    from analysis.harvest import sources

    described.check_sae(Path(sae))
    checked_count("n", n, described.FEWEST_CLIPS)
    checked_count("top", top)
    checked_count("seed", seed, 0, MOST_SEED)
    early.check_length(seconds)
    if not 0.5 < checked_amount("threshold", threshold) <= 1:
        raise InputError(f"threshold={threshold}: expected an AUC between 0.5 and 1.")
    chosen = early.numbers(latents, "--latents")
    given = None if clips is None else sources.Clips.of(clips)
    early.check_folder(out)
    early.check_model(model)
    from analysis import features as kinds
    from analysis.store import folder

    lens = open_lens(model)
    loaded = kinds.load(sae, lens=lens, site=site, layer=layer)
    if chosen is not None:
        loaded.numbers("--latents", chosen)
    if given is None:
        heard = kinds.synthesised(lens, n, seed=seed, progress=not as_json)
    else:
        heard = kinds.Clips(given.prompts, given.codes())
    found = kinds.index(lens, loaded, heard, top=top, seconds=seconds, threshold=threshold, progress=not as_json)
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            _write(found, work, lens, chosen, top)
    _tell(found, heard, as_json)
    if out is not None and not as_json:
        say(f"Page: {out / 'index.html'}")


def _write(found: FeatureIndex, work: Path, lens: AudioLens, chosen: list[int] | None, top: int) -> None:
    from analysis.spreadsheets import csv_of

    for name in ("latents", "tops"):
        (work / f"{name}.csv").write_text(csv_of(getattr(found, name)), "utf-8")
    if len(found.attributes):
        write_result(found, work, "attributes")
    found.page(work / "index.html", lens, chosen, sounds=top)


def _tell(found: FeatureIndex, heard: Clips, as_json: bool) -> None:
    if as_json:
        say(to_json(as_facts(found)))
        return
    say(repr(found))
    if heard.truths:
        print_table(
            [{words: cell(row[name]) for name, words in _SHOWN.items()} for row in found.attributes.to_dict("records")]
        )
