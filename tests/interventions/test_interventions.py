"""Every intervention has its stated effect where it was requested, and nowhere else."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from audiolens import errors
from audiolens.interventions import Intervention, Operand, checked_rows
from audiolens.tensors import finite, numbers

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS = 0.6
D = 48


@dataclass(frozen=True, eq=False)
class Fade(Intervention):
    """An operator as a user would add one: towards `level` by `share`, a number or one per affected row."""

    level: Any
    share: Any

    def __post_init__(self, *aliases: Any) -> None:
        super().__post_init__(*aliases)
        object.__setattr__(self, "level", finite("level", self.level))
        object.__setattr__(self, "share", numbers("share", self.share))

    @property
    def operands(self) -> dict[str, Operand]:
        return {"level": Operand(self.level, "values"), "share": Operand(self.share, "per row")}

    def change(self, value: torch.Tensor, amount: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        return value + amount * parts["share"] * (parts["level"] - value)


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))


def hooked(lens: Any, vector: torch.Tensor, branch: str, layers: list[int]) -> list[Any]:
    """Steering as published scripts do it: a raw forward hook on each block."""

    def hook(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        half = len(output) // 2
        changed = output.clone()
        rows = {"cond": slice(0, half), "null": slice(half, None), "both": slice(None)}[branch]
        changed[rows] = changed[rows] + 1.5 * vector
        return changed

    blocks = lens.model.decoder.model.decoder.layers
    return [blocks[layer].register_forward_hook(hook) for layer in layers]


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_add_equals_a_raw_forward_hook(lens, vector, branch):
    handles = hooked(lens, vector, branch, [0, 2])
    try:
        torch.manual_seed(0)
        expected = lens.generate(PROMPTS, SECONDS).codes
    finally:
        for handle in handles:
            handle.remove()
    torch.manual_seed(0)
    out = lens.generate(PROMPTS, SECONDS, interventions=al.Add(vector, layers=[0, 2], strength=1.5, branch=branch))
    assert torch.equal(out.codes, expected)
    torch.manual_seed(0)
    assert not torch.equal(lens.generate(PROMPTS, SECONDS).codes, expected)


def test_rows_of_strength_zero_are_bit_identical_in_a_mixed_batch(lens, vector):
    plain = lens.generate("calm", SECONDS, seeds=[4, 4, 4, 4], sites="resid_post")
    mixed = lens.generate(
        "calm", SECONDS, seeds=[4, 4, 4, 4], sites="resid_post", interventions=al.Add(vector, strength=[0, 1, 0, -2])
    )
    for row, same in enumerate([True, False, True, False]):
        assert torch.equal(plain.codes[row], mixed.codes[row]) is same
        left, right = (run.cache.stack("resid_post")[:, row] for run in (plain, mixed))
        assert torch.equal(left, right) is same


def test_null_branch_is_untouched_when_steering_cond_only(lens, vector, codes):
    for branch, other in (("cond", 1), ("null", 0)):
        plain, _ = lens.run_with_cache(PROMPTS, codes, branch="both", guidance_scale=3.0)
        changed = lens.run_with_interventions(
            PROMPTS, codes, al.Add(vector, branch=branch), branch="both", guidance_scale=3.0
        )
        assert torch.equal(plain[other], changed[other])
        assert not torch.equal(plain[1 - other], changed[1 - other])


def test_strength_per_row_equals_one_run_per_strength(lens, vector, codes):
    strengths = [0.5, -1.0, 2.0]
    together = lens.run_with_interventions("calm", codes, al.Add(vector, strength=strengths))
    for row, strength in enumerate(strengths):
        alone = lens.run_with_interventions(["calm"] * 3, codes, al.Add(vector, strength=strength))
        torch.testing.assert_close(together[row], alone[row])


def test_rows_choose_who_is_changed(lens, vector, codes):
    plain, _ = lens.run_with_cache(PROMPTS, codes)
    changed = lens.run_with_interventions(PROMPTS, codes, al.Add(vector, rows=[2, 0], strength=[1.0, 2.0]))
    twice = lens.run_with_interventions(PROMPTS, codes, al.Add(2 * vector))
    once = lens.run_with_interventions(PROMPTS, codes, al.Add(vector))
    assert torch.equal(changed[1], plain[1])
    torch.testing.assert_close(changed[0], twice[0])
    torch.testing.assert_close(changed[2], once[2])


def test_batches_cut_strengths_and_vectors_with_their_rows(lens, codes):
    vectors = torch.randn(3, D)
    add = al.Add(vectors, strength=[1.0, 0.0, -1.0])
    whole = lens.run_with_interventions(PROMPTS, codes, add)
    parts = lens.run_with_interventions(PROMPTS, codes, add, batch_size=2)
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "resid_mid", "cross_attn_out", "resid_cross", "mlp_out"])
def test_an_addition_anywhere_in_the_stream_reaches_the_end_of_the_block(lens, vector, codes, site):
    _, plain = lens.run_with_cache(PROMPTS, codes, sites=[site, "resid_post"], layers=1)
    _, changed = lens.run_with_cache(
        PROMPTS, codes, sites=[site, "resid_post"], layers=1, interventions=al.Add(vector, site=site, layers=1)
    )
    # A read returns the value after the edit.
    torch.testing.assert_close(changed[site, 1], plain[site, 1] + vector)
    # Where the rest of the block is taken out, the residual stream carries the vector to its end.
    rest = {
        "resid_pre": ["attn_out", "cross_attn_out", "mlp_out"],
        "attn_out": ["cross_attn_out", "mlp_out"],
        "resid_mid": ["cross_attn_out", "mlp_out"],
        "cross_attn_out": ["mlp_out"],
        "resid_cross": ["mlp_out"],
        "mlp_out": [],
    }[site]
    silent = [al.Scale(0.0, site=part, layers=1) for part in rest]
    _, base = lens.run_with_cache(PROMPTS, codes, layers=1, interventions=silent)
    _, moved = lens.run_with_cache(
        PROMPTS, codes, layers=1, interventions=[*silent, al.Add(vector, site=site, layers=1)]
    )
    torch.testing.assert_close(moved["resid_post", 1] - base["resid_post", 1], vector.expand(3, 18, D))


def test_seconds_select_the_steps_of_their_frames(lens, vector, codes):
    _, plain = lens.run_with_cache(PROMPTS, codes, layers=0)
    add = al.Add(vector, layers=0, seconds=(0.2, 0.4))
    _, changed = lens.run_with_cache(PROMPTS, codes, layers=0, interventions=add)
    moved = (changed["resid_post", 0] - plain["resid_post", 0]).abs().amax((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


def test_steering_a_span_while_generating_touches_these_steps_only(lens, vector):
    add = al.Add(vector, layers=0, seconds=(0.0, 0.04))
    out = lens.generate(PROMPTS, SECONDS, seeds=1, sites="resid_post", layers=0, interventions=add)
    _, plain = lens.run_with_cache(PROMPTS, out.codes, layers=0, guidance_scale=3.0)
    moved = (out.cache["resid_post", 0] - plain["resid_post", 0]).abs().amax((0, 2)) > 1e-3
    # Step 0 runs twice under transformers' generate, and is changed both times.
    assert moved.nonzero().flatten().tolist() == [0]


def test_a_schedule_multiplies_the_strength_over_time(lens, vector, codes):
    _, plain = lens.run_with_cache(PROMPTS, codes, layers=0)
    for schedule in (lambda seconds: seconds, [step / 25 for step in range(18)]):
        add = al.Add(vector, layers=0, strength=2.0, schedule=schedule)
        _, changed = lens.run_with_cache(PROMPTS, codes, layers=0, interventions=add)
        factor = (changed["resid_post", 0] - plain["resid_post", 0]) @ vector / vector.dot(vector)
        torch.testing.assert_close(factor, (2 * torch.arange(18) / 25).expand(3, 18), rtol=1e-4, atol=1e-4)


def test_preserve_norm_keeps_the_length(lens, vector, codes):
    _, plain = lens.run_with_cache(PROMPTS, codes, layers=0)
    add = al.Add(vector, layers=0, strength=3.0, preserve_norm=True)
    _, changed = lens.run_with_cache(PROMPTS, codes, layers=0, interventions=add)
    torch.testing.assert_close(changed["resid_post", 0].norm(dim=-1), plain["resid_post", 0].norm(dim=-1))
    assert not torch.allclose(changed["resid_post", 0], plain["resid_post", 0])


def test_ablate_clamp_and_scale_set_the_projection(lens, vector, codes):
    unit = vector / vector.norm()
    _, plain = lens.run_with_cache(PROMPTS, codes, layers=0)
    before = plain["resid_post", 0] @ unit
    for intervention, after in [
        (al.Ablate(vector, layers=0), 0 * before),
        (al.Ablate(vector, layers=0, strength=0.5), 0.5 * before),
        (al.Clamp(vector, 1.5, layers=0), 1.5 * vector.norm() + 0 * before),
        (al.Clamp(vector, [0.0, 1.0, -1.0], layers=0), vector.norm() * torch.tensor([[0.0], [1], [-1]]) + 0 * before),
        (al.Scale(2.0, layers=0), 2 * before),
    ]:
        _, cache = lens.run_with_cache(PROMPTS, codes, layers=0, interventions=intervention)
        torch.testing.assert_close(cache["resid_post", 0] @ unit, after, rtol=1e-4, atol=1e-4)
        if not isinstance(intervention, al.Scale):
            # What is orthogonal to the direction stays.
            rest = [c["resid_post", 0] - (c["resid_post", 0] @ unit)[..., None] * unit for c in (plain, cache)]
            torch.testing.assert_close(*rest, rtol=1e-4, atol=1e-4)


def test_replacing_a_stream_with_another_runs_gives_its_logits(lens, codes):
    clean, cache = lens.run_with_cache(PROMPTS, codes, layers=1)
    other = codes.flip(-1)
    patched = lens.run_with_interventions(PROMPTS, other, al.Replace(cache["resid_post", 1], layers=1))
    torch.testing.assert_close(patched, clean)


def test_replace_and_add_at_single_heads(lens, codes):
    _, plain = lens.run_with_cache(PROMPTS, codes, sites="attn.z", layers=1)
    replace = al.Replace(torch.zeros(12), site="attn.z", layers=1, heads=[2])
    _, changed = lens.run_with_cache(PROMPTS, codes, sites="attn.z", layers=1, interventions=replace)
    before, after = plain["attn.z", 1], changed["attn.z", 1]
    assert torch.equal(after[:, :, [0, 1, 3]], before[:, :, [0, 1, 3]])
    assert not after[:, :, 2].any()


def test_interventions_at_one_site_apply_in_the_order_given(lens, vector, codes):
    steps = [al.Add(vector, layers=0), al.Scale(2.0, layers=0)]
    _, plain = lens.run_with_cache(PROMPTS, codes, layers=0)
    _, first = lens.run_with_cache(PROMPTS, codes, layers=0, interventions=steps)
    _, second = lens.run_with_cache(PROMPTS, codes, layers=0, interventions=steps[::-1])
    base = plain["resid_post", 0]
    torch.testing.assert_close(first["resid_post", 0], 2 * (base + vector))
    torch.testing.assert_close(second["resid_post", 0], 2 * base + vector)


def test_apply_sees_its_own_rows_of_one_branch_at_a_time(lens, codes):
    seen = []

    def look(value: torch.Tensor) -> None:
        seen.append(tuple(value.shape))

    plain, _ = lens.run_with_cache(PROMPTS, codes, guidance_scale=3.0)
    looked = lens.run_with_interventions(PROMPTS, codes, al.Apply(look, layers=0, rows=[0, 2]), guidance_scale=3.0)
    assert seen == [(2, 18, D)] * 2
    assert torch.equal(plain, looked)
    zeroed = al.Apply(torch.zeros_like, layers=2, rows=[1])
    _, cache = lens.run_with_cache(PROMPTS, codes, layers=2, interventions=zeroed)
    assert not cache["resid_post", 2][1].any()
    assert cache["resid_post", 2][0].any()


def test_steering_while_recording_reduced_equals_a_naive_run(lens, vector):
    out = lens.generate(
        PROMPTS, SECONDS, seeds=2, interventions=al.Add(vector, layers=1), sites="resid_post", reduce="mean"
    )
    naive: list[torch.Tensor] = []
    handles = hooked(lens, vector / 1.5, "both", [1])
    block = lens.model.decoder.model.decoder.layers[1]
    handles.append(block.register_forward_hook(lambda m, i, o: naive.append(o[:3, -1])))
    try:
        codes = lens.generate(PROMPTS, SECONDS, seeds=2).codes
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(codes, out.codes)
    torch.testing.assert_close(out.cache["resid_post", 1], torch.stack(naive[1:16]).mean(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: al.Add(torch.full((D,), float("nan"))), "NaN"),
        (lambda: al.Add(torch.ones(D), strength=float("nan")), "NaN"),
        (lambda: al.Add("fast"), "expected numbers"),
        (lambda: al.Add(torch.ones(D), branch="left"), "branch"),
        (lambda: al.Add(torch.ones(D), seconds=(0.4, 0.2)), "from < to"),
        (lambda: al.Ablate(torch.zeros(D)), "zero"),
        (lambda: al.Apply(3), "expected a function"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_can_never_work_is_refused_when_made(make, message):
    with pytest.raises((errors.AudioLensError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        (al.Add(torch.ones(7)), r"shape \(7,\)"),
        (al.Add(torch.ones(2, D)), "2 rows"),
        (al.Add(torch.ones(D), strength=[1.0, 2.0]), "2 values of strength for 3 rows"),
        (al.Add(torch.ones(D), rows=[3]), "between 0 and 2"),
        (al.Add(torch.ones(D), layers=[3]), "layers 0 to 2"),
        (al.Add(torch.ones(D), site="resid_pst"), "Did you mean"),
        (al.Add(torch.ones(D), seconds=(0.0, 9.0)), "after the clip"),
        (al.Add(torch.ones(D), branch="null"), "needs guidance"),
        (al.Add(torch.ones(D), heads=[0]), "no heads"),
        (al.Add(torch.ones(12), site="attn.z", heads=[4]), "heads 0 to 3"),
        (al.Add(torch.ones(D), schedule=[1.0, 2.0]), "schedule"),
        (al.Apply(lambda value: value[:1]), "expected shape"),
    ],
)
def test_what_cannot_work_on_this_model_is_refused(lens, codes, intervention, message):
    with pytest.raises(errors.AudioLensError, match=message):
        lens.run_with_interventions(PROMPTS, codes, intervention)


def test_rows_are_whole_numbers_of_any_kind_and_a_mask_is_none():
    for rows in ([2, 0], (2, 0), np.array([2, 0]), torch.tensor([2, 0]), [np.int64(2), torch.tensor(0)]):
        assert checked_rows(rows, 3) == [2, 0]
    assert checked_rows(range(2), 3) == [0, 1]
    assert checked_rows(None, 2) == [0, 1]
    mask = torch.tensor([True, False, True])
    assert checked_rows(mask.nonzero().flatten(), 3) == [0, 2]
    for wrong in (mask, mask.tolist(), mask.numpy(), [mask[0]], [0.5], "01", 1, [None], torch.zeros(2, 1)):
        with pytest.raises(errors.InputTypeError, match="for a mask, give mask"):
            checked_rows(wrong, 3)


def test_a_new_operator_is_one_class_whatever_its_tensors_are_called(lens, codes):
    level = torch.randn(3, 18, D, generator=torch.Generator().manual_seed(5))
    share = [0.25, 0.5, 1.0]
    plain, _ = lens.run_with_cache(PROMPTS, codes, sites="resid_post", layers=1, stop_at_layer=2)
    read = {"sites": "resid_post", "layers": 1, "stop_at_layer": 2}
    _, found = lens.run_with_cache(PROMPTS, codes, interventions=Fade(level, share, layers=1), **read)
    expected = plain + torch.tensor(share)[:, None, None] * (level - plain)
    torch.testing.assert_close(found["resid_post", 1], expected)
    with pytest.raises(errors.InputError, match="2 values of share for 3 rows"):
        lens.run_with_cache(PROMPTS, codes, interventions=Fade(level, [0.1, 0.2], layers=1), **read)
    with pytest.raises(errors.InputError, match="4 steps in level, but the span has 18"):
        lens.run_with_cache(PROMPTS, codes, interventions=Fade(level[:, :4], 0.1, layers=1), **read)


@pytest.mark.parametrize("length", [1e-25, 1e-3, 1e25])
def test_a_direction_of_any_length_is_ablated_and_clamped(lens, codes, length):
    unit = torch.nn.functional.normalize(torch.randn(D, generator=torch.Generator().manual_seed(3)), dim=0)
    read = {"sites": "resid_post", "layers": 1, "stop_at_layer": 2}
    _, ablated = lens.run_with_cache(PROMPTS, codes, interventions=al.Ablate(length * unit, layers=1), **read)
    assert (ablated["resid_post", 1] @ unit).abs().max() < 1e-4
    _, clamped = lens.run_with_cache(
        PROMPTS, codes, interventions=al.Clamp(length * unit, 2 / length, layers=1), **read
    )
    torch.testing.assert_close(clamped["resid_post", 1] @ unit, torch.full((3, 18), 2.0), rtol=1e-3, atol=1e-3)


def test_a_small_factor_scales_by_itself(lens, codes):
    read = {"sites": "resid_post", "layers": 1, "stop_at_layer": 2}
    plain, _ = lens.run_with_cache(PROMPTS, codes, **read)
    _, scaled = lens.run_with_cache(PROMPTS, codes, interventions=al.Scale(2e-8, layers=1), **read)
    assert torch.equal(scaled["resid_post", 1], plain * torch.tensor(2e-8))


def test_an_intervention_without_a_change_is_refused_when_it_is_made() -> None:
    class Idle(al.Intervention):
        pass

    for kind in (al.Intervention, Idle):
        with pytest.raises(errors.InputTypeError, match=f"{kind.__name__} does nothing to activations.*: use Add"):
            kind(site="resid_post")
