"""Every loop over batches divides a batch that does not fit in memory, and begins the next one with what fitted."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from clap_models import write_clap

import audiolens as al
from analysis import attention, attribution, features, harvest, logit_lens, patching
from analysis.attribution import gradients, logits, pairing
from analysis.features.source import of_clips
from analysis.harvest import planned
from analysis.logit_lens import reading
from analysis.patching.engine import PairBatch
from analysis.placement import shifts
from audiolens.cache import activation_cache
from audiolens.directions import gradient
from audiolens.errors import AudioLensWarning, TooLittleMemoryError
from audiolens.measure import clap_embeddings, code_nats, codec_features
from audiolens.measure import likelihood as scoring
from audiolens.sound import codec
from audiolens.tracing import given_sound, model_calls

CLEAN = ["fast bright piano", "fast loud music", "fast drums", "bright jazz song", "fast dark guitar"]
CORRUPTED = ["slow dark piano", "slow soft music", "slow drums", "dark jazz song", "slow dark guitar"]
SETTINGS: dict[str, Any] = {"progress": False, "n_bootstrap": 0, "n_permutations": 0}
Limit = Callable[..., list[int]]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Let a function run out of memory for more than `most` rows, after it has computed them."""

    def limit(most: int, owner: Any, name: str, rows_of: Callable[..., int]) -> list[int]:
        own, tried = getattr(owner, name), list[int]()

        def call(*given: Any, **named: Any) -> Any:
            tried.append(rows_of(*given, **named))
            made = own(*given, **named)
            if tried[-1] > most:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return made

        monkeypatch.setattr(owner, name, call)
        return tried

    return limit


