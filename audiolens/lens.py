"""AudioLens: load a music transformer, read and edit its activations, and generate clips.

The lens adds no hooks of its own, because nnsight provides access to every activation (`tracing/plan.py`). Outputs are
bit-identical to those of the bare model unless an intervention changes them. Even after an exception, the model, its
generation configuration and the global random state are left as they were.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import checked_text, shown
from audiolens.compatibility import SITES, OtherNames, chosen_seconds, chosen_seeds, chosen_sites
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.groups import takes
from audiolens.interventions import Branch, Intervention
from audiolens.model import weights
from audiolens.model.conditioning import refuse_melody
from audiolens.model.config import config_of
from audiolens.model.devices import chosen_device, chosen_dtype, mapped_device, refuse_attention
from audiolens.model.families import family_of
from audiolens.model.loading import load, moved, refuse_tokenizer
from audiolens.model.opened_model import OpenedModel
from audiolens.model.text import Prompt
from audiolens.model.timeline import Real, Span, one_span
from audiolens.model.traced_model import TracedModel
from audiolens.sound.codec import AudioSource
from audiolens.tracing.engines import Engine
from audiolens.tracing.generate_clips import drawn
from audiolens.tracing.generation import Generation
from audiolens.tracing.given_sound import decode_codes, encode_audio
from audiolens.tracing.nnsight_source import Model, unharmed
from audiolens.tracing.recording import Reading, Reduce
from audiolens.tracing.reopening import Opening, Portable
from audiolens.tracing.run_on_codes import Forward
from audiolens.tracing.sampling import SECONDS, Sampling
from audiolens.tracing.self_check.sites import prove
from audiolens.tracing.trace import TracedLens

Interventions = Intervention | Iterable[Intervention]
Attention = Literal["sdpa", "flash_attention_2", "eager"]


@guarded
class AudioLens(OpenedModel, TracedLens, OtherNames, Portable):
    """A music transformer whose activations can be read and edited.

    Args:
        model: a `MusicgenForConditionalGeneration` or `MusicgenMelodyForConditionalGeneration` in evaluation mode.
        tokenizer: the model's tokenizer, or a processor that contains one.
        name: the name by which results refer to the model.

    Raises:
        UnsupportedModelError: if a part of the model that the lens relies on is missing, has an unexpected shape, or is
            built so that an edit would not change what the model computes. `audiolens.tracing.self_check` tests the
            model with a few tiny forward passes and a tiny generation.
        InputError: if the model is in training mode, or the tokenizer does not belong to the model's text encoder.
    """

    # Views of the model's weights under TransformerLens's names; `model/weights.py` gives their shapes.
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
        if name is not None:
            checked_text("name", name)
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
        attention: Attention | None = None,
        codec_dtype: str | torch.dtype | None = None,
    ) -> "AudioLens":
        """Open a bundled model ("etude"), a folder written by `save_pretrained`, or a hub model.

        Args:
            device: a device such as "cuda:1". "auto" takes a GPU if there is one. `None` leaves the model on the CPU.
            dtype: a floating-point dtype. "auto" is bfloat16 on a CUDA device that computes in it natively, and float32
                elsewhere. `None` keeps the dtype of the saved weights.
            revision: the branch, tag or commit of a hub model.
            device_map: replaces `device` and distributes the model over several devices, as in transformers ("auto"
                requires accelerate).
            attention: how the decoder computes attention: "sdpa", "eager", or "flash_attention_2" (on a CUDA device, in
                bfloat16 or float16, and if flash-attn is installed). `None` is transformers' choice, which is "sdpa".
            codec_dtype: the dtype of the codec, which turns codes into sound. `None` is float32 if `dtype` is narrower,
                because narrower dtypes are audible in quiet parts of the spectrum (docs/checkpoints.md).

        Raises:
            ModelNotFoundError: if there is no model with the given name or in the given folder, or if the hub cannot be
                reached.
            ModelFilesError: if the folder does not contain a complete model with its tokenizer.
            UnsupportedModelError: if the model's family is not supported.
            InputError: if this machine does not have the device, or if the device does not support the dtype or the
                attention implementation.
            TooLittleMemoryError: if the weights do not fit on the device.
        """
        if device is not None and device_map is not None:
            raise InputError("device and device_map were both given: device_map places the model by itself.")
        target = chosen_device(device)
        place = target if device_map is None else mapped_device()
        kind = chosen_dtype(dtype, place)
        refuse_attention(attention, place, kind)
        codec = chosen_dtype(codec_dtype, place)
        model, tokenizer = load(
            name, dtype=kind, revision=revision, device_map=device_map, attention=attention, codec_dtype=codec
        )
        model.eval()
        lens = cls(model if target is None else moved(model, target), tokenizer, name=os.fspath(name))
        # A branch on the hub may move, so record the commit that was loaded.
        commit = getattr(model.config, "_commit_hash", None) or revision
        lens._opening = Opening.of(name, kind, commit, device_map, attention, codec)
        return lens

    def encode_audio(self, waveform: Any, sample_rate: int) -> Int[Tensor, "row codebook frame"]:
        """Encode a waveform as undelayed codes; see `audiolens.sound.codec.encode`."""
        return encode_audio(self._traced_model, waveform, sample_rate)

    def decode_codes(self, codes: Int[Tensor, "row codebook frame"]) -> Float[Tensor, "row channel sample"]:
        """Decode undelayed codes to audio, as transformers' `generate` would."""
        return decode_codes(self._traced_model, codes)

    @takes("reading", Reading, spread=False, seconds="span", device="cache_device", dtype="cache_dtype")
    @takes("sampling", Sampling, spread=False, seconds=("seconds", "max_new_tokens"))
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
        audio_prompt: Tensor | AudioSource | Sequence[AudioSource] | None = None,
        prefix: bool = False,
        melody: Any = None,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        reading: Reading | None = None,
        sampling: Sampling | None = None,
        engine: Engine = "exact",
        window: Real | None = None,
        overlap: Real | None = None,
    ) -> Generation:
        """Generate one clip per prompt under `interventions`, and record activations at `sites` during generation.

        Args:
            prompts: one text per row; a single prompt is repeated for each seed. `None` means no prompt.
            seconds: the length of the clips, including an audio prompt.
            seeds: one seed per row, or one for all rows. A clip depends on its own seed and not on its batch, and the
                global random state is unchanged. `None` uses transformers' own sampler and the global random state.
            guidance_scale: the scale of classifier-free guidance; 1 means no guidance, and halves the cost.
            temperature: sampling temperature; 0 means greedy decoding.
            top_k: sample from the k most likely codes; 0 or `None` means all.
            exact: pad rows (and masked text) to fixed sizes, so that codes are bit-identical in any batch and order.
            sites, layers, heads, branch, span, reduce: what to record in `out.cache`. `span` is a time interval (from,
                to) in seconds. `reduce` is "mean", "last" or "max" over the steps (without the tail), computed without
                storing the steps. Attention patterns are zero-padded to the full number of keys, so their shape is that
                of a forward pass over the whole clip.
            cache_device, cache_dtype: the device and dtype of the recordings (default: those of the activations).
            batch_size: the number of rows per batch (default: all rows). MusicGen Melody has no mask for its text, so
                each of its batches contains only prompts with the same number of tokens, and the shortest prompts come
                first. The results are still in the order of the prompts.
            decode: `False` skips the codec, and `out.audio` is then `None`.
            use_cache: `False` recomputes every step from the start, as a check on the key-value cache.
            audio_prompt: sound that the clips begin with and continue: a pair (waveform, sample rate), mono or stereo
                at any rate, or the path of a sound file. Pass one for all rows, or a list with one per row. A waveform
                can have a row axis ("row channel sample"). Codes "row codebook frame" are also accepted. The audio
                prompt is part of `out.codes` and, after decoding, of `out.audio`. The times of interventions and
                recordings are measured from the start of the audio prompt.
            prefix: also record the conditioning before step 0; see `run_with_cache`.
            seed: one seed for every row.
            max_new_tokens: the length of the clips in steps, as in transformers, instead of `seconds`. The number of
                frames is this number minus the tail (3 steps in the published models). For example, 53 steps give 50
                frames, which last one second.
            melody: not supported yet; clips are conditioned on text only.
            reading, sampling: a `Reading` replaces the recording arguments (its `seconds` corresponds to `span`). A
                `Sampling` replaces guidance_scale, temperature, top_k and, if it contains one, the length in seconds.
            engine: "exact" runs transformers under nnsight and is bit-identical to transformers. "fast" runs the plain
                decoder, which computes the same function but rounds differently in the last bits. A code can therefore
                flip where two codes are almost equally likely. "auto" generates the first batch with both engines, and
                the other batches with the fast one if all codes of the first are equal. It generates a single batch
                with the exact engine. `out.settings["engine"]` states the engine that was used. Without seeds only the
                exact engine is possible. The function of an `Apply` is called once per step and branch by the fast
                engine. transformers computes the first step of MusicGen twice, and so calls it once more.
            window: generate a clip that is longer than this in windows of this many seconds. Each window reads the end
                of the previous one again, and continues it. All times (spans, schedules, recordings) and the noise of
                a row count from the beginning of the clip, and each step of the clip is recorded once. A window reads
                nothing before its beginning, so attention patterns of such clips can be neither recorded nor changed.
            overlap: how many seconds of the previous window each window reads (default: two fifths of a window).

        Raises:
            InputError: (or a subclass) before the model runs, if an argument is out of range, or if a setting of
                `model.generation_config` would change the sampling (which must depend only on the arguments).
            ActivationOverflow: during the run, if interventions, or the model itself, make logits infinite or NaN.
        """
        refuse_melody(melody)
        sampling = sampling or Sampling(guidance_scale, temperature, top_k)
        length = chosen_seconds(self.config, seconds, max_new_tokens, audio_prompt)
        return drawn(
            self._traced_model,
            prompts,
            length if sampling.seconds is None else sampling.seconds,
            reading or Reading(sites, layers, branch, span, reduce, cache_device, cache_dtype, heads, prefix),
            sampling,
            audio_prompt=audio_prompt,
            seeds=chosen_seeds(seeds, seed),
            exact=exact,
            interventions=interventions,
            batch_size=batch_size,
            decode=decode,
            use_cache=use_cache,
            progress=progress,
            engine=engine,
            window=window,
            overlap=overlap,
        )

    @takes("reading", Reading, spread=False, sites=("sites", "names_filter"), seconds=("seconds", "span"))
    def run_with_cache(
        self,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        *,
        audio: AudioSource | None = None,
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
        span: Span | None = None,
        reading: Reading | None = None,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
    ) -> tuple[Float[Tensor, "..."], ActivationCache]:
        """Run one forward pass over given codes, and record the activations at `sites`.

        Args:
            codes: undelayed codes, one row per prompt. With `None`, the model reads only the start token (step 0).
            audio: (waveform, sample rate) or the path of a sound file, instead of codes.
            sites: the sites to record; `[]` returns the logits with an empty cache.
            branch: the branch whose logits and activations are returned; "both" adds a leading axis to each tensor.
            seconds, span: two names for a time interval (from, to) in seconds; only its steps are recorded. The logits
                always cover all steps.
            reduce: "mean", "last" or "max" over the steps (without the tail). In a model whose text is part of the
                decoder's own sequence (MusicGen Melody), "eos" selects the last token of the text.
            prefix: also record the conditioning before step 0 (MusicGen Melody), in the shape "row prefix+step ...".
                The step axis then begins at a negative step, `cache.first_step`. Shorter prefixes are left-padded with
                zeros, and `cache.prefixes` contains the length of each row's prefix.
            melody: not supported yet; the model is conditioned on text only.
            heads: at sites with a head axis (including patterns and results), record and recompute only these heads.
            stop_at_layer: run only the blocks before this one (0 to n_layers; a negative number counts from the end).
                `layers=None` then records every block that runs, and interventions at later sites are ignored.
            names_filter: TransformerLens's name for `sites`, which can also be a function that selects full names.
                Selected sites that the run does not reach because of `stop_at_layer` are not recorded.

        Returns:
            The logits of the branch before guidance, "row codebook step vocab", and the cache. Step s predicts frame s
            of codebook 0 and frame s - k of a codebook delayed by k. With `stop_at_layer`, the logits are replaced by
            the residual stream at the input of that block, "row step d_model", as in TransformerLens.

        Raises:
            InputError, InputTypeError: before the model runs, if an argument does not fit this model or the clip.
                Examples are a `SiteError` for an unknown site or layer, and a `PromptError` for an invalid prompt.
            ActivationOverflow: during the run, if interventions make activations infinite or NaN.
            BusyError: if an enclosing call is already running this model.
        """
        refuse_melody(melody)
        sites = chosen_sites(self, sites, layers, names_filter, stop_at_layer)
        loose = sites, layers, branch, one_span(seconds, span), reduce, device, dtype, heads, prefix
        return Forward.checked(
            self._traced_model,
            prompts,
            codes,
            reading or Reading(*loose),
            audio=audio,
            guidance_scale=guidance_scale,
            interventions=interventions,
            batch_size=batch_size,
            stop_at_layer=stop_at_layer,
        ).whole()

    @takes("reading", Reading, spread=False, seconds=("seconds", "span"))
    def iter_cache(
        self,
        prompts: Prompt | Sequence[Prompt],
        codes: Int[Tensor, "row codebook frame"] | None = None,
        *,
        audio: AudioSource | None = None,
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
        span: Span | None = None,
        reading: Reading | None = None,
    ) -> Iterator[ActivationCache]:
        """Yield the cache of `run_with_cache` for each batch of rows in order; `cache.prompts` are the rows' prompts.

        Only one batch is in memory at a time. With `reduce`, the individual steps are not stored. Logits are not
        computed, and blocks above the last recorded one do not run. The model can be used for other runs between
        batches.
        """
        loose = sites, layers, branch, one_span(seconds, span), reduce, device, dtype, heads, prefix
        return Forward.checked(
            self._traced_model,
            prompts,
            codes,
            reading or Reading(*loose),
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
        """Return the logits of one forward pass over given codes under interventions; see `run_with_cache`.

        Returns:
            The logits of the branch before guidance, "row codebook step vocab". `branch="both"` adds a leading "branch"
            axis.

        Raises:
            InputError, InputTypeError, ActivationOverflow, BusyError: as for `run_with_cache`.
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
            f"AudioLens({shown(self.name)}: {config.family}, {config.n_layers} blocks, d_model {config.d_model}, "
            f"{config.n_codebooks} codebooks at {config.frame_rate:g} frames/s)"
        )
