"""Every site is read and written as in bare transformers, or as a line of einsum computes it."""

import copy
from typing import Any

import pytest
import torch
from einops import einsum, rearrange
from everywhere import IN_BLOCK, PROMPTS, SECONDS, SITES, STEPS, WHOLE, least_lead, random_codes
from nnsight.intervention.source import STATE

import audiolens as al
from audiolens import errors
from audiolens.model.timeline import delay

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(params=["mono", "stereo"])
def either(request, lens, stereo_lens) -> Any:
    return lens if request.param == "mono" else stereo_lens


@pytest.fixture
def codes(lens) -> torch.Tensor:
    return random_codes(lens)


def bare(lens: Any, codes: torch.Tensor, *, guided: bool, model: Any = None, **options: Any) -> Any:
    """What transformers alone computes for the prompts and codes, its null branch behind the conditional one."""
    text = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1].flatten(0, 1)
    with torch.no_grad():
        states, mask = lens.model.text_encoder(**text).last_hidden_state, text.attention_mask
        if guided:
            states, mask, columns = torch.cat([states, 0 * states]), torch.cat([mask, 0 * mask]), columns.repeat(2, 1)
        return (model or lens.model)(
            encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=columns, **options
        )


def blocks(model: Any) -> Any:
    return model.decoder.model.decoder.layers


def test_the_lens_lists_every_site_in_the_models_order(lens):
    sites = lens.sites()
    assert len(sites) == 3 * len(IN_BLOCK) + len(WHOLE)
    assert set(SITES) <= set(sites)
    assert list(sites)[:4] == ["hook_text_states", "hook_embed", "hook_pos_embed", "blocks.0.hook_resid_pre"]
    assert list(sites)[-2:] == ["ln_final.hook_normalized", "hook_logits"]
    assert sites["blocks.2.attn.hook_pattern"] == "row head=4 query key"
    assert sites["blocks.0.cross_attn.hook_k"] == "row token head=4 d_head=12"
    assert sites["blocks.0.attn.hook_result"] == "row step head=4 d_model=48"
    assert sites["hook_logits"] == "row codebook=4 step vocab=32"


