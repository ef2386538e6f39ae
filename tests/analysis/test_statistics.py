"""Statistics on simulated data: interval coverage, false-positive rates, and agreement with scikit-learn."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from analysis import statistics
from audiolens import ranking
from audiolens.directions.directions import Directions
from audiolens.directions.samples import Samples
from audiolens.errors import AudioLensError
from audiolens.model.provenance import Provenance


def pairs(rng, n_prompts=24, n_seeds=4, shift=0.3, prompt_sd=0.15, seed_sd=0.2):
    """Steered and baseline values whose median relative change is `shift`, correlated within prompts."""
    prompts = np.repeat(np.arange(n_prompts), n_seeds)
    baseline = rng.uniform(60, 160, len(prompts))
    change = shift + prompt_sd * rng.standard_normal(n_prompts)[prompts] + seed_sd * rng.standard_normal(len(prompts))
    return baseline * (1 + change), baseline, prompts


def test_effect_is_the_median_relative_change():
    result = statistics.effect([110, 120, 150], [100, 100, 100], ["a", "b", "c"])
    assert result.value == pytest.approx(0.2)
    assert (result.n_pairs, result.interval.n_clusters, result.failed_share) == (3, 3, 0)
    assert "+20.0%" in repr(result)


def test_absolute_effect_for_measures_without_a_true_zero():
    result = statistics.effect([-20, -18, -17], [-23, -23, -23], ["a", "b", "c"], relative=False)
    assert result.value == 5
    with pytest.raises(ValueError, match="relative=False"):
        statistics.effect([-20.0], [-23.0], ["a"])


def test_failed_and_unmeasured_clips_count_as_no_effect():
    steered, baseline = np.array([200.0, 200, 200, np.nan, 200]), np.full(5, 100.0)
    failed = [False, True, True, False, False]
    result = statistics.effect(steered, baseline, list("abcde"), failed)
    assert result.value == 0
    assert result.failed_share == pytest.approx(0.6)
    assert not result.claimable


def test_pairs_without_a_baseline_measure_are_left_out_and_counted():
    result = statistics.effect([110, 120, 500], [100, 100, np.nan], ["a", "b", "c"])
    assert (result.n_pairs, result.n_left_out) == (2, 1)
    assert result.value == pytest.approx(0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("n_prompts", "least"), [(24, 0.92), (8, 0.90)])
def test_effect_interval_covers_the_truth(n_prompts, least):
    rng = np.random.default_rng(0)
    covered = [
        i.low <= 0.3 <= i.high
        for i in (statistics.effect(*pairs(rng, n_prompts), n_bootstrap=300).interval for _ in range(300))
    ]
    print(f"coverage of the 95% interval, {n_prompts} prompts x 4 seeds: {np.mean(covered):.3f}")
    assert least <= np.mean(covered) <= 0.995


def test_interval_that_ignored_prompts_would_be_too_narrow():
    rng = np.random.default_rng(1)
    steered, baseline, prompts = pairs(rng, prompt_sd=0.4, seed_sd=0.05)
    clustered = statistics.effect(steered, baseline, prompts).interval
    by_row = statistics.effect(steered, baseline, np.arange(len(prompts))).interval
    assert clustered.high - clustered.low > 1.4 * (by_row.high - by_row.low)


@pytest.mark.slow
def test_no_effect_is_seldom_claimed():
    rng = np.random.default_rng(2)
    claimed = [statistics.effect(*pairs(rng, shift=0.0), n_bootstrap=300).claimable for _ in range(300)]
    print(f"false claims at 95%: {np.mean(claimed):.3f}")
    assert np.mean(claimed) <= 0.08


@pytest.mark.slow
def test_interval_of_a_difference_covers_the_truth_with_failed_clips_among_them():
    rng, covered = np.random.default_rng(12), []
    for _ in range(200):
        steered, baseline, prompts = pairs(rng, n_prompts=12)
        # Decibels: a shift of 4, and one clip in twenty that failed and is heard as none.
        change = 10 * (steered / baseline - 1) + 1
        failed = rng.random(len(change)) < 0.05
        levels = np.full(len(change), -20.0)
        found = statistics.effect(levels + change, levels, prompts, failed, relative=False, n_bootstrap=200)
        covered.append(found.interval.low <= 4.0 <= found.interval.high)
    print(f"coverage of the 95% interval of a difference, 12 prompts, 5% failed: {np.mean(covered):.3f}")
    assert 0.91 <= np.mean(covered) <= 0.995


def test_effect_without_bootstrap_or_with_one_prompt_has_no_interval():
    for result in (
        statistics.effect([1.0, 2.0], [1.0, 1.0], ["a", "b"], n_bootstrap=0),
        statistics.effect([1.0, 2.0], [1.0, 1.0], ["a", "a"]),
    ):
        assert np.isnan(result.interval.low)
        assert not result.claimable


def test_same_seed_same_interval():
    data = pairs(np.random.default_rng(3))
    assert statistics.effect(*data, seed=5) == statistics.effect(*data, seed=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], ["a"]), "lengths differ"),
        (([[1.0]], [[1.0]], ["a"]), "one number per row"),
        (([1.0], [np.nan], ["a"]), "no pair"),
        (([1.0, 2.0], [1.0, 1.0], ["a"]), "one prompt for each"),
    ],
)
def test_effect_refuses_what_does_not_pair(arguments, message):
    with pytest.raises(ValueError, match=message):
        statistics.effect(*arguments)


def test_auc_agrees_with_sklearn_ties_included():
    rng = np.random.default_rng(4)
    scores, labels = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    assert statistics.auc(scores, labels, n_bootstrap=0).value == pytest.approx(roc_auc_score(labels, scores))


def test_auc_counts_a_missing_score_as_undecided():
    result = statistics.auc([np.nan, 2.0, 1.0], [1, 1, 0], n_bootstrap=0)
    assert result.value == pytest.approx(0.75)
    assert result.n_without_score == 1


@pytest.mark.slow
def test_auc_interval_covers_the_truth_with_clustered_rows():
    rng, truth, n_prompts = np.random.default_rng(5), stats.norm.cdf(1.0), 20
    labels = np.repeat([True, False], n_prompts * 4)
    prompts = np.repeat(np.arange(2 * n_prompts), 4)
    covered = []
    for _ in range(300):
        # unit variance within a group in all; means sqrt(2) apart, so that the AUC is Phi(1)
        noise = np.sqrt(0.5) * (rng.standard_normal(2 * n_prompts)[prompts] + rng.standard_normal(len(prompts)))
        interval = statistics.auc(noise + np.sqrt(2) * labels, labels, prompts, n_bootstrap=300).interval
        covered.append(interval.low <= truth <= interval.high)
    print(f"coverage of the AUC's 95% interval: {np.mean(covered):.3f}")
    assert np.mean(covered) >= 0.92


def test_auc_needs_both_labels():
    with pytest.raises(ValueError, match="both True and False"):
        statistics.auc([1.0, 2.0], [1, 1])


def test_rank_p_is_one_plus_k_over_n_plus_one():
    controls = np.arange(19.0)
    assert statistics.rank_test(100, controls).p == pytest.approx(1 / 20)
    assert statistics.rank_test(17, controls).p == pytest.approx(3 / 20)
    assert statistics.rank_test(-5, controls, "less").p == pytest.approx(1 / 20)
    assert statistics.rank_test(-17, controls, "two-sided").p == pytest.approx(3 / 20)


def test_rank_p_is_uniform_when_the_direction_is_random_too():
    rng = np.random.default_rng(6)
    p = np.array([statistics.rank_test(row[0], row[1:]).p for row in rng.standard_normal((4000, 20))])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=0.025)
    print(f"false positives at .05 with 19 controls: {np.mean(p <= 0.05):.3f}")


def test_the_mean_change_is_geometric_and_counts_failed_clips_as_none():
    before, after = [100.0, 100.0, 100.0, np.nan], [200.0, 50.0, np.nan, 300.0]
    prompts = ["a", "b", "c", "d"]
    assert statistics.effect(after, before, prompts, n_bootstrap=0).mean == pytest.approx(0)
    found = statistics.effect([200.0, 200.0, 0.0], [100.0] * 3, prompts[:3], n_bootstrap=0)
    assert found.mean == pytest.approx((2 * 2 * 0.01) ** (1 / 3) - 1)
    lost = statistics.effect([200.0, 900.0], [100.0] * 2, prompts[:2], [False, True], n_bootstrap=0)
    assert lost.mean == pytest.approx(2**0.5 - 1)
    apart = statistics.effect([3.0, 5.0], [1.0, 1.0], prompts[:2], relative=False, n_bootstrap=0)
    assert apart.mean == 3


def test_rank_p_is_uniform_among_effects_that_share_their_baseline_clips():
    """Steered and control directions are measured on the same clips: their effects are correlated, and still rank."""
    rng, p = np.random.default_rng(10), []
    for _ in range(1500):
        clips = rng.normal(0, 0.3, (1, 24))
        pushes = rng.normal(0, 0.1, (20, 1)) + clips + rng.normal(0, 0.2, (20, 24))
        own, *controls = np.median(pushes, axis=1)
        p.append([statistics.rank_test(own, controls, side).p for side in ("greater", "less", "two-sided")])
    rates = np.mean(np.array(p) <= 0.05, axis=0)
    print(f"false positives at .05, shared clips, 19 controls: greater, less, two-sided {rates}")
    np.testing.assert_allclose(rates, 0.05, atol=0.02)


@pytest.mark.slow
def test_shuffled_labels_rank_a_direction_of_nothing_anywhere_and_one_of_something_first():
    rates = {}
    for shift in (0.0, 1.5):
        p = []
        for seed in range(120):
            # Other shuffles for each, whose own overlap would otherwise be in every one of them.
            directions, readout = shuffled_pair(shift, 50_000 + seed)
            controls = [float(directions.shuffled(9 * seed + draw)[0] @ readout) for draw in range(9)]
            p.append(statistics.rank_test(float(directions[0] @ readout), controls).p)
        rates[shift] = float(np.mean(np.array(p) <= 0.1))
    print(f"rank p at most .1 among 9 shuffled: {rates[0.0]:.3f} of nothing, {rates[1.5]:.3f} of a concept")
    assert rates[0.0] == pytest.approx(0.1, abs=0.07)
    assert rates[1.5] > 0.75


def shuffled_pair(shift, seed):
    """Directions at one layer whose prompts differ along a readout by `shift`, and that readout."""
    draw = torch.Generator().manual_seed(seed)
    readout = torch.zeros(8)
    readout[0] = 1.0
    labels = torch.arange(24) < 12
    values = torch.randn(1, 24, 8, generator=draw) + shift * labels[:, None] * readout
    samples = Samples(values, labels, (0,), tuple(map(str, range(24))))
    meta = Provenance(model="planted", weights="0" * 16, n_layers=1)
    return Directions(samples.difference(), (0,), torch.ones(1), meta, None, samples), readout


@pytest.mark.parametrize(
    ("observed", "controls", "message"),
    [(1.0, [], "at least one"), (1.0, [np.nan, 2.0], "NaN"), (np.nan, [1.0], "NaN")],
)
def test_rank_refuses_missing_values(observed, controls, message):
    with pytest.raises(ValueError, match=message):
        statistics.rank_test(observed, controls)


def test_spearman_agrees_with_scipy():
    rng = np.random.default_rng(7)
    x, y = np.arange(9.0), rng.standard_normal(9)
    ours, theirs = statistics.spearman(x, y), stats.spearmanr(x, y)
    assert ours.rho == pytest.approx(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue, abs=0.06)


def test_spearman_of_five_monotone_strengths_is_exact():
    result = statistics.spearman([-2, -1, 0, 1, 2], [50, 60, 90, 130, 180])
    assert result.rho == pytest.approx(1)
    assert result.p == pytest.approx(2 / 120)


def test_spearman_leaves_out_nan_and_says_when_nothing_varies():
    assert statistics.spearman([0, 1, 2, 3], [1, np.nan, 2, 3]).n == 3
    assert np.isnan(statistics.spearman([0, 1, 2], [5, 5, 5]).rho)


@pytest.mark.slow
def test_spearman_false_positive_rate():
    rng = np.random.default_rng(8)
    p = [statistics.spearman(np.arange(6), rng.standard_normal(6)).p for _ in range(400)]
    print(f"Spearman false positives at .05: {np.mean(np.array(p) <= 0.05):.3f}")
    assert np.mean(np.array(p) <= 0.05) <= 0.08


def test_corrections_on_a_worked_example():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(statistics.correct(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.correct(p, "bh"), [0.02, 0.04, 0.04, 0.02])


def test_holm_bounds_any_false_claim_and_bh_their_share():
    rng = np.random.default_rng(9)
    any_false, shares = [], []
    for _ in range(2000):
        p = rng.random(12)
        p[:4] = stats.norm.sf(rng.standard_normal(4) + 3)
        any_false.append((statistics.correct(p)[4:] <= 0.05).any())
        claims = statistics.correct(p, "bh") <= 0.05
        shares.append(claims[4:].sum() / max(claims.sum(), 1))
    print(f"Holm: any false claim {np.mean(any_false):.3f}; BH: share of false claims {np.mean(shares):.3f}")
    assert np.mean(any_false) <= 0.06
    assert np.mean(shares) <= 0.055


def test_looking_at_twelve_layers_is_corrected_for_where_they_resemble_each_other():
    """The best of twelve layers by rank p, neighbours alike: the families with any claim where there is nothing."""
    rng, steps, claims = np.random.default_rng(11), 12, {"none": [], "holm": [], "bh": []}
    for _ in range(400):
        # A walk over layers, one for the direction and 399 for controls.
        walks = rng.standard_normal((400, steps)).cumsum(axis=1) / np.sqrt(np.arange(1, steps + 1))
        p = [statistics.rank_test(walks[0, layer], walks[1:, layer]).p for layer in range(steps)]
        claims["none"].append(min(p) <= 0.05)
        for method in ("holm", "bh"):
            claims[method].append((statistics.correct(p, method) <= 0.05).any())
    rates = {name: float(np.mean(found)) for name, found in claims.items()}
    print(f"any false claim over 12 layers: uncorrected {rates['none']:.3f}, Holm {rates['holm']:.3f}, "
          f"BH {rates['bh']:.3f}")  # fmt: skip
    assert rates["none"] > 0.1
    assert rates["holm"] <= rates["bh"] <= 0.08


@pytest.mark.parametrize("p", [[], [0.5, np.nan], [1.5]])
def test_corrections_refuse_what_is_no_p_value(p):
    with pytest.raises(ValueError, match="p_values"):
        statistics.correct(p)


def test_means_of_a_grid_agree_with_the_bootstrap_of_each_cell():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), 3)
    values = rng.normal(0.3, 1, (36, 2, 3)) + rng.normal(0, 1, 12)[clusters][:, None, None]
    values[5, 0, 0] = np.nan
    found = statistics.means(values, clusters, n_bootstrap=4000)
    assert found.value.shape == (2, 3)
    assert found.n[0, 0] == 35
    np.testing.assert_allclose(found.value, np.nanmean(values, axis=0))
    for cell in [(0, 1), (1, 2)]:
        own = values[(slice(None), *cell)]
        each = statistics.bootstrap(lambda index, own=own: float(own[index].mean()), clusters, n_bootstrap=4000)
        assert (found.low[cell], found.high[cell]) == pytest.approx((each.low, each.high), abs=0.05)
        groups = own.reshape(12, 3).mean(1)
        assert found.stderr[cell] == pytest.approx(groups.std(ddof=1) / np.sqrt(12))


def test_intervals_of_means_cover_the_truth_when_rows_share_a_prompt():
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(10), 4)
    own = rng.normal(size=(10, 400))
    found = statistics.means(own[prompts] + 0.3 * rng.normal(size=(40, 400)), prompts)
    assert 0.91 <= ((found.low <= 0) & (found.high >= 0)).mean() <= 0.985


def test_means_leave_out_what_is_missing_and_one_prompt_has_no_interval():
    values = np.array([[1.0, np.nan], [3.0, 5.0]])
    found = statistics.means(values, ["a", None])
    assert found.value.tolist() == [2.0, 5.0]
    assert found.n_clusters == 2
    assert np.isfinite(found.low[0])
    assert np.isnan(found.p).all()
    assert np.isnan(statistics.means(values, ["a", "a"]).low).all()


def test_means_keep_their_rate_of_false_claims_in_a_whole_grid():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(16), 2)
    single, whole = [], []
    for _ in range(200):
        values = rng.normal(0, 1, (32, 20)) + rng.normal(0, 1, 16)[clusters][:, None]
        found = statistics.means(values, clusters, n_bootstrap=0, n_permutations=199)
        single.append((found.p <= 0.05).mean())
        whole.append(found.p_adjusted.min() <= 0.05)
    assert np.mean(single) == pytest.approx(0.05, abs=0.03)
    assert np.mean(whole) == pytest.approx(0.05, abs=0.045)


def test_means_claim_what_is_there_and_never_an_exact_zero():
    rng = np.random.default_rng(2)
    values = np.stack([rng.normal(1, 0.5, 20), rng.normal(0, 0.5, 20), np.zeros(20)], axis=1)
    found = statistics.means(values, np.arange(20), n_permutations=2000)
    assert found.p_adjusted[0] < 0.01
    assert found.p[1] > 0.01
    assert (found.p[2], found.low[2], found.high[2]) == (1, 0, 0)
    assert "furthest from 0 is +0.97" in repr(found)


TEN = np.linspace(100.0, 109.0, 10)
PROMPT = [f"prompt {i // 2}" for i in range(10)]


@pytest.mark.parametrize("lost", [[False] * 9 + [True], [0] * 9 + [1], np.arange(10) == 9, [0.0] * 9 + [1.0]])
def test_which_clips_failed_is_said_by_truth_values(lost: Any) -> None:
    assert statistics.effect(TEN, TEN, PROMPT, failed=lost, n_bootstrap=0).failed_share == pytest.approx(0.1)


@pytest.mark.parametrize(
    "asked",
    [
        {"failed": ["False"] * 10},
        {"failed": [None] * 10},
        {"failed": [0.5] * 10},
        {"failed": [float("nan")] * 10},
        {"failed": np.ma.masked_array([False] * 10, mask=[True] * 10)},
        {"steered": np.ma.masked_array(TEN, mask=TEN > 105)},
        {"baseline": np.ma.masked_array(TEN, mask=TEN > 105)},
        {"steered": [str(value) for value in TEN]},
        {"steered": np.array([str(value) for value in TEN], dtype=object)},
        {"prompts": np.ma.masked_array(PROMPT, mask=TEN > 105)},
        {"relative": "no"},
        {"confidence": -1},
        {"confidence": 95},
        {"n_bootstrap": -5},
    ],
)
def test_an_effect_refuses_what_would_mean_something_else(asked: dict[str, Any]) -> None:
    with pytest.raises(AudioLensError):
        statistics.effect(**{"steered": TEN, "baseline": TEN, "prompts": PROMPT, **asked})


def test_means_and_areas_refuse_it_too() -> None:
    rows = np.ones((10, 2))
    refused: list[dict[str, Any]] = [
        {"confidence": -1},
        {"confidence": 1.5},
        {"n_bootstrap": -1},
        {"n_permutations": -1},
    ]
    for asked in refused:
        with pytest.raises(AudioLensError):
            statistics.means(rows, PROMPT, **asked)
    with pytest.raises(AudioLensError):
        statistics.means(np.ma.masked_array(rows, mask=rows > 0), PROMPT)
    for labels in (["True", "False"] * 5, [True] * 10, np.ma.masked_array([True, False] * 5, mask=[True] * 10)):
        with pytest.raises(AudioLensError):
            statistics.auc(TEN, labels)
    with pytest.raises(AudioLensError):
        statistics.rank_test(1.0, np.ma.masked_array(TEN, mask=TEN > 105))


def test_tensors_of_any_floating_dtype_are_read_as_their_numbers() -> None:
    halves = torch.tensor(TEN, dtype=torch.bfloat16)
    found = statistics.effect(halves, halves, PROMPT, n_bootstrap=0)  # pyright: ignore[reportArgumentType]
    assert found.value == 0.0


def test_one_auc_serves_all_and_agrees_with_every_pair_compared():
    rng = np.random.default_rng(0)
    for _ in range(200):
        positive, negative = (rng.integers(-2, 3, size).astype(float) for size in rng.integers(1, 9, 2))
        for group in (positive, negative):
            group[rng.random(len(group)) < 0.2] = np.nan
            group[rng.random(len(group)) < 0.1] = np.inf
        won = (positive[:, None] > negative).astype(float) - (positive[:, None] < negative)
        assert ranking.auc(positive, negative) == pytest.approx((won.mean() + 1) / 2)
    rows = rng.standard_normal((2, 3, 7))
    expected = [roc_auc_score([1] * 7 + [0] * 7, [*mine, *theirs]) for mine, theirs in zip(*rows, strict=True)]
    assert ranking.auc(*rows) == pytest.approx(expected)
    assert np.isnan(ranking.auc(rows[0], rows[1][:, :0])).all()
