"""Every site of MusicGen Melody is read and written as in bare transformers, including the prefix."""

from typing import Any

import nnsight
import pytest
import torch
from conftest import CHROMA
from everywhere import IN_BLOCK, WHOLE, full, least_lead, tap_of
from melodies import ALIKE, FRAMES, MIXED, PREFIX, SECONDS, STEPS, D, bare_forward

import audiolens as al
from audiolens import errors
from audiolens.model.timeline import delay

SITES = [full(site) for site in (*IN_BLOCK, *WHOLE) if "cross" not in site and "text" not in site]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=["mono", "stereo"])
def either(request, melody_lens, stereo_melody_lens) -> Any:
    return melody_lens if request.param == "mono" else stereo_melody_lens


def random_codes(lens: Any, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 32, (5, lens.config.n_codebooks, FRAMES), generator=generator)


@pytest.mark.parametrize("prefix", [False, True])
def test_every_site_has_the_shape_it_is_listed_with(either, prefix):
    listed = either.sites()
    assert set(SITES) <= set(listed)
    options = {"sites": list(listed), "branch": "both", "guidance_scale": 3.0, "prefix": prefix}
    logits, cache = either.run_with_cache(MIXED, random_codes(either), **options)
    assert list(cache) == list(listed)
    longest = max(cache.prefixes)
    before = longest if prefix else 0
    counts = {"row": 5, "step": before + STEPS, "query": before + STEPS, "key": longest + STEPS}
    for name, shape in listed.items():
        marked = "[prefix+]" in shape
        sizes = [part.replace("[prefix+]", "").replace("prefix+", "").split("=") for part in shape.split()]
        assert marked
        assert cache.axes[name] == ("branch", *(axis for axis, *_ in sizes))
        assert list(cache[name].shape) == [2, *(int(size[0]) if size else counts[axis] for axis, *size in sizes)]
    assert torch.equal(cache["hook_logits"][..., before:, :], logits)


def test_patterns_are_those_of_eager_attention_whose_keys_begin_with_the_prefix(melody_lens):
    codes = random_codes(melody_lens)
    eager = type(melody_lens.model).from_pretrained(melody_lens.name, attn_implementation="eager").eval()
    inputs = melody_lens.tokenizer(ALIKE, return_tensors="pt")
    columns = delay(codes, melody_lens.config.delays, 32)[..., :-1].flatten(0, 1)
    with torch.no_grad():
        expected = eager(**inputs, decoder_input_ids=columns, output_attentions=True).attentions
    for lens in (melody_lens, al.AudioLens(eager, melody_lens.tokenizer)):
        for prefix in (False, True):
            _, cache = lens.run_with_cache(ALIKE, codes, sites="attn.pattern", prefix=prefix)
            for layer in range(3):
                found = cache["attn.pattern", layer]
                torch.testing.assert_close(found, expected[layer][:, :, 0 if prefix else PREFIX :], rtol=0, atol=1e-5)


def test_embeddings_and_logits_are_the_two_ends_of_the_stream(melody_lens):
    codes = random_codes(melody_lens)
    _, cache = melody_lens.run_with_cache(ALIKE, codes, sites=["embed", "pos_embed", "logits"], prefix=True)
    expected = bare_forward(melody_lens, ALIKE, codes)
    assert torch.equal(cache["hook_embed"][:, :PREFIX], expected.encoder_hidden_states)
    assert torch.equal(cache["hook_embed"] + cache["hook_pos_embed"], expected.hidden_states[0])
    assert torch.equal(cache["hook_logits"], expected.logits.unflatten(0, (5, 4)))


