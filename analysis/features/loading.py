"""Read sparse autoencoders in the file format of SAELens (`files.py` describes it), and refuse what does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load as tensors_of

from analysis.features.described import CONFIG, WEIGHTS, check_sae
from analysis.features.files import OWN
from analysis.features.sae import SAE, heads_at
from audiolens.checks import checked_flags, checked_text, shown
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.files import integrity
from audiolens.files.atomic import as_path, refuse_links
from audiolens.files.bounded import read_bytes, read_object
from audiolens.files.json_shapes import refuse_other
from audiolens.model.provenance import SHAPE, Provenance
from audiolens.model.sites import Site, counted, hooked, named

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

_OWN = {
    "kind": str, "weights": str, "meta": SHAPE, "residual_norm": (float, None), "scores": {str: float},
}  # fmt: skip
_SHAPE = {
    "architecture": str, "d_in": int, "d_sae": int, "k?": (int, float), "apply_b_dec_to_input?": (bool, None),
    "normalize_activations?": (str, bool, None), "rescale_acts_by_decoder_norm?": (bool, None),
}  # fmt: skip
_NONE = (None, False, "none", "expected_average_only_in")
"""Normalisations that are part of the weights once a SAE is trained."""


@guarded
def load(
    path: str | os.PathLike[str],
    *,
    lens: AudioLens | None = None,
    site: str | None = None,
    layer: int | None = None,
    revision: str | None = None,
    verify: bool = True,
) -> SAE:
    """Read a sparse autoencoder in the file format of SAELens.

    Args:
        path: a folder with `cfg.json` and `sae_weights.safetensors`, or a hub name "owner/name", or "owner/name/folder"
            for a folder in a repository.
        lens: the model that the SAE must fit: its weights, if audiolens trained the SAE, and otherwise its name and
            width.
        site, layer: where the SAE reads, if the file names a hook of another program.
        revision: the branch, tag or commit of a hub repository.
        verify: compare the weights with the hash that audiolens wrote.

    Raises:
        InputError: if a file is missing or cannot be read, if the architecture is not supported, if the SAE does not
            fit the lens, or if another site than that of an SAE of audiolens is given.
        SiteError: if the file names a hook that audiolens does not have, and no site is given.
        DamagedError: (an InputError) if the weights are not those that audiolens wrote.
    """
    checked_flags(verify=verify)
    if revision is not None:
        checked_text("revision", revision)
    folder = _folder(as_path(path), revision)
    facts = _plain(read_object(folder / CONFIG), folder / CONFIG)
    refuse_other(folder / CONFIG, facts, _SHAPE)
    metadata = facts["metadata"]
    own = metadata.get(OWN)
    if own is not None:
        refuse_other(folder / CONFIG, own, _OWN)
    content = read_bytes(folder / WEIGHTS)
    if own is not None and verify:
        content = integrity.check_bytes(folder / WEIGHTS, own["weights"])
    try:
        tensors = tensors_of(content)
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS} is not a complete safetensors file: {error}.") from None
    hook, block = _place(folder, metadata, site, layer)
    if own is not None:
        stated = _place(folder, metadata, None, None)
        if (hook, stated[1] if block is None else block) != stated:
            raise InputError(f"{folder} states that this SAE reads {Site(*stated).name}: leave out site= and layer=.")
        hook, block = stated
    if lens is not None and block is not None:
        block = counted(block, lens.config.n_layers)
    model = str(metadata.get("model_name") or "")
    meta = Provenance.from_dict(own["meta"]) if own else None
    if meta is None and lens is not None:
        kind = f"sparse autoencoder ({facts['architecture']})"
        meta = Provenance(
            model=model or lens.name, weights="", n_layers=lens.config.n_layers, site=hook, estimator=kind,
            source="another program", n_heads=heads_at(lens, Site(hook, block)),
        )  # fmt: skip
    sae = _made(folder, facts, tensors, hook, block, model, own, meta)
    if lens is not None:
        sae.refuse_other(lens, named=own is None)
    return sae


def _made(
    folder: Path,
    facts: Mapping[str, Any],
    tensors: dict[str, Any],
    hook: str,
    block: int | None,
    model: str,
    own: Mapping[str, Any] | None,
    meta: Provenance | None,
) -> SAE:
    """Return the SAE of checked facts and unchecked tensors."""
    architecture = facts["architecture"]
    if "log_threshold" in tensors:
        tensors["threshold"] = tensors.pop("log_threshold").exp()
    wanted = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if architecture == "jumprelu" else [])]
    if missing := [name for name in wanted if name not in tensors]:
        raise InputError(
            f"{folder / WEIGHTS} has no {missing[0]}: expected {', '.join(wanted)} of a {architecture} SAE."
        )
    weights = {name: tensors[name] for name in wanted}
    if tuple(weights["W_enc"].shape) != (facts["d_in"], facts["d_sae"]):
        raise InputError(
            f"{folder}: W_enc has shape {tuple(weights['W_enc'].shape)}, but {CONFIG} states d_in={facts['d_in']} and "
            f"d_sae={facts['d_sae']}."
        )
    if facts.get("rescale_acts_by_decoder_norm") and tuple(weights["W_dec"].shape) == (facts["d_sae"], facts["d_in"]):
        # Scaled by the decoder's norms, the same latents are chosen and add the same, and the decoder has norm 1.
        norms = weights["W_dec"].float().norm(dim=-1).clamp_min(1e-8)
        weights["W_enc"], weights["b_enc"] = weights["W_enc"].float() * norms, weights["b_enc"].float() * norms
        weights["W_dec"] = weights["W_dec"].float() / norms[:, None]
    norm = None if own is None else own["residual_norm"]
    return SAE(
        **weights,
        activation=architecture,
        site=hook,
        layer=block,
        k=int(facts["k"]) if architecture == "topk" else None,
        subtracts=facts.get("apply_b_dec_to_input") is not False,
        kind=architecture if own is None else own["kind"],
        model=model,
        meta=meta,
        residual_norm=float("nan") if norm is None else norm,
        scores={} if own is None else own["scores"],
    )


def _plain(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the facts of any version of the format under the names of the present one, or refuse the file."""
    facts = dict(found)
    if not isinstance(facts.get("metadata"), dict):
        # Before 6.0, the entries of the metadata were at the top level.
        former = {"model_name": "model_name", "hook_name": "hook_name", "hook_point": "hook_name"}
        facts["metadata"] = {now: facts[name] for name, now in former.items() if name in facts}
        kwargs = facts.get("activation_fn_kwargs")
        if "topk" in (facts.get("activation_fn_str"), facts.get("activation_fn")) and isinstance(kwargs, dict):
            facts |= {"architecture": "topk", "k": kwargs.get("k")}
        facts.setdefault("architecture", "standard")
    architecture = facts.get("architecture")
    if architecture not in ("topk", "jumprelu", "standard"):
        raise InputError(
            f"{path} is of architecture {shown(architecture)}: expected topk, jumprelu (also what SAELens writes for "
            "BatchTopK) or standard."
        )
    k = facts.get("k")
    if architecture == "topk" and not (isinstance(k, int) or isinstance(k, float) and k.is_integer()):
        raise InputError(f"{path} states k={shown(k)}: expected the number of active latents of a topk SAE.")
    if facts.get("normalize_activations") not in _NONE:
        raise InputError(
            f"{path}: normalize_activations={shown(facts['normalize_activations'])} is not supported: expected 'none', "
            "or an SAE whose weights contain the normalisation."
        )
    return facts


