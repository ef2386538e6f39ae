"""Interventions: how to change activations (add, ablate, clamp, replace, scale, apply), and where and when.

An intervention is a frozen dataclass that is checked when it is created and does not depend on any model. A run binds
the intervention to its batch (`tracing/bound_intervention.py`). Interventions at one site are applied in the order in
which they are given. Interventions at different sites are applied in the order of the forward pass.

All interventions take the following arguments. `site` and `layers` select the activations (`layers=None` means every
block, `layer=3` means `layers=[3]`, and negative layers count from the last). `branch` is the guidance branch ("cond",
"null" or "both"). `seconds`, or its alias `span`, restricts the steps (`None` means every step, including the tail).
`rows` restricts the rows (`None` means every row), and `heads` restricts the heads at head sites.

Sites on the text side ("row token ...") have no steps, so interventions there accept neither `seconds` nor `schedule`.
In the null branch all text is masked. SDPA attention then sets z to zero regardless of the values, whereas eager
attention averages the values. To change what the null branch reads, intervene at `cross_attn.hook_z` or
`cross_attn.hook_pattern`.

A logit of -inf at `hook_logits`, in either branch, prevents the corresponding code from being sampled. Only `Apply` can
write -inf, because all other interventions require finite numbers.

If a step has several vectors (one per head or per codebook), the shape of the values is "d_head", "head d_head" or "row
head d_head". Along an axis of size 1, the same values are used for every row or head. A shape "n d_head" is rejected as
ambiguous if the number of heads and the number of rows are both n.

`strength` is one number, or one number per affected row. A row with strength 0 stays bit-identical. `schedule` is a
factor that varies the strength over time, either a function of the time in seconds or one number per step of the clip.
`preserve_norm` rescales every changed position to its original norm.

`gate` lets the intervention act only at steps, and in rows, in which a trait is missing (`gates.py`).

`meta` is the provenance of the vector, which `steer` copies from its directions. A run of a different model then raises
an error. A vector without provenance is accepted for any model.

If the conditioning is a prefix to the audio steps (MusicGen Melody), interventions leave the prefix unchanged by
default. With `prefix=True` they also change the prefix, at the given strength regardless of the schedule. With a
schedule of 0 they then change only the prefix.
"""

from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from audiolens.checks import checked_flags, checked_function, listed, shown, whole_number, whole_numbers
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.gates import Gate
from audiolens.model.provenance import Provenance
from audiolens.model.sites import checked_names, head_numbers, layers_once
from audiolens.model.timeline import Real, Span, checked_span, one_span
from audiolens.tensors import finite, numbers

Branch = Literal["cond", "null", "both"]
Numbers = Real | Sequence[Real] | Tensor
Schedule = Callable[[float], Real] | Sequence[Real] | Tensor


def checked_branch(branch: object, guided: bool = True) -> None:
    if branch not in get_args(Branch):
        raise InputError(f"branch={shown(branch)}: expected 'cond', 'null' or 'both'.")
    if branch != "cond" and not guided:
        raise InputError(f"branch={shown(branch)} needs guidance: without it (guidance_scale=1) there is only 'cond'.")


def checked_rows(rows: Sequence[int] | None, total: int) -> list[int]:
    """Return row numbers in the order given, after checking that they exist and do not repeat; `None` means all rows.

    Raises:
        InputTypeError: if `rows` is not a list of whole numbers (a mask is rejected).
        InputError: if the list is empty, or contains a row twice or a row that does not exist.
    """
    if rows is None:
        return list(range(total))
    chosen = row_numbers(rows)
    if not chosen or len(set(chosen)) != len(chosen) or not all(0 <= row < total for row in chosen):
        raise InputError(f"rows={chosen}: expected different rows between 0 and {total - 1}.")
    return chosen


def row_numbers(rows: Any) -> list[int]:
    """Return row numbers as a list, in the order given; `rows` is iterated over only once.

    Raises:
        InputTypeError: if `rows` is not a list of whole numbers (a mask is rejected).
    """
    try:
        return whole_numbers(listed("rows", rows))
    except TypeError:
        given = rows.tolist() if isinstance(rows, Tensor | np.ndarray) else rows
        raise InputTypeError(
            f"rows={shown(given)}: expected a list of row numbers; for a mask, give mask.nonzero().flatten()."
        ) from None


@dataclass(frozen=True, eq=False)
class Operand:
    """A tensor of an intervention, and the axes that the tensor can have.

    `kind` is "per row" for a number or one number per affected row. It is "vector" for the axes "feature" or
    "row feature". It is "values" if a step axis is also allowed.
    """

    tensor: Tensor
    kind: Literal["per row", "vector", "values"]


