"""The features of a probe: one vector per row, read from the model or (for baselines) computed from the sound alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float

from analysis.probing.dataset import Dataset
from audiolens.cache.activation_cache import ActivationCache
from audiolens.checks import numbers_of, shown
from audiolens.errors import InputError, SiteError, shortened
from audiolens.interventions import Branch
from audiolens.model.sites import Site, listed_layers, named
from audiolens.model.timeline import Span, checked_span

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

FeaturePosition = Literal["mean", "first", "last", "max", "eos"] | Span
Baseline = Literal["mel", "codec"]
_GUIDED = 3.0
_BANDS, _WINDOW, _HOPS, _LAG_SECONDS = 64, 1024, 50, 2


@dataclass(frozen=True)
class ProbedSite:
    """The site from which a vector was read, by short name, block and head.

    `layer` is `None` outside the blocks, and `head` is `None` for all heads together.
    """

    site: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        block = self.site if self.layer is None else f"block {self.layer}"
        return block if self.head is None else f"{block}, head {self.head}"


@dataclass(frozen=True, eq=False)
class Features:
    """One vector per `ProbedSite` and row. `lengths` are the mean norms of the activations over rows and steps."""

    values: Float[np.ndarray, "site row feature"]
    lengths: Float[np.ndarray, " site"]
    sites: tuple[ProbedSite, ...]
    site: str = "resid_post"

    def __repr__(self) -> str:
        return f"Features({len(self.sites)} layers or heads of {self.site}, {self.values.shape[1]} rows)"


def of_model(
    lens: AudioLens,
    data: Dataset,
    *,
    site: str = "resid_post",
    layers: int | Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    position: FeaturePosition = "mean",
    branch: Branch = "cond",
    batch_size: int = 16,
    progress: bool = False,
) -> Features:
    """Return one vector per `ProbedSite` and row. Only one batch and the result are in memory at a time.

    Raises:
        InputError: (or a subclass) if the model lacks the site, layer or head, or if the site has no vector per step.
            The error is raised before the model runs.
    """
    _check_site(lens, site)
    span, reduce = _reading(position, lens)
    if data.codes is None and position not in ("first", "eos"):
        raise InputError(
            f"position={shown(position)}: these rows have no codes, so only the start token is read: give codes or "
            "sounds, or use position='first'."
        )
    parts: list[Features] = []
    for cache in lens.iter_cache(
        data.prompts,
        data.codes,
        sites=site,
        layers=layers,
        heads=heads,
        branch=branch,
        guidance_scale=1.0 if branch == "cond" else _GUIDED,
        seconds=span,
        reduce=reduce,  # pyright: ignore[reportArgumentType]
        device="cpu",
        batch_size=batch_size,
        progress=progress,
    ):
        parts.append(of_cache(cache, site, each_head=heads is not None))
    rows = [part.values.shape[1] for part in parts]
    return Features(
        values=np.concatenate([part.values for part in parts], axis=1),
        lengths=np.average([part.lengths for part in parts], axis=0, weights=rows),
        sites=parts[0].sites,
        site=parts[0].site,
    )


def of_cache(cache: ActivationCache, site: str, each_head: bool | None = None) -> Features:
    """Return the vectors in a cache that was recorded with a reduction over time.

    Raises:
        InputError: if the cache was not reduced over time, or if the site was not recorded.
    """
    asked = named(site)
    short = asked.short
    names = [name for name in cache if name == asked.name or (asked.layer is None and Site.of(name).hook == asked.hook)]
    if not names:
        raise SiteError(f"site {shown(site)} was not recorded. Recorded: {shortened(cache.keys())}.")
    values, lengths, sites = [], [], []
    for name in names:
        axes = cache.axes[name]
        if "step" in axes or "query" in axes or "token" in axes:
            raise InputError(
                f"{name} was recorded with every step, {tuple(axes)}: record it with reduce='mean' (and seconds=)."
            )
        tensor, norms = cache[name].detach().float().cpu(), cache.norms.get(name)
        if "branch" in axes:
            tensor, axes = tensor.mean(0), axes[1:]
            norms = None if norms is None else norms.mean(0)
        layer = Site.of(name).layer
        own = cache.heads or range(tensor.shape[1])
        split = "head" in axes and (cache.heads is not None if each_head is None else each_head)
        flat = tensor if "head" not in axes else tensor.flatten(1)
        for index, head in enumerate(own) if split else [(0, None)]:
            mine = tensor[:, index] if split else flat
            values.append(mine.cpu().numpy())
            own_norms = mine.norm(dim=-1) if norms is None or norms.shape != mine.shape[:1] else norms
            lengths.append(float(own_norms.float().mean()))
            sites.append(ProbedSite(short, layer, head))
    return Features(np.stack(values), np.array(lengths), tuple(sites), short)


def of_array(array: Any, layers: int | Sequence[int] | None = None) -> Features:
    """Return the features from an array "layer row feature" (or "row feature" for one layer).

    Raises:
        InputError: if the array has another shape, or `layers` does not match it.
    """
    values = numbers_of("activations", array)
    values = values[None] if values.ndim == 2 else values
    numbers = tuple(range(len(values)) if layers is None else listed_layers(layers))
    if values.ndim != 3 or len(numbers) != len(values):
        raise InputError(f"activations of shape {values.shape} for layers {numbers}: expected 'layer row feature'.")
    lengths = np.linalg.norm(values, axis=-1).mean(1)
    return Features(values, lengths, tuple(ProbedSite("activations", layer) for layer in numbers), "activations")


def of_sound(lens: AudioLens, data: Dataset, baseline: Baseline, position: FeaturePosition = "mean") -> Features:
    """Return baseline features of the rows over the time span of `position`, computed from sound or codes alone.

    "codec" gives three statistics of the codec's own vectors over time: the mean, the standard deviation, and the mean
    absolute difference between frames. "mel" gives the same statistics of 64 mel bands in dB, and the autocorrelation
    of the onset strength at lags of up to two seconds (librosa).

    Raises:
        InputError: if the rows have no sound.
    """
    if data.codes is None or position in ("first", "eos"):
        raise InputError(f"baselines={shown(baseline)}: these rows are read before any sound: give baselines=().")
    span = position if isinstance(position, tuple) else None
    values = _codec(lens, data, span) if baseline == "codec" else _mel(lens, data, span)
    lengths = np.linalg.norm(values, axis=-1).mean(keepdims=True)
    return Features(values[None], lengths, (ProbedSite(baseline),), baseline)


def _codec(lens: AudioLens, data: Dataset, span: Span | None) -> Float[np.ndarray, "row feature"]:
    codes = data.codes
    assert codes is not None
    if span is not None:
        codes = codes[..., slice(*lens.timeline(codes.shape[-1]).select(span))]
    quantizer, channels = lens.model.audio_encoder.quantizer, lens.config.channels
    with torch.no_grad():
        sides = [
            quantizer.decode(codes[:, side::channels].transpose(0, 1).to(lens.device)).float().cpu()
            for side in range(channels)
        ]
    return _over_time(torch.cat(sides, dim=1).numpy())


def _mel(lens: AudioLens, data: Dataset, span: Span | None) -> Float[np.ndarray, "row feature"]:
    import librosa

    audio, rate = data.audio, data.sample_rate
    if audio is None or rate is None:
        assert data.codes is not None
        parts = [lens.decode_codes(part).float().mean(1).cpu() for part in data.codes.split(16)]
        audio, rate = torch.cat(parts).numpy(), lens.config.sample_rate
    if span is not None:
        audio = audio[:, round(span[0] * rate) : round(span[1] * rate)]
    hop, found = rate // _HOPS, []
    for sound in audio:
        power = librosa.feature.melspectrogram(y=sound, sr=rate, n_fft=_WINDOW, hop_length=hop, n_mels=_BANDS)
        decibels = librosa.power_to_db(power, amin=1e-8, top_db=None)
        onsets = librosa.onset.onset_strength(S=decibels, sr=rate, hop_length=hop)
        lags = librosa.autocorrelate(onsets - onsets.mean(), max_size=_LAG_SECONDS * _HOPS)
        rhythm = np.zeros(_LAG_SECONDS * _HOPS)
        rhythm[: len(lags)] = lags / max(float(lags[0]), 1e-9)
        found.append(np.concatenate([_over_time(decibels[None])[0], rhythm]))
    return np.stack(found)


def _over_time(values: Float[np.ndarray, "row band frame"]) -> Float[np.ndarray, "row feature"]:
    """Return every band's mean, standard deviation, and mean absolute difference between frames."""
    steps = np.abs(np.diff(values, axis=-1)).mean(-1) if values.shape[-1] > 1 else np.zeros(values.shape[:2])
    return np.concatenate([values.mean(-1), values.std(-1), steps], axis=1).astype(float)


def _reading(position: FeaturePosition, lens: AudioLens) -> tuple[Span | None, str]:
    if isinstance(position, tuple | list):
        return checked_span(position), "mean"
    if position == "first":
        # The first step, which has no music before it.
        return (0, 1 / lens.config.frame_rate), "mean"
    if position not in ("mean", "last", "max", "eos"):
        raise InputError(
            f"position={shown(position)}: expected 'mean', 'first', 'last', 'max', 'eos', or (from, to) in seconds."
        )
    return None, position


def _check_site(lens: AudioLens, site: str) -> None:
    if not isinstance(site, str):
        raise InputError(f"site={shown(site)}: expected one site; probe several sites in separate calls.")
    found = lens.find_sites(site)[0]
    if "step" not in found.axes or "codebook" in found.axes:
        raise InputError(
            f"site={shown(site)} is {lens.sites()[found.name]!r}: expected a site with one vector per step, such as "
            "'resid_post' or 'attn.z'."
        )
