"""A step of the fast engine does not wait for the device, and errors, recordings and codes are as if it did."""

import gc
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from waits import counted

import audiolens as al
from audiolens.errors import AudioLensError
from audiolens.tracing import fast_clips, recording, static_step
from audiolens.tracing.overflow import Watch
from audiolens.tracing.recording import Recorder

PROMPTS = ["fast piano", "slow music", "a song", "dark jazz", "bright guitar"]
"""Of one length, so that they are one batch in every family."""
SECONDS = 0.6
STEPS = 15 + 3
HUGE = torch.eye(48)[7] * 3e38
"""Finite in float32; twice it is not."""


def generated(lens: Any, **kwargs: Any) -> Any:
    given = {"prompts": PROMPTS, "seconds": SECONDS, "seeds": list(range(5)), "decode": False, "engine": "fast"}
    return lens.generate(**{**given, **kwargs})


def steered(lens: Any) -> list[Any]:
    """The operators of audiolens, of which each does something else in the steps of its span."""
    vector = torch.linspace(-1, 1, lens.config.d_model)
    return [
        al.Add(vector, rows=[0, 2], strength=[2.0, -1.0], schedule=lambda t: 1 + t),
        al.Ablate(vector, layers=[1], branch="cond", seconds=(0.1, 0.4)),
        al.Clamp(vector, 1.5, site="mlp_out", layers=[0], rows=[1, 3]),
        al.Scale(0.5, site="attn.z", layers=[2], heads=[1], preserve_norm=True),
        al.Replace(vector, site="attn_out", layers=[1], rows=[4], strength=0.5),
        al.Scale(0.9, site="attn.pattern", layers=[0]),
        al.Scale(1.1, site="attn.result", layers=[1]),
    ]


RUNS = {
    "plain": lambda lens: {},
    "steered": lambda lens: {"interventions": steered(lens)},
    "mean": lambda lens: {"sites": ["resid_post", "attn.pattern"], "reduce": "mean", "branch": "both"},
    "whole": lambda lens: {"sites": ["resid_post", "attn.z", "attn.pattern", "attn.result"], "heads": [2, 0]},
}


@pytest.fixture(scope="module")
def compared(lens: Any, stereo_melody_lens: Any) -> None:
    """The engines are compared once per model, with clips of their own."""
    for one in (lens, stereo_melody_lens):
        generated(one)


