"""A clip depends on its prompt, seed and settings, never on its batch."""

import random

import pytest
import torch

from audiolens.tracing.noise import RowNoise
from audiolens.tracing.sampling import RowSampler, checked_seeds

WORDS = ["fast piano", "slow dark guitar music", "calm", "the loud drums and a soft jazz song of calm music"]
SECONDS = 0.6


def clips(lens, pairs, **options):
    out = lens.generate(
        [prompt for prompt, _ in pairs], SECONDS, seeds=[seed for _, seed in pairs], decode=False, **options
    )
    return dict(zip(pairs, out.codes, strict=True))


def test_exact_clips_are_bit_equal_alone_in_batches_and_in_any_order(lens):
    pairs = [(WORDS[index % 4], index) for index in range(32)]
    whole = clips(lens, pairs, exact=True)
    assert len({codes.numpy().tobytes() for codes in whole.values()}) == 32
    turned, seven = pairs[::-1], random.Random(0).sample(pairs, 7)
    for chosen in (turned, seven, pairs[3:4]):
        for pair, codes in clips(lens, chosen, exact=True).items():
            assert torch.equal(codes, whole[pair])


def test_without_exact_flips_are_rare(lens):
    pairs = [(WORDS[index % 4], index) for index in range(20)]
    whole, alone = clips(lens, pairs), clips(lens, pairs, batch_size=1)
    flipped = sum(not torch.equal(whole[pair], alone[pair]) for pair in pairs)
    print(f"{flipped} of {len(pairs)} clips flipped between a batch of 20 and one by one")
    assert flipped <= 4


def test_one_seed_is_one_clip_and_another_is_another(lens):
    out = lens.generate("calm", SECONDS, seeds=[7, 7, 8], decode=False)
    assert torch.equal(out.codes[0], out.codes[1])
    assert not torch.equal(out.codes[0], out.codes[2])


@pytest.mark.parametrize("top_k", [None, 0, 5])
def test_greedy_is_transformers_greedy(lens, top_k):
    seeded = lens.generate(WORDS, SECONDS, seeds=1, temperature=0, top_k=top_k, decode=False)
    own = lens.generate(WORDS, SECONDS, temperature=0, decode=False)
    assert torch.equal(seeded.codes, own.codes)


def test_the_draw_has_the_probabilities_of_the_softmax():
    rows, vocab = 4000, 6
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5, -30.0])
    sampler = RowSampler(RowNoise(range(rows), 1, vocab, 1), guidance_scale=1.0, temperature=0.8, top_k=4)
    drawn = sampler(torch.zeros(rows, 1, dtype=torch.long), logits.expand(rows, vocab)).argmax(-1)
    expected = torch.zeros(vocab)
    expected[[0, 1, 2, 4]] = (logits[[0, 1, 2, 4]] / 0.8).softmax(-1)
    counts = torch.bincount(drawn, minlength=vocab) / rows
    torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)
    assert counts[3] == counts[5] == 0


def test_guidance_is_merged_by_the_sampler_and_left_alone_by_transformers():
    from transformers.generation.logits_process import ClassifierFreeGuidanceLogitsProcessor

    ids, scores = torch.zeros(8, 1, dtype=torch.long), torch.randn(16, 6)
    guidance = ClassifierFreeGuidanceLogitsProcessor(3.0)
    sampler = RowSampler(RowNoise([1, 2], 4, 6, 1), guidance_scale=3.0, temperature=0, top_k=None)
    torch.testing.assert_close(guidance(ids, sampler(ids, scores)), guidance(ids, scores))
    noisy = RowSampler(RowNoise([1, 2], 4, 6, 1), guidance_scale=3.0, temperature=1.0, top_k=2)(ids, scores)
    assert torch.equal(guidance(ids, noisy), noisy[:8])


@pytest.mark.parametrize("name", ["lens", "melody_lens"])
def test_a_continued_clip_has_the_noise_of_the_whole_one(request, name):
    lens = request.getfixturevalue(name)
    given = {"prompts": "calm", "seconds": SECONDS, "seeds": [3, 4], "decode": False}
    whole = lens.generate(**given).codes
    assert torch.equal(lens.generate(**given, audio_prompt=whole[..., :6]).codes, whole)
    # At this temperature, the noise alone decides, whatever the clip begins with.
    hot = lens.generate(**given, temperature=1e6, top_k=None).codes
    other = lens.generate(**given, temperature=1e6, top_k=None, audio_prompt=(hot[..., :6] + 1) % 32).codes
    assert torch.equal(other[..., 6:], hot[..., 6:])


def test_seeds_are_checked():
    assert checked_seeds(3, 2) == [3, 3]
    assert checked_seeds(None, 2) is None
    with pytest.raises(TypeError, match="whole number"):
        checked_seeds([1.5], 1)  # pyright: ignore[reportArgumentType]
