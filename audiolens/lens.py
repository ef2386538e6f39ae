"""AudioLens: load a music transformer, read and change what happens inside it, and generate.

The lens adds no hooks of its own: nnsight serves every value (`engine.py`), and what it serves is bit-identical
to the bare model unless something is asked for. Model, generation configuration and global random state are
left as they were, also after an exception.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens import text, tokens, weights
from audiolens.audio import Sound, checked_codes, decode, encode
from audiolens.cache import ActivationCache
from audiolens.conditioning import refuse_melody
from audiolens.door import guarded
from audiolens.drawing import drawn
from audiolens.errors import InputError, InputTypeError
from audiolens.families import LensConfig, config_of, family_of, places, shapes
from audiolens.forwards import Forward
from audiolens.generation import Generation
from audiolens.interventions import Branch, Intervention, checked_branch, checked_flags
from audiolens.loading import checked_device, load, refuse_tokenizer
from audiolens.operations import Model, unharmed
from audiolens.passes import alone
from audiolens.proof import prove
from audiolens.recording import Reading, Reduce, refuse_prefix
from audiolens.reopening import Opening, packed
from audiolens.text import Prompt
from audiolens.timeline import Real, Span, Timeline, checked_frames, clip_timeline
from audiolens.tracing import LensTracer, SiteValue, position, requested

Interventions = Intervention | Iterable[Intervention]


@guarded
class AudioLens:
    """A music transformer with its inside open.

    Args:
        model: a `MusicgenForConditionalGeneration` or `MusicgenMelodyForConditionalGeneration` in evaluation mode.
        tokenizer: its tokenizer, or a processor that holds one.
        name: what results call the model.

    Raises:
        UnsupportedModelError: if a part the lens relies on is not where it should be, has another shape, or is built so
            that an edit would not change what the model computes; `audiolens.proof` shows it by two tiny forwards.
        InputError: if the model is in training mode, or the tokenizer is not one of its text encoder's.
    """

    # Views of the model's weights by TransformerLens's names; `weights.py` has their shapes.
    W_Q, W_K, W_V, W_O = weights.attention("self_attn")
    W_Q_cross, W_K_cross, W_V_cross, W_O_cross = weights.attention("encoder_attn")
    W_in, W_out = weights.mlp()
    W_E, W_U, W_pos = weights.vocabulary()

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        self._family = family_of(model)
        self._config = config_of(model, self._family)
        self._model = model
        self._tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if not callable(self.tokenizer):
            raise InputTypeError(f"tokenizer={type(tokenizer).__name__}: expected a tokenizer or a processor.")
        refuse_tokenizer(self.tokenizer, model)
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        with unharmed(model):
            self._nnsight = Model(model)
            prove(self)
        self._opening: Opening | None = None

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

        `dtype=None` keeps the weights' own. `device_map` (such as "auto", which needs accelerate) spreads a model over
        devices as transformers does, in the place of `device`.

        Raises:
            ModelNotFoundError: no such name or folder, or the hub cannot be reached.
            ModelFilesError: the folder does not hold a whole model with its tokenizer.
            UnsupportedModelError: not a family the lens knows.
        """
        if device is not None and device_map is not None:
            raise InputError("device and device_map were both given: device_map places the model by itself.")
        target = None if device is None else checked_device(device)
        model, tokenizer = load(name, dtype=dtype, revision=revision, device_map=device_map)
        model.eval()
        lens = cls(model if target is None else model.to(target), tokenizer, name=os.fspath(name))
        # The hub's branches move on: the commit is what was loaded.
        commit = getattr(model.config, "_commit_hash", None) or revision
        lens._opening = Opening.of(name, dtype, commit, device_map)
        return lens

    def __copy__(self) -> "AudioLens":
        """A lens on the same model."""
        return self._on(self.model, self.tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AudioLens":
        """A lens on a copy of the model."""
        return self._on(copy.deepcopy(self.model, memo), copy.deepcopy(self.tokenizer, memo))

    def __reduce__(self) -> tuple[Any, ...]:
        """How it was opened and a hash of its weights: where it arrives, it is opened again.

        Raises:
            InputError: for a model that was given in memory; from the other side, if its weights are not the same.
        """
        return packed(self, self._opening)

    def _on(self, model: Any, tokenizer: Any) -> "AudioLens":
        made = type(self)(model, tokenizer, name=self.name)
        made._opening = self._opening
        return made

    @property
    def model(self) -> Any:
        """The transformers model, as it was given. For another one, open another lens."""
        return self._model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._tokenizer

    @property
    def config(self) -> LensConfig:
        """The model's sizes, rates and family."""
        return self._config

    @property
    def device(self) -> torch.device:
        """Where the decoder is; under a `device_map`, its first part."""
        return next(self.model.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in, and activations come in."""
        return next(self.model.decoder.parameters()).dtype

    def sites(self) -> dict[str, str]:
        """Every site of this model by its full name, with the shape of its values, in the model's order."""
        return shapes(self._family, self.config)

    def text_tokens(self, prompts: Prompt | Sequence[Prompt]) -> list[list[str]]:
        """Each prompt's tokens as strings, as the text encoder reads them; none for an absent prompt."""
        listed = text.checked_prompts(prompts)
        return [
            [] if prompt is None else self.tokenizer.convert_ids_to_tokens(tokens.ids([prompt], self.tokenizer)[0])
            for prompt in listed
        ]

    def timeline(self, frames: int) -> Timeline:
        """The steps of a clip of so many frames.

        Raises:
            InputTypeError, InputError: if that is no whole number, or under 1.
        """
        return Timeline(checked_frames(frames), self.config.frame_rate, self.config.delays)

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
        heads: Sequence[int] | None = None,
        cache_device: Any = None,
        cache_dtype: str | torch.dtype | None = None,
        batch_size: int | None = None,
        decode: bool = True,
        use_cache: bool = True,
        progress: bool = False,
        audio_prompt: Tensor | Sound | Sequence[Sound] | None = None,
        prefix: bool = False,
        melody: Any = None,
    ) -> Generation:
        """Generate a clip per prompt, changed by `interventions`, and record `sites` while doing so.

        Args:
            prompts: one text a row; a single one stands for as many rows as there are seeds. `None` is no prompt.
            seconds: length of the clips, an audio prompt included.
            seeds: one seed a row (or one for all): the clip is drawn from its seed whatever its batch, and the
                global random state is not touched. `None`: transformers' own sampler and global random state.
            guidance_scale: 1 is no guidance, and half the work.
            temperature: 0 is greedy.
            top_k: how many codes a draw chooses from; 0 or `None` is all.
            exact: pad rows (and text under a mask) to fixed sizes: codes are bit-equal in any batch and order.
            sites, layers, heads, branch, span, reduce: what `out.cache` holds; `span` is (from, to) in seconds,
                `reduce` "mean", "last" or "max" over the steps (the tail left out), kept without storing them.
                Patterns are padded with zeros to all keys of the clip, as a forward over its codes gives them.
            cache_device, cache_dtype: where and how recordings are kept (default: as they come).
            batch_size: rows in one run (default: all). MusicGen Melody has no mask for its text: there a run holds
                prompts of one length in tokens, the shortest first, and the rows come back in their order.
            decode: `False` skips the codec; `out.audio` is then `None`.
            use_cache: `False` recomputes every step from the start, to check the key-value cache against.
            audio_prompt: what the clips begin with and go on from: (waveform, sample rate) of any rate, mono or stereo,
                or the path of a sound file; a list of these, or a waveform "row channel sample", one a row; or codes
                "row codebook frame". One for all rows, or one a row. It stands in
                `out.codes` and, through the codec, in `out.audio`; interventions and recordings count their time from
                its beginning.
            prefix: record the conditioning before step 0 too; see `run_with_cache`.
            melody: not supported yet; text alone conditions.

        Raises:
            InputError: (or a subclass) for anything out of range, before the model runs; and if a setting of
                `model.generation_config` would change the draw: the arguments decide it alone.
            ActivationOverflow: while it runs, if interventions, or the model itself, make logits infinite or NaN.
        """
        refuse_melody(melody)
        return drawn(
            self,
            prompts,
            seconds,
            Reading(sites, layers, branch, span, reduce, cache_device, cache_dtype, heads, prefix),
            audio_prompt=audio_prompt,
            seeds=seeds,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            exact=exact,
            interventions=interventions,
            batch_size=batch_size,
            decode=decode,
            use_cache=use_cache,
            progress=progress,
        )

    def run_with_cache(
        self,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        *,
        audio: Sound | None = None,
        sites: str | Sequence[str] = ("resid_post",),
        layers: int | Sequence[int] | None = None,
        branch: Branch = "cond",
        guidance_scale: Real = 1.0,
        seconds: Span | None = None,
        interventions: Interventions = (),
        reduce: Reduce | None = None,
        heads: Sequence[int] | None = None,
        device: Any = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int | None = None,
        stop_at_layer: int | None = None,
        prefix: bool = False,
        melody: Any = None,
    ) -> tuple[Float[Tensor, "..."], ActivationCache]:
        """One forward over given codes, recording `sites`.

        Args:
            codes: undelayed codes, a row per prompt; `None` reads only step 0, the start token.
            audio: (waveform, sample rate) or the path of a sound file, instead of codes.
            sites: what is recorded; `[]` is nothing: the logits, and a cache without sites.
            branch: which branch's logits and activations; "both" adds a leading axis to each.
            seconds: record only these steps. The logits are always of all of them.
            reduce: "mean", "last" or "max" over the steps (the tail left out), or "eos": the text's last token, where
                the text stands in the decoder's own sequence (MusicGen Melody).
            prefix: record the conditioning in that sequence too, "row prefix+step ...": the step axis then begins at
                the negative `cache.first_step`, and is 0 before a row whose prefix is shorter (`cache.prefixes`).
            melody: not supported yet; text alone conditions.
            heads: of head sites (patterns and results among them), record and recompute only these heads.
            stop_at_layer: run the blocks below this one and nothing above (0 to n_layers; negative counts from the
                end); `layers=None` is then every block that runs. An intervention above is left out.

        Returns:
            The logits of that branch, unmerged, "row codebook step vocab", and the recordings. Step s holds frame s of
            codebook 0 and frame s - k of a codebook delayed by k. With `stop_at_layer`, as in TransformerLens, the
            residual stream that this block would have read, "row step d_model", in the place of the logits.

        Raises:
            InputError, InputTypeError: for anything that does not fit this model or the clip, before the model runs:
                among them a `SiteError` for a site or layer that it does not have, a `PromptError` for a prompt.
            ActivationOverflow: while it runs, if interventions make activations infinite or NaN.
            BusyError: if this model is running already, further out in the same program.
        """
        refuse_melody(melody)
        reading = Reading(sites, layers, branch, seconds, reduce, device, dtype, heads, prefix)
        return Forward.checked(
            self,
            prompts,
            codes,
            reading,
            audio=audio,
            guidance_scale=guidance_scale,
            interventions=interventions,
            batch_size=batch_size,
            stop_at_layer=stop_at_layer,
        ).whole()

    def iter_cache(
        self,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        *,
        audio: Sound | None = None,
        sites: str | Sequence[str] = ("resid_post",),
        layers: int | Sequence[int] | None = None,
        branch: Branch = "cond",
        guidance_scale: Real = 1.0,
        seconds: Span | None = None,
        interventions: Interventions = (),
        reduce: Reduce | None = None,
        device: Any = None,
        dtype: str | torch.dtype | None = None,
        heads: Sequence[int] | None = None,
        batch_size: int = 16,
        progress: bool = True,
        prefix: bool = False,
    ) -> Iterator[ActivationCache]:
        """The caches of `run_with_cache`, a batch of rows at a time and in their order; `cache.prompts` says which.

        Nothing of an earlier batch is held, so memory is that of one; `reduce` takes its steps away too. There are
        no logits, and nothing runs above the last block recorded. The model is free between two batches.
        """
        reading = Reading(sites, layers, branch, seconds, reduce, device, dtype, heads, prefix)
        return Forward.checked(
            self,
            prompts,
            codes,
            reading,
            audio=audio,
            guidance_scale=guidance_scale,
            interventions=interventions,
            batch_size=batch_size,
        ).caches(progress)

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
        """The logits of one changed forward over given codes; see `run_with_cache`.

        Returns:
            The logits of that branch, unmerged: "row codebook step vocab", with a leading "branch" axis under "both".

        Raises:
            InputError, InputTypeError, ActivationOverflow, BusyError: as `run_with_cache`.
        """
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
        step 0 comes twice (MusicGen): `lens.position()` is the clock. Gradients are as the caller has them.
        """
        request, run = requested(
            self,
            self._family,
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

    def site(self, name: str, layer: int | None = None, *, branch: Branch = "cond", prefix: bool = False) -> SiteValue:
        """A site inside a trace, by full name or by short name and layer: read or assign its `value`."""
        found = places(self._family, self.config, name, layer)
        if len(found) != 1:
            raise InputError(f"{name!r} is a site of every block: give its layer, or its full name.")
        checked_branch(branch)
        checked_flags(prefix=prefix)
        if prefix:
            refuse_prefix(self.config, "prefix=True")
        return SiteValue(self._nnsight, self._family, self.config, found[0], branch, prefix)

    def position(self) -> int:
        """Inside a trace: the step at which the running forward starts."""
        return position(self._nnsight, self._family)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"AudioLens({self.name!r}: {config.family}, {config.n_layers} blocks, d_model {config.d_model}, "
            f"{config.n_codebooks} codebooks at {config.frame_rate:g} frames/s)"
        )
