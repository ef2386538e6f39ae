"""Probes recover planted models and data, control for shuffled labels and leaks, and refuse bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import write_model
from plants import corners
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeCV
from sklearn.preprocessing import StandardScaler

import audiolens as al
from analysis import probing
from analysis.probing import Dataset, probes
from audiolens.cache.activation_cache import ActivationCache
from audiolens.errors import AudioLensError, InputError, SiteError

ROWS = 20
QUICK: dict[str, Any] = {"n_shuffles": 2, "n_bootstrap": 0}


def planted(folder: Path) -> al.AudioLens:
    """Block 1 writes tempo and timbre, each by a head; block 2's MLP whether they agree."""
    lens = al.AudioLens.from_pretrained(write_model(folder, layers=corners.N_LAYERS))
    corners.quiet(lens.model)
    corners.words(lens, 1, head=1, pair=0, axis=0)
    corners.words(lens, 1, head=2, pair=1, axis=1)
    corners.exclusive_or(lens, 2)
    return lens


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> al.AudioLens:
    return planted(tmp_path_factory.mktemp("plant"))


@pytest.fixture(scope="module")
def given(plant: al.AudioLens) -> tuple[list[str], ActivationCache]:
    """Prompts of all four corners over the same codes in each corner, and what every block holds of them."""
    prompts = corners.prompts(ROWS)
    _, cache = plant.run_with_cache(
        prompts, _shared(4), sites=["resid_post", "attn.z", "cross_attn.z", "mlp_out"], reduce="mean"
    )
    return prompts, cache


def _shared(times: int) -> torch.Tensor:
    return torch.randint(0, 32, (ROWS, 4, 8), generator=torch.Generator().manual_seed(0)).repeat(times, 1, 1)


def _tempo(prompts: list[str]) -> list[str]:
    return [prompt.split()[0] for prompt in prompts]


def _agree(prompts: list[str]) -> list[str]:
    return ["yes" if prompt.startswith(("fast bright", "slow dark")) else "no" for prompt in prompts]


def _pairs() -> list[int]:
    """Rows over the same codes stay together: cut apart, one would foretell that the other is the other pole."""
    return list(range(ROWS)) * 4


def test_under_shared_codes_a_concept_is_read_from_its_block_on_and_at_chance_below(
    given: tuple[list[str], ActivationCache],
) -> None:
    prompts, cache = given
    found = probing.probe(None, cache, _tempo(prompts), groups=_pairs(), **QUICK)
    assert found.scores[0] == pytest.approx(0.5, abs=0.01)
    assert (found.scores[1:] > 0.97).all()
    assert found.best >= 1
    assert "tempo" not in repr(found)
    assert "balanced accuracy 1.00" in repr(found)


def test_no_linear_probe_reads_an_exclusive_or_before_the_mlp_that_computes_it(
    given: tuple[list[str], ActivationCache],
) -> None:
    prompts, cache = given
    for kind in ("ridge", "logistic"):
        found = probing.probe(None, cache, _agree(prompts), groups=_pairs(), kind=kind, **QUICK)  # type: ignore[arg-type]
        assert found.scores[1] < 0.65, "a linear probe reads the product of two features"
        assert found.scores[2] > 0.95
    bent = probing.probe(None, cache, _agree(prompts), groups=_pairs(), kind="mlp", layers=[0, 1], **QUICK)
    assert bent.scores[0] < 0.65
    assert bent.scores[1] > 0.85, "an MLP reads what a linear probe cannot"


def test_heads_are_told_apart(given: tuple[list[str], ActivationCache]) -> None:
    prompts, cache = given
    found = probing.probe(
        None, cache, _tempo(prompts), site="cross_attn.z", layers=1, heads=[1, 2], groups=_pairs(), **QUICK
    )
    assert [probed.head for probed in found.sites] == [1, 2]
    assert found.scores[0] > 0.97
    assert found.scores[1] == pytest.approx(0.5, abs=0.1)
    assert found.plot().axes[0].get_xlabel() == "head"
    assert "head" in found.figure().layout.xaxis.title.text


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"layers": 1}, [1]),
        ({"layers": np.int64(1)}, [1]),
        ({"layers": torch.tensor([2, 1])}, [1, 2]),
        ({"layers": (layer for layer in (0, 2))}, [0, 2]),
    ],
)
def test_layers_of_a_cache_are_whole_numbers_of_any_library(
    given: tuple[list[str], ActivationCache], asked: dict[str, Any], expected: list[int]
) -> None:
    prompts, cache = given
    found = probing.probe(None, cache, _tempo(prompts), groups=_pairs(), **asked, **QUICK)
    assert [probed.layer for probed in found.sites] == expected


