"""Directions equal a naive loop over prompts, recover a planted direction, and record their model."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plants.text_direction import text_along_one_direction
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cosine_similarity

import audiolens as al
from audiolens.directions.directions import orthogonalised
from audiolens.directions.evidence import Contrast, Evidence
from audiolens.directions.pole_reader import PoleReader
from audiolens.errors import DamagedError, InputError, PromptError, SiteError
from audiolens.interventions import Ablate, Add
from audiolens.model.provenance import Provenance
from audiolens.model.weight_hash import weights_hash

FAST = ["a fast song", "fast piano", "the fast jazz with drums", "fast guitar and drums", "a bright fast song"]
SLOW = [prompt.replace("fast", "slow") for prompt in FAST]
QUIET = {"seconds": 0.6, "progress": False}


@pytest.fixture(scope="module")
def directions(lens: Any) -> al.Directions:
    return al.difference_in_means(lens, FAST, SLOW, batch_size=4, label="tempo", keep_samples=True, **QUIET)


def naive(lens: Any, prompts: list[str], steps: slice, **options: Any) -> torch.Tensor:
    """Mean over prompts of the mean over steps, a whole recording of one clip at a time: "layer d_model"."""
    means = []
    for seed, prompt in enumerate(prompts):
        cache = lens.generate([prompt], 0.6, seeds=[seed], sites="resid_post", **options).cache
        means.append(cache.stack("resid_post")[..., 0, steps, :].mean(-2))
    return torch.stack(means).mean(0)


@pytest.mark.parametrize(
    ("position", "steps"),
    [("mean", slice(0, 15)), ("last", slice(14, 15)), ("first", slice(0, 1)), ((0.2, 0.4), slice(5, 10))],
)
def test_running_means_equal_a_naive_loop(lens: Any, position: Any, steps: slice) -> None:
    read = al.difference_in_means(lens, FAST, SLOW, position=position, batch_size=3, **QUIET)
    expected = naive(lens, FAST, steps) - naive(lens, SLOW, steps)
    torch.testing.assert_close(read.vectors, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("branch", ["cond", "null", "both"])
def test_each_branch_is_read_apart_and_both_is_their_mean(lens: Any, branch: Any) -> None:
    read = al.difference_in_means(lens, FAST, SLOW, branch=branch, **QUIET)
    halves = [
        naive(lens, FAST, slice(0, 15), branch=half) - naive(lens, SLOW, slice(0, 15), branch=half)
        for half in ("cond", "null")
    ]
    expected = {"cond": halves[0], "null": halves[1], "both": (halves[0] + halves[1]) / 2}[branch]
    torch.testing.assert_close(read.vectors, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_directions_from_codes_equal_a_naive_loop(lens: Any, shared: bool) -> None:
    codes = torch.randint(0, 32, (2, 5, 4, 12), generator=torch.Generator().manual_seed(0))
    read = al.difference_in_means(
        lens, FAST, SLOW, codes=codes[0] if shared else (codes[0], codes[1]), batch_size=3, progress=False
    )
    means = []
    for side, prompts in enumerate((FAST, SLOW)):
        _, cache = lens.run_with_cache(prompts, codes[0 if shared else side])
        means.append(cache.stack("resid_post")[:, :, :12].mean((1, 2)))
    torch.testing.assert_close(read.vectors, means[0] - means[1], rtol=1e-3, atol=1e-4)
    assert read.meta.source == "codes"


def test_audio_is_read_as_its_codes(lens: Any) -> None:
    waveform = torch.randn(5, 1, 16000, generator=torch.Generator().manual_seed(0)) * 0.1
    read = al.difference_in_means(lens, FAST, SLOW, audio=(waveform, 16000), progress=False)
    codes = al.difference_in_means(lens, FAST, SLOW, codes=lens.encode_audio(waveform, 16000), progress=False)
    torch.testing.assert_close(read.vectors, codes.vectors)


def test_batch_size_does_not_change_the_direction(lens: Any, directions: al.Directions) -> None:
    whole = al.difference_in_means(lens, FAST, SLOW, batch_size=64, **QUIET)
    torch.testing.assert_close(whole.vectors, directions.vectors, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whole.residual_norms, directions.residual_norms, rtol=1e-4, atol=0)


def test_poles_share_their_seeds(lens: Any) -> None:
    # Both words are unknown to the tokenizer, so a pair differs in its seed or in nothing.
    reader = PoleReader(
        lens, ["a zig song", "zig drums"], ["a zag song", "zag drums"], site="resid_post", layers=None, position="mean",
        branch="cond", guidance_scale=3.0, codes=None, audio=None, seeds=None, seconds=0.6, batch_size=32,
        progress=False,
    )  # fmt: skip
    read = Contrast(2, 2)
    for batch in reader:
        read.add(batch.values, batch.norms, batch.positive)
    assert float(read.difference().norm(dim=-1).max()) < 1e-4
    assert float(read.residual_norms().min()) > 1


def test_poles_of_different_sizes_are_averaged_each_on_its_own(lens: Any) -> None:
    read = al.difference_in_means(lens, FAST, SLOW[:2], **QUIET)
    expected = naive(lens, FAST, slice(0, 15)) - naive(lens, SLOW[:2], slice(0, 15))
    torch.testing.assert_close(read.vectors, expected, rtol=1e-3, atol=1e-4)
    assert read.meta.n_prompts == (5, 2)


def test_residual_norms_are_mean_lengths_of_activations(lens: Any, directions: al.Directions) -> None:
    lengths = [
        lens.generate([prompt], 0.6, seeds=[seed], sites="resid_post").cache.stack("resid_post")[:, 0, :15].norm(dim=-1)
        for prompts in (FAST, SLOW)
        for seed, prompt in enumerate(prompts)
    ]
    torch.testing.assert_close(directions.residual_norms, torch.stack(lengths).mean((0, 2)), rtol=1e-4, atol=0)


def test_layers_and_sites_are_those_asked_for(lens: Any, directions: al.Directions) -> None:
    some = al.difference_in_means(lens, FAST, SLOW, layers=[2, 0], **QUIET)
    assert some.layers == (0, 2)
    torch.testing.assert_close(some[2], directions[2], rtol=1e-3, atol=1e-4)
    one = al.difference_in_means(lens, FAST, SLOW, site="blocks.1.hook_resid_post", **QUIET)
    assert (one.layers, one.meta.site) == ((1,), "resid_post")
    torch.testing.assert_close(one[1], directions[1], rtol=1e-3, atol=1e-4)
    assert al.difference_in_means(lens, FAST, SLOW, site="mlp.post", **QUIET).vectors.shape == (3, 96)


def test_evidence_equals_its_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    poles = [torch.randn(2, n, 6, generator=generator) for n in (9, 12)]
    poles[1][:, :, 0] += 1.0
    contrast = Contrast(9, 12)
    halves = ([(0, range(5)), (1, range(6))], [(0, range(5, 9)), (1, range(6, 12))])
    order = [(pole, i) for half in halves for pole, places in half for i in places]
    for pole, i in order:
        contrast.add(poles[pole][:, [i]], poles[pole][:, [i]].norm(dim=-1), torch.tensor([bool(pole)]))
    torch.testing.assert_close(contrast.difference().float(), poles[1].mean(1) - poles[0].mean(1))
    first = poles[1][:, :6].mean(1) - poles[0][:, :5].mean(1)
    second = poles[1][:, 6:].mean(1) - poles[0][:, 5:].mean(1)
    evidence = contrast.evidence()
    assert evidence is not None
    torch.testing.assert_close(evidence.split_half_cosine, cosine_similarity(first, second, dim=-1))
    for layer in range(2):
        unit = first[layer] / first[layer].norm()
        held = [poles[1][layer, 6:] @ unit, poles[0][layer, 5:] @ unit]
        labels = [1] * 6 + [0] * 4
        assert float(evidence.auc[layer]) == pytest.approx(roc_auc_score(labels, torch.cat(held).numpy()), abs=1e-6)
        pooled = ((5 * held[0].var() + 3 * held[1].var()) / 8).sqrt()
        assert float(evidence.separation[layer]) == pytest.approx(
            float((held[0].mean() - held[1].mean()) / pooled), rel=1e-4
        )


def test_stability_ends_at_the_split_half_cosine(directions: al.Directions) -> None:
    evidence = directions.evidence
    assert evidence is not None
    assert evidence.counts.tolist() == [1, 2, 3]
    torch.testing.assert_close(evidence.stability[-1], evidence.split_half_cosine)
    # Three prompts in a half are too few for a curve to be flat.
    assert evidence.stable_at().isnan().all()
    assert directions.to_frame()["stable_at"].isna().all()


def test_a_direction_is_stable_from_where_its_curve_stays_flat() -> None:
    curve = torch.tensor([[0.9, 0.1], [0.5, 0.86], [0.88, 0.9], [0.9, 0.9]])
    evidence = Evidence(torch.ones(2), torch.ones(2), torch.ones(2), torch.tensor([1, 2, 4, 5]), curve)
    # A curve that comes near, leaves and comes back counts from its last return.
    assert evidence.stable_at().tolist() == [4, 2]
    assert evidence.stable_at(tolerance=0.0).tolist() == [5, 4]
    assert evidence.stable_at(tolerance=1.0).tolist() == [1, 1]


@pytest.mark.parametrize(("prompts", "told"), [(7, True), (8, True), (6, False), (4, False)])
def test_few_prompts_say_nothing_of_stability(prompts: int, told: bool) -> None:
    contrast, first = Contrast(prompts, prompts), (prompts + 1) // 2
    vectors = torch.eye(2 * prompts)[None].double()
    for pole in (0, 1):
        for i in range(first):
            contrast.add(vectors[:, [2 * i + pole]], torch.ones(1, 1), torch.tensor([bool(pole)]))
    for pole in (0, 1):
        for i in range(first, prompts):
            contrast.add(vectors[:, [2 * i + pole]], torch.ones(1, 1), torch.tensor([bool(pole)]))
    evidence = contrast.evidence()
    assert evidence is not None
    assert evidence.stable_at().isfinite().all() == told


def _evidence(rng: np.random.Generator, shift: float, layers: int = 12, prompts: int = 16) -> Evidence:
    """Of prompts whose positive pole lies `shift` further along one feature of the last layer."""
    contrast = Contrast(prompts, prompts)
    positive = torch.arange(2 * prompts) % 2 == 1
    values = torch.from_numpy(rng.normal(size=(layers, 2 * prompts, 8))).float()
    values[-1, positive, 0] += shift
    contrast.add(values, torch.ones(layers, 2 * prompts), positive)
    evidence = contrast.evidence()
    assert evidence is not None
    return evidence


def test_the_best_layers_auc_is_judged_as_the_best_of_many() -> None:
    """Of no concept the largest AUC of twelve is high, and p at most .05 as seldom as it says."""
    rng = np.random.default_rng(0)
    found = [_evidence(rng, 0.0) for _ in range(60)]
    assert np.mean([float(one.auc.max()) for one in found]) > 0.68
    assert all(one.p is not None for one in found)
    assert np.mean([float(one.p.min()) <= 0.05 for one in found]) < 0.15  # type: ignore[union-attr]
    chance = next(one for one in found if float(one.p.min()) > 0.05)  # type: ignore[union-attr]
    assert "no better than shuffled poles: p = " in repr(chance)
    planted = _evidence(rng, 4.0)
    assert planted.p is not None
    assert planted.p.argmin() == 11
    assert float(planted.p[11]) <= 0.005
    assert f"(p = {float(planted.p[11]):.3f}, the best of 12)" in repr(planted)


@pytest.mark.parametrize(
    ("prompts", "layers", "least"), [(4, 1, 1 / 6), (5, 1, 1 / 6), (6, 1, 1 / 20), (8, 1, 1 / 70), (8, 12, 12 / 70)]
)
def test_too_few_held_out_prompts_are_not_called_chance(prompts: int, layers: int, least: float) -> None:
    """2 + 2 held-out prompts can be dealt out in six ways, so that p is a sixth however far apart the poles lie."""
    apart = _evidence(np.random.default_rng(0), 50.0, layers, prompts)
    assert apart.p is not None
    assert apart.least_p is not None
    assert float(apart.least_p) == pytest.approx(least, abs=0.03)
    assert apart.p[-1] == apart.least_p
    assert "no better" not in repr(apart)
    if least > 0.06:
        assert "(too few held-out prompts to test: p = " in repr(apart)


def test_evidence_of_an_earlier_file_claims_no_p(lens: Any, tmp_path: Path) -> None:
    directions = al.difference_in_means(lens, FAST, SLOW, **QUIET)
    assert directions.evidence is not None
    assert directions.to_frame()["auc_p"].between(0, 1).all()
    assert directions.evidence.finding in repr(directions)
    older = replace(directions, evidence=replace(directions.evidence, p=None))
    loaded = al.Directions.load(older.save(tmp_path / "older.safetensors"))
    assert loaded.evidence is not None
    assert loaded.evidence.p is None
    assert "the best of" in repr(loaded)
    assert "p = " not in repr(loaded)


def test_a_single_pair_gives_a_direction_without_evidence(lens: Any) -> None:
    assert al.difference_in_means(lens, FAST[:1], SLOW[:1], **QUIET).evidence is None


# What a model was planted with


@pytest.fixture
def planted(checkpoint: Path) -> tuple[Any, torch.Tensor]:
    """A model whose text reaches the stream in block 1 alone, along one direction, which then decides the output."""
    lens, direction = text_along_one_direction(checkpoint)
    blocks = lens.model.decoder.model.decoder.layers
    with torch.no_grad():
        # The last block hands on what it is given.
        blocks[2].self_attn.out_proj.weight.zero_()
        blocks[2].fc2.weight.zero_()
    return lens, direction


@pytest.mark.parametrize("position", ["first", "mean"])
def test_a_planted_direction_is_found(planted: tuple[Any, torch.Tensor], position: Any) -> None:
    lens, direction = planted
    codes = torch.randint(0, 32, (5, 4, 12), generator=torch.Generator().manual_seed(0))
    given = {"codes": codes} if position == "mean" else {}
    found = al.difference_in_means(lens, FAST, SLOW, position=position, progress=False, **given)
    assert abs(float(cosine_similarity(found[1], direction, dim=0))) > 0.99
    assert float(found.norms[0]) < 1e-5 < float(found.norms[1])


@pytest.mark.parametrize("strength", [-200.0, 300.0])
def test_adding_along_a_planted_direction_moves_the_output_as_computed_by_hand(
    planted: tuple[Any, torch.Tensor], strength: float
) -> None:
    lens, direction = planted
    codes = torch.randint(0, 32, (5, 4, 12), generator=torch.Generator().manual_seed(0))
    found = al.difference_in_means(lens, FAST, SLOW, position="first", progress=False)
    plain, cache = lens.run_with_cache(SLOW, codes, layers=[1])
    steered = lens.run_with_interventions(SLOW, codes, al.steer(found, "one-to-one", layer=1, strength=strength))
    # The planted direction itself, at the length that was read: what was read is not in the computation.
    sign = torch.sign(found[1] @ direction)
    moved = cache["resid_post", 1] + strength * sign * found.norms[1] * direction
    centred = moved - moved.mean(-1, keepdim=True)
    normalised = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    norm = lens.model.decoder.model.decoder.layer_norm
    with torch.no_grad():
        final = normalised * norm.weight + norm.bias
        expected = torch.einsum(
            "kvd,rsd->rksv", torch.stack([head.weight for head in lens.model.decoder.lm_heads]), final
        )
    torch.testing.assert_close(steered, expected, rtol=1e-3, atol=1e-3)
    assert float((steered - plain).abs().max()) > 0.1


def test_ablating_a_planted_direction_makes_the_model_deaf_to_its_words(planted: tuple[Any, torch.Tensor]) -> None:
    lens, _ = planted
    codes = torch.randint(0, 32, (5, 4, 12), generator=torch.Generator().manual_seed(0))
    found = al.difference_in_means(lens, FAST, SLOW, position="first", progress=False)

    def gap(*interventions: Any) -> float:
        fast, slow = (lens.run_with_interventions(prompts, codes, interventions) for prompts in (FAST, SLOW))
        return float((fast - slow).abs().max())

    assert gap() > 1e-2
    assert gap(Ablate(found[1], layers=[1])) < 1e-4


def test_orthogonal_to_removes_the_cross_talk_of_a_planted_readout(checkpoint: Path) -> None:
    """A model that says which side of `axis` its last state lies on, and two concepts that overlap."""
    lens = al.AudioLens.from_pretrained(checkpoint)
    generator = torch.Generator().manual_seed(7)
    axis, rest = (vector - vector.mean() for vector in torch.randn(2, 48, generator=generator))
    with torch.no_grad():
        for head in lens.model.decoder.lm_heads:
            head.weight.copy_(torch.outer(torch.randn(32, generator=generator), axis))
    meta = Provenance(model="planted", weights="", n_layers=3, label="axis")
    tempo = al.Directions(axis[None], (2,), torch.ones(1), meta)
    timbre = al.Directions((rest + 0.7 * axis)[None], (2,), torch.ones(1), replace(meta, label="other"))
    codes = torch.randint(0, 32, (5, 4, 12), generator=generator)

    def side(steps: Any) -> torch.Tensor:
        # The final norm shortens a longer state, which changes how sure the model is and not what it says.
        return lens.run_with_interventions(FAST, codes, steps).argmax(-1)

    def steered(strength: float, **how: Any) -> torch.Tensor:
        return side(al.steer([tempo, timbre], "one-to-one", layer=2, strength=strength, **how)[1])

    plain = side(())
    assert any(not torch.equal(steered(strength), plain) for strength in (-20.0, 20.0))
    for strength in (-20.0, 20.0):
        assert torch.equal(steered(strength, combine="orthogonalised"), plain)
        assert torch.equal(side(al.steer(timbre.orthogonal_to(tempo), "one-to-one", strength=strength)), plain)


def test_adding_a_direction_moves_the_logits_as_computed_by_hand(lens: Any, directions: al.Directions) -> None:
    codes = torch.randint(0, 32, (2, 4, 12), generator=torch.Generator().manual_seed(0))
    _, cache = lens.run_with_cache(FAST[:2], codes)
    steered = lens.run_with_interventions(FAST[:2], codes, [Add(directions[2], layers=[2], strength=3.0)])
    decoder = lens.model.decoder
    with torch.no_grad():
        final = decoder.model.decoder.layer_norm(cache["resid_post", 2] + 3.0 * directions[2])
        expected = torch.stack([head(final) for head in decoder.lm_heads], dim=1)
    torch.testing.assert_close(steered, expected, rtol=1e-4, atol=1e-4)


# Algebra


def test_arithmetic_is_that_of_the_vectors(directions: al.Directions) -> None:
    other = directions.random_like(0)
    for result, expected in (
        (directions + other, directions.vectors + other.vectors),
        (directions - other, directions.vectors - other.vectors),
        (-directions, -directions.vectors),
        (0.5 * directions, directions.vectors / 2),
        (directions / 2, directions.vectors / 2),
        (directions.unit(), directions.vectors / directions.norms[:, None]),
    ):
        torch.testing.assert_close(result.vectors, expected)
        assert result.evidence is None
        assert result.layers == directions.layers
    torch.testing.assert_close(directions.cosine(-directions), -torch.ones(3))
    assert (-directions).meta.label == "-(tempo)"
    torch.testing.assert_close(directions.at(1)[1], directions[1])


def test_orthogonal_to_leaves_nothing_of_the_others_and_all_the_rest(directions: al.Directions) -> None:
    e, f = directions.random_like(1), directions.random_like(2)
    rest = directions.orthogonal_to(e, f)
    for other in (e, f):
        torch.testing.assert_close(rest.cosine(other), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(rest.vectors, directions.orthogonal_to(f, e).vectors, atol=1e-6, rtol=1e-4)
    removed = directions.vectors - rest.vectors
    assert float((removed * rest.vectors).sum(-1).abs().max()) < 1e-6
    with pytest.raises(InputError, match="layers 0, 1, 2, where the vector lies"):
        directions.orthogonal_to(2.0 * directions)


def test_random_directions_have_the_same_lengths_and_their_own_seed(directions: al.Directions) -> None:
    torch.testing.assert_close(directions.random_like(3).norms, directions.norms)
    assert torch.equal(directions.random_like(3).vectors, directions.random_like(3).vectors)
    assert float(directions.random_like(3).cosine(directions.random_like(4)).abs().max()) < 0.7


def test_samples_give_the_direction_back_and_shuffles_of_it(directions: al.Directions) -> None:
    samples = directions.samples
    assert samples is not None
    assert samples.prompts == (*FAST, *SLOW)
    torch.testing.assert_close(samples.difference(), directions.vectors, rtol=1e-4, atol=1e-5)
    shuffled = directions.shuffled(0)
    torch.testing.assert_close(shuffled.norms, directions.norms)
    assert torch.equal(shuffled.vectors, directions.shuffled(0).vectors)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    labels = samples.labels[order]
    expected = samples.values[:, labels].mean(1) - samples.values[:, ~labels].mean(1)
    torch.testing.assert_close(directions.shuffled(0, match_norms=False, balanced=False).vectors, expected)
    with pytest.raises(InputError, match="keep_samples=True"):
        (-directions).shuffled(0)


def test_directions_of_different_layers_do_not_combine(directions: al.Directions) -> None:
    with pytest.raises(InputError, match="different layers"):
        directions + directions.at([0, 1])
    with pytest.raises(SiteError, match="no direction at layer 7: these directions have layers 0, 1, 2"):
        directions[7]
    with pytest.raises(TypeError, match="finite number"):
        directions * float("nan")


def test_a_cache_is_projected_on_directions(lens: Any, directions: al.Directions) -> None:
    _, cache = lens.run_with_cache(FAST[:1], torch.zeros(1, 4, 6, dtype=torch.long))
    expected = torch.stack([cache["resid_post", layer] @ directions.unit()[layer] for layer in range(3)])
    torch.testing.assert_close(cache.project(directions), expected)


def test_to_frame_has_a_row_a_layer(directions: al.Directions) -> None:
    frame = directions.to_frame()
    assert list(frame["layer"]) == [0, 1, 2]
    assert {"norm", "residual_norm", "split_half_cosine", "separation", "auc", "stable_at"} <= set(frame.columns)


# Files


def test_a_saved_file_comes_back_whole(lens: Any, directions: al.Directions, tmp_path: Path) -> None:
    path = directions.save(tmp_path / "new" / "tempo.safetensors")
    loaded = al.Directions.load(path, lens=lens)
    assert torch.equal(loaded.vectors, directions.vectors)
    assert torch.equal(loaded.residual_norms, directions.residual_norms)
    assert (loaded.layers, loaded.meta) == (directions.layers, directions.meta)
    assert loaded.evidence is not None
    assert directions.evidence is not None
    assert torch.equal(loaded.evidence.auc, directions.evidence.auc)
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    span = al.difference_in_means(lens, FAST, SLOW, position=(0.2, 0.4), **QUIET)
    assert al.Directions.load(span.save(path)).meta.position == (0.2, 0.4)


def test_another_model_refuses_the_file(directions: al.Directions, checkpoint: Path, tmp_path: Path) -> None:
    path = directions.save(tmp_path / "tempo.safetensors")
    other = al.AudioLens.from_pretrained(checkpoint)
    al.Directions.load(path, lens=other)
    with torch.no_grad():
        other.model.decoder.model.decoder.layers[1].fc1.weight.mul_(1.01)
    with pytest.raises(InputError, match="has different weights: a direction means nothing"):
        al.Directions.load(path, lens=other)
    assert len(al.Directions.load(path)) == 3


def test_a_model_is_the_same_in_half_precision_and_another_after_training(checkpoint: Path) -> None:
    model = al.AudioLens.from_pretrained(checkpoint).model
    before = weights_hash(model)
    assert weights_hash(model.to(torch.bfloat16)) == before
    with torch.no_grad():
        model.decoder.lm_heads[3].weight.add_(0.1)
    assert weights_hash(model) != before


def test_broken_and_foreign_files_are_refused_with_the_reason(directions: al.Directions, tmp_path: Path) -> None:
    path = directions.save(tmp_path / "d.safetensors")
    whole = path.read_bytes()
    broken = tmp_path / "broken.safetensors"
    for content in (whole[:-100], whole[:20], b"", b"not at all"):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="not a complete safetensors file"):
            al.Directions.load(broken)
    save_file({"vectors": torch.zeros(2, 2)}, broken)
    with pytest.raises(InputError, match="contains no directions: its header states no format"):
        al.Directions.load(broken)
    with pytest.raises(InputError, match="no such file"):
        al.Directions.load(tmp_path / "none.safetensors")
    save_file({"vectors": directions.vectors}, broken, {"audiolens": "{"})
    with pytest.raises(InputError, match="header is damaged"):
        al.Directions.load(broken)
    save_file({"vectors": directions.vectors}, broken, {"audiolens": json.dumps({"format": "audiolens.directions.1"})})
    with pytest.raises(InputError, match="do not match"):
        al.Directions.load(broken)
    flipped = bytearray(whole)
    flipped[-200:-100] = bytes(100)
    broken.write_bytes(bytes(flipped))
    with pytest.raises(DamagedError, match="broken.safetensors is damaged"):
        al.Directions.load(broken)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    directions: al.Directions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directions.save(tmp_path / "d.safetensors")
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        (2.0 * directions).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="is a folder"):
        directions.save(tmp_path)


def test_places_that_cannot_be_read_or_written_are_said(directions: al.Directions, tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match="broken.safetensors (cannot be read|is not a complete safetensors file)"):
        al.Directions.load(tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="is a folder, not a file of directions"):
        al.Directions.load(tmp_path)
    locked = tmp_path / "locked"
    locked.mkdir()
    locked.chmod(0o500)
    # Root writes where the mode forbids it, but not here.
    folder = Path("/proc") if os.access(locked, os.W_OK) else locked
    for path in (folder / "d.safetensors", folder / "new" / "d.safetensors"):
        with pytest.raises(InputError, match=rf"{path} cannot be written: \w+"):
            directions.save(path)
    assert not list(locked.iterdir())


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"positive": []}, PromptError, "no positive prompts"),
        ({"negative": "slow"}, TypeError, "expected a list of prompts"),
        ({"negative": [FAST[0]]}, PromptError, "are in both poles"),
        ({"position": "eos"}, InputError, "Use 'first' or 'last'"),
        ({"position": "middle"}, InputError, "expected 'mean', 'first', 'last'"),
        ({"position": (0.5, 0.2)}, InputError, "0 <= from < to"),
        ({"position": (0.2, 2.0)}, InputError, "ends after the clips"),
        ({"site": "resid_pots"}, SiteError, "Did you mean 'resid_post'"),
        ({"site": "attn.result"}, InputError, "has the axes row, step, head, d_model"),
        ({"site": ["resid_post", "mlp_out"]}, InputError, "expected one site"),
        ({"site": "ln_final.normalized"}, InputError, "is not in a block"),
        ({"layers": [1, 9]}, SiteError, "layer 9 does not exist: this model has layers 0 to 2"),
        ({"branch": "neither"}, InputError, "expected 'cond', 'null' or 'both'"),
        ({"branch": "null", "guidance_scale": 1.0}, InputError, "guidance"),
        ({"seeds": [1, 2]}, InputError, "2 seeds for 5 prompts"),
        ({"batch_size": 0}, InputError, "batch_size=0"),
        ({"codes": torch.zeros(2, 4, 5, dtype=torch.long)}, InputError, "codes of 2 rows for 5 positive prompts"),
        ({"codes": torch.zeros(2, 4, dtype=torch.long)}, TypeError, "row codebook frame"),
    ],
)
def test_bad_input_is_refused_at_the_door(lens: Any, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        al.difference_in_means(lens, **{"positive": FAST, "negative": SLOW, **QUIET, **options})


def test_vectors_that_are_not_finite_are_refused(directions: al.Directions) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        al.Directions(directions.vectors * torch.inf, (0, 1, 2), directions.residual_norms, directions.meta)
    with pytest.raises(InputError, match=r"for 2 layers: give one vector"):
        al.Directions(directions.vectors, (0, 1), directions.residual_norms, directions.meta)
    with pytest.raises(InputError, match="expected distinct layers in ascending order"):
        al.Directions(directions.vectors, (0, 2, 1), directions.residual_norms, directions.meta)


# Several at once


def test_orthogonalised_keeps_the_first_and_is_orthogonal_in_pairs(directions: al.Directions) -> None:
    made = orthogonalised(directions, directions + directions.random_like(1), directions.random_like(2))
    assert made[0] is directions
    for i, one in enumerate(made):
        for other in made[:i]:
            torch.testing.assert_close(one.cosine(other), torch.zeros(3), atol=1e-5, rtol=0)
