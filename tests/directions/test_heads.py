"""Directions of attention heads: which heads tell the poles apart, and what steering the best of them adds."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from melodies import PREFIX
from plants.samples import META
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

import audiolens as al
from analysis import sweep
from analysis.study.settings import Settings
from analysis.sweep import BASELINE, Condition
from analysis.sweep.conditions import merge
from analysis.sweep.controls import drawn
from analysis.sweep.factorial import Factors
from audiolens.control.target import checked_place
from audiolens.directions.calibration import Calibration, normal_place
from audiolens.directions.heads import Heads, _folds
from audiolens.directions.labelling import Target
from audiolens.directions.samples import Samples
from audiolens.errors import InputError, InputTypeError, SiteError
from audiolens.interventions import Ablate, Add, Clamp
from audiolens.model.provenance import Provenance

PAIRS, LAYERS, N_HEADS, WIDTH = 40, 3, 4, 12
CARRIERS = [(2, 1), (0, 3)]
"""The heads that carry the planted concept, the stronger one first."""


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Noise, in which two heads differ between the poles along their first axis. Pairs share most of the noise."""
    generator = torch.Generator().manual_seed(0)
    own, shared = (torch.randn(LAYERS, n * PAIRS, N_HEADS * WIDTH, generator=generator) for n in (2, 1))
    values, labels = 0.5 * own + shared.repeat(1, 2, 1), torch.arange(2 * PAIRS) < PAIRS
    for (layer, head), shift in zip(CARRIERS, (5.0, 4.0), strict=True):
        values[layer, :PAIRS, WIDTH * head] += shift
    norms, prompts = values.norm(dim=-1).mean(1), tuple(map(str, range(2 * PAIRS)))
    return Samples(values, labels, tuple(range(LAYERS)), prompts, replace(META, site="attn.z", n_heads=N_HEADS), norms)


@pytest.fixture(scope="module")
def planted(samples: Samples) -> al.Directions:
    return al.estimate(samples=samples)


def test_the_two_heads_that_carry_the_concept_are_found_and_no_other(planted: al.Directions) -> None:
    assert planted.heads is not None
    assert planted.heads.best(2) == CARRIERS
    assert planted.heads.n_above_chance == 2
    assert "2 of 12 heads above chance" in repr(planted)
    along = planted.by_head[2, 1]
    assert float(along[0] / along.norm()) > 0.95


def test_shuffled_poles_leave_no_head_above_chance(samples: Samples) -> None:
    swapped = torch.rand(PAIRS, generator=torch.Generator().manual_seed(1)) < 0.5
    found = al.estimate(samples=replace(samples, labels=torch.cat([swapped, ~swapped])))
    assert found.heads is not None
    assert found.heads.n_above_chance == 0