def test_heads_of_a_cache_may_be_read_once(given: tuple[list[str], ActivationCache]) -> None:
    prompts, cache = given
    found = probing.probe(
        None, cache, _tempo(prompts), site="attn.z", heads=(head for head in (2, 0)), groups=_pairs(), **QUICK
    )
    assert {(probed.layer, probed.head) for probed in found.sites} == {(i, j) for i in range(4) for j in (0, 2)}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"layers": [1, 9]}, r"layers=\[1, 9\]: the cache contains 0, 1, 2, 3 of attn.z"),
        ({"layers": []}, r"layers=\[\]: the cache contains"),
        ({"layers": [True, False, True, False]}, "expected a layer, a list of layers"),
        ({"layers": np.array([True, False, True, False])}, "expected a layer, a list of layers"),
        ({"heads": [True, False]}, "expected a list of heads"),
        ({"heads": np.array([True, False])}, "expected a list of heads"),
        ({"heads": [0, 9]}, r"heads=\[0, 9\]: the cache contains 0, 1, 2"),
        ({"heads": [0], "site": "resid_post"}, r"heads=\[0\]: the cache contains none of resid_post"),
    ],
)
def test_what_a_cache_does_not_hold_is_refused(
    given: tuple[list[str], ActivationCache], asked: dict[str, Any], message: str
) -> None:
    prompts, cache = given
    with pytest.raises(AudioLensError, match=message):
        probing.probe(None, cache, _tempo(prompts), groups=_pairs(), **{"site": "attn.z", **asked}, **QUICK)


def test_layers_of_an_array_name_its_sites() -> None:
    values, labels = np.random.default_rng(0).normal(size=(1, 20, 4)), ["a", "b"] * 10
    found = probing.probe(None, values, labels, layers=7, **QUICK)
    assert [probed.layer for probed in found.sites] == [7]
    with pytest.raises(InputError, match=r"layers \(2,\)"):
        probing.probe(None, values.repeat(3, 0), labels, layers=2, **QUICK)
    with pytest.raises(InputError, match="an array has none"):
        probing.probe(None, values, labels, heads=[0], **QUICK)


def test_folds_are_a_number_of_any_library_or_one_a_row() -> None:
    values, labels = np.random.default_rng(0).normal(size=(1, 20, 4)), ["a", "b"] * 10
    own = [i // 2 % 4 for i in range(20)]
    for folds in (own, np.array(own), torch.tensor(own), iter(own), [*torch.tensor(own)], np.array(own, dtype=float)):
        assert probing.probe(None, values, labels, folds=folds, **QUICK).folds.tolist() == own  # type: ignore[arg-type]
    expected = probing.probe(None, values, labels, folds=4, **QUICK).folds
    assert len(np.unique(expected)) == 4
    for number in (np.int64(4), torch.tensor(4), np.array(4)):
        found = probing.probe(None, values, labels, folds=number, **QUICK).folds  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([], "0 folds for 20 rows"),
        (np.zeros((20, 1)), "20 folds for 20 rows: give one per row"),
        (True, "n_folds=True"),
        ("two", "n_folds='two'"),
        ({0, 1}, "folds=set: expected a list"),
        ([0, 1] * 9 + [0, float("nan")], "the fold of row 19 is missing"),
        (np.ma.masked_array([0, 1] * 10, mask=[1] + [0] * 19), "folds is a masked array"),
    ],
)
def test_folds_that_are_neither_are_refused(folds: Any, message: str) -> None:
    values = np.random.default_rng(0).normal(size=(1, 20, 4))
    with pytest.raises(AudioLensError, match=message):
        probing.probe(None, values, ["a", "b"] * 10, folds=folds, **QUICK)


