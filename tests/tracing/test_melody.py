"""MusicGen Melody: the text is a prefix of the decoder's sequence, and steps are counted after it.

The oracles are bare transformers, its own way of building the prefix, and raw hooks that skip it.
"""

import nnsight
import pytest
import torch
from conftest import CHROMA
from everywhere import least_lead
from melodies import ALIKE, FRAMES, MIXED, PREFIX, SECONDS, STEPS, TOKENS, D, bare_forward, hooked

import audiolens as al
from audiolens import errors


def test_stereo_reads_while_generating_what_it_reads_from_the_codes(stereo_melody_lens):
    lens = stereo_melody_lens
    out = lens.generate(ALIKE, SECONDS, seeds=1, guidance_scale=3.0, sites="resid_post")
    assert out.audio.shape == (5, 2, FRAMES * 640)
    _, cache = lens.run_with_cache(ALIKE, out.codes, guidance_scale=3.0)
    torch.testing.assert_close(out.cache.stack("resid_post"), cache.stack("resid_post"), rtol=1e-4, atol=1e-5)


def test_residual_sites_are_transformers_hidden_states(melody_lens, codes):
    hidden = bare_forward(melody_lens, ALIKE, codes).hidden_states
    sites = ["resid_pre", "resid_post", "ln_final.normalized"]
    for prefix in (False, True):
        _, cache = melody_lens.run_with_cache(ALIKE, codes, sites=sites, prefix=prefix)
        first = 0 if prefix else PREFIX
        for layer in range(3):
            assert torch.equal(cache["resid_pre", layer], hidden[layer][:, first:])
        for layer in range(2):
            assert torch.equal(cache["resid_post", layer], hidden[layer + 1][:, first:])
        # transformers gives its last one after the final norm.
        assert torch.equal(cache["ln_final.hook_normalized"], hidden[3][:, first:])
        assert cache.first_step == first - PREFIX
        assert cache.prefixes == (PREFIX,) * 5


def test_the_residual_stream_is_the_sum_of_its_parts(melody_lens, codes):
    sites = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    _, cache = melody_lens.run_with_cache(ALIKE, codes, sites=sites, guidance_scale=2.0, branch="both", prefix=True)
    for layer in range(3):
        total = cache["resid_pre", layer]
        for part, site in [("attn_out", "resid_mid"), ("mlp_out", "resid_post")]:
            total = total + cache[part, layer]
            assert torch.equal(total, cache[site, layer])


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_add_equals_a_raw_forward_hook_that_skips_the_prefix(melody_lens, vector, branch):
    add = {"layers": [0, 2], "strength": 1.5, "branch": branch}
    torch.manual_seed(0)
    made = [melody_lens.generate(ALIKE, SECONDS).codes]
    for prefix in (False, True):
        handles = hooked(melody_lens, vector, branch, [0, 2], 0 if prefix else PREFIX)
        try:
            torch.manual_seed(0)
            expected = melody_lens.generate(ALIKE, SECONDS).codes
        finally:
            for handle in handles:
                handle.remove()
        torch.manual_seed(0)
        out = melody_lens.generate(ALIKE, SECONDS, interventions=al.Add(vector, prefix=prefix, **add))
        assert torch.equal(out.codes, expected)
        assert not any(torch.equal(out.codes, other) for other in made)
        made.append(out.codes)


@pytest.mark.parametrize("prompts", [ALIKE, MIXED])
def test_what_is_read_while_generating_is_what_is_read_from_the_codes(melody_lens, prompts):
    sites = ["resid_mid", "attn.z", "mlp.pre"]
    options = {"sites": sites, "branch": "both", "prefix": True}
    out = melody_lens.generate(prompts, SECONDS, seeds=[1, 2, 3, 4, 5], **options)
    _, cache = melody_lens.run_with_cache(prompts, out.codes, guidance_scale=3.0, **options)
    assert out.cache.first_step == cache.first_step < 0
    for name in cache:
        assert out.cache[name].shape[2] == STEPS - cache.first_step
        torch.testing.assert_close(out.cache[name], cache[name], rtol=1e-4, atol=1e-5)


