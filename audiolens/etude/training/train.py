"""Train an étude with `python -m audiolens.etude.training.train MODEL`, which resumes a run that was killed.

The stages are: render clips -> train the codec -> encode the corpus -> pre-train the text encoder -> train the decoder
-> write a folder that transformers alone can load -> evaluate. A stage is skipped if its result exists. Models that
share music and codec (`recipes`) also share the first three stages, if they are trained in the same working folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm
from transformers import MusicgenForConditionalGeneration

from audiolens.errors import InputError
from audiolens.etude.training import card, checkpoint, codec, corpus, decoder, export, listener, recipes, text
from audiolens.files.atomic import put

WEIGHTS = Path(__file__).parents[1] / "weights"
KEPT_CODEC = Path(__file__).parents[3] / "etudes" / "codec"
"""The codec of the newer études, in a checkout of the repository."""

app = typer.Typer(add_completion=False)


@app.command()
def main(
    model: Annotated[str, typer.Argument(help=f"The recipe: {', '.join(recipes.RECIPES)}.")],
    work: Annotated[
        Path, typer.Option(help="Folder for corpus and checkpoints (1.5 GB); études of one material share it.")
    ] = Path("runs/etudes/work"),
    out: Annotated[Path, typer.Option(help="The finished model is written to OUT/MODEL.")] = Path("runs/etudes"),
    codec_from: Annotated[
        Path | None,
        typer.Option("--codec", help="A finished codec: a folder or a training state [default: etudes/codec]."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="A finished model to resume from, halfway through the schedule.")
    ] = None,
    clips: Annotated[int | None, typer.Option(help="Clips in the decoder's corpus.")] = None,
    steps: Annotated[int | None, typer.Option(help="Decoder steps, in the whole schedule.")] = None,
    codec_steps: Annotated[int | None, typer.Option(help="Joint steps of the codec.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seeds: Annotated[int, typer.Option(help="Clips per caption in the evaluation; 0 leaves it out.")] = 1,
) -> None:
    """Train MODEL from scratch on the synthesiser's clips; write it as a stock MusicGen folder with a model card."""
    recipe = recipes.named(model)
    material = recipe.material
    if clips is not None:
        material = replace(material, clips=clips)
    if codec_steps is not None:
        material = replace(material, schedule=replace(material.schedule, joint=codec_steps))
    recipe = replace(recipe, material=material)
    if steps is not None:
        recipe = replace(recipe, schedule=replace(recipe.schedule, steps=steps))
    folder = train(recipe, work, out / model, codec_from or kept_codec(recipe), base, device)
    typer.echo(f"{model} is in {folder}")
    if seeds:
        card.write(folder, recipe, seeds)


def train(
    recipe: recipes.Recipe,
    work: Path,
    out: Path,
    codec_from: Path | None = None,
    base: Path | None = None,
    device: str = "cpu",
    save_every: int = 200,
) -> Path:
    """Train a model by its recipe, resuming from what is in `work`, and return the folder that it was written to."""
    material, reading = recipe.material, recipe.reading
    shared, own = work / material.name, work / recipe.name
    for folder, part in ((shared, material), (own, recipe)):
        folder.mkdir(parents=True, exist_ok=True)
        _agree(folder / "recipe.json", part)
    if base:
        _go_on_from(base, recipe, work)
    # The codec is built first: without a seed, the first weights of the other parts continue its random numbers.
    trained_codec = _codec(material, shared, codec_from, device, save_every)
    codes = corpus.codes(
        material.clips, material.seed, trained_codec, shared / "codes", bar("encode"), device, material.seconds,
        material.music,
    )  # fmt: skip
    tokenizer = reading.tokenizer()
    if recipe.weights_seed is not None:
        torch.manual_seed(recipe.weights_seed)
    reader = reading.encoder(tokenizer)
    if reading.steps:
        text.pretrain(
            reader, tokenizer, own / "text.safetensors", reading.steps, report=bar("text"), reading=reading,
            seed=recipe.schedule.seed, device=device, save_every=save_every,
        )  # fmt: skip
    if recipe.weights_seed is not None:
        torch.manual_seed(recipe.weights_seed)
    model: Any = decoder.build(reader.cpu(), trained_codec.cpu(), recipe.form)
    decoder.train(
        model, tokenizer, codes, material.seed, own / "decoder.safetensors", recipe.schedule, bar("decoder"),
        device=device, reading=reading, music=material.music, save_every=save_every,
    )  # fmt: skip
    export.model(model.cpu(), tokenizer, out, recipe.half)
    return out


