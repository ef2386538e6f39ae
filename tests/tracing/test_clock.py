"""The current step is known or the run stops: the clock, recordings, and the self-check of both at load."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import audiolens as al
from audiolens.errors import InputError, UnsupportedModelError
from audiolens.model.timeline import Timeline
from audiolens.tracing import clock, model_calls
from audiolens.tracing.batching import Layout
from audiolens.tracing.recording import Reading, Recorder

FAMILIES = ["lens", "stereo_lens", "melody_lens"]
STEPS = 11


def decoder(cached: int | None, columns: int, name: str = "cache", **more: Any) -> Any:
    """A decoder that is being given so many columns after so many cached positions."""
    past = None if cached is None else SimpleNamespace(get_seq_length=lambda: cached)
    return SimpleNamespace(inputs=((), {"input_ids": torch.zeros(4, columns), name: past, **more}))


def ticked(prefix: int, *forwards: tuple[int | None, int]) -> list[tuple[int, int]]:
    running = clock.Clock(None, prefix)
    found = []
    for cached, columns in forwards:
        running.decoder = decoder(cached, columns)
        found.append(running.tick())
    return found


@pytest.mark.parametrize("name", clock.CACHE_NAMES)
def test_the_clock_reads_both_names_of_the_cache(name: str) -> None:
    assert clock.read(decoder(5, 1, name), 0) == (5, 1)
    assert clock.read(decoder(9, 1, name), 4) == (5, 1)
    assert clock.read(decoder(None, 3, name), 4) == (-4, 7)


@pytest.mark.parametrize("given", [decoder(5, 1, "kept"), decoder(5, 1, past_key_values=None)])
def test_a_cache_under_no_known_name_or_two_stops_the_run(given: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="the step that is running is unknown"):
        clock.read(given, 0)


def test_forwards_follow_one_another() -> None:
    assert ticked(0, (0, 1), (0, 1), (1, 1), (2, 1)) == [(0, 1), (0, 1), (1, 1), (2, 1)]
    assert ticked(4, (0, 1), (5, 1), (6, 1)) == [(-4, 5), (1, 1), (2, 1)]
    # A clip that goes on, and one without a cache, which holds all steps again.
    assert ticked(0, (0, 6), (0, 6), (6, 1)) == [(0, 6), (0, 6), (6, 1)]
    assert ticked(0, (None, 1), (None, 1), (None, 2), (None, 3)) == [(0, 1), (0, 1), (0, 2), (0, 3)]


@pytest.mark.parametrize(
    ("prefix", "forwards"),
    [
        (0, [(0, 1), (0, 1), (0, 1)]),  # a clock that stands still, as where the cache is not found
        (4, [(0, 1), (0, 1), (0, 1)]),
        (0, [(0, 1), (2, 1)]),
        (0, [(0, 1), (1, 1), (1, 1)]),
        (0, [(3, 1)]),
        (0, [(0, 1), (1, 2)]),
    ],
)
def test_a_forward_that_does_not_follow_stops_the_run(prefix: int, forwards: list[tuple[int, int]]) -> None:
    with pytest.raises(UnsupportedModelError, match="does not generate one step after another"):
        ticked(prefix, *forwards)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_release_that_renames_the_cache_is_refused_at_load(request: Any, name: str, monkeypatch: Any) -> None:
    lens = request.getfixturevalue(name)
    monkeypatch.setattr(clock, "CACHE_NAMES", ("kept_by_a_former_release",))
    with pytest.raises(UnsupportedModelError, match="the step that is running is unknown"):
        al.AudioLens(lens.model, lens.tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_clock_that_stands_still_is_refused_at_load(request: Any, name: str, monkeypatch: Any) -> None:
    lens, real = request.getfixturevalue(name), clock.read

    def still(decoder: Any, prefix: int) -> tuple[int, int]:
        _, length = real(decoder, prefix)
        return -prefix, length

    monkeypatch.setattr(clock, "read", still)
    monkeypatch.setattr(clock.Clock, "_follows", lambda *_: True)
    with pytest.raises(UnsupportedModelError):
        al.AudioLens(lens.model, lens.tokenizer)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("wrong", ["step", "row", "branch", "delay"])
def test_an_edit_that_lands_elsewhere_is_refused_at_load(request: Any, name: str, wrong: str, monkeypatch: Any) -> None:
    lens = request.getfixturevalue(name)
    if wrong == "step":
        select = Timeline.select
        monkeypatch.setattr(
            Timeline,
            "select",
            lambda self, span, prefix=False: tuple(step + (span is not None) for step in select(self, span, prefix)),
        )
    elif wrong == "row":
        monkeypatch.setattr(
            Layout, "of", lambda self, values: values.flip(0).repeat(self.branches, *[1] * (values.ndim - 1))
        )
    elif wrong == "branch":
        branch = Layout.branch
        other = {"cond": "null", "null": "cond", "both": "both"}
        monkeypatch.setattr(Layout, "branch", lambda self, name: branch(self, other[name]))
    else:
        undelay = model_calls.undelay
        monkeypatch.setattr(
            model_calls, "undelay", lambda columns, delays, frames: undelay(columns, tuple(reversed(delays)), frames)
        )
    with pytest.raises(UnsupportedModelError, match=r"under transformers \d"):
        al.AudioLens(lens.model, lens.tokenizer)


def test_a_generation_that_drops_its_conditioning_is_refused_at_load(melody_lens: Any) -> None:
    model = type(melody_lens.model).from_pretrained(melody_lens.name).eval()
    body = model.decoder.model.decoder

    class Dropping(type(body)):
        def forward(self, *given: Any, **named: Any) -> Any:
            if any(named.get(name) is not None for name in clock.CACHE_NAMES):
                named["encoder_hidden_states"] = None
            return super().forward(*given, **named)

    body.__class__ = Dropping
    with pytest.raises(UnsupportedModelError, match=r"has 1 steps in a forward pass of 10 \(9 of them before step 0\)"):
        al.AudioLens(model, melody_lens.tokenizer)


@pytest.mark.parametrize(("name", "site"), [("lens", "hook_text_states"), ("melody_lens", "blocks.0.hook_resid_pre")])
def test_a_generation_that_reads_another_text_is_refused_at_load(
    request: Any, name: str, site: str, monkeypatch: Any
) -> None:
    lens, generate = request.getfixturevalue(name), model_calls.generate

    def turned(*given: Any, **named: Any) -> Any:
        if name == "lens":
            (states,) = named["encoder_outputs"]
            return generate(*given, **{**named, "encoder_outputs": (states.flip(1),)})
        return generate(*given, **{**named, "encoder_hidden_states": named["encoder_hidden_states"].flip(1)})

    monkeypatch.setattr(model_calls, "generate", turned)
    with pytest.raises(UnsupportedModelError, match=f"{site}, recorded during generation, differs from a forward"):
        al.AudioLens(lens.model, lens.tokenizer)


def test_a_site_that_the_last_step_does_not_reach_ends_the_run_with_an_error(lens: Any) -> None:
    """The decoder runs that step, so its clock reads the end; only the visits of its sites tell."""
    model = type(lens.model).from_pretrained(lens.name).eval()
    block = model.decoder.model.decoder.layers[1]

    class Leaving(type(block)):
        forwards = -1

        def forward(self, hidden_states: Any, *given: Any, **named: Any) -> Any:
            type(self).forwards -= 1
            return hidden_states if self.forwards == 0 else super().forward(hidden_states, *given, **named)

    block.__class__ = Leaving
    own = al.AudioLens(model, lens.tokenizer)
    steps = own.timeline(5).steps
    # Step 0 runs twice.
    Leaving.forwards = steps + 1
    with pytest.raises(UnsupportedModelError, match=f"made {steps} steps, but the lens saw {steps - 1} of them"):
        own.generate("calm", 0.2, seeds=0, interventions=al.Scale(0.5, site="mlp_out", layers=[1]), decode=False)
    Leaving.forwards = -1
    own.generate("calm", 0.2, seeds=0, interventions=al.Scale(0.5, site="mlp_out", layers=[1]), decode=False)


def recorder(lens: Any, **reading: Any) -> tuple[Recorder, Any]:
    timeline = Timeline(8, 25.0, lens.config.delays)
    found = Recorder.of(Reading(["blocks.0.hook_resid_pre"], **reading), lens.traced_model, 3, timeline)
    assert found is not None
    return found, next(iter(found.sites))


LAYOUT = Layout((0, 1, 2), 3, ("cond",), 3)


@pytest.mark.parametrize("reduce", [None, "mean", "last"])
def test_steps_that_were_never_recorded_are_not_handed_out(lens: Any, reduce: Any) -> None:
    steps = 8 if reduce else STEPS
    values = torch.randn(3, STEPS, lens.config.d_model)
    whole, site = recorder(lens, reduce=reduce)
    whole.begin(LAYOUT)
    for step in range(steps):
        whole.write(site, values[:, step : step + 1], step, LAYOUT)
    (found,) = whole.result()[0].values()
    expected = {None: values, "mean": values[:, :8].mean(1), "last": values[:, 7]}[reduce]
    assert torch.allclose(found, expected, atol=1e-6)

    short, _ = recorder(lens, reduce=reduce)
    short.begin(LAYOUT)
    short.write(site, values[:, : steps - 1], 0, LAYOUT)
    with pytest.raises(UnsupportedModelError, match=f"resid_pre: step {steps - 1} was never recorded"):
        short.result()

    gap, _ = recorder(lens, reduce=reduce)
    gap.begin(LAYOUT)
    gap.write(site, values[:, :2], 0, LAYOUT)
    with pytest.raises(UnsupportedModelError, match="resid_pre: step 2 was never recorded"):
        gap.write(site, values[:, 3:4], 3, LAYOUT)


def test_rows_that_were_never_run_are_not_handed_out(lens: Any) -> None:
    found, site = recorder(lens)
    layout = Layout((0, 2), 3, ("cond",), 2)
    found.begin(layout)
    found.write(site, torch.randn(2, STEPS, lens.config.d_model), 0, layout)
    with pytest.raises(UnsupportedModelError, match="row 1 was in no batch"):
        found.result()


@pytest.fixture
def opened(lens: Any) -> Any:
    """A lens on a model of its own, which a test may change."""
    return al.AudioLens(copy.deepcopy(lens.model), lens.tokenizer)


@pytest.mark.parametrize("run", ["generate", "run_with_cache", "trace"])
@pytest.mark.parametrize("change", ["replaced", "added", "removed"])
def test_modules_that_changed_after_opening_are_named(opened: Any, vector: Any, run: str, change: str) -> None:
    blocks = opened.model.decoder.model.decoder.layers
    if change == "replaced":
        blocks[1].fc1, named = copy.deepcopy(blocks[1].fc1), r"layers\.1\.fc1"
    elif change == "added":
        blocks[2].fc2.lora_A, named = torch.nn.Linear(2, 2), r"layers\.2\.fc2\.lora_A"
    else:
        del blocks[2].activation_fn
        named = r"layers\.2\.activation_fn"

    def traced() -> None:
        with opened.trace("fast piano"):
            opened.site("resid_post", 1).value.save()

    runs = {
        "generate": lambda: opened.generate("fast piano", 0.32, interventions=al.Add(vector, layers=[1])),
        "run_with_cache": lambda: opened.run_with_cache("fast piano"),
        "trace": traced,
    }
    with pytest.raises(InputError, match=f"the model changed after the lens was opened: .*{named}.*open a new lens"):
        runs[run]()


def test_a_forward_that_another_library_replaced_is_not_passed_over(opened: Any, vector: Any) -> None:
    block = opened.model.decoder.model.decoder.layers[1]
    block.forward = type(block).forward.__get__(block)
    for run in (
        lambda: opened.generate("fast piano", 0.32, interventions=al.Add(vector, layers=[1]), sites="resid_post"),
        lambda: opened.run_with_cache("fast piano"),
    ):
        with pytest.raises(UnsupportedModelError, match=r"open a new lens on the model"):
            run()


def test_a_copied_lens_reads_and_edits_its_own_model(lens: Any, vector: Any) -> None:
    asked: Any = {"seeds": 0, "interventions": al.Add(5 * vector, layers=[1]), "sites": "resid_post"}
    expected = lens.generate("fast piano", 0.32, **asked)
    other = copy.deepcopy(lens)
    assert other.model is not lens.model
    assert other.name == lens.name
    found = other.generate("fast piano", 0.32, **asked)
    assert torch.equal(found.codes, expected.codes)
    assert all(torch.equal(found.cache[site], expected.cache[site]) for site in expected.cache)
    other.model.decoder.model.decoder.layers[1].fc2.weight.data.zero_()
    assert not torch.equal(other.generate("fast piano", 0.32, **asked).codes, expected.codes)
    assert torch.equal(lens.generate("fast piano", 0.32, **asked).codes, expected.codes)


@pytest.mark.parametrize("name", ["model", "tokenizer", "config"])
def test_what_a_lens_was_opened_on_cannot_be_exchanged(lens: Any, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        setattr(lens, name, None)
