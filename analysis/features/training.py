"""Train a sparse autoencoder on the activations of a site, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.features import checkpoint, described, files
from analysis.features.described import CHECKPOINT, MOST_VECTORS, STATE, TRAINING
from analysis.features.interrupts import deferred
from analysis.features.learning import Kind, Learner
from analysis.features.loading import load
from analysis.features.sae import SAE, features_at
from analysis.features.scoring import score
from analysis.features.source import Source, of_clips, of_harvest, spread
from analysis.harvest.opened import Harvest
from analysis.store.resumable import UNHELD, Held, drop
from audiolens.checks import checked_amount, checked_count, checked_flags, checked_seed, shown
from audiolens.door import guarded
from audiolens.errors import DamagedError, InputError, SiteError
from audiolens.files.atomic import as_path, aside, settle
from audiolens.model.sites import Site
from audiolens.model.text import Prompt
from audiolens.model.tokens import named_once
from audiolens.model.weight_hash import weights_hash
from audiolens.tracing.sampling import SECONDS

if TYPE_CHECKING:
    from audiolens.lens import AudioLens

WIDER = 8
"""The default number of latents per feature of the site."""
_FIRST = 4096
"""The number of vectors to which a new SAE is fitted before it is trained."""
_SCORED = 64
"""The most held-out clips that a finished SAE is scored on."""
_NORMED = 4
"""The most units from which the mean norm of the activations is computed."""
_TOLD_EVERY = 20
_REMEDY = "use the settings that it was begun with."


@guarded
@named_once
def train(
    lens: AudioLens,
    data: Prompt | Sequence[Prompt] | Harvest,
    *,
    site: str = "resid_post",
    layer: int | None = None,
    kind: Kind = "topk",
    width: int | None = None,
    k: int = 32,
    codes: Int[Tensor, "row codebook frame"] | None = None,
    seeds: int = 1,
    seconds: float = SECONDS,
    guidance_scale: float = 3.0,
    n_vectors: int = 2_000_000,
    batch_size: int = 512,
    learning_rate: float | None = None,
    held_out: float = 0.1,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    reading_batch: int = 32,
    progress: bool = True,
) -> SAE:
    """Train a sparse autoencoder on the activations of one site, and score it on clips that were held out.

    Args:
        data: prompts, whose clips are generated (or given as `codes`) and read by the lens, or a harvest's folder,
            opened. Every step of the conditional branch is a vector.
        site, layer: the site, with one vector per step, and its block. At a site with heads, all heads together.
        kind: "topk" (k latents in every vector), "batchtopk" (k on average) or "jumprelu" (a threshold per latent,
            trained so that k are active on average). SAELens's name for trained "batchtopk" is "jumprelu".
        width: number of latents (default: 8 per feature).
        k: number of active latents per vector.
        codes: clips to read instead of generating them, one per prompt.
        seeds, seconds, guidance_scale: the number of clips per prompt, and how they are generated.
        n_vectors: number of vectors to train on. Clips are used again in every epoch.
        batch_size: number of vectors per step.
        learning_rate: of Adam (default: 0.001 for up to 2048 latents, and less for more, with the square root).
        held_out: share of the prompts (of the clips, if there are fewer than ten prompts) that are not trained on. With
            0, the SAE has no scores.
        seed: of the first weights and the order of the vectors.
        out: a folder to write. The same call resumes a training run that was stopped, and gives the same SAE. A
            finished one is opened.
        checkpoint_every: number of steps between two checkpoints in that folder.
        reading_batch: number of clips that the lens reads at once.
        progress: show a progress bar, with the share of variance not explained and the number of active latents.

    Raises:
        InputError: (or a subclass) before a model runs, if values are out of range, if the harvest is of another model,
            or if the folder contains anything else than this training run.
        BusyError: if another process is training in the folder.
        StoppedError: if the folder was removed in the meantime.
    """
    checked_flags(progress=progress)
    place = None if out is None else as_path(out)
    if place is not None:
        described.check(place)
    settings = _Settings.of(kind, width, k, n_vectors, batch_size, learning_rate, seed, checkpoint_every)
    held_out = checked_amount("held_out", held_out)
    if not 0 <= held_out < 1:
        raise InputError(f"held_out={held_out}: expected a share of at least 0 and below 1.")
    if isinstance(data, Harvest):
        if codes is not None:
            raise InputError("codes= and a harvest were both given: a harvest has its own clips.")
        source = of_harvest(lens, data, site, layer, held_out, settings.seed)
    else:
        found = lens.find_sites(site, layer)
        if len(found) != 1:
            raise SiteError(f"{shown(site)} exists in {len(found)} blocks: give layer=, one of them.")
        settings = settings.fitted(lens, found[0])
        if place is not None:
            _refuse_begun(place, lens, found[0], settings)
        source = of_clips(
            lens, found[0], data, codes, seeds=checked_count("seeds", seeds), seconds=seconds,
            guidance_scale=guidance_scale, held_out=held_out, seed=settings.seed,
            batch_size=checked_count("reading_batch", reading_batch), progress=progress,
        )  # fmt: skip
    settings = settings.fitted(lens, source.site)
    if place is None:
        return _finished(source, _learn(source, settings, None, UNHELD, progress), settings, progress)
    with _opened(place, source, settings) as lock:
        if not described.finished(place):
            learner = _learn(source, settings, place / STATE / CHECKPOINT, lock, progress)
            _write(_finished(source, learner, settings, progress), place, lock)
        return load(place, lens=lens)


@dataclass(frozen=True)
class _Settings:
    """The checked settings of a training run. A width of 0 is that which fits the site."""

    kind: Kind
    k: int
    width: int
    rate: float
    n_vectors: int
    batch_size: int
    seed: int
    checkpoint_every: int

    @classmethod
    def of(
        cls, kind: Any, width: Any, k: Any, n_vectors: Any, batch_size: Any, rate: Any, seed: Any, every: Any
    ) -> _Settings:
        if kind not in get_args(Kind):
            raise InputError(f"kind={shown(kind)}: expected one of {', '.join(get_args(Kind))}.")
        return cls(
            kind, checked_count("k", k), 0 if width is None else checked_count("width", width),
            0.0 if rate is None else checked_amount("learning_rate", rate, above=0),
            checked_count("n_vectors", n_vectors, 1, MOST_VECTORS), checked_count("batch_size", batch_size),
            checked_seed(seed), checked_count("checkpoint_every", every),
        )  # fmt: skip

    def fitted(self, lens: AudioLens, site: Site) -> _Settings:
        """Return the settings with the defaults that depend on the site.

        Raises:
            InputError: if there are too few latents.
            SiteError: if the site does not have one vector per step.
        """
        width = self.width or WIDER * prod(features_at(lens, site.hook, site.layer))
        if self.k > width // 2:
            raise InputError(f"k={self.k} of width={width}: expected at most half of the latents to be active.")
        return replace(self, width=width, rate=self.rate or 1e-3 / max(1.0, width / 2048) ** 0.5)

    @property
    def facts(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "checkpoint_every"}


def _refuse_begun(place: Path, lens: AudioLens, site: Site, settings: _Settings) -> None:
    """Raise if a folder was begun with other settings, before clips are generated, which can take long."""
    begun = TRAINING.read(place)
    if begun is None:
        return
    source = {**(begun.get("source") or {}), "weights": weights_hash(lens.model), "site": site.name}
    facts = {"format": TRAINING.format, "source": source, "settings": settings.facts}
    TRAINING.refuse(place, described.difference(begun, facts), _REMEDY)


@contextmanager
def _opened(place: Path, source: Source, settings: _Settings) -> Iterator[Held]:
    """Lock a folder in which this SAE is trained, or was."""
    facts = {"format": TRAINING.format, "source": source.facts, "settings": settings.facts}

    def settled() -> dict[str, Any]:
        begun = TRAINING.read(place)
        if begun is not None:
            TRAINING.refuse(place, described.difference(begun, facts), _REMEDY)
        return facts

    with TRAINING.opened(place, settled, lambda: "The last checkpoint is kept.") as (lock, _):
        yield lock


def _learn(source: Source, settings: _Settings, state: Path | None, lock: Held, progress: bool) -> Learner:
    """Train until enough vectors were seen, from the last checkpoint on if there is one."""
    first = next(source.batches(_FIRST, settings.seed))
    device = source.lens.device
    learner = Learner.begin(
        settings.kind, settings.k, settings.width, settings.rate, settings.n_vectors, first.to(device), settings.seed
    )
    if state is not None and state.is_file():
        try:
            checkpoint.restore(learner, state)
        except DamagedError as error:
            drop("the training", error, state, lock=lock)
            return _learn(source, settings, state, lock, progress)

    def keep() -> None:
        if state is not None:
            learner.refuse_infinite()
            lock.check()
            checkpoint.keep(learner, state)
            lock.keep(state)

    _run(source, settings, learner, keep, progress)
    return learner


def _run(source: Source, settings: _Settings, learner: Learner, keep: Callable[[], None], progress: bool) -> None:
    batches = source.batches(settings.batch_size, settings.seed, learner.step)
    named = {"desc": f"training {settings.kind}", "unit": "vector", "unit_scale": True}
    with tqdm(total=settings.n_vectors, initial=learner.seen, disable=not progress, **named) as bar:
        try:
            while learner.seen < settings.n_vectors:
                vectors, before = next(batches).to(source.lens.device), learner.seen
                with deferred():
                    found = learner.learn(vectors)
                told = learner.step % _TOLD_EVERY == 0
                if told or learner.seen >= settings.n_vectors:
                    learner.refuse_infinite()
                if learner.step % settings.checkpoint_every == 0:
                    keep()
                if progress and told:
                    bar.set_postfix(
                        {"unexplained": f"{float(found['unexplained']):.3f}", "l0": f"{float(found['l0']):.1f}"}
                    )
                bar.update(learner.seen - before)
        except KeyboardInterrupt:
            keep()
            raise


def _finished(source: Source, learner: Learner, settings: _Settings, progress: bool) -> SAE:
    """Return the trained SAE, with its scores on held-out clips."""
    norms = torch.cat([source.unit(number).norm(dim=-1) for number in spread(len(source.units), _NORMED)])
    options = {"kind": settings.kind, "k": str(settings.k), "width": str(settings.width),
               "vectors": str(learner.seen), "rate": f"{settings.rate:g}"}  # fmt: skip
    meta = replace(source.meta, estimator=f"sparse autoencoder ({settings.kind})", options=options)
    sae = learner.sae(
        site=source.site.hook, layer=source.site.layer, model=source.lens.name, meta=meta,
        residual_norm=float(norms.mean()),
    )  # fmt: skip
    rows = [source.held_out[place] for place in spread(len(source.held_out), _SCORED)]
    if not rows:
        return sae
    prompts = [source.prompts[row] for row in rows]
    return replace(sae, scores=score(source.lens, sae, prompts, source.codes[rows], progress=progress).as_dict())


def _write(sae: SAE, place: Path, lock: Held) -> None:
    """Move the finished files into the folder, the settings last, and remove the checkpoint."""
    lock.check()
    with aside(place) as work:
        files.write(sae, work)
        settle(work)
        for name in (described.WEIGHTS, described.CONFIG):
            os.replace(work / name, place / name)
            lock.keep(place / name)
    lock.release(place / STATE / CHECKPOINT)
    (place / STATE / CHECKPOINT).unlink(missing_ok=True)
