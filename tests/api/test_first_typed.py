"""Aliases from TransformerLens, nnsight and transformers give bit-identical results to the lens's own names."""

import importlib
import inspect
import pkgutil
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib.pyplot as plt
import nnsight
import numpy as np
import pandas as pd
import pytest
import torch
from everywhere import IN_BLOCK, PROMPTS, STEPS, random_codes
from plants import tables as planted
from torch import Tensor

import analysis
import audiolens as al
from analysis import pca, probing, similarity
from audiolens.cache.activation_cache import ActivationCache
from audiolens.errors import AudioLensError, InputError, InputTypeError, SiteError
from audiolens.model.sites import Site

LAST = 2
BARE = {
    **{name: f"attn.{name}" for name in ("q", "k", "v", "z", "pattern", "result")},
    **{name: f"mlp.{name}" for name in ("pre", "post")},
}


@pytest.fixture(scope="module")
def codes(lens: Any) -> Tensor:
    return random_codes(lens)


@pytest.fixture(scope="module")
def cache(lens: Any, codes: Tensor) -> ActivationCache:
    names = ["embed", "pos_embed", "resid_pre", "resid_post", "attn_out", "cross_attn_out", "mlp_out", "attn.z"]
    return lens.run_with_cache(PROMPTS, codes, sites=names)[1]


@pytest.fixture(scope="module")
def directions(lens: Any) -> al.Directions:
    return al.difference_in_means(lens, ["fast drums"], ["slow drums"], position="first", progress=False)


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert isinstance(error.value, AudioLensError)
    assert "\n" not in text
    return text


def same_cache(one: ActivationCache, other: ActivationCache) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


# The lens


def test_cfg_is_config(lens: Any) -> None:
    assert lens.cfg is lens.config
    assert lens.cfg.n_layers == LAST + 1


def test_to_str_tokens_are_the_text_tokens_and_of_one_prompt_its_own_list(lens: Any) -> None:
    assert lens.to_str_tokens(PROMPTS) == lens.text_tokens(PROMPTS)
    assert lens.to_str_tokens(PROMPTS[0]) == lens.text_tokens(PROMPTS[0])[0]
    assert lens.to_str_tokens(None) == []


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_calling_the_lens_gives_the_logits(lens: Any, codes: Tensor, scale: float) -> None:
    branch = "both" if scale > 1 else "cond"
    expected, _ = lens.run_with_cache(PROMPTS, codes, sites=(), branch=branch, guidance_scale=scale)
    assert torch.equal(lens(PROMPTS, codes, branch=branch, guidance_scale=scale), expected)
    assert torch.equal(lens(PROMPTS[:1]), lens.run_with_cache(PROMPTS[:1])[0])


def test_decode_is_decode_codes(lens: Any, codes: Tensor) -> None:
    assert torch.equal(lens.decode(codes), lens.decode_codes(codes))


def test_to_a_device_gives_the_lens_and_refuses_what_it_cannot_do(lens: Any, codes: Tensor) -> None:
    before = lens(PROMPTS, codes)
    assert lens.to("cpu") is lens
    assert torch.equal(lens(PROMPTS, codes), before)
    for device, error, words in (
        (torch.bfloat16, InputTypeError, "give dtype= to AudioLens.from_pretrained"),
        ("nowhere", InputError, "is not available"),
        ("meta", InputError, "stores no values"),
    ):
        with pytest.raises(error, match=words) as refused:
            lens.to(device)  # pyright: ignore[reportArgumentType]
        one_line(refused)
    assert lens.device.type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_lens_moved_to_a_gpu_is_one_opened_there(checkpoint: Any, codes: Tensor) -> None:
    moved = al.AudioLens.from_pretrained(checkpoint).to("cuda")
    opened = al.AudioLens.from_pretrained(checkpoint, device="cuda")
    assert moved.device == opened.device
    assert torch.equal(moved(PROMPTS, codes), opened(PROMPTS, codes))
    made = [one.generate(PROMPTS, 0.4, seeds=0, sites="resid_post") for one in (moved, opened)]
    assert torch.equal(made[0].codes, made[1].codes)
    same_cache(made[0].cache, made[1].cache)  # pyright: ignore[reportArgumentType]
    back = moved.to("cpu")
    assert torch.equal(back(PROMPTS, codes), al.AudioLens.from_pretrained(checkpoint)(PROMPTS, codes))


