"""AudioLens: load a music transformer, read and change what happens inside it, and generate.

The lens adds no hooks of its own: nnsight serves every value (`engine.py`), and what it serves is bit-identical
to the bare model unless something is asked for. Model, generation configuration and global random state are
left as they were, also after an exception.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens import passes, text
from audiolens.audio import checked_codes, decode, encode
from audiolens.cache import ActivationCache
from audiolens.engine import Run, checked_interventions
from audiolens.errors import InputError, InputTypeError
from audiolens.families import LensConfig, config_of, family_of, places, tap_of
from audiolens.generation import Generation
from audiolens.interventions import Branch, Intervention, checked_branch
from audiolens.loading import checked_device, load
from audiolens.passes import alone, random_state
from audiolens.recording import Reading, Recorder, Reduce
from audiolens.rows import Layout, batches, read_columns
from audiolens.sampling import checked_seeds, checked_settings, sampling_arguments
from audiolens.sites import Site
from audiolens.text import Prompt
from audiolens.timeline import Real, Span, Timeline, clip_timeline, codes_timeline
from audiolens.tracing import LensTracer, Model, SiteValue, clock, requested

Interventions = Intervention | Iterable[Intervention]


class AudioLens:
    """A music transformer with its inside open.

    Args:
        model: a `MusicgenForConditionalGeneration` in evaluation mode.
        tokenizer: its tokenizer, or a processor that holds one.
        name: what results call the model.

    Raises:
        UnsupportedModelError: if a part the lens relies on is not where it should be.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        self._family = family_of(model)
        self.config: LensConfig = config_of(model, self._family)
        self.model = model
        self.tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not callable(self.tokenizer):
            raise InputTypeError(f"tokenizer={type(tokenizer).__name__}: expected a tokenizer or a processor.")
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        self._nnsight = Model(model, self.config.n_codebooks)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        device_map: Any = None,
    ) -> "AudioLens":
        """Open a bundled model ("etude"), a folder written by `save_pretrained`, or a hub model.

        `dtype=None` keeps the weights' own.

        Raises:
            ModelNotFoundError: no such name or folder, or the hub cannot be reached.
            ModelFilesError: the folder does not hold a whole model.
            UnsupportedModelError: not a family the lens knows.
        """
        target = None if device is None else checked_device(device)
        model, tokenizer = load(name, dtype=dtype, revision=revision, device_map=device_map)
        model.eval()
        return cls(model if target is None else model.to(target), tokenizer, name=os.fspath(name))

    @property
    def device(self) -> torch.device:
        return next(self.model.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.decoder.parameters()).dtype

    def sites(self) -> dict[str, str]:
        """Every site of this model by its full name, with the shape of its values."""
        sizes = {
            "residual": f"row step d_model={self.config.d_model}",
            "heads": f"row step head={self.config.n_heads} d_head={self.config.d_head}",
            "mlp": f"row step d_mlp={self.config.d_mlp}",
        }
        blocks = [Site(hook, layer) for layer in range(self.config.n_layers) for hook in self._family.block_taps]
        whole = [Site(hook) for hook in self._family.model_taps]
        return {site.name: sizes[tap_of(self._family, site).layout] for site in [*blocks, *whole]}

    def text_tokens(self, prompts: Prompt | Sequence[Prompt]) -> list[list[str]]:
        """Each prompt's tokens as strings, as the text encoder reads them; none for an absent prompt."""
        listed = text.checked_prompts(prompts)
        return [
            [] if prompt is None else self.tokenizer.convert_ids_to_tokens(self.tokenizer(prompt)["input_ids"])
            for prompt in listed
        ]

    def timeline(self, frames: int) -> Timeline:
        """The steps of a clip of some frames."""
        return Timeline(frames, self.config.frame_rate, self.config.delays)

    def encode_audio(self, waveform: Any, sample_rate: int) -> Int[Tensor, "row codebook frame"]:
        """A waveform as undelayed codes; see `audiolens.audio.encode`."""
        with alone(self.model), torch.no_grad():
            return encode(waveform, sample_rate, self.model, self.config)

    def decode_codes(self, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
        """The sound of undelayed codes, as transformers' `generate` would decode them."""
        with alone(self.model), torch.no_grad():
            return decode(checked_codes(codes, self.config).to(self.device), self.model, self.config)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        seconds: Real = 4.0,
        *,
        seeds: int | Sequence[int] | None = None,
        guidance_scale: Real = 3.0,
        temperature: Real = 1.0,
        top_k: int | None = 250,
        exact: bool = False,
        interventions: Interventions = (),
        sites: str | Sequence[str] = (),
        layers: int | Sequence[int] | None = None,
        branch: Branch = "cond",
        span: Span | None = None,
        reduce: Reduce | None = None,
        cache_device: Any = None,
        cache_dtype: torch.dtype | None = None,
        batch_size: int | None = None,
        decode: bool = True,
        use_cache: bool = True,
        progress: bool = False,
    ) -> Generation:
        """Generate a clip per prompt, changed by `interventions`, and record `sites` while doing so.

        Args:
            prompts: one text a row; a single one stands for as many rows as there are seeds. `None` is no prompt.
            seconds: length of the clips.
            seeds: one seed a row (or one for all): the clip is drawn from its seed whatever its batch, and the
                global random state is not touched. `None`: transformers' own sampler and global random state.
            guidance_scale: 1 is no guidance, and half the work.
            temperature: 0 is greedy.
            top_k: how many codes a draw chooses from; 0 or `None` is all.
            exact: pad rows and text to fixed sizes, so that codes are bit-equal in any batch and order.
            sites, layers, branch, span, reduce: what `out.cache` holds; `span` is (from, to) in seconds, `reduce`
                "mean", "last" or "max" over the steps (the tail left out), kept without storing them.
            cache_device, cache_dtype: where and how recordings are kept (default: as they come).
            batch_size: rows in one run (default: all).
            decode: `False` skips the codec; `out.audio` is then `None`.
            use_cache: `False` recomputes every step from the start, to check the key-value cache against.

        Raises:
            InputError: (or a subclass) for anything out of range, before the model runs.
            ActivationOverflow: while it runs, if interventions make activations infinite or NaN.
        """
        rows = len(seeds) if isinstance(seeds, Sequence) else None
        listed, sizes = self._checked_texts(prompts, rows)
        drawn = checked_seeds(seeds, len(listed))
        checked_settings(guidance_scale, temperature, top_k)
        guided = guidance_scale > 1
        timeline = clip_timeline(seconds, self.config)
        todo = checked_interventions(interventions, self._family, self.config, guided)
        reading = Reading(
            sites,
            layers,
            self._checked_branch(branch, guided, sites),
            span,
            reduce,
            cache_device,
            cache_dtype,
        )
        recorder = Recorder.of(reading, self._family, self.config, len(listed), timeline)
        if exact and drawn is None:
            raise InputError("exact=True needs seeds: transformers' own sampler draws a whole batch from one state.")
        codes = torch.zeros(len(listed), self.config.n_codebooks, timeline.frames, dtype=torch.long, device=self.device)
        parts = list(batches(sizes, guided=guided, exact=exact, batch_size=batch_size))
        with alone(self.model), random_state(keep=drawn is not None):
            for layout, length in _counted(parts, progress):
                run = self._run(layout, timeline, todo, recorder)
                encoded = text.encode([listed[row] for row in layout.rows], self.model, self.tokenizer, length)
                mine = None if drawn is None else [drawn[row] for row in layout.rows]
                made = passes.generate(
                    self._nnsight,
                    run,
                    timeline,
                    use_cache=use_cache,
                    input_ids=encoded.ids,
                    **encoded.conditioning(guided),
                    **sampling_arguments(mine, self.config, guidance_scale, temperature, top_k),
                )
                codes[list(layout.rows[: layout.kept])] = made[: layout.kept]
        audio = self.decode_codes(codes) if decode else None
        return Generation(
            codes=codes,
            audio=audio,
            sample_rate=self.config.sample_rate,
            frame_rate=self.config.frame_rate,
            prompts=listed,
            seeds=None if drawn is None else tuple(drawn),
            cache=None if recorder is None else recorder.cache(listed, self.name, self.config.frame_rate),
            settings={
                "model": self.name,
                "seconds": timeline.seconds,
                "guidance_scale": float(guidance_scale),
                "temperature": float(temperature),
                "top_k": top_k,
                "exact": exact,
                "interventions": [type(intervention).__name__ for intervention in todo],
            },
        )

    def run_with_cache(
        self,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        *,
        audio: tuple[Any, int] | None = None,
        sites: str | Sequence[str] = ("resid_post",),
        layers: int | Sequence[int] | None = None,
        branch: Branch = "cond",
        guidance_scale: Real = 1.0,
        seconds: Span | None = None,
        interventions: Interventions = (),
        reduce: Reduce | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        batch_size: int | None = None,
    ) -> tuple[Float[Tensor, "*branch row codebook step vocab"], ActivationCache]:
        """One forward over given codes, recording `sites`.

        Args:
            codes: undelayed codes, a row per prompt; `None` reads only step 0, the start token.
            audio: (waveform, sample rate) instead of codes.
            branch: which branch's logits and activations; "both" adds a leading axis to each.
            seconds: record only these steps. The logits are always of all of them.

        Returns:
            The logits of that branch, unmerged, and the recordings. Step s holds frame s of codebook 0 and frame
            s - k of a codebook delayed by k.
        """
        if audio is not None:
            if codes is not None:
                raise InputError("codes and audio were both given: give one of them.")
            codes = self.encode_audio(*audio)
        listed, sizes = self._checked_texts(prompts, None if codes is None else len(codes))
        if codes is not None:
            codes = checked_codes(codes, self.config, len(listed)).to(self.device)
        checked_settings(guidance_scale, 1.0, None)
        guided = guidance_scale > 1
        timeline = codes_timeline(codes, self.config)
        todo = checked_interventions(interventions, self._family, self.config, guided)
        reading = Reading(
            sites, layers, self._checked_branch(branch, guided, ["logits"]), seconds, reduce, device, dtype
        )
        recorder = Recorder.of(reading, self._family, self.config, len(listed), timeline)
        parts = []
        with alone(self.model), random_state(keep=True):
            for layout, _ in batches(sizes, guided=guided, exact=False, batch_size=batch_size):
                run = self._run(layout, timeline, todo, recorder)
                encoded = text.encode([listed[row] for row in layout.rows], self.model, self.tokenizer)
                logits = passes.forward(
                    self._nnsight,
                    run,
                    decoder_input_ids=read_columns(codes, self.config, layout, self.device),
                    **encoded.conditioning(guided),
                )
                shaped = logits.unflatten(0, (layout.branches, len(layout.rows), self.config.n_codebooks))
                parts.append(shaped if branch == "both" else shaped[0 if branch == "cond" else 1])
        whole = torch.cat(parts, dim=1 if branch == "both" else 0)
        if recorder is None:
            return whole, ActivationCache({}, {}, branch=branch, prompts=listed, model=self.name)
        return whole, recorder.cache(listed, self.name, self.config.frame_rate)

    def run_with_interventions(
        self,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None,
        interventions: Interventions,
        *,
        branch: Branch = "cond",
        guidance_scale: Real = 1.0,
        batch_size: int | None = None,
    ) -> Float[Tensor, "*branch row codebook step vocab"]:
        """The logits of one changed forward over given codes; see `run_with_cache`."""
        logits, _ = self.run_with_cache(
            prompts,
            codes,
            sites=(),
            branch=branch,
            guidance_scale=guidance_scale,
            interventions=interventions,
            batch_size=batch_size,
        )
        return logits

    def trace(
        self,
        prompts: Prompt | Sequence[Prompt] = (),
        *,
        codes: Int[Tensor, "row codebook frame"] | None = None,
        guidance_scale: Real = 1.0,
        fn: Literal["forward", "generate"] = "forward",
        seconds: Real = 4.0,
        seeds: int | Sequence[int] | None = None,
        temperature: Real = 1.0,
        top_k: int | None = 250,
    ) -> LensTracer:
        """nnsight's own trace, with rows and branches understood; see `audiolens.tracing`.

        Without prompts the block holds `with tracer.invoke(prompts, codes=...)` blocks. `fn="generate"` takes
        `seconds`, `seeds`, `temperature` and `top_k` as `generate` does; its steps are `tracer.iter[:]`, where
        step 0 comes twice: `lens.position()` is the clock. Gradients are as the caller has them.
        """
        request, run = requested(
            self,
            guidance_scale=guidance_scale,
            fn=fn,
            timeline=clip_timeline(seconds, self.config),
            seeds=seeds,
            temperature=temperature,
            top_k=top_k,
        )
        # Not `if prompts`: an absent prompt (None) and an empty one are rows, and only the empty tuple is no row.
        given = () if isinstance(prompts, tuple) and not prompts else (prompts,)
        extra: dict[str, Any] = {} if codes is None else {"codes": codes}
        return self._nnsight.trace(  # pyright: ignore[reportReturnType]
            *given, fn=run, tracer_cls=LensTracer, request=request, **extra
        )

    def site(self, name: str, layer: int | None = None, *, branch: Branch = "cond") -> SiteValue:
        """A site inside a trace, by full name or by short name and layer: read or assign its `value`."""
        found = places(self._family, self.config, name, layer)
        if len(found) != 1:
            raise InputError(f"{name!r} is a site of every block: give its layer, or its full name.")
        checked_branch(branch)
        site, tap = found[0], tap_of(self._family, found[0])
        decoder = self._nnsight.get(self._family.decoder)
        block = decoder if site.layer is None else decoder.layers[site.layer]
        return SiteValue(site, tap, block.get(tap.module) if tap.module else block, self.config, branch)

    def position(self) -> int:
        """Inside a trace: the step at which the running forward starts."""
        return clock(self._nnsight, self._family)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"AudioLens({self.name!r}: {config.family}, {config.n_layers} blocks, d_model {config.d_model}, "
            f"{config.n_codebooks} codebooks at {config.frame_rate:g} frames/s)"
        )

    def _run(
        self, layout: Layout, timeline: Timeline, todo: tuple[Intervention, ...], recorder: Recorder | None
    ) -> Run:
        if recorder is not None:
            recorder.begin()
        return Run(
            self._nnsight,
            self._family,
            self.config,
            layout=layout,
            timeline=timeline,
            interventions=todo,
            recorder=recorder,
            device=self.device,
        )

    def _checked_texts(
        self, prompts: Prompt | Sequence[Prompt], rows: int | None = None
    ) -> tuple[tuple[Prompt, ...], list[int]]:
        """Prompts, one a row, and their lengths in tokens."""
        listed = text.checked_prompts(prompts, rows)
        return listed, text.lengths(listed, self.tokenizer, text.token_limit(self.model, self.tokenizer))

    def _checked_branch(self, branch: Branch, guided: bool, sites: str | Sequence[str]) -> Branch:
        checked_branch(branch)
        if sites and branch != "cond" and not guided:
            raise InputError(f"branch={branch!r} needs guidance: without it (guidance_scale=1) there is only 'cond'.")
        return branch


def _counted(parts: list[Any], progress: bool) -> Iterable[Any]:
    if not progress:
        return parts
    from tqdm.auto import tqdm

    return tqdm(parts, desc="generating", unit="batch")
