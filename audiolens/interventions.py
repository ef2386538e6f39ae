"""What is done (add, ablate, clamp, replace, scale, apply) and where (site, layers, branch, time, rows).

An intervention is a value: frozen, checked when it is made, and free of any model. A run binds it to its batch
(`tracing/bound_intervention.py`). Interventions at one site apply in the order they are given; at different sites, in
the model's.

The places shared by all: `site` and `layers` (`None` is every block; `layer=3` is `layers=[3]`, and a negative one
counts from the last); `branch` of the guidance ("cond", "null", "both"); `seconds` (`None` is every step, the tail
included); `rows` (`None` is every row); `heads` for head sites.

What stands on the text's side ("row token ...") has no steps, and takes neither `seconds` nor `schedule`. In the null
branch all text is masked: there sdpa makes z zero whatever the values are, where eager attention takes their mean.
Write `cross_attn.hook_z`, or the pattern, to give that branch something to read.

A logit of -inf at `hook_logits`, in either branch, forbids its code; it takes an `Apply`, for all else must be finite.

Where a step holds several vectors (one a head, one a codebook), values are "d_head", "head d_head" or "row head
d_head", where size 1 along an axis means the same for every row, or every head. A shape "n d_head", where n is the
number of heads and of rows, is ambiguous and is refused.

`strength` is a number, or one per affected row; a row of strength 0 is left bit-identical. `schedule` multiplies
the strength over time: a function of the time in seconds, or one number per step of the clip. `preserve_norm`
rescales every changed position to the norm it had.

`meta` says from which model the vector was read: `steer` takes that of its directions. A run of another model is then
refused; a bare tensor is taken as it is.

Where the conditioning stands before the audio steps (MusicGen Melody), it is left alone; `prefix=True` changes it too,
at the strength given, whatever the schedule: with a schedule of 0, it alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from audiolens.checks import checked_flags, listed, shown, whole_number, whole_numbers
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.model.provenance import Provenance
from audiolens.model.sites import checked_names, head_numbers, layers_once
from audiolens.model.timeline import Real, Span, checked_span
from audiolens.tensors import finite, numbers

Branch = Literal["cond", "null", "both"]
Numbers = Real | Sequence[Real] | Tensor
Schedule = Callable[[float], Real] | Sequence[Real] | Tensor


def checked_branch(branch: object, guided: bool = True) -> None:
    if branch not in get_args(Branch):
        raise InputError(f"branch={branch!r}: expected 'cond', 'null' or 'both'.")
    if branch != "cond" and not guided:
        raise InputError(f"branch={branch!r} needs guidance: without it (guidance_scale=1) there is only 'cond'.")


def checked_rows(rows: Sequence[int] | None, total: int) -> list[int]:
    """Row numbers as they were given, all different; `None` is all of them.

    Raises:
        InputTypeError: if they are no list of whole numbers; a mask is none.
        InputError: if there is none, one twice, or one that does not exist.
    """
    if rows is None:
        return list(range(total))
    chosen = row_numbers(rows)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= row < total for row in chosen):
        raise InputError(f"rows={chosen}: expected different rows between 0 and {total - 1}.")
    return chosen


def row_numbers(rows: Any) -> list[int]:
    """Row numbers as they were given, read once.

    Raises:
        InputTypeError: if they are no list of whole numbers; a mask is none.
    """
    try:
        return whole_numbers(listed("rows", rows))
    except TypeError:
        given = rows.tolist() if isinstance(rows, Tensor | np.ndarray) else rows
        raise InputTypeError(
            f"rows={given!r}: expected a list of row numbers; of a mask, give mask.nonzero().flatten()."
        ) from None


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor of an intervention, and what its axes may be.

    `kind` is "per row" for a number, or one per affected row; "vector" for "feature" or "row feature"; "values" for
    those, or for values at every step as well.
    """

    tensor: Tensor
    kind: Literal["per row", "vector", "values"]


