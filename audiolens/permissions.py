"""Permissions: results that were made in private become as readable as any other file of the user's."""

import os
from pathlib import Path


def opened(path: Path) -> Path:
    """Give a file or folder the mode the umask would have given it.

    `tempfile` and safetensors make theirs readable by the owner alone, and renaming keeps that.
    """
    # There is no way to read the umask but to set it; the strictest one meanwhile exposes nothing.
    umask = os.umask(0o077)
    os.umask(umask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
    return path
