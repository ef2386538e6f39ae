"""Numbers, arrays and lists of any library are treated alike; ambiguous ones are rejected."""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import audiolens as al
from analysis import attribution, pca, sweep
from analysis.patching import grid
from analysis.probing.features import of_array
from analysis.sweep.factorial import Factors
from audiolens.errors import AudioLensError, InputError, InputTypeError, UnsupportedModelError
from audiolens.model.loading import load
from audiolens.model.provenance import Provenance

# Typed as Any: these calls pass values that a type checker would reject.
any_al: Any = al
any_factors: Any = Factors
fit: Any = pca.fit
play: Any = sweep.play
windows: Any = grid._windows

PROMPTS = ["fast piano", "slow dark guitar music"]
CODES = torch.randint(0, 32, (2, 4, 6), generator=torch.Generator().manual_seed(0))
WHOLE: list[Callable[[int], Any]] = [np.int64, np.int32, np.uint8, torch.tensor, np.array]
REAL: list[Callable[[float], Any]] = [np.float64, np.float32, torch.tensor, np.array]
MASKED = np.ma.masked_array([0, 1], mask=[True, False])


@pytest.fixture
def opened(lens: Any) -> Any:
    """The lens typed as Any, so that arrays and generators can be passed to it."""
    return lens


@pytest.mark.parametrize("whole", WHOLE)
def test_whole_numbers_of_any_library_make_the_same_clips(opened: Any, whole: Any) -> None:
    plain = opened.generate(PROMPTS, 1, seeds=3, guidance_scale=2, top_k=5, batch_size=1, sites="resid_post", layers=1)
    other = opened.generate(
        PROMPTS, whole(1), seeds=whole(3), guidance_scale=whole(2), top_k=whole(5), batch_size=whole(1),
        sites="resid_post", layers=whole(1),
    )  # fmt: skip
    assert torch.equal(plain.codes, other.codes)
    assert plain.settings == other.settings
    assert plain.seeds == other.seeds
    assert type(other.settings["top_k"]) is int
    assert list(plain.cache) == list(other.cache)


@pytest.mark.parametrize("real", REAL)
def test_real_numbers_of_any_library_make_the_same_clips(opened: Any, real: Any) -> None:
    plain = opened.generate(PROMPTS, 0.5, seeds=[3, 4], guidance_scale=1.5, temperature=0.5)
    for seeds in (np.array([3, 4]), torch.tensor([3, 4]), (seed for seed in (3, 4)), range(3, 5)):
        other = opened.generate(PROMPTS, real(0.5), seeds=seeds, guidance_scale=real(1.5), temperature=real(0.5))
        assert torch.equal(plain.codes, other.codes)
        assert plain.settings == other.settings
    one = opened.generate(PROMPTS[0], 0.5, seeds=np.array([3, 4]), guidance_scale=1.5, temperature=0.5)
    assert torch.equal(one.codes[0], plain.codes[0])


@pytest.mark.parametrize("whole", WHOLE)
def test_readings_take_whole_numbers_of_any_library(opened: Any, whole: Any) -> None:
    plain, cache = opened.run_with_cache(PROMPTS, CODES, stop_at_layer=2)
    found, same = opened.run_with_cache(PROMPTS, CODES, stop_at_layer=whole(2), batch_size=whole(2))
    assert torch.equal(plain, found)
    assert list(cache) == list(same)
    full = opened.run_with_cache(
        PROMPTS, CODES, sites=["resid_pre", "resid_post", "attn_out", "cross_attn_out", "mlp_out"]
    )[1]
    assert torch.equal(full.decompose_resid(2).values, full.decompose_resid(whole(2)).values)
    assert torch.equal(full["resid_post", whole(1)], full["resid_post", 1])
    assert full.at_layers(whole(1)).layers("resid_post") == [1]


@pytest.mark.parametrize("whole", WHOLE)
def test_steering_takes_whole_numbers_of_any_library(whole: Any) -> None:
    meta = Provenance(model="tiny", weights="0", n_layers=3)
    directions: Any = al.Directions(torch.eye(3, 48), (0, 1, 2), torch.ones(3), meta)
    (one,) = al.steer(directions, layer=whole(1))
    assert one.layers == [1]
    (band,) = al.steer(directions, "one-to-band", layer=whole(0), band=(whole(1), whole(2)))
    assert band.layers == [1, 2]
    assert torch.equal(directions.random_like(whole(3)).vectors, directions.random_like(3).vectors)


def once(*values: Any) -> Iterator[Any]:
    yield from values