def kept_codec(recipe: recipes.Recipe) -> Path | None:
    """The codec in the repository, if there is one and the recipe is trained on its codes."""
    return KEPT_CODEC if recipe.material == recipes.BASE.material and KEPT_CODEC.is_dir() else None


def _codec(material: recipes.Material, shared: Path, given: Path | None, device: str, save_every: int) -> Any:
    if given is not None:
        finished: Any = export.read_codec(given, material.codebooks)
        return export.rounded(finished) if material.half else finished
    audio = corpus.audio(
        material.codec_clips, material.codec_seed, shared / "audio.npy", bar("render"), material.seconds, material.music
    )
    finished = codec.train(
        audio, shared / "codec.safetensors", material.schedule, bar("codec"), device=device,
        n_codebooks=material.codebooks, save_every=save_every,
    ).cpu()  # fmt: skip
    if not material.half:
        return finished
    finished = export.rounded(finished)
    export.trained_codec(finished, shared / "codec", half=True)
    card.write_codec(shared / "codec", finished, material)
    return finished


def _agree(path: Path, part: recipes.Material | recipes.Recipe) -> None:
    """Note by which recipe a folder was made; refuse to resume by another one.

    The number of clips is left out: clips and codes do not depend on it.
    """
    stated = _plain(part)
    for each in (stated, stated.get("material", {})):
        each.pop("clips", None)
    text = json.dumps(stated, indent=1) + "\n"
    if not path.exists():
        put(path, text.encode())
    elif path.read_text("utf-8") != text:
        raise InputError(
            f"{path.parent} contains a run by another recipe (see {path}): choose another --work, or move it away."
        )


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, tuple | list) else value


def _go_on_from(base: Path, recipe: recipes.Recipe, work: Path) -> None:
    """Write the parts of a finished model to `work` as checkpoints, unless checkpoints exist there.

    Codec and decoder resume halfway through their schedules; the text encoder counts as pre-trained.
    """
    model: Any = MusicgenForConditionalGeneration.from_pretrained(base, dtype=torch.float32)
    head = listener.build_head(model.config.decoder.hidden_size)
    reading = {"encoder": model.text_encoder, "head": text.build_head(model.text_encoder)}
    shared, own = work / recipe.material.name, work / recipe.name
    for path, parts, step in (
        (shared / "codec.safetensors", {"codec": model.audio_encoder}, recipe.material.schedule.total // 2),
        (own / "text.safetensors", reading, recipe.reading.steps),
        (own / "decoder.safetensors", decoder.trained_parts(model, head), recipe.schedule.steps // 2),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            checkpoint.save(path, parts, step)


def bar(name: str) -> Callable[..., None]:
    """A progress bar, called with (done, total) or (done, total, values) and created at the first call."""
    shown: tqdm | None = None

    def report(done: int, total: int, values: dict[str, float] | None = None) -> None:
        nonlocal shown
        if shown is None:
            shown = tqdm(total=total, desc=name, initial=done, mininterval=5)
        shown.update(done - shown.n)
        if values:
            shown.set_postfix({key: f"{value:.3f}" for key, value in values.items()}, refresh=False)
        if done >= total:
            shown.close()

    return report


if __name__ == "__main__":
    torch.set_float32_matmul_precision("high")
    app()
