"""Everything that affects sampling is in the call: the model's own settings that would change it are rejected."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, WatermarkingConfig

import audiolens as al
from audiolens.errors import InputError

PROMPTS = ["fast piano", "slow dark guitar music"]
SECONDS = 0.32

LEAKING: dict[str, Any] = {
    "repetition_penalty": 1.8,
    "encoder_repetition_penalty": 1.5,
    "suppress_tokens": [0, 1, 2],
    "begin_suppress_tokens": [3],
    "no_repeat_ngram_size": 2,
    "encoder_no_repeat_ngram_size": 2,
    "sequence_bias": [[[3], -5.0]],
    "bad_words_ids": [[4]],
    "force_words_ids": [[4]],
    "forced_bos_token_id": 3,
    "forced_eos_token_id": 3,
    "num_return_sequences": 2,
    "num_beams": 2,
    "eos_token_id": 0,
    "top_p": 0.5,
    "min_p": 0.2,
    "top_h": 0.3,
    "typical_p": 0.5,
    "epsilon_cutoff": 0.05,
    "eta_cutoff": 0.05,
    "min_length": 5,
    "min_new_tokens": 5,
    "max_time": 1e-3,
    "stop_strings": ["a"],
    "penalty_alpha": 0.6,
    "dola_layers": "low",
    "prompt_lookup_num_tokens": 3,
    "exponential_decay_length_penalty": (2, 1.5),
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "cache_implementation": "static",
    "output_attentions": True,
    "watermarking_config": WatermarkingConfig(),
}


@pytest.fixture
def own(lens: al.AudioLens) -> Iterator[Any]:
    """The model's generation configuration, put back afterwards."""
    before = lens.model.generation_config
    lens.model.generation_config = copy.deepcopy(before)
    yield lens.model.generation_config
    lens.model.generation_config = before


@pytest.mark.parametrize("name", LEAKING)
@pytest.mark.parametrize("seeds", [None, 0])
def test_a_setting_that_would_leak_is_refused_by_name(lens: Any, own: Any, name: str, seeds: Any) -> None:
    setattr(own, name, LEAKING[name])
    with pytest.raises(InputError, match=rf"generation_config sets {name}=.*generation_config\.{name} = None"):
        lens.generate(PROMPTS, SECONDS, seeds=seeds)
    with pytest.raises(InputError, match=f"sets {name}="), lens.trace(PROMPTS, fn="generate", seconds=SECONDS):
        pass
    assert getattr(own, name) is LEAKING[name]
    setattr(own, name, None)
    assert len(lens.generate(PROMPTS, SECONDS, seeds=seeds)) == 2


def test_every_setting_that_transformers_knows_is_looked_at(lens: Any, own: Any) -> None:
    given = {"do_sample", "temperature", "top_k", "guidance_scale", "max_length", "max_new_tokens", "use_cache"}
    kept = {"pad_token_id", "bos_token_id", "decoder_start_token_id", "transformers_version"}
    returned = {"return_dict_in_generate", "output_scores", "output_logits"}
    for name in vars(GenerationConfig()):
        if name.startswith("_") or name in given | kept | returned:
            continue
        before = getattr(own, name)
        setattr(own, name, 7)
        with pytest.raises(InputError, match=f"sets {name}=7"):
            lens.generate(PROMPTS, SECONDS, seeds=0)
        setattr(own, name, before)


def drawn(lens: Any, **asked: Any) -> torch.Tensor:
    torch.manual_seed(0)
    return lens.generate(PROMPTS, SECONDS, **asked).codes


@pytest.fixture(scope="module", params=[None, 0], ids=["no seeds", "seeds"])
def seeds(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module", params=[0, 1.0], ids=["greedy", "sampled"])
def temperature(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture(scope="module")
def plain(lens: Any, seeds: Any, temperature: float) -> torch.Tensor:
    """The codes with the model's own settings."""
    return drawn(lens, seeds=seeds, temperature=temperature)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("repetition_penalty", 1.0),
        ("top_p", 1.0),
        ("num_beams", 1),
        ("suppress_tokens", []),
        ("output_attentions", False),
        ("return_dict_in_generate", True),
        ("output_scores", True),
        ("temperature", 0.1),
        ("top_k", 3),
        ("do_sample", False),
        ("guidance_scale", 9.0),
        ("max_length", 5),
        ("use_cache", False),
        ("eos_token_id", 32),
        ("eos_token_id", [32, 40]),
    ],
)
def test_a_setting_that_changes_nothing_changes_nothing(
    lens: Any, plain: torch.Tensor, own: Any, name: str, value: Any, seeds: Any, temperature: float
) -> None:
    setattr(own, name, value)
    assert torch.equal(drawn(lens, seeds=seeds, temperature=temperature), plain)
    assert getattr(own, name) is value


def test_another_start_token_than_the_lens_reads_by_is_refused(lens: Any, own: Any) -> None:
    own.decoder_start_token_id = 3
    with pytest.raises(InputError, match=r"starts clips with token 3, but the lens was opened with 32"):
        lens.generate(PROMPTS, SECONDS, seeds=0)
    own.decoder_start_token_id = None
    assert len(lens.generate(PROMPTS, SECONDS, seeds=0)) == 2