def test_key_value_cache_on_equals_off(melody_lens, vector):
    add = al.Add(vector, strength=2.0, seconds=(0.2, 0.4))
    sites = ["resid_post", "logits"]
    runs = [
        melody_lens.generate(
            ALIKE, SECONDS, temperature=0, interventions=add, sites=sites, branch="both", use_cache=flag
        )
        for flag in (True, False)
    ]
    assert least_lead(runs[0], melody_lens.config.delays) > 1e-4
    assert torch.equal(runs[0].codes, runs[1].codes)
    left, right = (run.cache.stack("resid_post") for run in runs)
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn.z"])
@pytest.mark.parametrize("prefix", [False, True])
def test_a_trace_reads_and_writes_what_the_lens_does(melody_lens, codes, site, guidance_scale, prefix):
    branch = "null" if guidance_scale > 1 else "cond"
    vector = torch.randn(12 if site == "attn.z" else D)
    add = al.Add(vector, site=site, layers=1, branch=branch, prefix=prefix)
    options = {"branch": branch, "guidance_scale": guidance_scale}
    expected, cache = melody_lens.run_with_cache(
        ALIKE, codes, sites=site, layers=1, interventions=add, prefix=prefix, **options
    )
    with melody_lens.trace(ALIKE, codes=codes, guidance_scale=guidance_scale) as tracer:
        place = melody_lens.site(site, 1, branch=branch, prefix=prefix)
        changed = nnsight.save(place.value + vector)
        place.value = changed
        logits = nnsight.save(tracer.result)
    assert torch.equal(changed, cache[site, 1])
    assert torch.equal(logits[-5:], expected)


def test_two_invokes_stay_apart_through_a_guided_generation(melody_lens, vector):
    options = {"guidance_scale": 3.0, "seconds": 0.4, "seeds": [1, 2, 3]}
    plain = melody_lens.generate(ALIKE[:3], 0.4, seeds=[1, 2, 3]).codes
    add = al.Add(vector, layers=1, rows=[0, 1], seconds=(0.0, 0.2))
    steered = melody_lens.generate(ALIKE[:3], 0.4, seeds=[1, 2, 3], interventions=add).codes
    with melody_lens.trace(fn="generate", **options) as tracer:
        with tracer.invoke(ALIKE[:2]):
            for _ in tracer.iter[:5]:
                if melody_lens.position() < 5:
                    place = melody_lens.site("resid_post", 1, branch="both")
                    place.value = place.value + vector
        with tracer.invoke(ALIKE[2:3]):
            other = nnsight.save(tracer.result)
        with tracer.invoke():
            whole = nnsight.save(tracer.result)
    assert torch.equal(other, plain[2:])
    assert torch.equal(whole, steered)
    assert not torch.equal(whole[:2], plain[:2])


def test_a_trace_takes_prompts_of_one_length(melody_lens, codes):
    with pytest.raises(errors.InputError, match="2, 5 tokens in one trace"), melody_lens.trace(MIXED[:2]):
        pass
    assert len(melody_lens.generate("calm", 0.2, decode=False)) == 1


def test_no_prompt_is_the_processors_unconditional_input(melody_lens):
    # MusicgenMelodyProcessor.get_unconditional_inputs: one masked token a row.
    inputs = {"input_ids": torch.ones(2, 1, dtype=torch.long), "attention_mask": torch.zeros(2, 1, dtype=torch.long)}
    torch.manual_seed(1)
    expected = melody_lens.model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, top_k=20)
    torch.manual_seed(1)
    assert torch.equal(melody_lens.generate([None, None], SECONDS, top_k=20).audio, expected)


def test_the_lens_describes_a_melody_model(melody_lens, stereo_melody_lens):
    config = melody_lens.config
    assert (config.family, config.conditioning, config.chroma_length) == ("MusicGen Melody", "prefix", CHROMA)
    assert config.prefix(TOKENS) == PREFIX
    assert stereo_melody_lens.config.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    sites = melody_lens.sites()
    assert sites["blocks.2.attn.hook_z"] == "row [prefix+]step head=4 d_head=12"
    assert not any("cross" in name for name in sites)
    second = al.AudioLens(melody_lens.model, melody_lens.tokenizer)
    assert torch.equal(second.run_with_cache("calm")[0], melody_lens.run_with_cache("calm")[0])
