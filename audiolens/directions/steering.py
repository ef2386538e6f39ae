"""Turn directions into interventions that steer along them with a chosen strength, at chosen blocks, times and rows.

The strategies are those of Facchiano et al. (2025). One layer's vector is applied at its own block (one-to-one), at
every block (one-to-all, the best in the paper) or in a band of blocks (one-to-band). In the fourth strategy,
all-to-all, each block's own vector is applied at that block. A fifth one, "heads", steers single attention heads
(`heads.py`).

To steer several concepts at once, give a list of directions, each multiplied by a signed weight
(`steer([tempo, -0.5 * timbre])`). To give each row and concept its own strength, add the lists that `steer` returns:
`steer(tempo, strength=...) + steer(timbre, strength=...)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from audiolens.checks import checked_flags, listed, one_or_listed, shown, whole_number, whole_numbers
from audiolens.directions.calibration import normal_place, placed
from audiolens.directions.directions import Directions
from audiolens.directions.heads import chosen as chosen_heads
from audiolens.directions.strategies import STRATEGIES, Strategy, changed_blocks
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, SiteError, nearest
from audiolens.interventions import Ablate, Add, Branch, Clamp, Intervention, Numbers, Schedule
from audiolens.model.sites import checked_layers, counted, layers_once, listed_layers
from audiolens.model.timeline import Span, one_span
from audiolens.tensors import numbers
from audiolens.vectors import apart
from audiolens.vectors import unit as unit_of

Unit = Literal["raw", "unit", "residual"]
Operator = Literal["add", "ablate", "clamp"]
Combine = Literal["sum", "orthogonalised"]


@guarded
def steer(
    directions: Directions | Sequence[Directions],
    strategy: Strategy = "one-to-one",
    layer: int | Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    band: tuple[int, int] | None = None,
    strength: Numbers | str = 1.0,
    unit: Unit = "raw",
    branch: Branch = "both",
    seconds: Span | None = None,
    rows: Sequence[int] | None = None,
    schedule: Schedule | None = None,
    preserve_norm: bool = False,
    operator: Operator = "add",
    prefix: bool = False,
    combine: Combine = "sum",
    span: Span | None = None,
    heads: int | Sequence[tuple[int, int]] | None = None,
) -> list[Intervention]:
    """Return the interventions that steer along one or several directions.

    Args:
        directions: the directions of one or several concepts. They are applied at the site at which they were read.
        strategy: "one-to-one" adds the vector of `layer` at `layer`. "one-to-all" adds this vector at every block, so
            its effect accumulates and a fraction of the strength is enough. "one-to-band" adds this vector at the
            blocks of `band` (or `layers`). "all-to-all" adds each block's own vector at that block (or only at
            `layers`). "heads" adds to the `heads` whose probes are best their own vectors, at every block (ITI, Li et
            al. 2023). It needs directions that were read at a site with heads, such as "attn.z". There, "one-to-one"
            and "all-to-all" steer all heads of a block.
        layer: the layer whose vector the one-to strategies use; optional if the directions have only one layer. With
            several concepts, give one layer for all of them or one for each.
        layers: the target blocks of "one-to-band" and "all-to-all". Under "one-to-one", it is another name for `layer`.
        band: the target blocks of "one-to-band" as (first, last), both included.
        strength: the coefficient of the vector; a negative coefficient steers towards the negative pole. Give one
            number, or one number per steered row to run a whole dose-response curve in one batch. If the directions are
            calibrated (`Directions.calibrate`), text such as "120 BPM" is the strength at which the median clip has
            this value. The place (strategy, layer, unit, branch, operator) is then that of the calibration. An argument
            that differs from it raises an error, unless it has its default value.
        unit: what a strength of 1 adds. "raw" adds the full difference of means (as in the paper), "unit" adds a vector
            of norm 1, and "residual" adds a vector whose norm is the mean activation norm at the target block. Under
            "heads", only "raw" is possible, and a strength of 1 adds to each head one standard deviation of its samples
            along its vector, times its weight (2 x accuracy of its probe - 1).
        branch: the guidance branch to steer: "cond", "null" or "both". To first order, steering "cond" alone moves the
            guided logits guidance_scale times as far as steering "both", so compare strengths only within one branch.
        seconds, span: two names for the time range to steer, (from, to) in seconds. `None` means the whole clip,
            including the tail (the last steps, which only complete the delayed codebooks).
        rows: the rows to steer; `None` means every row.
        schedule: factors that multiply the strength over time: a function of the time in seconds, or one number per
            frame.
        preserve_norm: rescale every changed position to its original norm.
        operator: "add" adds the vector. "clamp" sets the projection onto the direction to `strength` x `unit`, so a
            strength of 0 removes the direction rather than changing nothing. "ablate" removes a fraction `strength` of
            the projection, regardless of the unit. At sites with heads, both act on every head by itself.
        prefix: also steer the conditioning before step 0, if it is part of the decoder's own sequence.
        combine: how several concepts combine. "sum" uses each vector unchanged. "orthogonalised" removes from each
            vector its component along the previous ones (Gram-Schmidt), so that steering along a later concept does not
            steer along an earlier one. The first vector is unchanged, so the order matters. Without orthogonalisation,
            clamps or ablations of several concepts interfere with one another. "heads" only takes "sum".
        heads: under "heads", how many heads to steer, of those that `d.heads` ranks, or pairs (layer, head).

    Returns:
        One intervention per distinct vector, for `lens.generate(interventions=...)`, in the order of the concepts.

    Raises:
        InputError: (or a subclass) if the strategy, layer, band or strength is invalid; the message lists the valid
            choices.
    """
    checked_flags(preserve_norm=preserve_norm, prefix=prefix)
    concepts = _concepts(directions)
    if isinstance(strength, str):
        if len(concepts) > 1:
            raise InputError(f"strength={shown(strength)} for {len(concepts)} concepts: give numbers.")
        given = {
            "strategy": strategy, "layer": layer, "layers": layers, "band": band, "unit": unit, "branch": branch,
            "operator": operator, "heads": heads,
        }  # fmt: skip
        place = normal_place(given, concepts[0].layers, concepts[0].meta.n_layers)
        if layer is None and layers is None:
            place["layer"] = None
        return steer(
            directions, **placed(concepts[0].calibration, strength, place), seconds=seconds, rows=rows,
            schedule=schedule, preserve_norm=preserve_norm, prefix=prefix, combine=combine, span=span,
        )  # fmt: skip
    _choose("strategy", strategy, Strategy)
    _choose("unit", unit, Unit)
    _choose("operator", operator, Operator)
    _choose("combine", combine, Combine)
    amount = numbers("strength", strength)
    layers = None if layers is None else layers_once(layers)
    if strategy == "heads":
        _refuse(strategy, layer=layer, layers=layers, band=band, unit=None if unit == "raw" else unit,
                combine=None if combine == "sum" else combine)  # fmt: skip
    elif heads is not None:
        _refuse(strategy, heads=heads)
    if strategy == "one-to-one" and layers is not None and band is None:
        layer, layers = _at_one(layer, layers), None
    where: dict[str, Any] = {
        "site": concepts[0].meta.site,
        "branch": branch,
        "seconds": one_span(seconds, span),
        "rows": rows,
        "schedule": schedule,
        "preserve_norm": preserve_norm,
        "prefix": prefix,
        "meta": concepts[0].meta,
    }
    if strategy == "heads":
        chosen = [one for directions in concepts for one in _at_heads(directions, heads)]
    else:
        unit = "unit" if operator == "ablate" else unit
        chosen = _placed(concepts, strategy, layer, layers, band, unit, combine)
    return [_intervention(placed, operator, amount, where) for placed in chosen]


def steered_blocks(steps: Sequence[Intervention]) -> list[int]:
    """Return the blocks that interventions of `steer` change, once for each intervention."""
    return [block for step in steps for block in listed_layers(step.layers or ())]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A vector and its target blocks. At a site with heads, it has one vector per head, and may be for some of them."""

    vector: Float[Tensor, " d_model"] | Float[Tensor, "1 head d_head"]
    layers: list[int]
    heads: list[int] | None = None


