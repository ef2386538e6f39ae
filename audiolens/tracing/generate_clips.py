"""Generate clips batch by batch, with interventions and recordings, and decode them: `AudioLens.generate`."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from audiolens.cache.decomposition import equipped
from audiolens.checks import one_or_listed, shown
from audiolens.errors import AudioLensWarning, InputError
from audiolens.interventions import Intervention, checked_branch, checked_flags
from audiolens.model import text
from audiolens.model.memory import Need
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real, Timeline
from audiolens.model.tokens import callers_level
from audiolens.model.traced_model import TracedModel
from audiolens.model.windows import Window, begun, clip_windows
from audiolens.sound.codec import AudioSource
from audiolens.tracing import fast_clips, model_calls
from audiolens.tracing.batching import Layout, batches, start_columns
from audiolens.tracing.bound_gate import n_gates
from audiolens.tracing.engines import Choice, Engine, checked_engine
from audiolens.tracing.fitting import Fitting
from audiolens.tracing.generation import Generation
from audiolens.tracing.given_sound import clip_start, decode_codes
from audiolens.tracing.model_calls import alone, random_state
from audiolens.tracing.noise import NOISE
from audiolens.tracing.plan import Run, checked_interventions
from audiolens.tracing.recording import Reading, Recorder
from audiolens.tracing.sampling import (
    Sampling,
    checked_generation_config,
    checked_seeds,
    row_sampler,
    sampling_arguments,
)

_UNSET_LENGTH = 20
"""transformers' default `max_length`, for models whose authors did not set one."""


def drawn(
    traced: TracedModel,
    prompts: Prompt | Sequence[Prompt],
    seconds: Real,
    reading: Reading,
    sampling: Sampling,
    *,
    audio_prompt: Tensor | AudioSource | Sequence[AudioSource] | None,
    seeds: int | Sequence[int] | None,
    exact: bool,
    interventions: Any,
    batch_size: int | None,
    decode: bool,
    use_cache: bool,
    progress: bool,
    engine: Engine = "exact",
    compared: bool = False,
    window: Real | None = None,
    overlap: Real | None = None,
) -> Generation:
    """Check the arguments and generate the clips of one call; see `AudioLens.generate`.

    `compared` states that the engines need not be compared, because this call is part of their comparison.
    """
    engine = checked_engine(engine)
    checked_flags(exact=exact, decode=decode, use_cache=use_cache, progress=progress)
    config = traced.config
    seeds = one_or_listed("seeds", seeds)
    rows = len(seeds) if isinstance(seeds, list) else None
    listed, sizes = text.checked(prompts, traced.model, traced.tokenizer, rows)
    streams = checked_seeds(seeds, len(listed))
    checked_generation_config(traced.model, config)
    guided = sampling.guidance_scale > 1
    timeline, windows = clip_windows(seconds, window, overlap, config, config.prefix(max(sizes)))
    steps = windows[0].timeline.steps
    warn_beyond(windows[0].timeline.seconds, traced)
    todo = checked_interventions(interventions, traced, guided)
    checked_branch(reading.branch, guided or not reading.sites)
    if len(windows) > 1:
        _refuse_keys(traced, reading, todo)
    recorder = Recorder.of(reading, traced, len(listed), timeline)
    if exact and streams is None:
        raise InputError("exact=True needs seeds: transformers' own sampler draws a whole batch from one random state.")
    halves = traced.family.halves(guided)
    parts = list(batches(sizes, halves=halves, exact=exact, batch_size=batch_size, prefix=config.prefix))
    start = clip_start(audio_prompt, len(listed), timeline, traced)
    if start is not None:
        windows = begun(windows, start.shape[-1])
    if compared and engine != "auto":
        choice = Choice(engine)
    else:
        logits = partial(_first_logits, traced, listed[0], guided)
        choice = Choice.of(traced, engine, len(parts), _unfit(streams, use_cache), logits)
    codes = torch.zeros(len(listed), config.n_codebooks, timeline.frames, dtype=torch.long, device=traced.device)
    gates = torch.zeros(n_gates(todo), len(listed), timeline.steps, dtype=torch.bool)
    need = partial(
        Need.of,
        traced.model,
        config,
        positions=timeline.prefix + steps,
        at_once=1 + timeline.prefix,
        branches=len(halves),
        tokens=max(sizes),
    )
    recordings = None if recorder is None else "cache_device='cpu'"
    fit = Fitting(traced.device, f"clips of {timeline.seconds:g} s", need, _whole(exact, streams, todo), recordings)

    def made_of(whole: Layout, length: int | None, rows: slice) -> Int[Tensor, "row codebook frame"]:
        layout = whole.part(rows)
        if recorder is not None:
            recorder.begin(layout)
        plan = partial(Run, traced, layout=layout, timeline=timeline, interventions=todo)
        # Interventions that do not fit raise an error here, before the text encoder runs.
        plan(recorder=recorder)
        batch = _Batch.of(traced, layout, length, listed, streams, start, guided)
        clips = partial(batch.codes, traced, plan, windows, sampling, use_cache)
        tell = bar.update if rows.stop == len(whole.rows) else lambda: None
        made = clips("exact" if choice.compares else choice.name, recorder, tell)
        batch.read_gates(gates)
        if choice.compares:
            choice.decide(made, partial(clips, "fast", None, lambda: None))
        return made

    def undo(whole: Layout, rows: slice) -> None:
        if recorder is not None:
            recorder.drop(whole.part(rows))

    with alone(traced.model), random_state(keep=streams is not None):
        bar = tqdm(
            desc="generating",
            unit="batch" if len(windows) == 1 else "window",
            total=len(parts) * len(windows),
            disable=not progress,
        )
        with bar:
            for whole, length in parts:
                for rows, made in fit.run(len(whole.rows), partial(made_of, whole, length), partial(undo, whole)):
                    layout = whole.part(rows)
                    codes[list(layout.rows[: layout.kept])] = made[: layout.kept]
    audio = decode_codes(traced, codes) if decode else None
    recorded = None if recorder is None else recorder.cache(listed, traced.name, config.frame_rate)
    return Generation(
        codes=codes,
        audio=audio,
        sample_rate=config.sample_rate,
        frame_rate=config.frame_rate,
        prompts=listed,
        seeds=None if streams is None else tuple(streams),
        cache=None if recorded is None else equipped(recorded, traced),
        gates=gates if len(gates) else None,
        settings={
            "model": traced.name,
            "seconds": timeline.seconds,
            "window": windows[0].timeline.seconds if len(windows) > 1 else None,
            "overlap": windows[1].given / config.frame_rate if len(windows) > 1 else None,
            "audio_prompt_seconds": 0.0 if start is None else start.shape[-1] / config.frame_rate,
            "guidance_scale": float(sampling.guidance_scale),
            "temperature": float(sampling.temperature),
            "top_k": sampling.top_k,
            "exact": exact,
            "engine": choice.name,
            "noise": None if streams is None else NOISE,
            "interventions": [type(intervention).__name__ for intervention in todo],
            **({} if fit.at_once is None else {"at_once": fit.at_once}),
        },
    )


