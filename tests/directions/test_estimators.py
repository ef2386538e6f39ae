"""Every estimator finds a planted concept from the same samples, and states what it needs."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from plants.samples import META, WIDTH, planted, samples_of
from plants.text_direction import text_along_one_direction
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import cosine_similarity

import audiolens as al
from audiolens.directions.estimators import _METHODS as METHODS
from audiolens.directions.samples import Samples
from audiolens.errors import InputError, InputTypeError

SAMPLED = ["difference_in_means", "mean_centred", "principal_component", "probe", "ridge", "leace", "rfm"]
FAST = ["a fast song", "fast piano", "the fast jazz with drums", "fast guitar and drums", "a bright fast song"]
SLOW = [prompt.replace("fast", "slow") for prompt in FAST]
NEUTRAL = ["a song", "piano", "the jazz with drums", "guitar and drums", "a bright song"]
READ: dict[str, Any] = {"seconds": 0.6, "progress": False}


@pytest.fixture(scope="module")
def shifted() -> Samples:
    return planted("shift")


@pytest.fixture(scope="module")
def found(shifted: Samples) -> dict[str, al.Directions]:
    return {method: al.estimate(samples=shifted, method=method) for method in SAMPLED}  # type: ignore[arg-type]


@pytest.mark.parametrize("method", SAMPLED)
def test_every_estimator_finds_a_planted_shift(found: dict[str, al.Directions], method: str) -> None:
    one = found[method]
    assert float(one.unit()[0][0]) > 0.95
    evidence = one.evidence
    assert evidence is not None
    assert float(evidence.auc[0]) > 0.85
    assert float(evidence.split_half_cosine[0]) > 0.8
    assert evidence.means_p is not None
    assert float(evidence.means_p[0]) == pytest.approx(0.005)
    assert "coincide" not in repr(one)


@pytest.mark.parametrize("method", SAMPLED)
def test_a_strength_of_one_is_the_same_step_for_every_estimator(found: dict[str, al.Directions], method: str) -> None:
    one, samples = found[method], found[method].samples
    assert samples is not None
    along = float(samples.difference()[0] @ one.unit()[0])
    assert float(one.norms[0]) == pytest.approx(along / 2 if method == "mean_centred" else along, rel=1e-5)
    assert one.meta.estimator == METHODS[method].name
    assert (one.meta.label, one.layers) == ("planted", (0,))


def test_directions_of_every_estimator_are_stored_with_their_evidence(
    found: dict[str, al.Directions], tmp_path: Any
) -> None:
    for method, one in found.items():
        again = al.Directions.load(one.save(tmp_path / f"{method}.safetensors"))
        assert torch.equal(again.vectors, one.vectors)
        assert again.meta == one.meta
        assert (again.eraser is None) == (method != "leace")
        columns = again.to_frame()
        assert columns["means_p"][0] == pytest.approx(0.005)
        assert ("predictor_auc" in columns) == (method == "rfm")


def test_evidence_from_samples_is_that_of_the_reading(lens: Any) -> None:
    read = al.difference_in_means(lens, FAST, SLOW, keep_samples=True, **READ)
    again = al.estimate(samples=read.samples)
    torch.testing.assert_close(again.vectors, read.vectors, rtol=1e-4, atol=1e-5)
    assert again.evidence is not None
    assert read.evidence is not None
    for name in ("split_half_cosine", "auc", "counts", "stability", "p", "least_p"):
        torch.testing.assert_close(
            getattr(again.evidence, name), getattr(read.evidence, name), rtol=1e-3, atol=1e-4, msg=name
        )
    assert again.meta == read.meta
    torch.testing.assert_close(again.residual_norms, read.residual_norms)


def test_prompts_are_read_once_for_any_method(lens: Any) -> None:
    read = al.difference_in_means(lens, FAST, SLOW, keep_samples=True, layers=[1], **READ)
    direct = al.estimate(lens, FAST, SLOW, "principal_component", layers=[1], **READ)
    torch.testing.assert_close(
        direct.vectors, al.estimate(samples=read.samples, method="principal_component").vectors, rtol=1e-3, atol=1e-4
    )
    assert direct.samples is not None
    assert al.estimate(lens, FAST[:2], SLOW[:2], layers=[1], keep_samples=False, **READ).samples is None


def test_mean_centring_reads_one_pole_against_neutral_prompts(lens: Any) -> None:
    one = al.estimate(lens, FAST, method="mean_centred", neutral=NEUTRAL, **READ)
    expected = al.difference_in_means(lens, FAST, NEUTRAL, **READ)
    torch.testing.assert_close(one.vectors, expected.vectors, rtol=1e-4, atol=1e-5)
    assert one.meta.estimator == "mean-centred"


def test_probes_equal_scikit_learns(shifted: Samples) -> None:
    values, labels = shifted.values[0].double().numpy(), shifted.labels.numpy()
    spread = values.std(0, ddof=1)
    plain = LogisticRegression(C=0.5, max_iter=1000).fit((values - values.mean(0)) / spread, labels)
    expected = torch.from_numpy(plain.coef_[0] / spread).float()
    one = al.estimate(samples=shifted, method="probe", penalty=2)
    assert float(cosine_similarity(one[0], expected, dim=0)) > 0.99999
    assert one.meta.options == {"penalty": "2"}


def test_the_first_component_of_pairs_equals_that_of_their_second_moments(shifted: Samples) -> None:
    apart = (shifted.values[0, shifted.labels] - shifted.values[0, ~shifted.labels]).double()
    expected = torch.linalg.eigh(apart.T @ apart).eigenvectors[:, -1]
    one = al.estimate(samples=shifted, method="principal_component")
    assert abs(float(cosine_similarity(one[0].double(), expected, dim=0))) > 0.99999


def test_a_planted_model_is_found_by_reading_it(checkpoint: Any) -> None:
    lens, direction = text_along_one_direction(checkpoint)
    codes = torch.randint(0, 32, (5, 4, 12), generator=torch.Generator().manual_seed(0))
    # Estimators that weigh the covariance need many more prompts than these: see the planted shift.
    for given in (
        {"method": "principal_component", "negative": SLOW},
        {"method": "mean_centred", "neutral": NEUTRAL},
    ):
        one = al.estimate(lens, FAST, layers=1, codes=codes, progress=False, **given)  # type: ignore[arg-type]
        assert abs(float(cosine_similarity(one[1], direction, dim=0))) > 0.95


# Labels other than the poles


def test_ridge_and_rfm_regress_on_a_quantity(shifted: Samples) -> None:
    generator = torch.Generator().manual_seed(1)
    amount = 120 + 30 * shifted.values[0, :, 3] + torch.randn(300, generator=generator)
    for method in ("ridge", "rfm"):
        one = al.estimate(samples=shifted, method=method, labels=amount)  # type: ignore[arg-type]
        assert float(one.unit()[0][3]) > 0.95
        falling = al.estimate(samples=shifted, method=method, labels=-amount)  # type: ignore[arg-type]
        assert float(falling.unit()[0][3]) < -0.95


def test_a_direction_points_towards_one_of_several_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    names = np.array(["piano", "guitar", "drums"] * 60)
    values = torch.randn(180, WIDTH, generator=generator)
    for axis, name in enumerate(("piano", "guitar", "drums")):
        values[torch.from_numpy(names == name), axis] += 4.0
    samples = samples_of(values[None], torch.arange(180) < 90)
    expected = torch.zeros(WIDTH)
    expected[:3] = torch.tensor([-0.5, 1.0, -0.5])
    # A predictor of three classes depends on a plane, of which the top direction need not be that of the means.
    for method, least in (("difference_in_means", 0.97), ("rfm", 0.85)):
        one = al.estimate(samples=samples, method=method, labels=names.tolist(), towards="guitar")  # type: ignore[arg-type]
        assert float(cosine_similarity(one[0], expected, dim=0)) > least
        assert float(one.unit()[0][:3].norm()) > 0.95
        assert one.meta.n_prompts == (60, 120)


def test_samples_of_one_prompt_are_never_divided() -> None:
    """A prompt's clips share a vector of their own, which would make held-out clips of known prompts easy."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) < 60
    of_prompt = 3 * torch.randn(24, WIDTH, generator=generator)
    values = of_prompt.repeat_interleave(5, dim=0) + 0.1 * torch.randn(120, WIDTH, generator=generator)
    names = tuple(f"prompt {row // 5}" for row in range(120))
    one = al.estimate(samples=samples_of(values[None], labels, prompts=names), method="probe")
    alone = al.estimate(samples=samples_of(values[None], labels), method="probe")
    assert one.evidence is not None
    assert alone.evidence is not None
    # Divided by row, random labels of prompts seem to be predicted.
    assert float(alone.evidence.auc[0]) > 0.9 > float(one.evidence.auc[0])