def _sorted_clips(seed: int, quantile: float, shift: float = 0.0) -> Samples:
    """Clips sorted by a measure: the prompt decides much of it and of the activations, each on its own if `shift` is 0.

    As `method="by_measure"` does with 4 clips of each of 16 prompts.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.arange(16).repeat_interleave(4)
    level = 3 * torch.randn(16, generator=generator)[prompt] + torch.randn(64, generator=generator)
    values = 3 * torch.randn(16, 24, generator=generator)[prompt] + torch.randn(64, 24, generator=generator)
    values[:, 0] += shift * level
    n = round(64 * quantile)
    order = level.argsort(descending=True)
    rows = torch.cat([order[:n], order[-n:]])
    prompts = tuple(f"prompt {number}" for number in prompt[rows].tolist())
    meta = replace(META, site="attn.z", n_heads=4)
    return Samples(values[None, rows], torch.arange(2 * n) < n, (0,), prompts, meta, torch.ones(1))


def test_several_clips_of_a_prompt_do_not_make_p_values_small() -> None:
    found: dict[str, list[float]] = {"heads": [], "means": [], "auc": []}
    for seed in range(40):
        one = al.estimate(samples=_sorted_clips(seed, quantile=(0.25, 0.5)[seed % 2]), keep_samples=False)
        assert one.heads is not None
        assert one.evidence is not None
        for name, p in (("heads", one.heads.p), ("means", one.evidence.means_p), ("auc", one.evidence.p)):
            # Too few prompts for a test give no p of the means.
            found[name] += [1.0 if p is None else float(p.min())]
    for name, values in found.items():
        # 2 of 40 are expected, and 7 or more have a probability of .003.
        assert np.sum(np.array(values) <= 0.05) < 7, name
    signal = al.estimate(samples=_sorted_clips(0, 0.5, shift=10.0)).heads
    assert signal is not None
    assert float(signal.p[0, 0]) == pytest.approx(1 / 200)


def test_accuracy_and_spread_are_those_of_a_naive_loop_over_heads(samples: Samples, planted: al.Directions) -> None:
    target, labels = Target.of(samples), samples.labels.numpy()
    folds = _folds(target, samples.prompts)
    assert folds is not None
    assert all(set(test % PAIRS).isdisjoint(fit % PAIRS) for fit, test in folds), "a pair is in two folds"
    assert planted.heads is not None
    for layer, head in product(range(LAYERS), range(N_HEADS)):
        values = samples.values[layer, :, WIDTH * head : WIDTH * (head + 1)].double().numpy()
        right = np.zeros(2 * PAIRS, dtype=bool)
        for fit, test in folds:
            # scikit-learn divides by n rather than n - 1, which scales the features and so the penalty.
            scaler = StandardScaler().fit(values[fit])
            scaler.scale_ = scaler.scale_ * np.sqrt(len(fit) / (len(fit) - 1))
            probe = Ridge(alpha=WIDTH).fit(scaler.transform(values[fit]), np.where(labels[fit], 1.0, -1.0))
            right[test] = (probe.predict(scaler.transform(values[test])) > 0) == labels[test]
        assert float(planted.heads.accuracy[layer, head]) == pytest.approx(right.mean())
        vector = planted.by_head[layer, head].double().numpy()
        spread = (values @ vector / np.linalg.norm(vector)).std(ddof=1)
        assert float(planted.heads.spread[layer, head]) == pytest.approx(spread, rel=1e-5)


def test_steering_adds_spread_times_weight_to_the_chosen_heads(planted: al.Directions) -> None:
    steps = al.steer(planted, "heads", heads=2, strength=-3.0)
    assert [(step.layers, step.heads) for step in steps] == [([0], [3]), ([2], [1])]
    assert planted.heads is not None
    for step, (layer, head) in zip(steps, reversed(CARRIERS), strict=True):
        assert isinstance(step, Add)
        known = planted.heads
        length = known.spread[layer, head] * (2 * known.accuracy[layer, head] - 1)
        expected = torch.zeros(1, N_HEADS, WIDTH)
        expected[0, head] = planted.by_head[layer, head] / planted.by_head[layer, head].norm() * length
        torch.testing.assert_close(torch.as_tensor(step.vector), expected)
        assert float(torch.as_tensor(step.strength)) == -3.0
    named = al.steer(planted, "heads", heads=[(2, 1), (0, 3)], strength=-3.0)
    for step, other in zip(steps, named, strict=True):
        assert torch.equal(torch.as_tensor(step.vector), torch.as_tensor(other.vector))


def test_multiples_and_controls_push_the_same_heads_as_far(planted: al.Directions) -> None:
    def lengths(d: al.Directions) -> torch.Tensor:
        return torch.stack([torch.as_tensor(step.vector).norm() for step in al.steer(d, "heads", heads=2)])

    own = lengths(planted)
    torch.testing.assert_close(lengths(-0.5 * planted), 0.5 * own)
    for control in (planted.random_like(1), planted.shuffled(1), (-planted).with_norms_of(planted)):
        torch.testing.assert_close(lengths(control), own)
        torch.testing.assert_close(control.by_head.norm(dim=-1), planted.by_head.norm(dim=-1))
    assert al.steer(planted.at([0, 2]), "heads", heads=2)[1].layers == [2]


def test_norms_of_another_keep_ones_own_choice_of_heads(planted: al.Directions) -> None:
    assert planted.heads is not None
    other = planted.heads.accuracy.flip(1)
    another = replace(2.0 * planted.random_like(1), heads=replace(planted.heads, accuracy=other, separation=other))
    assert another.heads is not None
    alike = planted.with_norms_of(another)
    torch.testing.assert_close(alike.by_head.norm(dim=-1), another.by_head.norm(dim=-1))
    assert alike.heads is not None
    assert alike.heads.best(2) == CARRIERS != another.heads.best(2)
    torch.testing.assert_close(alike.heads.steps, 2.0 * planted.heads.steps)
    (control,) = drawn(planted, n_random=0, n_shuffled=0, others={"other": another})
    assert control.directions.heads is planted.heads


def test_a_calibration_at_heads_holds_for_them_in_any_order(planted: al.Directions) -> None:
    planted = replace(planted, meta=replace(planted.meta, n_layers=LAYERS))
    stated = normal_place({"strategy": "heads", "heads": [(-1, 1), [0, 3]]}, planted.layers, LAYERS)
    known = Calibration("tempo", "BPM", (0, 1), (100, 120), (90, 110), (110, 130), (0, 0), stated, 4, 1.0, 3.0)
    calibrated = replace(planted, calibration=Calibration.from_dict(json.loads(json.dumps(known.as_dict()))))
    for heads in ([(0, 3), (2, 1)], [(2, 1), (-3, 3)]):
        steps = al.steer(calibrated, "heads", heads=heads, strength="110 BPM")
        assert [(step.layers, step.heads, float(torch.as_tensor(step.strength))) for step in steps] == [
            ([0], [3], 0.5), ([2], [1], 0.5)
        ]  # fmt: skip
        _, found = checked_place(calibrated, "tempo", {"strategy": "heads", "heads": heads}, None)
        assert found is calibrated.calibration
    with pytest.raises(InputError, match="were calibrated with heads="):
        al.steer(calibrated, "heads", heads=[(2, 1)], strength="110 BPM")
    with pytest.raises(InputError, match="needs limits=.*calibrated for tempo at this place"):
        checked_place(planted, "tempo", {"strategy": "heads", "heads": 2}, None)


def test_a_file_keeps_the_heads(planted: al.Directions, tmp_path: Any) -> None:
    read = al.Directions.load(planted.save(tmp_path / "heads.safetensors"))
    assert read.heads is not None
    assert planted.heads is not None
    assert torch.equal(read.by_head, planted.by_head)
    for name, value in planted.heads.tensors().items():
        assert torch.equal(getattr(read.heads, name), value), name


def test_every_linear_estimator_fits_each_head_by_itself(samples: Samples) -> None:
    alone = replace(
        samples, values=samples.values[2:, :, WIDTH : 2 * WIDTH], layers=(0,), residual_norms=torch.ones(1),
        meta=replace(META, site="attn_out"),
    )  # fmt: skip
    for method in ("principal_component", "probe", "ridge"):
        whole, one = (al.estimate(samples=each, method=method) for each in (samples, alone))
        torch.testing.assert_close(whole.by_head[2, 1], one[0], rtol=1e-4, atol=1e-5)


def test_reading_a_model_gives_the_difference_of_its_heads_means(lens: Any) -> None:
    poles = ["fast piano", "fast dark guitar"], ["slow piano", "slow dark guitar"]
    codes = torch.randint(0, 32, (2, 4, 8), generator=torch.Generator().manual_seed(0))
    found = al.difference_in_means(lens, *poles, site="cross_attn.z", codes=codes, progress=False, keep_samples=True)
    means = [
        lens.run_with_cache(pole, codes, sites="cross_attn.z")[1].stack("cross_attn.z")[:, :, :8].mean((1, 2))
        for pole in poles
    ]
    torch.testing.assert_close(found.by_head, means[0] - means[1], rtol=1e-4, atol=1e-5)
    assert found.meta.n_heads == 4
    assert found.heads is not None
    assert "too few prompts" in repr(found.heads)


def _random(site: str) -> al.Directions:
    """Random directions of a tiny model, whose heads (0, 2), (2, 1), (2, 3) and (1, 0) are best."""
    generator = torch.Generator().manual_seed(0)
    accuracy = torch.full((3, 4), 0.5)
    accuracy[0, 2], accuracy[2, 1], accuracy[2, 3], accuracy[1, 0] = 1.0, 0.9, 0.8, 0.7
    spread = 1 + torch.rand(3, 4, generator=generator)
    known = Heads(accuracy, accuracy, spread, torch.ones(3, 4), torch.tensor(0.005), (0, 1, 2))
    meta = Provenance(model="tiny", weights="", n_layers=3, site=site, label="tempo", n_heads=4)
    return al.Directions(torch.randn(3, 48, generator=generator), (0, 1, 2), torch.ones(3), meta, heads=known)


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
@pytest.mark.parametrize(
    ("name", "site"), [("lens", "attn.z"), ("lens", "cross_attn.z"), ("melody_lens", "attn.z")]
)  # fmt: skip
def test_both_engines_equal_raw_hooks(request: Any, name: str, site: str, branch: Any) -> None:
    """Row 0 is not steered, and the others are, with a strength each; the bare model has hooks on `out_proj`."""
    lens, directions = request.getfixturevalue(name), _random(site)
    assert directions.heads is not None
    strengths, heads, prompt = [0.0, 6.0, -6.0], [(0, 2), (2, 1), (2, 3)], "slow dark guitar"
    steps = al.steer(directions, "heads", heads=3, strength=strengths, branch=branch)
    made = [
        lens.generate([prompt] * 3, 0.4, seeds=0, temperature=0, interventions=steps, engine=engine).audio
        for engine in ("exact", "fast")
    ]
    added = torch.zeros(3, 4, 12)
    for layer, head in heads:
        along = directions.by_head[layer, head]
        known = directions.heads
        added[layer, head] = along / along.norm() * known.spread[layer, head] * (2 * known.accuracy[layer, head] - 1)
    halves = {"cond": [0], "null": [3], "both": [0, 3]}[branch]
    handles = []
    for layer, block in enumerate(lens.model.decoder.model.decoder.layers):

        def hook(_module: Any, inputs: Any, *, layer: int = layer) -> Any:
            z = inputs[0].clone()
            # Melody's first pass holds the prefix before its step.
            first = PREFIX if name == "melody_lens" and z.shape[1] > 1 else 0
            for row, half in product(range(3), halves):
                z[half + row, first:] += strengths[row] * added[layer].flatten()
            return (z,)

        part = block.encoder_attn if site == "cross_attn.z" else block.self_attn
        handles.append(part.out_proj.register_forward_pre_hook(hook))
    inputs = lens.tokenizer([prompt] * 3, return_tensors="pt")
    wanted = {"input_ids": inputs.input_ids, "attention_mask": inputs.attention_mask}
    try:
        audio = lens.model.generate(**wanted, max_new_tokens=13, do_sample=False, guidance_scale=3.0)
    finally:
        for handle in handles:
            handle.remove()
    assert len(torch.unique(audio, dim=0)) == 3, "steering changes nothing"
    for engine, mine in zip(("exact", "fast"), made, strict=True):
        assert torch.equal(mine, audio), engine


def test_other_operators_and_kept_norms_change_the_chosen_heads_alone(lens: Any) -> None:
    directions, codes = _random("attn.z"), torch.zeros(1, 4, 6, dtype=torch.long)
    asked = {"codes": codes, "sites": "attn.z", "layers": [0]}
    _, before = lens.run_with_cache(["calm song"], **asked)
    along = directions.by_head[0, 2] / directions.by_head[0, 2].norm()
    for operator, kind in (("ablate", Ablate), ("clamp", Clamp), ("add", Add)):
        (step,) = al.steer(directions, "heads", heads=1, operator=operator, preserve_norm=operator == "add")
        assert isinstance(step, kind)
        _, after = lens.run_with_cache(["calm song"], **asked, interventions=[step])
        old, new = before["attn.z", 0], after["attn.z", 0]
        assert torch.equal(new[:, :, [0, 1, 3]], old[:, :, [0, 1, 3]])
        level = new[:, :, 2] @ along
        if operator == "add":
            torch.testing.assert_close(new[:, :, 2].norm(dim=-1), old[:, :, 2].norm(dim=-1))
        else:
            assert directions.heads is not None
            aim = 0.0 if operator == "ablate" else float(directions.heads.spread[0, 2])
            torch.testing.assert_close(level, torch.full_like(level, aim), atol=1e-5, rtol=1e-5)


def test_a_merged_batch_of_a_sweep_adds_what_each_condition_adds(lens: Any) -> None:
    directions, codes = _random("attn.z"), torch.zeros(3, 4, 6, dtype=torch.long)
    conditions = [
        Condition(BASELINE),
        Condition("best", tuple(al.steer(directions, "heads", heads=1, strength=4.0))),
        Condition("block", tuple(al.steer(directions, "one-to-one", layer=0, strength=-1.0))),
    ]
    merged = list(merge(conditions, 3))
    assert len(merged) == 1, "conditions at the same block are merged"
    together = lens.run_with_interventions(["calm song"] * 3, codes, merged)
    for row, condition in enumerate(conditions):
        alone = lens.run_with_interventions(["calm song"], codes[:1], condition.interventions)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_a_sweep_steers_heads_and_states_how_many(lens: Any) -> None:
    result = sweep.run(
        lens, _random("attn.z"), strategies=["heads"], heads=2, strengths=[-4.0, 4.0], prompts=["calm song"], seeds=1,
        sets={}, n_random=1, seconds=0.4, measures=["loudness"], n_jobs=0, progress=False,
    )  # fmt: skip
    steered = result.table[result.table["strategy"] == "heads"]
    assert steered["heads"].tolist() == [2.0] * len(steered) == [2.0] * 4
    assert set(steered["kind"]) == {"steered", "random"}


TOO_MANY = r"heads=5: the probes of only 4 of 12 heads are above chance"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"heads": None}, InputError, "needs heads=k"),
        ({"heads": 0}, InputError, "heads=0: expected a whole number of at least 1"),
        ({"heads": 13}, InputError, "heads=13: these directions have 12 heads"),
        ({"heads": 5}, InputError, TOO_MANY),
        ({"heads": 1.5}, InputTypeError, r"heads=1\.5: expected a number of heads, or pairs"),
        ({"heads": [(0, 2), (0, 2)]}, InputError, "each once"),
        ({"heads": [(0, 9)]}, InputError, "there is no head 9; expected 0 to 3"),
        ({"heads": [(0, 0)]}, InputError, "the probe of head 0 at layer 0 is not above chance"),
        ({"heads": [(7, 0)]}, SiteError, "layer 7 does not exist"),
        ({"heads": 2, "layer": 1}, InputError, "takes no layer="),
        ({"heads": 2, "unit": "residual"}, InputError, "takes no unit="),
        ({"heads": 2, "strategy": "one-to-one", "layer": 0}, InputError, "takes no heads="),
        ({"strategy": "one-to-all", "layer": 0}, InputError, "means nothing in another block"),
    ],
)
def test_bad_input_gets_one_clear_line(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        al.steer(_random("attn.z"), **{"strategy": "heads", **options})
    assert "\n" not in str(caught.value)


def test_directions_without_evidence_of_heads_are_refused(samples: Samples, planted: al.Directions) -> None:
    with pytest.raises(SiteError, match="these directions have no heads: they were read at attn_out"):
        al.steer(replace(planted, meta=replace(META, site="attn_out"), heads=None), "heads", heads=1)
    with pytest.raises(InputError, match="has no evidence of heads to choose from"):
        al.steer(planted + planted, "heads", heads=1)
    broken = replace(samples, values=samples.values.index_fill(1, torch.tensor([7]), torch.nan))
    with pytest.raises(InputError, match="sample 7 has NaN or infinite values at layer 0"):
        al.estimate(samples=broken)
    with pytest.raises(InputError, match="method='leace' does not fit single heads"):
        al.estimate(samples=samples, method="leace")
    with pytest.raises(InputError, match="Erase maps one vector per step"):
        al.Erase(planted)
    with pytest.raises(InputError, match="has heads, and a gate needs one vector per step"):
        al.gate(planted, strategy="heads", heads=1)
    with pytest.raises(InputError, match="give the strategy 'heads' and heads=k"):
        Factors(strategies=["heads"])
    with pytest.raises(InputError, match=r"layers=3: the strategies \['heads'\] use every block's own directions"):
        Factors(strategies=["heads"], heads=2, layers=3)
    with pytest.raises(InputError, match="a study compares single blocks"):
        Settings(strengths={"heads": (1.0,)})
