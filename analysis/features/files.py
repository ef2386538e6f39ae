"""Write sparse autoencoders in the file format of SAELens: `cfg.json` and `sae_weights.safetensors`.

The weights file contains the tensors `W_enc` (d_in, d_sae), `b_enc` (d_sae), `W_dec` (d_sae, d_in), `b_dec` (d_in) and,
for "jumprelu", `threshold` (d_sae). The JSON file states `architecture` ("topk", "jumprelu" or "standard"), `d_in`,
`d_sae`, `dtype`, `device`, `apply_b_dec_to_input`, `normalize_activations`, `reshape_activations`, for "topk" `k` and
`rescale_acts_by_decoder_norm`, and `metadata` with `model_name`, `hook_name` and anything else. audiolens adds one
entry to `metadata`, its provenance with a hash of the weights. Files of SAELens before 6.0 state all of this at the top
level, with `activation_fn_str` and `activation_fn_kwargs`. (SAELens 6.54, https://github.com/decoderesearch/SAELens.)
"""

from __future__ import annotations

import json
import os
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from analysis.features.described import CONFIG, WEIGHTS
from audiolens.files import integrity
from audiolens.files.atomic import as_path, new_folder, refused

if TYPE_CHECKING:
    from analysis.features.sae import SAE

VERSION = "6.0.0"
"""The version of the format. SAELens reads a file that states no version as one from before 6.0, and drops its
metadata."""
OWN = "audiolens"
"""The entry of `metadata` with the provenance."""


def save(sae: SAE, folder: str | os.PathLike[str]) -> Path:
    """Write a SAE into a new folder.

    Raises:
        InputError: if the folder exists and is not empty, or cannot be written.
    """
    place = as_path(folder)
    with refused(place):
        place.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(place) as work:
            write(sae, work)
    return place


def write(sae: SAE, folder: Path) -> None:
    """Write the two files into an existing folder."""
    tensors = {name: getattr(sae, name).cpu().contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.cpu().contiguous()
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config(sae, integrity.digest((folder / WEIGHTS).read_bytes())), indent=1))


def config(sae: SAE, weights: str) -> dict[str, Any]:
    """Return the contents of `cfg.json`; `weights` is the hash of the weights file."""
    meta = sae.meta
    metadata: dict[str, Any] = {
        "sae_lens_version": VERSION, "model_name": sae.model, "hook_name": sae.name, "hook_layer": sae.layer,
    }  # fmt: skip
    if meta is not None:
        norm = sae.residual_norm
        # JSON has no NaN.
        scores = {name: value for name, value in sae.scores.items() if isfinite(value)}
        own = {"kind": sae.kind, "weights": weights, "meta": meta.as_dict(), "scores": scores}
        metadata[OWN] = {**own, "residual_norm": norm if isfinite(norm) else None}
    return {
        "architecture": sae.activation,
        "d_in": sae.d_in,
        "d_sae": sae.width,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.subtracts,
        "normalize_activations": "none",
        "reshape_activations": "hook_z" if sae.site.endswith("_z") else "none",
        **({"k": sae.k, "rescale_acts_by_decoder_norm": False} if sae.k is not None else {}),
        "metadata": metadata,
    }
