"""The feature index: what it finds where the truth is planted, and its page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from chromium import PATIENCE, barred, launched

from analysis import features
from analysis.features import matching
from audiolens import ranking
from audiolens.errors import InputError
from audiolens.etude import synth

N = 40


@pytest.fixture(scope="session")
def clips() -> features.Clips:
    codes = torch.randint(0, 32, (N, 4, 15), generator=torch.Generator().manual_seed(2))
    prompts = [f"{('fast', 'slow')[row % 2]} music with {('piano', 'drums', 'guitar')[row % 3]}" for row in range(N)]
    labels = {"kind": [("piano", "drums", "guitar")[row % 3] for row in range(N)], "size": [*range(N)]}
    return features.Clips(prompts, codes, labels)


@pytest.fixture(scope="session")
def sae(lens: Any) -> features.SAE:
    """Latents that are single features of the stream, and one that is never active."""
    weights = torch.eye(48)[:, :12].contiguous()
    bias = torch.zeros(12)
    bias[11] = -1e6
    return features.SAE(weights, bias, weights.T.contiguous(), torch.zeros(48), "standard", layer=1)


def test_the_index_equals_a_naive_loop(lens: Any, sae: features.SAE, clips: features.Clips) -> None:
    found = features.index(lens, sae, clips, top=3, seconds=0.2, batch_size=16, progress=False)
    cache = lens.run_with_cache(clips.prompts, clips.codes, sites="resid_post", layers=1)[1]
    z = cache["resid_post", 1][:, :15, :12].relu()
    z[..., 11] = 0
    assert np.allclose(found.pooled, z.mean(1), atol=1e-5)
    latent = 4
    row = found.latents.iloc[latent]
    assert row["rate"] == pytest.approx(float((z[..., latent] > 0).float().mean()))
    assert row["mean"] == pytest.approx(float(z[..., latent].sum() / (z[..., latent] > 0).sum()), rel=1e-5)
    peaks = z[..., latent].amax(1)
    tops = found.tops[found.tops["latent"] == latent]
    assert tops["clip"].tolist() == peaks.argsort(descending=True)[:3].tolist()
    step = int(z[tops["clip"].iloc[0], :, latent].argmax())
    assert tops["start"].iloc[0] == pytest.approx(min(max((step + 0.5) / 25 - 0.1, 0), 0.6 - 0.2))
    assert not len(found.tops[found.tops["latent"] == 11])
    fast = np.array(["fast" in prompt for prompt in clips.prompts])
    assert float(ranking.auc(found.pooled[fast, latent], found.pooled[~fast, latent])) == pytest.approx(
        float(matching.aucs(found.pooled, fast)[latent])
    )
    assert found.attributes["attribute"].tolist() == [
        "kind: drums", "kind: guitar", "kind: piano", "size: high", "size: low",
    ]  # fmt: skip


def test_planted_attributes_are_matched_split_and_absorbed() -> None:
    """Latent 0 is an attribute, 1 and 2 share another, and 3 takes a third of the clips of latent 4's attribute."""
    rng = np.random.default_rng(0)
    truth = rng.random((3, 1200)) < 0.5
    pooled = rng.random((1200, 20)) * 0.1
    pooled[:, 0] += truth[0]
    pooled[:, 1] += truth[1]
    pooled[:, 2] += truth[1]
    third = rng.random(1200) < 1 / 3
    pooled[:, 4] += truth[2] & ~third
    pooled[:, 3] += truth[2] & third
    truths = {name: one.astype(float) for name, one in zip("abc", truth, strict=True)}
    choosing, reporting = matching.halves(pooled, truths, [str(row) for row in range(1200)], 0)
    table = matching.table(choosing, reporting, 0.95, 2).set_index("attribute")
    assert (table.loc["a", "latent"], table.loc["a", "matched"], table.loc["a", "above"]) == (0, 0, 1)
    assert table.loc["b", "above"] == 2
    assert table.loc["c", "latent"] == 4
    assert table.loc["c", "auc"] == pytest.approx(5 / 6, abs=0.05)
    assert table.loc["c", "several_auc"] >= 0.99
    assert table.loc["c", "absorbed"] == pytest.approx(1 / 3, abs=0.06)
    assert table["absorbed"].drop("c").max() < 0.05


