"""A gate reads its level from the run itself, and its interventions act in exactly the rows and steps that it opens."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import audiolens as al
from audiolens.control.gating import CLOSED_FROM, OPEN_BELOW
from audiolens.errors import InputError, InputTypeError, SiteError

PROMPTS = ["slow dark guitar", "fast piano song", "calm"]
SECONDS, RATE = 0.8, 25
WEIGHTS = torch.randn(48, generator=torch.Generator().manual_seed(5))
GIVEN: dict[str, Any] = {"seconds": SECONDS, "seeds": [0, 1, 2], "decode": False}


def decided(levels: np.ndarray, gate: al.Gate) -> np.ndarray:
    """What a gate should decide for the levels "row step" of single steps, written out one step at a time."""
    share = 1 - math.exp(-1 / (gate.smoothing * RATE)) if gate.smoothing else 1.0
    found = np.zeros(levels.shape, dtype=bool)
    for row, steps in enumerate(levels):
        average, opened = steps[0], False
        for step, level in enumerate(steps):
            average = average + share * (level - average) if step else level
            if average < gate.threshold:
                opened = True
            elif average >= gate.release:
                opened = False
            found[row, step] = opened
    return found


def gate(lens: Any, layer: int = 0, **options: Any) -> al.Gate:
    """A gate whose level crosses the threshold several times in these clips."""
    seen = lens.generate(PROMPTS, sites="resid_post", layers=[layer], **GIVEN).cache
    levels = seen[f"blocks.{layer}.hook_resid_post"] @ WEIGHTS
    low, high = levels.quantile(0.45).item(), levels.quantile(0.6).item()
    return al.Gate(weights=WEIGHTS, layer=layer, threshold=low, release=high, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("family", ["lens", "melody_lens"])
def test_a_gate_decides_by_what_a_recording_shows(
    request: pytest.FixtureRequest, vector: Tensor, family: str, smoothing: float
) -> None:
    lens = request.getfixturevalue(family)
    one = gate(lens, smoothing=smoothing)
    made = lens.generate(
        PROMPTS, interventions=al.Add(vector, layers=[1], strength=4.0, gate=one), sites="resid_post", **GIVEN
    )
    levels = made.cache["blocks.0.hook_resid_post"] @ WEIGHTS
    expected = decided(levels.double().numpy(), one)
    assert 0.1 < expected.mean() < 0.9
    np.testing.assert_array_equal(made.gates[0].numpy(), expected)


@pytest.mark.parametrize("branch", ["both", "cond"])
def test_gated_clips_equal_raw_hooks(lens: Any, vector: Tensor, branch: Any) -> None:
    one = gate(lens, smoothing=0.1)
    prompts = ["slow dark guitar", "slow calm guitar", "fast dark guitar"]
    made = lens.generate(
        prompts,
        SECONDS,
        temperature=0,
        interventions=al.Add(vector, layers=[0, 2], strength=6.0, branch=branch, gate=one),
    )
    opened, levels = [], list[Tensor]()
    calls = [0]

    def read(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        # transformers runs the first forward pass twice, once to fill the cache and once to sample.
        calls[0] += 1
        if calls[0] == 2:
            levels.clear()
        levels.append(output[: len(prompts), -1] @ WEIGHTS)
        opened[:] = [decided(torch.stack(levels, dim=1).double().numpy(), one)[:, -1]]
        return push(_module, _inputs, output)

    def push(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        for row in np.flatnonzero(opened[0]):
            for sequence in [row] if branch == "cond" else [row, len(prompts) + row]:
                changed[sequence] += 6.0 * vector
        return changed

    blocks = lens.model.decoder.model.decoder.layers
    handles = [blocks[0].register_forward_hook(read), blocks[2].register_forward_hook(push)]
    inputs = lens.tokenizer(prompts, return_tensors="pt", padding=True)
    try:
        expected = lens.model.generate(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, guidance_scale=3.0, do_sample=False,
            max_new_tokens=round(SECONDS * RATE) + 3,
        )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    assert torch.equal(made.audio, expected)
    assert 0 < made.gates.float().mean() < 1


RUNS: dict[str, Callable[[Any, Tensor], dict[str, Any]]] = {
    "the fast engine": lambda lens, codes: {"engine": "fast"},
    "a run without cache": lambda lens, codes: {"use_cache": False},
    "batches": lambda lens, codes: {"batch_size": 2},
}


@pytest.mark.parametrize("family", ["lens", "melody_lens"])
@pytest.mark.parametrize("run", RUNS)
def test_however_a_clip_is_generated_its_gate_decides_alike(
    request: pytest.FixtureRequest, vector: Tensor, codes: Tensor, family: str, run: str
) -> None:
    lens = request.getfixturevalue(family)
    edits = [
        al.Add(vector, layers=[1], strength=4.0, gate=gate(lens, smoothing=0.1)),
        al.Scale(0.2, layers=[2], rows=[0, 2], seconds=(0.2, 0.6), gate=gate(lens, 1)),
    ]
    plain = lens.generate(PROMPTS, interventions=edits, **GIVEN)
    other = lens.generate(PROMPTS, interventions=edits, **GIVEN, **RUNS[run](lens, codes))
    assert torch.equal(plain.codes, other.codes)
    assert torch.equal(plain.gates, other.gates)
    assert plain.gates.shape == (2, 3, 23)
    assert torch.equal(other[1:].gates, plain.gates[:, 1:])


@pytest.mark.parametrize("cut", [{}, {"window": 0.6, "overlap": 0.2}])
def test_a_gate_also_reads_the_given_beginning_of_a_clip(lens: Any, vector: Tensor, codes: Tensor, cut: Any) -> None:
    given = {
        **GIVEN,
        "audio_prompt": codes[:3, :, :6],
        "interventions": al.Add(vector, layers=[1], gate=gate(lens)),
        **cut,
    }
    exact, fast = (lens.generate(PROMPTS, engine=engine, **given) for engine in ("exact", "fast"))
    assert torch.equal(exact.codes, fast.codes)
    assert torch.equal(exact.gates, fast.gates)
    assert exact.gates[..., :6].any()


def test_a_closed_gate_changes_nothing_and_an_open_one_is_no_gate(lens: Any, vector: Tensor) -> None:
    def made(**options: Any) -> Tensor:
        return lens.generate(PROMPTS, interventions=al.Add(vector, layers=[1], strength=4.0, **options), **GIVEN).codes

    closed, opened = (al.Gate(weights=WEIGHTS, layer=1, threshold=level) for level in (-1e9, 1e9))
    assert torch.equal(made(gate=closed), lens.generate(PROMPTS, **GIVEN).codes)
    assert torch.equal(made(gate=opened), made())


@pytest.fixture(scope="module")
def probe(lens: Any) -> al.Directions:
    return al.difference_in_means(
        lens, ["fast song", "fast piano"], ["slow song", "slow dark"], seconds=0.4, keep_samples=True, label="tempo"
    )


def test_the_level_of_a_gate_is_0_and_1_at_the_means_of_the_poles(lens: Any, probe: al.Directions) -> None:
    assert probe.samples is not None
    values, labels = probe.samples.values[1], probe.samples.labels
    for strength, goal in ((2.0, labels), ([-1.0, -2.0], ~labels)):
        steps = al.gate(probe, layer=1, strength=strength, rows=[0, 1], branch="cond")
        (one,) = (step.gate for step in steps)
        assert one is not None
        assert (one.layer, one.threshold, one.release) == (1, OPEN_BELOW, CLOSED_FROM)
        assert float(values[goal].mean(0) @ one.weights + one.offset) == pytest.approx(1, abs=1e-4)
        assert float(values[~goal].mean(0) @ one.weights + one.offset) == pytest.approx(0, abs=1e-4)
        (plain,) = al.steer(probe, layer=1, strength=strength, rows=[0, 1], branch="cond")
        assert isinstance(plain, al.Add)
        assert isinstance(steps[0], al.Add)
        assert torch.equal(plain.vector, steps[0].vector)
        assert steps[0].branch == "cond"
    (away,) = al.gate(-probe, probe, layer=1, strength=-2.0)
    (same,) = al.gate(probe, probe, layer=1, strength=2.0)
    assert away.gate is not None
    assert same.gate is not None
    assert torch.equal(away.gate.weights, same.gate.weights)
    (late,) = al.gate(probe, layer=2, probe_layer=-3, threshold=0.5, release=0.9)
    assert late.gate is not None
    assert (late.gate.layer, late.gate.release) == (0, 0.9)
    lens.generate(PROMPTS, interventions=[late], **GIVEN)


def test_the_prompts_say_to_which_pole_directions_point_and_else_the_vectors_do(
    lens: Any, probe: al.Directions
) -> None:
    def towards(directions: al.Directions, probe: al.Directions) -> int:
        """1 if the level is that of the probe's positive pole."""
        (gate,) = {step.gate for step in al.gate(directions, probe, layer=2, probe_layer=0)}
        assert gate is not None
        return 1 if torch.cosine_similarity(gate.weights, probe[0], dim=0) > 0 else -1

    fast, slow = ["fast song", "fast piano"], ["slow song", "slow dark"]
    shared: dict[str, Any] = {"codes": "shared", "neutral": ["song"], "seconds": 0.4, "progress": False}
    read = [
        (al.difference_in_means(lens, *poles, label=label, **shared), sign)
        for poles, label, sign in (
            ((fast, slow), "tempo", 1), ((fast, slow), "", 1), ((slow, fast), "tempo", -1),
            ((fast[:1], slow[:1]), "tempo", 1),
        )
    ]  # fmt: skip
    # Random vectors and their opposites, so that the cosine says nothing.
    drawn = probe.random_like(0).vectors
    assert abs(torch.cosine_similarity(drawn[2], probe[0], dim=0)) > 0.02
    for vectors in (drawn, -drawn):
        for one, sign in read:
            directions = replace(one, vectors=vectors)
            assert towards(directions, probe) == sign
            assert towards(2 * (-directions), probe) == -sign
            assert towards((-0.5 * (-directions)).unit(), probe) == sign
            assert towards(directions.with_norms_of(-probe), probe) == sign
            assert towards(directions.orthogonal_to(probe.random_like(1)), probe) == sign
    named = al.difference_in_means(lens, slow, fast, label="-(tempo)", **shared)
    for label, sign in (("tempo (shared codes)", 1), ("tempo + piano", 1), ("-(tempo)", -1)):
        one = named if sign < 0 else read[0][0]
        assert towards(replace(one, vectors=-sign * probe.vectors, meta=replace(one.meta, label=label)), probe) == sign
    # The prompts of a combination are not those of its poles.
    turned = -1.0 * probe
    assert towards((turned + 0.1 * probe), probe) == -1
    assert towards(_others(probe, 1), probe) == towards(-1 * -_others(probe, 1), probe) == 1


