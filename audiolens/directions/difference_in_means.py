"""Difference in means: read the activations under the prompts of two poles, and subtract their means."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from audiolens.checks import checked_flags, checked_text, shown
from audiolens.directions.directions import Directions
from audiolens.directions.evidence import Contrast
from audiolens.directions.heads import heads_of
from audiolens.directions.labelling import Target
from audiolens.directions.pole_reader import Codes, CodesSource, PoleReader, Position
from audiolens.directions.samples import Samples
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.interventions import Branch
from audiolens.lens import AudioLens
from audiolens.model import provenance
from audiolens.model.provenance import Provenance
from audiolens.model.tokens import named_once
from audiolens.tracing.noise import NOISE


@guarded
@named_once
def difference_in_means(
    lens: AudioLens,
    positive: Sequence[str | None],
    negative: Sequence[str | None],
    site: str = "resid_post",
    position: Position = "mean",
    branch: Branch = "cond",
    guidance_scale: float = 3.0,
    codes: CodesSource | Codes | tuple[Codes, Codes] | None = None,
    audio: Any = None,
    seeds: int | Sequence[int] | None = None,
    seconds: float = 2.0,
    batch_size: int = 32,
    layers: int | Sequence[int] | None = None,
    label: str = "",
    keep_samples: bool = False,
    progress: bool = True,
    prefix: bool = False,
    neutral: Sequence[str | None] | None = None,
) -> Directions:
    """Return the mean activation under positive prompts minus the mean under negative prompts, at every layer.

    The method is that of Marks and Tegmark (2023) and, for music, Facchiano et al. (2025, arXiv 2504.04479), who read
    the activations at the end of the text. By default, activations are read while one clip per prompt is generated,
    with seed i for prompt i of each pole. The music of the two poles then differs in more than the concept
    (instruments, decay, loudness), and these differences enter the direction. With `codes="shared"`, the model instead
    runs on the same clips of neutral prompts for both poles, so only the text differs. Prefer this setting for
    steering. With a `codes` tensor or `audio`, the model runs on that music. Means are computed from running sums, so
    memory use depends only on the batch size and the codes (a few kB per clip).

    Args:
        positive, negative: the prompts of the poles; `None` means no prompt (for poles that differ in their music).
        site: a site with one vector per step in every block, or with one per step and head ("attn.z", "cross_attn.z").
            At a site with heads, every head is also probed (`d.heads`), and `steer(strategy="heads")` can choose among
            them.
        position: "mean" averages over all steps except the tail (the last steps, which only complete the delayed
            codebooks). "first" reads the start token, which depends on the text alone, so nothing is generated. "last"
            reads the last step, and (from, to) averages over a time range in seconds. "eos" reads the last token of the
            text, if the text is part of the decoder's own sequence (MusicGen Melody). This is our interpretation of the
            position used in the paper.
        branch: the guidance branch that is read; "both" averages the conditional and the null branch.
        guidance_scale: the guidance scale of the generated clips.
        codes: "own" (the default): each prompt generates its own clip. "shared": clips of the neutral prompts are
            generated once, and the model runs on clip i for prompt i of both poles. If the poles have different numbers
            of prompts, the model runs on several of these clips for each prompt, so that every clip has the same weight
            in both poles. For self-attention heads ("attn.z"), prefer "own": on shared clips, both poles have the same
            music, and steering those heads moved tempo the wrong way (docs/steering.md). Otherwise, give a tensor of
            codes with one row per prompt, used for both poles, or a pair of tensors (positive pole, negative pole).
        audio: (waveform, sample rate) instead of codes, or a pair of such tuples (positive pole, negative pole).
        seeds: the seed of prompt i of each pole, or of the i-th shared clip; 0, 1, 2, ... by default.
        seconds: the length of the generated clips.
        layers: the blocks to read; `None` means every block.
        label: the name of the direction, such as `sets.concept`.
        keep_samples: store one vector per prompt and layer (4 x d_model x layers x prompts bytes), which `shuffled`
            needs.
        prefix: include the conditioning before step 0 in the "mean", if it is part of the decoder's own sequence.
        neutral: the prompts of the shared clips, used in cyclic order, such as `sets.development`. Do not use test
            prompts as neutral prompts. Neutral prompts are ignored at the positions "first" and "eos", for which
            nothing is generated.

    Raises:
        InputError: (or a subclass) before the run, if a pole is empty, a prompt is in both poles, the two poles have
            the same tokens, or the model does not have the site or position; after the run, if the direction is 0 at
            every layer.
    """
    checked_flags(keep_samples=keep_samples)
    checked_text("label", label)
    reader = PoleReader(
        lens, positive, negative, site=site, layers=layers, position=position, branch=branch,
        guidance_scale=guidance_scale, codes=codes, audio=audio, seeds=seeds, seconds=seconds, batch_size=batch_size,
        progress=progress, prefix=prefix, neutral=neutral,
    )  # fmt: skip
    reader.check_text()
    found = read_poles(lens, reader, label, keep_samples)
    if not found.vectors.any():
        raise InputError(
            f"the direction is 0 at every layer, because the poles have the same mean at site {reader.site}, position "
            f"{shown(reader.position)} and branch {reader.branch!r}. Read another site, position or branch, or give "
            "other prompts."
        )
    return found


def read_poles(lens: AudioLens, reader: PoleReader, label: str, keep_samples: bool) -> Directions:
    """Read both poles and return their difference in means, even if the difference is zero."""
    contrast = Contrast(len(reader.negative), len(reader.positive))
    kept: Tensor | None = None
    for batch in reader:
        contrast.add(batch.values, batch.norms, batch.positive)
        if keep_samples or reader.n_heads:
            if kept is None:
                kept = batch.values.new_zeros(len(batch.values), len(reader.prompts), batch.values.shape[-1])
            kept[:, batch.index] = batch.values
    samples, meta, norms = None, _meta(lens, reader, label), contrast.residual_norms()
    if kept is not None:
        labels = torch.arange(len(reader.prompts), device="cpu") < len(reader.positive)
        samples = Samples(kept, labels, reader.layers, reader.prompts, meta, norms.float())
    vectors, heads = contrast.difference(), None
    if reader.n_heads and samples is not None and bool(torch.isfinite(samples.values).all()):
        heads = heads_of(samples, Target.of(samples), vectors, reader.n_heads)
    return Directions(
        vectors=vectors,
        layers=reader.layers,
        residual_norms=norms,
        meta=meta,
        evidence=contrast.evidence(),
        samples=samples if keep_samples else None,
        heads=heads,
    )


def _meta(lens: AudioLens, reader: PoleReader, label: str) -> Provenance:
    return provenance.of_lens(
        lens,
        site=reader.site,
        position=reader.position,
        prefix=reader.prefix,
        branch=reader.branch,
        guidance_scale=float(reader.guidance_scale),
        source=reader.source,
        seconds=float(reader.seconds) if reader.plays else None,
        seeds=reader.played_seeds,
        neutral=provenance.prompts_hash(reader.neutral) if reader.neutral else "",
        noise=NOISE if reader.plays else "",
        n_prompts=(len(reader.positive), len(reader.negative)),
        prompts=provenance.prompts_hash(reader.positive, reader.negative),
        label=label,
        n_heads=reader.n_heads,
    )
