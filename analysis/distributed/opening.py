"""Open the backend that generates and measures the batches of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.distributed.backend import Backend
from analysis.distributed.settings import Ray
from analysis.listening import Listener
from audiolens.checks import shown
from audiolens.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from audiolens import AudioLens


def backend_of(
    lens: AudioLens,
    measures: Sequence[str],
    n_jobs: int | None = None,
    ray: Ray | None = None,
    n_batches: int | None = None,
) -> Backend:
    """Return the backend of a Ray cluster or, with `ray=None`, that of processes on this machine."""
    if ray is None:
        return Listener(lens, measures, n_jobs, n_batches)
    # Ray's backend opens modules that only its workers need otherwise.
    from analysis.distributed.ray_backend import RayListener

    return RayListener(lens, measures, ray, n_batches)


def check_ray(n_jobs: int | None, ray: Ray | None) -> None:
    """Raise an error if a cluster is not a `Ray`, or if a number of processes was given too."""
    if ray is not None and not isinstance(ray, Ray):
        raise InputTypeError(f"ray={shown(ray)}: expected analysis.distributed.Ray(...), or None.")
    if n_jobs is not None and ray is not None:
        raise InputError(f"n_jobs={n_jobs} and ray= were both given: Ray's workers take the place of the processes.")
