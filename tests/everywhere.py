"""The names of all sites, and prompts and codes for running the small models."""

from collections.abc import Sequence
from typing import Any

import torch

from audiolens.model.site_access import Tap
from audiolens.model.sites import Site

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS = 0.6
STEPS = 15 + 3

IN_BLOCK = [
    *("resid_pre", "ln1.normalized", "attn.q", "attn.k", "attn.v", "attn.pattern", "attn.z", "attn.result"),
    *("attn_out", "resid_mid", "cross_attn.q", "cross_attn.k", "cross_attn.v", "cross_attn.pattern", "cross_attn.z"),
    *("cross_attn.result", "cross_attn_out", "resid_cross", "mlp.pre", "mlp.post", "mlp_out", "resid_post"),
]
WHOLE = ["text_states", "embed", "pos_embed", "ln_final.normalized", "logits"]


def full(site: str) -> str:
    """The full name of a site, in block 1 where it is in a block."""
    group, _, leaf = site.rpartition(".")
    hook = f"{group}.hook_{leaf}" if group else f"hook_{leaf}"
    return hook if site in WHOLE else f"blocks.1.{hook}"


SITES = [full(site) for site in (*IN_BLOCK, *WHOLE)]


def tap_of(lens: Any, site: str) -> Tap:
    """Where the model reads and writes a site, given its full name or (in block 1) its short form."""
    return lens.traced_model.family.tap(Site.of(full(site) if site in (*IN_BLOCK, *WHOLE) else site))


def random_codes(lens: Any, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 32, (3, lens.config.n_codebooks, 15), generator=generator)


def least_lead(out: Any, delays: Sequence[int], guidance_scale: float = 3.0) -> float:
    """By how much a greedy generation's code leads the next likeliest, where it does so least: kernels of another shape
    may choose otherwise where that is nothing. `out` has recorded the logits of both branches."""
    frames = out.codes.shape[-1]
    cond, null = out.cache["hook_logits"][..., -frames - max(delays) :, :]
    guided = null + guidance_scale * (cond - null)
    best = torch.stack([guided[:, k, shift : shift + frames] for k, shift in enumerate(delays)]).topk(2).values
    return float((best[..., 0] - best[..., 1]).min())
