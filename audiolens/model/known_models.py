"""The models that are known by name, and the folder of a model on this machine.

This module does not import torch, so that the command line can list the models and refuse an unknown name at once.
"""

import re
from pathlib import Path

from audiolens.checks import shown
from audiolens.errors import ModelFilesError, ModelNotFoundError, nearest

CONFIG = "config.json"
BUNDLED = {"etude": Path(__file__).parents[1] / "etude" / "weights"}
"""Models that are included in the package."""
_CHECKOUT = Path(__file__).parents[2] / "etudes"
BESIDE = {name: _CHECKOUT / name for name in ("etude-melody", "etude-2", "etude-deep", "etude-plain", "etude-3")}
"""Models that are known by name in a checkout of the repository, but are not included in the package."""

HUB = (
    "facebook/musicgen-small",
    "facebook/musicgen-medium",
    "facebook/musicgen-large",
    "facebook/musicgen-stereo-small",
    "facebook/musicgen-stereo-medium",
    "facebook/musicgen-stereo-large",
    "facebook/musicgen-melody",
    "facebook/musicgen-melody-large",
    "facebook/musicgen-stereo-melody",
    "facebook/musicgen-stereo-melody-large",
)
"""Hub names that are known to belong to a supported family. Other models of these families also work."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def folder_of(name: str) -> Path | None:
    """Return the folder of a model on this machine, or `None` if the name is that of a model on the hub.

    Raises:
        ModelNotFoundError: if the name is neither a bundled model, nor a folder, nor a hub name.
        ModelFilesError: if the folder contains no model.
    """
    if name in BUNDLED:
        folder = BUNDLED[name]
        if not (folder / CONFIG).is_file():
            raise ModelFilesError(
                f"the bundled model {shown(name)} is not in this installation ({folder} contains no config.json): "
                "reinstall audiolens, or train the model with `python -m audiolens.etude.training.train etude-0`."
            )
        return folder
    if name in BESIDE:
        if not (BESIDE[name] / CONFIG).is_file():
            raise ModelFilesError(
                f"{name} is not included in the package, and {BESIDE[name]} does not contain it: open it from a "
                "checkout of a repository that contains it, or train it with "
                f"`python -m audiolens.etude.training.train {name}` and give its folder."
            )
        return BESIDE[name]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists():
            raise ModelNotFoundError(f"{name} is a file: give the folder that contains the model.")
        if _HUB_NAME.fullmatch(name) and not name.startswith("."):
            return None
        raise ModelNotFoundError(
            f"unknown model {shown(name)}: it is neither a bundled model nor a folder nor a hub name (owner/name)."
            f"{nearest(name, [*BUNDLED, *BESIDE, *HUB])} 'etude' is bundled and works offline."
        )
    if not (folder / CONFIG).is_file():
        raise ModelFilesError(
            f"{folder} contains no config.json: it is not a saved model. Give the folder that "
            "save_pretrained wrote, a hub name, or 'etude'."
        )
    return folder