@guarded
@dataclass(frozen=True, eq=False, kw_only=True)
class Intervention:
    """Where and when to intervene. The `change` method of each subclass defines how the activations are changed.

    Every intervention is checked twice: when it is created, and again at the start of a run, before the model runs.

    Raises, here and in every subclass:
        InputTypeError: on creation, if an argument has the wrong type.
        InputError: on creation, if the branch is unknown or a number is not finite. At the start of a run, if
            strengths or vectors do not fit the rows or the site, if rows or heads do not exist, if the time range is
            outside the clip, or if the vector was read from a different model.
        SiteError: at the start of a run, if the model does not have the site or layer.
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
    span: InitVar[Span | None] = None
    meta: Provenance | None = None
    gate: Gate | None = None

    def __post_init__(self, layer: int | None = None, span: Span | None = None) -> None:
        kind = type(self)
        if kind.change is Intervention.change and kind.called is Intervention.called:
            raise InputTypeError(
                f"{kind.__name__} does nothing to activations, because it has no change(): use Add, Ablate, Clamp, "
                "Replace, Scale or Apply, or define change() in a subclass of Intervention."
            )
        if layer is not None:
            object.__setattr__(self, "layers", _one_layer(layer, self.layers))
        object.__setattr__(self, "seconds", one_span(self.seconds, span))
        checked_branch(self.branch)
        if self.meta is not None and not isinstance(self.meta, Provenance):
            raise InputTypeError(f"meta={shown(self.meta)}: expected the meta of directions, or None.")
        if self.gate is not None and not isinstance(self.gate, Gate):
            raise InputTypeError(f"gate={shown(self.gate)}: expected a Gate, or None.")
        if self.gate is not None and self.prefix is True:
            raise InputError("prefix=True and a gate: a gate decides at steps, and a prefix has none. Leave one out.")
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
    """Whether the intervention can overwrite the original values. A run then cannot distinguish an overflow from a
    requested value."""

    @property
    def operands(self) -> dict[str, Operand]:
        """The tensors that a run moves to the model's device and, if they have a row axis, slices for each batch."""
        return {}

    def at_layer(self, layer: int | None) -> "Intervention":  # noqa: ARG002 - for operators with tensors per layer
        """Return what is done at one of the layers, which a run binds there; by default the same at every layer."""
        return self

    @property
    def called(self) -> Callable[[Tensor], Tensor | None] | None:
        """The function that a run calls with the activations (instead of calling `change`), or `None`."""
        return None

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Return the new values at the affected positions.

        `value` has the shape "row step ... feature". `amount` (strength x schedule) and `parts` (the intervention's
        own tensors, bound to the batch) broadcast against `value`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define change(): use Add, Ablate, Clamp, ...")


def _one_layer(layer: Any, layers: Any) -> int:
    """Return the block that was given as `layer` instead of `layers`."""
    if layers is not None:
        raise InputError(f"layer={shown(layer)} and layers={shown(layers)} were both given: give one of them.")
    try:
        return whole_number(layer)
    except TypeError:
        raise InputTypeError(f"layer={shown(layer)}: expected a layer number; layers=[...] takes several.") from None


def _unit(direction: Tensor) -> Tensor:
    return direction / _norm(direction)


def _norm(direction: Tensor) -> Tensor:
    """Return the norm along the last axis, computed so that the squares do not overflow or underflow float32."""
    largest = direction.abs().amax(dim=-1, keepdim=True)
    safe = torch.where((largest < 1e-15) | (largest > 1e15), largest, torch.ones_like(largest)).clamp_min(1e-38)
    return (direction / safe).norm(dim=-1, keepdim=True) * safe


def _nonzero(name: str, direction: Tensor) -> None:
    if not bool((direction != 0).any(dim=-1).all()):
        raise InputError(f"{name} is zero: expected a vector of nonzero length.")


