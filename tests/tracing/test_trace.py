"""A trace reads and writes every site like the lens's own methods, invoke by invoke."""

from typing import Any

import nnsight
import pytest
import torch
from everywhere import PROMPTS, SITES, STEPS, random_codes, tap_of

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
    if tap_of(lens, site).recomputed:
        # Made for these rows alone, by kernels of another shape.
        torch.testing.assert_close(seen, value[2:], rtol=1e-5, atol=1e-6)
    else:
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


def test_gradients_reach_the_texts_own_states(lens, codes):
    with lens.trace(PROMPTS, codes=codes) as tracer:
        states = lens.site("text_states").value
        loss = tracer.result.float().square().mean()
        gradient = nnsight.save(torch.autograd.grad(loss, states)[0])
    assert gradient.shape == (3, 5, 48)
    assert gradient.abs().max() > 0


def test_a_wrong_shape_assigned_in_a_trace_names_the_one_expected(lens, codes):
    with pytest.raises(errors.InputError, match=r"expected \(3, 4, 18, 18\)"), lens.trace(PROMPTS, codes=codes):
        lens.site("attn.pattern", 1).value = torch.zeros(3, 18, 4, 18)


@pytest.mark.parametrize("invokes", [1, 2])
@pytest.mark.parametrize(("branch", "scale"), [("cond", 1.0), ("cond", 3.0), ("null", 3.0), ("both", 3.0)])
@pytest.mark.parametrize("site", SITES)
def test_writing_into_what_was_read_is_assigning_it_or_is_refused(lens, codes, site, branch, scale, invokes):
    def place() -> Any:
        return lens.site(site, branch=branch)

    # One invoke holds all rows of the same run, or the last two of three.
    before, mine = (PROMPTS[:1], PROMPTS[1:]) if invokes == 2 else ([], PROMPTS)
    with lens.trace(guidance_scale=scale) as tracer:
        if before:
            with tracer.invoke(before, codes=codes[:1]):
                pass
        with tracer.invoke(mine, codes=codes[-len(mine) :]):
            place().value = place().value * 0.5
        with tracer.invoke():
            expected = nnsight.save(tracer.result)
    found, refused = expected, ""
    try:
        with lens.trace(guidance_scale=scale) as tracer:
            if before:
                with tracer.invoke(before, codes=codes[:1]):
                    pass
            with tracer.invoke(mine, codes=codes[-len(mine) :]), torch.no_grad():
                place().value[:] *= 0.5
            with tracer.invoke():
                found = nnsight.save(tracer.result)
    except errors.InputError as error:
        refused = str(error)
    tap = tap_of(lens, site)
    if tap.recomputed or tap.shared:
        assert site in refused
        assert "changed in place" in refused
    else:
        assert not refused
        assert torch.equal(found, expected)


@pytest.mark.parametrize("site", ["attn.pattern", "cross_attn.pattern", "attn.result", "cross_attn.v", "pos_embed"])
def test_a_copy_written_into_and_then_assigned_counts(lens, codes, site):
    layer = None if site == "pos_embed" else 1
    expected = lens.run_with_interventions(PROMPTS, codes, al.Scale(0.5, site=site, layers=layer))
    with torch.no_grad(), lens.trace(PROMPTS, codes=codes) as tracer:
        place = lens.site(site, layer)
        place.value *= 0.5
        logits = nnsight.save(tracer.result)
    assert torch.equal(logits, expected)
    with torch.no_grad(), lens.trace(PROMPTS, codes=codes) as tracer:
        own = lens.site(site, layer).value.clone()
        own *= 0.5
        logits = nnsight.save(tracer.result)
    assert torch.equal(logits, lens.run_with_cache(PROMPTS, codes)[0])


def test_a_copy_written_into_is_refused_at_any_step_and_in_inference_mode(lens, codes):
    def inferring() -> None:
        with torch.inference_mode(), lens.trace(PROMPTS, codes=codes):
            lens.site("attn.pattern", 1).value[..., 0] = 0

    def generating(site: str, last: int) -> None:
        with lens.trace(PROMPTS, fn="generate", seconds=0.4, seeds=1, guidance_scale=3.0) as tracer:
            for step in tracer.iter[:14]:
                value = lens.site(f"cross_attn.{site}", 1, branch="null").value
                if step == last:
                    value[..., 0] = 1

    with pytest.raises(errors.InputError, match="pattern: .* changed in place"):
        inferring()
    for site, last in [("pattern", 4), ("pattern", 13), ("k", 4), ("v", 0)]:
        with pytest.raises(errors.InputError, match=f"hook_{site} of branch 'null': .* changed in place"):
            generating(site, last)
    assert lens.run_with_cache(PROMPTS, codes)[0].isfinite().all()


@pytest.mark.parametrize("site", SITES)
def test_a_function_may_change_its_value_in_place(lens, codes, site):
    def halve(value: torch.Tensor) -> None:
        value *= 0.5

    options = {"branch": "both", "guidance_scale": 3.0}
    expected = lens.run_with_interventions(PROMPTS, codes, al.Apply(lambda value: value * 0.5, site=site), **options)
    changed = lens.run_with_interventions(PROMPTS, codes, al.Apply(halve, site=site), **options)
    assert torch.equal(changed, expected)
    assert not torch.equal(changed, lens.run_with_cache(PROMPTS, codes, **options)[0])


@pytest.mark.parametrize("branch", ["cond", "both"])
@pytest.mark.parametrize(
    "site", ["embed", "attn.k", "attn.z", "resid_mid", "cross_attn.z", "mlp.post", "resid_post", "logits"]
)
def test_writing_into_what_was_read_steers_a_generation_as_assigning_does(lens, site, branch):
    layer = None if site in ("embed", "logits") else 1
    options = {"fn": "generate", "seconds": 0.4, "seeds": [1, 2, 3], "guidance_scale": 3.0}
    with torch.no_grad(), lens.trace(PROMPTS, **options) as tracer:
        for _ in tracer.iter[:14]:
            lens.site(site, layer, branch=branch).value[:] *= -20
        written = nnsight.save(tracer.result)
    scaled = al.Scale(-20.0, site=site, layers=layer, branch=branch)
    assert torch.equal(written, lens.generate(PROMPTS, 0.4, seeds=[1, 2, 3], interventions=scaled).codes)
    assert not torch.equal(written, lens.generate(PROMPTS, 0.4, seeds=[1, 2, 3]).codes)