def test_sites_are_found_with_their_names_and_axes(lens: Any, melody_lens: Any) -> None:
    for one in (lens, melody_lens):
        found = one.find_sites(list(one.sites()))
        assert [site.name for site in found] == list(one.sites())
        for site, shape in zip(found, one.sites().values(), strict=True):
            sizes = [part.split("=")[0].replace("[prefix+]", "").replace("prefix+", "") for part in shape.split()]
            assert site.axes == tuple(sizes)
            assert one.find_sites(site.short, site.layer) == [site]
    assert lens.find_sites(["attn.z", "logits"], [-1, 0]) == [
        Site("attn.hook_z", 0), Site("attn.hook_z", LAST), Site("hook_logits")
    ]  # fmt: skip
    assert lens.find_sites("attn.z", 1)[0].short == "attn.z"
    for names, error in (([], InputError), ("no_such", SiteError), (3, InputTypeError)):
        with pytest.raises(error) as refused:
            lens.find_sites(names)  # pyright: ignore[reportArgumentType]
        one_line(refused)


# Reading


@pytest.mark.parametrize(
    ("names_filter", "sites"),
    [
        ("resid_post", "resid_post"),
        ("blocks.1.hook_resid_post", "blocks.1.hook_resid_post"),
        (["blocks.1.attn.hook_z", "mlp.post"], ["blocks.1.attn.hook_z", "mlp.post"]),
        (lambda name: name.endswith("hook_z"), ["attn.z", "cross_attn.z"]),
    ],
)
def test_names_filter_records_what_sites_does(lens: Any, codes: Tensor, names_filter: Any, sites: Any) -> None:
    logits, found = lens.run_with_cache(PROMPTS, codes, names_filter=names_filter)
    expected, theirs = lens.run_with_cache(PROMPTS, codes, sites=sites)
    assert torch.equal(logits, expected)
    same_cache(found, theirs)


@pytest.mark.parametrize("stop", [1, -1])
def test_a_filter_selects_among_the_sites_that_a_stopped_run_reaches(lens: Any, codes: Tensor, stop: int) -> None:
    stream, found = lens.run_with_cache(PROMPTS, codes, names_filter=lambda _: True, stop_at_layer=stop)
    layers = range(stop % 3)
    inside = {name for name in lens.sites() if any(name.startswith(f"blocks.{layer}.") for layer in layers)}
    assert {name for name in found if name.startswith("blocks.")} == inside
    expected, theirs = lens.run_with_cache(PROMPTS, codes, sites=list(found), stop_at_layer=stop)
    assert torch.equal(stream, expected)
    same_cache(found, theirs)
    assert {"hook_embed", "hook_text_states"} <= set(found)
    assert "hook_logits" not in found


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"names_filter": "resid_post", "sites": "resid_post"}, "were both given"),
        ({"names_filter": "resid_post", "sites": ("resid_post",)}, "were both given"),
        ({"names_filter": lambda _: False}, "chose none"),
        ({"names_filter": lambda _: "no"}, "expected True or False"),
        ({"names_filter": lambda _: True, "layers": 1}, "let the function choose"),
        ({"names_filter": []}, "names no site"),
        (
            {"names_filter": lambda name: name == "blocks.2.hook_resid_post", "stop_at_layer": 1},
            r"stop_at_layer=1 ends the run before blocks\.2\.hook_resid_post, the first",
        ),
        ({"names_filter": lambda _: True, "stop_at_layer": 9}, "layers 0 to 2"),
    ],
)
def test_a_filter_that_is_ambiguous_or_empty_is_refused(
    lens: Any, codes: Tensor, given: dict[str, Any], words: str
) -> None:
    with pytest.raises((InputError, InputTypeError), match=words) as refused:
        lens.run_with_cache(PROMPTS, codes, **given)
    one_line(refused)


@pytest.mark.parametrize(("bare", "short"), BARE.items())
def test_bare_names_are_the_self_attentions_and_the_mlps(lens: Any, codes: Tensor, bare: str, short: str) -> None:
    _, found = lens.run_with_cache(PROMPTS, codes, sites=bare)
    _, expected = lens.run_with_cache(PROMPTS, codes, sites=short)
    same_cache(found, expected)
    assert torch.equal(found[bare, 1], expected[short, 1])
    assert torch.equal(found.stack(bare), expected.stack(short))
    changed = [
        lens.run_with_interventions(PROMPTS, codes, al.Scale(0.5, site=name, layers=1)) for name in (bare, short)
    ]
    assert torch.equal(*changed)


