"""Directions of the method "gradient": generate the clips of both poles, train a vector per layer, and judge it."""

from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.directions.evidence import Evidence, measured
from audiolens.directions.gradient import Clips, Trained, Training, train
from audiolens.directions.pole_reader import PoleReader
from audiolens.directions.samples import Samples
from audiolens.errors import InputError
from audiolens.lens import AudioLens
from audiolens.vectors import unit

_DEFAULTS = {
    name: one.default
    for name, one in signature(difference_in_means).parameters.items()
    if one.default is not one.empty and name not in ("label", "keep_samples")
}
"""The arguments of a `PoleReader`, with the defaults of `difference_in_means`."""


def trained(
    lens: AudioLens,
    positive: Sequence[str | None] | None,
    negative: Sequence[str | None] | None,
    training: Training,
    reading: dict[str, Any],
) -> Directions:
    """Train one vector per layer on the clips of both poles; see `audiolens.directions.gradient`.

    The samples and the residual norms are read from the same clips. The evidence is that of the held-out pairs: the
    vector was trained once, so there are no halves to compare, and `split_half_cosine` and `stability` are NaN.

    Raises:
        InputError: (or a subclass) before the model runs, if the poles share their clips, or have fewer than two pairs.
    """
    if positive is None or negative is None:
        raise InputError("method='gradient' needs the prompts of both poles.")
    asked = {**_DEFAULTS, **{name: value for name, value in reading.items() if name in _DEFAULTS}}
    reader = PoleReader(lens, positive, negative, **asked)
    reader.check_text()
    if reader.position not in ("mean", "last") and isinstance(reader.position, str):
        raise InputError(f"method='gradient' is trained on clips, and position={reader.position!r} needs none.")
    if reader.clips is not None or (reader.codes is not None and torch.equal(*reader.codes)):
        raise InputError(
            "method='gradient' learns what tells the poles' clips apart, and here both poles have the same clips: give "
            "codes='own', or a pair of codes or sounds."
        )
    # The number of pairs is checked before anything is generated.
    training.held_pairs(max(len(reader.positive), len(reader.negative)))
    codes = reader.codes if reader.codes is not None else _generated(reader)
    # Given codes are read in forward passes, so the generated clips are not generated again.
    left = {name: value for name, value in reading.items() if name not in ("codes", "audio", "seeds", "neutral")}
    read = difference_in_means(lens, positive, negative, **left, codes=codes, keep_samples=True)
    clips = Clips.of(reader.positive, reader.negative, codes)
    width, sites = read.vectors.shape[1], lens.find_sites(reader.site, list(reader.layers))
    found = [
        train(lens, clips, site, width, training.max_norm * float(read.norms[index]), training, reader.progress)
        for index, site in enumerate(sites)
    ]
    vectors = torch.stack([one.vector for one in found])
    if not vectors.any():
        raise InputError("training made the held-out clips no likelier at any layer: give more prompts, or more steps.")
    assert read.samples is not None
    meta = replace(
        read.meta,
        estimator="gradient",
        source=reader.source,
        seeds=reader.played_seeds,
        seconds=float(reader.seconds) if reader.plays else None,
        options={
            "steps": ", ".join(str(one.steps) for one in found),
            "held-out nats": ", ".join(f"{one.before:.4f} to {one.after:.4f}" for one in found),
            "max_norm": f"{training.max_norm:g}", "learning_rate": f"{training.learning_rate:g}",
        },
    )  # fmt: skip
    return replace(read, vectors=vectors, meta=meta, evidence=_evidence(read.samples, vectors, found))


def _generated(reader: PoleReader) -> tuple[Tensor, Tensor]:
    sides = []
    for prompts in (reader.positive, reader.negative):
        out = reader.lens.generate(
            list(prompts), reader.seconds, seeds=list(reader.seeds[: len(prompts)]),
            guidance_scale=reader.guidance_scale, batch_size=reader.batch_size, decode=False, progress=reader.progress,
        )  # fmt: skip
        sides.append(out.codes.cpu())
    return sides[0], sides[1]


def _evidence(samples: Samples, vectors: Tensor, found: list[Trained]) -> Evidence:
    """Judge the vectors by held-out clips: their projections, and by how much they became likelier."""
    held = torch.tensor(found[0].held, device="cpu")
    scores = torch.einsum("lpd,ld->lp", samples.values[:, held].double(), unit(vectors.double()))
    positive, unknown = samples.labels[held], torch.full_like(vectors, torch.nan).double()
    trained_on = int(samples.labels.sum()) - int(positive.sum())
    judged = measured(
        scores[:, positive], scores[:, ~positive], vectors.double(), unknown, {max(1, trained_on): vectors.double()}
    )
    return replace(judged, gain=torch.tensor([one.before - one.after for one in found], device="cpu"))