def _concepts(directions: Any) -> list[Directions]:
    try:
        found = [directions] if isinstance(directions, Directions) else listed("directions", directions)
    except InputTypeError:
        found = [directions]
    if not all(isinstance(one, Directions) for one in found):
        raise InputTypeError(
            f"{type(directions).__name__}: expected Directions, or a list of them; for a bare vector, use Add."
        )
    if not found:
        raise InputError("no directions: give at least one.")
    for name, differing in (
        ("weights", {one.meta.weights for one in found}),
        ("sites", {one.meta.site for one in found}),
    ):
        if len(differing) > 1:
            raise InputError(
                f"directions of different {name} cannot be steered together: {', '.join(sorted(differing))}."
            )
    return found


def _placed(
    concepts: list[Directions],
    strategy: Strategy,
    layer: int | Sequence[int] | None,
    layers: int | Sequence[int] | None,
    band: tuple[int, int] | None,
    unit: Unit,
    combine: Combine,
) -> list[_Placed]:
    """Return every concept's vectors with their target blocks, one concept after the other."""
    sources = _sources(concepts, strategy, layer)
    n_heads = concepts[0].meta.n_heads
    if n_heads and strategy not in ("one-to-one", "all-to-all"):
        raise InputError(
            f"strategy={shown(strategy)}: these directions are those of the heads at {concepts[0].meta.site}, and a "
            "head's vector means nothing in another block: use 'heads', 'one-to-one' or 'all-to-all'."
        )
    placed = []
    for index, (directions, source) in enumerate(zip(concepts, sources, strict=True)):
        before = list(zip(concepts, sources, strict=True))[:index] if combine == "orthogonalised" else []
        targets = _targets(directions, strategy, source, layers, band)
        # One intervention covers all targets, unless each target needs its own vector or its own scale.
        groups = [targets] if source is not None and unit != "residual" else [[target] for target in targets]
        for group in groups:
            vector = _freed(
                directions,
                group[0] if source is None else source,
                [other[group[0] if read is None else read] for other, read in before],
            )
            scaled = _scaled(vector, directions, group[0], unit)
            # A run tells heads from rows by the leading axis of size 1.
            placed.append(_Placed(rearrange(scaled, "(h d) -> 1 h d", h=n_heads) if n_heads else scaled, group))
    return placed