@pytest.fixture(scope="module")
def world(lens: Any, codes: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    made = SimpleNamespace(lens=lens, codes=codes, folder=tmp_path_factory.mktemp("memory"))
    weights = torch.eye(48)[:, :12].contiguous()
    made.sae = features.SAE(
        weights, torch.zeros(12), weights.T.contiguous(), torch.zeros(48), "standard", layer=1
    )  # fmt: skip
    return made


def attributed(w: Any, size: int, **asked: Any) -> list[Any]:
    found = attribution.attribute(w.lens, CLEAN, CORRUPTED, w.codes, batch_size=size, check=0, **asked)
    return [found.clean_scores, found.corrupted_scores, *(scores.values for scores in found.sites.values())]


def shifted(w: Any, size: int) -> list[Any]:
    d = al.difference_in_means(w.lens, CLEAN, CORRUPTED, codes=w.codes, progress=False)
    places = shifts.candidates(d, ("one-to-one", "one-to-all"), [0, 1])
    found = shifts.shifts_of(w.lens, ["piano"] * 5, (CLEAN, CORRUPTED), w.codes, places, batch_size=2 * size)
    return [found.inner, found.own, found.damage, found.words, found.constancy, np.array(found.row_steps)]


def indexed(w: Any, size: int) -> list[Any]:
    clips = features.Clips(CLEAN, w.codes)
    found = features.index(w.lens, w.sae, clips, top=2, seconds=0.2, batch_size=size, progress=False)
    return [found.pooled, found.latents["rate"].to_numpy(), found.latents["peak"].to_numpy()]


def scored(w: Any, size: int) -> list[Any]:
    found = features.score(w.lens, w.sae, CLEAN, w.codes, batch_size=size)
    return [np.array([found.explained_variance, found.l0, found.dead, found.loss, found.spliced, found.mean])]


def source(w: Any, size: int) -> list[Any]:
    (site,) = w.lens.find_sites("resid_post", 1)
    made = of_clips(
        w.lens, site, CLEAN, w.codes, seeds=1, seconds=0.4, guidance_scale=3.0, held_out=0.0,
        seed=0, batch_size=5, progress=False,
    )  # fmt: skip
    parts = [range(5)] if size == 5 else [range(first, min(first + size, 5)) for first in range(0, 5, size)]
    return [torch.cat([made.read(part) for part in parts])]


def trained(w: Any, size: int) -> list[Any]:
    """One step on all clips, whose gradient does not depend on how they are divided."""
    clips = gradient.Clips.of(CLEAN, CORRUPTED, (w.codes, w.codes.flip(0)))
    batches = gradient._Batches(w.lens, clips, gradient.Training(train_batch=10))
    if size != 5:
        batches.fit.at_once = 2 * size
    (site,) = w.lens.find_sites("resid_post", 1)
    vector = torch.full((48,), 0.1, requires_grad=True)
    return [batches.gradient([*range(10)], site, vector), np.array(batches.nats([*range(10)], site, vector))]


def harvested(w: Any, size: int) -> list[Any]:
    out = w.folder / f"harvest-{size}-{len(list(w.folder.iterdir()))}"
    asked: dict[str, Any] = {"sites": "resid_post", "layers": [1], "codes": w.codes, "batch_size": size}
    return [harvest.harvest(w.lens, CLEAN, out=out, progress=False, **asked).cache()["resid_post", 1]]


def attended(w: Any, size: int) -> list[Any]:
    return [attention.to_text(w.lens, CLEAN, w.codes, batch_size=size).weights]


def decoded(w: Any, size: int) -> list[Any]:
    found = logit_lens.read(w.lens, CLEAN, w.codes, batch_size=size)
    return [found.ranks, found.probabilities, found.divergences]


def listened(w: Any, size: int) -> list[Any]:
    return [clips.codes for clips in logit_lens.listen(w.lens, CLEAN, w.codes, seeds=3, batch_size=size).clips.values()]


def directed(w: Any, size: int, **asked: Any) -> list[Any]:
    found = al.difference_in_means(w.lens, CLEAN, CORRUPTED, batch_size=2 * size, progress=False, **asked)
    return [found.vectors, found.norms]


def by_measure(w: Any, size: int) -> list[Any]:
    found = al.estimate(
        w.lens, prompts=[*CLEAN, *CORRUPTED], method="by_measure", measure="loudness", seconds=0.4,
        batch_size=2 * size, progress=False,
    )  # fmt: skip
    return [found.vectors]


def directly(w: Any, size: int) -> list[Any]:
    found = attribution.direct(w.lens, CLEAN, w.codes, corrupted=CORRUPTED, batch_size=size)
    return [found.values, found.totals]


FORWARD = (model_calls, "forward", lambda _, run, **named: len(run.layout.rows))
GENERATE = (model_calls, "generate", lambda _, run, *rest, **named: len(run.layout.rows))
LOOPS: dict[str, tuple[Any, Any, str]] = {
    "likelihood": (
        (scoring, "checked_logits", lambda values, *rest: len(values)),
        lambda w, size: [code_nats(w.lens, CLEAN, w.codes, batch_size=size)],
        "clips being scored of 0.6 s",
    ),
    "attribution": ((pairing, "backward", lambda _, prompts, *rest, **named: len(prompts)), attributed, "pairs being"),
    "gradients of every codebook": (
        (gradients.torch.autograd, "grad", lambda _, zeros, **named: len(zeros[0])),
        lambda w, size: attributed(w, size, per_codebook=True, seconds=(0.0, 0.2)),
        "pairs being attributed of 0.28 s",
    ),
    "direct logits": ((logits, "by_frame", lambda values, *rest: len(values)), directly, "rows whose logits"),
    "shifts of a placement": ((shifts, "by_frame", lambda values, *rest: len(values) // 2), shifted, "rows being"),
    "attention": (FORWARD, attended, "rows whose attention"),
    "logit lens": ((reading, "by_frame", lambda values, *rest: len(values)), decoded, "rows decoded after every block"),
    "audible logit lens": ((reading, "by_frame", lambda values, *rest: len(values)), listened, "rows decoded after"),
    "index of features": ((features.SAE, "encode", lambda _, x: len(x)), indexed, "clips being indexed"),
    "scores of features": ((features.SAE, "encode", lambda _, x: len(x) // 18), scored, "clips being scored"),
    "source of features": (FORWARD, source, "clips being read"),
    "trained directions": (
        (gradient, "cross_entropy", lambda flat, _: -(-len(flat) // 120)), trained, "clips being trained on",
    ),
    "harvest": (FORWARD, harvested, "clips being harvested of 0.6 s"),
    "directions over codes": (
        (model_calls, "forward", lambda _, run, **named: -(-len(run.layout.rows) // 2)),
        lambda w, size: directed(w, size, codes=w.codes),
        "rows of the poles",
    ),
    "directions of generated clips": (
        (model_calls, "generate", lambda _, run, *rest, **named: -(-len(run.layout.rows) // 2)),
        lambda w, size: directed(w, size, seconds=0.4),
        "rows of the poles",
    ),
    "directions by measure": (
        (model_calls, "generate", lambda _, run, *rest, **named: -(-len(run.layout.rows) // 2)),
        by_measure,
        "clips being measured",
    ),
    "features of the codec": (
        (codec, "features", lambda wave, *rest: len(wave)),
        lambda w, size: [codec_features(w.lens, w.codes, batch_size=size, window_seconds=0.2)],
        "clips of 0.6 s being encoded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("loop", LOOPS)
def test_a_batch_that_does_not_fit_is_divided_with_the_results_of_a_smaller_one(
    world: SimpleNamespace, limit: Limit, loop: str
) -> None:
    planted, call, rows = LOOPS[loop]
    expected = call(world, 2)
    tried = limit(2, *planted)
    with pytest.warns(AudioLensWarning, match=f"{rows}.* do not fit in the free memory of cpu") as told:
        found = call(world, 5)
    divided = [str(one.message) for one in told if "do not fit" in str(one.message)]
    # Once from 5 to 3 rows and once from 3 to 2, whatever comes after that in this loop.
    assert len(divided) == 2, divided
    assert max(tried) > 2
    assert tried[-1] <= 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_pairs_and_then_cells_of_a_grid_are_divided(world: SimpleNamespace, limit: Limit) -> None:
    asked: dict[str, Any] = {"by": "component", "layers": [0, 2], **SETTINGS}
    grid = (world.lens, CLEAN, CORRUPTED, world.codes)
    expected = patching.patch(*grid, **asked)
    tried = limit(3, PairBatch, "scored", lambda batch, cells: batch.pairs * len(cells))
    with pytest.warns(AudioLensWarning) as told:
        found = patching.patch(*grid, **asked)
    # Five pairs of eight cells, then three, two and one; then the cells of one pair.
    assert tried == [40, 24, 16, 8, 4, *[2] * 4 * 5]
    assert [str(one.message).split(" of ")[0] for one in told if "do not fit" in str(one.message)] == [
        "5 pairs being patched", "3 pairs being patched", "2 pairs being patched", "8 patches", "4 patches",
    ]  # fmt: skip
    np.testing.assert_allclose(found.patched, expected.patched, rtol=1e-5)
    np.testing.assert_array_equal(found.prompts, expected.prompts)


def test_a_pair_that_does_not_fit_is_refused_with_what_it_needs(world: SimpleNamespace, limit: Limit) -> None:
    limit(0, PairBatch, "scored", lambda batch, cells: batch.pairs * len(cells))
    with (
        pytest.warns(AudioLensWarning),
        pytest.raises(
            TooLittleMemoryError,
            match=r"one of the pairs being patched of 0\.6 s does not fit .* needs about .* \(weights .* fewer layers",
        ),
    ):
        patching.patch(world.lens, CLEAN, CORRUPTED, world.codes, layers=[1], **SETTINGS)


def test_a_grid_on_sound_is_divided_between_its_cells(world: SimpleNamespace, limit: Limit) -> None:
    sound = patching.Sound("loudness", seconds=0.4)
    asked: dict[str, Any] = {"by": "component", "layers": [0, 1], **SETTINGS}
    sides = CLEAN[:2], CORRUPTED[:2]
    expected = patching.patch(world.lens, *sides, None, sound, **asked)
    tried = limit(5, *GENERATE)
    with pytest.warns(AudioLensWarning, match="at most 1 run at once"):
        found = patching.patch(world.lens, *sides, None, sound, **asked)
    # Two pairs of six cells and two unpatched clips; then one pair of six cells; then of three, beside the two clips.
    assert tried == [16, 8, 5, 5, 5, 5]
    np.testing.assert_allclose(found.patched, expected.patched, rtol=1e-3)


def test_a_pair_whose_gradients_do_not_fit_is_refused_with_what_they_need(world: Any, limit: Limit) -> None:
    limit(0, pairing, "backward", lambda _, prompts, *rest, **named: len(prompts))
    with (
        pytest.warns(AudioLensWarning),
        pytest.raises(TooLittleMemoryError, match=r"one of the pairs being attributed .* Use shorter clips, fewer"),
    ):
        attributed(world, 5)


def test_heads_are_ablated_in_smaller_batches_of_heads_and_then_of_rows(world: SimpleNamespace, limit: Limit) -> None:
    asked = (world.lens, CLEAN, world.codes)
    expected = attention.ablate(*asked, layers=[1], batch_size=20)
    tried = limit(5, *FORWARD)
    with pytest.warns(AudioLensWarning, match="4 ablated heads, in 5 rows each, of 0.6 s do not fit"):
        found = attention.ablate(*asked, layers=[1], batch_size=20)
    assert tried == [5, 20, 10, *[5] * 4]
    np.testing.assert_allclose(found.changes, expected.changes, atol=1e-5)
    tried = limit(2, *FORWARD)
    with pytest.warns(AudioLensWarning, match="at most 2 run at once"):
        again = attention.ablate(*asked, layers=[1], batch_size=5)
    np.testing.assert_allclose(again.changes, expected.changes, atol=1e-5)
    # A single head cannot be divided, so its rows are, and the next head begins with the rows that fitted.
    assert tried[-3:] == [2, 2, 1]
    assert tried.count(5) == 2


def test_sound_is_encoded_in_parts(world: SimpleNamespace, limit: Limit) -> None:
    wave = world.lens.decode_codes(world.codes)
    expected = world.lens.encode_audio(wave, 16_000)
    tried = limit(2, given_sound, "encode", lambda wave, *rest: len(wave))
    with pytest.warns(AudioLensWarning, match="clips of 0.6 s being encoded do not fit"):
        assert torch.equal(world.lens.encode_audio(wave, 16_000), expected)
    assert tried == [5, 3, 2, 2, 1]


def test_shards_of_a_harvest_begin_with_the_clips_that_fitted(
    world: SimpleNamespace, limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned, "SHARD_BATCHES", 1)
    tried = limit(1, *FORWARD)
    with pytest.warns(AudioLensWarning, match="2 clips being harvested .* at most 1"):
        harvested(world, 2)
    # A harvest reads its first batch before the others, to raise an error early.
    assert tried.count(2) <= 2
    assert tried[-3:] == [1, 1, 1]


def test_windows_are_embedded_by_clap_in_parts(tmp_path: Path, limit: Limit) -> None:
    from transformers import ClapModel, ClapProcessor

    folder = write_clap(tmp_path / "clap", fusion=False)
    model = ClapModel.from_pretrained(folder), ClapProcessor.from_pretrained(folder)
    waves = torch.rand(5, 1, 48_000, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = clap_embeddings(waves, 48_000, model=model)
    tried = limit(2, ClapModel, "get_audio_features", lambda _, input_features, **named: len(input_features))
    with pytest.warns(AudioLensWarning, match="windows of 2 s for CLAP do not fit"):
        found = clap_embeddings(waves, 48_000, model=model)
    assert tried == [5, 3, 2, 2, 1]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(expected), atol=1e-5)


def test_no_activation_of_an_earlier_part_is_kept_while_the_next_one_runs(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import weakref

    living: list[weakref.ref[Any]] = []
    alive: list[int] = []
    own = activation_cache.ActivationCache.logit_lens

    def watched(cache: Any, *given: Any, **named: Any) -> Any:
        if not living or living[-1]() is not cache:
            living.append(weakref.ref(cache))
        alive.append(sum(one() is not None for one in living))
        return own(cache, *given, **named)

    monkeypatch.setattr(activation_cache.ActivationCache, "logit_lens", watched)
    decoded(world, 2)
    assert len(living) == 3
    assert max(alive) == 1