def test_prompts_codes_and_caches_give_the_same_probe(
    plant: al.AudioLens, given: tuple[list[str], ActivationCache]
) -> None:
    prompts, cache = given
    read = probing.probe(plant, prompts, _tempo(prompts), codes=_shared(4), layers=[0, 1], baselines=(), **QUICK)
    recorded = probing.probe(None, cache, _tempo(prompts), groups=_pairs(), layers=[0, 1], **QUICK)
    np.testing.assert_array_equal(read.groups, recorded.groups)
    np.testing.assert_allclose(read.scores, recorded.scores)


def test_only_the_text_is_read_at_the_first_step(plant: al.AudioLens) -> None:
    prompts = corners.prompts(10)
    found = probing.probe(plant, prompts, _tempo(prompts), position="first", layers=[1], **QUICK)
    assert not found.baselines
    assert found.scores[0] > 0.97
    with pytest.raises(InputError, match="same in every row"):
        probing.probe(plant, prompts, _tempo(prompts), position="first", layers=[0], **QUICK)


def test_probe_weights_steer(plant: al.AudioLens, given: tuple[list[str], ActivationCache]) -> None:
    prompts, cache = given
    found = probing.probe(plant, cache, _tempo(prompts), groups=_pairs(), baselines=(), **QUICK)
    fast = found.directions("fast")
    written = corners.axes(plant.config.d_model)[0]
    assert float(torch.cosine_similarity(fast[1], written, dim=0)) > 0.6
    np.testing.assert_allclose(found.directions("slow")[1], -fast[1], atol=1e-5)
    means = cache["resid_post", 1]
    pole = torch.tensor([label == "fast" for label in _tempo(prompts)])
    difference = means[pole].mean(0) - means[~pole].mean(0)
    assert float(fast[1].norm()) == pytest.approx(float(difference @ fast.unit()[1]), rel=1e-4)
    assert fast.meta.estimator == "ridge probe"
    codes = _shared(1)[:2]
    _, before = plant.run_with_cache(["slow song"] * 2, codes, reduce="mean")
    steps = al.steer(fast, strategy="one-to-one", layer=1, strength=1.0)
    _, after = plant.run_with_cache(["slow song"] * 2, codes, reduce="mean", interventions=steps)
    moved = (after.project(fast) - before.project(fast))[1]
    np.testing.assert_allclose(moved, float(fast.norms[1]), rtol=1e-4)


@pytest.fixture(scope="module")
def simulated() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 rows in 50 groups that share a group's own vector; the second of two layers knows the label."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 4)
    labels = np.repeat(rng.permutation(np.arange(50) % 2), 4)
    values = rng.normal(size=(2, 200, 24)) + 2 * rng.normal(size=(2, 50, 24))[:, groups]
    values[1, :, 0] += 6 * labels
    return values, labels, groups


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_shuffled_labels_are_read_at_chance(simulated: tuple[np.ndarray, ...], kind: Any) -> None:
    values, labels, groups = simulated
    found = probing.probe(None, values, labels, groups=groups, kind=kind, n_shuffles=40, n_bootstrap=0)
    mean = found.shuffled.mean(axis=1)
    print(f"{kind}: shuffled labels {mean.round(3)} over 40 shuffles, real {found.scores.round(3)}")
    assert np.abs(mean - 0.5).max() < 0.05
    assert found.p[1] == pytest.approx(1 / 41)
    assert found.p[0] > 0.05
    np.testing.assert_allclose(found.selectivity, found.scores - mean)
    assert (found.to_frame()["memorised"] > 0.55).all()


def test_rows_of_one_group_would_leak_if_they_were_split(simulated: tuple[np.ndarray, ...]) -> None:
    values, labels, groups = simulated
    apart = probing.probe(None, values[:1], labels, **QUICK).scores[0]
    together = probing.probe(None, values[:1], labels, groups=groups, **QUICK).scores[0]
    assert apart > 0.7, "the data are such that a leak shows"
    assert together < 0.65


