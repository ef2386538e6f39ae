"""The command `audiolens harvest`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    GpusPerWorker,
    Json,
    ModelOptions,
    RayAddress,
    Workers,
    is_prompt_file,
    open_lens,
    opens_model,
    own_prompts,
    say,
    stop,
    to_json,
)
from analysis.commands.sizes import Sizes
from audiolens.checks import checked_count
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens import AudioLens


@opens_model
def harvest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PROMPTS",
            help="A .txt file with one prompt per line, a .csv, .json or .toml file of prompts, a bundled concept "
            "(tempo, timbre, ...), or a folder that `audiolens generate` wrote, whose clips are then read.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Folder to write; the same command resumes an interrupted harvest."),
    ],
    sites: Annotated[str, typer.Option(help="Sites with one value per step, separated by commas.")] = "resid_post",
    layers: Annotated[str | None, typer.Option(help="Blocks, such as 0,3 or 12-24 [default: all].")] = None,
    reduce: Annotated[
        str | None, typer.Option(help="mean, first, last or max over the steps [default: keep every step].")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Length of each generated clip.")] = 4.0,
    span: Annotated[str | None, typer.Option(help="Record only this time of each clip, such as 1-3 seconds.")] = None,
    seeds: Annotated[int, typer.Option(help="Number of clips to generate per prompt.")] = 1,
    guidance: Annotated[float, typer.Option(help="Guidance scale with which clips are generated.")] = 3.0,
    branch: Annotated[str, typer.Option(help="Guidance branch to read: cond or null.")] = "cond",
    store: Annotated[
        str | None, typer.Option(help="Dtype to store: float32, float16 or bfloat16 [default: the activations' own].")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Number of clips that the model generates and reads at once.")] = 32,
    engine: Annotated[
        Literal["exact", "fast"],
        typer.Option(help="exact (transformers), or fast (the same up to rounding, but sooner)."),
    ] = "exact",
    ray: RayAddress = None,
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print how large the harvest will be, then stop.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every stored value, and harvest damaged shards again.")
    ] = False,
    model: ModelOptions = ETUDE,
    as_json: Json = False,
) -> None:
    """Record activations of many clips in a folder, for probes, sparse autoencoders and directions.

    Examples:

        audiolens harvest tempo --layers 3-5 --reduce mean -o runs/tempo

        audiolens harvest prompts.txt --sites resid_post,mlp_out --layers 4 --seeds 2 --store float16 -o runs/all --plan
    """
    from analysis.harvest import described, sources

    blocks, within = early.numbers(layers, "--layers"), _span(span)
    early.check_choice("reduce", reduce, early.REDUCED)
    early.check_choice("branch", branch, early.BRANCHES[:2])
    early.check_choice("store", store, ("float32", "float16", "bfloat16"))
    early.check_length(seconds)
    early.check_guidance(guidance)
    checked_count("seeds", seeds)
    checked_count("batch_size", batch_size)
    names = [name.strip() for name in sites.split(",")]
    given, prompts = None, None
    if Path(source).is_dir():
        given = sources.Clips.of(Path(source))
    elif Path(source).suffix.lower() == ".txt":
        prompts = sources.prompts_in(Path(source))
    else:
        early.check_concept(source)
    described.check(out)
    cluster = early.checked_ray(ray, workers, gpus_per_worker)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(layers=blocks)
    from analysis import harvest as harvests

    codes = None if given is None else given.codes()
    lens = open_lens(model)
    asked: dict[str, Any] = {
        "sites": names, "layers": blocks, "out": out, "branch": branch, "span": within, "reduce": reduce,
        "dtype": store, "batch_size": batch_size, "verify": verify, "ray": cluster,
    }  # fmt: skip
    if given is not None:
        asked |= {"prompts": given.prompts, "seeds": given.seeds, "codes": codes}
    else:
        asked |= {
            "prompts": prompts or _of_set(source, lens), "seeds": seeds, "seconds": seconds,
            "guidance_scale": guidance, "engine": engine,
        }  # fmt: skip
    estimate = harvests.plan(lens, **asked)
    if plan:
        facts = {"clips": estimate.rows, "shards": estimate.shards, "bytes": estimate.n_bytes, "sites": estimate.sites}
        say(to_json(facts) if as_json else repr(estimate))
        return
    if not as_json:
        say(repr(estimate), err=True)
    try:
        found = harvests.harvest(lens, **asked, progress=not as_json)
    except KeyboardInterrupt:
        stop(f"{len(described.written(out))} of {estimate.shards} shards are kept in {out}")
    say(to_json({"folder": str(out), "clips": len(found), "bytes": found.n_bytes, "sites": found.sites})
        if as_json else f"{out}: {found!r}")  # fmt: skip


def _of_set(concept: str, lens: AudioLens) -> list[str]:
    """Return all prompts of a bundled concept, in words that the model knows, or those in a file."""
    from analysis.harvest.sources import prompts_of
    from audiolens import prompts

    return prompts_of(own_prompts(concept) if is_prompt_file(concept) else prompts.load(concept, lens=lens))


def _span(text: str | None) -> tuple[float, float] | None:
    """Return the ends of a time interval such as "1-3" in seconds."""
    if text is None:
        return None
    ends = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*", text)
    if ends is None or not float(ends[1]) < float(ends[2]):
        raise InputError(f"--span {text}: expected two times in seconds, such as 1-3.")
    return float(ends[1]), float(ends[2])
