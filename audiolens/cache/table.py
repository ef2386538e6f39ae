"""Convert a cache to a table with one line per recorded vector, including the norm of the vector."""

from typing import TYPE_CHECKING, Any

import numpy as np

from audiolens.model.sites import Site

if TYPE_CHECKING:
    from audiolens.cache.activation_cache import ActivationCache

_TIME = ("step", "query")


def lengths(cache: "ActivationCache") -> Any:
    """See `ActivationCache.to_frame`."""
    import pandas as pd

    nothing = pd.DataFrame({"name": [], "norm": []})
    return pd.concat([pd.DataFrame(_columns(cache, name)) for name in cache] or [nothing], ignore_index=True)


def _columns(cache: "ActivationCache", name: str) -> dict[str, Any]:
    """The columns of the table for one site, in order."""
    import pandas as pd

    site, axes = Site.of(name), cache.axes[name][:-1]
    norms = cache[name].detach().float().norm(dim=-1).cpu().numpy()
    coordinates: dict[str, Any] = dict(zip(axes, np.indices(norms.shape).reshape(len(axes), -1), strict=True))
    time = next((axis for axis in _TIME if axis in axes), None)
    if "branch" in axes:
        coordinates["branch"] = np.array(["cond", "null"])[coordinates["branch"]]
    if "head" in axes and cache.heads is not None:
        coordinates["head"] = np.array(cache.heads)[coordinates["head"]]
    if time is not None:
        coordinates[time] = coordinates[time] + cache.first_step
    columns = {"name": name, "site": site.short}
    # The type must be nullable, because sites outside the blocks have no layer, and NaN would make all layers floats.
    whole = {axis: pd.array(of, dtype="Int64") for axis, of in coordinates.items() if of.dtype.kind == "i"}
    columns |= {"layer": pd.array([site.layer] * norms.size, dtype="Int64"), **coordinates, **whole}
    if len(cache.prompts) == norms.shape[axes.index("row")]:
        # Position embeddings are recorded once for all rows, so they have no prompt.
        columns["prompt"] = np.array(cache.prompts, dtype=object)[coordinates["row"]]
    if time is not None:
        columns["seconds"] = coordinates[time] / cache.frame_rate
    return columns | {"norm": norms.ravel()}
