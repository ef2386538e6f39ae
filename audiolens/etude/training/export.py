"""Write finished models and codecs as folders that transformers alone can load, in full or in half precision.

Half precision halves the files. `config.json` states float32, so that transformers and the lens convert the weights
when they load them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import EncodecFeatureExtractor, EncodecModel, MusicgenProcessor, PreTrainedTokenizerFast

from audiolens.errors import InputError
from audiolens.etude import synth
from audiolens.etude.training import checkpoint, codec, decoder
from audiolens.files import atomic
from audiolens.model.known_models import CONFIG


def model(trained: decoder.Etude, tokenizer: PreTrainedTokenizerFast, out: Path, half: bool = False) -> None:
    """Write the model and its processor atomically, file by file; other files in `out` (its model card) are kept.

    transformers' processor for MusicGen Melody needs torchaudio, so such a model is written with its tokenizer alone.
    """

    def write(fresh: Path) -> None:
        _weights(trained, fresh, half)
        if trained.config.model_type == "musicgen_melody":
            tokenizer.save_pretrained(fresh)
        else:
            features = EncodecFeatureExtractor(feature_size=1, sampling_rate=synth.SAMPLE_RATE)
            MusicgenProcessor(features, tokenizer).save_pretrained(fresh)

    _replace_files(out, write)


def trained_codec(finished: EncodecModel, out: Path, half: bool = False) -> None:
    """Write a codec atomically, file by file; other files in `out` are kept."""
    _replace_files(out, lambda fresh: _weights(finished, fresh, half))


def rounded(finished: EncodecModel) -> EncodecModel:
    """The codec with all numbers rounded to half precision, still stored and computed as float32."""
    moved: Any = finished
    return moved.half().float()


def read_codec(path: Path, n_codebooks: int) -> EncodecModel:
    """Read a codec from a folder that `trained_codec` wrote, or from a training state of `codec.train`.

    Raises:
        InputError: if there is no codec at `path`, or if it is not of the form that the recipe needs.
    """
    if path.is_dir() and (path / CONFIG).is_file():
        found: Any = EncodecModel.from_pretrained(path, dtype=torch.float32)
        # Otherwise the configuration of every model with this codec would state this folder.
        found.config._name_or_path = ""
    elif path.is_file():
        found = codec.build(n_codebooks)
        checkpoint.load(path, {"codec": found})
    else:
        raise InputError(f"no codec at {path}: give the folder of a codec, or a training state (codec.safetensors).")
    expected = codec.build(n_codebooks).config
    for key in ("sampling_rate", "upsampling_ratios", "codebook_size", "target_bandwidths", "audio_channels"):
        given, needed = getattr(found.config, key), getattr(expected, key)
        if given != needed:
            raise InputError(f"the codec at {path} has {key}={given}, but the recipe needs {needed}.")
    return found.eval()


def _weights(trained: Any, folder: Path, half: bool) -> None:
    if not half:
        trained.save_pretrained(folder)
        return
    state = {key: value.half() if value.is_floating_point() else value for key, value in trained.state_dict().items()}
    lost = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if lost:
        raise InputError(f"{lost[0]} has values beyond the range of half precision: write the model in full precision.")
    trained.config.dtype = torch.float32
    trained.save_pretrained(folder, state_dict=state)


def _replace_files(out: Path, write: Callable[[Path], None]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with atomic.aside(out) as fresh:
        write(fresh)
        atomic.settle(fresh)
        for file in fresh.iterdir():
            atomic.refuse_special(out / file.name)
            os.replace(file, out / file.name)
