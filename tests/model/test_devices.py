"""Devices, dtypes and attention are chosen by name, and what a machine lacks is refused with the reason."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import audiolens as al
from audiolens.errors import InputError, TooLittleMemoryError
from audiolens.model import devices
from audiolens.model.loading import moved
from audiolens.model.memory import Need


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch state that it has two GPUs, the first of them with native bfloat16."""
    for name, value in {"is_available": True, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.index != 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: devices.chosen_device("cuda"), r"device='cuda' is not available: torch .* was built without CUDA"),
        (lambda: devices.chosen_device("cuda:1"), "built without CUDA"),
        (lambda: devices.chosen_device("mps"), "'mps' is not available: torch finds no Apple GPU"),
        (lambda: devices.chosen_device("gpu"), "device='gpu' is not available: Expected one of cpu, cuda"),
        (lambda: devices.chosen_device("meta"), "stores no values"),
        (lambda: devices.chosen_dtype("int8", None), "expected a floating-point dtype"),
        (lambda: devices.refuse_attention("flash", None, None), "attention='flash': expected 'sdpa', 'flash_atten"),
        (lambda: devices.refuse_attention("flash_attention_2", None, None), "flash-attn, which is not installed"),
        (lambda: al.AudioLens.from_pretrained("etude", revision="main"), "only models on the hub have revisions"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a GPU")
def test_what_is_not_there_is_refused_with_the_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_beyond_the_last_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="this machine has 2 GPUs: cuda:0, cuda:1"):
        devices.chosen_device("cuda:7")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch finds no GPU on this machine"):
        devices.chosen_device("cuda")


def test_auto_is_the_cpu_in_float32_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, lens: Any) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    opened = al.AudioLens.from_pretrained(lens.name, device="auto", dtype="auto")
    assert (str(opened.device), opened.dtype) == ("cpu", torch.float32)
    assert devices.described(opened.device).startswith("cpu ")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_codec_stays_in_float32_unless_it_is_asked_otherwise(
    checkpoint: Path, codes: torch.Tensor, dtype: str
) -> None:
    wide, narrow = (al.AudioLens.from_pretrained(checkpoint, dtype=one) for one in (None, dtype))
    assert narrow.dtype == getattr(torch, dtype)
    assert narrow.model.text_encoder.dtype == narrow.dtype
    # The weights are those of the file, and were never rounded.
    mine, own = narrow.model.audio_encoder.state_dict(), wide.model.audio_encoder.state_dict()
    assert mine.keys() == own.keys()
    assert all(torch.equal(mine[name], own[name]) and mine[name].dtype == own[name].dtype for name in own)
    sound = wide.decode_codes(codes)
    assert torch.equal(narrow.decode_codes(codes), sound)
    assert torch.equal(narrow.encode_audio(sound, 16_000), wide.encode_audio(sound, 16_000))
    clip = narrow.generate("fast piano", 0.4, seeds=1)
    assert torch.equal(clip.audio, wide.decode_codes(clip.codes))
    asked = al.AudioLens.from_pretrained(checkpoint, dtype=dtype, codec_dtype=dtype)
    for lens in (asked, pickle.loads(pickle.dumps(asked))):
        assert lens.model.audio_encoder.dtype == lens.dtype
        assert not torch.equal(lens.decode_codes(codes).float(), sound)
    assert pickle.loads(pickle.dumps(narrow)).model.audio_encoder.dtype == torch.float32
    # transformers' own class is as it was.
    bare = type(wide.model).from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    assert bare.audio_encoder.dtype == narrow.dtype
    with pytest.raises(InputError, match="dtype='int8': expected a floating-point dtype"):
        al.AudioLens.from_pretrained(checkpoint, codec_dtype="int8")


@pytest.mark.usefixtures("two_gpus")
def test_auto_is_a_gpu_and_bfloat16_where_the_gpu_computes_in_it() -> None:
    first, second = torch.device("cuda"), torch.device("cuda:1")
    assert devices.chosen_device("auto") == first
    assert [devices.chosen_dtype("auto", one) for one in (first, second)] == [torch.bfloat16, torch.float32]
    assert devices.described(second) == "NVIDIA H200"


def test_flash_attention_needs_a_gpu_and_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    cuda, cpu, flash = torch.device("cuda"), torch.device("cpu"), "flash_attention_2"
    with pytest.raises(InputError, match="runs only on a CUDA device, and this is cpu"):
        devices.refuse_attention(flash, cpu, torch.bfloat16)
    with pytest.raises(InputError, match="computes only in bfloat16 or float16"):
        devices.refuse_attention(flash, cuda, torch.float32)
    devices.refuse_attention(flash, cuda, torch.bfloat16)


def test_a_dtype_that_a_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: Any, **__: Any) -> None:
        raise TypeError("BFloat16 is not supported on MPS\nmore")

    monkeypatch.setattr(torch, "ones", lacking)
    with pytest.raises(InputError, match=r"dtype='bfloat16' is not supported on device='cpu' \(BFloat16 is not supp"):
        devices.chosen_dtype("bfloat16", torch.device("cpu"))


def test_attention_is_that_of_the_decoder_and_reaches_other_processes(checkpoint: Path) -> None:
    lens = al.AudioLens.from_pretrained(checkpoint, attention="eager", dtype="bfloat16")
    again = pickle.loads(pickle.dumps(lens))
    for one in (lens, again):
        assert one.model.decoder.config._attn_implementation == "eager"
        assert one.model.text_encoder.config._attn_implementation == "sdpa"
        assert one.dtype == torch.bfloat16


def test_weights_that_do_not_fit_on_a_device_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = torch.nn.Linear(1024, 1024, bias=False)
    monkeypatch.setattr(model, "to", full)
    with pytest.raises(TooLittleMemoryError, match=r"the weights take 4 MiB, more than is free on cpu, which has"):
        moved(model, torch.device("cpu"))


def test_the_memory_of_a_row_is_that_of_its_keys_and_values(lens: Any) -> None:
    cache = lens.model.decoder(
        input_ids=torch.zeros(2 * 4, 9, dtype=torch.long), encoder_hidden_states=torch.zeros(2, 5, 48), use_cache=True
    ).past_key_values
    layers = [layer for part in (cache.self_attention_cache, cache.cross_attention_cache) for layer in part.layers]
    kept = sum(one.numel() * one.element_size() for layer in layers for one in (layer.keys, layer.values))
    need = Need.of(lens.model, lens.config, positions=9, branches=2, tokens=5)
    assert need.kept == kept
    assert need.weights == sum(one.nbytes for one in [*lens.model.parameters(), *lens.model.buffers()])