def test_generators_are_read_once(opened: Any) -> None:
    asked: dict[str, Any] = {"sites": ["resid_post", "attn.z"], "layers": [0, 2], "heads": [1], "batch_size": 1}
    _, plain = opened.run_with_cache(PROMPTS, CODES, **asked)
    _, found = opened.run_with_cache(
        PROMPTS, CODES, sites=once("resid_post", "attn.z"), layers=once(0, 2), heads=once(1), batch_size=1
    )
    assert list(plain) == list(found)
    assert torch.equal(plain["attn.z", 2], found["attn.z", 2])
    vector = torch.randn(48, generator=torch.Generator().manual_seed(1))

    def steered(read: Callable[..., Any]) -> torch.Tensor:
        step = any_al.Add(vector, site=read("resid_post"), layers=read(0, 2), rows=read(1), strength=read(2.0))
        # Two runs, the second in two batches: each of them binds the intervention again.
        opened.run_with_interventions(PROMPTS, CODES, step)
        return opened.run_with_interventions(PROMPTS, CODES, step, batch_size=1)

    assert torch.equal(steered(lambda *values: list(values)), steered(once))
    swept = any_factors(
        strengths=once(-1, 1), layers=once(1), strategies=once("one-to-one"), branches=once("cond"),
        control_strengths=once(1),
    )  # fmt: skip
    assert (swept.strengths, swept.layers, swept.strategies, swept.branches) == (
        (-1, 1),
        [1],
        ("one-to-one",),
        ("cond",),
    )


@pytest.mark.parametrize(
    "refused",
    [
        lambda lens: any_al.Add(torch.ones(48), site=[]),
        lambda lens: lens.run_with_interventions(PROMPTS, CODES, al.Add(torch.ones(48), layers=[])),
        lambda lens: lens.run_with_interventions(PROMPTS, CODES, al.Add(torch.ones(48), rows=[])),
        lambda lens: lens.run_with_cache(PROMPTS, CODES, layers=[]),
        lambda lens: lens.run_with_cache(PROMPTS, CODES, layers=MASKED),
        lambda lens: any_al.Add(torch.ones(48), rows={0, 1}),
        lambda lens: any_al.Add(torch.ones(48), rows=MASKED),
        lambda lens: any_al.Add(torch.ones(48), heads={0: 1}),
        lambda lens: any_al.Add(torch.ones(48), seconds=("0", "1")),
        lambda lens: any_al.Add(torch.ones(48), seconds=(False, True)),
        lambda lens: lens.generate(PROMPTS, 0.2, seeds={3, 4}),
        lambda lens: lens.generate(PROMPTS, 0.2, seeds="34"),
        lambda lens: lens.generate(PROMPTS, 0.2, seeds=[3, 2**32]),
        lambda lens: lens.generate(PROMPTS, 0.2, seeds=np.ma.masked_array([3, 4], mask=[True, False])),
        lambda lens: lens.generate(PROMPTS, "0.2", seeds=3),
        lambda lens: lens.generate(PROMPTS, 0.2, seeds=3).listen(labels="ab"),
        lambda lens: any_factors(strengths="123"),
        lambda lens: any_factors(strengths=["1", "2"]),
        lambda lens: any_factors(strengths=[True]),
        lambda lens: any_factors(strengths=np.ma.masked_array([1.0, 2.0], mask=[True, False])),
        lambda lens: any_factors(layers=[]),
        lambda lens: any_factors(opposed="no"),
        lambda lens: attribution.attribute(lens, PROMPTS, PROMPTS[::-1], CODES, sites=[]),
        lambda lens: fit(np.ma.masked_array(np.random.rand(1, 4, 3), mask=True), list("abab")),
        lambda lens: fit(np.random.rand(1, 4, 3).astype(str), list("abab")),
        lambda lens: of_array(np.ma.masked_array(np.random.rand(1, 4, 3), mask=True)),
    ],
)
def test_what_could_mean_something_else_is_refused(opened: Any, refused: Any) -> None:
    with pytest.raises(AudioLensError):
        refused(opened)


def test_a_sweep_keeps_plain_numbers(opened: Any) -> None:
    asked: dict[str, Any] = {"measures": ["loudness"], "n_jobs": np.int64(0), "batch_size": np.int64(4)}
    found = play(
        opened, [sweep.Condition("baseline")], [(PROMPTS[0], 1)], seconds=np.float32(0.5), top_k=np.int64(5), **asked
    )
    assert {name: type(found.settings[name]) for name in ("seconds", "top_k", "batch_size")} == {
        "seconds": float, "top_k": int, "batch_size": int
    }  # fmt: skip


