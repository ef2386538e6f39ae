"""A forward pass that stops early runs no later block and reads identical values; batches add up to the whole."""

import gc
from typing import Any

import pytest
import torch

import audiolens as al
from audiolens.errors import AudioLensError, InputError

PROMPTS = ["fast piano", "slow dark guitar music", "calm", "bright jazz song", "the soft drums"]


@pytest.fixture
def ran(lens: Any) -> Any:
    """The names of the decoder's modules that ran, filled while the test runs."""
    names: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in lens.model.decoder.named_modules()
    ]
    yield names
    for handle in handles:
        handle.remove()


def blocks(ran: list[str]) -> set[int]:
    return {int(name.split(".")[3]) for name in ran if name.startswith("model.decoder.layers.")}


@pytest.mark.parametrize("stop", [0, 1, 2, 3])
def test_nothing_above_the_stop_runs_and_the_stream_there_is_returned(lens, codes, ran, stop):
    sites = ["attn.z", "resid_mid", "resid_post"] if stop else ()
    stream, cache = lens.run_with_cache(PROMPTS, codes, sites=sites, stop_at_layer=stop)
    assert blocks(ran) == set(range(stop))
    assert not any(name.startswith(("model.decoder.layer_norm", "lm_heads")) for name in ran)
    _, full = lens.run_with_cache(PROMPTS, codes, sites=["resid_pre", "attn.z", "resid_mid", "resid_post"])
    assert torch.equal(stream, full["resid_pre", stop] if stop < 3 else full["resid_post", 2])
    assert len(cache) == 3 * stop
    assert all(torch.equal(cache[name], full[name]) for name in cache)


