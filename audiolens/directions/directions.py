"""Directions: one vector per layer, with provenance. They can be added, scaled and orthogonalised.

A direction points from the negative to the positive pole and is stored unnormalised: its length is the full difference
of means, so a strength of 1 moves the negative pole's mean onto the positive pole's.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from audiolens.arrays import AsArray
from audiolens.checks import checked_flags, checked_seed, shown, whole_number
from audiolens.directions import shuffles
from audiolens.directions.calibration import Calibration
from audiolens.directions.described import Described
from audiolens.directions.evidence import Evidence
from audiolens.directions.exchange import Exchange
from audiolens.directions.heads import Heads
from audiolens.directions.leace import Eraser
from audiolens.directions.samples import Samples
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, shortened
from audiolens.files.integrity import tensor_hash
from audiolens.model.provenance import Provenance
from audiolens.model.sites import counted, listed_layers
from audiolens.model.timeline import Real
from audiolens.vectors import apart, multiplier, unit


@guarded
@dataclass(frozen=True, eq=False)
class Directions(AsArray, Exchange, Described):
    """One vector per layer.

    Attributes:
        vectors: the unnormalised vectors, on the CPU in float32.
        layers: the blocks at which the vectors were read, in ascending order.
        residual_norms: mean norms of the activations at these blocks, over prompts and steps.
        meta: the model, site, branch and prompts that the vectors were read from.
        evidence: how reliable the vectors are; `None` after arithmetic, because the evidence no longer applies.
        samples: one vector per prompt, if they were stored.
        calibration: which strength gives which value of a measure, if `calibrate` measured it.
        eraser: the affine map that erases the concept (`al.Erase`), if the estimator was LEACE.
        heads: at a site with heads, how well every head tells the poles apart, which `steer(strategy="heads")` needs.
            `None` if there were too few prompts, and after arithmetic between directions.

    At a site with heads, such as "attn.z", a vector contains those of all heads, one after the other, as the output
    projection reads them (d_model = head x d_head). `by_head` gives them as "layer head d_head".

    `d[layer]` is one vector. Arithmetic works layer by layer, and the operands must have the same model, site and
    layers. numpy and torch treat directions as the array of their vectors, "layer d_model".
    """

    vectors: Float[Tensor, "layer d_model"]
    layers: tuple[int, ...]
    residual_norms: Float[Tensor, " layer"]
    meta: Provenance
    evidence: Evidence | None = None
    samples: Samples | None = None
    calibration: Calibration | None = None
    eraser: Eraser | None = None
    heads: Heads | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.meta, Provenance):
            raise InputTypeError(f"meta={shown(self.meta)}: expected a Provenance, such as the meta of directions.")
        for name, value, kind in (
            ("evidence", self.evidence, Evidence), ("samples", self.samples, Samples), ("eraser", self.eraser, Eraser),
            ("calibration", self.calibration, Calibration), ("heads", self.heads, Heads),
        ):  # fmt: skip
            if value is not None and not isinstance(value, kind):
                raise InputTypeError(f"{name}={shown(value)}: expected {kind.__name__}, or None.")
        object.__setattr__(self, "layers", tuple(listed_layers(self.layers)))
        for name in ("vectors", "residual_norms"):
            object.__setattr__(self, name, getattr(self, name).detach().to("cpu", torch.float32))
        shapes = tuple(self.vectors.shape), tuple(self.residual_norms.shape)
        if len(shapes[0]) != 2 or shapes[0][0] != len(self.layers) or shapes[1] != (len(self.layers),):
            raise InputError(
                f"vectors of shape {shapes[0]} and norms of shape {shapes[1]} for {len(self.layers)} layers: give one "
                "vector and one norm per layer."
            )
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError(f"layers={self.layers}: expected distinct layers in ascending order.")
        if self.eraser is not None and (self.eraser.layers != self.layers or self.eraser.mean.shape != shapes[0]):
            raise InputError(f"an eraser of layers {self.eraser.layers} for directions of layers {self.layers}.")
        n_heads = self.meta.n_heads
        if n_heads < 0 or (n_heads and shapes[0][1] % n_heads):
            raise InputError(f"vectors of width {shapes[0][1]} for {n_heads} heads: expected a multiple of the heads.")
        if self.heads is not None and (
            self.heads.layers != self.layers or self.heads.accuracy.shape != (len(self.layers), n_heads)
        ):
            raise InputError(
                f"heads of shape {tuple(self.heads.accuracy.shape)} at layers {self.heads.layers} for directions of "
                f"{n_heads} heads at layers {self.layers}."
            )
        known = self.calibration
        if known is not None and known.vectors_hash not in ("", tensor_hash(self.vectors)):
            raise InputError(
                "the calibration was measured with other vectors, so it does not hold for these: give "
                "calibration=None, or calibrate them again."
            )
        if not bool(torch.isfinite(self.vectors).all()):
            raise InputError(f"{self.meta.label or 'these directions'}: a vector has NaN or infinite values.")

    @property
    def norms(self) -> Float[Tensor, " layer"]:
        """The norm of each vector."""
        return self.vectors.norm(dim=-1)

    @property
    def by_head(self) -> Float[Tensor, "layer head d_head"]:
        """The vectors of every head.

        Raises:
            SiteError: if the directions were read at a site with one vector per step.
        """
        if not self.meta.n_heads:
            raise SiteError(
                f"these directions have no heads: they were read at {self.meta.site}. Read them at a site with heads: "
                'site="attn.z" or "cross_attn.z".'
            )
        return rearrange(self.vectors, "layer (head d) -> layer head d", head=self.meta.n_heads)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[int]:
        return iter(self.layers)

    def __contains__(self, layer: object) -> bool:
        try:
            return counted(whole_number(layer), self.meta.n_layers) in self.layers
        except (TypeError, SiteError):
            return False

    def _numbers(self) -> Float[Tensor, "layer d_model"]:
        return self.vectors

    @property
    def instead(self) -> str:
        """Advice for callers who pass directions where a single vector is expected."""
        return "give one vector, d[layer], or steer with al.steer(d, layer=...)."

    def __getitem__(self, layer: int) -> Float[Tensor, " d_model"]:
        """Return the vector read at a layer; -1 is the model's last layer.

        Raises:
            SiteError: if no vector was read there; the message lists the available layers.
        """
        return self.vectors[self._index(layer)]

    def residual_norm(self, layer: int) -> float:
        """Return the mean norm of the activations at a layer.

        Raises:
            InputError: if the norm is unknown, because the directions were imported from another library.
        """
        norm = float(self.residual_norms[self._index(layer)])
        if norm != norm:
            raise InputError("the norms of the residual stream are unknown, because these directions were imported.")
        return norm

    def at(self, layers: int | Iterable[int]) -> "Directions":
        """Return the directions at the given layers only."""
        chosen = listed_layers(layers)
        if not chosen:
            raise SiteError(f"no layer given: these directions have layers {shortened(map(str, self.layers), 60)}.")
        kept = sorted({self._index(layer) for layer in chosen})
        indices = torch.tensor(kept, device="cpu")
        layers = tuple(self.layers[index] for index in kept)
        return replace(
            self,
            vectors=self.vectors[indices],
            layers=layers,
            residual_norms=self.residual_norms[indices],
            evidence=None,
            samples=None,
            calibration=None,
            eraser=None if self.eraser is None else self.eraser.at(layers),
            heads=None if self.heads is None else self.heads.at(layers),
        )

    def unit(self) -> "Directions":
        """Return the directions scaled to norm 1; a zero vector stays zero."""
        return self._changed(unit(self.vectors), f"unit({self.meta.label})", factor=1)

    def __add__(self, other: "Directions") -> "Directions":
        self._refuse_foreign(other)
        return self._summed(other, self.vectors + other.vectors, f"{self.meta.label} + {other.meta.label}")

    def __sub__(self, other: "Directions") -> "Directions":
        self._refuse_foreign(other)
        return self._summed(other, self.vectors - other.vectors, f"{self.meta.label} - ({other.meta.label})")

    def __neg__(self) -> "Directions":
        return replace(self._changed(-self.vectors, f"-({self.meta.label})", factor=-1), heads=self.heads)

    def __radd__(self, other: object) -> "Directions":
        # `sum` starts from 0.
        if type(other) is int and other == 0:
            return self
        raise InputTypeError(f"{type(other).__name__} plus directions: expected Directions.")

    def __rsub__(self, other: object) -> "Directions":
        raise InputTypeError(f"{type(other).__name__} minus directions: expected Directions.")

    def __mul__(self, factor: Real) -> "Directions":
        number = multiplier("times", factor)
        # What a strength of 1 adds to a head is scaled with its vector.
        heads = None if self.heads is None else replace(self.heads, spread=self.heads.spread * abs(number))
        made = self._changed(self.vectors * number, f"{number:g} * ({self.meta.label})", factor=number)
        return replace(made, heads=heads)

    __rmul__ = __mul__

    def __truediv__(self, divisor: Real) -> "Directions":
        number = multiplier("divided by", divisor)
        if number == 0:
            raise InputError(f"directions divided by {shown(divisor)}: expected a number other than 0.")
        return self * (1 / number)

    def orthogonal_to(self, *others: "Directions") -> "Directions":
        """Remove from each vector its component in the span of the other directions, layer by layer.

        The other directions are unchanged, and their order does not matter. Only this direction changes, so the pair
        (`a.orthogonal_to(b)`, `b`) differs from the pair (`a`, `b.orthogonal_to(a)`).

        Raises:
            InputError: if no component is left at some layer.
        """
        if not others:
            raise InputError("orthogonal_to needs at least one other direction.")
        for other in others:
            self._refuse_foreign(other)
        rest, empty = apart(self.vectors, [other.vectors for other in others])
        if bool(empty.any()):
            where = [layer for layer, gone in zip(self.layers, empty.tolist(), strict=True) if gone]
            raise InputError(
                f"nothing is left at layers {shortened(map(str, where))}, where the vector lies in the span of the "
                "others: leave those layers out with .at([...])."
            )
        names = ", ".join(other.meta.label for other in others)
        changed = self._changed(rest, f"({self.meta.label}).orthogonal_to({names})", factor=1)
        return replace(changed, meta=replace(changed.meta, **_origins(self, *others)))

    def cosine(self, other: "Directions") -> Float[Tensor, " layer"]:
        """Return the cosine similarity between the two vectors at each layer."""
        self._refuse_foreign(other)
        return cosine_similarity(self.vectors, other.vectors, dim=-1)

    def random_like(self, seed: int) -> "Directions":
        """Return random directions with the same norm at each layer, as a control for the effect of any
        perturbation.

        At a site with heads, every head's vector has the norm of its original. `steer(strategy="heads")` then chooses
        the heads of the original, and pushes each of them as far.
        """
        generator = torch.Generator("cpu").manual_seed(checked_seed(seed))
        drawn = torch.randn(self.vectors.shape, generator=generator, dtype=torch.float32, device="cpu")
        return self._resized(drawn, self, f"random {seed} like ({self.meta.label})")

    def shuffled(self, seed: int, *, match_norms: bool = True, balanced: bool = True) -> "Directions":
        """Return the difference in means between two groups that each contain half of each pole, as a control.

        The concept cancels in this difference. The halves are drawn at random, and if a pole has an odd number of
        prompts, one is left out. The vectors are short, so they are rescaled to the norms of these directions, unless
        `match_norms` is false. This method needs samples (`keep_samples=True`).

        `balanced=False` permutes the labels over all prompts. The result retains part of the concept, and rescaling
        magnifies that part. Use this setting only to see how much of the concept is retained.

        Raises:
            InputError: if no samples were stored or, with `balanced=True`, if a pole has fewer than two prompts.
        """
        checked_flags(match_norms=match_norms, balanced=balanced)
        samples = self._samples("shuffled")
        first, second = (shuffles.balanced if balanced else shuffles.free)(samples.labels, seed)
        vectors = samples.values[:, first].mean(1) - samples.values[:, second].mean(1)
        label = f"shuffled {seed} of ({self.meta.label})"
        return self._resized(vectors, self, label) if match_norms else self._changed(vectors, label)

    def with_norms_of(self, other: "Directions") -> "Directions":
        """Return these directions scaled to the norms of `other`, layer by layer, or head by head at a site with heads.

        The direction of another concept can then serve as a control: it is added at the same places, with the same
        norm. `steer(strategy="heads")` still chooses the heads by these directions' own evidence, and what a strength
        of 1 adds to a head is scaled with its vector. To push the heads of `other` as far as `other` does, also give
        their evidence: `dataclasses.replace(d.with_norms_of(other), heads=other.heads)`, as a sweep does for controls.
        """
        self._refuse_foreign(other)
        resized = self._resized(self.vectors, other, f"{self.meta.label} like ({other.meta.label})", factor=1)
        if self.heads is None:
            return replace(resized, heads=None)
        factors = other.by_head.norm(dim=-1) / self.by_head.norm(dim=-1)
        # A vector of zero has no direction, and stays zero.
        spread = self.heads.spread * torch.nan_to_num(factors, nan=0.0, posinf=0.0)
        return replace(resized, heads=replace(self.heads, spread=spread))

    def __repr__(self) -> str:
        finding = "" if self.evidence is None else f", {self.evidence.finding}"
        finding += "" if self.heads is None else f", {self.heads.finding}"
        counts = f"{self.meta.n_prompts[0]} + {self.meta.n_prompts[1]} prompts"
        if "shared" in self.meta.source:
            counts = f"{counts} over {self.meta.source}"
        span = f"{self.layers[0]} to {self.layers[-1]}" if len(self) > 1 else f"{self.layers[0]}"
        return (
            f"Directions({self.meta.label or 'unnamed'}: layers {span} at {self.meta.site} of "
            f"{shown(self.meta.model)}, {self.meta.estimator} of {counts}{finding})"
        )

    def _index(self, layer: int) -> int:
        try:
            number = whole_number(layer)
        except TypeError:
            raise InputTypeError(f"layer {shown(layer)}: expected a layer number; d.at([...]) takes several.") from None
        if number not in self:
            raise SiteError(
                f"no direction at layer {number}: these directions have layers {shortened(map(str, self.layers), 60)}."
            )
        return self.layers.index(counted(number, self.meta.n_layers))

    def _changed(self, vectors: Tensor, label: str, factor: float = 0) -> "Directions":
        """Return other vectors, which are these times a number of the sign of `factor`, or something else (0)."""
        meta = replace(self.meta, label=label, sign=self.meta.sign * ((factor > 0) - (factor < 0)))
        return replace(
            self, vectors=vectors, meta=meta, evidence=None, samples=None, calibration=None, eraser=None, heads=None
        )

    def _resized(self, vectors: Tensor, other: "Directions", label: str, factor: float = 0) -> "Directions":
        """Return vectors with the norms of `other`, those of every head if it has heads, and its evidence of heads."""
        n_heads = max(1, self.meta.n_heads)
        sizes, own = (
            rearrange(one, "layer (head d) -> layer head d", head=n_heads) for one in (other.vectors, vectors)
        )
        resized = rearrange(unit(own) * sizes.norm(dim=-1, keepdim=True), "layer head d -> layer (head d)")
        return replace(self._changed(resized, label, factor), heads=other.heads)

    def _summed(self, other: "Directions", vectors: Tensor, label: str) -> "Directions":
        # The result must be symmetric in the operands, so its residual norm is the mean of both.
        lengths = (self.residual_norms + other.residual_norms) / 2
        changed = self._changed(vectors, label)
        return replace(changed, residual_norms=lengths, meta=replace(changed.meta, **_origins(self, other)))

    def _refuse_foreign(self, other: Any) -> None:
        if not isinstance(other, Directions):
            raise InputTypeError(f"{type(other).__name__}: expected Directions.")
        for name, mine, theirs in (
            ("weights", self.meta.weights, other.meta.weights),
            ("sites", self.meta.site, other.meta.site),
            ("layers", self.layers, other.layers),
            ("numbers of heads", self.meta.n_heads, other.meta.n_heads),
            ("widths", self.vectors.shape[1], other.vectors.shape[1]),
        ):
            if mine != theirs:
                raise InputError(f"directions of different {name} cannot be combined: {mine} and {theirs}.")


def _origins(*directions: Directions) -> dict[str, Any]:
    """Return the source of the directions' codes, their device and their dtype, naming every value if they differ."""
    found = {}
    for name in ("source", "device", "dtype"):
        values = {part for one in directions for part in getattr(one.meta, name).split(", ")}
        found[name] = ", ".join(sorted(part for part in values if part))
    return found


@guarded
def orthogonalised(*directions: Directions) -> list[Directions]:
    """Make several directions orthogonal to each other at every layer (Gram-Schmidt).

    The order matters: the first direction is unchanged, and each later one loses its component along the previous ones.
    Steering along a later direction therefore no longer steers along the previous ones.
    """
    made: list[Directions] = []
    for one in directions:
        made.append(one.orthogonal_to(*made) if made else one)
    return made
