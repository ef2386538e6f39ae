"""The settings of a study as a TOML file, which each study writes and `audiolens study --config` reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.store import settings_file
from audiolens.door import guarded
from audiolens.files.atomic import as_path
from audiolens.prompts import concepts, load
from audiolens.prompts.files import VOCABULARIES

if TYPE_CHECKING:
    from analysis.study.result import Study

FILE = "study.toml"
_NOTES = (
    "audiolens study --config study.toml -o FOLDER takes these settings again. A study of your own prompts",
    "also needs their files again, and the device and dtype are those of the command.",
)


def _kind() -> type[Any]:
    from analysis.study.settings import Settings

    return Settings


_FORM = settings_file.Form(("concept", "model", "revision", "others"), (), _kind, "poles=24")


@dataclass(frozen=True)
class Config:
    """What a file states: texts that options also state (`None` if it does not), and the fields of `Settings`."""

    concept: str | None = None
    model: str | None = None
    revision: str | None = None
    others: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def text_of(study: Study) -> str:
    """Return the contents of the file that states a study's concept, model and all settings.

    A concept is named if the study's prompts are the bundled ones, because those of its name would be taken again.
    """
    known = concepts(None)
    top = {
        "concept": study.concept if _is_bundled(study) else "", "model": study.model,
        "revision": study.directions.meta.revision, "others": ",".join(study.others) or settings_file.NONE,
    }  # fmt: skip
    if any(name not in known for name in study.others):
        del top["others"]
    return settings_file.text_of(_NOTES, top, study.settings)


def _is_bundled(study: Study) -> bool:
    """Return whether a study's prompts are those of the bundled concept of that name, in one of its vocabularies."""
    from audiolens.model.provenance import prompts_hash

    meta, neutral = study.directions.meta, {*study.clips.query("condition == 'baseline'")["prompt"]}
    n_positive, n_negative = meta.n_prompts
    bundled = [load(study.concept, one) for one in VOCABULARIES if study.concept in concepts(one)]
    return any(
        meta.prompts == prompts_hash(one.positive[:n_positive], one.negative[:n_negative])
        and neutral <= {*one.development, *one.test}
        for one in bundled
    )


def read(path: Path) -> Config:
    """Read such a file. Fields of `Settings` that it lacks have their defaults.

    Raises:
        InputError: as `settings_file.Form.read`.
    """
    top, settings = _FORM.read(path)
    return Config(**top, settings=settings)


@guarded
def load_arguments(file: str | os.PathLike[str], **changes: Any) -> dict[str, Any]:
    """Return the arguments of `study.run` that repeat the study of a `study.toml`, besides the lens and the folder.

    A file of a study of your own prompts names no concept, so give the prompts as `concept` again.

    Args:
        file: the path of the file.
        changes: fields of `Settings` to change, such as `seed=1`.

    Raises:
        InputError: if the file cannot be read, or a setting is unknown or wrong.
    """
    stated = read(as_path(file))
    settings_file.refuse_unknown("study", changes, _FORM.names())
    found: dict[str, Any] = {"settings": _kind()(**{**stated.settings, **changes})}
    if stated.concept is not None:
        found["concept"] = stated.concept
    if stated.others is not None:
        names = [name.strip() for name in stated.others.split(",")]
        found["others"] = [] if names == [settings_file.NONE] else names
    return found


def assigned(texts: Iterable[str]) -> dict[str, Any]:
    """Return the settings in texts such as "poles=24" (`settings_file.Form.assigned`)."""
    return _FORM.assigned(texts)