@dataclass(frozen=True, eq=False)
class _Batch:
    """What one batch reads: its text, its seeds and the frames with which its clips begin."""

    layout: Layout
    encoded: text.Text
    seeds: list[int] | None
    start: Int[Tensor, "row codebook frame"] | None
    inputs: dict[str, Any]
    opened: list[tuple[slice, Tensor]] = field(default_factory=list)
    """The steps that each window drew, and the decisions "gate row step" of its gates."""

    @classmethod
    def of(
        cls,
        traced: TracedModel,
        layout: Layout,
        length: int | None,
        prompts: Sequence[Prompt],
        seeds: Sequence[int] | None,
        start: Int[Tensor, "row codebook frame"] | None,
        guided: bool,
    ) -> "_Batch":
        encoded = text.encode([prompts[row] for row in layout.rows], traced.model, traced.tokenizer, length)
        mine = None if seeds is None else [seeds[row] for row in layout.rows]
        first = None if start is None else start[list(layout.rows)]
        return cls(layout, encoded, mine, first, traced.family.inputs(traced.model, encoded, guided))

    def codes(
        self,
        traced: TracedModel,
        plan: Callable[..., Run],
        windows: Sequence[Window],
        sampling: Sampling,
        use_cache: bool,
        engine: str,
        recorder: Recorder | None,
        tell: Callable[[], object],
    ) -> Int[Tensor, "row codebook frame"]:
        """Generate all windows of the batch, one after another, and return the codes of the whole clips."""
        made = self.start
        for window in windows:
            run = plan(recorder=recorder, origin=window.first)
            if recorder is not None:
                recorder.limit(*window.drawn)
            given = None if made is None else made[..., window.first :]
            if engine == "fast":
                part = self.fast(traced, run, window.timeline, sampling, given)
            else:
                part = self.exact(traced, run, window.timeline, sampling, use_cache, given)
            made = part if made is None else torch.cat([made, part[..., window.given :]], dim=-1)
            if run.gates:
                steps = slice(*window.drawn)
                self.opened.append((steps, torch.stack([gate.opened[:, steps] for gate in run.gates]).cpu()))
            tell()
        assert made is not None
        return made

    def read_gates(self, gates: Bool[Tensor, "gate row step"]) -> None:
        """Copy the decisions of the gates in all windows so far into those of the whole call."""
        kept = self.layout.kept
        for steps, opened in self.opened:
            gates[:, list(self.layout.rows[:kept]), steps] = opened[:, :kept]

    def exact(
        self,
        traced: TracedModel,
        run: Run,
        timeline: Timeline,
        sampling: Sampling,
        use_cache: bool,
        start: Int[Tensor, "row codebook start"] | None,
    ) -> Int[Tensor, "row codebook frame"]:
        given = {} if start is None else {"decoder_input_ids": start_columns(start, traced.config)}
        return model_calls.generate(
            traced.nnsight,
            run,
            timeline,
            use_cache=use_cache,
            input_ids=self.encoded.ids,
            **given,
            **self.inputs,
            **sampling_arguments(self.seeds, traced, sampling, timeline.steps, run.origin),
        )

    def fast(
        self,
        traced: TracedModel,
        run: Run,
        timeline: Timeline,
        sampling: Sampling,
        start: Int[Tensor, "row codebook start"] | None,
    ) -> Int[Tensor, "row codebook frame"]:
        assert self.seeds is not None  # `_unfit` refuses the fast engine otherwise
        sampler = row_sampler(self.seeds, traced, sampling, timeline.steps, run.origin)
        return fast_clips.generate(traced, run, timeline, sampler, self.inputs, start)


