"""Evidence for each attention head: how well a linear probe of its output tells the poles apart, by cross-validation.

`steer(strategy="heads", heads=k)` chooses the k best heads, as in inference-time intervention (ITI, Li et al. 2023,
arXiv 2306.03341). It pushes each of them in proportion to the spread of its activations along its direction, and to
how far its probe is above chance, which is how SMITIN (Koo et al. 2024, arXiv 2404.02252) applies ITI to music.

The probe is a ridge regression on the labels. Its held-out outputs are linear in the labels, so that hundreds of
shuffled labellings cost one matrix product per head.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from audiolens.checks import checked_count, listed, shown, whole_number, whole_numbers
from audiolens.directions import shuffles
from audiolens.directions.labelling import Target
from audiolens.directions.permutation import LEVEL, N_SHUFFLES
from audiolens.directions.samples import Samples
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, shortened
from audiolens.model.sites import counted, listed_layers
from audiolens.vectors import unit

FOLDS = 5
_TENSORS = ("accuracy", "separation", "spread", "p")


@guarded
@dataclass(frozen=True, eq=False)
class Heads:
    """What is known about the direction of every head.

    Attributes:
        accuracy: balanced accuracy of a probe of the head on held-out prompts; .5 is chance. The folds are divided by
            prompt, and the two prompts of a pair are in the same fold.
        separation: distance between the poles' mean outputs of the held-out probe, in pooled standard deviations. It
            ranks heads of equal accuracy.
        spread: standard deviation of the samples along the head's vector, over both poles. ITI calls it sigma.
        p: permutation p-value of the accuracy: the share of shuffled labellings under which the best of all heads is at
            least as accurate. Taking the best head corrects for choosing among all of them. If a prompt has several
            clips, whole prompts are exchanged, because clips of one prompt resemble each other.
        least_p: the smallest possible `p`, which is large if there are few prompts.
        layers: the block of each row.

    A head that tells the poles apart need not be one that the model uses for the concept. With shared codes, most heads
    of a model that reads its text are far above chance. Only steering shows which of them matter.
    """

    accuracy: Float[Tensor, "layer head"]
    separation: Float[Tensor, "layer head"]
    spread: Float[Tensor, "layer head"]
    p: Float[Tensor, "layer head"]
    least_p: Float[Tensor, ""]
    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(listed_layers(self.layers)))
        shapes = {tuple(getattr(self, name).shape) for name in _TENSORS}
        if self.least_p.ndim:
            raise InputError(f"heads: least_p has the shape {tuple(self.least_p.shape)}; expected a single number.")
        if len(shapes) > 1 or self.accuracy.ndim != 2 or len(self.accuracy) != len(self.layers):
            raise InputError(f"heads of shapes {sorted(shapes)} for {len(self.layers)} layers: expected 'layer head'.")
        for name in ("accuracy", "separation", "spread", "p", "least_p"):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise InputError(f"heads: {name} has NaN or infinite values.")

    @classmethod
    def of_file(cls, tensors: Mapping[str, Tensor], layers: tuple[int, ...]) -> "Heads":
        """Build the evidence from the tensors of a file.

        Raises:
            InputError: if a tensor is missing or has another shape.
        """
        if set(tensors) != {*_TENSORS, "least_p"}:
            raise InputError(f"its evidence of heads has {sorted(tensors)}.")
        return cls(**tensors, layers=layers)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by name, for a file."""
        return {name: getattr(self, name) for name in (*_TENSORS, "least_p")}

    @property
    def weights(self) -> Float[Tensor, "layer head"]:
        """How far each probe is above chance: 0 at an accuracy of .5 or less, and 1 if it is never wrong."""
        return (2 * self.accuracy - 1).clamp_min(0)

    @property
    def steps(self) -> Float[Tensor, "layer head"]:
        """The length of what a strength of 1 adds to each head: its spread times its weight."""
        return self.spread * self.weights

    @property
    def n_above_chance(self) -> int:
        """The number of heads whose `p` is at most .05."""
        return int((self.p <= LEVEL).sum())

    def best(self, k: int) -> list[tuple[int, int]]:
        """Return the k most accurate heads as pairs (layer, head), the best one first.

        Raises:
            InputError: if fewer than k heads have an accuracy above chance.
        """
        count, total = checked_count("heads", k, least=1), self.accuracy.numel()
        if count > total:
            raise InputError(f"heads={count}: these directions have {total} heads; expected at most that many.")
        able = int((self.weights > 0).sum())
        if count > able:
            raise InputError(
                f"heads={count}: the probes of only {able} of {total} heads are above chance (accuracy .5), and the "
                "others would not be steered; give fewer."
            )
        accuracy, separation = self.accuracy.flatten().numpy(), self.separation.flatten().numpy()
        # Of equal heads, the first is the better one.
        order = np.lexsort((np.arange(total), -separation, -accuracy.round(6)))[:count]
        n_heads = self.accuracy.shape[1]
        return [(self.layers[int(one) // n_heads], int(one) % n_heads) for one in order]

    def at(self, layers: int | Iterable[int]) -> "Heads":
        """Return the heads of some layers. `p` remains corrected for all layers that were read.

        Raises:
            SiteError: if there are no heads of a layer.
        """
        chosen = listed_layers(layers)
        for layer in chosen:
            if layer not in self.layers:
                raise SiteError(f"no heads at layer {layer}; expected some of {shortened(map(str, self.layers), 60)}.")
        index = [self.layers.index(layer) for layer in chosen]
        rows = {name: getattr(self, name)[index] for name in _TENSORS}
        return Heads(**rows, least_p=self.least_p, layers=tuple(chosen))

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with one row per head."""
        import pandas as pd

        n_layers, n_heads = self.accuracy.shape
        return pd.DataFrame(
            {
                "layer": np.repeat(self.layers, n_heads),
                "head": np.tile(np.arange(n_heads), n_layers),
                **{name: getattr(self, name).flatten().numpy() for name in _TENSORS},
            }
        )

    @property
    def finding(self) -> str:
        """How many heads exceed chance, and which one is the best."""
        total = self.accuracy.numel()
        if float(self.least_p) > LEVEL:
            return f"too few prompts to test which of {total} heads exceed chance"
        found = f"{self.n_above_chance} of {total} heads above chance (p <= {LEVEL:g}, the best of {total})"
        if not bool((self.weights > 0).any()):
            return found
        layer, head = self.best(1)[0]
        return f"{found}, head {layer}.{head} at {float(self.accuracy.max()):.0%}"

    def __repr__(self) -> str:
        return f"Heads({self.finding})"


def heads_of(samples: Samples, target: Target, vectors: Float[Tensor, "layer d_model"], n_heads: int) -> Heads | None:
    """Return the evidence of vectors that were estimated from samples, or `None` if there are too few prompts."""
    divided = _folds(target, samples.prompts)
    if divided is None:
        return None
    positive = target.positive
    drawn = shuffles.permuted(positive, N_SHUFFLES, 0, target.groups).sign()
    labels = torch.cat([torch.where(positive, 1.0, -1.0).double()[None], drawn]).T
    scores, apart, spread = [], [], []
    for layer, vector in zip(samples.values, vectors, strict=True):
        values = rearrange(layer.double(), "prompt (head d) -> head prompt d", head=n_heads)
        outputs = _held_out(values, labels, divided)
        scores.append(_accuracy(outputs, labels))
        apart.append(_separation(outputs[..., 0], positive))
        along = unit(rearrange(vector.double(), "(head d) -> head d", head=n_heads))
        spread.append(torch.einsum("hpd,hd->hp", values, along).std(1))
    accuracy = torch.stack(scores)
    own, best = accuracy[..., 0], accuracy[..., 1:].amax((0, 1))
    p = (1 + (best >= own[..., None] - 1e-9).sum(-1)).double() / (N_SHUFFLES + 1)
    least = max(1 / (N_SHUFFLES + 1), 1 / shuffles.orders(positive, target.groups))
    return Heads(
        accuracy=own.float(), separation=torch.stack(apart).float(), spread=torch.stack(spread).float(),
        p=p.float(), least_p=torch.tensor(least, dtype=torch.float32, device="cpu"), layers=samples.layers,
    )  # fmt: skip


def chosen(known: Heads, heads: Any, n_layers: int) -> list[tuple[int, int]]:
    """Return the heads that the argument `heads` of `steer` names: a number of heads, or pairs (layer, head)."""
    if heads is None:
        raise InputError("strategy='heads' needs heads=k, the number of heads to steer, or pairs (layer, head).")
    try:
        count = whole_number(heads)
    except TypeError:
        return _named(known, heads, n_layers)
    return known.best(count)


def _named(known: Heads, heads: Any, n_layers: int) -> list[tuple[int, int]]:
    try:
        pairs = [whole_numbers(listed("heads", pair)) for pair in listed("heads", heads)]
    except TypeError:
        pairs = None
    if pairs is None or not all(len(pair) == 2 for pair in pairs):
        raise InputTypeError(f"heads={shown(heads)}: expected a number of heads, or pairs (layer, head).")
    found = [(counted(layer, n_layers), head) for layer, head in pairs]
    if not found or len(set(found)) < len(found):
        raise InputError(f"heads={shown(heads)}: expected at least one pair (layer, head), and each once.")
    for layer, head in found:
        if layer not in known.layers:
            layers = shortened(map(str, known.layers), 60)
            raise SiteError(f"heads={shown(heads)}: no direction at layer {layer}; expected one of {layers}.")
        if not 0 <= head < known.accuracy.shape[1]:
            raise InputError(
                f"heads={shown(heads)}: there is no head {head}; expected 0 to {known.accuracy.shape[1] - 1}."
            )
        if not float(known.weights[known.layers.index(layer), head]):
            raise InputError(
                f"heads={shown(heads)}: the probe of head {head} at layer {layer} is not above chance, so it would "
                "not be steered: leave it out."
            )
    return found


def _folds(target: Target, prompts: Sequence[str | None]) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Return the rows to fit and to hold out in every fold; `None` if a side to fit would lack a pole."""
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    positive = target.positive.numpy()
    count = int(positive.sum())
    paired = target.paired and 2 * count == len(positive)
    groups = np.arange(len(positive)) % count if paired else target.groups
    n_folds = min(FOLDS, *(len(np.unique(groups[side])) for side in (positive, ~positive)))
    if n_folds < 2:
        return None
    with warnings.catch_warnings():
        # A fold that lacks a pole is noticed below.
        warnings.simplefilter("ignore", UserWarning)
        kind = StratifiedGroupKFold
        if not paired and len(np.unique(groups)) < len(groups):
            # Whole prompts are exchanged, so folds that depend on the labels, or on the order of clips that were
            # sorted, would favour the original labelling.
            named = [(text or "", -1 if text is not None else row) for row, text in enumerate(prompts)]
            order = {name: number for number, name in enumerate(sorted(set(named)))}
            kind, groups = GroupKFold, np.array([order[name] for name in named])
        folds = kind(n_folds, shuffle=True, random_state=0).split(positive, positive, groups)
        found = list(folds)
    return found if all(0 < positive[fit].sum() < len(fit) for fit, _ in found) else None


def _held_out(
    values: Float[Tensor, "head prompt d_head"],
    labels: Float[Tensor, "prompt labelling"],
    folds: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Float[Tensor, "head prompt labelling"]:
    """Return the outputs of ridge regressions on labels of 1 and -1, for the prompts that each was not fitted to.

    Features are standardised on the side that is fitted. The penalty is the number of features.
    """
    outputs = values.new_zeros(*values.shape[:2], labels.shape[1])
    for fit, test in folds:
        train, means = values[:, fit], values[:, fit].mean(1, keepdim=True)
        scale = train.std(1, keepdim=True).clamp_min(1e-8)
        train, held = (train - means) / scale, (values[:, test] - means) / scale
        gram = train.mT @ train + values.shape[-1] * torch.eye(values.shape[-1], dtype=values.dtype, device="cpu")
        to_output = held @ torch.linalg.solve(gram, train.mT)
        outputs[:, test] = to_output @ labels[fit] + labels[fit].mean(0)
    return outputs


def _accuracy(
    outputs: Float[Tensor, "head prompt labelling"], labels: Float[Tensor, "prompt labelling"]
) -> Float[Tensor, "head labelling"]:
    """Return the balanced accuracy of the outputs' signs; an output of 0 counts as half right."""
    right = (1 + (outputs * labels).sign()) / 2
    sides = [(right * side).sum(1) / side.sum(0) for side in (labels > 0, labels < 0)]
    return (sides[0] + sides[1]) / 2


def _separation(outputs: Float[Tensor, "head prompt"], positive: Bool[Tensor, " prompt"]) -> Float[Tensor, " head"]:
    sides = [outputs[:, positive], outputs[:, ~positive]]
    squares = [(side - side.mean(1, keepdim=True)).square().sum(1) for side in sides]
    pooled = ((squares[0] + squares[1]) / (outputs.shape[1] - 2)).sqrt()
    return (sides[0].mean(1) - sides[1].mean(1)) / pooled.clamp_min(1e-12)
