"""Every public function rejects unusable input in one clear line, before any part of the model runs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import audiolens as al
from audiolens.errors import AudioLensError, InputTypeError
from audiolens.model import loading
from audiolens.sound.codec import checked_codes

CODES = torch.zeros(2, 4, 15, dtype=torch.long)
VECTOR = torch.ones(48)
PROMPTS = ["fast piano", "calm"]
SECONDS = 0.6


@pytest.fixture
def still(lens: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A lens whose model parts fail the test if they run."""

    def ran(*_: Any, **__: Any) -> None:
        pytest.fail("the model ran")

    parts = [lens.model.text_encoder, lens.model.decoder, lens.model.audio_encoder]
    handles = [part.register_forward_pre_hook(ran) for part in parts]
    monkeypatch.setattr(lens.model.audio_encoder, "encode", ran)
    yield lens
    for handle in handles:
        handle.remove()


EVERYWHERE: list[tuple[dict[str, Any], str]] = [
    ({"prompts": []}, "no prompt given"),
    ({"prompts": ["calm", ""]}, "prompt 1 is empty"),
    ({"prompts": ["calm", "\t\n"]}, "prompt 1 is empty"),
    ({"prompts": ["calm", 3]}, "prompt 1 is int: expected text"),
    ({"prompts": 3}, "prompts=3: expected text"),
    ({"prompts": [b"calm", "calm"]}, "prompt 0 is bytes"),
    ({"prompts": ["calm", "calm " * 60]}, "prompt 1 has 61 tokens, but the text encoder reads at most 40: shorten it"),
    ({"guidance_scale": "3"}, "guidance_scale='3': expected a number"),
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
]
READING: list[tuple[dict[str, Any], str]] = [
    ({"sites": 3}, "sites=3: expected a name"),
    ({"sites": [3]}, "site 3: expected a name"),
    ({"sites": "resid_pots"}, "unknown site 'resid_pots'. Did you mean 'resid_post'.* This model has: resid_pre, "),
    ({"sites": "blocks.1.atn.hook_z"}, "unknown site 'atn.hook_z'. Did you mean 'attn.z'"),
    ({"sites": "blocks.3.hook_resid_post"}, "layer 3 does not exist: this model has layers 0 to 2"),
    ({"layers": [9]}, "layer 9 does not exist: this model has layers 0 to 2"),
    ({"layers": -4}, "layer -4 does not exist"),
    ({"layers": [1.5]}, "layers=.*expected a layer"),
    ({"layers": "a"}, "layers='a': expected a layer"),
    ({"layers": True}, "layers=True: expected a layer"),
    ({"layers": torch.tensor([False, True, True])}, "layers=Tensor of torch.bool.*expected a layer"),
    ({"layers": []}, "no layer given"),
    ({"branch": "nul"}, "branch='nul'"),
    ({"reduce": "median"}, "reduce='median'"),
    ({"prefix": "no"}, "prefix='no': expected True or False"),
    ({"sites": "attn.z", "heads": [4]}, "heads 0 to 3"),
    ({"sites": "attn.z", "heads": 3}, "heads=3: expected a list"),
    ({"sites": "attn.z", "heads": [0.7]}, r"heads=\[0.7\]: expected a list"),
    ({"sites": "attn.z", "heads": "01"}, "heads='01': expected a list"),
    ({"sites": "attn.z", "heads": [True, False]}, r"heads=\[True, False\]: expected a list"),
    ({"batch_size": 1.5}, "batch_size=1.5"),
]
EDITING: list[tuple[Callable[[], Any], str]] = [
    (lambda: 3, "int is not an intervention"),
    (lambda: [VECTOR], "Tensor is not an intervention"),
    (lambda: al.Add(torch.ones(7)), r"blocks\.0\.hook_resid_post: vector has shape \(7,\), expected .*d_model=48"),
    (lambda: al.Add(torch.ones(3, 48)), "3 rows in vector, but the run changes 2"),
    (lambda: al.Add(VECTOR, strength=[1.0, 2.0, 3.0]), "3 values of strength for 2 rows"),
    (lambda: al.Add(VECTOR, strength=[1.0, 2.0], rows=[0]), "2 values of strength for 1 rows"),
    (lambda: al.Clamp(VECTOR, [1.0, 2.0, 3.0]), "3 values of value for 2 rows"),
    (lambda: al.Add(VECTOR, rows=[2]), r"rows=\[2\]: expected different rows between 0 and 1"),
    (lambda: al.Add(VECTOR, rows=1), "rows=1: expected a list"),
    (lambda: al.Add(VECTOR, rows=[True, False]), r"rows=\[True, False\]: expected a list .* mask.nonzero"),
    (lambda: al.Add(VECTOR, rows=torch.tensor([True, False])), r"rows=\[True, False\]: expected a list"),
    (lambda: al.Add(VECTOR, rows=[torch.tensor(True)]), "rows=.*expected a list"),
    (lambda: al.Add(VECTOR, rows=np.array([True, False])), "rows=.*expected a list"),
    (lambda: al.Add(VECTOR, rows=[0.5]), r"rows=\[0.5\]: expected a list"),
    (lambda: al.Add(VECTOR, rows="01"), "rows='01': expected a list"),
    (lambda: al.Add(VECTOR, rows=torch.tensor([[True], [False]]).nonzero()), "rows=.*expected a list"),
    (lambda: al.Add(VECTOR, layers=[3]), "layer 3 does not exist"),
    (lambda: al.Add(VECTOR, site="resid_pst"), "Did you mean 'resid_post'"),
    (lambda: al.Add(VECTOR, site=4), "site=4: expected a name"),
    (lambda: al.Add(VECTOR, seconds=(0.0, 9.0)), "ends after the clip, which lasts 0.6 s"),
    (lambda: al.Add(VECTOR, seconds=(0.52, 0.53)), "selects no step"),
    (lambda: al.Add(VECTOR, schedule=[1.0, 2.0]), "schedule has shape .2,., expected one"),
    (
        lambda: al.Add(VECTOR, schedule=lambda seconds: float("inf")),
        "has factors that are NaN",
    ),
    (lambda: al.Add(VECTOR, schedule=lambda seconds: "up"), "the schedule does not return a number"),
    (lambda: al.Replace(torch.zeros(2, 7, 48)), "7 steps in .*, but the span has 18"),
    (lambda: al.Replace(torch.zeros(2, 4, 48), seconds=(0.2, 0.4)), "4 steps in .*, but the span has 5"),
    (lambda: al.Add(VECTOR, prefix=True), "reads its text through cross-attention"),
    # Values that are never valid are refused on construction.
    (lambda: al.Add(VECTOR * torch.nan), "vector contains NaN or infinite"),
    (lambda: al.Add(VECTOR, strength=float("inf")), "strength contains NaN or infinite"),
    (lambda: al.Add(VECTOR, preserve_norm="no"), "preserve_norm='no': expected True or False"),
    (lambda: al.Add(VECTOR, prefix=1), "prefix=1: expected True or False"),
    (lambda: al.Add(VECTOR, strength="much"), "strength=str: expected numbers"),
    (lambda: al.Add(VECTOR.to(torch.complex64)), r"vector=Tensor: expected real numbers, got complex"),
    (lambda: al.Add(None), "vector=NoneType: expected numbers"),
    (lambda: al.Add(VECTOR, seconds=("a", "b")), "expected a pair"),
    (lambda: al.Add(VECTOR, seconds=3), "expected a pair"),
]
READ_CODES: list[tuple[dict[str, Any], str]] = [
    ({"codes": CODES + 32}, "codes from 32 to 32: this model's codes range from 0 to 31"),
    ({"codes": CODES - 1}, "codes from -1 to -1"),
    ({"codes": CODES[:, :3]}, "this model has 4 codebooks"),
    ({"codes": CODES.repeat(1, 2, 1)}, "this model has 4 codebooks"),
    ({"codes": CODES[:1]}, "1 rows of codes for 2 prompts"),
    ({"codes": CODES[:0]}, "0 rows|at least one row"),
    ({"codes": CODES[..., :0]}, "at least one row and one frame"),
    ({"codes": CODES.repeat(1, 1, 20)}, "codes of 300 frames: this model reads at most 128 steps"),
]
KEEPING: list[tuple[dict[str, Any], str]] = [
    ({"device": "banana"}, "device='banana' is not available"),
    ({"device": "meta"}, "device='meta' stores no values"),
    ({"device": 1.5}, "device='1.5' is not available"),
    ({"dtype": "banana"}, "dtype='banana': expected a floating-point dtype"),
    ({"dtype": torch.int8}, "dtype=torch.int8: expected a floating-point dtype"),
]
READERS: list[tuple[dict[str, Any], str]] = [
    *READ_CODES,
    *KEEPING,
    ({"audio": (torch.zeros(0), 16000)}, "the waveform is empty"),
    ({"audio": (torch.zeros(100) * torch.nan, 16000)}, "NaN or infinite samples"),
    ({"audio": (torch.zeros(100, dtype=torch.int16), 16000)}, "waveform of dtype torch.int16"),
    ({"audio": (torch.zeros(100), -1)}, "sample_rate=-1"),
    ({"audio": (torch.zeros(5, 100), 16000)}, "waveform of 5 channels"),
    ({"audio": (None, 16000)}, "expected an array of samples"),
    ({"audio": torch.zeros(100)}, "audio=Tensor: expected .waveform, sample_rate., or the path"),
    ({"audio": "none.wav"}, "none.wav: no such file"),
    ({"audio": (torch.zeros(100), 16000), "codes": CODES}, "both given"),
    ({"seconds": (0.0, 9.0)}, "ends after the clip"),
    ({"seconds": (0.4, 0.2)}, "expected 0 <= from < to"),
    ({"seconds": ("a", "b")}, "expected a pair"),
]


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (CODES.float(), "expected whole numbers .* found torch.float32"),
        (CODES.to(torch.complex64), "expected whole numbers .* found torch.complex64"),
        (CODES.bool(), "expected whole numbers .* found torch.bool"),
        (CODES[0], r"'row codebook frame', found torch.int64 \(4, 15\)"),
        ([[[1]]], "expected whole numbers .* found list"),
    ],
)
def test_what_are_no_codes_is_said(lens: Any, codes: Any, message: str) -> None:
    # Public functions compare arguments with their annotations first; this tests the inner check directly.
    with pytest.raises(InputTypeError, match=message):
        checked_codes(codes, lens.config)