def test_a_layer_may_count_from_the_end_wherever_one_is_given(
    lens: Any, codes: Tensor, cache: ActivationCache, directions: al.Directions, vector: Tensor
) -> None:
    assert torch.equal(cache["resid_post", -1], cache["resid_post", LAST])
    assert ("resid_post", -1) in cache
    assert ("resid_post", -4) not in cache
    same_cache(cache.at_layers([-1, 0]), cache.at_layers([0, LAST]))
    assert torch.equal(cache.logit_lens(layers=-1), cache.logit_lens(layers=LAST))
    assert cache.axes_of("attn.z", -1) == cache.axes_of("attn.z", LAST)
    same_cache(
        lens.run_with_cache(PROMPTS, codes, layers=[-1, 0])[1], lens.run_with_cache(PROMPTS, codes, layers=[0, LAST])[1]
    )
    made = [lens.generate("calm", 0.4, seeds=0, sites="attn.z", layers=layer, decode=False).cache for layer in (-2, 1)]
    same_cache(*made)  # pyright: ignore[reportArgumentType]
    assert torch.equal(directions[-1], directions[LAST])
    assert directions.residual_norm(-1) == directions.residual_norm(LAST)
    assert directions.at([-1, 0, LAST]).layers == (0, LAST)
    assert torch.equal(directions.at([-1, 0])[-1], directions[LAST])
    assert torch.equal(lens.W_Q[-1], lens.W_Q[LAST])
    added = [lens.run_with_interventions(PROMPTS, codes, al.Add(vector, layers=layer)) for layer in (-2, 1)]
    assert torch.equal(*added)
    band: dict[str, Any] = {"strategy": "one-to-band", "layer": -1}
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"layer": -1}, {"layer": LAST}),
        ({**band, "band": (-2, -1)}, {**band, "band": (1, LAST)}),
        ({"strategy": "all-to-all", "layers": [-1, 0]}, {"strategy": "all-to-all", "layers": [0, LAST]}),
    ]
    for options in pairs:
        one, other = (al.steer(directions, **chosen) for chosen in options)
        assert [step.layers for step in one] == [step.layers for step in other]
    with lens.trace(PROMPTS, codes=codes):
        traced = nnsight.save(lens.site("resid_post", -1).value)
    assert torch.equal(traced, cache["resid_post", LAST])
    for layer in (-4, 3):
        for ask in (
            lambda: lens.run_with_cache(PROMPTS, codes, layers=layer),  # noqa: B023
            lambda: cache["resid_post", layer],  # noqa: B023
            lambda: directions[layer],  # noqa: B023
            lambda: lens.site("resid_post", layer),  # noqa: B023
        ):
            with pytest.raises(SiteError) as refused:
                ask()
            one_line(refused)


def test_a_cache_that_does_not_know_its_model_counts_from_0_only() -> None:
    bare = ActivationCache({"blocks.0.hook_resid_post": torch.zeros(1, 2, 3)},
                           {"blocks.0.hook_resid_post": ("row", "step", "d_model")})  # fmt: skip
    assert bare["resid_post", 0].shape == (1, 2, 3)
    with pytest.raises(SiteError, match="does not state how many blocks its model has. Count from 0") as refused:
        bare["resid_post", -1]
    one_line(refused)


# The cache


def test_a_cache_is_a_mapping(cache: ActivationCache, tmp_path: Any) -> None:
    for one in (cache, ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))):
        assert isinstance(one, Mapping)
        assert list(one.keys()) == list(one) == list(cache.tensors)
        assert [name for name, _ in one.items()] == list(one)
        assert all(torch.equal(value, cache[name]) for name, value in one.items())
        assert all(torch.equal(value, cache[name]) for name, value in zip(one, one.values(), strict=True))
        assert torch.equal(one.get(("resid_post", 1)), cache["resid_post", 1])
        assert one.get("no_such") is None
        assert dict(one).keys() == cache.keys()
    assert cache == cache  # noqa: PLR0124 - by identity, and not by comparing tensors
    assert len({cache, cache}) == 1
    with pytest.raises(InputTypeError, match="is not an array of numbers"):
        np.asarray(cache)


def test_stack_activation_takes_every_block_below(cache: ActivationCache, lens: Any, codes: Tensor) -> None:
    for layer in (None, -1, LAST + 1):
        assert torch.equal(cache.stack_activation("resid_post", layer), cache.stack("resid_post"))
    assert torch.equal(cache.stack_activation("z", 2), cache.stack("attn.z")[:2])
    _, some = lens.run_with_cache(PROMPTS, codes, layers=[0, 2])
    assert torch.equal(some.stack_activation("resid_post", 1), some.stack("resid_post")[:1])
    for ask in (
        lambda: some.stack_activation("resid_post"),
        lambda: some.stack_activation("resid_post", 0),
        lambda: some.stack_activation("resid_post", 9),
    ):
        with pytest.raises((SiteError, InputError)) as refused:
            ask()
        one_line(refused)


