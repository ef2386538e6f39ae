"""The page of a study with one clip, of one in which everything failed, and of one that could not be measured."""

import re
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plants import tables as planted

from analysis import sweep
from analysis.study import Settings, Study, test_result
from analysis.sweep.controls import KINDS

UNSAID = ("nan", "+nan", "inf", "none", "1 prompts", "1 seeds", "1 rows", "1 tests", "1 controls", "1 more clips")


def of(clips: pd.DataFrame, settings: Settings, measure: str = "tempo_ioi") -> Study:
    """The planted study with other test clips."""
    found = planted.study()
    response = sweep.effects(clips, measure, n_bootstrap=50)
    controls = clips[clips["kind"].isin([*KINDS, "baseline"])]
    same = test_result.on_same_clips(clips, controls, measure)
    kept = {(row.condition, row.prompt, row.seed) for row in clips.itertuples()}
    return replace(
        found, clips=clips, measure=measure, response=response, settings=settings, side_effects=None,
        outcomes=test_result.outcomes(response, found.poles, found.choice, same),
        monotonicity=test_result.monotonicity(response), cross=test_result.cross_effects(clips, n_bootstrap=50),
        sounds={key: sound for key, sound in found.sounds.items() if key in kept},
    )  # fmt: skip


def one_clip(clips: pd.DataFrame) -> pd.DataFrame:
    return clips[(clips["prompt"] == clips["prompt"].iloc[0]) & (clips["seed"] == 0)]


def all_failed(clips: pd.DataFrame) -> pd.DataFrame:
    return clips.assign(failed=clips["kind"] != "baseline")


def unmeasured(clips: pd.DataFrame) -> pd.DataFrame:
    return clips.assign(tempo_ioi=clips["tempo_ioi"].where(clips["kind"] == "baseline", np.nan))


def shown(page: str) -> str:
    """What a reader sees of a page."""
    body = re.sub(r"<(script|style|svg).*?</\1>", " ", page.partition("<body>")[2], flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


@pytest.mark.parametrize(
    ("change", "settings", "headline"),
    [
        (one_clip, {"test": 1, "test_seeds": 1, "development": 1, "development_seeds": 1}, "did not reliably make"),
        (all_failed, {}, "did not reliably make"),
        (unmeasured, {}, "did not reliably make"),
    ],
)
def test_a_page_says_what_is_missing(
    change: Callable[[pd.DataFrame], pd.DataFrame], settings: dict[str, Any], headline: str, tmp_path: Path
) -> None:
    found = planted.study()
    clips = change(found.clips[found.clips["split"] == "test"])
    odd = of(clips, Settings(**settings))
    text = shown((odd.save(tmp_path / "odd") / "index.html").read_text("utf-8"))
    assert headline in odd.headline
    assert "supports no claim" not in odd.headline
    for words in (text, odd.finding, odd.qualification, odd.verdict, repr(odd)):
        said = [one for one in UNSAID if re.search(rf"(?<![\w.]){re.escape(one)}(?!\w)", words, re.IGNORECASE)]
        assert {*said} <= {"none"}, (said, words)


def test_small_numbers_are_not_rounded_to_whole_ones(tmp_path: Path) -> None:
    found = planted.study()
    dense = of(found.clips[found.clips["split"] == "test"], Settings(), "onset_rate")
    page = shown((dense.save(tmp_path / "dense") / "index.html").read_text("utf-8"))
    before = float(dense.response.loc[dense.response["kind"] == "baseline", "median"].iloc[0])
    assert f"The median onset rate of unsteered clips is {before:.2f} onsets/s" in page
    assert re.search(rf"median \[onsets/s\] {dense.outcomes[1].median:.2f} {dense.outcomes[0].median:.2f} ", page)
    # "Faster" is said of tempo alone.
    assert dense.words == ("more fast", "more slow")