def test_no_group_is_on_both_sides_and_folds_keep_the_classes(simulated: tuple[np.ndarray, ...]) -> None:
    _, labels, groups = simulated
    plan = probes.CrossValidation.of(labels, groups, task="classification", names=("0", "1"), n_shuffles=5)
    for group in np.unique(groups):
        assert len(np.unique(plan.folds[groups == group])) == 1
    for target in plan.targets:
        for fold in range(5):
            assert (target[plan.folds == fold]).sum() == (labels[plan.folds == fold]).sum()
        for group in np.unique(groups):
            assert len(np.unique(target[groups == group])) == 1, "a shuffle gave rows of one prompt several labels"


def test_scaler_and_pca_see_the_training_side_alone() -> None:
    """Against a loop with sklearn's own parts; a test row that is far out must not move the training side's scale."""
    rng = np.random.default_rng(1)
    values, labels = rng.normal(size=(40, 6)), rng.normal(size=40)
    values[7] = 1000
    plan = probes.CrossValidation.of(labels, np.arange(40), task="regression", n_folds=4, n_shuffles=1)
    probe = probes.Probe("ridge", "regression", penalty=3.0)
    found = plan.scored(values, probe, n_bootstrap=0)
    expected = np.empty(40)
    for fold in range(4):
        test = plan.folds == fold
        scale = StandardScaler().fit(values[~test])
        model = Ridge(3.0).fit(scale.transform(values[~test]), labels[~test])
        expected[test] = model.predict(scale.transform(values[test]))
    np.testing.assert_allclose(found.outputs[:, 0], expected, rtol=1e-6, atol=1e-8)
    reduced = probes.Probe("ridge", "regression", n_components=2).preprocessing(30, 6).fit(values[:30])
    assert reduced.transform(values[:30]).shape == (30, 2)


def test_a_quantity_is_predicted_with_its_interval() -> None:
    rng = np.random.default_rng(2)
    quantity = rng.uniform(60, 200, size=200)
    values = rng.normal(size=(2, 200, 10))
    values[1, :, 3] += quantity / 40
    found = probing.probe(None, values, quantity)
    r2 = float(np.var(quantity / 40) / (np.var(quantity / 40) + 1))
    one = found.scored[1]
    assert found.probe.kind == "ridge"
    assert one.score == pytest.approx(r2, abs=0.08)
    assert one.interval.low < r2 < one.interval.high
    assert abs(float(found.shuffled.mean())) < 0.05
    assert found.scores[0] < 0.05
    assert np.isnan(one.auc)
    assert float(found.vectors[1, 0, 3]) == pytest.approx(float(np.abs(found.vectors[1, 0]).max()))  # type: ignore[index]


def test_scores_of_several_unequal_classes() -> None:
    rng = np.random.default_rng(3)
    labels = np.array(["a"] * 120 + ["b"] * 40 + ["c"] * 40)
    values = rng.normal(size=(1, 200, 6))
    values[0, labels == "b", 0] += 8
    found = probing.probe(None, values, labels, kind="logistic", n_shuffles=20, n_bootstrap=50)
    assert found.chance == pytest.approx(1 / 3)
    assert found.scores[0] == pytest.approx(2 / 3, abs=0.1), "b is known, a and c are guessed"
    assert float(found.shuffled.mean()) == pytest.approx(1 / 3, abs=0.05)
    assert found.scored[0].auc > 0.6
    assert set(found.to_frame().columns) >= {"layer", "head", "score", "low", "high", "auc", "shuffled", "selectivity"}


def test_what_no_shuffle_can_show_is_not_called_chance() -> None:
    """Two rows of either class in each of two folds can be dealt out in 36 ways, two groups a fold in 4."""
    values, labels = np.random.default_rng(0).normal(size=(1, 8, 3)), np.array([0, 0, 1, 1] * 2)
    values[0, labels == 1] += 50
    folds = [0] * 4 + [1] * 4
    pairs = [0, 0, 2, 2, 3, 3, 4, 4]
    least = [probes.least_p(labels, np.array(rows), np.array(folds), 999) for rows in (range(8), pairs)]
    assert least == pytest.approx([1 / 36, 1 / 4])
    given: dict[str, Any] = {"folds": folds, "groups": list("aabbccdd"), "n_bootstrap": 0}
    assert "(too few rows or shuffles to test: p = " in repr(probing.probe(None, values, labels, **given))
    few = probing.probe(None, values, labels, **{**given, "groups": range(8), "n_shuffles": 9})
    assert "(too few rows or shuffles to test: p = " in repr(few)


