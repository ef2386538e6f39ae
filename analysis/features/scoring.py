"""Scores: how much of a site's activations, and of the model's predictions, a sparse autoencoder keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from analysis.features.sae import SAE, features_at
from analysis.features.source import activations
from analysis.features.splicing import splice
from analysis.likelihood import Window
from audiolens.checks import checked_flags, shown
from audiolens.door import guarded
from audiolens.errors import InputTypeError
from audiolens.interventions import Intervention, Replace
from audiolens.model import text
from audiolens.model.sites import Site
from audiolens.model.tokens import named_once
from audiolens.sound.codec import checked_codes
from audiolens.tracing.batching import whole_batch_size
from audiolens.tracing.fitting import reading_fit

if TYPE_CHECKING:
    import pandas as pd

    from audiolens.lens import AudioLens
    from audiolens.model.text import Prompt


@guarded
@dataclass(frozen=True)
class Scores:
    """What a sparse autoencoder keeps of clips that it was not trained on.

    Attributes:
        explained_variance: 1 - squared error / variance, over all vectors; NaN if they do not vary.
        l0: the mean number of active latents of a vector.
        dead: the share of latents that are active in none of the vectors. Of few vectors, it is too high.
        n_clips, n_vectors: the numbers of clips and of vectors.
        loss: nats per code of the clips, given their prompts and their earlier codes, without guidance.
        spliced, zero, mean: the same with the activations replaced by their reconstruction, by 0, or by their mean.

    Loss recovered says that the model's predictions survive. It does not say that latents mean anything.
    """

    explained_variance: float
    l0: float
    dead: float
    n_clips: int
    n_vectors: int
    loss: float
    spliced: float
    zero: float
    mean: float

    @property
    def loss_recovered(self) -> float:
        """1 - (spliced - loss) / (zero - loss): 1 if nothing is lost, 0 if as much as without the activations.

        NaN if the predictions do not change without the activations.
        """
        return _kept(self.spliced - self.loss, self.zero - self.loss)

    @property
    def loss_recovered_of_mean(self) -> float:
        """The same, compared with activations replaced by their mean, which is the harder baseline."""
        return _kept(self.spliced - self.loss, self.mean - self.loss)

    def as_dict(self) -> dict[str, float]:
        """Return all numbers as plain values."""
        shares = {"loss_recovered": self.loss_recovered, "loss_recovered_of_mean": self.loss_recovered_of_mean}
        return {name: float(value) for name, value in {**asdict(self), **shares}.items()}

    def to_frame(self) -> pd.DataFrame:
        """Return one row with all numbers."""
        import pandas as pd

        return pd.DataFrame([self.as_dict()])

    def __repr__(self) -> str:
        return (
            f"Scores({self.explained_variance:.1%} of the variance with {self.l0:.1f} of the latents active, "
            f"{self.dead:.1%} never; {self.loss_recovered:.1%} of the loss recovered (against the mean: "
            f"{self.loss_recovered_of_mean:.1%}) on {self.n_clips} clips)"
        )


@guarded
@named_once
def score(
    lens: AudioLens,
    sae: SAE,
    prompts: Prompt | Sequence[Prompt],
    codes: Int[Tensor, "row codebook frame"],
    *,
    batch_size: int = 16,
    progress: bool = False,
) -> Scores:
    """Return what a sparse autoencoder keeps of clips, which should be none that it was trained on.

    Args:
        prompts: the prompt of each clip, or one for all.
        codes: the clips.
        batch_size: number of clips to read at once.
        progress: show a progress bar.

    Raises:
        InputError: if the SAE does not fit the model, or prompts and codes do not fit each other.
    """
    checked_flags(progress=progress)
    if not isinstance(sae, SAE):
        raise InputTypeError(f"sae={shown(sae)}: expected an SAE.")
    sae.refuse_other(lens)
    codes = checked_codes(codes, lens.config)
    listed, _ = text.checked(prompts, lens.model, lens.tokenizer, len(codes))
    size = whole_batch_size(batch_size)
    sums, losses = _Sums(sae), torch.zeros(4, dtype=torch.float64)
    # The latents of every step, and what is decoded from them, in single precision.
    wide = 4 * lens.timeline(codes.shape[-1]).steps * (2 * sae.width + 6 * sae.d_in)
    fit = reading_fit(lens.traced_model, listed, codes.shape[-1], size, rows="clips being scored", more=lambda: wide)

    def reconstruct(rows: slice) -> None:
        sums.add(activations(lens, Site(sae.site, sae.layer), listed[rows], codes[rows]).flatten(0, 1))

    def splice_in(rows: slice) -> Float[Tensor, " condition"]:
        return _losses(lens, sae, sums.mean, listed[rows], codes[rows])

    with tqdm(total=2 * len(codes), desc="scoring", unit="clip", disable=not progress) as bar:
        for rows, _ in fit.run(len(codes), reconstruct):
            bar.update(rows.stop - rows.start)
        for rows, found in fit.run(len(codes), splice_in):
            losses += (rows.stop - rows.start) * found
            bar.update(rows.stop - rows.start)
    loss, spliced, zero, mean = (losses / len(codes)).tolist()
    return Scores(**sums.found(), n_clips=len(codes), loss=loss, spliced=spliced, zero=zero, mean=mean)


class _Sums:
    """Running sums over vectors, from which the scores of the reconstruction follow."""

    def __init__(self, sae: SAE) -> None:
        self.sae, self.n, self.error, self.active = sae, 0, 0.0, 0
        self.total = torch.zeros(sae.d_in, dtype=torch.float64)
        self.squares = 0.0
        self.fired = torch.zeros(sae.width, dtype=torch.bool)

    def add(self, x: Float[Tensor, "vector d_in"]) -> None:
        latents = self.sae.encode(x)
        error = float((x - self.sae.decode(latents)).double().pow(2).sum())
        active, fired = int((latents > 0).sum()), (latents > 0).any(0).cpu()
        # Around the decoder's bias, which is near the mean, so that squares of a large mean do not cancel.
        centred = x.double() - self.sae.b_dec.to(x.device).double()
        total, squares = centred.sum(0).cpu(), float(centred.pow(2).sum())
        # Vectors that do not fit in memory are added again in smaller parts, so none of the sums may have them yet.
        self.n += len(x)
        self.error += error
        self.active += active
        self.fired |= fired
        self.total += total
        self.squares += squares

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        return (self.total / self.n + self.sae.b_dec.cpu().double()).float()

    def found(self) -> dict[str, Any]:
        variance = self.squares - float(self.total.pow(2).sum()) / self.n
        return {
            "explained_variance": _kept(self.error, variance), "l0": self.active / self.n,
            "dead": float((~self.fired).float().mean()), "n_vectors": self.n,
        }  # fmt: skip


def _kept(lost: float, whole: float) -> float:
    """Return the share that is not lost, or NaN if there was nothing to lose."""
    return 1 - lost / whole if whole else float("nan")


def _losses(
    lens: AudioLens,
    sae: SAE,
    mean: Float[Tensor, " d_in"],
    prompts: Sequence[str | None],
    codes: Int[Tensor, "row codebook frame"],
) -> Float[Tensor, " condition"]:
    """Return nats per code: of the model, and with activations reconstructed, set to 0, or set to their mean."""
    timeline = lens.timeline(codes.shape[-1])
    window = Window(0, timeline.frames, timeline.frame_rate, timeline.delays)

    def edits() -> Iterator[Sequence[Intervention]]:
        shape = features_at(lens, sae.site, sae.layer)
        where: Any = {"site": sae.site, "layers": None if sae.layer is None else [sae.layer]}
        yield ()
        yield (splice(sae),)
        for values in (torch.zeros(shape), mean.reshape(shape)):
            yield (Replace(values, **where),)

    found = [
        -window.each(lens.run_with_interventions(prompts, codes, one), codes).double().mean() for one in edits()
    ]  # fmt: skip
    return torch.stack(found).cpu()
