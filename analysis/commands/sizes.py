"""Read a model's sizes from its `config.json`, to check layers, heads, sites and lengths before the model is opened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from analysis.commands.common import ModelOptions
from audiolens.checks import MOST_INDICES, shown
from audiolens.errors import InputError
from audiolens.files.bounded import read_object
from audiolens.model.known_models import CONFIG, folder_of
from audiolens.model.sites import checked_heads, counted, resolve

if TYPE_CHECKING:
    from audiolens import AudioLens


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model that arguments depend on, with the names and meanings of `LensConfig`.

    `architecture` is the name of the model's class in transformers.
    """

    architecture: str
    n_layers: int
    n_heads: int
    max_steps: int
    frame_rate: float
    delays: tuple[int, ...]

    @classmethod
    def stated(cls, options: ModelOptions) -> Sizes | None:
        """Return the sizes in the configuration of a model, or `None` if it is not on this disk or states none.

        A configuration that is damaged, or of another kind of model, is reported when the model is opened.
        """
        path = _config_of(options)
        try:
            return None if path is None else cls._of(read_object(path))
        except (InputError, OSError, KeyError, TypeError, ValueError, ZeroDivisionError):
            return None

    @classmethod
    def _of(cls, config: dict[str, Any]) -> Sizes:
        decoder, codec = config["decoder"], config["audio_encoder"]
        channels, codebooks = int(decoder["audio_channels"]), int(decoder["num_codebooks"])
        found = cls(
            architecture=str(config["architectures"][0]),
            n_layers=int(decoder["num_hidden_layers"]),
            n_heads=int(decoder["num_attention_heads"]),
            max_steps=int(decoder["max_position_embeddings"]),
            # transformers rounds the rate up.
            frame_rate=float(-(-int(codec["sampling_rate"]) // math.prod(map(int, codec["upsampling_ratios"])))),
            delays=tuple(codebook // channels for codebook in range(min(codebooks, MOST_INDICES))),
        )
        if min(found.n_layers, found.n_heads, found.max_steps, len(found.delays), found.frame_rate) < 1:
            raise ValueError("no blocks, heads, positions, codebooks or frames")
        return found

    @classmethod
    def of(cls, lens: AudioLens) -> Sizes:
        """Return the sizes of an opened model."""
        config = lens.config
        return cls(
            lens.traced_model.family.architecture,
            config.n_layers,
            config.n_heads,
            config.max_steps,
            config.frame_rate,
            config.delays,
        )

    def check(
        self,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        seconds: float | None = None,
        window: float | None = None,
        overlap: float | None = None,
        site: str | None = None,
        per_step: bool = False,
        eos: bool = False,
    ) -> None:
        """Raise an error if the model lacks a layer, a head or a site, or cannot generate clips of this length.

        Args:
            window, overlap: the windows in which a clip is generated, as in `lens.generate`.
            per_step: whether the site must have one vector per step.
            eos: whether the end of the text is read in the decoder's own sequence.
        """
        for layer in layers or ():
            counted(layer, self.n_layers)
        if heads is not None:
            checked_heads(heads, self.n_heads)
        if site is None and seconds is None and not eos:
            return
        # These modules import torch.
        from audiolens.model.families import FAMILIES
        from audiolens.model.windows import clip_windows

        if seconds is not None:
            own: Any = self
            clip_windows(seconds, window, overlap, own)
        family = next((one for one in FAMILIES if one.architecture == self.architecture), None)
        if family is None:
            return
        if eos:
            from audiolens.tracing.recording import refuse_prefix

            stated: Any = SimpleNamespace(
                family=family.name, has_prefix=family.has_prefix, conditioning=family.conditioning
            )
            refuse_prefix(stated, "position='eos'", "Use 'first' or 'last'.")
        if site is not None:
            hooks, model_hooks = family.block_taps, family.model_taps
            found = resolve(site, None, hooks=hooks, model_hooks=model_hooks, n_layers=self.n_layers)
            axes = family.form(found[0].hook).axes
            if per_step and ("step" not in axes or "codebook" in axes):
                raise InputError(
                    f"site={shown(site)} has the axes {' '.join(axes)}: expected a site with one vector per step, such "
                    "as 'resid_post' or 'attn.z'."
                )
            if heads is not None and "head" not in axes:
                raise InputError(f"heads={list(heads)}: {site} has no heads; choose a site that has, such as attn.z.")


def _config_of(options: ModelOptions) -> Path | None:
    folder = folder_of(options.model)
    if folder is not None:
        return folder / CONFIG
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(options.model, CONFIG, revision=options.revision)
    return Path(found) if isinstance(found, str) else None
