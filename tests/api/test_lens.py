"""The lens changes nothing unless asked, reads what transformers computes, and rejects bad input at once."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from everywhere import least_lead

import audiolens as al
from audiolens import errors
from audiolens.model.timeline import delay

PROMPTS = ["fast piano", "slow dark guitar music", "calm"]
SECONDS = 0.6
STEPS = 15 + 3


def test_rows_are_left_alone_in_half_precision_too(checkpoint):
    lens = al.AudioLens.from_pretrained(checkpoint, dtype="bfloat16")
    add = al.Add(torch.randn(48), layers=1, rows=[0])
    steered = lens.generate(PROMPTS, SECONDS, seeds=1, interventions=[add, al.Clamp(torch.ones(48), 0.5, rows=[1])])
    assert torch.equal(steered.codes[2], lens.generate(PROMPTS, SECONDS, seeds=1).codes[2])


def test_residual_sites_are_transformers_hidden_states(lens):
    codes = torch.randint(0, 32, (3, 4, 15))
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=["resid_pre", "resid_post", "ln_final.normalized"])
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    text = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = lens.model(
            **text, decoder_input_ids=columns.flatten(0, 1), output_hidden_states=True
        ).decoder_hidden_states
    for layer in range(3):
        assert torch.equal(cache["resid_pre", layer], hidden[layer])
    for layer in range(2):
        assert torch.equal(cache["resid_post", layer], hidden[layer + 1])
    # transformers gives its last one after the final norm.
    assert torch.equal(cache["ln_final.hook_normalized"], hidden[3])


def test_the_residual_stream_is_the_sum_of_its_parts(lens):
    codes = torch.randint(0, 32, (3, 4, 15))
    sites = ["resid_pre", "attn_out", "resid_mid", "cross_attn_out", "resid_cross", "mlp_out", "resid_post"]
    _, cache = lens.run_with_cache(PROMPTS, codes, sites=sites, guidance_scale=2.0, branch="both")
    for layer in range(3):
        total = cache["resid_pre", layer]
        for part, site in [("attn_out", "resid_mid"), ("cross_attn_out", "resid_cross"), ("mlp_out", "resid_post")]:
            total = total + cache[part, layer]
            assert torch.equal(total, cache[site, layer])


@pytest.mark.parametrize("branch", ["cond", "null"])
def test_what_is_read_while_generating_is_what_is_read_from_the_codes(lens, branch):
    sites = ["resid_post", "attn.z", "mlp.pre"]
    out = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3], sites=sites, branch=branch)
    _, cache = lens.run_with_cache(PROMPTS, out.codes, sites=sites, branch=branch, guidance_scale=3.0)
    assert list(out.cache) == list(cache)
    for name in cache:
        assert out.cache[name].shape == cache[name].shape
        torch.testing.assert_close(out.cache[name], cache[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduce", ["mean", "last", "max"])
def test_reductions_at_capture_equal_those_of_the_whole_recording(lens, reduce):
    whole = lens.generate(PROMPTS, SECONDS, seeds=5, sites="resid_post", decode=False).cache
    less = lens.generate(PROMPTS, SECONDS, seeds=5, sites="resid_post", reduce=reduce, decode=False, batch_size=2).cache
    for layer in range(3):
        steps = whole["resid_post", layer][:, :15]
        expected = {"mean": steps.mean(1), "last": steps[:, -1], "max": steps.amax(1)}[reduce]
        torch.testing.assert_close(less["resid_post", layer], expected, rtol=1e-4, atol=1e-5)
    if reduce == "mean":
        torch.testing.assert_close(
            less.stack_norms("resid_post"), whole.stack("resid_post")[:, :, :15].norm(dim=-1).mean(-1)
        )


def test_key_value_cache_on_equals_off(lens, vector):
    add = al.Add(vector, strength=2.0, seconds=(0.2, 0.4))
    sites = ["resid_post", "logits"]
    runs = [
        lens.generate(PROMPTS, SECONDS, temperature=0, interventions=add, sites=sites, branch="both", use_cache=flag)
        for flag in (True, False)
    ]
    assert least_lead(runs[0], lens.config.delays) > 1e-4
    assert torch.equal(runs[0].codes, runs[1].codes)
    torch.testing.assert_close(
        runs[0].cache.stack("resid_post"), runs[1].cache.stack("resid_post"), rtol=1e-4, atol=1e-5
    )


def test_seeds_leave_the_global_random_state_alone(lens):
    before = torch.get_rng_state(), random.getstate()
    lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3])
    lens.run_with_cache(PROMPTS)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_a_processor_and_a_second_lens_on_one_model_will_do(checkpoint, lens):
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    second = al.AudioLens(lens.model, processor)
    assert torch.equal(
        second.generate(PROMPTS, SECONDS, seeds=1, sites="resid_mid").cache.stack("resid_mid"),
        lens.generate(PROMPTS, SECONDS, seeds=1, sites="resid_mid").cache.stack("resid_mid"),
    )


def test_a_model_of_another_kind_or_in_training_is_refused(lens):
    with pytest.raises(errors.UnsupportedModelError, match="T5EncoderModel"):
        al.AudioLens(lens.model.text_encoder, lens.tokenizer)
    lens.model.train()
    try:
        with pytest.raises(errors.InputError, match="training mode"):
            lens.generate("calm", SECONDS)
    finally:
        lens.model.eval()


def test_a_run_inside_a_run_is_refused(lens):
    with pytest.raises(errors.BusyError):
        lens.generate(PROMPTS, SECONDS, interventions=al.Apply(lambda value: lens.generate("calm", 0.2).codes))


def test_a_run_inside_another_lens_run_of_the_same_model_is_refused(lens):
    second = al.AudioLens(lens.model, lens.tokenizer)
    with pytest.raises(errors.BusyError):
        lens.generate(PROMPTS, SECONDS, interventions=al.Apply(lambda value: second.generate("calm", 0.2).codes))
    assert len(second.generate("calm", 0.2)) == 1


def test_no_prompt_is_transformers_unconditional_input(lens):
    inputs = lens.model.get_unconditional_inputs(2)
    torch.manual_seed(1)
    expected = lens.model.generate(**inputs, max_new_tokens=STEPS, do_sample=True, top_k=20)
    torch.manual_seed(1)
    out = lens.generate([None, None], SECONDS, guidance_scale=1.0, top_k=20)
    assert torch.equal(out.audio, expected)
    mixed = lens.generate(["calm", None], SECONDS, seeds=[1, 2], exact=True)
    alone = lens.generate("calm", SECONDS, seeds=[1], exact=True)
    assert torch.equal(mixed.codes[:1], alone.codes)


def test_codes_and_sound_go_both_ways(lens, stereo_lens):
    for one in (lens, stereo_lens):
        wave = torch.randn(2, one.config.channels, 6400) * 0.1
        codes = one.encode_audio(wave, 16000)
        assert codes.shape == (2, one.config.n_codebooks, 10)
        assert one.decode_codes(codes).shape == (2, one.config.channels, 6400)
    mono = lens.encode_audio(torch.randn(11025), 22050)
    assert mono.shape == (1, 4, 13)


def test_a_generation_is_saved_whole_and_never_over_something(lens, tmp_path: Path):
    import json

    import soundfile

    out = lens.generate(PROMPTS, SECONDS, seeds=[1, 2, 3])
    folder = out.save(tmp_path / "clips")
    facts = json.loads((folder / "generation.json").read_text())
    assert [row["seed"] for row in facts["rows"]] == [1, 2, 3]
    wave, rate = soundfile.read(folder / facts["rows"][0]["file"])
    assert rate == 16000
    assert len(wave) == 9600
    with pytest.raises(errors.InputError, match="not an empty folder"):
        out.save(folder)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert {file.stat().st_mode for file in folder.iterdir()} == {(tmp_path / "plain" / "file").stat().st_mode}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": [""]}, "empty"),
        ({"prompts": ["  "]}, "empty"),
        ({"prompts": [3]}, "expected text"),
        ({"prompts": "fast " * 60}, "the text encoder reads at most 40"),
        ({"seconds": 0}, "makes clips of"),
        ({"seconds": -1.0}, "makes clips of"),
        ({"seconds": float("nan")}, "makes clips of"),
        ({"seconds": 100.0}, "makes clips of"),
        ({"seeds": [1, 2]}, "2 seeds for 1 rows"),
        ({"seeds": [-1]}, "0 <= seed"),
        ({"guidance_scale": 0.5}, "at least 1"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"exact": True}, "needs seeds"),
        ({"sites": "resid_pots"}, "Did you mean 'resid_post'"),
        ({"sites": "resid_post", "layers": [9]}, "layers 0 to 2"),
        ({"sites": "resid_post", "branch": "nul"}, "branch"),
        ({"sites": "resid_post", "branch": "null", "guidance_scale": 1.0}, "needs guidance"),
        ({"sites": "resid_post", "reduce": "median"}, "reduce"),
        ({"sites": "resid_post", "span": (0.0, 9.0)}, "after the clip"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(lens, monkeypatch, arguments, message):
    monkeypatch.setattr("audiolens.tracing.model_calls.generate", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(errors.AudioLensError, match=message) as caught:
        lens.generate(**{"prompts": ["calm"], "seconds": SECONDS, **arguments})
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.full((1, 4, 5), 32), "0 to 31"),
        (torch.zeros(1, 3, 5, dtype=torch.long), "4 codebooks"),
        (torch.zeros(2, 4, 5, dtype=torch.long), "2 rows"),
    ],
)
def test_wrong_codes_are_refused(lens, codes, message):
    with pytest.raises(errors.AudioLensError, match=message):
        lens.run_with_cache(["calm"], codes)


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (torch.zeros(0), 16000, "empty"),
        (torch.full((100,), float("nan")), 16000, "NaN"),
        (torch.zeros(3, 100), 16000, "3 channels"),
        (torch.zeros(100), 0, "sample_rate"),
        (torch.zeros(100, dtype=torch.int16), 16000, "floating"),
    ],
)
def test_wrong_waveforms_are_refused(lens, wave, rate, message):
    with pytest.raises(errors.AudioLensError, match=message):
        lens.encode_audio(wave, rate)


def test_names_that_are_no_model_say_what_is_near(tmp_path: Path, checkpoint: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.ModelNotFoundError, match="'etude'"):
        al.AudioLens.from_pretrained("etud")
    with pytest.raises(errors.ModelFilesError, match=r"config\.json"):
        al.AudioLens.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(errors.ModelFilesError, match="no weights"):
        al.AudioLens.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(errors.ModelFilesError, match=r"a pickle \(pytorch_model\.bin\).*safetensors"):
        al.AudioLens.from_pretrained(tmp_path)
    whole = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(errors.ModelFilesError, match="could not be loaded"):
        al.AudioLens.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.ModelFilesError, match="half-written"):
        al.AudioLens.from_pretrained(tmp_path)


def test_the_lens_describes_its_model(lens, stereo_lens):
    config = lens.config
    assert (config.n_layers, config.n_heads, config.d_model, config.n_codebooks) == (3, 4, 48, 4)
    assert (config.frame_rate, config.sample_rate, config.channels) == (25.0, 16000, 1)
    assert stereo_lens.config.delays == (0, 0, 1, 1, 2, 2, 3, 3)
    assert lens.sites()["blocks.2.attn.hook_z"] == "row step head=4 d_head=12"
    assert lens.text_tokens(["fast piano", None]) == [["fast", "piano", "</s>"], []]


def test_the_name_of_a_lens_is_text(lens):
    before = lens.name
    for name in (10**5000, b"mono", ["mono"]):
        with pytest.raises(errors.InputTypeError, match="name=.*: expected text"):
            al.AudioLens(lens.model, lens.tokenizer, name=name)
        with pytest.raises(errors.InputTypeError, match="name=.*: expected text"):
            lens.name = name
    assert lens.name == before


def test_importing_the_package_loads_nothing_heavy():
    # Only the standard library may be loaded: any other module comes from a package.
    code = (
        "import sys; before = set(sys.modules); import audiolens;"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names;"
        "assert loaded == {'audiolens'}, loaded; assert 'AudioLens' in dir(audiolens)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