def _place(folder: Path, metadata: Mapping[str, Any], site: str | None, layer: int | None) -> tuple[str, int | None]:
    """Return the hook and the block at which a SAE reads: those given, or those stated."""
    if site is not None:
        found = named(site)
        return found.hook, found.layer if layer is None else layer
    stated = metadata.get("hook_name")
    found = Site.of(stated) if isinstance(stated, str) else None
    if found is None or not found.hook.rpartition(".")[2].startswith("hook_"):
        raise InputError(
            f"{folder / CONFIG} names the hook {shown(stated)}, which is not a site: give site= and layer=, such as "
            "site='resid_post', layer=3."
        )
    return hooked(found.hook), found.layer if layer is None else layer


def _folder(path: Path, revision: str | None) -> Path:
    """Return the folder of a SAE, after downloading it if it is on the hub."""
    if check_sae(path):
        refuse_links(path)
        if revision is not None:
            raise InputError(f"revision={shown(revision)}: only SAEs on the hub have revisions; leave it out.")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    parts = path.as_posix().split("/")
    repository, inside = "/".join(parts[:2]), "/".join(parts[2:]) or None
    try:
        files = [Path(hf_hub_download(repository, name, subfolder=inside, revision=revision))
                 for name in (CONFIG, WEIGHTS)]  # fmt: skip
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(f"{path} is no folder here, and could not be fetched from the hub ({reason}).") from None
    return files[0].parent
