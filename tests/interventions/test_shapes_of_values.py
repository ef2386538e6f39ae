"""The shape of an intervention's value determines its axes; ambiguous shapes are rejected."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from everywhere import random_codes

import audiolens as al
from audiolens import errors

# As many rows as the model has heads, and codebooks.
PROMPTS = ["fast piano", "slow dark guitar music", "calm", "loud jazz"]


@pytest.fixture
def codes(lens: Any) -> torch.Tensor:
    return torch.cat([random_codes(lens), random_codes(lens, seed=1)[:1]])


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MAKERS: list[Callable[..., Any]] = [
    al.Add,
    al.Ablate,
    lambda values, **where: al.Clamp(values, 0.5, **where),
    al.Replace,
]


@pytest.mark.parametrize(
    ("site", "width", "first", "second"),
    [
        ("attn.z", 12, r"\(head, d_head\)", r"\(row, d_head\)"),
        ("attn.q", 12, r"\(head, d_head\)", r"\(row, d_head\)"),
        ("attn.result", 48, r"\(head, d_model\)", r"\(row, d_model\)"),
        ("attn.pattern", 18, r"\(head, key\)", r"\(row, key\)"),
        ("cross_attn.z", 12, r"\(head, d_head\)", r"\(row, d_head\)"),
        ("cross_attn.k", 12, r"\(head, d_head\)", r"\(row, d_head\)"),
        ("cross_attn.pattern", 5, r"\(head, key\)", r"\(row, key\)"),
        ("logits", 32, r"\(codebook, vocab\)", r"\(row, vocab\)"),
    ],
)
@pytest.mark.parametrize("make", MAKERS)
def test_two_axes_of_as_many_heads_as_rows_are_refused(lens, codes, make, site, width, first, second):
    message = rf"of shape \(4, {width}\) may be {first} or {second}: give \(row, "
    with pytest.raises(errors.InputError, match=message):
        lens.run_with_interventions(PROMPTS, codes, make(numbers(4, width), site=site))
    # With another number of rows they can only be heads; so they are of a single row.
    for rows in ([0, 1, 3], [2]):
        kept = lens.run_with_interventions(PROMPTS, codes, make(numbers(4, width), site=site, rows=rows))
        expected = lens.run_with_interventions(PROMPTS, codes, make(numbers(1, 4, width), site=site, rows=rows))
        assert torch.equal(kept, expected)


@pytest.mark.parametrize("shape", [(4, 4, 12), (4, 1, 12), (1, 4, 12), (1, 12), (12,)])
def test_each_shape_adds_what_a_raw_hook_adds(lens, codes, shape):
    values = numbers(*shape)
    whole = values.expand(4, 4, 12)
    projection = lens.model.decoder.model.decoder.layers[1].self_attn.out_proj
    flat = rearrange(whole, "row head d_head -> row 1 (head d_head)")
    handle = projection.register_forward_pre_hook(lambda _, given: (given[0] + flat, *given[1:]))
    try:
        expected, _ = lens.run_with_cache(PROMPTS, codes)
    finally:
        handle.remove()
    edited = lens.run_with_interventions(PROMPTS, codes, al.Add(values, site="attn.z", layers=1))
    torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-5)
    assert (edited - lens.run_with_cache(PROMPTS, codes)[0]).abs().max() > 1e-3


def test_each_shape_of_logits_is_pushed_along_its_axes(lens, codes):
    plain, _ = lens.run_with_cache(PROMPTS, codes)
    for shape, view in [((4, 4, 32), (4, 4, 1, 32)), ((4, 1, 32), (4, 1, 1, 32)), ((1, 4, 32), (1, 4, 1, 32))]:
        push = numbers(*shape)
        changed = lens.run_with_interventions(PROMPTS, codes, al.Add(push, site="logits"))
        torch.testing.assert_close(changed, plain + push.reshape(view))


@pytest.mark.parametrize(
    ("values", "where", "message"),
    [
        ((4, 1, 48), {}, "1 steps in .*, but the span has 18"),
        ((4, 1, 4, 12), {"site": "attn.z", "seconds": (0.2, 0.4)}, "1 steps in .*, but the span has 5"),
        ((4, 4, 1, 18), {"site": "attn.pattern"}, "1 steps in .*, but the span has 18"),
        ((4, 1, 48), {"site": "text_states"}, "1 tokens in .*, but the span has 5"),
        ((1, 48), {}, "1 rows in .*, but the run changes 4"),
        ((4, 2, 12), {"site": "attn.z"}, r"expected the last axes of \(head=4, d_head=12\)"),
    ],
)
def test_one_step_is_not_all_steps(lens, codes, values, where, message):
    with pytest.raises(errors.InputError, match=message):
        lens.run_with_interventions(PROMPTS, codes, al.Replace(numbers(*values), **where))


def test_one_step_replaces_one_step(lens, codes):
    values = numbers(4, 1, 48)
    edit = al.Replace(values, layers=1, seconds=(0.2, 0.24))
    _, cache = lens.run_with_cache(PROMPTS, codes, layers=1, interventions=edit)
    _, plain = lens.run_with_cache(PROMPTS, codes, layers=1)
    assert torch.equal(cache["resid_post", 1][:, 5:6], values)
    assert torch.equal(cache["resid_post", 1][:, :5], plain["resid_post", 1][:, :5])
