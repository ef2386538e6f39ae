"""Clips drawn: checked at the door, generated batch by batch, changed and recorded meanwhile, and decoded.

`AudioLens.generate` is the way to ask for them.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from audiolens import passes, text
from audiolens.audio import Sound, clip_start
from audiolens.checks import one_or_listed
from audiolens.decomposition import equipped
from audiolens.engine import Run, checked_interventions
from audiolens.errors import AudioLensWarning, InputError
from audiolens.generation import Generation
from audiolens.interventions import checked_branch, checked_flags
from audiolens.passes import alone, random_state
from audiolens.recording import Reading, Recorder
from audiolens.rows import batches, start_columns
from audiolens.sampling import checked_generation_config, checked_seeds, checked_settings, sampling_arguments
from audiolens.text import Prompt
from audiolens.timeline import Real, clip_timeline
from audiolens.tokens import callers_level

_UNSET_LENGTH = 20
"""transformers' own `max_length` of a model whose makers gave none."""


def drawn(
    lens: Any,
    prompts: Prompt | Sequence[Prompt],
    seconds: Real,
    reading: Reading,
    *,
    audio_prompt: Tensor | Sound | Sequence[Sound] | None,
    seeds: int | Sequence[int] | None,
    guidance_scale: Real,
    temperature: Real,
    top_k: int | None,
    exact: bool,
    interventions: Any,
    batch_size: int | None,
    decode: bool,
    use_cache: bool,
    progress: bool,
) -> Generation:
    """The clips of one call; see `AudioLens.generate`."""
    checked_flags(exact=exact, decode=decode, use_cache=use_cache, progress=progress)
    config = lens.config
    seeds = one_or_listed("seeds", seeds)
    rows = len(seeds) if isinstance(seeds, list) else None
    listed, sizes = text.checked(prompts, lens.model, lens.tokenizer, rows)
    streams = checked_seeds(seeds, len(listed))
    guidance_scale, temperature, top_k = checked_settings(guidance_scale, temperature, top_k)
    checked_generation_config(lens.model, config)
    guided = guidance_scale > 1
    timeline = clip_timeline(seconds, config, config.prefix(max(sizes)))
    _warn_beyond(timeline.seconds, lens)
    todo = checked_interventions(interventions, lens, guided)
    checked_branch(reading.branch, guided or not reading.sites)
    recorder = Recorder.of(reading, lens._family, config, len(listed), timeline)
    if exact and streams is None:
        raise InputError("exact=True needs seeds: transformers' own sampler draws a whole batch from one state.")
    parts = list(batches(sizes, guided=guided, exact=exact, batch_size=batch_size, prefix=config.prefix))
    start = clip_start(audio_prompt, len(listed), timeline, lens)
    codes = torch.zeros(len(listed), config.n_codebooks, timeline.frames, dtype=torch.long, device=lens.device)
    with alone(lens.model), random_state(keep=streams is not None):
        for layout, length in tqdm(parts, desc="generating", unit="batch", disable=not progress):
            if recorder is not None:
                recorder.begin(layout)
            run = Run(
                lens._nnsight,
                lens._family,
                config,
                layout=layout,
                timeline=timeline,
                interventions=todo,
                recorder=recorder,
                device=lens.device,
            )
            encoded = text.encode([listed[row] for row in layout.rows], lens.model, lens.tokenizer, length)
            mine = None if streams is None else [streams[row] for row in layout.rows]
            given = {} if start is None else {"decoder_input_ids": start_columns(start, config, layout)}
            made = passes.generate(
                lens._nnsight,
                run,
                timeline,
                use_cache=use_cache,
                input_ids=encoded.ids,
                **given,
                **lens._family.inputs(lens.model, encoded, guided),
                **sampling_arguments(mine, config, guidance_scale, temperature, top_k),
            )
            codes[list(layout.rows[: layout.kept])] = made[: layout.kept]
    audio = lens.decode_codes(codes) if decode else None
    recorded = None if recorder is None else recorder.cache(listed, lens.name, config.frame_rate)
    return Generation(
        codes=codes,
        audio=audio,
        sample_rate=config.sample_rate,
        frame_rate=config.frame_rate,
        prompts=listed,
        seeds=None if streams is None else tuple(streams),
        cache=None if recorded is None else equipped(recorded, lens),
        settings={
            "model": lens.name,
            "seconds": timeline.seconds,
            "audio_prompt_seconds": 0.0 if start is None else start.shape[-1] / config.frame_rate,
            "guidance_scale": float(guidance_scale),
            "temperature": float(temperature),
            "top_k": top_k,
            "exact": exact,
            "interventions": [type(intervention).__name__ for intervention in todo],
        },
    )


def _warn_beyond(seconds: float, lens: Any) -> None:
    """Say that a clip is longer than the model's makers have it play: `max_length` follows the clips of training."""
    steps = lens.model.generation_config.max_length
    usual = 0.0 if steps in (None, _UNSET_LENGTH) else steps / lens.config.frame_rate
    if 0 < usual < seconds - 1e-9:
        warnings.warn(
            f"seconds={seconds:g}: {lens.name!r} is set up for clips of up to {usual:g} s; beyond that it may play no "
            "music, for it was hardly trained on longer ones.",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