def test_what_reads_given_codes_does_not_mind(lens: Any, own: Any, codes: torch.Tensor) -> None:
    before = lens.run_with_cache(PROMPTS, codes[:2])[0]
    own.repetition_penalty = 1.8
    assert torch.equal(lens.run_with_cache(PROMPTS, codes[:2])[0], before)


@pytest.mark.parametrize("name", ["repetition_penalty", "num_beams", "eos_token_id", "suppress_tokens", "top_p"])
def test_a_model_with_such_a_setting_opens_to_be_read(lens: Any, own: Any, codes: torch.Tensor, name: str) -> None:
    setattr(own, name, LEAKING[name])
    before = own.to_dict()
    opened = al.AudioLens(lens.model, lens.tokenizer)
    assert lens.model.generation_config is own
    assert own.to_dict() == before
    assert torch.equal(opened.run_with_cache(PROMPTS, codes[:2])[0], lens.run_with_cache(PROMPTS, codes[:2])[0])
    with pytest.raises(InputError, match=f"sets {name}="):
        opened.generate(PROMPTS, SECONDS)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance_scale": 1e39}, r"guidance_scale=1e\+39: expected at least 1 \(no guidance\), up to 1e\+06"),
        ({"guidance_scale": 0.5}, "guidance_scale=0.5: expected at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: expected at least 1"),
        ({"temperature": 1e-45}, r"temperature=1e-45: expected 0 \(greedy\), or 1e-06 to 1e\+06"),
        ({"temperature": 1e39}, r"temperature=1e\+39: expected 0"),
        ({"temperature": -1.0}, r"temperature=-1\.0: expected 0"),
        ({"temperature": float("nan")}, "temperature=nan: expected 0"),
    ],
)
@pytest.mark.parametrize("seeds", [None, 0])
def test_settings_at_the_edge_of_the_type_are_refused(
    lens: Any, setting: dict[str, float], message: str, seeds: Any
) -> None:
    with pytest.raises(InputError, match=message):
        lens.generate(PROMPTS, SECONDS, seeds=seeds, **setting)
    with pytest.raises(InputError, match=message):
        lens.trace(PROMPTS, fn="generate", seconds=SECONDS, seeds=seeds, **setting)


@pytest.mark.parametrize("guidance_scale", [1.0, 1e6])
@pytest.mark.parametrize("seeds", [None, 0])
def test_the_limits_themselves_draw_what_the_logits_say(lens: Any, guidance_scale: float, seeds: Any) -> None:
    options = {"guidance_scale": guidance_scale, "seeds": seeds, "decode": False}
    greedy = lens.generate(PROMPTS, SECONDS, temperature=0, **options).codes
    cold = lens.generate(PROMPTS, SECONDS, temperature=1e-6, **options).codes
    assert torch.equal(cold, greedy)
    hot = lens.generate(PROMPTS, SECONDS, temperature=1e6, **options).codes
    assert len(hot.unique()) > 4


def test_more_codes_than_there_are_is_all_of_them(lens: Any) -> None:
    every = lens.generate(PROMPTS, SECONDS, seeds=0, top_k=None, decode=False).codes
    assert torch.equal(lens.generate(PROMPTS, SECONDS, seeds=0, top_k=10**6, decode=False).codes, every)


@pytest.mark.parametrize("seeds", [None, [1, 2]])
def test_whole_numbers_of_numpy_are_whole_numbers(lens: Any, seeds: Any) -> None:
    torch.manual_seed(0)
    plain = lens.generate(PROMPTS, SECONDS, seeds=seeds, top_k=5, decode=False)
    torch.manual_seed(0)
    given = None if seeds is None else np.array(seeds)
    mine = lens.generate(PROMPTS, SECONDS, seeds=given, top_k=np.int64(5), decode=False)
    assert torch.equal(mine.codes, plain.codes)
    assert mine.settings == plain.settings
    assert type(mine.settings["top_k"]) is int


@pytest.mark.parametrize(
    "make",
    [
        lambda: al.Add(torch.ones(48), strength=1e39),
        lambda: al.Add(np.full(48, 1e39)),
        lambda: al.Scale(1e39),
        lambda: al.Clamp(torch.ones(48), 1e39),
        lambda: al.Ablate(torch.ones(48), strength=[1e39]),
        lambda: al.Replace(np.full(48, -1e39)),
        lambda: al.Add(torch.ones(48), schedule=[1e39] * 8),
    ],
)
def test_an_amount_that_float32_does_not_hold_is_refused(make: Any) -> None:
    with pytest.raises(InputError, match="float32"):
        make()


def test_so_is_one_that_a_schedule_gives(lens: Any) -> None:
    add = al.Add(torch.ones(48), schedule=lambda seconds: 1e39)
    with pytest.raises(InputError, match="float32"):
        lens.generate(PROMPTS, SECONDS, seeds=0, interventions=add)
