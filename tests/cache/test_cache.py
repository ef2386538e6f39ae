"""A cache keeps its labels when stacked, sliced, projected, saved and loaded."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from audiolens import ActivationCache
from audiolens.cache import lazy_tensors
from audiolens.errors import InputError, InputTypeError, SiteError


@pytest.fixture(scope="module")
def cache(lens):
    codes = torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))
    prompts = ["fast piano", "slow music", "calm"]
    return lens.run_with_cache(prompts, codes, sites=["resid_post", "attn.z"], guidance_scale=3.0, branch="both")[1]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was read out of files, by key."""
    keys: list[str] = []

    class Spied:
        def __init__(self, *given: Any, **options: Any) -> None:
            self.whole = safe_open(*given, **options)

        def __enter__(self) -> "Spied":
            self.file = self.whole.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self.whole.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, key: str) -> torch.Tensor:
            keys.append(key)
            return self.file.get_tensor(key)

    monkeypatch.setattr(lazy_tensors, "safe_open", Spied)
    return keys


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
    assert list(back) == list(cache)
    assert all(torch.equal(back[name], cache[name]) for name in cache)
    assert (back.axes, back.branch, back.prompts, back.frame_rate) == (
        dict(cache.axes),
        cache.branch,
        cache.prompts,
        cache.frame_rate,
    )
    one = ActivationCache.load(path, sites=["blocks.1.hook_resid_post"])
    assert list(one) == ["blocks.1.hook_resid_post"]
    assert list((tmp_path / "deep").iterdir()) == [path]


def test_files_that_are_no_cache_are_refused(cache, tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        ActivationCache.load(tmp_path / "none")
    whole = cache.save(tmp_path / "cache.safetensors").read_bytes()
    (tmp_path / "half").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not a complete safetensors"):
        ActivationCache.load(tmp_path / "half")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(InputError, match="not an activation cache"):
        ActivationCache.load(tmp_path / "other")


def test_a_loaded_cache_reads_a_tensor_when_it_is_first_asked_for(cache, asked, tmp_path: Path):
    back = ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))
    assert (len(back), repr(back), back.keys(), back.layers("attn.z")) == (6, repr(cache), cache.keys(), [0, 1, 2])
    assert ("resid_post", 1) in back
    part = back.at_layers([1, 2]).rows([2, 0]).seconds((0.2, 0.4)).to("cpu", "float16")
    assert "(2, 2, 5, 48)" in repr(part)
    assert asked == []
    expected = cache["resid_post", 1][:, [2, 0], 5:10].half()
    for _ in range(2):
        assert torch.equal(part["resid_post", 1], expected)
    assert asked == ["blocks.1.hook_resid_post"]
    assert torch.equal(part.stack("resid_post")[0], expected)
    assert asked == ["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    part.rows([0])["resid_post", 1]
    assert len(asked) == 2
    assert all(torch.equal(back[name], cache[name]) for name in cache)


def test_norms_are_read_when_they_are_asked_for(lens, asked, codes, tmp_path: Path):
    _, mean = lens.run_with_cache("calm", codes[:1], reduce="mean", layers=[0, 2])
    back = ActivationCache.load(mean.save(tmp_path / "cache.safetensors"))
    assert torch.equal(back.at_layers(2).stack_norms("resid_post"), mean.stack_norms("resid_post")[1:])
    assert asked == ["norms/blocks.2.hook_resid_post"]
    assert torch.equal(back.stack("resid_post"), mean.stack("resid_post"))


def test_a_file_is_opened_by_the_names_of_everywhere(cache, asked, tmp_path: Path):
    path = cache.save(tmp_path / "cache.safetensors")
    names = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    assert list(ActivationCache.load(path, "resid_post")) == names
    assert list(ActivationCache.load(path, "blocks.1.hook_resid_post")) == names[1:2]
    some = ActivationCache.load(path, ["blocks.2.attn.z", "hook_resid_post"])
    assert list(some) == [*names[:2], "blocks.2.attn.hook_z", names[2]]
    assert set(some.axes) == set(some.keys())
    assert asked == []
    for sites, error, message in [
        ("resid_pots", SiteError, "does not contain 'resid_pots'. Did you mean .*resid_post"),
        (["blocks.7.hook_resid_post"], SiteError, "does not contain 'blocks.7.hook_resid_post'"),
        (3, InputTypeError, "sites=3: expected a name"),
        ([3], InputTypeError, "site 3: expected a name"),
    ]:
        with pytest.raises(error, match=message):
            ActivationCache.load(path, sites)


def test_a_file_that_goes_or_changes_is_said_and_what_was_read_stays(cache, tmp_path: Path, monkeypatch):
    cache.save(tmp_path / "cache.safetensors")
    monkeypatch.chdir(tmp_path)
    back = ActivationCache.load("cache.safetensors")
    monkeypatch.chdir("/")
    first = back["resid_post", 0].clone()
    cache.rows([0]).save(tmp_path / "cache.safetensors")
    with pytest.raises(InputError, match="blocks.1.hook_resid_post cannot be read: .* was rewritten"):
        back["resid_post", 1]
    (tmp_path / "cache.safetensors").unlink()
    with pytest.raises(InputError, match="blocks.1.hook_resid_post cannot be read: .* is gone"):
        back["resid_post", 1]
    assert torch.equal(back["resid_post", 0], first)


def test_a_loaded_cache_travels_whole_and_saves_over_its_own_file(cache, tmp_path: Path):
    path = cache.save(tmp_path / "cache.safetensors")
    back = ActivationCache.load(path)
    copy = pickle.loads(pickle.dumps(back.rows([1])))
    back.rows([1]).save(path)
    assert all(torch.equal(copy[name], cache[name][:, [1]]) for name in cache)
    assert all(torch.equal(tensor, copy[name]) for name, tensor in ActivationCache.load(path).tensors.items())


def test_a_pickled_cache_still_names_the_weights_of_its_model(cache):
    assert pickle.loads(pickle.dumps(cache)).model_weights() == cache.model_weights() != ""


def test_layers_are_chosen_and_what_stands_in_no_block_stays(lens, codes):
    _, cache = lens.run_with_cache("calm", codes[:1], sites=["resid_post", "embed"], reduce="mean")
    part = cache.at_layers([2, 0])
    assert list(part) == ["hook_embed", "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"]
    assert set(part.axes) == set(part.norms) == set(part.keys())
    assert torch.equal(part.stack("resid_post"), cache.stack("resid_post")[[0, 2]])
    assert cache.at_layers(1).layers("resid_post") == [1]
    assert list(cache.at_layers(None)) == list(cache)
    with pytest.raises(SiteError, match=r"nothing was recorded at layer 1: the cache contains layers \[0, 2\]"):
        part.at_layers([0, 1])
    with pytest.raises(SiteError, match="no layer given"):
        cache.at_layers([])
    for wrong in ("a", [True], 0.5):
        with pytest.raises(InputTypeError, match="layers=.*expected a layer"):
            cache.at_layers(wrong)
        with pytest.raises(InputTypeError, match="layers=.*expected a layer"):
            cache.logit_lens(layers=wrong)


@pytest.mark.parametrize("loaded", [False, True])
def test_what_is_no_row_or_device_or_dtype_is_refused(cache, tmp_path: Path, asked, loaded):
    if loaded:
        cache = ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))
    for rows in ([5], [-1], [], [1, 1]):
        with pytest.raises(InputError, match="rows=.*: expected different rows between 0 and 2"):
            cache.rows(rows)
    for rows in ([0.5], [True, False], 0, "01", torch.tensor([True, False, True])):
        with pytest.raises(InputTypeError, match="rows=.*: expected a list of row numbers"):
            cache.rows(rows)
    for given, message in [
        ({"device": "cuda:9"}, "device='cuda:9' is not available"),
        ({"device": "foo"}, "device='foo' is not available"),
        ({"dtype": torch.int64}, "dtype=torch.int64: expected a floating-point dtype"),
        ({"dtype": "float17"}, "dtype='float17': expected a floating-point dtype"),
    ]:
        with pytest.raises(InputError, match=message):
            cache.to(**given)
    assert asked == []
    moved = cache.to("cpu", "float16")
    assert moved["resid_post", 1].dtype == torch.float16
    assert torch.equal(moved["resid_post", 1], cache["resid_post", 1].half())