@pytest.mark.parametrize("frames", [-3, 0, "a", 2.5, True, None])
def test_a_timeline_has_a_whole_number_of_frames(lens: Any, frames: Any) -> None:
    with pytest.raises(AudioLensError, match=f"frames={frames!r}: (a clip|expected a whole)"):
        lens.timeline(frames)


def test_a_progress_bar_is_shown_or_not(still: Any) -> None:
    with pytest.raises(InputTypeError, match="progress='no': expected True or False"):
        still.iter_cache(PROMPTS, CODES, progress="no")


@pytest.mark.parametrize(("arguments", "message"), [*EVERYWHERE, *READING, *READERS])
@pytest.mark.parametrize("entry", ["run_with_cache", "iter_cache"])
def test_readers_refuse(still: Any, entry: str, arguments: dict[str, Any], message: str) -> None:
    given = {"prompts": PROMPTS, **({} if "audio" in arguments else {"codes": CODES}), **arguments}
    with pytest.raises(AudioLensError, match=message) as caught:
        getattr(still, entry)(**given)
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *EVERYWHERE,
        *READING,
        *(({f"cache_{name}": value for name, value in given.items()}, message) for given, message in KEEPING),
        ({"seconds": "0.6"}, "seconds='0.6': expected a number"),
        ({"seconds": 0.04}, "makes clips of 0.12 to 5 seconds"),
        ({"span": (0.0, 9.0)}, "ends after the clip"),
        ({"exact": "yes"}, "exact='yes': expected True or False"),
        ({"decode": 0}, "decode=0: expected True or False"),
        ({"use_cache": "no"}, "use_cache='no': expected True or False"),
        ({"progress": "no"}, "progress='no': expected True or False"),
        ({"temperature": "hot"}, "temperature='hot': expected a number"),
        ({"top_k": 1.5}, "top_k=1.5"),
        ({"seeds": 1.5}, "seeds=1.5: expected a whole number"),
        ({"seeds": [1, "a"]}, "seed 'a': expected a whole number"),
        ({"seeds": [1, 2, 3]}, "3 seeds for 2 rows"),
        ({"audio_prompt": 3}, "audio_prompt=int: expected .waveform, sample_rate., or the path"),
        ({"audio_prompt": torch.zeros(100)}, "a waveform needs its sample rate"),
        ({"audio_prompt": (torch.zeros(100), "fast")}, "sample_rate='fast'"),
        ({"audio_prompt": CODES[:, :3]}, "this model has 4 codebooks"),
        ({"audio_prompt": CODES[:, :, :9].repeat(2, 1, 1)}, "4 rows of codes for 2 prompts"),
        ({"audio_prompt": CODES}, "audio_prompt lasts 0.6 s, but the clip lasts 0.6 s including"),
    ],
)
def test_generate_refuses(still: Any, arguments: dict[str, Any], message: str) -> None:
    given = {"prompts": PROMPTS, "seconds": SECONDS, "sites": "resid_post", **arguments}
    with pytest.raises(AudioLensError, match=message) as caught:
        still.generate(**given)
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(("make", "message"), EDITING)
@pytest.mark.parametrize("entry", ["generate", "run_with_cache", "run_with_interventions", "iter_cache", "stopped"])
def test_edits_are_refused(still: Any, entry: str, make: Callable[[], Any], message: str) -> None:
    given = (PROMPTS, SECONDS if entry == "generate" else CODES)
    options: dict[str, Any] = {}
    if entry == "stopped":
        # An edit above the last block that runs is ignored, but still checked.
        entry, options = "run_with_cache", {"sites": (), "stop_at_layer": 0}
    with pytest.raises(AudioLensError, match=message) as caught:
        getattr(still, entry)(*given, interventions=make(), **options)
    assert isinstance(caught.value, ValueError | TypeError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(pair for pair in EVERYWHERE if pair[0] != {"prompts": []}),
        *READ_CODES,
        ({"fn": "sing"}, "fn='sing'"),
        ({"fn": "generate"}, "makes its own codes"),
        ({"fn": "generate", "codes": None, "seeds": [1]}, "1 seeds for 2 rows"),
        ({"fn": "generate", "codes": None, "seconds": 99}, "makes clips of"),
    ],
)
def test_traces_refuse(still: Any, arguments: dict[str, Any], message: str) -> None:
    given = {"prompts": PROMPTS, "codes": CODES, **arguments}
    with pytest.raises(AudioLensError, match=message), still.trace(given.pop("prompts"), **given):
        still.site("resid_post", 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resid_pots", 1), "Did you mean 'resid_post'"),
        (("resid_post", 9), "layer 9 does not exist"),
        (("resid_post",), "give a layer"),
    ],
)
def test_a_site_of_a_trace_is_refused_by_name(lens: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(AudioLensError, match=message):
        lens.site(*arguments)


@pytest.mark.parametrize("site", ["cross_attn.z", "blocks.0.cross_attn.hook_pattern", "resid_cross", "text_states"])
def test_a_model_without_cross_attention_says_where_its_text_is(melody_lens: Any, site: str) -> None:
    for call in (
        lambda: melody_lens.run_with_cache("calm", sites=site),
        lambda: melody_lens.generate("calm", SECONDS, interventions=al.Scale(0.5, site=site)),
        lambda: melody_lens.site(site, 0),
    ):
        with pytest.raises(AudioLensError, match=r"no cross-attention.*\(prefix=True reads and changes it there\)"):
            call()


def test_devices_and_formats_are_checked_where_a_model_is_opened(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    open_it = al.AudioLens.from_pretrained
    for arguments, message in [
        ({"device": "banana"}, "device='banana' is not available"),
        ({"device": "meta"}, "stores no values"),
        ({"dtype": "int8"}, "expected a floating-point dtype"),
        ({"device": "cpu", "device_map": "auto"}, "both given"),
    ]:
        with pytest.raises(AudioLensError, match=message):
            open_it(lens.name, **arguments)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AudioLensError, match="needs accelerate, which is not installed"):
        open_it(lens.name, device_map="auto")


def test_a_hub_model_is_asked_for_as_told(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Any] = {}
    bare = copy.deepcopy(lens.model)

    def downloaded(name: str, revision: str | None) -> Path:
        told["hub"] = name, revision
        return Path(lens.name)

    def from_pretrained(folder: Any, **given: Any) -> Any:
        told["model"] = given
        return bare, {"missing_keys": set()}

    monkeypatch.setattr(loading, "downloaded", downloaded)
    monkeypatch.setattr(type(lens.model), "from_pretrained", from_pretrained)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    name, revision = "facebook/musicgen-small", "4c8334b02c6ec4e8664a91979669a501ec497792"
    opened = al.AudioLens.from_pretrained(name, dtype="bfloat16", revision=revision, device_map="auto")
    assert opened.name == name
    assert told["hub"] == (name, revision)
    model_told = told["model"]
    assert (model_told["dtype"], model_told["device_map"]) == (torch.bfloat16, "auto")
    # Files are loaded in formats that cannot run code.
    assert (model_told["use_safetensors"], model_told["trust_remote_code"]) == (True, False)
