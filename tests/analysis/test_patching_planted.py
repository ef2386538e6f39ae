"""Patching finds a planted concept at the block, head and component where it was planted."""

from pathlib import Path
from typing import Any

import numpy as np
import plants
import pytest
from conftest import write_model

import audiolens as al
from analysis import patching
from analysis.patching import PatchingResult
from audiolens.errors import InputError

BLOCKS = 5
ROWS = 12
SECONDS = 0.4
METRIC = patching.LogLikelihood((0.0, SECONDS))


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("five"), layers=BLOCKS)


def grid(plant: plants.Plant, mode: Any = "denoising", **options: Any) -> PatchingResult:
    """Over pairs that the clean prompts play themselves, both poles taking turns."""
    sides = list(zip(plant.positive, plant.negative, strict=True))
    sides = [pair[:: 1 if i % 2 == 0 else -1] for i, pair in enumerate(sides * (ROWS // len(sides)))]
    clean, corrupted = ([pair[side] for pair in sides] for side in (0, 1))
    codes = plant.lens.generate(clean, SECONDS, seeds=list(range(len(clean))), guidance_scale=1.0, decode=False).codes
    return patching.patch(
        plant.lens, clean, corrupted, codes, METRIC, mode=mode, n_bootstrap=200, n_permutations=200,
        clusters=[str(i) for i in range(len(clean))], progress=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[(1, 3), (3, 0)], ids=lambda place: f"block {place[0]}, head {place[1]}")
def head_plant(request: pytest.FixtureRequest, five: Path) -> plants.Plant:
    return plants.head_plant(al.AudioLens.from_pretrained(five), *request.param)


@pytest.mark.parametrize("mode", ["denoising", "noising"])
def test_only_the_planted_head_carries_the_text(head_plant: plants.Plant, mode: Any) -> None:
    found = grid(head_plant, mode, by="head", site="cross_attn.z")
    assert found.gap().interval.low > 1
    share = found.normalised()
    # The share of the way from corrupted to clean: what a denoised cell has won, or a noised one kept.
    expected = np.full((BLOCKS, 4), 0.0 if mode == "denoising" else 1.0)
    expected[head_plant.read_at, head_plant.heads[0]] = 1.0 if mode == "denoising" else 0.0
    np.testing.assert_allclose(share, expected, atol=1e-4)
    assert found.best() == (head_plant.read_at, str(head_plant.heads[0]))
    place = (-1, head_plant.read_at, head_plant.heads[0])
    assert found.means.p_adjusted[place] < 0.05
    assert found.means.p_adjusted[-1].min() == found.means.p_adjusted[place]


def test_components_peak_where_it_was_planted(head_plant: plants.Plant) -> None:
    found = grid(head_plant, by="component", site=("attn_out", "cross_attn_out", "mlp_out"))
    assert found.best() == (head_plant.written_at, "cross_attn_out")
    share = found.normalised()
    assert share[head_plant.written_at, 1] == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(share[: head_plant.written_at], 0, atol=1e-4)


def test_the_stream_steps_up_where_it_was_planted(head_plant: plants.Plant) -> None:
    share = grid(head_plant, site="resid_post", windows=1).normalised()[:, 0]
    expected = (np.arange(BLOCKS) >= head_plant.written_at).astype(float)
    np.testing.assert_allclose(share, expected, atol=1e-4)


@pytest.fixture(scope="module", params=[(0, 2), (2, 4)], ids=lambda place: f"read {place[0]}, written {place[1]}")
def xor_plant(request: pytest.FixtureRequest, five: Path) -> plants.Plant:
    return plants.xor_plant(al.AudioLens.from_pretrained(five), *request.param)


def test_an_mlp_that_needs_two_features_is_found_with_what_it_reads(xor_plant: plants.Plant) -> None:
    found = grid(xor_plant, by="component", site=("attn_out", "cross_attn_out", "mlp_out"))
    assert found.gap().interval.low > 1
    expected = np.zeros((BLOCKS, 3))
    expected[xor_plant.read_at, 1] = expected[xor_plant.written_at, 2] = 1
    np.testing.assert_allclose(found.normalised(), expected, atol=0.02)
    # All pairs but tell "bright" from "dark": the head that reads that is enough, the other moves nothing.
    heads = grid(xor_plant, by="head", site="cross_attn.z").normalised()
    assert heads[xor_plant.read_at].round(2).tolist() == [0, 0, 1, 0]


def test_two_features_that_change_together_leave_no_gap_to_share(xor_plant: plants.Plant) -> None:
    # The plant tells "fast bright" from "slow dark" by a tenth of a nat: with both in turn as the clean one it cancels.
    clean, corrupted = ["fast bright", "slow dark"] * 4, ["slow dark", "fast bright"] * 4
    codes = xor_plant.lens.generate(clean, SECONDS, seeds=list(range(8)), decode=False).codes
    options: dict[str, Any] = {"clusters": [str(i) for i in range(8)], "progress": False}
    found = patching.patch(xor_plant.lens, clean, corrupted, codes, METRIC, by="component", **options)
    assert abs(found.gap().value) < 0.5
    assert not found.gap().clear
    with pytest.raises(InputError, match="not clearly different from 0"):
        found.normalised()
    # One feature alone breaks it: the text is read in one place, so its heads patched one by one must.
    heads = patching.patch(
        xor_plant.lens, clean, corrupted, codes, METRIC, by="head", layers=xor_plant.read_at, **options
    )
    assert (heads.effect()[0, list(xor_plant.heads)] < -1).all()