@pytest.mark.parametrize("layer", [None, 1, -1])
def test_return_labels_gives_transformer_lenss_pair(cache: ActivationCache, layer: int | None) -> None:
    for verb in (cache.decompose_resid, cache.accumulated_resid):
        whole = verb(layer)
        values, labels = verb(layer=layer, return_labels=True)
        assert torch.equal(values, whole.values)
        assert labels == list(whole.labels)


def test_a_cache_as_a_table_has_the_length_of_every_vector(lens: Any, codes: Tensor) -> None:
    sites = ["pos_embed", "resid_post", "attn.pattern", "cross_attn.k", "logits"]
    _, whole = lens.run_with_cache(
        PROMPTS, codes, sites=sites, heads=[1, 3], layers=[0, -1], guidance_scale=3.0, branch="both", seconds=(0.2, 0.4)
    )
    table = whole.to_frame()
    assert len(table) == sum(tensor[..., 0].numel() for tensor in whole.values())
    for name, tensor in whole.items():
        mine = table[table["name"] == name]
        assert torch.equal(torch.tensor(mine["norm"].to_numpy()), tensor.norm(dim=-1).flatten())
    assert set(table["layer"].dropna()) == {0, LAST}
    assert set(table["head"].dropna()) == {1, 3}
    one = table.query("name == 'blocks.2.hook_resid_post' and branch == 'null' and row == 1 and step == 6")
    first = whole.first_step
    assert first == 5
    assert one["norm"].item() == whole["resid_post", LAST][1, 1, 6 - first].norm().item()
    assert one["prompt"].item() == PROMPTS[1]
    assert one["seconds"].item() == 6 / lens.config.frame_rate
    assert len(ActivationCache({}, {}).to_frame()) == 0


# Writing


