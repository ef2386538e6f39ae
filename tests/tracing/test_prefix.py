"""The prefix is excluded unless requested, and then labelled, for any prompt lengths in one call."""

import nnsight
import pytest
import torch
from conftest import CHROMA
from melodies import ALIKE, FRAMES, MIXED, PREFIX, SECONDS, STEPS, D, bare_forward

import audiolens as al
from audiolens import errors


def test_mixed_lengths_in_one_call_equal_each_alone(melody_lens, codes, vector):
    seeds = [1, 2, 3, 4, 5]
    add = al.Add(vector, layers=1, strength=[1.0, 0.0, -1.0, 0.5, 2.0])
    options = {"exact": True, "sites": "resid_post", "prefix": True, "reduce": "mean"}
    together = melody_lens.generate(MIXED, SECONDS, seeds=seeds, interventions=add, **options)
    logits = melody_lens.run_with_interventions(MIXED, codes, add, branch="both", guidance_scale=3.0)
    for row, (prompt, seed) in enumerate(zip(MIXED, seeds, strict=True)):
        own = al.Add(vector, layers=1, strength=float(add.strength[row]))
        alone = melody_lens.generate(prompt, SECONDS, seeds=[seed], interventions=own, **options)
        assert torch.equal(alone.codes[0], together.codes[row])
        mine = together.cache.rows([row])
        assert torch.equal(alone.cache.stack("resid_post"), mine.stack("resid_post"))
        assert torch.equal(alone.cache.stack_norms("resid_post"), mine.stack_norms("resid_post"))
        single = melody_lens.run_with_interventions(
            prompt, codes[row : row + 1], own, branch="both", guidance_scale=3.0
        )
        torch.testing.assert_close(single[:, 0], logits[:, row], rtol=1e-4, atol=1e-4)


def test_recorded_prefixes_stand_before_step_0_of_every_row(melody_lens, codes, tmp_path):
    _, cache = melody_lens.run_with_cache(MIXED, codes, layers=1, prefix=True)
    sizes = [len(tokens) for tokens in melody_lens.text_tokens(MIXED)]
    assert cache.prefixes == tuple(CHROMA + size for size in sizes)
    assert cache.first_step == -max(cache.prefixes)
    _, steps = melody_lens.run_with_cache(MIXED, codes, layers=1)
    assert torch.equal(cache["resid_post", 1][:, -STEPS:], steps["resid_post", 1])
    for row, prefix in enumerate(cache.prefixes):
        _, own = melody_lens.run_with_cache(MIXED[row], codes[row : row + 1], layers=1, prefix=True)
        before = cache["resid_post", 1][row, : -STEPS - prefix]
        assert not before.any()
        torch.testing.assert_close(
            cache["resid_post", 1][row, len(before) :], own["resid_post", 1][0], rtol=1e-4, atol=1e-4
        )
    loaded = al.ActivationCache.load(cache.save(tmp_path / "cache.safetensors"))
    assert (loaded.first_step, loaded.prefixes) == (cache.first_step, cache.prefixes)
    assert torch.equal(cache.seconds((0.0, 0.2))["resid_post", 1], steps["resid_post", 1][:, :5])


@pytest.mark.parametrize("reduce", ["mean", "last", "max"])
def test_reductions_leave_the_prefix_out_unless_asked(melody_lens, codes, reduce):
    for prefix in (False, True):
        _, whole = melody_lens.run_with_cache(MIXED, codes, layers=1, prefix=True)
        _, less = melody_lens.run_with_cache(MIXED, codes, layers=1, prefix=prefix, reduce=reduce)
        for row, length in enumerate(whole.prefixes):
            first = -whole.first_step - (length if prefix else 0)
            steps = whole["resid_post", 1][row, first : FRAMES - whole.first_step]
            expected = {"mean": steps.mean(0), "last": steps[-1], "max": steps.amax(0)}[reduce]
            torch.testing.assert_close(less["resid_post", 1][row], expected)


def test_with_a_schedule_of_zero_the_prefix_alone_is_changed(melody_lens, codes, vector):
    add = al.Add(vector, layers=0, prefix=True, schedule=lambda seconds: 0.0)
    _, plain = melody_lens.run_with_cache(MIXED, codes, layers=[0, 1], prefix=True)
    _, changed = melody_lens.run_with_cache(MIXED, codes, layers=[0, 1], prefix=True, interventions=add)
    for row, length in enumerate(plain.prefixes):
        moved = (changed["resid_post", 0] - plain["resid_post", 0])[row]
        torch.testing.assert_close(moved[-STEPS - length : -STEPS], vector.expand(length, D), rtol=1e-4, atol=1e-4)
        assert not moved[-STEPS:].any()
    # The steps look back on it.
    assert not torch.equal(changed["resid_post", 1][:, -STEPS:], plain["resid_post", 1][:, -STEPS:])
    replaced = al.Replace(changed["resid_post", 0], layers=0, prefix=True)
    _, again = melody_lens.run_with_cache(MIXED, codes, layers=1, interventions=replaced)
    assert torch.equal(again["resid_post", 1], changed["resid_post", 1][:, -STEPS:])