@pytest.mark.parametrize("key", [("resid_post", "a"), ("resid_post", 1.5), ("resid_post", True), (1, 1), 3, None, ()])
def test_what_is_no_key_is_refused(cache, key):
    with pytest.raises(InputTypeError, match="expected a site name or a .site, layer. pair"):
        cache[key]
    assert key not in cache


def test_short_names_are_keys_where_they_name_one_place(lens, cache, codes):
    _, whole = lens.run_with_cache("calm", codes[:1], sites=["embed", "ln_final.normalized"])
    assert torch.equal(whole["embed"], whole["hook_embed"])
    assert whole["ln_final.normalized"].shape == (1, 18, 48)
    assert torch.equal(cache["blocks.1.resid_post"], cache["resid_post", 1])
    with pytest.raises(SiteError, match=r"'resid_post' was recorded at layers \[0, 1, 2\]: give one of them"):
        cache["resid_post"]


def test_arrays_and_lists_are_directions_too(cache):
    vectors = torch.randn(3, 48, generator=torch.Generator().manual_seed(2))
    for given in (vectors.numpy(), vectors.tolist()):
        assert torch.equal(cache.project(given), cache.project(vectors))
        assert torch.equal(cache.project(given[1]), cache.project(vectors[1]))
    torch.testing.assert_close(cache.project(vectors[1])[0], cache["resid_post", 0] @ vectors[1] / vectors[1].norm())
    part = cache.at_layers([0, 2])
    assert torch.equal(part.project({0: vectors[0], 2: vectors[2]}), cache.project(vectors)[[0, 2]])
    none = cache.project(vectors * torch.tensor([[1.0], [0.0], [1.0]]))
    assert not none[1].any()
    assert torch.equal(none[[0, 2]], cache.project(vectors)[[0, 2]])


@pytest.mark.parametrize(
    ("direction", "error", "message"),
    [
        (torch.zeros(48), InputError, "direction is zero"),
        (torch.zeros(3, 48), InputError, "direction is zero"),
        (torch.full((48,), torch.nan), InputError, "direction contains NaN or infinite"),
        ({0: torch.ones(48)}, SiteError, r"no direction for layer 1: .* recorded at layers \[0, 1, 2\]"),
        ({0: torch.ones(7), 1: torch.ones(48), 2: torch.ones(48)}, InputError, "expected a vector of width 48"),
        (torch.ones(7), InputError, r"direction of shape \(7,\): expected a vector of width 48, or one for each"),
        (torch.ones(2, 48), InputError, r"direction of shape \(2, 48\): expected a vector of width 48, or one for"),
        (torch.ones(2, 3, 48), InputError, "expected a vector of width 48"),
        ([], InputError, "expected a vector of width 48"),
        (1.0, InputError, "expected a vector of width 48"),
        ("up", InputTypeError, "direction=str: expected numbers"),
        (None, InputTypeError, "direction=NoneType: expected numbers"),
    ],
)
def test_what_points_nowhere_is_no_direction(cache, direction, error, message):
    with pytest.raises(error, match=message):
        cache.project(direction)
