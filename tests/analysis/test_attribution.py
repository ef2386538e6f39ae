"""Attributions equal gradient x difference, sum to the whole, are exact on linear models, and find a plant."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plants
import pytest
import torch
from scipy import stats

from analysis import attribution
from analysis.attribution.agreement import Agreement, CheckedCell, patched, patched_together, reached
from analysis.attribution.gradients import scored
from analysis.likelihood import Window
from analysis.resampling import interval_of, resampled
from analysis.site_grid import grid_sites, spans
from audiolens.errors import InputError, SiteError
from audiolens.model.timeline import delay

CLEAN, CORRUPTED = plants.CLEAN, plants.CORRUPTED
WINDOW = (0.0, 0.4)
FRAMES = 10


@pytest.fixture(scope="module")
def result(lens: Any, codes: torch.Tensor) -> attribution.AttributionResult:
    return attribution.attribute(lens, CLEAN, CORRUPTED, codes, seconds=WINDOW, check=6, check_pairs=3)


def bare(lens: Any, prompts: list[str], codes: torch.Tensor) -> torch.Tensor:
    """transformers' own logits "row codebook step vocab" of the whole clip."""
    inputs = lens.tokenizer(prompts, padding=True, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    return lens.model(**inputs, decoder_input_ids=columns.flatten(0, 1)).logits.unflatten(0, (-1, columns.shape[1]))


def score(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Log-likelihood in the window by a loop over codes: "row"."""
    told = logits.log_softmax(-1)
    return torch.stack(
        [
            sum(told[row, book, frame + book, codes[row, book, frame]] for book in range(4) for frame in range(FRAMES))
            for row in range(len(codes))
        ]
    )


def test_the_metric_is_the_log_likelihood_of_every_code_of_the_window(result: Any, lens: Any, codes: torch.Tensor):
    with torch.no_grad():
        for prompts, found in ((CLEAN, result.clean_scores), (CORRUPTED, result.corrupted_scores)):
            np.testing.assert_allclose(found.sum(1), score(bare(lens, prompts, codes), codes), rtol=1e-5)
    gap = result.clean_scores.sum(1) - result.corrupted_scores.sum(1)
    assert result.gap.value == pytest.approx(gap.mean())
    assert result.gap.low <= gap.mean() <= result.gap.high


def test_a_window_in_the_middle_scores_its_own_frames(lens: Any, stereo_lens: Any, codes: torch.Tensor):
    both = torch.cat([codes, codes.flip(-1)], dim=1)
    for model, mine in ((lens, codes), (stereo_lens, both)):
        window = Window.of(model, mine, (0.2, 0.4))
        assert (window.first, window.end) == (5, 10)
        logits = model.run_with_cache(CLEAN, mine)[0]
        told = window.each(logits, mine)
        book = mine.shape[1] - 1
        shift = 3
        expected = logits[2, book].log_softmax(-1)[7 + shift, mine[2, book, 7]]
        assert float(told[2, book, 2]) == pytest.approx(float(expected))


def test_attributions_are_the_gradient_times_the_difference(result: Any, lens: Any, codes: torch.Tensor):
    blocks = lens.model.decoder.model.decoder.layers
    states: list[torch.Tensor] = []
    with torch.no_grad():
        handle = blocks[1].register_forward_hook(lambda _, __, out: states.append(out))
        bare(lens, CLEAN, codes)
        handle.remove()

    def leaf(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        states.append(out.detach().requires_grad_())
        return states[-1]

    handle = blocks[1].register_forward_hook(leaf)
    loss = score(bare(lens, CORRUPTED, codes), codes).sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, [states[1]])
    expected = (gradient * (states[0] - states[1]).detach()).sum(-1)
    found = result.sites["resid_post"].values[1, :, 0, :, 0]
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=1e-3, atol=1e-5)
    assert (expected[:, found.shape[1] :] == 0).all()


@pytest.mark.parametrize("which", ["mono", "melody"])
@pytest.mark.parametrize("window", [WINDOW, (0.2, 0.5)])
def test_cells_scored_together_are_those_of_one_run_each(
    lens: Any, melody_lens: Any, codes: torch.Tensor, which: str, window: Any
) -> None:
    model = lens if which == "mono" else melody_lens
    prompts = (
        (CORRUPTED, CLEAN) if which == "mono" else (["fast song", "slow song"] * 2 + ["fast song"], ["calm song"] * 5)
    )
    prompts = tuple(list(side)[: len(codes)] for side in prompts)
    metric = Window.of(model, codes, window)
    cropped = metric.cropped(codes)
    short = [
        "resid_pre",
        "resid_post",
        "attn_out",
        "mlp_out",
        "attn.q",
        "attn.v",
        "attn.z",
        "mlp.post",
        "ln1.normalized",
    ]
    if which == "mono":
        short += ["cross_attn_out", "cross_attn.k", "cross_attn.z", "cross_attn.pattern", "text_states", "embed"]
    short += ["ln1.normalized", "attn.pattern", "ln_final.normalized"]
    sites = [site for group in grid_sites(model, short, None).values() for site in group]
    names = [site.name for site in sites]
    own, other = (model.run_with_cache(side, cropped, sites=names)[1].tensors for side in prompts)
    assert all(reached(site, metric) for site in sites)
    cells = [
        CheckedCell(site, start, stop, 1 if site.heads else None)
        for site in sites
        for start, stop in ([(1, 2)] if site.cell_unit == "token" else [(0, 4), (7, 11)])
    ]
    base = scored(metric, model.run_with_cache(prompts[0], cropped, sites=())[0], cropped).double().numpy()
    alone = patched(model, prompts[0], cropped, own, other, cells, metric) - base
    together = patched_together(model, *prompts, cropped, cells, metric)
    assert np.abs(alone).max() > 1e-2
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_a_metric_of_ones_own_is_checked_with_one_run_per_cell(lens: Any, codes: torch.Tensor) -> None:
    window = Window.of(lens, codes, WINDOW)
    asked: dict[str, Any] = {"sites": ["resid_post", "cross_attn.v"], "check": 4, "check_pairs": 3}
    cropped = window.cropped(codes)
    plain = attribution.attribute(lens, CLEAN, CORRUPTED, cropped, seconds=WINDOW, **asked).agreement
    own = attribution.attribute(
        lens, CLEAN, CORRUPTED, cropped, metric=lambda *given: window(*given), **asked
    ).agreement
    assert plain is not None
    assert own is not None
    pd.testing.assert_frame_equal(plain.cells, own.cells, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("site", "head"), [("resid_post", None), ("cross_attn.z", 2), ("cross_attn.v", 1)])
def test_exact_cells_are_those_of_a_naive_loop(lens: Any, codes: torch.Tensor, site: str, head: int | None):
    place = grid_sites(lens, site, [1])[site][0]
    own, other = (
        lens.run_with_cache(prompts, codes, sites=site, layers=[1])[1].tensors for prompts in (CORRUPTED, CLEAN)
    )
    found = patched(
        lens, CORRUPTED, codes, own, other, [CheckedCell(place, 1, 3, head)], Window.of(lens, codes, WINDOW)
    )  # fmt: skip
    block = lens.model.decoder.model.decoder.layers[1]
    mine = slice(None) if head is None else slice(12 * head, 12 * (head + 1))

    def put(value: torch.Tensor) -> torch.Tensor:
        theirs = other[place.name]
        if theirs.ndim == 4:
            theirs = (theirs.transpose(1, 2) if "token" in place.axes and theirs.shape[1] == 4 else theirs).flatten(2)
        value = value.clone()
        value[:, 1:3, mine] = theirs[:, 1:3, mine]
        return value

    with torch.no_grad():
        if site == "resid_post":
            handle = block.register_forward_hook(lambda _, __, out: put(out))
        elif site == "cross_attn.z":
            handle = block.encoder_attn.out_proj.register_forward_pre_hook(lambda _, args: (put(args[0]),))
        else:
            handle = block.encoder_attn.v_proj.register_forward_hook(lambda _, __, out: put(out))
        expected = score(bare(lens, CORRUPTED, codes), codes)
        handle.remove()
    np.testing.assert_allclose(found[0].sum(1), expected, rtol=1e-5)
    assert np.abs(found[0].sum(1) - score(bare(lens, CORRUPTED, codes), codes).detach().numpy()).max() > 1e-4


def test_where_the_metric_is_linear_attribution_is_exact_patching(lens: Any, codes: torch.Tensor):
    weights = torch.randn(32, generator=torch.Generator().manual_seed(3))

    def linear(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (logits @ weights).sum(-1)

    found = attribution.attribute(
        lens, CLEAN, CORRUPTED, codes, sites="ln_final.normalized", metric=linear, check=50, check_pairs=5
    )
    assert found.agreement is not None
    cells = found.agreement.cells
    assert cells["exact"].abs().max() > 0.1
    np.testing.assert_allclose(cells["attributed"], cells["exact"], rtol=1e-3, atol=1e-3)
    assert found.agreement.rho["ln_final.normalized"] > 0.99
    assert found.window is None


def test_integrated_gradients_add_up_to_the_gap_as_steps_grow(lens: Any, codes: torch.Tensor):
    def completeness(steps: int, towards: Any = "denoising") -> float:
        return attribution.attribute(
            lens, CLEAN, CORRUPTED, codes, sites="text_states", seconds=WINDOW, method="integrated", steps=steps,
            towards=towards, check=0,
        ).completeness  # fmt: skip

    fine = completeness(24)
    assert fine == pytest.approx(1, abs=0.03)
    assert completeness(24, "noising") == pytest.approx(1, abs=0.03)
    assert abs(fine - 1) < abs(completeness(1) - 1)


@pytest.mark.parametrize(("layer", "head"), [(0, 2), (1, 0), (2, 3)])
def test_the_planted_head_carries_everything_that_the_text_says(lens: Any, codes: torch.Tensor, layer: int, head: int):
    model = plants.head_plant(plants.copied(lens), layer, head).lens
    found = attribution.attribute(model, CLEAN, CORRUPTED, codes, check=6, check_pairs=2, seconds=WINDOW)
    heads = found.of("cross_attn.z", ("layer", "head"))
    assert np.unravel_index(np.abs(heads).argmax(), heads.shape) == (layer, head)
    assert abs(heads[layer, head]) > 0.01
    heads[layer, head] = 0
    assert np.abs(heads).max() == 0
    stream = np.abs(found.sites["resid_post"].values).max((1, 2, 3, 4))
    assert (stream[:layer] == 0).all()
    assert (stream[layer:] > 0.01).all()
    assert f"block {layer} head {head}" in repr(found)
    parts = attribution.direct(model, CLEAN, codes, corrupted=CORRUPTED, heads=True, seconds=WINDOW)
    cross = [place for place, label in enumerate(parts.labels) if "cross" in label]
    written = np.abs(parts.values[:, :, 0]).mean(1)
    assert parts.labels[cross[int(written[cross].argmax())]] == f"{layer}_cross_attn_h{head}"
    assert parts.labels[int(written.argmax())] == f"{layer}_cross_attn_h{head}"


def test_codebooks_apart_add_up_and_batches_do_not_matter(result: Any, lens: Any, codes: torch.Tensor):
    apart = attribution.attribute(
        lens, CLEAN, CORRUPTED, codes, seconds=WINDOW, check=0, per_codebook=True, batch_size=2
    )  # fmt: skip
    for site, scores in apart.sites.items():
        assert scores.values.shape[2] == 4
        np.testing.assert_allclose(
            scores.values.sum(2, keepdims=True), result.sites[site].values, rtol=1e-3, atol=2e-5
        )  # fmt: skip
    np.testing.assert_allclose(apart.of("attn.z", ("head", "layer")), apart.of("attn.z", ("layer", "head")).T)
    np.testing.assert_allclose(apart.of("attn.z", "codebook").sum(), result.of("attn.z", "layer").sum(), rtol=1e-3)


def test_noising_asks_the_other_run(result: Any, lens: Any, codes: torch.Tensor):
    found = attribution.attribute(lens, CLEAN, CORRUPTED, codes, seconds=WINDOW, check=0, towards="noising")
    mirrored = attribution.attribute(lens, CORRUPTED, CLEAN, codes, seconds=WINDOW, check=0)
    np.testing.assert_allclose(found.of("mlp_out"), mirrored.of("mlp_out"), rtol=1e-5)
    np.testing.assert_allclose(found.clean_scores, result.clean_scores, rtol=1e-5)


def test_a_family_with_a_prefix_is_attributed_behind_it(melody_lens: Any, codes: torch.Tensor):
    found = attribution.attribute(melody_lens, CLEAN, CORRUPTED, codes, seconds=WINDOW, check=4, check_pairs=5)
    assert set(found.sites) == {"resid_post", "attn_out", "mlp_out", "attn.z"}
    assert found.sites["resid_post"].values.shape == (3, 5, 1, FRAMES + 2 + 3, 1)
    assert found.agreement is not None
    # The last block's stream at all steps is all that the heads read.
    whole = [CheckedCell(grid_sites(melody_lens, "resid_post", [2])["resid_post"][0], 0, 18)]
    runs = [melody_lens.run_with_cache(p, codes, sites="resid_post")[1] for p in (CORRUPTED, CLEAN)]
    window = Window.of(melody_lens, codes, WINDOW)
    everything = patched(
        melody_lens, CORRUPTED, codes, runs[0].tensors, runs[1].tensors, whole, window
    )  # fmt: skip
    np.testing.assert_allclose(everything[0], found.clean_scores, rtol=1e-4)
    with pytest.raises(SiteError, match="no cross-attention"):
        attribution.attribute(melody_lens, CLEAN, CORRUPTED, codes, sites="cross_attn.z")
    with pytest.raises(InputError, match="use method='gradient'"):
        attribution.attribute(melody_lens, CLEAN, CORRUPTED, codes, method="integrated")
    with pytest.raises(InputError, match="shifts every step.*pair 0 with 3 and 4 tokens"):
        attribution.attribute(melody_lens, CLEAN, ["slow piano music", *CORRUPTED[1:]], codes)


def test_tokens_that_do_not_align_are_refused_only_where_it_matters(lens: Any, codes: torch.Tensor):
    longer = ["slow piano music", *CORRUPTED[1:]]
    for asked in ({"sites": "cross_attn.v"}, {"sites": "cross_attn.pattern"}, {"method": "integrated"}):
        with pytest.raises(InputError, match="pair 0 with 3 and 4 tokens"):
            attribution.attribute(lens, CLEAN, longer, codes, **asked)
    assert attribution.attribute(lens, CLEAN, longer, codes, sites="cross_attn.z", check=0).sites


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"corrupted": CLEAN}, "are the same"),
        ({"corrupted": CORRUPTED[:2]}, "5 rows of codes for 2 prompts"),
        ({"sites": "hook_logits"}, "computed from"),
        ({"sites": []}, "name at least one"),
        ({"method": "magic"}, "expected 'gradient' or 'integrated'"),
        ({"towards": "sideways"}, "expected 'denoising' or 'noising'"),
        ({"steps": 0}, "steps=0"),
        ({"check": -1}, "check=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"seconds": (0, 99)}, "ends after the clip"),
    ],
)
def test_bad_input_is_refused(lens: Any, codes: torch.Tensor, change: dict[str, Any], message: str):
    asked = {"clean": CLEAN, "corrupted": CORRUPTED, "codes": codes, "check": 0, **change}
    with pytest.raises(InputError, match=message):
        attribution.attribute(lens, **asked)


def test_a_metric_without_difference_and_a_gap_that_covers_0_have_no_scale(lens: Any, codes: torch.Tensor):
    with pytest.raises(InputError, match="no difference to attribute"):
        attribution.attribute(plants.deaf(lens), CLEAN, CORRUPTED, codes, check=0)
    both = attribution.attribute(
        lens, CLEAN[:2] + CORRUPTED[:2], CORRUPTED[:2] + CLEAN[:2], codes[[0, 1, 0, 1]], check=0
    )
    assert both.gap.low < 0 < both.gap.high
    with pytest.raises(InputError, match="covers 0"):
        both.normalised("resid_post")
    assert both.of("resid_post").shape[0] == 3


def test_a_site_where_no_cell_is_clear_of_chance_has_no_peak(result: Any):
    """Five pairs: no flip of signs can be rarer than one in 32, and that over all cells."""
    assert "resid_post is nowhere clear of chance, largest at block" in repr(result)
    many = 40
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, many, 1, 1, 4))
    values[1, :, :, :, 2] += 2
    facts: Any = {"clean": tuple(map(str, range(many))), "corrupted": ("x",) * many, "agreement": None}
    planted = replace(result, sites={"attn.z": replace(result.sites["cross_attn.z"], values=values)}, **facts)
    planted = replace(planted, clean_scores=np.zeros((many, 1)), corrupted_scores=np.zeros((many, 1)))
    assert "attn.z peaks at block 1 head 2: +" in repr(planted)
    assert "(p = 0.001)" in repr(planted)


def test_tables_and_figures_name_what_they_show(result: Any):
    table = result.to_frame()
    assert list(table.columns) == ["site", "layer", "head", "effect", "low", "high", "p"]
    assert len(table) == 4 * 3 + 2 * 3 * 4
    one = table[(table["site"] == "mlp_out") & (table["layer"] == 1)].iloc[0]
    assert one["effect"] == pytest.approx(result.of("mlp_out", "layer")[1])
    assert one["low"] <= one["effect"] <= one["high"]
    assert list(result.by_layer("attn_out")["layer"]) == [0, 1, 2]
    axes = [panel for panel in result.plot().axes if panel.get_title()]
    assert len(axes) == 6
    assert all(panel.get_xlabel() in ("time [s]", "head") and panel.get_ylabel() == "block" for panel in axes)
    assert len(result.figure().layout.updatemenus[0].buttons) == 6
    assert "nats" in repr(result)
    assert "Spearman" in repr(result.agreement)
    with pytest.raises(InputError, match="Did you mean 'resid_post'"):
        result.of("resid_pst")
    with pytest.raises(InputError, match="expected one or several"):
        result.of("resid_post", "seconds")


def test_spans_cover_all_steps_once():
    assert spans(13, 4) == [(0, 3), (3, 6), (6, 10), (10, 13)]
    assert spans(2, 8) == [(0, 1), (1, 2)]


def test_agreement_is_the_rank_correlation_of_scipy() -> None:
    rng = np.random.default_rng(0)
    attributed = rng.normal(size=16).round(1)
    exact = (attributed + rng.normal(size=16)).round(1)
    frame = pd.DataFrame({"site": "a", "attributed": attributed, "exact": exact})
    flat = pd.DataFrame({"site": "b", "attributed": attributed, "exact": 0.0})
    found = Agreement.of(pd.concat([frame, flat]), n_pairs=1)
    assert np.isclose(found.rho["a"], stats.spearmanr(attributed, exact).statistic)
    assert np.isnan(found.rho["b"])
    draws = resampled(np.arange(16), 300)
    expected = [stats.spearmanr(attributed[draw], exact[draw]).statistic for draw in draws]
    assert np.isclose(found.intervals["a"].low, interval_of(np.array(expected), 16).low)