def test_eos_is_the_hidden_state_of_each_texts_last_token(melody_lens, tmp_path):
    fast, slow = ["fast", "a fast song", "fast bright piano music"], ["slow", "slow drums", "dark slow jazz"]

    def by_hand(prompts: list[str]) -> torch.Tensor:
        rows = []
        for prompt in prompts:
            hidden = bare_forward(melody_lens, [prompt], torch.zeros(1, 4, 1, dtype=torch.long)).hidden_states
            place = CHROMA + len(melody_lens.tokenizer(prompt)["input_ids"]) - 1
            rows.append(torch.stack([hidden[layer + 1][0, place] for layer in range(2)]))
        return torch.stack(rows)

    read = al.difference_in_means(melody_lens, fast, slow, position="eos", batch_size=4, progress=False)
    expected = by_hand(fast).mean(0) - by_hand(slow).mean(0)
    torch.testing.assert_close(read.vectors[:2], expected, rtol=1e-4, atol=1e-4)
    assert (read.meta.position, read.meta.source) == ("eos", "start")
    loaded = al.Directions.load(read.save(tmp_path / "tempo.safetensors"), lens=melody_lens)
    assert loaded.meta.position == "eos"
    one = melody_lens.run_with_cache(fast[1:2], reduce="eos", layers=0)[1]
    assert torch.equal(one["resid_post", 0], by_hand(fast[1:2])[:, 0])
    assert one.axes["blocks.0.hook_resid_post"] == ("row", "d_model")
    steered = melody_lens.generate(
        "calm", SECONDS, seeds=[1, 1], interventions=al.steer(loaded, layer=1, strength=[0.0, 2.0], prefix=True)
    )
    assert torch.equal(steered.codes[0], melody_lens.generate("calm", SECONDS, seeds=[1, 1]).codes[0])
    assert not torch.equal(steered.codes[1], steered.codes[0])


@pytest.mark.parametrize("prefix", [False, True])
def test_a_direction_read_while_generating_is_the_mean_over_the_steps(melody_lens, prefix):
    options = {"seconds": SECONDS, "prefix": prefix}
    read = al.difference_in_means(melody_lens, MIXED[:2], MIXED[2:4], progress=False, **options)
    means = []
    for row, prompt in enumerate(MIXED[:4]):
        cache = melody_lens.generate(prompt, seeds=[row % 2], sites="resid_post", **options).cache
        means.append(cache.stack("resid_post")[:, 0, : FRAMES - cache.first_step].mean(1))
    expected = (means[0] + means[1] - means[2] - means[3]) / 2
    torch.testing.assert_close(read.vectors, expected, rtol=1e-3, atol=1e-4)
    assert read.meta.prefix is prefix


def test_gradients_reach_the_prefix_and_a_leaf_assigned_behind_it(melody_lens, codes):
    with melody_lens.trace(ALIKE, codes=codes) as tracer:
        whole = melody_lens.site("resid_post", 0, prefix=True).value
        place = melody_lens.site("resid_mid", 1)
        leaf = place.value.detach().requires_grad_()
        place.value = leaf
        loss = tracer.result.float().square().mean()
        gradients = nnsight.save(torch.autograd.grad(loss, [whole, leaf]))
    assert [tuple(gradient.shape) for gradient in gradients] == [(5, PREFIX + STEPS, D), (5, STEPS, D)]
    assert all(gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda lens: lens.generate("calm", 0.6, melody=torch.zeros(1, 100)), "melody=: .* text alone works"),
        (lambda lens: lens.run_with_cache("calm", melody=torch.zeros(1, 100)), "melody=: .* text alone works"),
        (lambda lens: lens.run_with_cache("calm", sites="cross_attn.z"), "no cross-attention.*It has: .*attn.z"),
        (lambda lens: lens.run_with_cache("calm", sites="resid_cross"), "no cross-attention"),
        (lambda lens: al.difference_in_means(lens, ["fast"], ["slow"], site="cross_attn_out"), "no cross-attention"),
        (lambda lens: lens.generate("calm", 5.0), "makes clips of 0.12 to 4.64 seconds"),
        (lambda lens: lens.run_with_cache("calm", torch.zeros(1, 4, 125, dtype=torch.long)), "reads at most 119 steps"),
        (lambda lens: lens.run_with_cache("calm", reduce="eos", seconds=(0.0, 0.2)), "one position before the clip"),
        (lambda lens: al.difference_in_means(lens, ["fast"], [None], position="eos"), "None has no text"),
        (
            lambda lens: lens.generate("calm", 0.6, interventions=al.Scale(2.0, prefix=True, seconds=(0.2, 0.4))),
            "must start at 0",
        ),
        (lambda lens: al.Scale(2.0, prefix=1), "True or False"),
        (
            lambda lens: al.difference_in_means(lens, ["fast"], ["slow"], position="last", prefix=True),
            "needs position='mean'",
        ),
    ],
)
def test_what_a_melody_model_cannot_do_is_refused(melody_lens, run, message):
    with pytest.raises(errors.AudioLensError, match=message):
        run(melody_lens)


@pytest.mark.parametrize(
    "run",
    [
        lambda lens: lens.run_with_cache("calm", prefix=True),
        lambda lens: lens.run_with_cache("calm", reduce="eos"),
        lambda lens: lens.generate("calm", 0.6, interventions=al.Scale(2.0, prefix=True)),
        lambda lens: al.difference_in_means(lens, ["fast"], ["slow"], position="eos"),
        lambda lens: al.difference_in_means(lens, ["fast"], ["slow"], prefix=True),
    ],
)
def test_a_model_with_cross_attention_has_no_prefix(lens, run):
    with pytest.raises(errors.InputError, match="MusicGen reads its text through cross-attention"):
        run(lens)
