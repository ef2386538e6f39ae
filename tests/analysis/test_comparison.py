"""Studies are compared and pooled: planted slopes are found, and nothing is pooled twice."""

# ruff: noqa: F811 - fixtures of another file are named as arguments

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from chromium import DRAWN, PATIENCE, barred, launched
from command_line import Run
from plants import tables as planted

from analysis import comparison
from analysis.comparison import fit_slopes
from analysis.pooling import pooled
from analysis.study import Study
from analysis.sweep.response import KEYS
from audiolens.errors import InputError, InputTypeError


@pytest.fixture(scope="module")
def study() -> Study:
    return planted.study()


def other(study: Study, factor: float, model: str = "other") -> Study:
    """The study of another model, in which the steered clips are `factor` times as fast towards the positive pole."""
    clips = study.clips.copy()
    up = (clips["kind"] == "steered") & (clips["strength"] > 0)
    clips.loc[up, "tempo_ioi"] *= factor ** (clips.loc[up, "strength"] / study.choice.strength)
    meta = replace(study.directions.meta, model=model, weights=model.ljust(16, "1"))
    return replace(study, clips=clips, directions=replace(study.directions, meta=meta), model=model)


def of_test(study: Study) -> pd.DataFrame:
    clips = study.clips[study.clips["split"] == "test"]
    return clips[clips["kind"].isin(["baseline", "steered"])]


def test_slopes_of_a_balanced_design_are_the_means_of_the_prompts_own_slopes(study: Study) -> None:
    clips, strength = of_test(study), study.choice.strength
    for sign, slope in zip((1, -1), fit_slopes(clips.assign(failed=False), "tempo_ioi", strength), strict=True):
        side = clips[sign * clips["strength"] >= 0]
        own = [
            np.polyfit(sign * mine["strength"].to_numpy(float) / strength, np.log(mine["tempo_ioi"].to_numpy(float)), 1)
            for _, mine in side.groupby("prompt")
        ]
        assert slope.converged
        assert slope.scaled == pytest.approx(np.mean(own, axis=0)[0], abs=1e-6)
        assert slope.low < math.expm1(sign * 0.4) < slope.high
        assert (slope.n_prompts, slope.n_clips) == (8, len(side))


def test_random_effects_are_recovered() -> None:
    rng, rows = np.random.default_rng(3), []
    for prompt in range(25):
        level, up = rng.normal(5, 0.4), rng.normal(0.5, 0.3)
        for seed in range(3):
            own = level + rng.normal(0, 0.2)
            for strength in (-2.0, -1.0, 0.0, 1.0, 2.0):
                value = own + up * max(strength, 0) / 2 + rng.normal(0, 0.1)
                kind = "steered" if strength else "baseline"
                rows.append((f"prompt {prompt}", seed, kind, strength, False, math.exp(value)))
    clips = pd.DataFrame(rows, columns=[*KEYS, "kind", "strength", "failed", "brightness"])
    up, down = fit_slopes(clips, "brightness", 2.0)
    spreads = [up.level_between_prompts, up.between_prompts, up.level_between_seeds, up.residual]
    assert spreads == pytest.approx([0.4, 0.3, 0.2, 0.1], rel=0.35)
    assert down.low < 0 < down.high
    assert down.p > 0.05 > up.p


def test_a_failed_clip_counts_as_unchanged(study: Study) -> None:
    clips = of_test(study).assign(failed=False)
    up = (clips["kind"] == "steered") & (clips["strength"] > 0)
    whole = fit_slopes(clips, "tempo_ioi", study.choice.strength)
    for lost in (clips.assign(failed=up), clips.assign(tempo_ioi=clips["tempo_ioi"].mask(up))):
        enhancement, suppression = fit_slopes(lost, "tempo_ioi", study.choice.strength)
        assert enhancement.value == pytest.approx(0, abs=1e-4)
        assert suppression == whole[1]