def test_waveforms_of_any_layout_have_the_same_codes(opened: Any) -> None:
    rate = opened.config.sample_rate
    wave = np.sin(np.linspace(0, 400, rate // 2)).astype(np.float32)
    expected = opened.encode_audio(wave, rate)
    frozen = wave.copy()
    frozen.flags.writeable = False
    layouts = [
        wave.astype(">f4"), wave[::-1].copy()[::-1], np.repeat(wave, 2)[::2], frozen, wave.astype(np.float64),
        wave.astype(np.longdouble), torch.from_numpy(wave), torch.from_numpy(wave).requires_grad_(), wave.tolist(),
    ]  # fmt: skip
    for same in layouts:
        for hertz in (np.int64(rate), np.float32(rate), torch.tensor(rate)):
            assert torch.equal(opened.encode_audio(same, hertz), expected)
    with pytest.raises(InputTypeError, match="mask would be ignored"):
        opened.encode_audio(np.ma.masked_array(wave, mask=wave > 0), rate)
    with pytest.raises(InputError, match="positive whole number"):
        opened.encode_audio(wave, rate + 0.5)
    vector = np.arange(48.0)[::-1]
    for strange in (vector, vector.astype(">f8"), vector.astype(np.float16)):
        made: Any = al.Add(strange)
        assert torch.equal(made.vector, torch.arange(47.0, -1.0, -1.0))


def test_inference_mode_changes_no_number(opened: Any) -> None:
    def read() -> list[torch.Tensor]:
        out = opened.generate(PROMPTS, 0.3, seeds=1, guidance_scale=3, sites="resid_post", reduce="mean")
        logits, cache = opened.run_with_cache(PROMPTS, CODES, sites=["resid_pre", "resid_post"])
        step = al.Add(torch.ones(48), layers=1)
        return [
            out.codes, out.cache.stack("resid_post"), logits, cache.logit_lens(opened),
            cache.project(torch.ones(48)), opened.run_with_interventions(PROMPTS, CODES, step),
            opened.encode_audio(out.audio, out.sample_rate),
        ]  # fmt: skip

    plain = read()
    with torch.inference_mode():
        inside = read()
        with pytest.raises(InputError, match=r"torch\.inference_mode\(\) is active, but attribution needs gradients"):
            attribution.attribute(opened, PROMPTS[:1], PROMPTS[1:], CODES[:1])
    for one, other in zip(plain, inside, strict=True):
        assert torch.equal(one, other)


def test_half_precision_recordings_reach_figures_and_frames(opened: Any) -> None:
    prompts = [f"{word} {noun}" for word in ("fast", "slow") for noun in ("piano", "guitar", "drums")]
    codes = torch.randint(0, 32, (6, 4, 6), generator=torch.Generator().manual_seed(0))
    cache = opened.run_with_cache(prompts, codes, dtype="bfloat16", reduce="mean")[1]
    labels = ["fast"] * 3 + ["slow"] * 3
    for values in (cache, cache.stack("resid_post")):
        found: Any = fit(values, labels, layers=np.array([0, 1, 2]))
        assert found.to_frame()["pc1"].notna().all()
        found.plot()
    read = of_array(cache.stack("resid_post"))
    np.testing.assert_array_equal(read.values, cache.stack("resid_post").double().numpy())
    assert fit(cache, labels, layers=(layer for layer in (2, 0))).layers == (0, 2)
    with pytest.raises(InputError, match="the cache contains layers 0, 1, 2"):
        fit(cache, labels, layers=[0, 99])


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ("nonsense", "device_map='nonsense': expected auto, balanced"),
        ({"decoder": "nowhere"}, "expected auto, balanced"),
        ({"": "disk"}, "parts offloaded to disk"),
        (3.5, "expected auto, balanced"),
        (True, "expected auto, balanced"),
    ],
)
def test_a_device_map_that_names_no_device_is_refused(device_map: Any, message: str) -> None:
    with pytest.raises(AudioLensError, match=message):
        al.AudioLens.from_pretrained("etude", device_map=device_map)


def test_what_placing_fails_on_is_not_told_as_damaged_files(monkeypatch: pytest.MonkeyPatch, checkpoint: Any) -> None:
    if importlib.util.find_spec("accelerate") is None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(InputError, match="could not be placed by device_map"):
        load(checkpoint, device_map={"nowhere": "cpu"})


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64", torch.int8])
def test_a_dtype_that_no_model_computes_in_is_refused(dtype: Any) -> None:
    with pytest.raises(InputError, match="expected a floating-point dtype"):
        al.AudioLens.from_pretrained("etude", dtype=dtype)


class PackedLinear(nn.Module):
    """A linear layer that stores integer weights and computes with their float values, as in bitsandbytes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 127
        packed = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(given, self.weight.to(given.dtype) * self.scale)


def test_quantised_models_are_refused_in_one_line(opened: Any) -> None:
    model = copy.deepcopy(opened.model)
    for block in model.decoder.model.decoder.layers:
        block.fc1 = PackedLinear(block.fc1)
    with pytest.raises(UnsupportedModelError, match=r"a quantised MusicGen \(decoder.*fc1\.weight\) is not supported"):
        al.AudioLens(model, opened.tokenizer)
    model = copy.deepcopy(opened.model)
    model.is_quantized = True
    with pytest.raises(UnsupportedModelError, match="quantised"):
        al.AudioLens(model, opened.tokenizer)


def test_windows_are_a_number_of_any_library_or_a_list_read_once(opened: Any) -> None:
    timeline = opened.timeline(12)
    assert windows(3, timeline, 15) == windows(np.int64(3), timeline, 15)
    spans = [(0.0, 0.2), (0.2, 0.4)]
    assert windows(spans, timeline, 15) == windows(once(*spans), timeline, 15)
    for refused in (0, True, "3", [], 2.5):
        with pytest.raises(AudioLensError):
            windows(refused, timeline, 15)