@pytest.mark.parametrize("site", SITES)
def test_looking_changes_nothing_and_what_was_read_can_be_put_back(melody_lens, site):
    codes = random_codes(melody_lens)
    plain, before = melody_lens.run_with_cache(MIXED, codes, sites=site, prefix=True)
    for prefix in (False, True):
        look = al.Apply(lambda value: None, site=site, prefix=prefix)
        assert torch.equal(melody_lens.run_with_interventions(MIXED, codes, look), plain)
        halved = al.Scale(0.5, site=site, prefix=prefix)
        logits, cache = melody_lens.run_with_cache(MIXED, codes, sites=site, interventions=halved, prefix=True)
        first = -before.first_step
        axis = next(before.axes[site].index(time) for time in ("step", "query") if time in before.axes[site])
        prefixes = [tensor.movedim(axis, 1)[:, :first] for tensor in (before[site], cache[site])]
        assert not torch.equal(logits, plain)
        torch.testing.assert_close(prefixes[1], prefixes[0] / (2 if prefix else 1))
        _, mine = melody_lens.run_with_cache(MIXED, codes, sites=site, interventions=halved, prefix=prefix)
        again = melody_lens.run_with_interventions(MIXED, codes, al.Replace(mine[site], site=site, prefix=prefix))
        assert torch.equal(again, logits)


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("site", SITES)
def test_writing_into_what_was_read_in_a_trace_is_assigning_it_or_is_refused(melody_lens, site, prefix):
    codes, options = random_codes(melody_lens), {"branch": "null", "prefix": prefix}
    halved = al.Scale(0.5, site=site, **options)
    expected = melody_lens.run_with_interventions(ALIKE, codes, halved, branch="null", guidance_scale=3.0)

    def written() -> torch.Tensor:
        with torch.no_grad(), melody_lens.trace(ALIKE, codes=codes, guidance_scale=3.0) as tracer:
            melody_lens.site(site, **options).value[:] *= 0.5
            logits = nnsight.save(tracer.result)
        return logits[-5:]

    tap = tap_of(melody_lens, site)
    if tap.recomputed or tap.shared:
        with pytest.raises(errors.InputError, match=f"{site} .*changed in place"):
            written()
    else:
        assert torch.equal(written(), expected)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("branch", "scale"), [("cond", 1.0), ("both", 3.0)])
def test_every_site_read_while_generating_is_read_from_the_codes(either, branch, scale, use_cache):
    names, seeds = list(either.sites()), [1, 2, 3, 4, 5]
    options = {"sites": names, "branch": branch, "guidance_scale": scale, "prefix": True}
    out = either.generate(MIXED, SECONDS, seeds=seeds, use_cache=use_cache, **options)
    assert torch.equal(out.codes, either.generate(MIXED, SECONDS, seeds=seeds, guidance_scale=scale).codes)
    _, cache = either.run_with_cache(MIXED, out.codes, **options)
    for name in names:
        torch.testing.assert_close(out.cache[name], cache[name], **CLOSE)


@pytest.mark.parametrize(
    "edit",
    [
        al.Scale(0.0, site="attn.pattern", layers=1, heads=[0, 3]),
        al.Scale(0.5, site="attn.pattern", layers=1, branch="cond", prefix=True),
        al.Scale(0.0, site="attn.result", layers=[0, 2], heads=[3], seconds=(0.2, 0.4)),
        al.Scale(0.5, site="embed", seconds=(0.0, 0.2)),
        al.Scale(0.5, site="embed", prefix=True, rows=[0, 3]),
        al.Scale(0.0, site="pos_embed", seconds=(0.2, 0.4)),
    ],
)
def test_a_steered_generation_is_what_a_forward_over_its_codes_computes(melody_lens, edit):
    options = {"sites": ["attn.pattern", "attn.result", "resid_post", "logits"], "branch": "both", "prefix": True}
    options |= {"guidance_scale": 3.0, "interventions": edit}
    outs = [melody_lens.generate(MIXED, SECONDS, temperature=0, use_cache=flag, **options) for flag in (True, False)]
    assert least_lead(outs[0], melody_lens.config.delays) > 1e-4
    assert torch.equal(outs[0].codes, outs[1].codes)
    _, cache = melody_lens.run_with_cache(MIXED, outs[0].codes, **options)
    for name in cache:
        torch.testing.assert_close(outs[0].cache[name], cache[name], rtol=1e-3, atol=1e-4)