@guarded
@dataclass(frozen=True, eq=False, kw_only=True)
class Intervention:
    """Where and when something is done; what is done is each subclass's `change`.

    Raises, here and in every subclass:
        InputTypeError: when it is made, if an argument has the wrong type.
        InputError: when it is made, for an unknown branch, or numbers that are not finite; and by a run, before its
            model runs, for strengths or vectors that do not fit the rows or the site, for rows or heads that do not
            exist, for seconds outside the clip, and for a vector that was read from another model.
        SiteError: by a run, for a site or layer that its model does not have.
    """

    site: str = "resid_post"
    layers: int | Sequence[int] | None = None
    branch: Branch = "both"
    seconds: Span | None = None
    rows: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    strength: Numbers = 1.0
    schedule: Schedule | None = None
    preserve_norm: bool = False
    prefix: bool = False
    layer: InitVar[int | None] = None
    meta: Provenance | None = None

    def __post_init__(self, layer: int | None = None) -> None:
        if layer is not None:
            object.__setattr__(self, "layers", _one_layer(layer, self.layers))
        checked_branch(self.branch)
        if self.meta is not None and not isinstance(self.meta, Provenance):
            raise InputTypeError(f"meta={shown(self.meta)}: expected the meta of directions, or None.")
        checked_flags(prefix=self.prefix, preserve_norm=self.preserve_norm)
        if self.seconds is not None:
            checked_span(self.seconds)
        object.__setattr__(self, "site", checked_names("site", self.site))
        for name, read in (("layers", layers_once), ("rows", row_numbers), ("heads", head_numbers)):
            given = getattr(self, name)
            object.__setattr__(self, name, None if given is None else read(given))
        object.__setattr__(self, "strength", numbers("strength", self.strength))
        if self.schedule is not None and not callable(self.schedule):
            object.__setattr__(self, "schedule", numbers("schedule", self.schedule))

    overwrites: ClassVar[bool] = False
    """Whether what was there may be gone afterwards, so that a run cannot tell an overflow from what was asked for."""

    @property
    def parts(self) -> dict[str, Part]:
        """The tensors that a run moves to the model's device and, where they have a row axis, cuts to a batch."""
        return {}

    @property
    def called(self) -> Callable[[Tensor], Tensor | None] | None:
        """A function that is called with the values instead of `change`."""
        return None

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """The new value of affected positions.

        `value` is "row step ... feature"; `amount` (strength x schedule) and `parts` (the intervention's own
        tensors, bound to the batch) broadcast against it.
        """
        raise NotImplementedError


def _one_layer(layer: Any, layers: Any) -> int:
    """The block given as `layer`, in the place of `layers`."""
    if layers is not None:
        raise InputError(f"layer={layer!r} and layers={layers!r} were both given: give one of them.")
    try:
        return whole_number(layer)
    except TypeError:
        raise InputTypeError(f"layer={layer!r}: expected a layer number; layers=[...] takes several.") from None


def _unit(direction: Tensor) -> Tensor:
    return direction / direction.norm(dim=-1, keepdim=True)


def _nonzero(name: str, direction: Tensor) -> None:
    if not bool((direction.norm(dim=-1) > 0).all()):
        raise InputError(f"{name} is zero: a direction needs a length.")