def _at_heads(directions: Directions, heads: Any) -> list[_Placed]:
    """Return the vectors that a strength of 1 adds to the chosen heads of a concept, block by block."""
    vectors, known = directions.by_head, directions.heads
    if known is None:
        raise InputError(
            f"{shown(directions.meta.label or 'these directions')} has no evidence of heads to choose from: it was "
            "read from too few prompts, or made by arithmetic. Read it again with more prompts, or steer with "
            "'all-to-all'."
        )
    named = chosen_heads(known, heads, directions.meta.n_layers)
    placed = []
    for index, layer in enumerate(directions.layers):
        mine = sorted(head for block, head in named if block == layer)
        if not mine:
            continue
        along, steps = unit_of(vectors[index]), known.steps[index]
        for head in mine:
            if not float(along[head].norm()) or not float(steps[head]):
                raise InputError(f"the direction of head {head} at layer {layer} is zero: choose another head.")
        kept = torch.zeros(len(along), 1, device="cpu")
        kept[mine] = 1
        placed.append(_Placed((along * steps[:, None] * kept)[None], [layer], mine))
    return placed


def _sources(concepts: list[Directions], strategy: Strategy, layer: Any) -> list[int | None]:
    """Return the source layer of each concept's vector; `None` means that each block uses its own vector."""
    if not STRATEGIES[strategy].uses_one_layer:
        _refuse(strategy, layer=layer)
        return [None] * len(concepts)
    given = one_or_listed("layer", layer)
    whose = given if isinstance(given, list) else [given] * len(concepts)
    if len(whose) != len(concepts):
        raise InputError(f"layer={layer} for {len(concepts)} concepts: give one layer for all, or one for each.")
    return [_source(one, strategy, where) for one, where in zip(concepts, whose, strict=True)]


def _targets(directions: Directions, strategy: Strategy, source: int | None, layers: Any, band: Any) -> list[int]:
    n_layers = directions.meta.n_layers
    if source is None:
        _refuse(strategy, band=band)
        return changed_blocks(strategy, None, directions) if layers is None else checked_layers(layers, n_layers)
    if STRATEGIES[strategy].changes == "band":
        return _band(band, layers, n_layers)
    _refuse(strategy, layers=layers, band=band)
    return changed_blocks(strategy, source, directions)


