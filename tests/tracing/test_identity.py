"""Nothing changes unless asked: the lens's codes and logits equal the bare model's bit for bit.

Covers every family, with and without guidance, greedy and sampled, in two dtypes, alone and in a batch. The oracle is
bare transformers: its `generate`, the codes that it passes to its codec, and its forward pass.
"""

import random
from typing import Any

import pytest
import torch
from melodies import ALIKE, MIXED

import audiolens as al
from audiolens.model.timeline import delay

SECONDS, FRAMES = 0.32, 8
STEPS = FRAMES + 3
FAMILIES = ["lens", "stereo_lens", "melody_lens", "stereo_melody_lens"]


@pytest.fixture(scope="module", params=[(name, dtype) for name in FAMILIES for dtype in ("float32", "bfloat16")])
def either(request: pytest.FixtureRequest) -> Any:
    name, dtype = request.param
    lens = request.getfixturevalue(name)
    found = lens if dtype == "float32" else al.AudioLens.from_pretrained(lens.name, dtype=dtype)
    assert found.dtype == getattr(torch, dtype)
    return found


def prompts_of(lens: Any, rows: int) -> list[str]:
    """Of several lengths where the text has a mask."""
    return (ALIKE if lens.config.conditioning == "prefix" else MIXED)[:rows]


def tokens_of(lens: Any, prompts: list[str]) -> dict[str, torch.Tensor]:
    tokens = lens.tokenizer(prompts, padding=True, return_tensors="pt")
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


@pytest.fixture
def decoded(either: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The codes that the codec was given, as they come."""
    seen: list[torch.Tensor] = []
    decode = either.model.audio_encoder.decode
    monkeypatch.setattr(
        either.model.audio_encoder, "decode", lambda codes, **named: seen.append(codes) or decode(codes, **named)
    )
    return seen


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_generated_codes_are_transformers_own(
    either: Any, decoded: list[torch.Tensor], rows: int, guidance_scale: float, temperature: float
) -> None:
    prompts = prompts_of(either, rows)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 20} if temperature else {"do_sample": False}
    torch.manual_seed(3), random.seed(3)
    expected = either.model.generate(
        **tokens_of(either, prompts), max_new_tokens=STEPS, guidance_scale=guidance_scale, **sampling
    )
    after, codes = (torch.get_rng_state(), random.getstate()), list(decoded)
    # The second run goes through nnsight, the first has nothing to serve.
    for sites in ((), "resid_post"):
        decoded.clear()
        torch.manual_seed(3), random.seed(3)
        out = either.generate(
            prompts, SECONDS, guidance_scale=guidance_scale, temperature=temperature, top_k=20, sites=sites
        )
        assert torch.equal(out.audio, expected)
        assert len(decoded) == len(codes) == either.config.channels
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(decoded, codes, strict=True))
        sides = [out.codes[:, side :: either.config.channels] for side in range(either.config.channels)]
        assert all(torch.equal(side, whole[0]) for side, whole in zip(sides, codes, strict=True))
        assert torch.equal(torch.get_rng_state(), after[0])
        assert random.getstate() == after[1]


def bare_logits(lens: Any, prompts: list[str], codes: torch.Tensor, guided: bool) -> torch.Tensor:
    """transformers' forward, told its text as its own `generate` tells it: "branch row codebook step vocab"."""
    model, tokens = lens.model, tokens_of(lens, prompts)
    columns = delay(codes, lens.config.delays, 32)[..., :-1].flatten(0, 1).repeat(1 + guided, 1)
    with torch.no_grad():
        if guided and lens.config.conditioning == "prefix":
            told = model._prepare_encoder_hidden_states_kwargs_for_generation(
                tokens["input_ids"], {"attention_mask": tokens["attention_mask"]}, "input_ids", model.generation_config
            )
        elif guided:
            told = model._prepare_text_encoder_kwargs_for_generation(
                tokens["input_ids"], {"attention_mask": tokens["attention_mask"]}, "input_ids", model.generation_config
            )
        else:
            told = tokens
        logits = model(**told, decoder_input_ids=columns).logits
    return logits[:, -columns.shape[-1] :].unflatten(0, (1 + guided, len(prompts), lens.config.n_codebooks))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_logits_are_transformers_own(either: Any, rows: int, guidance_scale: float) -> None:
    prompts, guided = prompts_of(either, rows), guidance_scale > 1
    codes = torch.randint(0, 32, (rows, either.config.n_codebooks, 15), generator=torch.Generator().manual_seed(0))
    expected = bare_logits(either, prompts, codes, guided)
    for sites in ((), "resid_post"):
        for branch in ("cond", "null", "both") if guided else ("cond",):
            logits, _ = either.run_with_cache(prompts, codes, sites=sites, branch=branch, guidance_scale=guidance_scale)
            half = {"cond": expected[0], "null": expected[-1], "both": expected}[branch]
            assert torch.equal(logits, half)
