"""Forwards over given codes: checked at the door, run batch by batch, recorded, stopped where nothing more is asked.

`AudioLens.run_with_cache` keeps the whole, `AudioLens.iter_cache` one batch at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from audiolens import passes, text, tokens
from audiolens.audio import Sound, checked_codes, codes_of
from audiolens.cache import ActivationCache
from audiolens.checks import whole_number
from audiolens.decomposition import equipped
from audiolens.engine import Run, beyond, checked_interventions
from audiolens.errors import InputError, SiteError
from audiolens.families import order, places
from audiolens.interventions import Intervention, checked_branch, checked_flags
from audiolens.passes import alone, random_state
from audiolens.recording import Reading, Recorder
from audiolens.rows import Layout, batches, checked_batch_size, chunks, in_order, read_columns
from audiolens.sampling import checked_settings
from audiolens.text import Prompt
from audiolens.timeline import Real, Timeline, codes_timeline


@dataclass(frozen=True, eq=False)
class Forward:
    """One reading of given codes. `stop` is the block before which it ends; `None` goes on to the logits."""

    lens: Any
    prompts: tuple[Prompt, ...]
    codes: Int[Tensor, "row codebook frame"] | None
    timeline: Timeline
    reading: Reading
    guided: bool
    interventions: tuple[Intervention, ...]
    stop: int | None
    sizes: tuple[int, ...]
    batch_size: int | None

    @classmethod
    def checked(
        cls,
        lens: Any,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None,
        reading: Reading,
        *,
        audio: Sound | None,
        guidance_scale: Real,
        interventions: Any,
        batch_size: int | None,
        stop_at_layer: int | None = None,
    ) -> "Forward":
        """The plan, or an error before a model runs (but the codec, for audio)."""
        if audio is not None:
            if codes is not None:
                raise InputError("codes and audio were both given: give one of them.")
            codes = codes_of(audio, lens)
        listed, sizes = text.checked(prompts, lens.model, lens.tokenizer, None if codes is None else len(codes))
        if codes is not None:
            codes = checked_codes(codes, lens.config, len(listed)).to(lens.device)
        guidance_scale, _, _ = checked_settings(guidance_scale, 1.0, None)
        guided = guidance_scale > 1
        checked_branch(reading.branch, guided)
        timeline = codes_timeline(codes, lens.config, lens.config.prefix(max(sizes)))
        stop = _checked_stop(stop_at_layer, lens.config.n_layers)
        if stop and reading.layers is None:
            reading = replace(reading, layers=list(range(stop)))
        for site in places(lens._family, lens.config, reading.sites, reading.layers):
            if beyond(lens._family, site, stop):
                raise SiteError(
                    f"stop_at_layer={stop_at_layer} ends the run before {site.name}: stop later, or leave it out."
                )
        # What it refuses is refused before the first of many batches.
        Recorder.of(reading, lens._family, lens.config, len(listed), timeline)
        return cls(
            lens,
            listed,
            codes,
            timeline,
            reading,
            guided,
            checked_interventions(interventions, lens, guided),
            stop,
            tuple(sizes),
            checked_batch_size(batch_size),
        )

    def whole(self) -> tuple[Float[Tensor, "..."], ActivationCache]:
        """The logits (or the stream where it stopped) of every row, and one cache."""
        recorder = self._recorder(len(self.prompts))
        prefix = self.lens.config.prefix
        cut = batches(self.sizes, guided=self.guided, exact=False, batch_size=self.batch_size, prefix=prefix)
        layouts = [layout for layout, _ in cut]
        with alone(self.lens.model), random_state(keep=True):
            parts = [self._batch(layout, recorder) for layout in layouts]
        whole = in_order(parts, layouts, axis=1 if self.reading.branch == "both" else 0)
        return whole, self._cache(recorder, self.prompts)

    def caches(self, progress: bool) -> Iterator[ActivationCache]:
        """A cache a batch. No logits are handed out: a run ends above the last block recorded."""
        checked_flags(progress=progress)
        found = places(self.lens._family, self.lens.config, self.reading.sites, self.reading.layers)
        if not found:
            raise InputError("no site to record: name at least one in sites.")
        last = order(self.lens._family, found)[-1]
        enough = 0 if last.layer is None else last.layer + 1
        plan = replace(self, stop=None if beyond(self.lens._family, last, enough) else enough)
        size, prefix = self.batch_size or len(self.sizes), self.lens.config.prefix
        parts = list(chunks(self.sizes, guided=self.guided, batch_size=size, prefix=prefix))
        tokens.tell_unread()
        with alone(self.lens.model):
            # What no batch could do is refused before the first is asked for.
            plan._run(parts[0][0], None)
        return plan._each(parts, progress)

    def _each(self, parts: Sequence[tuple[Layout, ...]], progress: bool) -> Iterator[ActivationCache]:
        for layouts in tqdm(parts, desc="reading", unit="batch", disable=not progress):
            first, rows = layouts[0].first, sum(layout.kept for layout in layouts)
            recorder = self._recorder(rows)
            # Not around the yield: between two batches the model is the caller's.
            with alone(self.lens.model), random_state(keep=True):
                for layout in layouts:
                    self._batch(layout, recorder)
            yield self._cache(recorder, self.prompts[first : first + rows])

    def _recorder(self, rows: int) -> Recorder | None:
        return Recorder.of(self.reading, self.lens._family, self.lens.config, rows, self.timeline)

    def _cache(self, recorder: Recorder | None, prompts: tuple[Prompt, ...]) -> ActivationCache:
        if recorder is None:
            return ActivationCache({}, {}, branch=self.reading.branch, prompts=prompts, model=self.lens.name)
        return equipped(recorder.cache(prompts, self.lens.name, self.lens.config.frame_rate), self.lens)

    def _run(self, layout: Layout, recorder: Recorder | None) -> Run:
        return Run(
            self.lens._nnsight,
            self.lens._family,
            self.lens.config,
            layout=layout,
            timeline=self.timeline,
            interventions=self.interventions,
            recorder=recorder,
            device=self.lens.device,
            stop=self.stop,
        )

    def _batch(self, layout: Layout, recorder: Recorder | None) -> Float[Tensor, "..."]:
        """Logits "row codebook step vocab" of one batch, or the stream "row step d_model" where it stopped."""
        lens = self.lens
        if recorder is not None:
            recorder.begin(layout)
        run = self._run(layout, recorder)
        encoded = text.encode([self.prompts[row] for row in layout.rows], lens.model, lens.tokenizer)
        columns = read_columns(self.codes, lens.config, layout, lens.device)
        told = lens._family.inputs(lens.model, encoded, self.guided)
        out = passes.forward(lens._nnsight, run, decoder_input_ids=columns, **told)
        each = () if self.stop is not None else (lens.config.n_codebooks,)
        shaped = out.unflatten(0, (layout.branches, len(layout.rows), *each))
        return shaped if self.reading.branch == "both" else shaped[0 if self.reading.branch == "cond" else 1]


def _checked_stop(stop_at_layer: object, n_layers: int) -> int | None:
    if stop_at_layer is None:
        return None
    try:
        stop = whole_number(stop_at_layer)
    except TypeError:
        raise InputError(f"stop_at_layer={stop_at_layer!r}: expected a layer, or None to run to the logits.") from None
    if not -n_layers <= stop <= n_layers:
        raise InputError(
            f"stop_at_layer={stop_at_layer}: this model has layers 0 to {n_layers - 1}; {n_layers} runs them all."
        )
    return stop % n_layers if stop < 0 else stop