def _freed(directions: Directions, layer: int, before: list[Tensor]) -> Float[Tensor, " d_model"]:
    """Return the vector of a layer without its component along the vectors of the previous concepts."""
    vector = directions[layer]
    if float(vector.norm()) == 0:
        raise InputError(f"the direction at layer {layer} is zero: there is nothing to steer along; choose another.")
    if not before:
        return vector
    rest, empty = apart(vector[None], [other[None] for other in before])
    if bool(empty):
        raise InputError(
            f"nothing is left of {shown(directions.meta.label or 'a direction')} at layer {layer} after removing its "
            "component along the concepts before it: drop it, or use combine='sum'."
        )
    return rest[0]


def _scaled(vector: Tensor, directions: Directions, target: int, unit: Unit) -> Float[Tensor, " d_model"]:
    """Scale a vector to the length that corresponds to a strength of 1 at a block."""
    if unit == "raw":
        return vector
    return vector / float(vector.norm()) * (directions.residual_norm(target) if unit == "residual" else 1.0)


def _intervention(placed: _Placed, operator: Operator, amount: Tensor, where: dict[str, Any]) -> Intervention:
    where = {**where, "layers": placed.layers, "heads": placed.heads}
    if operator == "add":
        return Add(placed.vector, strength=amount, **where)
    # The other heads are not changed, but a vector of zero has no direction.
    vector = placed.vector
    if placed.heads is not None:
        vector = torch.where((vector != 0).any(-1, keepdim=True), vector, torch.ones_like(vector))
    if operator == "ablate":
        return Ablate(vector, strength=amount, **where)
    return Clamp(vector, amount, **where)


def _at_one(layer: Any, layers: int | list[int]) -> int:
    """Return the block of "one-to-one", which the caller gave as `layers` instead of `layer`."""
    chosen = [layers] if isinstance(layers, int) else layers
    if layer is not None:
        raise InputError(
            f"layer={shown(layer)} and layers={shown(layers)} were both given: 'one-to-one' takes one block."
        )
    if len(chosen) != 1:
        raise InputError(
            f"layers={shown(layers)}: strategy='one-to-one' takes one block. Use 'all-to-all' for each block's own "
            "vector, or 'one-to-band' with layer= for one block's vector."
        )
    return chosen[0]


def _source(directions: Directions, strategy: Strategy, layer: int | None) -> int:
    if layer is None:
        if len(directions) == 1:
            return directions.layers[0]
        raise SiteError(f"strategy={shown(strategy)} needs layer=: choose one of {_listed(directions)}.")
    try:
        number = whole_number(layer)
    except TypeError:
        raise InputTypeError(f"layer={shown(layer)}: expected a layer number.") from None
    number = counted(number, directions.meta.n_layers)
    if number not in directions:
        raise SiteError(f"no direction at layer {number}: these directions have {_listed(directions)}.")
    return number


def _band(band: Any, layers: int | Sequence[int] | None, n_layers: int) -> list[int]:
    if (band is None) == (layers is None):
        raise InputError(
            "strategy='one-to-band' needs band=(first, last), both included, or layers=[...], but not both."
        )
    if layers is not None:
        return checked_layers(layers, n_layers)
    try:
        first, last = whole_numbers(listed("band", band))
    except (TypeError, ValueError):
        raise InputTypeError(f"band={shown(band)}: expected a pair of layers (first, last), both included.") from None
    first, last = counted(first, n_layers), counted(last, n_layers)
    if first > last:
        raise InputError(f"band={(first, last)} is empty: the first layer comes after the last.")
    return list(range(first, last + 1))


def _refuse(strategy: Strategy, **given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise InputError(f"strategy={shown(strategy)} takes no {name}=: {name}={shown(value)} would be ignored.")


def _choose(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise InputError(f"{name}={shown(value)}.{nearest(str(value), get_args(choices))} Expected one of: "
                         f"{', '.join(get_args(choices))}.")  # fmt: skip


def _listed(directions: Directions) -> str:
    return "layers " + ", ".join(map(str, directions.layers))