def test_what_cannot_be_fitted_is_refused(study: Study) -> None:
    clips = of_test(study)
    few = clips[clips["prompt"].isin(clips["prompt"].unique()[:2])]
    for table, strength, words in (
        (few, 1.0, "at least 3 prompts"), (clips[clips["strength"] <= 0], 1.0, "a positive strength"),
        (clips, 0.0, "above 0"), (pd.concat([clips, clips]), 1.0, "several unsteered clips"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            fit_slopes(table, "tempo_ioi", strength)
    with pytest.raises(InputError, match="no column 'tempoo'"):
        fit_slopes(clips, "tempoo", 1.0)


def test_effects_of_studies_are_pooled_on_the_logarithmic_scale(study: Study) -> None:
    again = other(study, 1.5)
    found = comparison.compare([study, again], names=["all studies", "second"])
    fits = [fit_slopes(of_test(one), one.measure, one.choice.strength)[0] for one in (study, again)]
    mean = pooled([one.scaled for one in fits], [one.stderr for one in fits])
    row = found.pooled[found.pooled["pole"] == "fast"].iloc[0]
    assert row["effect"] == pytest.approx(math.expm1(mean.value))
    assert (row["studies"], row["models"]) == (2, 2)
    assert row["tau"] == pytest.approx(mean.tau)
    assert row["tau"] > 0.1
    assert "pooled over 2 studies of 2 models" in repr(found)
    assert found.differences["model"] == (study.model, "other")
    chosen = found.table[found.table["chosen"]]
    assert len(chosen) == 4
    # All four outcomes are corrected together.
    assert (chosen["p_corrected"] >= chosen["p_controls"]).all()
    assert not found.table[~found.table["chosen"]].empty
    assert "2 of 2 studies" not in repr(found)
    assert "4 tests (2 have too few controls for that)" in repr(found)
    rows = {tuple(trace.y) for trace in found.figure().data}
    assert rows == {(2.12, 1.12, 0.12), (1.88, 0.88, -0.12)}


def test_studies_with_clips_in_common_are_compared_but_not_pooled(study: Study) -> None:
    same_model = other(study, 1.5)
    same_model = replace(same_model, directions=study.directions)
    found = comparison.compare([study, same_model], names=["first", "second"])
    assert found.shared == (("first", "second"),)
    assert found.pooled.empty
    assert "first and second have unsteered clips in common" in repr(found)
    # Controls do not make another study of it.
    fewer = replace(study, clips=study.clips[study.clips["kind"] != "random"])
    with pytest.raises(InputError, match="have the same clips"):
        comparison.compare([study, fewer])


def test_the_same_study_twice_and_wrong_names_are_refused(study: Study, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="have the same clips"):
        comparison.compare([study, study])
    with pytest.raises(InputError, match="at least one study"):
        comparison.compare([])
    with pytest.raises(InputTypeError, match="a list of studies"):
        comparison.compare(study)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="1 different names"):
        comparison.compare([study], names=["a", "b"])
    alone = comparison.compare([study])
    assert alone.pooled.empty
    assert "tempo towards fast: 0 of 1 study supports the claim" in repr(alone)
    assert alone.differences == {}
    (tmp_path / "own.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        alone.save(tmp_path)


def test_a_page_shows_hostile_names_as_text(study: Study, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> $x^{2}$"
    found = comparison.compare([study, other(study, 1.1)], names=[hostile, "second"])
    out = found.save(tmp_path / "out", command="audiolens compare a b")
    page = (out / "index.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    facts = json.loads((out / "summary.json").read_text("utf-8"))
    assert facts["studies"] == [hostile, "second"]
    assert len(pd.read_csv(out / "effects.csv")) == len(found.table)
    assert {path.name for path in out.iterdir()} == {
        "index.html", "summary.json", "effects.svg", "effects.csv", "pooled.csv", "variation.csv", "differences.csv"
    }  # fmt: skip


def test_the_figure_of_a_page_is_drawn_in_its_colours_and_can_be_read_on_any_screen(
    study: Study, tmp_path: Path
) -> None:
    names = ["study-of-a-name-without-a-space-that-is-longer-than-a-line", "<b>second</b> $x^{2}$"]
    timbre = replace(study, concept="timbre", measure="brightness", directions=planted.directions(seed=1))
    found = comparison.compare([study, other(study, 1.5), timbre], names=[*names, "third"])
    out = found.save(tmp_path / "out", figures=["pdf"])
    assert (out / "effects.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(InputError, match="expected some of svg, pdf, png"):
        found.save(tmp_path / "other", figures=["jpg"])
    assert not (tmp_path / "other").exists()
    with launched() as browser:
        for width, colours in ((1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")):
            opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
            opened.goto((out / "index.html").as_uri(), timeout=PATIENCE)
            assert barred(opened) == []
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            assert opened.evaluate("document.images.length") == 0
            ((name, (cut, least)),) = opened.evaluate(DRAWN).items()
            assert (name, cut) == ("effects", [])
            assert 9 <= least < 20
            shown = "[...document.querySelectorAll('.drawn text')].filter(text => text.getBoundingClientRect().width)"
            ink = opened.evaluate("getComputedStyle(document.body).color")
            assert {*opened.evaluate(f"{shown}.map(text => getComputedStyle(text).fill)")} == {ink}
            texts = "".join(opened.evaluate(f"{shown}.map(text => text.textContent.trim())"))
            assert all(name.replace(" ", "") in texts.replace(" ", "") for name in names)
            opened.close()


def test_the_command_refuses_in_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        code, out, error = run("compare", name)
        assert (code, out) == (2, "")
        assert error.count("\n") == 1
        assert f"{name} contains no study" in error
    code, out, error = run("compare", "missing", "--figures", "pdf")
    assert (code, out) == (2, "")
    assert "no figure is written without a folder: give --out" in error