@pytest.mark.parametrize(("branch", "scale"), [("cond", 1.0), ("cond", 3.0), ("null", 3.0), ("both", 3.0)])
def test_every_site_has_the_shape_it_is_listed_with(either, branch, scale):
    listed = either.sites()
    logits, cache = either.run_with_cache(
        PROMPTS, random_codes(either), sites=list(listed), branch=branch, guidance_scale=scale
    )
    assert list(cache) == list(listed)
    counts = {"branch": 2, "row": 3, "step": STEPS, "query": STEPS, "token": 5}
    for name, shape in listed.items():
        sizes = [part.split("=") for part in (["branch"] if branch == "both" else []) + shape.split()]
        assert cache.axes[name] == tuple(axis for axis, *_ in sizes)
        keys = 5 if "cross_attn" in name else STEPS
        expected = [int(size[0]) if size else counts.get(axis, keys) for axis, *size in sizes]
        assert list(cache[name].shape) == expected
    assert torch.equal(cache["hook_logits"], logits)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_patterns_are_those_of_eager_attention(either, request, tmp_path, scale):
    either.model.save_pretrained(tmp_path)
    eager = type(either.model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    codes, branch = random_codes(either), "both" if scale > 1 else "cond"
    expected = bare(either, codes, guided=scale > 1, model=eager, output_attentions=True)
    sites = ["attn.pattern", "cross_attn.pattern"]
    for lens in (either, al.AudioLens(eager, either.tokenizer)):
        _, cache = lens.run_with_cache(PROMPTS, codes, sites=sites, branch=branch, guidance_scale=scale)
        for layer in range(3):
            for site, weights in zip(sites, (expected.decoder_attentions, expected.cross_attentions), strict=True):
                found = cache[site, layer].reshape(weights[layer].shape)
                torch.testing.assert_close(found, weights[layer], rtol=0, atol=1e-5)
    if scale > 1:
        # The null branch has no text to look at: every token weighs the same.
        assert (cache["cross_attn.pattern", 2][1] == 1 / 5).all()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_z_is_the_pattern_times_the_values_and_results_are_z_through_the_output_weights(either, scale):
    branch = "both" if scale > 1 else "cond"
    sites = [f"{name}.{part}" for name in ("attn", "cross_attn") for part in ("q", "v", "pattern", "z", "result")]
    sites += ["ln1.normalized", "attn_out", "cross_attn_out"]
    _, cache = either.run_with_cache(PROMPTS, random_codes(either), sites=sites, branch=branch, guidance_scale=scale)
    for layer, block in enumerate(blocks(either.model)):
        normalized = cache["ln1.normalized", layer]
        torch.testing.assert_close(cache["attn.q", layer].flatten(-2), normalized @ block.self_attn.q_proj.weight.T)
        for name, module in (("attn", block.self_attn), ("cross_attn", block.encoder_attn)):
            pattern, values = cache[f"{name}.pattern", layer], cache[f"{name}.v", layer]
            z, result = cache[f"{name}.z", layer], cache[f"{name}.result", layer]
            torch.testing.assert_close(z, einsum(pattern, values, "... h q k, ... k h d -> ... q h d"), **CLOSE)
            for head in range(4):
                weights = module.out_proj.weight[:, 12 * head : 12 * (head + 1)]
                torch.testing.assert_close(result[..., head, :], z[..., head, :] @ weights.T, **CLOSE)
            torch.testing.assert_close(result.sum(-2), cache[f"{name}_out", layer], **CLOSE)


def test_the_texts_side_is_projected_states_without_padding(either):
    sites = ["text_states", "cross_attn.k", "cross_attn.v"]
    _, cache = either.run_with_cache(PROMPTS, None, sites=sites, guidance_scale=3.0, branch="both")
    text = either.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = either.model.text_encoder(**text).last_hidden_state
        states = either.model.enc_to_dec_proj(states) * text.attention_mask[..., None]
    assert torch.equal(cache["hook_text_states"][0], states)
    assert not cache["hook_text_states"][1][text.attention_mask == 0].any()
    for layer, block in enumerate(blocks(either.model)):
        for part in ("k", "v"):
            weights = block.encoder_attn.get_submodule(f"{part}_proj").weight
            expected = rearrange(states @ weights.T, "row token (h d) -> row token h d", h=4)
            torch.testing.assert_close(cache[f"cross_attn.{part}", layer][0], expected)
            assert not cache[f"cross_attn.{part}", layer][1].any()


def test_embeddings_and_logits_are_the_two_ends_of_the_stream(either):
    codes = random_codes(either)
    logits, cache = either.run_with_cache(PROMPTS, codes, sites=WHOLE)
    expected = bare(either, codes, guided=False, output_hidden_states=True)
    columns = delay(codes, either.config.delays, 32)[..., :-1]
    decoder = either.model.decoder.model.decoder
    embedded = sum(table.weight[columns[:, codebook]] for codebook, table in enumerate(decoder.embed_tokens))
    assert torch.equal(cache["hook_embed"], embedded)
    assert torch.equal(cache["hook_pos_embed"], decoder.embed_positions.weights[:STEPS].expand(3, -1, -1))
    assert torch.equal(cache["hook_embed"] + cache["hook_pos_embed"], expected.decoder_hidden_states[0])
    assert torch.equal(cache["ln_final.hook_normalized"], expected.decoder_hidden_states[-1])
    assert torch.equal(cache["hook_logits"], expected.logits.unflatten(0, (3, -1)))
    assert torch.equal(cache["hook_logits"], logits)


@pytest.mark.parametrize("site", SITES)
def test_looking_changes_nothing_and_a_change_stays_in_its_branch_and_rows(lens, codes, site):
    options = {"branch": "both", "guidance_scale": 3.0}
    plain, _ = lens.run_with_cache(PROMPTS, codes, sites=(), **options)
    seen = []
    look = al.Apply(lambda value: seen.append(value), site=site)
    assert torch.equal(lens.run_with_interventions(PROMPTS, codes, look, **options), plain)
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=site, **options)
    assert torch.equal(torch.stack(seen), cache[site])
    halved = al.Scale(0.5, site=site, branch="cond", rows=[0, 2])
    changed = lens.run_with_interventions(PROMPTS, codes, halved, **options)
    assert torch.equal(changed[1], plain[1])
    assert torch.equal(changed[0, 1], plain[0, 1])
    assert not torch.equal(changed[0, 0], plain[0, 0])
    assert not torch.equal(changed[0, 2], plain[0, 2])