def test_the_best_place_of_noise_is_said_to_be_no_better_than_chance() -> None:
    values = np.random.default_rng(0).normal(size=(12, 60, 8))
    found = probing.probe(None, values, ["a", "b"] * 30, groups=range(60), n_bootstrap=0)
    assert found.p.min() > 0.05
    assert "best of 12 (no better than shuffled labels: p = " in repr(found)
    values[4, ::2] += 2
    assert "best of 12 (p = 0.048)" in repr(probing.probe(None, values, ["a", "b"] * 30, groups=range(60)))


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mlp"])
def test_a_rare_class_is_recognised_as_far_as_it_lies_apart(kind: Any) -> None:
    """Two sigma apart, the best threshold recognises Phi(1) = 84% of either class, however rare one is."""
    rng = np.random.default_rng(0)
    labels = (np.arange(200) < 20).astype(int)
    values = rng.normal(size=(1, 200, 8))
    values[0, :, 0] += 2 * labels
    found = probing.probe(None, values, labels, kind=kind, n_bootstrap=50)
    assert found.scores[0] == pytest.approx(0.84, abs=0.06)
    assert found.p[0] == pytest.approx(1 / 21)
    assert found.scored[0].auc == pytest.approx(0.92, abs=0.05)
    assert f"AUC {found.scored[0].auc:.2f}" in repr(found)
    assert float(found.shuffled.mean()) == pytest.approx(0.5, abs=0.05)


def test_a_ridge_of_unequal_classes_is_the_weighted_one_of_sklearn() -> None:
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1, 2], [30, 8, 12])
    values = rng.normal(size=(50, 5)) + labels[:, None] * [1, 0, 0, 0, 0]
    plan = probes.CrossValidation.of(
        labels, np.arange(50), task="classification", names=("a", "b", "c"), n_folds=4, n_shuffles=1
    )
    found = plan.scored(values, probes.Probe("ridge", "classification", 3, penalty=3.0), n_bootstrap=0)
    for fold in range(4):
        test = plan.folds == fold
        scale = StandardScaler().fit(values[~test])
        fitted = RidgeClassifier(3.0, class_weight="balanced").fit(scale.transform(values[~test]), labels[~test])
        expected = fitted.decision_function(scale.transform(values[test]))
        np.testing.assert_allclose(found.outputs[test], expected, rtol=1e-6, atol=1e-8)


def test_equal_classes_are_scored_as_without_weights() -> None:
    rng = np.random.default_rng(5)
    labels = np.arange(40) % 2
    values = rng.normal(size=(40, 6))
    plan = probes.CrossValidation.of(
        labels, np.arange(40), task="classification", names=("a", "b"), n_folds=4, n_shuffles=1
    )
    found = plan.scored(values, probes.Probe("ridge", "classification", 2), n_bootstrap=0)
    for fold in range(4):
        test = plan.folds == fold
        scale = StandardScaler().fit(values[~test])
        coded = 2.0 * (labels[~test][:, None] == np.arange(2)) - 1
        fitted = RidgeCV(probes.PENALTIES, alpha_per_target=True).fit(scale.transform(values[~test]), coded)
        np.testing.assert_allclose(found.outputs[test], fitted.predict(scale.transform(values[test])), rtol=1e-9)


