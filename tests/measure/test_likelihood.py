"""Drift: nats per code equal a loop over bare forward passes, and planted drift is recovered."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from audiolens import measure

PROMPTS = ("fast piano music", "calm song")


@pytest.fixture(scope="module")
def own(lens: Any) -> Any:
    """Four clips of the model's own: two prompts, two seeds each."""
    return lens.generate([*PROMPTS, *PROMPTS], seconds=0.6, seeds=[0, 1, 2, 3], decode=False)


def naive_nats(lens: Any, prompt: str, codes: torch.Tensor, guidance: float, temperature: float) -> torch.Tensor:
    """One clip, one code at a time, from forwards of the bare model over growing columns; the delay done by hand."""
    model, pad = lens.model, lens.config.pad_code
    n_codebooks, frames = codes.shape
    delays = [codebook // lens.config.channels for codebook in range(n_codebooks)]
    columns = torch.full((n_codebooks, 1 + frames + max(delays)), pad)
    for codebook in range(n_codebooks):
        for frame in range(frames):
            columns[codebook, 1 + frame + delays[codebook]] = codes[codebook, frame]
    tokens = lens.tokenizer([prompt], return_tensors="pt")
    found = torch.zeros(n_codebooks, frames)
    for step in range(frames + max(delays)):
        given = columns[:, : step + 1]

        def forward(mask: torch.Tensor, states: torch.Tensor, given: torch.Tensor = given) -> torch.Tensor:
            with torch.no_grad():
                return model(
                    encoder_outputs=(states,), attention_mask=mask, decoder_input_ids=given, use_cache=False
                ).logits[:, -1]

        with torch.no_grad():
            states = model.text_encoder(**{key: tokens[key] for key in ("input_ids", "attention_mask")})[0]
        cond = forward(tokens["attention_mask"], states)
        logits = cond
        if guidance > 1:
            null = forward(torch.zeros_like(tokens["attention_mask"]), torch.zeros_like(states))
            logits = null + guidance * (cond - null)
        for codebook, delay in enumerate(delays):
            if 0 <= step - delay < frames:
                chances = torch.softmax(logits[codebook] / temperature, dim=0)
                found[codebook, step - delay] = -torch.log(chances[codes[codebook, step - delay]])
    return found


@pytest.mark.parametrize(("guidance", "temperature"), [(3.0, 1.0), (3.0, 0.7), (1.0, 1.3)])
@pytest.mark.parametrize("kind", ["lens", "stereo_lens"])
def test_nats_are_those_of_a_loop_over_the_bare_model(
    kind: str, guidance: float, temperature: float, request: pytest.FixtureRequest
) -> None:
    lens = request.getfixturevalue(kind)
    codes = torch.randint(0, 32, (2, lens.config.n_codebooks, 9), generator=torch.Generator().manual_seed(3))
    found = measure.code_nats(lens, PROMPTS, codes, guidance_scale=guidance, temperature=temperature, batch_size=1)
    expected = torch.stack(
        [naive_nats(lens, prompt, row, guidance, temperature) for prompt, row in zip(PROMPTS, codes, strict=True)]
    )
    assert found.shape == codes.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_batches_and_a_prefix_change_no_nats(lens: Any, melody_lens: Any, codes: torch.Tensor) -> None:
    prompts = ["fast piano music", "calm song", "jazz", "a loud song with drums", None]
    for model in (lens, melody_lens):
        one = measure.code_nats(model, prompts, codes, batch_size=2)
        torch.testing.assert_close(one, measure.code_nats(model, prompts, codes), rtol=1e-4, atol=1e-4)


def test_its_own_samples_do_not_drift(lens: Any, own: Any) -> None:
    found = measure.drift(lens, own)
    assert found.value == 0
    assert (found.outside == 0).all()
    means = found.nats.mean(axis=1)
    assert found.spread == pytest.approx(np.mean([abs(means[0] - means[2]), abs(means[1] - means[3])]))


def test_too_likely_and_too_unlikely_both_drift(lens: Any, own: Any) -> None:
    likely = lens.generate(own.prompts, own.seconds, seeds=own.seeds, temperature=0, decode=False)
    noise = torch.randint(0, 32, own.codes.shape, generator=torch.Generator().manual_seed(5))
    low = measure.drift(lens, replace(own, codes=likely.codes), own)
    high = measure.drift(lens, replace(own, codes=noise), own)
    assert (low.difference < 0).all()
    assert (high.difference > 0).all()
    assert low.value > 2 * low.spread
    assert high.value > 2 * high.spread
    assert low.to_frame()["drift"].tolist() == pytest.approx(abs(low.difference).tolist())
    assert "likelier" in repr(low)
    assert "guidance 3, temperature 1, top-k 250" in repr(low)


def test_drift_grows_with_the_strength_of_a_random_push(lens: Any, own: Any, vector: torch.Tensor) -> None:
    values = []
    for strength in (0.0, 1.0, 4.0):
        push = al.Add(vector, layers=[1], strength=strength)
        steered = lens.generate(own.prompts, own.seconds, seeds=own.seeds, interventions=push, decode=False)
        values.append(measure.drift(lens, steered).value)
    assert values[0] == 0
    assert values[0] < values[1] < values[2]


@pytest.mark.slow
def test_silence_is_likelier_than_music_and_yet_drifts() -> None:
    lens = al.AudioLens.from_pretrained("etude")
    own = lens.generate("a short track with a beat", seconds=2.0, seeds=[0, 1], decode=False)
    silence = lens.encode_audio(torch.zeros(2, 1, 2 * lens.config.sample_rate), lens.config.sample_rate)
    found = measure.drift(lens, replace(own, codes=silence), own)
    assert (found.difference < -1).all()
    assert found.value > 1


def test_codes_outside_the_top_k_are_counted(lens: Any, own: Any) -> None:
    drawn = lens.generate(own.prompts, own.seconds, seeds=own.seeds, top_k=4, decode=False)
    assert (measure.drift(lens, drawn, drawn).outside == 0).all()
    other = measure.drift(lens, replace(drawn, codes=own.codes), drawn)
    nats = measure.code_nats(lens, own.prompts, own.codes)
    # Any code outside the four likeliest is less likely than one in five.
    assert (other.outside <= (nats > np.log(5)).float().mean((1, 2)).numpy()).all()
    assert (other.outside > 0).all()
    assert np.isfinite(other.nats).all()


def test_an_audio_prompt_is_read_and_not_scored(lens: Any, own: Any) -> None:
    start = own.codes[..., :5]
    clips = lens.generate(own.prompts, own.seconds, seeds=own.seeds, audio_prompt=start, decode=False)
    found = measure.drift(lens, clips)
    assert found.value == 0
    nats = measure.code_nats(lens, clips.prompts, clips.codes)
    np.testing.assert_allclose(found.nats, nats[..., 5:].mean(-1), rtol=1e-5)


def test_what_does_not_pair_is_refused(lens: Any, own: Any, vector: torch.Tensor) -> None:
    def again(**changed: Any) -> Any:
        told = {"prompts": own.prompts, "seconds": own.seconds, "seeds": own.seeds, **changed}
        return lens.generate(**told, decode=False)

    for baseline, message in (
        (again(prompts="calm song"), "row 0: the prompt of out is"),
        (again(seeds=[4, 5, 6, 7]), "row 0: the seed of out is .*, that of baseline 4"),
        (again(seconds=0.4), "out has frames .*, baseline"),
        (again(interventions=al.Add(vector, layers=[1])), "was steered"),
        (again(temperature=0.5), "baseline with 0.5"),
    ):
        with pytest.raises(al.errors.InputError, match=message):
            measure.drift(lens, own, baseline)
    with pytest.raises(al.errors.InputTypeError, match=r"lens\.generate"):
        measure.drift(lens, own.codes)
    with pytest.raises(al.errors.InputError, match="its guidance_scale"):
        measure.drift(lens, replace(own, settings={}))
    with pytest.raises(al.errors.InputError, match="temperature=0"):
        measure.code_nats(lens, own.prompts, own.codes, temperature=0)
    with pytest.raises(al.errors.InputError, match="4 codebooks"):
        measure.code_nats(lens, own.prompts, own.codes[:, :2])