@pytest.mark.parametrize("site", SITES)
def test_a_read_returns_the_value_after_the_edit(lens, codes, site):
    _, plain = lens.run_with_cache(PROMPTS, codes, sites=site)
    logits, cache = lens.run_with_cache(PROMPTS, codes, sites=site, interventions=al.Scale(0.5, site=site))
    torch.testing.assert_close(cache[site], 0.5 * plain[site])
    again = lens.run_with_interventions(PROMPTS, codes, al.Replace(cache[site], site=site))
    assert torch.equal(again, logits)


@pytest.mark.parametrize("attention", ["attn", "cross_attn"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_pattern_written_back_changes_nothing_that_can_be_heard(lens, codes, tmp_path, attention, scale):
    lens.model.save_pretrained(tmp_path)
    eager = type(lens.model).from_pretrained(tmp_path, attn_implementation="eager").eval()
    weights = bare(lens, codes, guided=scale > 1, model=eager, output_attentions=True)
    weights = (weights.decoder_attentions if attention == "attn" else weights.cross_attentions)[1]
    branches = [("cond", weights[:3]), ("null", weights[3:])][: 2 if scale > 1 else 1]
    site, options = f"{attention}.pattern", {"guidance_scale": scale, "branch": "both" if scale > 1 else "cond"}
    plain, _ = lens.run_with_cache(PROMPTS, codes, **options)
    # Lengthened by a hundred thousandth, so that every query is recomputed.
    edits = [al.Replace(part * 1.00001, site=site, layers=1, branch=branch) for branch, part in branches]
    changed = lens.run_with_interventions(PROMPTS, codes, edits, **options)
    torch.testing.assert_close(changed, plain, rtol=1e-4, atol=5e-5)
    assert not torch.equal(changed, plain)


@pytest.mark.parametrize("attention", ["attn", "cross_attn"])
def test_a_written_pattern_makes_the_z_of_its_heads_anew(lens, codes, attention):
    sites = [f"{attention}.pattern", f"{attention}.v", f"{attention}.z"]
    _, plain = lens.run_with_cache(PROMPTS, codes, sites=sites, layers=1)
    pattern = plain[sites[0], 1].clone()
    pattern[:, [0, 2]] = pattern[:, [0, 2]].flip(-1)
    z = einsum(pattern, plain[sites[1], 1], "row h q k, row k h d -> row q h d")
    written = al.Replace(pattern, site=sites[0], layers=1, heads=[0, 2])
    logits, cache = lens.run_with_cache(PROMPTS, codes, sites=sites, layers=1, interventions=written)
    torch.testing.assert_close(cache[sites[2], 1], z, **CLOSE)
    assert torch.equal(cache[sites[2], 1][:, :, [1, 3]], plain[sites[2], 1][:, :, [1, 3]])
    expected = lens.run_with_interventions(PROMPTS, codes, al.Replace(z, site=sites[2], layers=1))
    torch.testing.assert_close(logits, expected, **CLOSE)


def test_a_pattern_can_be_changed_for_some_seconds_and_by_one_row_for_all(lens, codes):
    _, plain = lens.run_with_cache(PROMPTS, codes, sites="attn.pattern", layers=0)
    first = torch.zeros(STEPS)
    first[0] = 1.0
    sink = al.Replace(first, site="attn.pattern", layers=0, seconds=(0.2, 0.4))
    _, cache = lens.run_with_cache(PROMPTS, codes, sites="attn.pattern", layers=0, interventions=sink)
    before, after = plain["attn.pattern", 0], cache["attn.pattern", 0]
    assert torch.equal(after[:, :, 5:10], first.expand(3, 4, 5, STEPS))
    assert torch.equal(after[:, :, :5], before[:, :, :5])
    assert torch.equal(after[:, :, 10:], before[:, :, 10:])
    assert torch.equal(cache.seconds((0.2, 0.4))["attn.pattern", 0], after[:, :, 5:10])


@pytest.mark.parametrize("attention", ["attn", "cross_attn"])
def test_zeroing_a_heads_result_is_zeroing_its_z_is_a_model_without_its_weights(lens, codes, attention):
    without = copy.deepcopy(lens.model)
    module = blocks(without)[1].self_attn if attention == "attn" else blocks(without)[1].encoder_attn
    with torch.no_grad():
        module.out_proj.weight[:, 24:36] = 0
    expected = bare(lens, codes, guided=False, model=without).logits.unflatten(0, (3, 4))
    for part in ("result", "z", "pattern"):
        silent = al.Scale(0.0, site=f"{attention}.{part}", layers=1, heads=[2])
        torch.testing.assert_close(lens.run_with_interventions(PROMPTS, codes, silent), expected, **CLOSE)


def test_adding_to_one_heads_result_is_adding_to_the_attentions_output(lens, codes):
    vector = torch.randn(48, generator=torch.Generator().manual_seed(0))
    one = al.Add(vector, site="attn.result", layers=1, heads=[3], strength=2.0)
    whole = al.Add(vector, site="attn_out", layers=1, strength=2.0)
    torch.testing.assert_close(*(lens.run_with_interventions(PROMPTS, codes, edit) for edit in (one, whole)), **CLOSE)


@pytest.mark.parametrize("sites", [["text_states"], ["cross_attn.k", "cross_attn.v"]])
def test_another_prompts_text_side_makes_it_that_prompts_clip(lens, codes, sites):
    one, other = ["fast piano", "calm music", "slow song"], ["dark guitar", "loud jazz", "bright drums"]
    expected, cache = lens.run_with_cache(other, codes, sites=sites)
    edits = [al.Replace(cache[name], site=name, branch="cond") for name in cache]
    assert torch.equal(lens.run_with_interventions(one, codes, edits), expected)
    options = {"seconds": SECONDS, "temperature": 0, "decode": False}
    clips = lens.generate(other, **options).codes
    assert not torch.equal(lens.generate(one, **options).codes, clips)
    for use_cache in (True, False):
        assert torch.equal(lens.generate(one, interventions=edits, use_cache=use_cache, **options).codes, clips)


def test_other_codes_embeddings_are_other_codes(lens, codes):
    other = random_codes(lens, seed=1)
    expected, cache = lens.run_with_cache(PROMPTS, other, sites="embed")
    replaced = al.Replace(cache["hook_embed"], site="embed")
    assert torch.equal(lens.run_with_interventions(PROMPTS, codes, replaced), expected)


def test_without_positions_the_model_is_one_whose_position_table_is_zero(lens, codes):
    without = copy.deepcopy(lens.model)
    without.decoder.model.decoder.embed_positions.weights.zero_()
    expected = bare(lens, codes, guided=False, model=without).logits.unflatten(0, (3, 4))
    assert torch.equal(lens.run_with_interventions(PROMPTS, codes, al.Scale(0.0, site="pos_embed")), expected)


def test_written_logits_are_returned_and_drawn_from(lens, codes):
    plain, _ = lens.run_with_cache(PROMPTS, codes)
    push = torch.zeros(4, 32)
    push[0, 7], push[2, 9] = 1e4, 1e4
    changed = lens.run_with_interventions(PROMPTS, codes, al.Add(push, site="logits"))
    torch.testing.assert_close(changed, plain + push[:, None])
    made = lens.generate(PROMPTS, SECONDS, seeds=1, interventions=al.Add(push, site="logits", seconds=(0.2, 0.4))).codes
    # Codebook 2 runs two frames late.
    assert (made[:, 0, 5:10] == 7).all()
    assert (made[:, 2, 3:8] == 9).all()
    assert not (made[:, 1] == made[:, 1, :1]).all()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(("branch", "scale"), [("cond", 1.0), ("both", 3.0)])
def test_every_site_read_while_generating_is_read_from_the_codes(either, branch, scale, use_cache):
    names = list(either.sites())
    out = either.generate(
        PROMPTS, SECONDS, seeds=[1, 2, 3], sites=names, branch=branch, guidance_scale=scale, use_cache=use_cache
    )
    assert torch.equal(out.codes, either.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], guidance_scale=scale).codes)
    _, cache = either.run_with_cache(PROMPTS, out.codes, sites=names, branch=branch, guidance_scale=scale)
    for name in names:
        torch.testing.assert_close(out.cache[name], cache[name], **CLOSE)


