"""Sound files: read whole, or refused with what is wrong with them.

`AudioLens` reads the files it is given here, and `audiolens measure` those it measures. libsndfile opens a file that
was cut short and hands out what is there, silently: what the file says of itself is compared with what it holds.
"""

import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import Float

from audiolens.errors import InputError, InputTypeError

_SIZES = re.compile(r":\s*(\d+) \(should be (\d+)\)")
"""A line of libsndfile's log about a header that promises another size than the file has."""
_UNKNOWN = 2**31 - 2**20
"""Sizes from here on are what a program writes that cannot go back to its header, such as one that writes to a pipe."""


def read(path: str | os.PathLike[str]) -> tuple[Float[np.ndarray, "channel sample"], int]:
    """The samples of a sound file, floats in [-1, 1], and its sample rate in hertz.

    Raises:
        InputError: if there is no such file, or it is empty, cut short, or not a sound file.
    """
    import soundfile

    if not isinstance(path, str | os.PathLike):
        raise InputTypeError(f"{path!r}: expected the path of a sound file.")
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"{file}: no such file{', but a folder' if file.is_dir() else ''}.")
    if not file.stat().st_size:
        raise InputError(f"{file} is empty: there is no sound in it.")
    try:
        about = soundfile.info(file, verbose=True)
        samples, sample_rate = soundfile.read(file, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(
            f"{file} is not a sound file that can be read, or not a whole one: {error.error_string}"
        ) from None
    sizes = [(int(said), int(held)) for said, held in _SIZES.findall(about.extra_info)]
    short = any(held < said < _UNKNOWN for said, held in sizes)
    if short or len(samples) < about.frames:
        raise InputError(
            f"{file} was cut short: it holds {len(samples) / sample_rate:.2f} s and says it has more. Copy it again."
        )
    if not len(samples):
        raise InputError(f"{file} holds no samples, or lost them: there is no sound in it.")
    return samples.T, sample_rate