@guarded
@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """Add `strength * vector`: "d_model", or "row d_model" for one vector per row (at head sites "row head d_head").

    Raises:
        InputTypeError, InputError: if the vector is no finite numbers, or (by the run) not of the site's width.
    """

    vector: Any

    def __post_init__(self, layer: int | None = None) -> None:
        super().__post_init__(layer)
        object.__setattr__(self, "vector", finite("vector", self.vector))

    @property
    def parts(self) -> dict[str, Part]:
        return {"vector": Part(self.vector, "vector")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """`value + amount * vector`."""
        return value + (amount * parts["vector"]).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Ablate(Intervention):
    """Project `direction` out: at strength 1 nothing of it is left, at 0.5 half.

    Raises:
        InputTypeError, InputError: if the direction is no finite numbers, is zero, or (by the run) has another width.
    """

    direction: Any

    def __post_init__(self, layer: int | None = None) -> None:
        super().__post_init__(layer)
        object.__setattr__(self, "direction", finite("direction", self.direction))
        _nonzero("direction", self.direction)

    @property
    def parts(self) -> dict[str, Part]:
        return {"direction": Part(self.direction, "vector")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """`value` less `amount` times its projection on the unit direction."""
        unit = _unit(parts["direction"])
        along = (value.float() * unit).sum(-1, keepdim=True)
        return value - (amount * along * unit).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Clamp(Intervention):
    """Set the projection on the unit direction to `value` times the direction's own norm.

    `value` is a number, or one per affected row; 0 is `Ablate`, 1 the direction's whole length.

    Raises:
        InputTypeError, InputError: as `Ablate`; and if a value is not finite, or (by the run) there is not one a row.
    """

    direction: Any
    value: Any

    def __post_init__(self, layer: int | None = None) -> None:
        super().__post_init__(layer)
        object.__setattr__(self, "direction", finite("direction", self.direction))
        object.__setattr__(self, "value", numbers("value", self.value))
        _nonzero("direction", self.direction)

    @property
    def parts(self) -> dict[str, Part]:
        return {"direction": Part(self.direction, "vector"), "value": Part(self.value, "per row")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """`value` with its projection moved by `amount` of the way to the one that is set."""
        direction = parts["direction"]
        unit = _unit(direction)
        along = (value.float() * unit).sum(-1, keepdim=True)
        target = parts["value"] * direction.norm(dim=-1, keepdim=True)
        return value + (amount * (target - along) * unit).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Replace(Intervention):
    """Put other values in place: "feature", "row feature", or of the site's whole shape ("row step feature").

    With a step axis the values' first step stands at the first step selected: with `prefix=True` that of the longest
    prefix among the rows, as in a recording. A pattern's values are "row head query key", "row head key", "head key" or
    "key", its keys as in a recording too; keys beyond those of the run are left out. A strength between 0 and 1 goes
    that part of the way.

    Raises:
        InputTypeError, InputError: if the values are no finite numbers, or (by the run) have a shape that does not fit
            the site, or fewer rows, steps, tokens or keys than it changes.
    """

    values: Any
    overwrites = True

    def __post_init__(self, layer: int | None = None) -> None:
        super().__post_init__(layer)
        object.__setattr__(self, "values", finite("values", self.values))

    @property
    def parts(self) -> dict[str, Part]:
        return {"values": Part(self.values, "values")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """The values where `amount` is 1, and else that part of the way to them."""
        values = parts["values"].to(value.dtype).expand_as(value)
        return torch.where(amount == 1, values, value + (amount * (values.float() - value.float())).to(value.dtype))


@guarded
@dataclass(frozen=True, eq=False)
class Scale(Intervention):
    """Multiply by `factor`, a number or one per affected row; a strength between 0 and 1 goes part of the way.

    Raises:
        InputTypeError, InputError: if a factor is no finite number, or (by the run) there is not one a row.
    """

    factor: Any

    def __post_init__(self, layer: int | None = None) -> None:
        super().__post_init__(layer)
        object.__setattr__(self, "factor", numbers("factor", self.factor))

    @property
    def parts(self) -> dict[str, Part]:
        return {"factor": Part(self.factor, "per row")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """`value` times the factor, or that part of the way to it that `amount` says."""
        return value * (1 + amount * (parts["factor"] - 1)).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Apply(Intervention):
    """Call `function(value)` on the affected rows of one branch, in the site's shape, and use what it returns.

    The value is the function's own copy: one that returns `None` has changed it in place, or only looked. Under
    `branch="both"` it is called once for each branch. `strength` and `schedule` are not meant here and are refused.

    Raises:
        InputTypeError: if the function cannot be called.
        InputError: for a strength or a schedule; and, while a model runs, if the function returns anything but `None`
            or a tensor of the shape that it was given.
    """

    function: Callable[[Tensor], Tensor | None]
    overwrites = True

    @property
    def called(self) -> Callable[[Tensor], Tensor | None]:
        return self.function

    def __post_init__(self, layer: int | None = None) -> None:
        super().__post_init__(layer)
        if not callable(self.function):
            raise InputTypeError(f"function={self.function!r}: expected something to call with the activations.")
        if self.schedule is not None or bool((torch.as_tensor(self.strength, device="cpu") != 1).any()):
            raise InputError("Apply takes no strength and no schedule: the function decides what is done.")
