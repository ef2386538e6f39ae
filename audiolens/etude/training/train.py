"""Train étude with `python -m audiolens.etude.training.train`, which resumes a run that was killed.

The stages are: render clips -> train the codec -> encode the corpus -> pre-train the text encoder -> train the decoder
-> write a folder that transformers alone can load -> evaluate. A stage is skipped if its result exists.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from tqdm.auto import tqdm
from transformers import EncodecFeatureExtractor, MusicgenForConditionalGeneration, MusicgenProcessor

from audiolens.etude.training import checkpoint, codec, corpus, decoder, evaluate, listener, text
from audiolens.files import atomic

WEIGHTS = Path(__file__).parents[1] / "weights"
CODEC_SEED, DECODER_SEED = 1, 2
CODEC_CLIPS = 2000

app = typer.Typer(add_completion=False)


@app.command()
def train(
    work: Annotated[Path, typer.Option(help="Folder for corpus and checkpoints (0.7 GB).")] = Path("runs/etude"),
    out: Annotated[Path, typer.Option(help="Folder to write the finished model to.")] = WEIGHTS,
    clips: Annotated[int, typer.Option(help="Clips in the decoder's corpus.")] = 24_576,
    steps: Annotated[int, typer.Option(help="Decoder steps, in the whole schedule.")] = decoder.TrainingSchedule.steps,
    codec_steps: Annotated[int, typer.Option(help="Joint steps of the codec.")] = codec.TrainingSchedule.joint,
    base: Annotated[
        Path | None, typer.Option(help="A finished étude to resume from, halfway through the schedule.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Train étude from scratch on the synthesiser's clips, and write it as a stock MusicGen folder."""
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = text.build_tokenizer()
    codec_schedule = codec.TrainingSchedule(joint=codec_steps)
    decoder_schedule = decoder.TrainingSchedule(steps=steps)
    if base:
        _go_on_from(base, work, codec_schedule.total // 2, steps // 2)
    audio = corpus.audio(CODEC_CLIPS, CODEC_SEED, work / "audio.npy", bar("render"))
    trained_codec = codec.train(audio, work / "codec.safetensors", codec_schedule, bar("codec"), device=device)
    codes = corpus.codes(clips, DECODER_SEED, trained_codec, work / "codes", bar("encode"), device)
    reader = text.build_encoder(len(tokenizer))
    text.pretrain(reader, tokenizer, work / "text.safetensors", report=bar("text"))
    model = decoder.build(reader, trained_codec.cpu())
    state = work / "decoder.safetensors"
    decoder.train(model, tokenizer, codes, DECODER_SEED, state, decoder_schedule, bar("decoder"), device=device)
    export(model.cpu(), tokenizer, out)
    typer.echo(f"étude is in {out}")
    evaluate.main(str(out), seeds=1)


def _go_on_from(base: Path, work: Path, codec_step: int, decoder_step: int) -> None:
    """Write the parts of a finished model to `work` as checkpoints at these steps, unless checkpoints exist there."""
    model: Any = MusicgenForConditionalGeneration.from_pretrained(base)
    head = listener.build_head(model.config.decoder.hidden_size)
    reading = {"encoder": model.text_encoder, "head": text.build_head(model.text_encoder)}
    for name, parts, step in (
        ("codec", {"codec": model.audio_encoder}, codec_step),
        ("text", reading, text.STEPS),
        ("decoder", decoder.trained_parts(model, head), decoder_step),
    ):
        path = work / f"{name}.safetensors"
        if not path.exists():
            checkpoint.save(path, parts, step)


def export(model: MusicgenForConditionalGeneration, tokenizer: text.PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model and its processor atomically, file by file; other files in `out` (its model card) are kept."""
    out.mkdir(parents=True, exist_ok=True)
    with atomic.aside(out) as fresh:
        model.save_pretrained(fresh)
        features = EncodecFeatureExtractor(feature_size=1, sampling_rate=corpus.synth.SAMPLE_RATE)
        MusicgenProcessor(features, tokenizer).save_pretrained(fresh)
        for file in fresh.iterdir():
            atomic.refuse_special(out / file.name)
            os.replace(file, out / file.name)


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