def test_more_attributes_than_latents_are_matched_as_far_as_latents_reach() -> None:
    """The first attribute has no latent, and the others have one each: no other attribute takes theirs."""
    rng = np.random.default_rng(0)
    truth = rng.random((3, 200)) < 0.5
    pooled = truth[1:].T + 0.1 * rng.random((200, 2))
    truths = {name: one.astype(float) for name, one in zip("abc", truth, strict=True)}
    choosing, reporting = matching.halves(pooled, truths, [str(row) for row in range(200)], 0)
    table = matching.table(choosing, reporting, 0.95, 2).set_index("attribute")
    assert table["matched"].to_dict() == {"a": -1, "b": 0, "c": 1}
    assert np.isnan(table.loc["a", "matched_auc"])
    assert table.loc[["b", "c"], "matched_auc"].min() == 1


def test_a_latent_that_knows_prompts_by_heart_is_not_reported_as_knowing_their_attribute() -> None:
    """Every prompt has eight clips and a latent of its own, and its attribute is drawn."""
    rng = np.random.default_rng(0)
    prompts = [f"prompt {row % 20}" for row in range(160)]
    truth = (rng.permutation(20) < 10)[np.arange(160) % 20].astype(float)
    pooled = np.eye(20)[np.arange(160) % 20] + 0.01 * rng.random((160, 20))
    first, second = matching.halves(np.arange(160.0)[:, None], {"a": truth}, prompts, 0)
    there = [{prompts[int(row)] for row in half.pooled[:, 0]} for half in (first, second)]
    assert not there[0] & there[1]
    assert [len(half.pooled) for half in (first, second)] == [80, 80]
    found = matching.table(*matching.halves(pooled, {"a": truth}, prompts, 0), 0.95, 5)
    by_clip = matching.table(*matching.halves(pooled, {"a": truth}, [None] * 160, 0), 0.95, 5)
    assert found["several_auc"][0] < 0.6 < by_clip["several_auc"][0]


def test_labels_of_one_class_or_too_few_clips_are_refused(lens: Any, sae: features.SAE, clips: features.Clips) -> None:
    for labels, words in (
        ({"mode": ["major"] * N}, "mode has only 'major': expected at least two"),
        ({"mode": ["major"] * (N - 2) + ["minor"] * 2}, "'minor' in 2 clips: expected at least 4"),
        ({"size": [1.0] * N}, "the same number"),
        ({"size": [1.0, 2.0] + [np.nan] * (N - 2)}, "high or low in 1 clips"),
        ({"size": [1.0] * 3}, "3 rows for 40 clips"),
    ):
        with pytest.raises(InputError, match=words):
            features.Clips(clips.prompts, clips.codes, labels)
    with pytest.raises(InputError, match="expected different latents between 0 and 11"):
        sae.numbers("latents", [12])
    bare = features.index(lens, sae, features.Clips(clips.prompts[:4], clips.codes[:4]), progress=False)
    with pytest.raises(InputError, match="have no labels"):
        bare.plot()


def test_the_page_plays_every_latent_offline(
    lens: Any, sae: features.SAE, clips: features.Clips, tmp_path: Path
) -> None:
    found = features.index(lens, sae, clips, seconds=0.3, progress=False)
    path = found.page(tmp_path / "page.html", lens, [3, 11], sounds=2)
    page = path.read_text("utf-8")
    assert re.findall(r'id="latent-(\d+)"', page) == ["3", "11"]
    assert page.count("<audio") == 2
    assert page.count('src="data:audio') == 2
    assert "active in none of these clips" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    with launched() as browser:
        for width, colours in ((1280, "light"), (400, "dark")):
            opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=colours)
            opened.goto(path.as_uri(), timeout=PATIENCE)
            assert barred(opened) == []
            assert opened.evaluate("document.documentElement.scrollWidth") <= width
            opened.close()


def test_synthesised_clips_have_the_labels_of_their_sound() -> None:
    prompts, labels = features.clips.labelled(30, 9)
    for number in (0, 7):
        clip = synth.labelled_clip(number, 9, 0.1)
        assert prompts[number] == clip.caption.text
        assert labels["instrument"][number] == clip.attributes.instrument
        level = clip.attributes.level("tempo")
        assert labels["tempo"][number] == level or (level == "mid" and pd.isna(labels["tempo"][number]))