@pytest.mark.parametrize(
    "edit",
    [
        al.Scale(0.0, site="attn.pattern", layers=1, heads=[0, 3]),
        al.Scale(0.5, site="cross_attn.pattern", branch="cond"),
        al.Scale(0.0, site="attn.result", layers=[0, 2], heads=[1], seconds=(0.2, 0.4)),
        al.Scale(2.0, site="cross_attn.v", rows=[0, 1]),
        al.Add(torch.ones(12), site="cross_attn.k", layers=1, branch="cond"),
        al.Scale(0.5, site="text_states", rows=[2]),
        al.Scale(0.5, site="embed", seconds=(0.0, 0.2)),
        al.Scale(0.0, site="pos_embed", seconds=(0.2, 0.4)),
    ],
)
def test_a_steered_generation_is_what_a_forward_over_its_codes_computes(lens, edit):
    sites = ["attn.pattern", "cross_attn.pattern", "attn.result", "resid_post", "logits"]
    options = {"branch": "both", "guidance_scale": 3.0, "interventions": edit}
    outs = [
        lens.generate(PROMPTS, SECONDS, temperature=0, sites=sites, use_cache=flag, **options) for flag in (True, False)
    ]
    assert least_lead(outs[0], lens.config.delays) > 1e-4
    assert torch.equal(outs[0].codes, outs[1].codes)
    _, cache = lens.run_with_cache(PROMPTS, outs[0].codes, sites=sites, **options)
    for name in cache:
        torch.testing.assert_close(outs[0].cache[name], cache[name], rtol=1e-3, atol=1e-4)


