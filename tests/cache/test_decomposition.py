"""The residual stream is the sum of its labelled components, and its projection gives the model's logits."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import audiolens as al
from audiolens import ActivationCache
from audiolens.errors import InputError, SiteError
from audiolens.model.timeline import delay

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
PARTS = ["blocks.0.hook_resid_pre", "attn_out", "cross_attn_out", "mlp_out"]
STATES = ["resid_pre", "resid_mid", "resid_cross", "resid_post"]


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 32, (3, 4, 15), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def hidden(lens: Any, codes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """transformers' own states before each block, of the conditional rows."""
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    text = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        return lens.model(
            **text, decoder_input_ids=columns.flatten(0, 1), output_hidden_states=True
        ).decoder_hidden_states


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_parts_below_a_block_add_up_to_what_transformers_says_it_reads(lens, codes, hidden, layer):
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=PARTS)
    parts = cache.decompose_resid(layer)
    torch.testing.assert_close(parts.values.sum(0), hidden[layer], rtol=0, atol=1e-4)
    below = [f"{block}_{part}" for block in range(layer) for part in ("attn_out", "cross_attn_out", "mlp_out")]
    assert parts.labels == ("0_pre", *below)
    for block in range(layer):
        assert torch.equal(parts[f"{block}_cross_attn_out"], cache["cross_attn_out", block])


def test_the_whole_model_s_parts_give_its_last_state(lens, codes, hidden):
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=PARTS)
    total = cache.decompose_resid().values.sum(0)
    norm = lens.model.decoder.model.decoder.layer_norm
    # transformers gives its last state after the final norm.
    with torch.no_grad():
        torch.testing.assert_close(norm(total), hidden[3], rtol=0, atol=1e-4)
    assert torch.equal(cache.decompose_resid(3).values, cache.decompose_resid(-1).values)


def test_parts_add_up_in_both_branches_in_means_and_while_generating(lens, codes):
    sites = [*PARTS, "resid_post"]
    _, both = lens.run_with_cache(PROMPTS, codes, sites=sites, branch="both", guidance_scale=3.0)
    _, mean = lens.run_with_cache(PROMPTS, codes, sites=sites, reduce="mean")
    drawn = lens.generate(PROMPTS, 0.6, seeds=1, sites=sites, decode=False).cache
    for cache in (both, mean, drawn):
        torch.testing.assert_close(cache.decompose_resid().values.sum(0), cache["resid_post", 2], rtol=0, atol=1e-4)


def test_embeddings_recorded_apart_are_two_components(lens, codes):
    sites = ["embed", "pos_embed", "attn_out", "cross_attn_out", "mlp_out"]
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=[*sites, "resid_pre"])
    parts = cache.decompose_resid(2)
    assert parts.labels[:3] == ("embed", "pos_embed", "0_attn_out")
    torch.testing.assert_close(parts.values.sum(0), cache["resid_pre", 2], rtol=0, atol=1e-4)
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    tokens = sum(F.embedding(columns[:, codebook], lens.W_E[codebook]) for codebook in range(4))
    torch.testing.assert_close(parts["embed"], tokens)
    assert torch.equal(parts["pos_embed"], lens.W_pos[:18].expand(3, -1, -1))
    _, mean = lens.run_with_cache(PROMPTS, codes, sites=[*sites, "resid_post"], reduce="mean")
    torch.testing.assert_close(mean.decompose_resid().values.sum(0), mean["resid_post", 2], rtol=0, atol=1e-4)


def test_accumulated_states_are_transformers_hidden_states(lens, codes, hidden):
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=STATES)
    states = cache.accumulated_resid()
    assert states.labels == ("0_pre", "1_pre", "2_pre", "final_post")
    for layer in range(3):
        assert torch.equal(states[f"{layer}_pre"], hidden[layer])
    inner = cache.accumulated_resid(1, incl_mid=True)
    assert inner.labels == ("0_pre", "0_mid", "0_cross", "1_pre")
    assert torch.equal(inner["0_cross"], cache["resid_cross", 0])
    _, less = lens.run_with_cache(PROMPTS, codes, sites=["blocks.0.hook_resid_pre", "resid_post"])
    assert torch.equal(less.accumulated_resid().values, states.values)


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_the_last_layer_s_logit_lens_is_the_model_s_logits(lens, codes, branch):
    logits, cache = lens.run_with_cache(PROMPTS, codes, branch=branch, guidance_scale=3.0)
    read = cache.logit_lens()
    assert read.shape == (3, *logits.shape)
    torch.testing.assert_close(read[-1], logits, rtol=0, atol=1e-5)
    assert torch.equal(cache.logit_lens(layers=2)[0], read[-1])


