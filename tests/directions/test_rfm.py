"""Recursive feature machines find concepts whose poles have the same mean, and equal a naive computation."""

import pytest
import torch
from plants.samples import WIDTH, Plant, planted, samples_of

import audiolens as al
from audiolens.directions import rfm
from audiolens.directions.labelling import Target

LINEAR = ["difference_in_means", "principal_component", "probe", "ridge", "leace"]


def naive(values: torch.Tensor, labels: torch.Tensor, width: float, ridge: float, rounds: int) -> torch.Tensor:
    """The AGOP of the last regression, in the features' own space, with autograd and no linear algebra of ours."""
    points, wanted = values.double(), torch.where(labels, 1.0, -1.0).double()
    wanted = wanted - wanted.mean()
    metric = torch.eye(points.shape[1], dtype=torch.float64)
    agop = metric
    for _ in range(rounds):
        apart = torch.stack(
            [torch.stack([((a - b) @ metric @ (a - b)).clamp_min(0).sqrt() for b in points]) for a in points]
        )
        scale = width * float(apart[~torch.eye(len(points), dtype=torch.bool)].median())
        weights = torch.linalg.inv(torch.exp(-apart / scale) + ridge * torch.eye(len(points))) @ wanted
        agop = torch.zeros_like(metric)
        for row, point in enumerate(points):
            at = point.clone().requires_grad_()
            terms = [
                weights[j] * torch.exp(-((at - other) @ metric @ (at - other)).sqrt() / scale)
                for j, other in enumerate(points)
                if j != row
            ]
            (slope,) = torch.autograd.grad(torch.stack(terms).sum(), at)
            agop = agop + torch.outer(slope, slope) / len(points)
        metric = agop / agop.trace()
    return agop


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("samples", [12, 30])
def test_the_agop_equals_a_naive_one(rounds: int, samples: int) -> None:
    """With 12 samples in 16 dimensions, the machine computes in the span of the samples."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(samples, WIDTH, generator=generator)
    labels = values[:, 0] * values[:, 1] > 0
    target = Target.of(samples_of(values[None], labels))
    machine, _ = rfm.chosen(values, target, bandwidth=1.5, ridge=0.01, iterations=rounds)
    mine = machine.basis.T @ machine.agop @ machine.basis
    torch.testing.assert_close(mine, naive(values, labels, 1.5, 0.01, rounds), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rounds", [1, 3])
def test_predictions_interpolate_and_see_what_is_outside_the_span(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(10, WIDTH, generator=generator)
    labels = torch.arange(10) < 5
    target = Target.of(samples_of(values[None], labels))
    machine, _ = rfm.chosen(values, target, bandwidth=1.0, ridge=1e-9, iterations=rounds)
    torch.testing.assert_close(machine(values)[:, 0], torch.where(labels, 1.0, -1.0).double(), rtol=1e-4, atol=1e-4)
    outside = torch.linalg.svd(values - values.mean(0)).Vh[-1]
    moved = machine(values + 5 * outside)
    # Only the first regression, under the identity, knows distances outside the span.
    assert torch.allclose(moved, machine(values), atol=1e-4) == (rounds > 1)


@pytest.mark.parametrize(("kind", "axes"), [("even", 1), ("xor", 2), ("radial", 2)])
def test_rfm_finds_concepts_without_a_difference_in_means(kind: Plant, axes: int) -> None:
    samples = planted(kind)
    one = al.estimate(samples=samples, method="rfm")
    assert float(one.unit()[0][:axes].norm()) > 0.95
    machine, _ = rfm.chosen(samples.values[0], Target.of(samples))
    _, vectors = machine.eigenvectors()
    assert float(torch.linalg.svdvals(vectors[:axes, :axes])[-1]) > 0.95
    for method in LINEAR:
        linear = al.estimate(samples=samples, method=method)  # type: ignore[arg-type]
        assert float(linear.unit()[0][:axes].norm()) < 0.7, method
    evidence = one.evidence
    assert evidence is not None
    assert evidence.means_p is not None
    assert evidence.predictor_auc is not None
    assert float(evidence.predictor_auc[0]) > 0.95
    assert float(evidence.auc[0]) < 0.7
    assert "the poles' means coincide within chance" in repr(one)
    assert "held-out AUC of the predictor up to 1.0" in repr(one) or "up to 0.9" in repr(one)
    projected = samples.values[0] @ one.unit()[0]
    assert float(one.norms[0]) == pytest.approx(2 * float(projected.std()), rel=1e-4)


def test_the_second_component_completes_the_subspace() -> None:
    samples = planted("xor", pairs=100)
    first, second = (al.estimate(samples=samples, method="rfm", component=number) for number in (0, 1))
    assert float(first.cosine(second).abs()) < 1e-4
    assert float(second.unit()[0][:2].norm()) > 0.9
    assert second.meta.options["component"] == "1"


def test_without_a_concept_nothing_is_claimed() -> None:
    one = al.estimate(samples=planted("nothing", pairs=100), method="rfm")
    assert one.evidence is not None
    assert one.evidence.predictor_auc is not None
    assert abs(float(one.evidence.predictor_auc[0]) - 0.5) < 0.15
    assert "no better than shuffled poles" in repr(one)


def test_settings_are_chosen_among_those_given_and_stated() -> None:
    samples = planted("xor", pairs=60)
    one = al.estimate(samples=samples, method="rfm", bandwidth=[1, 3], ridge=0.05, iterations=2)
    assert one.meta.options["bandwidth"] in ("1", "3")
    assert (one.meta.options["ridge"], one.meta.options["iterations"]) == ("0.05", "2")
    scaled = al.estimate(
        samples=samples_of(100 * samples.values, samples.labels), method="rfm", bandwidth=[1, 3], ridge=0.05,
        iterations=2,
    )  # fmt: skip
    assert float(scaled.cosine(one).abs()) > 0.9999
