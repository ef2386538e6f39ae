"""A strength that causes overflow stops the run, is located in the error, and leaves the model unchanged."""

import random
from typing import Any

import nnsight
import pytest
import torch

import audiolens as al
from audiolens.errors import ActivationOverflow, AudioLensError
from audiolens.model.sites import Site
from audiolens.tracing.batching import Layout
from audiolens.tracing.overflow import Watch

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS = 0.6
HUGE = torch.eye(48)[7] * 3e38
"""Finite in float32; twice it is not."""


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))


def twice(**where: Any) -> al.Add:
    return al.Add(HUGE, layers=[1], **where)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("branch", ["cond", "null"])
def test_a_forward_names_the_row_the_branch_the_step_and_the_site(
    lens: Any, codes: torch.Tensor, row: int, branch: Any
) -> None:
    strengths = [0.5, 0.5, 0.5]
    strengths[row] = 2.0
    add = twice(strength=strengths, branch=branch, seconds=(0.2, 0.4))
    with pytest.raises(ActivationOverflow, match=rf"row {row}, step 5 \(0\.20 s\).*blocks\.1\.hook_resid_post \(branch "
                       rf"{branch}\)"):  # fmt: skip
        lens.run_with_interventions(PROMPTS, codes, add, guidance_scale=3.0)


@pytest.mark.parametrize("seeds", [None, [1, 2, 3]])
@pytest.mark.parametrize("from_seconds", [0.0, 0.32])
def test_a_generation_stops_at_the_step_and_leaves_everything_as_it_was(
    lens: Any, seeds: Any, from_seconds: float
) -> None:
    config = lens.model.generation_config.to_dict()
    before = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3]).codes
    python, torched = random.getstate(), torch.get_rng_state()
    add = twice(strength=2.0, rows=[2], seconds=(from_seconds, 0.6))
    with pytest.raises(ActivationOverflow, match=rf"row 2, step {round(from_seconds * 25)} .*blocks\.1\.hook_resid"):
        lens.generate(PROMPTS, SECONDS, seeds=seeds, interventions=add)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torched)
    assert lens.model.generation_config.to_dict() == config
    assert torch.equal(lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3]).codes, before)
    assert torch.equal(lens.model.generate(**inputs(lens), do_sample=False, max_new_tokens=18).isfinite(),
                       torch.ones(3, 1, 15 * 640, dtype=torch.bool))  # fmt: skip


def inputs(lens: Any) -> dict[str, Any]:
    return dict(lens.tokenizer(PROMPTS, padding=True, return_tensors="pt"))


@pytest.mark.parametrize("branch", ["cond", "null"])
@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn.k", "cross_attn.pattern", "mlp.pre"])
def test_a_generation_names_where_it_began_and_the_branch(lens: Any, site: str, branch: Any) -> None:
    # One number in, none out: twice, for the first may be finite still.
    blown = [al.Scale(1e38, site=site, layers=[1], rows=[1], branch=branch, seconds=(0.2, 0.6)) for _ in range(2)]
    name = rf"blocks\.1\.\w*\.?hook_{site.split('.')[-1]} \(branch {branch}\)"
    with pytest.raises(ActivationOverflow, match=rf"row 1, step 5 .*{name}"):
        lens.generate(PROMPTS, SECONDS, seeds=0, interventions=blown)


@pytest.mark.parametrize("put", [al.Replace(torch.ones(48), layers=2), al.Apply(torch.ones_like, layers=2)])
def test_what_is_put_over_it_further_up_hides_nothing(lens: Any, put: Any) -> None:
    with pytest.raises(ActivationOverflow, match=r"row 1, step 5 .*blocks\.1\.hook_resid_post"):
        lens.generate(PROMPTS, SECONDS, seeds=0, interventions=[twice(strength=2.0, rows=[1], seconds=(0.2, 0.6)), put])


def test_what_overflows_further_up_is_seen_in_the_logits(lens: Any, codes: torch.Tensor) -> None:
    # Finite where it is written; a block above, where nothing is written, makes it infinite.
    blown = al.Add(HUGE, layers=[1], rows=[1])
    handle = lens.model.decoder.model.decoder.layers[2].register_forward_hook(lambda module, given, value: value * 10)
    try:
        with pytest.raises(ActivationOverflow, match=r"row 1, step 0 .*hook_logits"):
            lens.run_with_interventions(PROMPTS, codes, blown)
        with pytest.raises(ActivationOverflow, match=r"row 1, step 0 .*hook_logits"):
            lens.generate(PROMPTS, SECONDS, seeds=0, interventions=blown)
    finally:
        handle.remove()


def test_rows_are_the_callers_in_every_batch(lens: Any, codes: torch.Tensor) -> None:
    add = twice(strength=[0.0, 0.0, 2.0])
    with pytest.raises(ActivationOverflow, match="row 2, step 0"):
        lens.run_with_interventions(PROMPTS, codes, add, batch_size=2)
    with pytest.raises(ActivationOverflow, match="row 2, step 0"):
        lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], interventions=add, batch_size=1)


def test_the_error_is_a_callers_to_catch() -> None:
    assert issubclass(ActivationOverflow, AudioLensError)
    assert issubclass(ActivationOverflow, OverflowError)


def test_large_values_of_half_precision_are_no_overflow() -> None:
    watch = Watch(Layout((0, 1), 2, ("cond",), 2), 25.0)
    # Each is finite in float16, their sum is not.
    watch.wrote(Site("hook_resid_post", 0), torch.full((2, 3, 48), 60_000.0, dtype=torch.float16), 0)
    watch.look(torch.zeros(8, 3, 32))
    watch.wrote(Site("hook_resid_post", 0), torch.full((2, 3, 48), 60_000.0, dtype=torch.float16) * 2, 4)
    with pytest.raises(ActivationOverflow, match="row 0, step 4"):
        watch.look(torch.zeros(8, 3, 32))