def test_an_early_layer_s_logit_lens_is_the_norm_and_heads_by_hand(lens, codes, hidden):
    _, cache = lens.run_with_cache(PROMPTS, codes, reduce="last")
    read = cache.logit_lens(layers=[0, 1])
    norm = lens.model.decoder.model.decoder.layer_norm
    with torch.no_grad():
        expected = [[head(norm(hidden[layer][:, 14])) for head in lens.model.decoder.lm_heads] for layer in (1, 2)]
    assert read.shape == (2, 3, 4, 32)
    for layer in range(2):
        torch.testing.assert_close(read[layer], torch.stack(expected[layer], dim=1), rtol=0, atol=1e-5)


def test_a_loaded_cache_is_taken_apart_alone_and_read_out_with_a_lens(lens, codes, tmp_path: Path):
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=[*PARTS, "resid_post"])
    back = ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))
    assert torch.equal(back.decompose_resid(2).values, cache.decompose_resid(2).values)
    with pytest.raises(InputError, match="give a lens"):
        back.logit_lens()
    assert torch.equal(back.logit_lens(lens), cache.logit_lens())


def test_a_file_with_parts_nobody_knows_is_refused(lens, codes, tmp_path: Path):
    _, cache = lens.run_with_cache(PROMPTS, codes, layers=0)
    path = cache.save(tmp_path / "cache.safetensors")
    path.write_bytes(path.read_bytes().replace(b"cross_attn_out", b"cross_attn_oat"))
    with pytest.raises(InputError, match="its header is not what was written"):
        ActivationCache.load(path)


def test_a_cache_keeps_no_model_alive(checkpoint, codes):
    lens = al.AudioLens.from_pretrained(checkpoint)
    _, cache = lens.run_with_cache(PROMPTS, codes)
    expected = cache.logit_lens(lens)
    kept = weakref.ref(lens.model.decoder.model.decoder.layers[0].fc1.weight)
    del lens
    gc.collect()
    assert kept() is None
    assert torch.equal(cache.logit_lens(), expected)


def test_what_was_not_recorded_is_named_with_the_sites_to_record(lens, codes):
    _, cache = lens.run_with_cache(PROMPTS, codes)
    with pytest.raises(SiteError, match=r"blocks\.0\.hook_attn_out.*'blocks\.0\.hook_resid_pre', 'attn_out', 'cross_"):
        cache.decompose_resid(1)
    with pytest.raises(SiteError, match=r"sites=\['blocks\.0\.hook_resid_pre', 'resid_post'\]"):
        cache.accumulated_resid()
    with pytest.raises(SiteError, match="no component '3_attn_outs'"):
        lens.run_with_cache(PROMPTS, codes, sites=PARTS)[1].decompose_resid()["3_attn_outs"]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda cache: cache.decompose_resid(4), "layers 0 to 2"),
        (lambda cache: cache.decompose_resid("3"), "expected a layer"),
        (lambda cache: cache.logit_lens(site="attn_out"), "not a state of the residual stream"),
        (lambda cache: cache.logit_lens(layers=7), "was not recorded"),
        (lambda cache: cache.logit_lens(site="resid_pre"), "was not recorded"),
        (lambda cache: ActivationCache(cache.tensors, cache.axes).decompose_resid(), "does not state how many blocks"),
    ],
)
def test_bad_questions_are_refused(lens, codes, ask, message):
    _, cache = lens.run_with_cache(PROMPTS, codes)
    with pytest.raises(al.errors.AudioLensError, match=message):
        ask(cache)


def test_a_maximum_over_time_is_no_state(lens, codes):
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=[*PARTS, "resid_post"], reduce="max")
    with pytest.raises(InputError, match="maxim"):
        cache.decompose_resid()
    with pytest.raises(InputError, match="does not store states"):
        cache.logit_lens()
