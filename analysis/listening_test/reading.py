"""Read the responses to a listening test from its folder, and analyse them."""

from __future__ import annotations

import os

from analysis.listening_test import levels
from analysis.listening_test.design import NO_CHECKS, RESPONSES, read_key
from analysis.listening_test.preference import Preference, preference
from analysis.listening_test.ratings import Ratings, ratings
from analysis.listening_test.responses import read_responses
from analysis.resampling import CONFIDENCE, Resampling, checked_resampling
from audiolens.checks import checked_count, checked_seed
from audiolens.door import guarded
from audiolens.errors import InputError
from audiolens.files.atomic import as_path
from audiolens.groups import takes


@guarded
@takes("resampling", Resampling)
def read(
    folder: str | os.PathLike[str],
    *,
    most_failed: int = 0,
    n_bootstrap: int = 1000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
) -> Preference | Ratings:
    """Return the analysis of a listening test, from the folder that `write` made and the responses put into it.

    Args:
        folder: contains the key, and the listeners' files in `responses/`. Files of another test, of a listener who
            was not invited, without consent, repeated, damaged or incomplete are not used; `refused` lists them.
        most_failed: how many attention checks a listener may fail (pairs). Ratings are screened as BS.1534-3 says.
        n_bootstrap, confidence, seed: number of draws, coverage and seed of the intervals.
        resampling: a `Resampling` instead of these three.

    Raises:
        InputError: if the folder has no listening test, if no response can be used, if no listener passed, or if
            `most_failed` is given for ratings.
        DamagedError: if the key is not what was written.
    """
    levels.refuse_missing()
    place = as_path(folder)
    checked_count("most_failed", most_failed, 0)
    checked_resampling(confidence, n_bootstrap)
    drawn = checked_seed(seed)
    key = read_key(place)
    if key.mode == "mushra" and most_failed:
        raise InputError(f"most_failed={most_failed} goes with a test of pairs: {NO_CHECKS}.")
    responses, refused = read_responses(place, key)
    if not responses:
        why = f" ({refused[0].file}: {refused[0].reason.rstrip('.')}, ...)" if refused else ""
        raise InputError(
            f"{place / RESPONSES} contains no response that can be used, and {len(refused)} that cannot{why}: put the "
            "files that listeners downloaded there."
        )
    if key.mode == "mushra":
        return ratings(key, responses, refused, n_bootstrap, confidence, drawn)
    return preference(key, responses, refused, most_failed, n_bootstrap, confidence, drawn)