def test_the_stream_taken_apart_adds_up(melody_lens):
    codes = random_codes(melody_lens)
    sites = ["embed", "pos_embed", "attn_out", "resid_mid", "mlp_out", "resid_pre", "resid_post"]
    logits, cache = melody_lens.run_with_cache(MIXED, codes, sites=sites, prefix=True)
    parts = cache.decompose_resid()
    assert parts.labels == (
        "embed",
        "pos_embed",
        *(f"{n}_{part}" for n in range(3) for part in ("attn_out", "mlp_out")),
    )
    torch.testing.assert_close(parts.values.sum(0)[:, -STEPS:], cache["resid_post", 2][:, -STEPS:], **CLOSE)
    assert cache.accumulated_resid(1, incl_mid=True).labels == ("0_pre", "0_mid", "1_pre")
    torch.testing.assert_close(cache.logit_lens(layers=2)[0][..., -STEPS:, :], logits, **CLOSE)
    with pytest.raises(AttributeError, match="no cross-attention"):
        melody_lens.W_Q_cross  # noqa: B018


@pytest.mark.parametrize("reduce", [None, "mean", "eos"])
def test_batches_one_by_one_are_the_run_over_all_rows_in_their_order(melody_lens, reduce):
    codes = random_codes(melody_lens)
    options = {"sites": ["resid_post", "attn.z"], "layers": 1, "reduce": reduce}
    prefixes = [False] if reduce == "eos" else [False, True]
    for prefix in prefixes:
        _, whole = melody_lens.run_with_cache(MIXED, codes, prefix=prefix, **options)
        caches = list(melody_lens.iter_cache(MIXED, codes, batch_size=2, progress=False, prefix=prefix, **options))
        assert [cache.prompts for cache in caches] == [tuple(MIXED[:2]), tuple(MIXED[2:4]), tuple(MIXED[4:])]
        assert sum((cache.prefixes for cache in caches), ()) == whole.prefixes
        for name in whole:
            torch.testing.assert_close(torch.cat([cache[name] for cache in caches]), whole[name], **CLOSE)
        stream, _ = melody_lens.run_with_cache(MIXED, codes, prefix=prefix, stop_at_layer=2, **options)
        assert stream.shape == (5, STEPS, D)
    _, states = melody_lens.run_with_cache(MIXED, codes, layers=1)
    torch.testing.assert_close(stream, states["resid_post", 1], **CLOSE)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_continued_clip_is_transformers_own_to_the_bit(either, guidance_scale):
    given = random_codes(either)[..., :5]
    start = torch.cat([torch.full_like(given[..., :1], 32), given], dim=-1).flatten(0, 1)
    inputs = either.tokenizer(ALIKE, return_tensors="pt")
    expected = either.model.generate(
        **inputs, decoder_input_ids=start, max_new_tokens=STEPS - 5, do_sample=False, guidance_scale=guidance_scale
    )
    options = {"temperature": 0, "guidance_scale": guidance_scale, "audio_prompt": given}
    out = either.generate(ALIKE, SECONDS, sites="resid_post", **options)
    assert torch.equal(out.audio, expected)
    assert torch.equal(out.codes[..., :5], given)
    _, cache = either.run_with_cache(ALIKE, out.codes, guidance_scale=guidance_scale)
    torch.testing.assert_close(out.cache.stack("resid_post"), cache.stack("resid_post"), **CLOSE)


def test_a_pattern_has_a_key_for_every_position_of_the_prefix(melody_lens):
    codes = random_codes(melody_lens)
    keys = CHROMA + 5 + STEPS
    edit = al.Replace(torch.zeros(keys - 1), site="attn.pattern")
    with pytest.raises(errors.InputError, match=f"{keys - 1} keys in .*, but the pattern has {keys}"):
        melody_lens.run_with_interventions(MIXED, codes, edit)