def test_a_stop_knows_branches_batches_negatives_and_edits(lens, codes):
    edits = [al.Add(torch.ones(48), layers=[0, 2], branch="null"), al.Scale(0.5, site="resid_mid", layers=1)]
    given = {"branch": "both", "guidance_scale": 3.0, "interventions": edits, "batch_size": 2}
    stream, cache = lens.run_with_cache(PROMPTS, codes, stop_at_layer=-1, **given)
    _, full = lens.run_with_cache(PROMPTS, codes, sites=["resid_pre", "resid_post"], **given)
    edited = lens.run_with_cache(PROMPTS, codes, sites=["resid_post"], **given)[1]
    assert stream.shape == (2, 5, 18, 48)
    assert torch.equal(stream, full["resid_pre", 2])
    assert cache.layers("resid_post") == [0, 1]
    assert torch.equal(cache.stack("resid_post"), edited.stack("resid_post")[:2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stop_at_layer": 4}, "layers 0 to 2"),
        ({"stop_at_layer": 1.5}, "expected a layer"),
        ({"stop_at_layer": 1, "layers": [0, 2]}, r"before blocks\.2\.hook_resid_post"),
        ({"stop_at_layer": 2, "sites": ["ln_final.normalized"]}, "before ln_final"),
        ({"stop_at_layer": 0}, r"before blocks\.0"),
    ],
)
def test_a_stop_below_what_is_asked_for_is_refused(lens, codes, monkeypatch, arguments, message):
    monkeypatch.setattr("audiolens.tracing.model_calls.forward", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(AudioLensError, match=message):
        lens.run_with_cache(PROMPTS, codes, **arguments)


@pytest.mark.parametrize("reduce", [None, "mean", "last", "max"])
def test_batches_one_by_one_are_the_run_over_all_rows(lens, codes, reduce):
    sites = ["resid_post", "attn.z"]
    strengths = al.Add(torch.ones(48), layers=0, strength=[0.0, 1.0, 2.0, 3.0, 4.0])
    given = {"sites": sites, "reduce": reduce, "interventions": strengths}
    caches = list(lens.iter_cache(PROMPTS, codes, batch_size=2, progress=False, **given))
    assert [cache.prompts for cache in caches] == [tuple(PROMPTS[:2]), tuple(PROMPTS[2:4]), tuple(PROMPTS[4:])]
    _, whole = lens.run_with_cache(PROMPTS, codes, **given)
    _, same = lens.run_with_cache(PROMPTS, codes, batch_size=2, **given)
    assert list(caches[0]) == list(whole)
    for name in whole:
        joined = torch.cat([cache[name] for cache in caches])
        assert torch.equal(joined, same[name])
        # Another batch is another padding and other kernels.
        torch.testing.assert_close(joined, whole[name], rtol=1e-4, atol=1e-5)


def test_sites_before_the_blocks_need_none_of_them_and_text_has_each_batch_s_own_length(lens, codes, ran):
    caches = list(lens.iter_cache(PROMPTS, codes, sites=["embed", "text_states"], batch_size=3, progress=False))
    assert blocks(ran) == set()
    lengths = [max(len(tokens) for tokens in lens.text_tokens(cache.prompts)) for cache in caches]
    assert [cache["hook_text_states"].shape[1] for cache in caches] == lengths
    _, whole = lens.run_with_cache(PROMPTS, codes, sites=["embed", "attn.pattern"], heads=[1], stop_at_layer=1)
    assert torch.equal(torch.cat([cache["hook_embed"] for cache in caches]), whole["hook_embed"])
    (pattern,) = lens.iter_cache(PROMPTS, codes, sites="attn.pattern", layers=0, heads=[1], progress=False)
    assert torch.equal(pattern["attn.pattern", 0], whole["attn.pattern", 0])
    with pytest.raises(AudioLensError, match="heads"):
        lens.iter_cache(PROMPTS, codes, heads=[1])


def test_batches_keep_their_branches_apart(lens, codes):
    given = {"branch": "both", "guidance_scale": 3.0, "seconds": (0.2, 0.4)}
    caches = list(lens.iter_cache(PROMPTS, codes, batch_size=2, progress=False, **given))
    _, whole = lens.run_with_cache(PROMPTS, codes, batch_size=2, **given)
    assert caches[0]["resid_post", 0].shape == (2, 2, 5, 48)
    for name in whole:
        assert torch.equal(torch.cat([cache[name] for cache in caches], dim=1), whole[name])


def test_a_batch_runs_no_block_above_the_last_recorded(lens, codes, ran):
    for _ in lens.iter_cache(PROMPTS, codes, layers=[0, 1], batch_size=3, progress=False):
        assert blocks(ran) == {0, 1}
    ran.clear()
    (cache,) = lens.iter_cache(PROMPTS, codes, sites="ln_final.normalized", progress=False)
    assert cache["ln_final.hook_normalized"].shape == (5, 18, 48)


def test_directions_read_from_codes_run_no_block_above_theirs(lens, codes, ran):
    al.difference_in_means(lens, PROMPTS[:2], PROMPTS[2:4], codes=codes[:2], layers=[0, 1], progress=False)
    assert blocks(ran) == {0, 1}


def alive() -> tuple[int, int]:
    """How many tensors there are, and how many numbers they hold."""
    gc.collect()
    sizes = [thing.numel() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return len(sizes), sum(sizes)


@pytest.mark.parametrize("reduce", [None, "mean"])
def test_memory_does_not_grow_with_the_batches(lens, codes, reduce):
    held = []
    for cache in lens.iter_cache(PROMPTS * 4, codes.repeat(4, 1, 1), reduce=reduce, batch_size=2, progress=False):
        assert cache["resid_post", 0].shape == ((2, 48) if reduce else (2, 18, 48))
        held.append(alive())
    assert len(held) == 10
    assert set(held[1:]) == {held[1]}


def test_the_model_is_free_between_two_batches(lens, codes):
    for cache in lens.iter_cache(PROMPTS, codes, batch_size=3, progress=False):
        assert lens.run_with_cache(cache.prompts, codes[: len(cache.prompts)])[0].shape[0] == len(cache.prompts)


def test_batches_show_their_progress(lens, codes, capsys):
    list(lens.iter_cache(PROMPTS, codes, batch_size=2))
    assert "reading: 100%" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"sites": ()}, "no site to record"),
        ({"seconds": (0.0, 9.0)}, "after the clip"),
        ({"branch": "null"}, "needs guidance"),
        ({"codes": torch.zeros(2, 4, 15, dtype=torch.long)}, "2 rows"),
    ],
)
def test_bad_batches_are_refused_before_the_first_is_asked_for(lens, codes, arguments, message):
    with pytest.raises(AudioLensError, match=message):
        lens.iter_cache(**{"prompts": PROMPTS, "codes": codes, **arguments})


@pytest.mark.parametrize("batch_size", [0, 1.5, "2", True])
def test_a_batch_size_that_is_no_whole_number_is_refused_at_the_door(lens: Any, batch_size: Any) -> None:
    with pytest.raises(InputError, match="batch_size=.*: expected a whole number of at least 1"):
        lens.iter_cache(["calm"], batch_size=batch_size)


def test_sound_without_its_rate_is_refused(lens: Any) -> None:
    with pytest.raises(TypeError, match=r"audio=Tensor: expected \(waveform, sample_rate\)"):
        lens.run_with_cache(["calm"], audio=torch.zeros(100))