def test_only_the_heads_asked_for_are_recorded(lens, codes):
    sites = ["attn.pattern", "cross_attn.pattern", "attn.result", "attn.z", "cross_attn.k", "resid_post"]
    for edit in ((), al.Scale(0.5, site="attn.pattern", heads=[1, 3])):
        options = {"sites": sites, "interventions": edit}
        _, whole = lens.run_with_cache(PROMPTS, codes, **options)
        _, cache = lens.run_with_cache(PROMPTS, codes, heads=[3, 0], **options)
        assert cache.heads == (3, 0)
        for name, axes in whole.axes.items():
            chosen = whole[name]
            if "head" in axes:
                chosen = chosen.index_select(axes.index("head"), torch.tensor([3, 0]))
            torch.testing.assert_close(cache[name], chosen)
    out = lens.generate(PROMPTS, SECONDS, seeds=1, sites="attn.pattern", heads=[2], reduce="mean", decode=False)
    assert out.cache["attn.pattern", 1].shape == (3, 1, STEPS)
    for heads, sites in (([4], "attn.z"), ([0, 0], "attn.z"), ([], "attn.z"), ([0], "resid_post")):
        with pytest.raises(errors.InputError, match="heads"):
            lens.run_with_cache(PROMPTS, codes, sites=sites, heads=heads)


def test_batches_pad_tokens_and_keys_with_zeros(lens, codes):
    sites = ["cross_attn.pattern", "cross_attn.k", "text_states", "attn.pattern"]
    _, whole = lens.run_with_cache(PROMPTS, codes, sites=sites)
    for order in ([0, 1, 2], [1, 0, 2]):
        listed = [PROMPTS[row] for row in order]
        _, parts = lens.run_with_cache(listed, codes[order], sites=sites, batch_size=1)
        for name in whole:
            torch.testing.assert_close(parts[name], whole[name][order], **CLOSE)