def test_other_groups_of_the_samples_are_other_poles(lens: Any, probe: al.Directions) -> None:
    samples = probe.samples
    assert samples is not None
    exchanged = al.estimate(samples=samples, labels=~samples.labels)
    for directions, of in ((exchanged, exchanged), (exchanged, probe), (probe, exchanged)):
        (step,) = al.gate(directions, of, layer=1)
        assert step.gate is not None
        values = samples.values[1] @ step.gate.weights + step.gate.offset
        goal = samples.labels if directions is probe else ~samples.labels
        assert float(values[goal].mean()) == pytest.approx(1, abs=1e-4)


def test_poles_without_text_are_not_told_apart_by_their_prompts(lens: Any, codes: Tensor) -> None:
    def read(first: int, second: int, **options: Any) -> al.Directions:
        given = codes[[first, first]], codes[[second, second]]
        return al.difference_in_means(lens, [None] * 2, [None] * 2, codes=given, **options)

    there = read(0, 1)
    probe = read(1, 0, keep_samples=True)
    (step,) = al.gate(there, probe, layer=1)
    (same,) = al.gate(probe, layer=1)
    assert step.gate is not None
    assert same.gate is not None
    assert torch.equal(step.gate.weights, -same.gate.weights)


def test_on_etude_the_level_at_block_0_is_that_of_the_pole_although_the_vectors_point_opposite_ways() -> None:
    etude = al.AudioLens.from_pretrained("etude")
    sets = al.prompts.load("timbre")
    poles = sets.positive[:8], sets.negative[:8]
    d = al.difference_in_means(
        etude, *poles, codes="shared", neutral=sets.development, seconds=1.0, label="timbre", progress=False
    )
    probe = al.difference_in_means(
        etude, *poles, layers=[0], keep_samples=True, seconds=1.0, label="timbre", progress=False
    )
    assert torch.cosine_similarity(d[5], probe[0], dim=0) < -0.1
    (step,) = al.gate(d, probe, strategy="one-to-all", layer=5)
    gate = step.gate
    assert gate is not None
    held_out = [*sets.positive[8:16], *sets.negative[8:16]]
    made = etude.generate(held_out, 1.0, seeds=0, sites="resid_post", layers=[0], decode=False)
    assert made.cache is not None
    bright, dark = (made.cache["resid_post", 0] @ gate.weights + gate.offset).mean(1).chunk(2)
    assert bright.mean() > 0.7
    assert dark.mean() < 0.3


