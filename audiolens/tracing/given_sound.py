"""Convert audio to codes and back through the model's codec, while holding the model's lock."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.errors import InputError, InputTypeError, shortened
from audiolens.model.timeline import Timeline
from audiolens.model.traced_model import TracedModel
from audiolens.sound import soundfiles
from audiolens.sound.codec import checked_codes, checked_waveform, decode, encode
from audiolens.tensors import tensor_of
from audiolens.tracing.fitting import sound_fit
from audiolens.tracing.model_calls import alone


def encode_audio(traced: TracedModel, waveform: Any, sample_rate: int) -> Int[Tensor, "row codebook frame"]:
    """Encode a waveform as undelayed codes, in several parts if not all rows fit in memory at once."""
    config = traced.config
    wave = checked_waveform(waveform, sample_rate, config)
    fit = sound_fit(traced, wave.shape[-1] / config.sample_rate, "encoded")
    with alone(traced.model), torch.no_grad():
        return _joined(fit.run(len(wave), lambda rows: encode(wave[rows], config.sample_rate, traced.model, config)))


def decode_codes(traced: TracedModel, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
    """Decode undelayed codes to a waveform, in several parts if not all rows fit in memory at once."""
    config, model = traced.config, traced.model
    found = checked_codes(codes, config).to(traced.device)
    fit = sound_fit(traced, found.shape[-1] / config.frame_rate, "decoded")
    with alone(model), torch.no_grad():
        return _joined(fit.run(len(found), lambda rows: decode(found[rows], model, config)))


def _joined(found: Iterable[tuple[slice, Tensor]]) -> Tensor:
    parts = [part for _, part in found]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def codes_of(audio: Any, traced: TracedModel, name: str = "audio") -> Int[Tensor, "row codebook frame"]:
    """Return the codes of a (waveform, sample_rate) pair or of a sound file.

    Raises:
        InputTypeError: if the argument is neither a pair nor a path.
        InputError: if the file cannot be read, or if the audio is empty, not finite or of an unexpected shape.
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
    """Return the codes that clips begin with (one row per clip), from codes or sound; `None` without an audio prompt.

    Raises:
        InputTypeError, InputError: if the audio prompt is neither codes nor sound, if its number of rows is neither 1
            nor `rows`, or if it is at least as long as the clip.
    """
    if audio_prompt is None:
        return None
    if isinstance(audio_prompt, Tensor) and audio_prompt.is_floating_point():
        raise InputTypeError(
            "audio_prompt: a waveform needs its sample rate: give (waveform, sample_rate), or integer codes."
        )
    codes: Any = audio_prompt if isinstance(audio_prompt, Tensor) else _sounds_codes(audio_prompt, rows, traced)
    if codes.ndim == 3 and len(codes) == 1:
        codes = codes.expand(rows, -1, -1)
    codes = checked_codes(codes, traced.config, rows)
    if codes.shape[-1] >= timeline.frames:
        raise InputError(
            f"audio_prompt lasts {codes.shape[-1] / timeline.frame_rate:g} s, but the clip lasts {timeline.seconds:g} "
            "s including the prompt: raise seconds= (the length of both together), or shorten the prompt."
        )
    return codes.to(traced.device)


def _sounds_codes(audio_prompt: Any, rows: int, traced: TracedModel) -> Int[Tensor, "row codebook frame"]:
    """Return the codes of one sound, or of a list of sounds, one per row."""
    sounds: list[Any] = [*audio_prompt] if isinstance(audio_prompt, list | tuple) else []
    if not sounds or not all(isinstance(one, str | os.PathLike | tuple | list) for one in sounds):
        _refuse_rows_or_channels(audio_prompt, rows)
        return codes_of(audio_prompt, traced, "audio_prompt")
    each = [codes_of(one, traced, f"audio_prompt[{index}]") for index, one in enumerate(sounds)]
    frames = [codes.shape[-1] for codes in each]
    if len(set(frames)) > 1:
        lasting = shortened(f"{count / traced.config.frame_rate:g} s" for count in frames)
        raise InputError(f"audio_prompt: sounds of {lasting}; cut them to the same length.")
    return torch.cat(each)


def _refuse_rows_or_channels(audio_prompt: Any, rows: int) -> None:
    """Raise an error for a two-axis waveform whose first axis has one entry per prompt, because that axis could be
    either channels or rows."""
    given = isinstance(audio_prompt, tuple | list) and len(audio_prompt) == 2
    if rows < 2 or not given:
        return
    # A list of waveforms has no shape attribute.
    shape = tuple(tensor_of("audio_prompt", audio_prompt[0]).shape)
    if len(shape) == 2 and shape[0] == rows:
        stereo = f", or {(1, *shape)} for stereo sound shared by all rows" if rows == 2 else ""
        raise InputError(
            f"audio_prompt of shape {shape} for {rows} prompts may be channels or one sound per row: give "
            f"'row channel sample', {(rows, 1, shape[1])} for one sound per row{stereo}."
        )