@guarded
@dataclass(frozen=True, eq=False)
class Add(Intervention):
    """Add `strength * vector`, where `vector` has the shape "d_model", or "row d_model" for one vector per row.

    At head sites the shape is "d_head", "head d_head" or "row head d_head".

    Raises:
        InputTypeError, InputError: if the vector has non-finite entries, or (in a run) the wrong width for the site.
    """

    vector: Any

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        object.__setattr__(self, "vector", finite("vector", self.vector))

    @property
    def operands(self) -> dict[str, Operand]:
        return {"vector": Operand(self.vector, "vector")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Return `value + amount * vector`."""
        return value + (amount * parts["vector"]).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Ablate(Intervention):
    """Project `direction` out. Strength 1 removes the whole component along the direction, and 0.5 removes half of it.

    Raises:
        InputTypeError, InputError: if the direction has non-finite entries or is zero, or (in a run) has the wrong
            width for the site.
    """

    direction: Any

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        object.__setattr__(self, "direction", finite("direction", self.direction))
        _nonzero("direction", self.direction)

    @property
    def operands(self) -> dict[str, Operand]:
        return {"direction": Operand(self.direction, "vector")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Return `value` minus `amount` times its projection onto the unit direction."""
        unit = _unit(parts["direction"])
        along = (value.float() * unit).sum(-1, keepdim=True)
        return value - (amount * along * unit).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Clamp(Intervention):
    """Set the projection onto the unit direction to `value` times the direction's own norm.

    `value` is one number, or one number per affected row. A `value` of 0 is equivalent to `Ablate`, and 1 sets the
    projection to the direction's full length.

    Raises:
        InputTypeError, InputError: as for `Ablate`; also if a value is not finite, or (in a run) if there is not one
            value per affected row.
    """

    direction: Any
    value: Any

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        object.__setattr__(self, "direction", finite("direction", self.direction))
        object.__setattr__(self, "value", numbers("value", self.value))
        _nonzero("direction", self.direction)

    @property
    def operands(self) -> dict[str, Operand]:
        return {"direction": Operand(self.direction, "vector"), "value": Operand(self.value, "per row")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Interpolate the projection of `value` from its present size (`amount` 0) to the target (`amount` 1)."""
        direction = parts["direction"]
        unit = _unit(direction)
        along = (value.float() * unit).sum(-1, keepdim=True)
        target = parts["value"] * _norm(direction)
        return value + (amount * (target - along) * unit).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Replace(Intervention):
    """Replace activations with values of shape "feature", "row feature", or the site's full shape "row step feature".

    If the values have a step axis, their first step replaces the first of the selected steps. With `prefix=True`, the
    selection begins at the first position of the longest prefix among the rows, as in a recording. Values for an
    attention pattern have the shape "row head query key", "row head key", "head key" or "key", with keys in the same
    order as in a recording. Keys beyond those of the run are dropped. A strength between 0 and 1 interpolates between
    the old and the new values.

    Raises:
        InputTypeError, InputError: if the values are not finite numbers, or (in a run) have a shape that does not fit
            the site, or fewer rows, steps, tokens or keys than the intervention changes.
    """

    values: Any
    overwrites = True

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        object.__setattr__(self, "values", finite("values", self.values))

    @property
    def operands(self) -> dict[str, Operand]:
        return {"values": Operand(self.values, "values")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Interpolate from `value` (at `amount` 0) to the new values (at `amount` 1, where they are used exactly)."""
        values = parts["values"].to(value.dtype).expand_as(value)
        return torch.where(amount == 1, values, value + (amount * (values.float() - value.float())).to(value.dtype))


@guarded
@dataclass(frozen=True, eq=False)
class Scale(Intervention):
    """Multiply activations by `factor`, which is one number, or one number per affected row.

    A strength below 1 interpolates between a factor of 1 (at strength 0) and `factor` (at strength 1).

    Raises:
        InputTypeError, InputError: if a factor is not a finite number, or (in a run) if there is not one factor per
            affected row.
    """

    factor: Any

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        object.__setattr__(self, "factor", numbers("factor", self.factor))

    @property
    def operands(self) -> dict[str, Operand]:
        return {"factor": Operand(self.factor, "per row")}

    def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:
        """Interpolate from `value` (at `amount` 0) to `value` times the factor (at 1)."""
        factor = parts["factor"]
        # At full strength, use the factor itself, because computing 1 + (factor - 1) would round a small factor.
        return value * torch.where(amount == 1, factor, 1 + amount * (factor - 1)).to(value.dtype)


@guarded
@dataclass(frozen=True, eq=False)
class Apply(Intervention):
    """Call `function(value)` on the affected rows of one branch, in the site's shape, and use what it returns.

    The function receives a copy of the values. If the function returns `None`, that copy is used, with any changes made
    in place. With `branch="both"` the function is called once for each branch. `strength` and `schedule` do not apply,
    and passing either raises an error.

    Raises:
        InputTypeError: if the function is not callable with one argument.
        InputError: if a strength or a schedule is given. An `InputError` is also raised while a model runs, if the
            function returns anything except `None` or a tensor of the shape that it received.
    """

    function: Callable[[Tensor], Tensor | None]
    overwrites = True

    @property
    def called(self) -> Callable[[Tensor], Tensor | None]:
        return self.function

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        checked_function("function", self.function, "a function of the activations", None)
        if self.schedule is not None or bool((torch.as_tensor(self.strength, device="cpu") != 1).any()):
            raise InputError("Apply takes no strength and no schedule, because the function determines the change.")
