"""Write the cards of a finished étude and of its codec: what it is, how it was trained, and what was measured."""

from __future__ import annotations

import math
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


def write_codec(folder: Path, codec: Any, material: recipes.Material) -> CodecQuality:
    """Measure the codec on new clips, and write its card to `folder`."""
    quality = codec_quality(codec, material.music, material.seconds)
    put(folder / "README.md", codec_text(material, codec, quality).encode("utf-8"))
    return quality


def codec_text(material: recipes.Material, codec: Any, quality: CodecQuality) -> str:
    """The card of a codec in Markdown."""
    schedule, music = material.schedule, material.music
    keys = len(music.tonics)
    form = "phrases in the form A A B A" if music.form == "aaba" else "chords and melody drawn bar by bar"
    seconds = schedule.segment_frames / FRAME_RATE
    bits = material.codebooks * math.log2(CODEBOOK_SIZE) * FRAME_RATE / 1000
    lines = [
        "---", "library_name: transformers", "license: mit", "---", "",
        f"# The codec of {material.name}", "",
        "An EnCodec, trained from scratch on music that audiolens synthesises. Several études share its codes.",
        "",
        "| | |", "|---|---|",
        f"| architecture | stock `EncodecModel`: 16 kHz mono, {FRAME_RATE} frames per second, {material.codebooks} "
        f"codebooks of {CODEBOOK_SIZE} ({bits:.1f} kbit/s), {_parameters(codec) / 1e6:.2f} M parameters |",
        f"| stored as | {'half precision, loaded as float32' if material.half else 'float32'} |",
        f"| trained on | {material.codec_clips:,} clips of {material.seconds:.2f} s in {keys} major and {keys} minor "
        f"keys, {form} (seed {material.codec_seed}) |",
        f"| steps | {schedule.total:,} of {schedule.batch_size} segments of {seconds:.2f} s: {schedule.autoencoder:,} "
        f"without the quantiser, {schedule.joint:,} with it, {schedule.decoder:,} for the decoder only |",
        "", "## Measured quality", "",
        f"Means over {quality.n} clips of {material.seconds:.2f} s that were not used in training, after the quantiser "
        "(`audiolens.etude.training.codec_quality`).", "",
        "| measure | value |", "|---|---|",
        f"| SI-SDR of the waveform | {quality.si_sdr_db:.2f} dB |",
        f"| mel distance | {quality.mel_db:.2f} dB |",
        f"| mel distance with a floor of 60 dB | {quality.mel_60_db:.2f} dB |", "",
        "The mel distance is the mean absolute difference of 10 log10 of the power in 64 mel bands (Slaney's scale, 0 "
        "to 8 kHz; Hann windows of 64 ms every 16 ms). Powers more than 80 dB below the loudest band and frame of the "
        "original count as 80 dB below it.", "",
        "## Use", "",
        "```python", "from transformers import EncodecModel", "",
        'codec = EncodecModel.from_pretrained("etudes/codec")', "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


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
