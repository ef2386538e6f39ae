"""The area under effect against drift: how large an effect is within a budget of drift, in one number.

The curve of a method joins its doses of one sign by straight lines, in the order of the doses, from no effect at no
drift. A dose that drifts less than a weaker one is placed at the drift of the weaker one. After the last dose the curve
stays level, because the last dose remains available if more drift is allowed. The area up to the limit, divided by the
limit, is the mean effect over all budgets of drift from 0 to the limit, in the unit of the effect.
"""

import numpy as np
from jaxtyping import Float

from audiolens.checks import checked_amount, numbers_of
from audiolens.door import guarded
from audiolens.errors import InputError

Curve = Float[np.ndarray, "*curve dose"]


@guarded
def area_under(drifts: Curve, effects: Curve, limit: float) -> Float[np.ndarray, "*curve"]:
    """Return the mean effect over drifts from 0 to `limit` of one or many curves.

    Args:
        drifts: the drift of each dose, in the order of the doses; a drift below 0 counts as 0.
        effects: the effect of each dose.
        limit: the common limit of all curves, in the unit of the drifts.

    Raises:
        InputError: if the shapes differ, a value is not finite, or the limit is not above 0.
    """
    x, y = numbers_of("drifts", drifts), numbers_of("effects", effects)
    if x.shape != y.shape or not x.ndim or not x.shape[-1]:
        raise InputError(f"drifts of shape {x.shape}, effects of shape {y.shape}: expected one of each per dose.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise InputError("drifts or effects contain NaN or infinity: leave out doses that were not measured.")
    return np.asarray((weights(x, checked_amount("limit", limit, above=0)) * y).sum(-1))


def weights(drifts: Curve, limit: float) -> Curve:
    """Return the weight of each dose's effect in the area, which is linear in the effects if the drifts are given."""
    ends = np.maximum.accumulate(np.maximum(drifts, 0.0), axis=-1)
    starts = np.concatenate([np.zeros_like(ends[..., :1]), ends[..., :-1]], axis=-1)
    inside = np.minimum(ends, limit) - np.minimum(starts, limit)
    length = ends - starts
    # Over the part of a segment inside the limit, the mean height lies between both ends, in proportion to that part.
    share = np.divide(inside, length, out=np.zeros_like(length), where=length > 0) / 2
    found = inside * share
    found[..., :-1] += (inside * (1 - share))[..., 1:]
    found[..., -1] += np.maximum(limit - ends[..., -1], 0.0)
    return found / limit