def test_forbidden_codes_are_no_overflow() -> None:
    watch = Watch(Layout((0, 1), 2, ("cond",), 2), 25.0)
    forbidden = torch.zeros(8, 1, 32).index_fill(-1, torch.tensor([3]), -torch.inf)
    watch.wrote(Site("hook_logits", None), forbidden, 0)
    watch.look(forbidden)
    forbidden[5] = torch.nan
    with pytest.raises(ActivationOverflow, match=r"row 1, step 7 .*hook_logits"):
        watch.look(forbidden, 7)


@pytest.mark.parametrize("name", ["lens", "melody_lens"])
@pytest.mark.parametrize("branch", ["cond", "null"])
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_an_infinite_logit_is_named(request: Any, codes: torch.Tensor, name: str, branch: Any, value: float) -> None:
    lens = request.getfixturevalue(name)

    def write(logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([3]), value)

    edit = al.Apply(write, site="logits", branch=branch, rows=[1], seconds=(0.2, 0.4))
    where = rf"row 1, step 5 \(0\.20 s\): infinite or NaN at hook_logits \(branch {branch}\)"
    with pytest.raises(ActivationOverflow, match=where):
        lens.run_with_interventions(["calm"] * 3, codes, edit, guidance_scale=3.0)
    for seeds in (None, 1):
        with pytest.raises(ActivationOverflow, match=where):
            lens.generate(["calm"] * 3, SECONDS, seeds=seeds, interventions=edit)


@pytest.mark.parametrize("temperature", [0, 0.5, 1.0])
@pytest.mark.parametrize("top_k", [5, None])
@pytest.mark.parametrize("seeds", [None, 1])
@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_a_forbidden_code_is_never_drawn(lens: Any, branch: Any, seeds: Any, temperature: float, top_k: Any) -> None:
    drawing = {"seeds": seeds, "temperature": temperature, "top_k": top_k, "decode": False}
    torch.manual_seed(0)
    plain = lens.generate(PROMPTS, SECONDS, **drawing).codes
    often = plain.flatten().mode().values.reshape(1)

    def forbid(logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, often, -torch.inf)

    made = lens.generate(PROMPTS, SECONDS, interventions=al.Apply(forbid, site="logits", branch=branch), **drawing)
    assert (plain == often).any()
    assert not (made.codes == often).any()
    if branch == "both":
        with lens.trace(PROMPTS, fn="generate", seconds=0.2, guidance_scale=3.0, seeds=seeds,
                        temperature=temperature, top_k=top_k) as tracer:  # fmt: skip
            for _ in tracer.iter[:9]:
                place = lens.site("logits", branch="both")
                place.value = forbid(place.value)
            drawn = nnsight.save(tracer.result)
        assert not (drawn == often).any()


@pytest.mark.parametrize("sites", [(), "resid_post"])
@pytest.mark.parametrize("seeds", [None, 0])
def test_a_step_is_looked_at_once_and_a_forward_only_where_something_is_written(
    lens: Any, codes: torch.Tensor, monkeypatch: Any, sites: Any, seeds: Any
) -> None:
    looked = []
    monkeypatch.setattr(Watch, "look", lambda *_: looked.append(1) or 0.0)
    lens.run_with_cache(PROMPTS, codes)
    assert not looked
    lens.generate(PROMPTS, SECONDS, seeds=seeds, sites=sites)
    assert len(looked) == 15 + 3
    looked.clear()
    lens.run_with_interventions(PROMPTS, codes, al.Add(torch.ones(48)))
    assert looked == [1]


def pair(**where: Any) -> list[al.Add]:
    """Each finite where it is written, infinite where the block adds them up."""
    return [al.Add(HUGE, site=site, layers=0, rows=[1], **where) for site in ("attn_out", "mlp_out")]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stream_that_stops_early_is_looked_at_by_its_own_name(lens: Any, codes: torch.Tensor, stop: int) -> None:
    name = "blocks.2.hook_resid_post" if stop == 3 else f"blocks.{stop}.hook_resid_pre"
    with pytest.raises(ActivationOverflow, match=rf"row 1, step 0 .*{name}"):
        lens.run_with_cache(PROMPTS, codes, sites="resid_post", interventions=pair(), stop_at_layer=stop)


def test_caches_a_batch_at_a_time_are_looked_at(lens: Any, codes: torch.Tensor) -> None:
    with pytest.raises(ActivationOverflow, match="row 1"):
        list(lens.iter_cache(PROMPTS, codes, layers=[0], interventions=pair(), progress=False))


def test_a_prefix_is_looked_at_and_named(melody_lens: Any, codes: torch.Tensor) -> None:
    alone = pair(prefix=True, schedule=lambda seconds: 0.0)
    with pytest.raises(ActivationOverflow, match=r"row 1, the prefix, position -\d+"):
        melody_lens.run_with_cache(["calm"] * 3, codes, sites="resid_post", interventions=alone, stop_at_layer=1)


@pytest.mark.parametrize("name", ["lens", "melody_lens"])
def test_no_step_is_blamed_before_the_first_edited(request: Any, codes: torch.Tensor, name: str) -> None:
    # A NaN key above reaches earlier queries: masked, it is weighed with zero, and zero times NaN is NaN.
    wide = torch.randn(48, generator=torch.Generator().manual_seed(1)) * 5e36
    with pytest.raises(ActivationOverflow, match=r"row 1, step 5 \(0\.20 s\)"):
        request.getfixturevalue(name).run_with_interventions(
            ["calm"] * 3, codes, al.Add(wide, rows=[1], seconds=(0.2, 0.4))
        )