def test_rows_whose_prompts_are_not_known_are_said_to_count_as_independent(
    given: tuple[list[str], ActivationCache],
) -> None:
    """Rows of a prompt share a vector that says nothing of the label but which prompt it is."""
    rng = np.random.default_rng(0)
    names = [f"prompt {row // 10}" for row in range(200)]
    labels = np.repeat(rng.permutation(np.arange(20) % 2), 10)
    values = (rng.normal(size=(20, 64))[np.arange(200) // 10] + 0.3 * rng.normal(size=(200, 64)))[None]
    bare = probing.probe(None, values, labels, **QUICK)
    assert bare.scores[0] > 0.95, "the data are such that a leak shows"
    assert not bare.grouped
    assert "rows have no prompts or groups=, so each counts as independent" in repr(bare)
    assert "each counts as independent" in bare.plot().axes[0].get_title(loc="left").replace("\n", " ")
    named = probing.probe(None, values, labels, groups=names, **QUICK)
    assert named.scores[0] < 0.75
    assert "independent" not in repr(named)
    prompts, cache = given
    recorded = probing.probe(None, cache, _tempo(prompts), **QUICK)
    assert recorded.grouped
    assert recorded.groups.max() + 1 == len(set(prompts))
    unnamed = probing.probe(None, replace(cache, prompts=()), _tempo(prompts), **QUICK)
    assert "each counts as independent" in repr(unnamed)


@pytest.fixture(scope="module")
def sounds() -> Dataset:
    """Tones and noises of half a second, and codes (no tiny codec's) of which each kind has its own half."""
    rng = np.random.default_rng(0)
    time = np.arange(8320) / 16_000
    tones = [np.sin(2 * np.pi * rng.uniform(100, 300) * time) for _ in range(10)]
    audio = 0.3 * np.stack([*tones, *rng.normal(size=(10, 8320))]).astype(np.float32)
    codes = torch.from_numpy(rng.integers(0, 16, size=(20, 4, 13)))
    codes[10:] += 16
    return Dataset(np.array(["tone"] * 10 + ["noise"] * 10), (None,) * 20, codes, audio, 16_000, name="sound")


def test_baselines_stand_beside_the_model(lens: al.AudioLens, sounds: Dataset) -> None:
    found = probing.probe(lens, sounds, n_shuffles=19, n_bootstrap=50)
    table = found.to_frame()
    assert list(table["place"]) == ["block 0", "block 1", "block 2", "mel", "codec"]
    assert found.baselines["mel"].score > 0.95
    gains = found.gains(n_bootstrap=50)
    assert len(gains) == 6
    assert (gains["low"] <= gains["gain"]).all()
    axes = found.plot().axes[0]
    assert axes.get_xlabel() == "block"
    assert axes.get_ylabel() == "balanced accuracy (2 classes)"
    named = {trace.name for trace in found.figure().data}
    assert {"mel, no model", "codec, no model", "shuffled labels"} <= named


def test_baselines_hear_the_span_that_is_probed(lens: al.AudioLens, sounds: Dataset) -> None:
    from analysis.probing import features

    half = features.of_sound(lens, sounds, "codec", (0.0, 0.2)).values
    assert sounds.codes is not None
    cut = Dataset(sounds.labels, sounds.prompts, sounds.codes[..., :5])
    np.testing.assert_allclose(half, features.of_sound(lens, cut, "codec").values)
    embedded = lens.model.audio_encoder.quantizer.decode(cut.codes.transpose(0, 1))  # type: ignore[union-attr]
    np.testing.assert_allclose(half[0, :, :16], embedded.mean(-1).detach(), atol=1e-5)


def test_time_spans_and_positions_are_those_of_the_cache(lens: al.AudioLens, sounds: Dataset) -> None:
    from analysis.probing import features

    _, cache = lens.run_with_cache(sounds.prompts, sounds.codes, sites="attn_out")
    whole = cache.stack("attn_out").numpy()
    for position, steps in (((0.2, 0.4), slice(5, 10)), ("first", slice(0, 1)), ("last", slice(12, 13))):
        found = features.of_model(lens, sounds, site="attn_out", position=position).values  # type: ignore[arg-type]
        if position == "last":
            last = lens.timeline(sounds.codes.shape[-1]).last  # type: ignore[union-attr]
            steps = slice(last, last + 1)
        np.testing.assert_allclose(found, whole[:, :, steps].mean(2), atol=1e-4)


def test_own_sounds_from_a_folder_and_a_table(lens: al.AudioLens, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["file,genre,artist"]
    for place in range(8):
        soundfile.write(tmp_path / f"{place}.wav", 0.1 * rng.normal(size=(8000 + place, 2)), 16_000)
        lines.append(f"{place}.wav,{'ab'[place % 2]},artist {place // 4}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(lines))
    data = Dataset.from_folder(lens, tmp_path, table, "genre", group="artist")
    assert list(data.labels) == ["a", "b"] * 4
    assert list(np.asarray(data.groups)) == [0] * 4 + [1] * 4
    expected = lens.encode_audio(soundfile.read(tmp_path / "3.wav")[0].astype(np.float32)[:8000].mean(1), 16_000)
    assert data.codes is not None
    assert torch.equal(data.codes[3], expected[0])
    with pytest.raises(InputError, match="no column 'key': it has file, genre, artist"):
        Dataset.from_folder(lens, tmp_path, table, "key")
    with pytest.raises(InputError, match="lasts 0.5 s, less than seconds=2"):
        Dataset.from_folder(lens, tmp_path, table, "genre", seconds=2)
    table.write_text("file,genre\nabsent.wav,a")
    with pytest.raises(InputError, match=r"absent.wav: no such file. It is named in"):
        Dataset.from_folder(lens, tmp_path, table, "genre")


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_sounds_in_whole_numbers_are_those_that_they_were_scaled_from(lens: al.AudioLens, dtype: Any) -> None:
    waves = np.random.default_rng(0).integers(-6000, 6000, size=(4, 2, 6400)) / 2**15
    scaled = (waves * -float(np.iinfo(dtype).min)).astype(dtype)
    labels = ["a", "b"] * 2
    whole = Dataset.from_arrays(lens, [scaled[0], torch.from_numpy(scaled[1]), *scaled[2:]], 16_000, labels)
    real = Dataset.from_arrays(lens, [*waves], 16_000, labels)
    np.testing.assert_array_equal(np.asarray(whole.audio), waves.mean(1).astype(np.float32))
    assert whole.codes is not None
    assert real.codes is not None
    assert torch.equal(whole.codes, real.codes)


def test_sounds_of_unknown_scale_are_refused(lens: al.AudioLens) -> None:
    sound = np.zeros(6400)
    masked = np.ma.masked_less(np.linspace(-1, 1, 6400), 0)
    for other, message in (
        (sound.astype(np.uint8), "sound 1 has dtype uint8"),
        ([0, 1] * 3200, "sound 1 has dtype int64"),
        (sound.astype(bool), "sound 1 has dtype bool"),
        (sound.astype(complex), "sound 1 has dtype complex128"),
        (masked, "sounds is a masked array"),
    ):
        with pytest.raises(TypeError, match=message):
            Dataset.from_arrays(lens, [sound, other], 16_000, ["a", "b"])


def test_the_synthesiser_gives_balanced_labels_that_are_its_own(lens: al.AudioLens) -> None:
    from audiolens.etude import synth

    data = Dataset.from_synth(lens, "tempo", 6, seed=3, seconds=0.5)
    assert sorted(data.labels) == ["high"] * 3 + ["low"] * 3
    kept = [i for i in range(100) if synth.label(i, 3)[0].level("tempo") != "mid"]
    assert data.audio is not None
    by_label = {"low": 0, "high": 0}
    for row, index in zip(range(len(data)), kept, strict=False):
        level = synth.label(index, 3)[0].level("tempo")
        if by_label[level] == 3:
            break
        by_label[level] += 1
        assert data.labels[row] == level
        np.testing.assert_array_equal(data.audio[row], synth.labelled_clip(index, 3, 0.5).audio)
    quantity = Dataset.from_synth(lens, "timbre", 2, task="regression", seconds=0.5)
    assert ((quantity.labels >= 0) & (quantity.labels <= 1)).all()
    with pytest.raises(InputError, match="not a label of the synthesiser. Did you mean 'tempo'"):
        Dataset.from_synth(lens, "temp")


def test_rows_that_share_a_prompt_or_a_clip_share_a_group() -> None:
    codes = torch.arange(5).repeat_interleave(1)[:, None, None].expand(5, 4, 2).clone()
    codes[3] = codes[0]
    data = Dataset(np.array(list("ababa")), ("x", "y", "x", "z", "w"), codes)
    assert list(np.asarray(data.groups)) == [0, 1, 0, 0, 2]
    alone = Dataset(np.array(list("abab")), (None,) * 4)
    assert len(np.unique(np.asarray(alone.groups))) == 4


Refusal = tuple[Callable[[], object], str]


def _refusals() -> list[Refusal]:
    values, labels = np.random.default_rng(0).normal(size=(1, 20, 4)), ["a", "b"] * 10
    leak = Dataset(np.array(["a", "b"] * 10), tuple(f"prompt {i // 2}" for i in range(20)))
    return [
        (lambda: probing.probe(None, values, labels[:-1]), "19 labels for 20 rows"),
        (lambda: probing.probe(None, values, ["a"] * 20), "at least two labels"),
        (lambda: probing.probe(None, values, ["a"] * 19 + ["b"]), "at least two rows each"),
        (lambda: probing.probe(None, values, ["a"] * 17 + ["b"] * 3), "'b' has 3 groups .* folds=3"),
        (lambda: probing.probe(None, values, ["a", None] * 10), "the label of row 1 is missing"),
        (lambda: probing.probe(None, values, [0.5] * 20, task="regression"), "all labels are equal"),
        (lambda: probing.probe(None, np.ones_like(values), labels), "the same in every row"),
        (lambda: probing.probe(None, values * np.nan, labels), "NaN or infinite"),
        (lambda: probing.probe(None, values[..., None], labels), "expected 'layer row feature'"),
        (lambda: probing.probe(None, values, labels, kind="tree"), "expected one of logistic, ridge, mlp"),  # type: ignore[arg-type]
        (lambda: probing.probe(None, values, np.arange(20.0), kind="logistic"), "needs classes"),
        (lambda: probing.probe(None, values, labels, n_shuffles=0), "to compare scores with"),
        (lambda: probing.probe(None, values, labels, folds=1), "n_folds=1"),
        (lambda: probing.probe(None, values, labels, folds=[0] * 20), "all rows are in one fold"),
        (lambda: probing.probe(None, values, labels, groups=[0] * 10 + [1] * 10), "has 2 groups"),
        (lambda: probing.probe(None, values, labels, groups=[0] * 10 + [1] * 10, folds=[0, 1] * 10), "a leak: rows 0"),
        (lambda: probing.probe(None, leak), "give the lens"),
        (lambda: Dataset(leak.labels, leak.prompts, groups=np.arange(20)), "a leak: rows 0 and 1 share their prompt"),
        (lambda: probing.probe(None, values, labels).directions("a"), "the model of these activations is unknown"),
        (lambda: probing.probe(None, values, labels, kind="mlp", **QUICK).directions("a"), "no direction of weights"),
    ]


@pytest.mark.parametrize("place", range(len(_refusals())))
def test_what_cannot_be_probed_is_refused(place: int) -> None:
    call, message = _refusals()[place]
    with pytest.raises(InputError, match=message):
        call()


def test_sites_that_cannot_be_probed_are_refused_before_the_model_runs(lens: al.AudioLens, sounds: Dataset) -> None:
    with pytest.raises(SiteError, match="unknown site 'resid_pots'"):
        probing.probe(lens, sounds, site="resid_pots", baselines=())
    with pytest.raises(SiteError, match="layer 9 does not exist"):
        probing.probe(lens, sounds, layers=9, baselines=())
    with pytest.raises(InputError, match="expected a site with one vector per step"):
        probing.probe(lens, sounds, site="attn.pattern", baselines=())
    with pytest.raises(InputError, match="expected 'mean', 'first'"):
        probing.probe(lens, sounds, position="middle", baselines=())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ends after the clip"):
        probing.probe(lens, sounds, position=(0, 9), baselines=())
    with pytest.raises(InputError, match="no codes"):
        probing.probe(lens, Dataset(sounds.labels, sounds.prompts))
    with pytest.raises(InputError, match="already has labels"):
        probing.probe(lens, sounds, sounds.labels)  # type: ignore[arg-type]
    _, cache = lens.run_with_cache("a song")
    with pytest.raises(InputError, match="recorded with every step"):
        probing.probe(None, cache, ["a"])