def raw(lens: Any, codes: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The logits with a bare torch hook on the second block."""
    block = lens.model.get_submodule("decoder.model.decoder.layers")[1]
    handle = block.register_forward_hook(lambda *given: function(given[-1]))
    try:
        return lens(PROMPTS, codes)
    finally:
        handle.remove()


def test_hooks_change_the_forward_as_interventions_and_bare_hooks_do(lens: Any, codes: Tensor) -> None:
    seen = []

    def doubled(value: Tensor, hook: Any) -> Tensor:
        seen.append((hook.name, hook.layer(), tuple(value.shape)))
        return value * 2

    def in_place(value: Tensor, hook: Any) -> None:  # noqa: ARG001 - what a hook is given
        value *= 2

    expected = lens.run_with_interventions(PROMPTS, codes, al.Apply(lambda value: value * 2, layers=1))
    for name in ("blocks.1.hook_resid_post", lambda name: name == "blocks.1.hook_resid_post"):
        for function in (doubled, in_place):
            assert torch.equal(lens.run_with_hooks(PROMPTS, codes, fwd_hooks=[(name, function)]), expected)
    assert torch.equal(raw(lens, codes, lambda value: value * 2), expected)
    assert seen[0] == ("blocks.1.hook_resid_post", 1, (3, STEPS, 48))
    assert torch.equal(lens.run_with_hooks(PROMPTS, codes), lens(PROMPTS, codes))


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("site", IN_BLOCK)
def test_a_hook_at_every_site_does_what_apply_does(lens: Any, codes: Tensor, site: str, scale: float) -> None:
    where: dict[str, Any] = {"guidance_scale": scale, "branch": "both" if scale > 1 else "cond"}
    hooks = [(site, lambda value, _: value * 0.5), (site, lambda _, __: None)]
    expected = lens.run_with_interventions(PROMPTS, codes, al.Apply(lambda value: value * 0.5, site=site), **where)
    assert torch.equal(lens.run_with_hooks(PROMPTS, codes, fwd_hooks=hooks, **where), expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"fwd_hooks": ("resid_post", print)}, "expected pairs"),
        ({"fwd_hooks": [("resid_post", 3)]}, "expected pairs"),
        ({"fwd_hooks": [("no_such", print)]}, "unknown site"),
        ({"fwd_hooks": [(lambda _: False, print)]}, "chose none"),
        ({"fwd_hooks": [("resid_post", lambda value, _: value[:1])]}, "the function returned"),
        ({"fwd_hooks": [("logits", lambda value, hook: value * hook.layer())]}, "is outside the blocks"),
        ({"bwd_hooks": [("resid_post", print)]}, "analysis.attribution"),
    ],
)
def test_hooks_that_cannot_be_are_refused(lens: Any, codes: Tensor, given: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, InputTypeError), match=words) as refused:
        lens.run_with_hooks(PROMPTS, codes, **given)
    one_line(refused)


def test_a_single_block_is_given_as_layer(lens: Any, codes: Tensor, vector: Tensor) -> None:
    for one, other in (
        (al.Add(vector, layer=1), al.Add(vector, layers=1)),
        (al.Ablate(vector, layer=-1), al.Ablate(vector, layers=[-1])),
        (al.Clamp(vector, 1.0, layer=0), al.Clamp(vector, 1.0, layers=0)),
        (al.Scale(0.5, layer=1), al.Scale(0.5, layers=1)),
        (al.Replace(vector, layer=1), al.Replace(vector, layers=1)),
        (al.Apply(torch.neg, layer=1), al.Apply(torch.neg, layers=1)),
    ):
        changed = [lens.run_with_interventions(PROMPTS, codes, step) for step in (one, other)]
        assert torch.equal(*changed)
        assert not torch.equal(changed[0], lens(PROMPTS, codes))
    for layer, layers, words in ((1, 2, "were both given"), ([1], None, "takes several"), (True, None, "layer=True")):
        with pytest.raises((InputError, InputTypeError), match=words) as refused:
            al.Add(vector, layer=layer, layers=layers)  # pyright: ignore[reportArgumentType]
        one_line(refused)


def test_steering_one_block_takes_it_as_layers_too(directions: al.Directions) -> None:
    (expected,) = al.steer(directions, layer=1)
    for layers in (1, [1], (-2,)):
        (found,) = al.steer(directions, layers=layers)
        assert found.layers == expected.layers == [1]
        assert torch.equal(found.operands["vector"].tensor, expected.operands["vector"].tensor)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"layer": 1, "layers": [1]}, "were both given"),
        ({"layers": [0, 1]}, "'all-to-all'"),
        ({"layers": [1], "strategy": "one-to-all", "layer": 1}, "takes no layers="),
    ]
    for given, words in refusals:
        with pytest.raises(InputError, match=words) as refused:
            al.steer(directions, **given)
        one_line(refused)


def test_schedules_are_reached_from_the_package() -> None:
    from audiolens.directions import schedules

    assert al.schedules is schedules
    assert al.schedules.linear(0.0, 2.0)(1.0) == 0.5


@pytest.mark.parametrize("name", ["W_Q", "W_K", "W_V", "W_O", "W_in", "W_out", "W_E", "W_U", "W_Q_cross"])
def test_weights_have_the_shape_of_one_tensor(lens: Any, name: str) -> None:
    weights = getattr(lens, name)
    assert weights.shape == torch.stack(weights).shape
    assert torch.equal(weights[...], torch.stack(weights))


# Generating


def test_one_seed_and_transformers_count_of_tokens(lens: Any) -> None:
    expected = lens.generate(PROMPTS, 0.4, seeds=0)
    assert torch.equal(lens.generate(PROMPTS, 0.4, seed=0).codes, expected.codes)
    frames = expected.codes.shape[-1]
    tokens = frames + max(lens.config.delays)
    counted = lens.generate(PROMPTS, seed=0, max_new_tokens=tokens)
    assert torch.equal(counted.codes, expected.codes)
    assert counted.settings == expected.settings


@pytest.mark.parametrize("tokens", [6, 13, 40])
@pytest.mark.parametrize("family", ["lens", "stereo_lens", "melody_lens"])
def test_as_many_new_tokens_make_transformers_own_clip(
    family: str, tokens: int, request: pytest.FixtureRequest
) -> None:
    lens = request.getfixturevalue(family)
    prompt = "fast piano"
    inputs = lens.tokenizer([prompt], return_tensors="pt")
    torch.manual_seed(3)
    random.seed(3)
    expected = lens.model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=tokens,
        guidance_scale=3.0, do_sample=True, top_k=250, temperature=1.0,
    )  # fmt: skip
    torch.manual_seed(3)
    random.seed(3)
    out = lens.generate([prompt], max_new_tokens=tokens)
    assert out.codes.shape[-1] == tokens - max(lens.config.delays)
    assert torch.equal(out.audio, expected)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seed": 0, "seeds": 0}, "were both given"),
        ({"seed": [0, 1, 2]}, "expected a whole number"),
        ({"seed": True}, "expected a whole number"),
        ({"max_new_tokens": 20, "seconds": 1.0}, "were both given"),
        ({"max_new_tokens": 20, "seconds": 4.0}, "were both given"),
        ({"max_new_tokens": 5}, "at least 6"),
        ({"max_new_tokens": True}, "whole number"),
        ({"max_new_tokens": 10**6}, "makes clips of"),
        ({"max_new_tokens": 20, "audio_prompt": torch.zeros(1, 4, 4, dtype=torch.long)}, "give seconds="),
    ],
)
def test_ambiguous_or_impossible_lengths_and_seeds_are_refused(lens: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, InputTypeError), match=words) as refused:
        lens.generate(PROMPTS, **given)
    one_line(refused)


def test_a_row_of_a_generation_is_a_clip(lens: Any, tmp_path: Any) -> None:
    out = lens.generate(PROMPTS, 0.4, seeds=[4, 5, 6], sites="resid_post")
    assert out.cache is not None
    assert out.audio is not None
    for row, clip in zip((0, 1, 2, -1), (*out, out[-1]), strict=True):
        assert isinstance(clip, al.Generation)
        assert len(clip) == 1
        assert torch.equal(clip.codes, out.codes[row][None])
        assert torch.equal(clip.audio, out.audio[row][None])  # pyright: ignore[reportArgumentType]
        assert clip.prompts == (out.prompts[row],)
        assert clip.seeds == (out.seeds[row],)  # pyright: ignore[reportOptionalSubscript]
        same_cache(clip.cache, out.cache.rows([row % 3]))  # pyright: ignore[reportArgumentType]
    assert torch.equal(out[1:].codes, out.codes[1:])
    assert out[::-1].prompts == out.prompts[::-1]
    assert out[1].save(tmp_path / "one").is_dir()
    assert torch.equal(out[0].codes, lens.generate(PROMPTS[:1], 0.4, seeds=[4]).codes)
    for row, words in (
        (3, "rows 0 to 2"),
        (True, "a row number"),
        ("a", "a row number"),
        (slice(3, 3), "selects none of the 3 clips"),
    ):
        with pytest.raises((InputError, InputTypeError), match=words) as refused:
            out[row]  # pyright: ignore[reportArgumentType]
        one_line(refused)


# Tracing


def test_sites_out_of_order_are_named_with_their_order(lens: Any, codes: Tensor) -> None:
    def reading() -> None:
        with lens.trace(PROMPTS, codes=codes):
            nnsight.save(lens.site("resid_post", 2).value)
            nnsight.save(lens.site("attn.q", 1).value)

    def writing() -> None:
        with lens.trace(PROMPTS, codes=codes):
            nnsight.save(lens.site("logits").value)
            lens.site("resid_post", 1).value = torch.zeros(3, STEPS, 48)

    def in_an_invoke() -> None:
        with lens.trace() as tracer:
            with tracer.invoke(PROMPTS[:1], codes=codes[:1]):
                nnsight.save(lens.site("resid_post", 0).value)
            with tracer.invoke(PROMPTS[1:], codes=codes[1:]):
                nnsight.save(lens.site("resid_post", 1).value)
                nnsight.save(lens.site("resid_post", 0).value)

    def in_a_loop() -> None:
        with lens.trace("calm", fn="generate", seconds=0.4, seeds=0) as tracer:
            for _ in tracer.iter[:]:
                nnsight.save(lens.site("resid_post", 1).value)
                nnsight.save(lens.site("resid_post", 0).value)

    for asked, late, early in (
        (reading, "blocks.2.hook_resid_post", "blocks.1.attn.hook_q"),
        (writing, "hook_logits", "blocks.1.hook_resid_post"),
        (in_an_invoke, "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"),
        (in_a_loop, "blocks.1.hook_resid_post", "blocks.0.hook_resid_post"),
    ):
        with pytest.raises(SiteError) as refused:
            asked()
        assert one_line(refused) == (
            f"{early} was requested after {late}, but the model reaches it first: request sites in the model's order, "
            f"{early} first, then {late} (lens.sites() lists all)."
        )
    assert torch.isfinite(lens(PROMPTS, codes)).all()


def test_each_invoke_has_an_order_of_its_own(lens: Any, codes: Tensor, cache: ActivationCache) -> None:
    with lens.trace() as tracer:
        with tracer.invoke(PROMPTS[:1], codes=codes[:1]):
            late = nnsight.save(lens.site("resid_post", 2).value)
        with tracer.invoke(PROMPTS[1:], codes=codes[1:]):
            early = nnsight.save(lens.site("resid_post", 0).value)
    assert late.shape == (1, STEPS, 48)
    assert early.shape == (2, STEPS, 48)


def test_an_open_loop_still_ends_with_the_run(lens: Any) -> None:
    def reading() -> list[Tensor]:
        with lens.trace("calm", fn="generate", seconds=0.4, seeds=0) as tracer:
            values = nnsight.save([])
            for _ in tracer.iter[:]:
                values.append(lens.site("resid_post", 1).value)
        return values

    with pytest.warns(UserWarning, match="cut short"):
        values = reading()
    assert len(values) == 10 + 3 + 1


def test_a_site_that_is_saved_says_that_it_wants_its_value(lens: Any, codes: Tensor, cache: ActivationCache) -> None:
    with (
        pytest.raises(InputError, match=r"save its value, nnsight.save\(lens.site") as refused,
        lens.trace(PROMPTS, codes=codes),
    ):
        lens.site("resid_post", 1).save()
    one_line(refused)
    with lens.trace(PROMPTS, codes=codes):
        value = lens.site("resid_post", 1).value.save()  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(value, cache["resid_post", 1])


# Figures


def results() -> Iterator[type]:
    """Yield every class in `analysis` that can be plotted."""
    for found in pkgutil.walk_packages(analysis.__path__, "analysis."):
        module = importlib.import_module(found.name)
        yield from (
            one
            for _, one in inspect.getmembers(module, inspect.isclass)
            if one.__module__ == found.name and "plot" in vars(one)
        )


def test_every_result_plots_into_given_axes_and_without_its_caption() -> None:
    found = list(results())
    assert len(found) > 20
    for one in found:
        parameters = inspect.signature(vars(one)["plot"]).parameters
        assert parameters["ax"].default is None, one
        assert parameters["caption"].default is True, one


@pytest.fixture(scope="module")
def plotted() -> dict[str, Any]:
    rng, labels = np.random.default_rng(0), ["a"] * 12 + ["b"] * 12
    values = rng.standard_normal((3, 24, 8))
    values[:, :12] += 1
    patched = planted.patched("component", ("attn_out", "mlp_out"), ("attn_out", "mlp_out"))
    return {
        "probe": probing.probe(None, values, labels, n_shuffles=2, n_bootstrap=20),
        "patching": patched,
        "cosines": similarity.cosine_map(planted.directions()),
        "pca": pca.fit(values, labels),
        "placement": planted.placed(),
    }


def drawn(axes: Any) -> list[list[float]]:
    """The contents of a panel: the values of its lines and images."""
    lines = [np.asarray(line.get_ydata(), dtype=float).tolist() for line in axes.lines]
    return lines + [np.ma.filled(image.get_array(), np.nan).ravel().tolist() for image in axes.images]


@pytest.mark.parametrize("name", ["probe", "patching", "cosines"])
def test_a_figure_of_one_panel_is_drawn_into_the_axes(plotted: dict[str, Any], name: str) -> None:
    result = plotted[name]
    figure, axes = plt.subplots(1, 2, layout="constrained")
    assert result.plot(ax=axes[1]) is figure
    np.testing.assert_equal(drawn(axes[1]), drawn(result.plot().axes[0]))
    assert not drawn(axes[0])
    figure.savefig("/dev/null", format="png")
    plt.close(figure)


@pytest.mark.parametrize("name", ["pca", "placement"])
def test_a_figure_of_several_panels_takes_the_place_of_the_axes(plotted: dict[str, Any], name: str) -> None:
    result = plotted[name]
    figure, axes = plt.subplots(1, 2, layout="constrained")
    axes[1].set_title("mine")
    assert result.plot(ax=axes[1]) is figure
    (inside,) = figure.subfigs
    np.testing.assert_equal([drawn(one) for one in inside.axes], [drawn(one) for one in result.plot().axes])
    figure.savefig("/dev/null", format="png")
    assert axes[1].get_title() == "mine"
    plt.close(figure)


def texts(figure: Any) -> set[str]:
    panels = [text for axes in figure.axes for text in (axes.title, axes._left_title, *axes.texts)]
    return {text.get_text() for text in (*panels, *figure.findobj(lambda one: hasattr(one, "get_text")))}


def test_a_figure_without_its_caption_lacks_that_alone(plotted: dict[str, Any]) -> None:
    for name in ("probe", "patching", "placement"):
        with_it, without = (plotted[name].plot(caption=caption) for caption in (True, False))
        gone = texts(with_it) - texts(without)
        assert len(gone) == 1, (name, gone)
        assert not texts(without) - texts(with_it)
        assert [drawn(axes) for axes in with_it.axes] == [drawn(axes) for axes in without.axes]


def test_what_is_no_axes_is_refused(plotted: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, 2)
    by_hand = figure.add_axes((0.1, 0.1, 0.2, 0.2))
    for given, error, words in (
        ({"ax": axes}, InputTypeError, "expected one matplotlib Axes"),
        ({"ax": figure}, InputTypeError, "expected one matplotlib Axes"),
        ({"caption": "no"}, InputTypeError, "expected True or False"),
        ({"ax": by_hand}, InputError, "no subplot position"),
    ):
        with pytest.raises(error, match=words) as refused:
            plotted["pca"].plot(**given)
        one_line(refused)
    plt.close(figure)


def test_a_span_has_one_name_everywhere(lens: Any) -> None:
    vector = torch.randn(lens.config.d_model, generator=torch.Generator().manual_seed(0))
    given = (["fast piano"], torch.zeros(1, 4, 15, dtype=torch.long))
    assert al.Add(vector, span=(0.2, 0.4)).seconds == (0.2, 0.4)
    by_seconds, by_span = (lens.run_with_cache(*given, **{name: (0.2, 0.4)})[1] for name in ("seconds", "span"))
    assert by_span.first_step == by_seconds.first_step == 5
    assert torch.equal(by_span["resid_post", 1], by_seconds["resid_post", 1])
    (part,) = lens.iter_cache(*given, span=(0.2, 0.4), progress=False)
    assert torch.equal(part["resid_post", 1], by_seconds["resid_post", 1])
    d = al.difference_in_means(lens, ["fast"], ["slow"], position="first", progress=False)
    (steered,) = al.steer(d, layer=1, span=(0.2, 0.4))
    assert steered.seconds == (0.2, 0.4)
    for both in (lambda **two: al.Add(vector, **two), lambda **two: lens.run_with_cache(*given, **two)):
        with pytest.raises(InputError, match="were both given"):
            both(seconds=(0.0, 0.2), span=(0.0, 0.2))


def test_arguments_that_travel_together_are_one_value_too(lens: Any) -> None:
    given = (["fast piano"], torch.zeros(1, 4, 15, dtype=torch.long))
    reading = al.Reading("attn.z", layers=[1], heads=[2], seconds=(0.2, 0.4))
    _, one_by_one = lens.run_with_cache(*given, sites="attn.z", layers=[1], heads=[2], span=(0.2, 0.4))
    _, at_once = lens.run_with_cache(*given, reading=reading)
    (part,) = lens.iter_cache(*given, reading=reading, progress=False)
    for found in (at_once, part):
        assert list(found) == list(one_by_one)
        assert torch.equal(found["attn.z", 1], one_by_one["attn.z", 1])
    sampling = al.Sampling(guidance_scale=2.0, temperature=0.7, top_k=9)
    loose = lens.generate(
        "calm", 0.6, seeds=3, guidance_scale=2.0, temperature=0.7, top_k=9, sites="attn.z", layers=[1]
    )
    drawn = lens.generate("calm", 0.6, seeds=3, sampling=sampling, reading=al.Reading("attn.z", layers=[1]))
    assert torch.equal(drawn.codes, loose.codes)
    assert torch.equal(drawn.cache["attn.z", 1], loose.cache["attn.z", 1])
    with pytest.raises(InputError, match="reading= and layers= were both given"):
        lens.run_with_cache(*given, reading=reading, layers=[0])
    with pytest.raises(InputError, match="sampling= and top_k= were both given"):
        lens.generate("calm", 0.6, sampling=sampling, top_k=5)
    wrong: Any
    for wrong in ({"branch": pd.DataFrame({"a": [1, 2]})}, {"branch": "left"}, {"seconds": (1, 0)}):
        with pytest.raises(AudioLensError, match=f"{next(iter(wrong))}="):
            al.Reading(**wrong)
    with pytest.raises(InputTypeError, match="expected a Sampling"):
        lens.generate("calm", 0.6, sampling=0.7)


def test_a_hook_is_given_by_its_keyword_as_in_transformerlens(lens: Any) -> None:
    from functools import partial

    seen = []

    def keep(value: torch.Tensor, pos: int, hook: Any) -> None:
        seen.append((hook.name, pos, tuple(value.shape)))

    lens.run_with_hooks(["fast piano"], fwd_hooks=[("blocks.1.hook_resid_post", partial(keep, pos=3))])
    assert seen == [("blocks.1.hook_resid_post", 3, (1, 1, lens.config.d_model))]


def test_a_filter_by_name_stops_with_the_run(lens: Any) -> None:
    codes = torch.zeros(1, 4, 8, dtype=torch.long)
    _, cache = lens.run_with_cache(["fast piano"], codes, names_filter="resid_post", stop_at_layer=2)
    assert list(cache) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def test_an_error_of_the_callers_own_function_stays_the_callers(lens: Any) -> None:
    def broken(value: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        lens.run_with_cache(["fast"], None, sites={"resid_post"}, interventions=al.Apply(broken))
