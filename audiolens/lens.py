"""AudioLens: load a music transformer, read and change what happens inside it, and generate.

The lens adds no hooks of its own: nnsight serves every value (`engine.py`), and what it serves is bit-identical
to the bare model unless something is asked for. Model, generation configuration and global random state are
left as they were, also after an exception.
"""

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.cache.activation_cache import ActivationCache
from audiolens.compatibility import SECONDS, SITES, OtherNames, chosen_seconds, chosen_seeds, chosen_sites
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.interventions import Branch, Intervention
from audiolens.model import text, tokens, weights
from audiolens.model.conditioning import refuse_melody
from audiolens.model.config import LensConfig, config_of
from audiolens.model.families import family_of
from audiolens.model.loading import checked_device, load, refuse_tokenizer
from audiolens.model.sites import Site, checked_names
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real, Span, Timeline, checked_frames
from audiolens.model.traced_model import TracedModel
from audiolens.sound.codec import Sound
from audiolens.tracing.generate_clips import drawn
from audiolens.tracing.generation import Generation
from audiolens.tracing.given_sound import decode_codes, encode_audio
from audiolens.tracing.nnsight_source import Model, unharmed
from audiolens.tracing.recording import Reading, Reduce
from audiolens.tracing.reopening import Opening, packed
from audiolens.tracing.run_on_codes import Forward
from audiolens.tracing.self_check.sites import prove
from audiolens.tracing.trace import TracedLens

Interventions = Intervention | Iterable[Intervention]


@guarded
class AudioLens(TracedLens, OtherNames):
    """A music transformer with its inside open.

    Args:
        model: a `MusicgenForConditionalGeneration` or `MusicgenMelodyForConditionalGeneration` in evaluation mode.
        tokenizer: its tokenizer, or a processor that holds one.
        name: what results call the model.

    Raises:
        UnsupportedModelError: if a part the lens relies on is not where it should be, has another shape, or is built so
            that an edit would not change what the model computes; `audiolens.tracing.self_check` shows it by two tiny
            forwards and a tiny generation.
        InputError: if the model is in training mode, or the tokenizer is not one of its text encoder's.
    """

    # Views of the model's weights by TransformerLens's names; `weights.py` has their shapes.
    W_Q, W_K, W_V, W_O = weights.attention("attn")
    W_Q_cross, W_K_cross, W_V_cross, W_O_cross = weights.attention("cross_attn")
    W_in, W_out = weights.mlp()
    W_E, W_U, W_pos = weights.vocabulary()

    def __init__(self, model: Any, tokenizer: Any, *, name: str | None = None) -> None:
        family = family_of(model)
        config = config_of(model, family)
        words = getattr(tokenizer, "tokenizer", tokenizer)
        if not callable(words):
            raise InputTypeError(f"tokenizer={type(tokenizer).__name__}: expected a tokenizer or a processor.")
        refuse_tokenizer(words, model)
        called = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
        with unharmed(model):
            self._traced_model = TracedModel(model, words, config, family, Model(model), called)
            prove(self._traced_model)
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
        return self._traced_model.model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self._traced_model.tokenizer

    @property
    def config(self) -> LensConfig:
        """The model's sizes, rates and family."""
        return self._traced_model.config

    @property
    def name(self) -> str:
        """What results call the model."""
        return self._traced_model.name

    @name.setter
    def name(self, name: str) -> None:
        self._traced_model.name = name

    @property
    def traced_model(self) -> TracedModel:
        """What the modules below the lens take: the model with its family and nnsight's envoys."""
        return self._traced_model

    @property
    def device(self) -> torch.device:
        """Where the decoder is; under a `device_map`, its first part."""
        return self._traced_model.device

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in, and activations come in."""
        return self._traced_model.dtype

    def sites(self) -> dict[str, str]:
        """Every site of this model by its full name, with the shape of its values, in the model's order."""
        return self._traced_model.family.shapes(self.config)

    def find_sites(self, names: str | Sequence[str], layers: int | Iterable[int] | None = None) -> list[Site]:
        """The sites that names and layers select, with `.name`, `.short`, `.layer` and `.axes`, in the order given.

        Raises:
            SiteError, InputError: for a site or layer that this model does not have, or no name.
        """
        return self.traced_model.family.find(self.config, checked_names("names", names), layers)

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
        """A waveform as undelayed codes; see `audiolens.sound.codec.encode`."""
        return encode_audio(self._traced_model, waveform, sample_rate)

    def decode_codes(self, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
        """The sound of undelayed codes, as transformers' `generate` would decode them."""
        return decode_codes(self._traced_model, codes)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        seconds: Real = SECONDS,
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
        seed: int | None = None,
        max_new_tokens: int | None = None,
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
            seed: `seeds` of one number, which every row takes.
            max_new_tokens: the clips' length in transformers' count, in the place of `seconds`: each is a step, so that
                clips have so many frames less the tail (3 in the released models): 53 make a second of 50 frames.
            melody: not supported yet; text alone conditions.

        Raises:
            InputError: (or a subclass) for anything out of range, before the model runs; and if a setting of
                `model.generation_config` would change the draw: the arguments decide it alone.
            ActivationOverflow: while it runs, if interventions, or the model itself, make logits infinite or NaN.
        """
        refuse_melody(melody)
        return drawn(
            self._traced_model,
            prompts,
            chosen_seconds(self.config, seconds, max_new_tokens, audio_prompt),
            Reading(sites, layers, branch, span, reduce, cache_device, cache_dtype, heads, prefix),
            audio_prompt=audio_prompt,
            seeds=chosen_seeds(seeds, seed),
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
        sites: str | Sequence[str] = SITES,
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
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
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
            names_filter: `sites` under TransformerLens's name, or a function that tells by the full name what to keep.

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
        sites = chosen_sites(self, sites, layers, names_filter)
        reading = Reading(sites, layers, branch, seconds, reduce, device, dtype, heads, prefix)
        return Forward.checked(
            self._traced_model,
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
            self._traced_model,
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

    def __repr__(self) -> str:
        config = self.config
        return (
            f"AudioLens({self.name!r}: {config.family}, {config.n_layers} blocks, d_model {config.d_model}, "
            f"{config.n_codebooks} codebooks at {config.frame_rate:g} frames/s)"
        )
