"""A cache keeps its labels: stacked, sliced, projected, saved and loaded."""

from pathlib import Path

import pytest
import torch

from audiolens import ActivationCache
from audiolens.errors import InputError, SiteError


@pytest.fixture(scope="module")
def cache(lens):
    codes = torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))
    prompts = ["fast piano", "slow music", "calm"]
    return lens.run_with_cache(prompts, codes, sites=["resid_post", "attn.z"], guidance_scale=3.0, branch="both")[1]


def test_keys_are_full_names_and_short_pairs(cache):
    assert torch.equal(cache["blocks.1.hook_resid_post"], cache["resid_post", 1])
    assert cache["attn.z", 2].shape == (2, 3, 18, 4, 12)
    assert cache.axes["blocks.0.attn.hook_z"] == ("branch", "row", "step", "head", "d_head")
    assert cache.stack("resid_post").shape == (3, 2, 3, 18, 48)
    assert ("resid_post", 1) in cache
    with pytest.raises(SiteError, match="was not recorded"):
        cache["resid_mid", 1]


def test_rows_and_seconds_slice_their_axes(cache):
    part = cache.rows([2, 0]).seconds((0.2, 0.4))
    assert torch.equal(part["resid_post", 1], cache["resid_post", 1][:, [2, 0], 5:10])
    assert part.prompts == ("calm", "fast piano")
    assert part.first_step == 5
    assert torch.equal(part.seconds((0.24, 0.4))["resid_post", 1], part["resid_post", 1][:, :, 1:])
    with pytest.raises(InputError, match="not inside"):
        part.seconds((0.0, 0.4))


def test_projection_is_the_dot_product_with_the_unit_vector(cache):
    vectors = torch.randn(3, 48)
    expected = torch.stack([cache["resid_post", layer] @ vectors[layer] / vectors[layer].norm() for layer in range(3)])
    torch.testing.assert_close(cache.project(vectors), expected)
    torch.testing.assert_close(cache.project(dict(enumerate(vectors))), expected)


def test_a_saved_cache_comes_back_with_its_labels(cache, tmp_path: Path):
    path = cache.save(tmp_path / "deep" / "cache.safetensors")
    back = ActivationCache.load(path)
    assert back.keys() == cache.keys()
    assert all(torch.equal(back[name], cache[name]) for name in cache)
    assert (back.axes, back.branch, back.prompts, back.frame_rate) == (
        dict(cache.axes),
        cache.branch,
        cache.prompts,
        cache.frame_rate,
    )
    one = ActivationCache.load(path, sites=["blocks.1.hook_resid_post"])
    assert one.keys() == ["blocks.1.hook_resid_post"]
    assert list((tmp_path / "deep").iterdir()) == [path]


def test_files_that_are_no_cache_are_refused(cache, tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        ActivationCache.load(tmp_path / "none")
    whole = cache.save(tmp_path / "cache.safetensors").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a whole safetensors"):
        ActivationCache.load(tmp_path / "half")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="not an activation cache"):
        ActivationCache.load(tmp_path / "other")