def refused(lens: Any, vector: Tensor, probe: al.Directions) -> dict[str, tuple[Callable[[], Any], type, str]]:
    def run(**options: Any) -> Any:
        return lens.generate(PROMPTS, interventions=al.Add(vector, **options), **GIVEN)

    def one(**options: Any) -> al.Gate:
        return al.Gate(**{"weights": WEIGHTS, "layer": 1, **options})

    shared = al.difference_in_means(
        lens, ["fast song"], ["slow song"], codes="shared", neutral=["song"], seconds=0.4, keep_samples=True
    )

    def over_shared(n: int) -> al.Directions:
        poles = [["fast", "fast song"][:n], ["slow", "slow song"][:n]]
        return al.difference_in_means(lens, *poles, codes="shared", neutral=["song"], seconds=0.4, label="tempo")

    return {
        "too late": (lambda: run(layers=[0, 2], gate=one()), InputError, "which comes after blocks.0.hook_resid_post"),
        "same block, earlier site": (lambda: run(site="attn_out", layers=[1], gate=one()), InputError, "comes after"),
        "heads": (lambda: run(layers=[2], gate=one(site="attn.z")), InputError, "one vector per step"),
        "no steps": (lambda: run(site="text.k", layers=[1], gate=one()), InputError, "text.k|no site"),
        "width": (lambda: run(layers=[1], gate=one(weights=WEIGHTS[:5])), InputError, "shape"),
        "no such block": (lambda: run(layers=[1], gate=one(layer=7)), SiteError, "7"),
        "release": (lambda: one(threshold=1.0, release=0.5), InputError, "at least the threshold"),
        "smoothing": (lambda: one(smoothing=-1.0), InputError, "at least 0 seconds"),
        "matrix": (lambda: one(weights=torch.ones(2, 2)), InputError, "expected one vector"),
        "no gate": (lambda: al.Add(vector, gate="open"), InputTypeError, "expected a Gate"),  # pyright: ignore
        "shared codes": (lambda: al.gate(shared, layer=1), InputError, "reads the text and not the music"),
        "no samples": (lambda: al.gate(probe * 1.0, layer=1), InputError, "keep_samples=True"),
        "turned": (lambda: al.gate(probe, probe=_turned(probe), layer=1), InputError, "does not separate"),
        "turned by hand": (
            lambda: al.gate(_turned(probe), probe, layer=1),
            InputError,
            "point the same way, but their cosine is -1.00, and the directions point away from their own samples",
        ),
        "opposite": (
            lambda: al.gate(_others(probe, -1), probe, layer=1),
            InputError,
            "the same way, but their cosine is -1.00",
        ),
        "-opposite": (
            lambda: al.gate(-_others(probe, -1), probe, layer=1),
            InputError,
            "opposite ways, but their cosine is 1.00",
        ),
        "twice opposite": (lambda: al.gate(2 * _others(probe, -1), probe, layer=1), InputError, "by their labels"),
        "other prompts, shared": (
            lambda: al.gate(over_shared(1), probe, layer=1),
            InputError,
            "over shared codes",
        ),
        "fewer prompts": (lambda: al.gate(over_shared(2), _read(lens), layer=1), InputError, "with keep_samples=True"),
        "control, shared": (lambda: al.gate(over_shared(2).random_like(0), probe, layer=1), InputError, "a control"),
        "null branch": (lambda: al.gate(probe, _read(lens, branch="null"), layer=1), InputError, "conditional branch"),
        "start token": (lambda: al.gate(probe, _read(lens, position="first"), layer=1), InputError, "no music yet"),
        "orthogonal": (lambda: al.gate(_orthogonal(probe), probe, layer=1), InputError, "nearly orthogonal"),
        "ablate": (lambda: al.gate(probe, layer=1, operator="ablate"), InputError, "would remove a trait"),
        "prefix": (lambda: al.Add(vector, prefix=True, gate=one()), InputError, "a prefix has none"),
        "signs": (lambda: al.gate(probe, layer=1, strength=[1.0, -1.0]), InputError, "one gate for each sign"),
        "probe too late": (lambda: al.gate(probe, probe=_late(lens), layer=1), SiteError, "Steer later blocks"),
        "unknown block": (lambda: al.gate(probe, layer=1, probe_layer=9), SiteError, "9"),
    }


def _turned(probe: al.Directions) -> al.Directions:
    return replace(probe, vectors=-probe.vectors)


def _others(probe: al.Directions, sign: int) -> al.Directions:
    """Directions of other prompts with the probe's label, which point its way or the other."""
    return replace(probe, vectors=sign * probe.vectors, samples=None, meta=replace(probe.meta, prompts="others"))


def _orthogonal(probe: al.Directions) -> al.Directions:
    return probe.random_like(0).orthogonal_to(probe)


def _read(lens: Any, **options: Any) -> al.Directions:
    return al.difference_in_means(lens, ["fast"], ["slow"], seconds=0.4, keep_samples=True, **options)


def _late(lens: Any) -> al.Directions:
    return al.difference_in_means(lens, ["fast"], ["slow"], seconds=0.4, keep_samples=True, layers=[2])


def test_gates_that_cannot_decide_are_refused(lens: Any, vector: Tensor, probe: al.Directions) -> None:
    for name, (call, kind, told) in refused(lens, vector, probe).items():
        with pytest.raises(kind, match=told) as caught:
            call()
        assert "\n" not in str(caught.value), name
