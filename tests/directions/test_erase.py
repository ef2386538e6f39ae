"""LEACE: its map equals the paper's matrix formula, leaves nothing for a linear probe, and runs as an intervention."""

from typing import Any

import nnsight
import pytest
import torch
from plants.samples import WIDTH, planted, samples_of
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import audiolens as al
from analysis import sweep
from audiolens.directions import leace
from audiolens.errors import InputError, InputTypeError, SiteError

FAST = ["a fast song", "fast piano", "the fast jazz with drums", "fast guitar and drums", "a bright fast song"]
SLOW = [prompt.replace("fast", "slow") for prompt in FAST]
READ: dict[str, Any] = {"seconds": 0.6, "progress": False}


def matrix(values: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """The projection of the paper, I - W^+ P W with the whitening W = (S^1/2)^+ and P onto the span of W Sxz."""
    centred = values - values.mean(0)
    covariance = centred.T @ centred / len(values)
    sizes, axes = torch.linalg.eigh(covariance)
    known = sizes > sizes.max() * 1e-10
    inverse = torch.where(known, sizes.clamp_min(1e-300).rsqrt(), 0.0)
    whiten, colour = axes * inverse @ axes.T, axes * torch.where(known, sizes.clamp_min(0).sqrt(), 0.0) @ axes.T
    crossed = centred.T @ (positive.double() - positive.double().mean())[:, None] / len(values)
    onto = (whiten @ crossed) @ torch.linalg.pinv(whiten @ crossed)
    return torch.eye(values.shape[1], dtype=torch.float64) - colour @ onto @ whiten


@pytest.mark.parametrize("pairs", [60, 6])
def test_the_map_equals_the_papers_also_with_fewer_samples_than_dimensions(pairs: int) -> None:
    samples = planted("shift", pairs=pairs)
    values = samples.values[0].double()
    eraser = leace.fit(samples.values, samples.labels, (0,), shrinkage=0)
    mean = values.mean(0)
    expected = mean + (values - mean) @ matrix(values, samples.labels).T
    torch.testing.assert_close(eraser(values, 0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shrinkage", [None, 0.0, 0.3])
def test_both_poles_have_the_same_mean_after_erasure(shrinkage: float | None) -> None:
    samples = planted("shift", pairs=40)
    eraser = leace.fit(samples.values, samples.labels, (0,), shrinkage)
    erased = eraser(samples.values[0], 0)
    apart = erased[samples.labels].mean(0) - erased[~samples.labels].mean(0)
    assert float(apart.abs().max()) < 1e-5
    torch.testing.assert_close(erased.mean(0), samples.values[0].mean(0), rtol=0, atol=1e-5)


def test_a_probe_is_at_chance_after_erasure_on_held_out_samples() -> None:
    fitted, unseen = planted("shift", pairs=300), planted("shift", pairs=300, seed=1)
    d = al.estimate(samples=fitted, method="leace")
    assert d.eraser is not None

    def area(erase: bool) -> float:
        sides = [one.values[0] for one in (fitted, unseen)]
        train, test = (d.eraser(side, 0) if erase and d.eraser is not None else side for side in sides)
        probe = LogisticRegression(max_iter=1000).fit(train.numpy(), fitted.labels.numpy())
        return float(roc_auc_score(unseen.labels.numpy(), probe.decision_function(test.numpy())))

    assert area(erase=False) > 0.88
    # Two standard errors of the AUC of 300 + 300 samples without a difference are .047.
    assert abs(area(erase=True) - 0.5) < 0.05


def test_erasure_changes_samples_less_than_ablating_the_same_direction() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) < 100
    # The noise along the difference in means is shared with another axis, from which LEACE reads it.
    values = torch.randn(200, WIDTH, generator=generator)
    values[:, 1] = values[:, 0] + 0.1 * values[:, 1]
    values[labels, 0] += 2.0
    samples = samples_of(values[None], labels)
    eraser = leace.fit(samples.values, labels, (0,), shrinkage=0)
    unit = torch.nn.functional.normalize(samples.difference()[0], dim=0)
    centred = values - values.mean(0)
    ablated = values - (centred @ unit)[:, None] * unit
    assert float((eraser(values, 0) - values).norm()) < 0.95 * float((ablated - values).norm())


def test_the_direction_is_what_the_eraser_reads() -> None:
    d = al.estimate(samples=planted("shift"), method="leace")
    assert d.eraser is not None
    assert float(torch.nn.functional.cosine_similarity(d.vectors, d.eraser.reader).min()) > 0.99999
    assert d.at(0).eraser is not None
    assert (-d).eraser is None


# As an intervention


@pytest.fixture(scope="module")
def directions(lens: Any) -> al.Directions:
    return al.estimate(lens, FAST, SLOW, "leace", **READ)


@pytest.fixture(scope="module")
def codes() -> torch.Tensor:
    return torch.randint(0, 32, (5, 4, 15), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("branch", ["cond", "both"])
def test_erase_equals_a_raw_hook_at_each_layer(
    lens: Any, directions: al.Directions, codes: torch.Tensor, branch: Any
) -> None:
    eraser = directions.eraser
    assert eraser is not None
    blocks, rows = lens.model.decoder.model.decoder.layers, len(codes)

    def hook(layer: int) -> Any:
        def erased(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            changed = eraser(output, layer)
            return changed if branch == "both" else torch.cat([changed[:rows], output[rows:]])

        return erased

    mine, _ = lens.run_with_cache(
        FAST, codes, sites=[], branch="both", guidance_scale=3.0, interventions=al.Erase(directions, branch=branch)
    )
    handles = [blocks[layer].register_forward_hook(hook(layer)) for layer in (0, 1, 2)]
    try:
        expected, _ = lens.run_with_cache(FAST, codes, sites=[], branch="both", guidance_scale=3.0)
    finally:
        for handle in handles:
            handle.remove()
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)
    plain, _ = lens.run_with_cache(FAST, codes, sites=[], branch="both", guidance_scale=3.0)
    assert float((mine - plain).abs().max()) > 0.01


def test_erase_works_in_a_trace_and_at_some_layers(lens: Any, directions: al.Directions, codes: torch.Tensor) -> None:
    eraser = directions.eraser
    assert eraser is not None
    with torch.no_grad(), lens.trace(FAST, codes=codes) as tracer:
        place = lens.site("resid_post", 1)
        place.value = eraser(place.value, 1)
        logits = nnsight.save(tracer.result)
    mine = lens.run_with_interventions(FAST, codes, al.Erase(directions, layers=[1]))
    torch.testing.assert_close(mine, logits, rtol=1e-4, atol=1e-4)
    last = lens.run_with_interventions(FAST, codes, al.Erase(directions, layer=-2))
    assert torch.equal(last, mine)
    half = lens.run_with_interventions(FAST, codes, al.Erase(directions, layers=[1], strength=[0, 0, 0, 0, 0]))
    assert torch.equal(half, lens.run_with_interventions(FAST, codes, ()))


def test_both_engines_erase(lens: Any, directions: al.Directions) -> None:
    how: dict[str, Any] = {"seeds": [0, 1], "interventions": al.Erase(directions), "decode": False}
    exact = lens.generate(FAST[:2], 0.6, **how)
    fast = lens.generate(FAST[:2], 0.6, engine="fast", **how)
    assert torch.equal(exact.codes, fast.codes)
    assert not torch.equal(exact.codes, lens.generate(FAST[:2], 0.6, seeds=[0, 1], decode=False).codes)


def test_a_sweep_erases_and_resumes(lens: Any, directions: al.Directions, tmp_path: Any) -> None:
    conditions = [sweep.Condition("baseline"), sweep.Condition("erased", (al.Erase(directions),))]
    how: dict[str, Any] = {"seconds": 0.6, "measures": ["loudness"], "n_jobs": 0, "out": tmp_path / "swept"}
    first = sweep.play(lens, conditions, [("a song", 0), ("piano", 1)], **how)
    again = sweep.play(lens, conditions, [("a song", 0), ("piano", 1)], **how)
    assert first.table.equals(again.table)
    expected = lens.generate(["a song", "piano"], 0.6, seeds=[0, 1], interventions=al.Erase(directions))
    assert torch.equal(torch.as_tensor(first.codes("erased")), expected.codes)
    other = [conditions[0], sweep.Condition("erased", (al.Erase(directions.at([1])),))]
    with pytest.raises(InputError, match="erased"):
        sweep.play(lens, other, [("a song", 0), ("piano", 1)], **how)


def test_erase_takes_directions_with_samples_and_says_what_it_lacks(
    lens: Any, directions: al.Directions, tmp_path: Any
) -> None:
    read = al.difference_in_means(lens, FAST, SLOW, keep_samples=True, **READ)
    torch.testing.assert_close(al.Erase(read).maps, al.Erase(directions).maps, rtol=1e-3, atol=1e-4)
    stored = al.Directions.load(directions.save(tmp_path / "tempo.safetensors"), lens=lens)
    assert torch.equal(al.Erase(stored).maps, al.Erase(directions).maps)
    with pytest.raises(InputError, match='no eraser: estimate them with method="leace"'):
        al.Erase(-directions)
    with pytest.raises(InputTypeError, match="expected Directions to erase"):
        al.Erase([1.0])
    with pytest.raises(InputError, match="were read at resid_post"):
        al.Erase(directions, site="mlp_out")
    with pytest.raises(SiteError, match="no erasure at layer 0"):
        al.Erase(directions.at([1, 2]), layers=[0])
    with pytest.raises(SiteError, match="layer 7 does not exist"):
        al.Erase(directions, layers=[7])
