"""Run forward passes over given codes, batch by batch, and record activations.

`AudioLens.run_with_cache` returns one cache for all rows; `AudioLens.iter_cache` yields one cache per batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from audiolens.cache.activation_cache import ActivationCache
from audiolens.cache.decomposition import equipped
from audiolens.checks import shown, whole_number
from audiolens.errors import InputError, SiteError
from audiolens.interventions import Intervention, checked_branch, checked_flags
from audiolens.model import text, tokens
from audiolens.model.families.family import Half
from audiolens.model.memory import Need
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real, Timeline, codes_timeline
from audiolens.model.traced_model import TracedModel
from audiolens.sound.codec import AudioSource, checked_codes
from audiolens.tracing import model_calls
from audiolens.tracing.batching import Layout, batches, checked_batch_size, chunks, in_order, of_branch, read_columns
from audiolens.tracing.fitting import Fitting
from audiolens.tracing.given_sound import codes_of
from audiolens.tracing.model_calls import alone, random_state
from audiolens.tracing.plan import Run, beyond, checked_interventions
from audiolens.tracing.recording import Reading, Recorder
from audiolens.tracing.sampling import checked_settings


@dataclass(frozen=True, eq=False)
class Forward:
    """A checked run over given codes. It stops before block `stop`, or runs to the logits if `stop` is `None`."""

    traced: TracedModel
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
        traced: TracedModel,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None,
        reading: Reading,
        *,
        audio: AudioSource | None = None,
        guidance_scale: Real = 1.0,
        interventions: Any = (),
        batch_size: int | None = None,
        stop_at_layer: int | None = None,
    ) -> "Forward":
        """Check every argument and return the plan. Only the codec (on `audio`) runs before the checks are complete."""
        if audio is not None:
            if codes is not None:
                raise InputError("codes and audio were both given: give one of them.")
            codes = codes_of(audio, traced)
        listed, sizes = text.checked(prompts, traced.model, traced.tokenizer, None if codes is None else len(codes))
        if codes is not None:
            codes = checked_codes(codes, traced.config, len(listed)).to(traced.device)
        guidance_scale, _, _ = checked_settings(guidance_scale, 1.0, None)
        guided = guidance_scale > 1
        checked_branch(reading.branch, guided)
        timeline = codes_timeline(codes, traced.config, traced.config.prefix(max(sizes)))
        stop = checked_stop(stop_at_layer, traced.config.n_layers)
        if stop and reading.layers is None:
            reading = replace(reading, layers=list(range(stop)))
        for site in traced.family.find(traced.config, reading.sites, reading.layers):
            if beyond(traced.family, site, stop):
                raise SiteError(
                    f"stop_at_layer={stop_at_layer} ends the run before {site.name}: stop later, or drop that site."
                )
        # If the recorder raises an error, it should do so now, not after several batches have run.
        Recorder.of(reading, traced, len(listed), timeline)
        return cls(
            traced,
            listed,
            codes,
            timeline,
            reading,
            guided,
            checked_interventions(interventions, traced, guided),
            stop,
            tuple(sizes),
            checked_batch_size(batch_size),
        )

    @property
    def halves(self) -> tuple[Half, ...]:
        """The guidance branches, in their order in a batch."""
        return self.traced.family.halves(self.guided)

    def whole(self) -> tuple[Float[Tensor, "..."], ActivationCache]:
        """Run every batch; return the logits of all rows (or the residual stream at `stop`) and one cache."""
        recorder = self._recorder(len(self.prompts))
        prefix = self.traced.config.prefix
        cut = batches(self.sizes, halves=self.halves, exact=False, batch_size=self.batch_size, prefix=prefix)
        fit = self._fitting()
        with alone(self.traced.model), random_state(keep=True):
            done = [one for layout, _ in cut for one in self._parts(layout, recorder, fit)]
        layouts, parts = zip(*done, strict=True)
        whole = in_order(parts, layouts, axis=1 if self.reading.branch == "both" else 0)
        return whole, self._cache(recorder, self.prompts)

    def caches(self, progress: bool) -> Iterator[ActivationCache]:
        """Yield one cache per batch. Logits are not returned, because each run stops after the last recorded block."""
        checked_flags(progress=progress)
        found = self.traced.family.find(self.traced.config, self.reading.sites, self.reading.layers)
        if not found:
            raise InputError("no site to record: name at least one in sites.")
        last = self.traced.family.order(found)[-1]
        enough = 0 if last.layer is None else last.layer + 1
        plan = replace(self, stop=None if beyond(self.traced.family, last, enough) else enough)
        size, prefix = self.batch_size or len(self.sizes), self.traced.config.prefix
        parts = list(chunks(self.sizes, halves=self.halves, batch_size=size, prefix=prefix))
        tokens.tell_unread()
        with alone(self.traced.model):
            # Errors that concern every batch should be raised before the first batch is requested.
            plan._run(parts[0][0], None)
        return plan._each(parts, progress)

    def _each(self, parts: Sequence[tuple[Layout, ...]], progress: bool) -> Iterator[ActivationCache]:
        fit = self._fitting()
        for layouts in tqdm(parts, desc="reading", unit="batch", disable=not progress):
            first, rows = layouts[0].first, sum(layout.kept for layout in layouts)
            recorder = self._recorder(rows)
            # The lock is not held during the yield, because the caller may use the model between two batches.
            with alone(self.traced.model), random_state(keep=True):
                for layout in layouts:
                    for _ in self._parts(layout, recorder, fit):
                        pass
            yield self._cache(recorder, self.prompts[first : first + rows])

    def _recorder(self, rows: int) -> Recorder | None:
        return Recorder.of(self.reading, self.traced, rows, self.timeline)

    def _cache(self, recorder: Recorder | None, prompts: tuple[Prompt, ...]) -> ActivationCache:
        if recorder is None:
            return ActivationCache({}, {}, branch=self.reading.branch, prompts=prompts, model=self.traced.name)
        return equipped(recorder.cache(prompts, self.traced.name, self.traced.config.frame_rate), self.traced)

    def _run(self, layout: Layout, recorder: Recorder | None) -> Run:
        return Run(
            self.traced,
            layout=layout,
            timeline=self.timeline,
            interventions=self.interventions,
            recorder=recorder,
            stop=self.stop,
        )

    def _fitting(self) -> Fitting:
        config, positions = self.traced.config, self.timeline.prefix + self.timeline.steps
        need = partial(
            Need.of,
            self.traced.model,
            config,
            positions=positions,
            at_once=positions,
            branches=len(self.halves),
            tokens=max(self.sizes),
        )
        repeated = any(one.called for one in self.interventions)
        whole = "a function of an Apply would be called again: give a smaller batch_size=" if repeated else None
        rows = f"rows of {self.timeline.seconds:g} s of codes"
        return Fitting(self.traced.device, rows, need, whole, "device='cpu'" if self.reading.sites else None)

    def _parts(
        self, layout: Layout, recorder: Recorder | None, fit: Fitting
    ) -> Iterator[tuple[Layout, Float[Tensor, "..."]]]:
        """Run one batch in as few parts as fit in memory, and yield each part's layout and result."""

        def undo(rows: slice) -> None:
            if recorder is not None:
                recorder.drop(layout.part(rows))

        for rows, out in fit.run(len(layout.rows), lambda rows: self._batch(layout.part(rows), recorder), undo):
            yield layout.part(rows), out

    def _batch(self, layout: Layout, recorder: Recorder | None) -> Float[Tensor, "..."]:
        """Return one batch's logits "row codebook step vocab", or the residual stream "row step d_model" at `stop`."""
        traced = self.traced
        if recorder is not None:
            recorder.begin(layout)
        run = self._run(layout, recorder)
        encoded = text.encode([self.prompts[row] for row in layout.rows], traced.model, traced.tokenizer)
        columns = read_columns(self.codes, traced.config, layout, traced.device)
        arguments = traced.family.inputs(traced.model, encoded, self.guided)
        out = model_calls.forward(traced.nnsight, run, decoder_input_ids=columns, **arguments)
        each = () if self.stop is not None else (traced.config.n_codebooks,)
        shaped = out.unflatten(0, (layout.branches, len(layout.rows), *each))
        return of_branch(shaped, layout.halves, self.reading.branch)


def checked_stop(stop_at_layer: object, n_layers: int) -> int | None:
    """Return the block before which a run stops, counted from the first block.

    Raises:
        InputError: if the model does not have this block.
    """
    if stop_at_layer is None:
        return None
    try:
        stop = whole_number(stop_at_layer)
    except TypeError:
        raise InputError(
            f"stop_at_layer={shown(stop_at_layer)}: expected a layer number, or None to run to the logits."
        ) from None
    if not -n_layers <= stop <= n_layers:
        raise InputError(
            f"stop_at_layer={stop_at_layer}: this model has layers 0 to {n_layers - 1}; {n_layers} runs them all."
        )
    return stop % n_layers if stop < 0 else stop