def _refuse_keys(traced: TracedModel, reading: Reading, interventions: Iterable[Intervention]) -> None:
    """Raise an error if something is recorded or changed at a site that relates steps to earlier steps."""
    asked = [(reading.sites, reading.layers), *((one.site, one.layers) for one in interventions)]
    for sites, layers in asked:
        for site in traced.family.find(traced.config, sites, layers):
            if traced.family.tap(site).form.square:
                raise InputError(
                    f"{site.name} relates steps to all earlier steps, and a window does not read those before it: "
                    "leave the site out, or generate a clip of one window."
                )


def _whole(exact: bool, streams: list[int] | None, interventions: Sequence[Intervention]) -> str | None:
    """Return why the batches of a call cannot be divided, and what to do instead, if that is so."""
    if exact:
        return "exact=True fixes the number of rows: leave it out"
    if streams is None:
        return "transformers' own sampler draws a batch from one random state: give seeds=, or a smaller batch_size="
    if any(one.called for one in interventions):
        return "a function of an Apply would be called again for the same steps: give a smaller batch_size="
    return None


def _unfit(streams: list[int] | None, use_cache: bool) -> str | None:
    """Return which argument only the exact engine supports, if any."""
    if streams is None:
        return "transformers' own sampler is used, because there are no seeds"
    return None if use_cache else "use_cache=False recomputes every step with transformers"


def _first_logits(traced: TracedModel, prompt: Prompt, guided: bool, engine: Any) -> Float[Tensor, "..."]:
    """Return the logits of the first two steps of a very short clip, by which the engines are compared."""
    config = traced.config
    reading = Reading("logits", branch="both" if guided else "cond")
    made = drawn(
        traced,
        [prompt] * fast_clips.ALIKE,
        max(1, max(config.delays)) / config.frame_rate,
        reading,
        Sampling(3.0 if guided else 1.0, 0.0),
        audio_prompt=None,
        seeds=0,
        exact=False,
        interventions=(),
        batch_size=None,
        decode=False,
        use_cache=True,
        progress=False,
        engine=engine,
        compared=True,
    )
    assert made.cache is not None
    return made.cache["hook_logits"][..., :2, :]


def warn_beyond(seconds: float, traced: TracedModel) -> None:
    """Warn if a clip is longer than the model's own `max_length`, which reflects the length of its training clips."""
    steps = traced.model.generation_config.max_length
    usual = 0.0 if steps in (None, _UNSET_LENGTH) else steps / traced.config.frame_rate
    if 0 < usual < seconds - 1e-9:
        warnings.warn(
            f"seconds={seconds:g}: {shown(traced.name)} is set up for clips of up to {usual:g} s; it was probably not "
            "trained on longer clips, and might not generate music beyond this length.",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
