"""The sound that a run is given or makes, as codes and back, with the model locked meanwhile."""

import os
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.errors import InputError, InputTypeError, shortened
from audiolens.model.timeline import Timeline
from audiolens.model.traced_model import TracedModel
from audiolens.sound import soundfiles
from audiolens.sound.codec import checked_codes, decode, encode
from audiolens.tensors import tensor_of
from audiolens.tracing.model_calls import alone


def encode_audio(traced: TracedModel, waveform: Any, sample_rate: int) -> Int[Tensor, "row codebook frame"]:
    """A waveform as undelayed codes."""
    with alone(traced.model), torch.no_grad():
        return encode(waveform, sample_rate, traced.model, traced.config)


def decode_codes(traced: TracedModel, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
    """The sound of undelayed codes."""
    with alone(traced.model), torch.no_grad():
        return decode(checked_codes(codes, traced.config).to(traced.device), traced.model, traced.config)


def codes_of(audio: Any, traced: TracedModel, name: str = "audio") -> Int[Tensor, "row codebook frame"]:
    """The codes of a (waveform, sample_rate), or of a sound file.

    Raises:
        InputTypeError: if it is neither.
        InputError: if there is no sound in it.
    """
    if isinstance(audio, str | os.PathLike):
        audio = soundfiles.read(audio)
    if not isinstance(audio, tuple | list) or len(audio) != 2:
        raise InputTypeError(
            f"{name}={type(audio).__name__}: expected (waveform, sample_rate), or the path of a sound file."
        )
    return encode_audio(traced, *audio)


def clip_start(
    audio_prompt: Any, rows: int, timeline: Timeline, traced: TracedModel
) -> Int[Tensor, "row codebook frame"] | None:
    """The codes that clips begin with, one row each: as given, or of a sound; `None` for none.

    Raises:
        InputTypeError, InputError: if it is neither, of other rows, or leaves nothing to generate.
    """
    if audio_prompt is None:
        return None
    if isinstance(audio_prompt, Tensor) and audio_prompt.is_floating_point():
        raise InputTypeError("audio_prompt: a waveform needs its rate, (waveform, sample_rate); codes are integers.")
    codes: Any = audio_prompt if isinstance(audio_prompt, Tensor) else _sounds_codes(audio_prompt, rows, traced)
    if codes.ndim == 3 and len(codes) == 1:
        codes = codes.expand(rows, -1, -1)
    codes = checked_codes(codes, traced.config, rows)
    if codes.shape[-1] >= timeline.frames:
        raise InputError(
            f"audio_prompt lasts {codes.shape[-1] / timeline.frame_rate:g} s, the clip {timeline.seconds:g} s with it: "
            "raise seconds=, which counts both, or give less of it."
        )
    return codes.to(traced.device)


def _sounds_codes(audio_prompt: Any, rows: int, traced: TracedModel) -> Int[Tensor, "row codebook frame"]:
    """The codes of one sound, or of a list of sounds, one a row."""
    sounds: list[Any] = [*audio_prompt] if isinstance(audio_prompt, list | tuple) else []
    if not sounds or not all(isinstance(one, str | os.PathLike | tuple | list) for one in sounds):
        _refuse_rows_or_channels(audio_prompt, rows)
        return codes_of(audio_prompt, traced, "audio_prompt")
    each = [codes_of(one, traced, f"audio_prompt[{place}]") for place, one in enumerate(sounds)]
    frames = [codes.shape[-1] for codes in each]
    if len(set(frames)) > 1:
        lasting = shortened(f"{count / traced.config.frame_rate:g} s" for count in frames)
        raise InputError(f"audio_prompt: sounds of {lasting}; the clips go on from one length, so cut them to it.")
    return torch.cat(each)


def _refuse_rows_or_channels(audio_prompt: Any, rows: int) -> None:
    """A waveform of two axes with as many rows as prompts may be meant either way: its author says which."""
    given = isinstance(audio_prompt, tuple | list) and len(audio_prompt) == 2
    if rows < 2 or not given:
        return
    # A list of waves has no shape of its own.
    shape = tuple(tensor_of("audio_prompt", audio_prompt[0]).shape)
    if len(shape) == 2 and shape[0] == rows:
        stereo = f", or {(1, *shape)} for stereo sound that all rows share" if rows == 2 else ""
        raise InputError(
            f"audio_prompt of shape {shape} for {rows} prompts: channels, or a sound a row? Give 'row channel sample': "
            f"{(rows, 1, shape[1])} for a sound a row{stereo}."
        )
