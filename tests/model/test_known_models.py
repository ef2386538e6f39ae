"""Models that are known by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audiolens.errors import ModelFilesError, ModelNotFoundError
from audiolens.model import known_models


def test_an_etude_that_is_not_in_the_package_is_found_in_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "etudes" / "etude-deep"
    monkeypatch.setitem(known_models.BESIDE, "etude-deep", folder)
    with pytest.raises(ModelFilesError, match=r"etude-deep is not included .*training\.train etude-deep"):
        known_models.folder_of("etude-deep")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({}))
    assert known_models.folder_of("etude-deep") == folder


def test_a_name_that_is_almost_right_is_suggested() -> None:
    with pytest.raises(ModelNotFoundError, match="etude-plain"):
        known_models.folder_of("etude-plian")