# Bad input: one clear line each, before a model runs


def refused(match: str, **given: Any) -> None:
    with pytest.raises(InputError, match=match) as error:
        al.estimate(**given)
    assert "\n" not in str(error.value)


def test_methods_and_options_are_checked(shifted: Samples, lens: Any) -> None:
    some = {"samples": shifted}
    refused(r"method='prob'.*Did you mean 'probe'", method="prob", **some)
    refused("method=3: expected one of difference_in_means", method=3, **some)
    refused(r"'rfm' takes no penalty=: 'probe' and 'ridge' takes? it", method="rfm", penalty=1, **some)
    refused("'probe' takes no measure=: 'by_measure' takes it", method="probe", measure="tempo", **some)
    refused("penalti= is no argument of method='probe'. Did you mean 'penalty'", method="probe", penalti=1, **some)
    refused("site= and samples= were both given", site="resid_post", **some)
    refused("positive= and samples= were both given", positive=FAST, **some)
    refused("give either lens= with prompts, or samples=")
    refused("give either lens= with prompts, or samples=", lens=lens, **some)
    refused("'gradient' needs lens=", method="gradient", **some)
    refused("'probe' needs the prompts of the negative pole", lens=lens, positive=FAST, method="probe")
    refused("takes one pole and neutral prompts", lens=lens, positive=FAST, negative=SLOW, method="mean_centred")
    refused("labels= and towards= are for samples", lens=lens, positive=FAST, negative=SLOW, labels=[1, 2])
    refused("'by_measure' takes no audio=", lens=lens, method="by_measure", prompts=NEUTRAL, audio=None)
    refused("penalty=0: expected a finite number above 0", method="ridge", penalty=0, **some)
    refused("shrinkage=2: expected a weight from 0 to 1", method="leace", shrinkage=2, **some)
    refused(r"component=16: these samples span 16", method="rfm", component=16, **some)
    refused("held_out=1: expected a share", method="rfm", held_out=1, **some)
    refused(r"iterations=\[\]", method="rfm", iterations=[], **some)
    with pytest.raises(InputTypeError, match="keep_samples='no': expected True or False"):
        al.estimate(samples=shifted, keep_samples="no")  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="expected the samples of directions"):
        al.estimate(samples=shifted.values)  # type: ignore[arg-type]