def test_an_exact_run_records_its_own_rows_and_pads_its_text(lens):
    prompts, sites = [*PROMPTS, None], ["text_states", "pos_embed", "attn.pattern", "cross_attn.pattern", "logits"]
    edit = al.Scale(0.5, site="pos_embed", rows=[1])
    options = {"sites": sites, "interventions": edit, "branch": "both", "guidance_scale": 3.0}
    out = lens.generate(prompts, SECONDS, seeds=7, exact=True, **options)
    _, cache = lens.run_with_cache(prompts, out.codes, **options)
    for name in cache:
        mine, expected = out.cache[name], cache[name]
        if name == "hook_text_states":
            assert not mine[:, :, 5:].any()
            mine = mine[:, :, :5]
        if "cross_attn" in name:
            # Without a prompt every token weighs the same, however many there are.
            assert (mine[:, 3] == 1 / 16).all()
            mine, expected = mine[:1, :3, ..., :5], expected[:1, :3]
        torch.testing.assert_close(mine, expected, **CLOSE)


@pytest.mark.parametrize("reduce", ["mean", "last", "max"])
def test_reductions_over_time_are_those_of_the_whole_recording(lens, reduce):
    sites = ["attn.pattern", "cross_attn.pattern", "attn.result", "cross_attn.v", "logits"]
    out = lens.generate(PROMPTS, SECONDS, seeds=5, sites=sites, reduce=reduce, decode=False, batch_size=2)
    _, whole = lens.run_with_cache(PROMPTS, out.codes, sites=sites, guidance_scale=3.0)
    for name in whole:
        axes = whole.axes[name]
        expected = whole[name]
        if time := next((axis for axis in ("step", "query") if axis in axes), None):
            steps = whole[name].movedim(axes.index(time), 1)[:, :15]
            expected = {"mean": steps.mean(1), "last": steps[:, -1], "max": steps.amax(1)}[reduce]
        assert out.cache.axes[name] == tuple(axis for axis in axes if axis != time)
        torch.testing.assert_close(out.cache[name], expected, **CLOSE)


def test_a_run_leaves_no_instrumented_forward_behind(lens, codes):
    def opened() -> list[str]:
        return [name for name, module in lens.model.named_modules() if module.__dict__[STATE].sourced]

    lens.run_with_cache(PROMPTS, codes, sites=["attn.pattern", "cross_attn.k", "embed"])
    assert not opened()
    with pytest.raises(errors.InputError, match="assigned"), lens.trace(PROMPTS, codes=codes):
        lens.site("attn.pattern", 1).value = torch.zeros(1)
    assert not opened()
    assert torch.equal(lens.run_with_cache(PROMPTS, codes)[0].flatten(0, 1), bare(lens, codes, guided=False).logits)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (al.Scale(0.0, site="attn.pattern", heads=[4]), "heads 0 to 3"),
        (al.Scale(0.0, site="attn.result", heads=[]), "heads 0 to 3"),
        (al.Scale(0.0, site="embed", heads=[0]), "no heads"),
        (al.Scale(0.0, site="blocks.3.attn.hook_pattern"), "layers 0 to 2"),
        (al.Scale(0.0, site="attn.patern"), "Did you mean 'attn.pattern'"),
        (al.Replace(torch.zeros(17), site="attn.pattern"), "17 keys in .*, but the pattern has 18"),
        (al.Replace(torch.zeros(2), site="cross_attn.pattern"), "2 keys in .*, but the pattern has 5"),
        (al.Replace(torch.zeros(3, 5, 18, 18), site="attn.pattern"), r"expected the last axes of \(head=4, key\)"),
        (al.Replace(torch.zeros(3, 4, 17, 18), site="attn.pattern"), "17 steps in"),
        (al.Replace(torch.zeros(3, 4, 48), site="text_states"), "4 tokens in"),
        (al.Add(torch.zeros(13), site="cross_attn.k"), r"\(head=4, d_head=12\)"),
        (al.Add(torch.zeros(33), site="logits"), r"\(codebook=4, vocab=32\)"),
        (al.Scale(0.0, site="cross_attn.v", seconds=(0.0, 0.2)), "has no steps"),
        (al.Scale(0.0, site="text_states", schedule=[1.0] * 15), "has no steps"),
    ],
)
def test_what_cannot_be_written_is_refused(lens, codes, edit, message):
    with pytest.raises(errors.InputError, match=message):
        lens.run_with_interventions(PROMPTS, codes, edit)
