"""A trace reads and writes every site as the lens's own verbs do, invoke by invoke."""

import nnsight
import pytest
import torch
from everywhere import PROMPTS, SITES, STEPS, random_codes

import audiolens as al
from audiolens import errors


@pytest.fixture
def codes(lens) -> torch.Tensor:
    return random_codes(lens)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("site", SITES)
def test_a_trace_reads_and_writes_every_site_as_the_lens_does(lens, codes, site, scale):
    branch = "null" if scale > 1 and "cross" not in site and "text" not in site else "cond"
    halved = al.Scale(0.5, site=site, branch=branch)
    expected, cache = lens.run_with_cache(
        PROMPTS, codes, sites=site, branch=branch, guidance_scale=scale, interventions=halved
    )
    with lens.trace(PROMPTS, codes=codes, guidance_scale=scale) as tracer:
        place = lens.site(site, branch=branch)
        changed = nnsight.save(place.value * 0.5)
        place.value = changed
        logits = nnsight.save(tracer.result)
    assert torch.equal(changed, cache[site])
    assert torch.equal(logits[-3:] if branch == "null" else logits[:3], expected)


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("site", SITES)
def test_an_invoke_edits_its_own_rows_of_every_site(lens, site, scale):
    # As many rows as steps: the position embeddings, "step d_model", are still no rows.
    repeats = 3 if scale > 1 else 6
    prompts, codes = PROMPTS * repeats, random_codes(lens).repeat(repeats, 1, 1)
    with lens.trace(prompts, codes=codes, guidance_scale=scale) as tracer:
        value = nnsight.save(lens.site(site).value)
        plain = nnsight.save(tracer.result)
    with lens.trace(guidance_scale=scale) as tracer:
        with tracer.invoke(prompts[:2], codes=codes[:2]):
            lens.site(site).value = lens.site(site).value * 0.5
            first = nnsight.save(tracer.result)
        with tracer.invoke(prompts[2:], codes=codes[2:]):
            seen = nnsight.save(lens.site(site).value)
            second = nnsight.save(tracer.result)
    assert torch.equal(seen, value[2:])
    halves = plain.chunk(2) if scale > 1 else (plain,)
    assert torch.equal(second, torch.cat([half[2:] for half in halves]))
    assert not torch.equal(first[:2], halves[0][:2])
    if scale > 1:
        assert torch.equal(first[2:], halves[1][:2])


def test_a_trace_reads_queries_and_then_their_pattern(lens, codes):
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=["attn.q", "attn.pattern", "cross_attn.q", "cross_attn.k"])
    with lens.trace(PROMPTS, codes=codes):
        found = nnsight.save([])
        for site in ("attn.q", "attn.pattern", "cross_attn.q", "cross_attn.k"):
            found.append(lens.site(site, 2).value)
    for site, value in zip(("attn.q", "attn.pattern", "cross_attn.q", "cross_attn.k"), found, strict=True):
        assert torch.equal(value, cache[site, 2])


def test_a_traced_generation_reads_and_writes_patterns_and_the_text_side(lens):
    expected = lens.generate(
        PROMPTS,
        0.4,
        seeds=[1, 2, 3],
        interventions=[al.Scale(0.5, site="attn.pattern", layers=1), al.Scale(2.0, site="cross_attn.v", layers=1)],
    ).codes
    with lens.trace(PROMPTS, fn="generate", seconds=0.4, seeds=[1, 2, 3], guidance_scale=3.0) as tracer:
        widths = nnsight.save([])
        for _ in tracer.iter[:14]:
            pattern = lens.site("attn.pattern", 1, branch="both")
            widths.append(pattern.value.shape[-1])
            pattern.value = pattern.value * 0.5
            values = lens.site("cross_attn.v", 1, branch="both")
            values.value = values.value * 2.0
        codes = nnsight.save(tracer.result)
    # Step 0 comes twice.
    assert widths == [1, *range(1, 14)]
    assert torch.equal(codes, expected)


def test_gradients_reach_a_pattern_of_ones_own(lens, codes):
    with lens.trace(PROMPTS, codes=codes) as tracer:
        pattern = lens.site("attn.pattern", 1)
        leaf = pattern.value.detach().requires_grad_()
        pattern.value = leaf
        result = lens.site("cross_attn.result", 1)
        head = result.value.detach().requires_grad_()
        result.value = head
        loss = tracer.result.float().square().mean()
        gradients = nnsight.save(torch.autograd.grad(loss, [leaf, head]))
    assert [tuple(gradient.shape) for gradient in gradients] == [(3, 4, STEPS, STEPS), (3, STEPS, 4, 48)]
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_wrong_shape_assigned_in_a_trace_names_the_one_expected(lens, codes):
    with pytest.raises(errors.InputError, match=r"expected \(3, 4, 18, 18\)"), lens.trace(PROMPTS, codes=codes):
        lens.site("attn.pattern", 1).value = torch.zeros(3, 18, 4, 18)
