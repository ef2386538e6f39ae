"""Write the model card of a finished étude: what it is, how it was trained, and what an evaluation measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiolens.etude.captions import vocabulary
from audiolens.etude.training import recipes, subwords
from audiolens.etude.training.codec import CODEBOOK_SIZE, FRAME_RATE
from audiolens.etude.training.codec_quality import CodecQuality, codec_quality
from audiolens.etude.training.evaluate import FRAMES, Abilities, abilities
from audiolens.files.atomic import put

if TYPE_CHECKING:
    import pandas as pd


def write(folder: Path, recipe: recipes.Recipe, n_seeds: int = 1, n_jobs: int = 1) -> Abilities:
    """Evaluate the model in `folder`, and write its card there."""
    from audiolens.lens import AudioLens

    lens = AudioLens.from_pretrained(str(folder))
    material = recipe.material
    heard = abilities(
        lens, n_seeds, seconds=float(int(material.seconds)), n_jobs=n_jobs, music=material.music,
        wording=recipe.reading.wording,
    )  # fmt: skip
    quality = codec_quality(lens.model.audio_encoder, material.music, material.seconds)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    put(folder / "README.md", text(recipe, lens.model, size, heard, quality, n_seeds).encode("utf-8"))
    return heard


def text(recipe: recipes.Recipe, model: Any, size: int, heard: Abilities, quality: CodecQuality, n_seeds: int) -> str:
    """The card in Markdown."""
    material, form, schedule = recipe.material, recipe.form, recipe.schedule
    parts = {"decoder": model.decoder, "codec": model.audio_encoder, "text encoder": model.text_encoder}
    counts = ", ".join(f"{_parameters(part) / 1e6:.2f} M {name}" for name, part in parts.items())
    wording = recipe.reading.wording
    words = len(vocabulary(wording))
    reading = f"{words} words"
    if recipe.reading.subwords:
        unseen = len(subwords.held_out_words(wording))
        reading += f" and {unseen} synonyms that no caption contains; all other text is spelled in pieces of words"
    text_form = (
        "the decoder attends to the text"
        if form.chroma_frames is None
        else f"the text stands in the decoder's own sequence, after {form.chroma_frames} frames of null chroma"
    )
    precision = "half precision, loaded as float32" if recipe.half else "float32"
    crops = ", ".join(f"{frames / FRAME_RATE:.2f}" for frames in schedule.crop_frames)
    lines = [
        "---", "library_name: transformers", "pipeline_tag: text-to-audio", "license: mit", "---", "",
        f"# {recipe.name}", "",
        "A small MusicGen, trained from scratch on music that audiolens synthesises, without recorded music or "
        "pre-trained weights.", "",
        "| | |", "|---|---|",
        f"| architecture | `{type(model).__name__}`: decoder of {form.blocks} blocks, width {form.width}, {form.heads} "
        f"heads; {text_form}; {form.codebooks} codebooks of {CODEBOOK_SIZE}, {FRAME_RATE} frames per second |",
        f"| parameters | {counts}; {size / 2**20:.1f} MiB in {precision} |",
        f"| vocabulary | {reading} |",
        f"| clip length | up to {material.seconds:.2f} s |",
        f"| decoder | {schedule.steps:,} steps of {schedule.batch_size} crops of {crops} s, from {material.clips:,} "
        f"clips; seed {schedule.seed} |",
        f"| auxiliary head on the final state | {'yes' if schedule.listening_weight else 'no'} |",
        f"| text encoder pre-trained | {'yes' if recipe.reading.steps else 'no'} |",
        f"| codec | SI-SDR {quality.si_sdr_db:.1f} dB, mel distance {quality.mel_db:.1f} dB "
        f"({quality.mel_60_db:.1f} dB with a floor of 60 dB) on {quality.n} new clips |", "",
        f"Trained with `python -m audiolens.etude.training.train {recipe.name}`.", "",
        "## Measured abilities", "",
        f"Clips of {int(material.seconds)} s for {len(FRAMES)} held-out wordings per pole, {n_seeds} per wording. The "
        "AUC shows how well a measure separates clips of the high pole from clips of the low pole. The ceiling is the "
        "AUC of the same measure on the synthesiser's clips after the codec.", "",
        _table(heard.to_frame()), "",
        "**Clips from neutral captions**, compared with the synthesiser's clips.", "",
        _table(heard.neutral()), "",
        "**Words for one concept, measured on all others.** AUCs of the high over the low pole; .5 means no effect. "
        f"With {len(FRAMES) * n_seeds} clips per pole, the standard error of an AUC of .5 is "
        f"{(1 / (6 * len(FRAMES) * n_seeds)) ** 0.5:.2f}.", "",
        _table(heard.leaks()), "",
    ]  # fmt: skip
    if heard.unseen is not None:
        lines += [
            "**Synonyms that no caption contained**, in the same wordings. The last column has the AUC of each "
            "synonym's clips against all clips of the opposite pole.", "",
            _table(heard.synonyms()), "",
        ]  # fmt: skip
    passed = heard.acceptance()
    lines += [
        f"**Acceptance.** {int(passed.met.sum())} of {len(passed)} criteria are met.", "",
        _table(passed.assign(met=["yes" if met else "no" for met in passed.met])),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _parameters(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _table(frame: pd.DataFrame) -> str:
    rows = [["" if value != value else f"{value:.3f}" if isinstance(value, float) else str(value) for value in row]
            for row in frame.itertuples(index=False)]  # fmt: skip
    head = [str(column).replace("_", " ") for column in frame.columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