def test_samples_and_labels_are_checked(shifted: Samples) -> None:
    same = torch.ones(300, dtype=torch.bool)
    refused("all 300 labels are of one class", samples=replace(shifted, labels=same))
    refused("all 300 labels are 1", samples=shifted, method="ridge", labels=[1.0] * 300)
    refused("the label of sample 0 is NaN", samples=shifted, method="ridge", labels=[float("nan"), *[1.0] * 299])
    refused(r"labels of shape \(2,\) for 300 samples", samples=shifted, labels=[True, False])
    numbers = list(range(300))
    refused(
        "'probe' separates two groups, and these labels are numbers", samples=shifted, method="probe", labels=numbers
    )
    refused("towards=7: expected the class", samples=shifted, labels=["a", "b"] * 150, towards=7)
    refused("towards=None: expected the class", samples=shifted, labels=["a", "b"] * 150)
    few = samples_of(shifted.values[:, [0, 1, 2, 297, 298, 299]], torch.arange(6) < 3)
    refused("'rfm' needs at least 4 samples on either side, and there are 3 positive and 3", samples=few, method="rfm")
    odd = samples_of(shifted.values[:, 1:], shifted.labels[1:])
    refused("149 positive and 150 negative prompts", samples=odd, method="principal_component")
    lost = shifted.values.clone()
    lost[0, 7, 2] = float("nan")
    refused("sample 7 has NaN or infinite values at layer 0", samples=replace(shifted, values=lost), method="probe")
    bare = Samples(shifted.values, shifted.labels, shifted.layers, shifted.prompts)
    refused("do not state how they were read", samples=bare)
    with pytest.raises(InputTypeError, match="labels: expected"):
        al.estimate(samples=shifted, labels=[None] * 300)


def test_estimators_are_listed_with_a_line_and_their_options() -> None:
    listed = al.estimators()
    assert set(listed) == {*SAMPLED, "by_measure", "gradient"}
    assert listed["rfm"].endswith("options: bandwidth, ridge, iterations, component, held_out, seed")
    assert all("\n" not in line for line in listed.values())
    assert META.options == {}
