"""Several invokes in one run each read and edit their own rows, with or without guidance."""

import nnsight
import pytest
import torch

import audiolens as al
from audiolens import errors
from audiolens.tracing.batching import EXACT_ROWS, batches

ONE, TWO = ["fast piano", "calm"], ["slow dark guitar music"]
ALL = [*ONE, *TWO]
SITES = ["resid_pre", "attn_out", "resid_mid", "resid_cross", "resid_post", "attn.z"]


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("site", SITES)
def test_a_trace_reads_and_writes_what_the_lens_does(lens, codes, site, guidance_scale):
    branch = "null" if guidance_scale > 1 else "cond"
    vector = torch.randn(12 if site == "attn.z" else 48)
    add = al.Add(vector, site=site, layers=1, branch=branch)
    expected, cache = lens.run_with_cache(
        ALL, codes, sites=site, layers=1, branch=branch, guidance_scale=guidance_scale, interventions=add
    )
    with lens.trace(ALL, codes=codes, guidance_scale=guidance_scale) as tracer:
        place = lens.site(site, 1, branch=branch)
        changed = nnsight.save(place.value + vector)
        place.value = changed
        logits = nnsight.save(tracer.result)
    assert torch.equal(changed, cache[site, 1])
    assert torch.equal(logits[-3:] if branch == "null" else logits, expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("site", SITES)
def test_two_invokes_one_edited_leave_the_other_bit_for_bit(lens, codes, site, guidance_scale):
    with lens.trace(ALL, codes=codes, guidance_scale=guidance_scale) as tracer:
        plain = nnsight.save(tracer.result)
    with lens.trace(guidance_scale=guidance_scale) as tracer:
        with tracer.invoke(ONE, codes=codes[:2]):
            lens.site(site, 1, branch="cond").value = lens.site(site, 1, branch="cond").value * 0 + 1
            first = nnsight.save(tracer.result)
        with tracer.invoke(TWO, codes=codes[2:]):
            seen = nnsight.save(lens.site(site, 1, branch="cond").value)
            second = nnsight.save(tracer.result)
    if guidance_scale > 1:
        cond, null = plain.chunk(2)
        assert torch.equal(second, torch.cat([cond[2:], null[2:]]))
        assert torch.equal(first[2:], null[:2])
        assert not torch.equal(first[:2], cond[:2])
    else:
        assert torch.equal(second, plain[2:])
        assert not torch.equal(first, plain[:2])
    _, cache = lens.run_with_cache(ALL, codes, sites=site, layers=1, guidance_scale=guidance_scale)
    assert torch.equal(seen, cache[site, 1][2:])


def test_two_invokes_stay_apart_through_a_guided_generation(lens):
    options = {"guidance_scale": 3.0, "seconds": 0.4, "seeds": [1, 2, 3]}
    plain = lens.generate(ALL, 0.4, seeds=[1, 2, 3]).codes
    vector = torch.randn(48)
    steered = lens.generate(
        ALL, 0.4, seeds=[1, 2, 3], interventions=al.Add(vector, layers=1, rows=[0, 1], seconds=(0.2, 0.4))
    ).codes
    with lens.trace(fn="generate", **options) as tracer:
        with tracer.invoke(ONE):
            for _ in tracer.iter[:13]:
                step = lens.position()
                if 5 <= step < 10:
                    place = lens.site("resid_post", 1, branch="both")
                    place.value = place.value + vector
        with tracer.invoke(TWO):
            other = nnsight.save(tracer.result)
        with tracer.invoke():
            whole = nnsight.save(tracer.result)
    assert torch.equal(other, plain[2:])
    assert torch.equal(whole, steered)
    assert not torch.equal(whole[:2], plain[:2])


def test_a_trace_without_codes_reads_the_start_token(lens):
    with lens.trace("calm") as tracer:
        logits = nnsight.save(tracer.result)
    assert logits.shape == (1, 4, 1, 32)
    assert torch.equal(logits, lens.run_with_cache("calm")[0])


def test_gradients_flow_through_a_trace(lens, codes):
    with lens.trace(ALL, codes=codes) as tracer:
        stream = lens.site("resid_pre", 0).value
        if not stream.requires_grad:
            stream.requires_grad_()
        late = lens.site("resid_mid", 2).value
        loss = tracer.result.float().square().mean()
        gradients = nnsight.save(torch.autograd.grad(loss, [stream, late]))
    assert [tuple(gradient.shape) for gradient in gradients] == [(3, 18, 48)] * 2
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_an_error_inside_a_trace_frees_the_model(lens, codes):
    before = torch.get_rng_state()
    with pytest.raises(errors.InputError, match="expected"), lens.trace(ALL, codes=codes):
        lens.site("resid_post", 1).value = torch.zeros(1)
    assert torch.equal(torch.get_rng_state(), before)
    lens.run_with_cache(ALL, codes)


def test_sites_of_every_block_need_a_layer(lens):
    with pytest.raises(errors.InputError, match="give a layer"):
        lens.site("resid_post")


def test_exact_batches_do_not_depend_on_company():
    layouts = list(batches([3, 20, 5] * 7, halves=("cond", "null"), exact=True, batch_size=None))
    assert [(len(layout.rows), length) for layout, length in layouts] == [(EXACT_ROWS, 16), (EXACT_ROWS, 32)]
    assert layouts[0][0].kept == 14
    assert layouts[1][0].kept == 7