@pytest.fixture
def waits(compared: None, monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:  # noqa: ARG001
    """What makes the host wait in each step."""
    step, found = fast_clips._Clips._step, list[Counter[str]]()

    def watched(self: Any, *given: Any) -> None:
        with counted(Counter()) as inside:
            step(self, *given)
        found.append(inside)

    monkeypatch.setattr(fast_clips._Clips, "_step", watched)
    return found


@pytest.mark.parametrize("run", RUNS)
def test_no_step_waits(lens: Any, waits: list[Counter[str]], run: str) -> None:
    generated(lens, **RUNS[run](lens))
    assert waits[1:] == [Counter()] * (STEPS - 1)
    assert waits[0] in (Counter(), Counter(lift_fresh=1 if run == "whole" else 0))  # the index of the heads


def test_a_step_of_another_family_does_not_wait(stereo_melody_lens: Any, waits: list[Counter[str]]) -> None:
    vector = torch.ones(stereo_melody_lens.config.d_model)
    start = torch.zeros(5, stereo_melody_lens.config.n_codebooks, 3, dtype=torch.long)
    generated(stereo_melody_lens, interventions=al.Add(vector, prefix=True), audio_prompt=start)
    assert waits == [Counter()] * (STEPS - 3)


def test_a_step_with_a_function_of_the_user_reads_once(lens: Any, waits: list[Counter[str]]) -> None:
    class Halved(al.Intervention):
        def change(self, value: Tensor, amount: Tensor, parts: dict[str, Tensor]) -> Tensor:  # noqa: ARG002
            return value * 0.5

    for edit in (al.Apply(lambda value: value * 0.5, layers=[1]), Halved(layers=[1])):
        waits.clear()
        generated(lens, interventions=edit)
        assert [step["tolist"] for step in waits] == [1] * STEPS
        assert all(step["nonzero"] == step["lift_fresh"] == 0 for step in waits)


OVERFLOWS = {
    "stream": lambda at: al.Add(HUGE, layers=[1], strength=2.0, rows=[3, 2], seconds=(at, 0.6), branch="null"),
    # The logits do not reveal this, because the values are replaced above.
    "hidden": lambda at: [
        al.Add(HUGE, layers=[0], strength=2.0, rows=[1], seconds=(at, at + 0.04)),
        al.Replace(torch.ones(48), layers=[2]),
    ],
    "head": lambda at: [al.Scale(1e38, site="attn.z", layers=[1], rows=[4], heads=[1], seconds=(at, 0.6))] * 2,
}


@pytest.mark.parametrize(
    ("edits", "step", "unread"),
    [("stream", 0, 4), ("stream", 3, 1), ("hidden", 3, 4), ("hidden", 4, 4), ("head", 9, 4), ("head", 9, 100)],
)
def test_an_overflow_is_named_as_if_every_step_was_read(
    lens: Any, monkeypatch: pytest.MonkeyPatch, edits: str, step: int, unread: int
) -> None:
    monkeypatch.setattr(fast_clips, "UNREAD", unread)
    messages = []
    for engine in ("exact", "fast"):
        with pytest.raises(AudioLensError, match=f"step {step} ") as caught:
            generated(lens, interventions=OVERFLOWS[edits](step / 25), engine=engine)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_an_overflow_of_the_text_is_named(lens: Any) -> None:
    messages = []
    for engine in ("exact", "fast"):
        with pytest.raises(AudioLensError, match="row 2, step 0 .*hook_text_states") as caught:
            generated(lens, interventions=[al.Scale(1e38, site="text_states", rows=[2])] * 2, engine=engine)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_repeated_step_changes_nothing(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"interventions": steered(lens), "sites": "resid_post", "reduce": "mean"}
    plain = generated(lens, **asked)
    monkeypatch.setattr(fast_clips, "UNREAD", 4)
    monkeypatch.setattr(Watch, "suspects", lambda self: [step for step, _ in self._noted])
    repeated = generated(lens, **asked)
    assert torch.equal(repeated.codes, plain.codes)
    assert all(torch.equal(repeated.cache[site], plain.cache[site]) for site in plain.cache)


@pytest.mark.parametrize(("staged", "use_cache"), [(1, True), (20_000, False)])
def test_recordings_that_wait_to_be_copied_are_the_same(
    lens: Any, monkeypatch: pytest.MonkeyPatch, staged: int, use_cache: bool
) -> None:
    prompts = ["calm", "a song with loud drums", "dark", None, "fast jazz"]
    asked = {"prompts": prompts, "batch_size": 2, "engine": "exact", "use_cache": use_cache, "branch": "both",
             "sites": ["resid_post", "attn.pattern", "cross_attn.k"], "cache_dtype": "float64"}  # fmt: skip
    plain = generated(lens, **asked)
    monkeypatch.setattr(recording, "STAGED", staged)
    monkeypatch.setattr(Recorder, "_stages", lambda *_: True)
    waiting = generated(lens, **asked)
    assert all(torch.equal(waiting.cache[site], plain.cache[site]) for site in plain.cache)


def steady(lens: Any) -> list[Any]:
    """Edits whose steps are repeated as they are."""
    vector = torch.linspace(-1, 1, lens.config.d_model)
    return [
        al.Add(vector, rows=[0, 2], strength=[2.0, -1.0]),
        al.Clamp(vector, 1.5, site="mlp_out", layers=[0], branch="cond", seconds=(0.2, 0.4)),
        al.Scale(0.5, site="attn.z", layers=[2], heads=[1]),
    ]


@pytest.mark.parametrize("name", ["lens", "stereo_melody_lens"])
@pytest.mark.parametrize("edited", [False, True])
def test_static_steps_give_the_same_codes(
    request: Any, monkeypatch: pytest.MonkeyPatch, waits: list[Counter[str]], name: str, edited: bool
) -> None:
    lens = request.getfixturevalue(name)
    start = torch.ones(5, lens.config.n_codebooks, 2, dtype=torch.long)
    asked = {"interventions": steady(lens) if edited else (), "audio_prompt": start}
    plain = generated(lens, **asked)
    called, compute = [0], fast_clips._Clips._static_pass

    def counting(self: Any, *given: Any) -> Tensor:
        called[0] += 1
        return compute(self, *given)

    monkeypatch.setattr(static_step, "DEVICES", ("cpu",))
    monkeypatch.setattr(fast_clips._Clips, "_static_pass", counting)
    waits.clear()
    assert torch.equal(generated(lens, **asked).codes, plain.codes)
    assert called[0] == STEPS - 3
    assert waits == [Counter()] * (STEPS - 2)


def test_static_steps_find_an_overflow(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_step, "DEVICES", ("cpu",))
    edits = [al.Scale(1e38, site="attn.z", layers=[1], rows=[4], seconds=(0.2, 0.6))] * 2
    with pytest.raises(AudioLensError, match="row 4, step 5 .*blocks.1.attn.hook_z"):
        generated(lens, interventions=edits)


def test_a_static_step_has_the_shapes_and_the_memory_of_the_one_before(
    lens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static_step, "DEVICES", ("cpu",))
    compute, calls, seen = fast_clips._Clips._static_pass, [0], []

    def measured(self: Any, column: Tensor, position: Tensor) -> Tensor:
        calls[0] += 1
        if calls[0] not in (3, 15):
            return compute(self, column, position)
        gc.collect()
        alive = sum(type(one) is Tensor for one in gc.get_objects())
        with Shapes() as shapes:
            scores = compute(self, column, position)
        seen.append((shapes.found, column.data_ptr(), position.data_ptr(), alive))
        return scores

    monkeypatch.setattr(fast_clips._Clips, "_static_pass", measured)
    generated(lens, interventions=al.Add(torch.ones(48), layers=[1]))
    (*early, before), (*late, after) = seen
    assert early == late
    assert len(early[0]) > 50
    assert after - before <= 12  # one number per step is kept until it is read


class Shapes(TorchDispatchMode):
    """The operations that run, and the shapes of their results, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG002
        made = func(*args, **(kwargs or {}))
        self.found.append((str(func), getattr(made, "shape", None)))
        return made


def test_steps_that_differ_are_not_static(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_step, "DEVICES", ("cpu",))
    monkeypatch.setattr(fast_clips._Clips, "_static_pass", lambda *_: pytest.fail("a static step"))
    vector = torch.ones(48)
    for asked in (
        {"sites": "resid_post"},
        {"interventions": al.Apply(lambda value: value, layers=[1])},
        {"interventions": al.Add(vector, schedule=lambda t: t)},
        {"interventions": al.Scale(1.5, site="attn.pattern")},
        {"interventions": al.Replace(torch.ones(1, STEPS, 48), rows=[1], layers=[0])},
    ):
        generated(lens, **asked)
    handle = lens.model.decoder.lm_heads[0].register_forward_hook(lambda *_: None)
    try:
        generated(lens)
    finally:
        handle.remove()
