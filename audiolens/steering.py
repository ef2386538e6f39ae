"""Steering: a placed direction as interventions: which layer's vector goes where, how strong, when, on which rows.

The strategies are those of Facchiano et al. (2025): one layer's vector at its own block (one-to-one), at every block
(one-to-all, the paper's best) or in a band of blocks (one-to-band); and every block its own vector (all-to-all).
Steering several concepts at once is adding the lists: `steer(tempo, ...) + steer(timbre, ...)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from audiolens.directions import Directions
from audiolens.errors import InputError, InputTypeError, SiteError, nearest
from audiolens.interventions import Ablate, Add, Branch, Clamp, Intervention, Numbers, Schedule, numbers
from audiolens.sites import checked_layers
from audiolens.timeline import Span

Strategy = Literal["one-to-one", "one-to-all", "one-to-band", "all-to-all"]
Unit = Literal["raw", "unit", "residual"]
Operator = Literal["add", "ablate", "clamp"]


def steer(
    directions: Directions,
    strategy: Strategy = "one-to-all",
    layer: int | None = None,
    layers: int | Sequence[int] | None = None,
    band: tuple[int, int] | None = None,
    strength: Numbers = 1.0,
    unit: Unit = "raw",
    branch: Branch = "both",
    seconds: Span | None = None,
    rows: Sequence[int] | None = None,
    schedule: Schedule | None = None,
    preserve_norm: bool = False,
    operator: Operator = "add",
    prefix: bool = False,
) -> list[Intervention]:
    """The interventions that steer along a direction.

    Args:
        directions: what to steer along; the site is the one they were read at.
        strategy: "one-to-one" puts `layer`'s vector at `layer`, "one-to-all" at every block, "one-to-band" at the
            blocks of `band` (or `layers`); "all-to-all" puts every block's own vector there (or at `layers` only).
        layer: whose vector, in the one-to strategies; may be left out where there is only one.
        layers: target blocks of "one-to-band" and "all-to-all", any list of them.
        band: target blocks of "one-to-band", as (first, last), both included.
        strength: the coefficient; negative steers to the negative pole. A number, or one per affected row, so that a
            whole dose-response runs in one batch.
        unit: what a strength of 1 is: "raw" the whole difference of means (the paper's), "unit" a vector of length 1,
            "residual" the mean length of the activations at the block that is changed.
        branch: "cond", "null" or "both". To first order "cond" alone moves the guided logits by guidance_scale times
            what "both" does: strengths compare only within one branch.
        seconds: (from, to); `None` is the whole clip, the tail included.
        rows: affected rows; `None` is all.
        schedule: multiplies the strength over time: a function of the time in seconds, or one number per frame.
        preserve_norm: rescale every changed position to the length it had.
        operator: "add"; "clamp" sets the projection on the direction to `strength` x `unit` (0 is no direction, not
            no change); "ablate" removes the share `strength` of the projection, whatever the unit.
        prefix: steer the conditioning before step 0 too, where it stands in the decoder's own sequence.

    Returns:
        One intervention per different vector, to be given to `lens.generate(interventions=...)`.

    Raises:
        InputError: (or a subclass) for a strategy, layer, band or strength that makes no sense here, naming what does.
    """
    if not isinstance(directions, Directions):
        raise InputTypeError(f"{type(directions).__name__}: expected Directions; for a bare vector, use Add.")
    _choose("strategy", strategy, Strategy)
    _choose("unit", unit, Unit)
    _choose("operator", operator, Operator)
    amount = numbers("strength", strength)
    where: dict[str, Any] = {
        "site": directions.meta.site,
        "branch": branch,
        "seconds": seconds,
        "rows": rows,
        "schedule": schedule,
        "preserve_norm": preserve_norm,
        "prefix": prefix,
    }
    return [
        _intervention(placed, operator, amount, where)
        for placed in _placed(directions, strategy, layer, layers, band, "unit" if operator == "ablate" else unit)
    ]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A vector and the blocks it goes to."""

    vector: Float[Tensor, " d_model"]
    layers: list[int]


def _placed(
    directions: Directions,
    strategy: Strategy,
    layer: int | None,
    layers: int | Sequence[int] | None,
    band: tuple[int, int] | None,
    unit: Unit,
) -> list[_Placed]:
    n_layers = directions.meta.n_layers
    if strategy == "all-to-all":
        _refuse(strategy, layer=layer, band=band)
        targets = list(directions.layers) if layers is None else checked_layers(layers, n_layers)
        return [_Placed(_scaled(directions, target, target, unit), [target]) for target in targets]
    source = _source(directions, strategy, layer)
    if strategy == "one-to-band":
        targets = _band(band, layers, n_layers)
    else:
        _refuse(strategy, layers=layers, band=band)
        targets = [source] if strategy == "one-to-one" else list(range(n_layers))
    if unit != "residual":
        return [_Placed(_scaled(directions, source, source, unit), targets)]
    return [_Placed(_scaled(directions, source, target, unit), [target]) for target in targets]


def _scaled(directions: Directions, source: int, target: int, unit: Unit) -> Float[Tensor, " d_model"]:
    """The vector of one layer, at the length that a strength of 1 means at another."""
    vector = directions[source]
    length = float(vector.norm())
    if length == 0:
        raise InputError(f"the direction at layer {source} is zero: there is nothing to steer along.")
    if unit == "raw":
        return vector
    return vector / length * (directions.residual_norm(target) if unit == "residual" else 1.0)


def _intervention(placed: _Placed, operator: Operator, amount: Tensor, where: dict[str, Any]) -> Intervention:
    if operator == "add":
        return Add(placed.vector, strength=amount, layers=placed.layers, **where)
    if operator == "ablate":
        return Ablate(placed.vector, strength=amount, layers=placed.layers, **where)
    return Clamp(placed.vector, amount, layers=placed.layers, **where)


def _source(directions: Directions, strategy: Strategy, layer: int | None) -> int:
    if layer is None:
        if len(directions) == 1:
            return directions.layers[0]
        raise SiteError(f"strategy={strategy!r} needs layer=: whose vector, of {_listed(directions)}.")
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InputTypeError(f"layer={layer!r}: expected a layer number.")
    checked_layers(layer, directions.meta.n_layers)
    if layer not in directions:
        raise SiteError(f"no direction at layer {layer}: there are {_listed(directions)}.")
    return layer


def _band(band: Any, layers: int | Sequence[int] | None, n_layers: int) -> list[int]:
    if (band is None) == (layers is None):
        raise InputError(
            "strategy='one-to-band' needs band=(first, last), both included, or layers=[...]: one of them."
        )
    if layers is not None:
        return checked_layers(layers, n_layers)
    if not isinstance(band, tuple | list) or len(band) != 2 or not all(type(end) is int for end in band):
        raise InputTypeError(f"band={band!r}: expected a pair of layers (first, last), both included.")
    if band[0] > band[1]:
        raise InputError(f"band={tuple(band)} is empty: the first layer comes after the last.")
    for end in band:
        checked_layers(end, n_layers)
    return list(range(band[0], band[1] + 1))


def _refuse(strategy: Strategy, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"strategy={strategy!r} takes no {name}=: {name}={value!r} would be ignored.")


def _choose(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name}={value!r}.{nearest(str(value), get_args(choices))} Expected one of: "
                         f"{', '.join(get_args(choices))}.")  # fmt: skip


def _listed(directions: Directions) -> str:
    return "layers " + ", ".join(map(str, directions.layers))
