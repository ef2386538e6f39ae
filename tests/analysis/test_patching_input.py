"""Patching refuses bad input in one line with a remedy, and its results describe themselves."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch import Tensor

import audiolens as al
from analysis import patching
from analysis.patching import PatchingResult
from analysis.patching.grid import needs_equal_lengths
from audiolens.errors import InputError, InputTypeError, PromptError, SiteError

METRIC = patching.LogLikelihood((0.0, 0.2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corrupted": ["slow", "dark", "calm"]}, PromptError, "2 clean and 3 corrupted prompts"),
        ({"corrupted": ["slow", "bright"]}, InputError, "pair 1 has 'bright' on both sides"),
        ({"codes": torch.zeros(3, 4, 15, dtype=torch.long)}, InputError, "3 rows of codes for 2 prompts"),
        ({"codes": torch.zeros(2, 5, 15, dtype=torch.long)}, InputError, "4 codebooks"),
        ({"codes": None}, InputTypeError, "codes: expected"),
        ({"site": "cross_attn_outs"}, SiteError, "unknown site"),
        ({"site": "hook_logitz"}, SiteError, "unknown site"),
        ({"layers": 9}, SiteError, "layers 0 to 2"),
        ({"site": "resid_post", "by": "token"}, InputError, "has no token axis"),
        ({"site": "resid_post", "by": "head"}, InputError, "has no heads"),
        ({"site": "cross_attn.k", "by": "seconds"}, InputError, "use by='token'"),
        ({"site": ["attn.z", "cross_attn.z"], "by": "head"}, InputError, "one part of a block"),
        ({"by": "step"}, InputError, "by='step': expected one of"),
        ({"mode": "denoise"}, InputError, "'denoising' or 'noising'"),
        ({"metric": "loss"}, InputError, "metric='loss'"),
        ({"metric": patching.LogLikelihood((0.0, 9.0))}, InputError, "ends after the clip"),
        ({"windows": 0}, InputError, "windows=0"),
        ({"windows": 99}, InputError, "8 steps to divide"),
        ({"windows": [(0.0, 9.0)]}, InputError, "ends after the clip"),
        ({"by": "head", "heads": [7]}, InputError, "heads 0 to 3"),
        ({"memory_gib": 0}, InputError, "memory_gib=0"),
        ({"clusters": ["a"]}, InputError, "1 clusters for 2 pairs"),
        ({"clusters": {"a", "b"}}, InputTypeError, "clusters: expected a list of clusters, in order, got set"),
        ({"clusters": "ab"}, InputTypeError, "clusters: expected a list of clusters, in order, got str"),
        ({"history": torch.zeros(2, 4, 15, dtype=torch.long)}, InputError, "starts at 0 s: score a later window"),
        ({"metric": patching.Sound("tempo_ioi")}, InputError, "give codes=None"),
    ],
)
def test_bad_input_is_refused(
    lens: al.AudioLens, codes: Tensor, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    given: dict[str, Any] = {"clean": ["fast", "bright"], "corrupted": ["slow", "dark"], "codes": codes[:2]}
    given |= {"metric": METRIC, "progress": False, "n_bootstrap": 10, "n_permutations": 10} | change
    with pytest.raises(error, match=message):
        patching.patch(lens, **given)


@pytest.mark.parametrize("site", [None, "cross_attn.k", "hook_text_states"])
def test_prompts_of_different_length_are_never_shifted(lens: al.AudioLens, codes: Tensor, site: Any) -> None:
    with pytest.raises(PromptError, match=r"1 of 2 pairs .* pair 1 with 2 and 3 tokens.*same_length=True"):
        patching.patch(lens, ["fast", "fast"], ["slow", "slow song"], codes[:2], METRIC, site, by="token")
    with pytest.raises(PromptError, match="1 of 2 pairs"):
        patching.patch(
            lens, ["fast", "fast"], ["slow", "slow song"], codes[:2], METRIC, "cross_attn.v", by="head", progress=False
        )


def test_patterns_over_the_text_before_the_steps_take_pairs_of_one_length(
    melody_lens: al.AudioLens, lens: al.AudioLens, codes: Tensor
) -> None:
    with pytest.raises(PromptError, match=r"attn.pattern by head.*same_length=True"):
        patching.patch(
            melody_lens, ["fast", "fast"], ["slow", "slow song"], codes[:2], METRIC, "attn.pattern", by="head"
        )
    assert needs_equal_lengths(melody_lens, "attn.pattern", "head", 1.0)
    assert not needs_equal_lengths(lens, "attn.pattern", "head", 1.0)
    assert not needs_equal_lengths(melody_lens, "attn.z", "head", 1.0)


def test_a_family_without_cross_attention_says_so(melody_lens: al.AudioLens, codes: Tensor) -> None:
    with pytest.raises(SiteError, match="no cross-attention"):
        patching.patch(melody_lens, "fast", "slow", codes[:1], METRIC, "cross_attn_out")
    with pytest.raises(SiteError, match="by='token' needs cross-attention, and MusicGen Melody has none"):
        patching.patch(melody_lens, "fast", "slow", codes[:1], METRIC, by="token")


def result(gap: float, spread: float = 0.5, mode: Any = "denoising", pairs: int = 16) -> PatchingResult:
    """Planted numbers: two codebooks, three layers, two windows; the second layer recovers half of the gap."""
    rng = np.random.default_rng(0)
    corrupted = rng.normal(-100, 10, (pairs, 2))
    clean = corrupted + gap / 2 + rng.normal(0, spread, (pairs, 2))
    base, other = (corrupted, clean) if mode == "denoising" else (clean, corrupted)
    share = np.array([[0.0, 0.0], [0.5, 0.1], [0.2, 0.0]])
    patched = base[:, :, None, None] + (other - base)[:, :, None, None] * share
    return PatchingResult(
        patched=patched, clean=clean, corrupted=corrupted, codebooks=("0", "1"), layers=(0, 1, 2),
        columns=("0.00-0.50", "0.50-1.00"), spans=((0.0, 0.5), (0.5, 1.0)), by="seconds", sites=("resid_post",),
        mode=mode, metric="log-likelihood of the clean codes", unit="nats", scored=(0.0, 1.0),
        prompts=(("fast", "slow"),) * pairs, clusters=tuple(map(str, range(pairs))),
    )  # fmt: skip


def test_a_result_says_the_gap_first_and_where_most_came_back() -> None:
    found = result(4.0)
    assert found.gap().interval.low > 3
    assert found.best() == (1, "0.00-0.50")
    np.testing.assert_allclose(found.normalised(), [[0, 0], [0.5, 0.1], [0.2, 0]], atol=1e-9)
    text = repr(found)
    assert text.index("gap +4") < text.index("largest effect at block 1, seconds 0.00-0.50")
    assert "(50% of the way to clean)" in text


def test_the_largest_cell_of_noise_is_said_to_be_no_clearer_than_chance() -> None:
    assert "no cell clear of chance, largest effect at" in repr(result(0.0, 3.0))
    assert "chance" not in repr(result(4.0))


def test_a_noised_grid_starts_at_one() -> None:
    found = result(4.0, mode="noising")
    np.testing.assert_allclose(found.normalised(), [[1, 1], [0.5, 0.9], [0.8, 1]], atol=1e-9)
    assert found.effect()[1, 0] < -1.5
    assert found.best() == (1, "0.00-0.50")


@pytest.mark.parametrize(("gap", "spread"), [(0.1, 3.0), (0.0, 0.0)])
def test_a_share_of_no_gap_is_refused_and_never_a_division(gap: float, spread: float) -> None:
    found = result(gap, spread)
    with pytest.raises(InputError, match=r"not clearly different from 0.*undefined.*history="):
        found.normalised()
    assert found.to_frame()["normalised"].isna().all()
    assert "no clear gap" in repr(found)
    assert np.isfinite(found.effect()).all()


def test_one_pair_has_no_interval_and_no_share() -> None:
    found = result(4.0, pairs=1)
    assert np.isnan(found.gap().interval.low)
    with pytest.raises(InputError, match="not clearly different from 0"):
        found.normalised()
    assert "PatchingResult" in repr(found)


def test_the_table_has_a_row_a_cell_and_codebook() -> None:
    found = result(4.0)
    table = found.to_frame()
    assert len(table) == 3 * 3 * 2
    assert list(table["codebook"].unique()) == ["0", "1", "total"]
    cell = table[(table["codebook"] == "total") & (table["layer"] == 1) & (table["seconds"] == "0.00-0.50")].iloc[0]
    change = (found.patched - found.corrupted[:, :, None, None]).sum(1)[:, 1, 0]
    assert cell["effect"] == pytest.approx(change.mean())
    assert cell["stderr"] == pytest.approx(change.std(ddof=1) / 4)
    assert cell["low"] < cell["effect"] < cell["high"]
    assert cell["n"] == 16
    assert cell["p_adjusted"] < 0.01
    assert cell["normalised"] == pytest.approx(0.5)
    assert (table["gap_low"] > 0).all()


def test_figures_have_axes_gap_and_caption() -> None:
    found = result(4.0)
    axes, bar = found.plot().axes
    assert "window [s]" in axes.get_xlabel()
    assert "[nats]" in bar.get_ylabel()
    assert "gap +4" in axes.get_title(loc="left")
    figure = found.figure(0)
    assert len(figure.data) == 3
    assert [trace.visible for trace in figure.data] == [True, False, False]
    assert "16 pairs" in figure.layout.title.text


@pytest.mark.parametrize(("pairs", "said"), [(63, True), (64, False)])
def test_a_gap_of_fewer_pairs_than_a_claim_needs_says_so(pairs: int, said: bool) -> None:
    found = result(4.0, pairs=pairs)
    assert ("fewer than 64 pairs" in repr(found)) == said
    assert ("fewer than 64 pairs" in found.figure().layout.title.text) == said


@pytest.mark.filterwarnings("error")
def test_what_could_not_be_measured_is_told_and_drawn() -> None:
    """A slow clip may have no tempo: a cell or all of them are empty, and so may be the gap."""
    full = result(4.0)
    ear = {"codebooks": ("tempo_ioi",), "metric": "tempo_ioi", "unit": "BPM"}
    one: dict[str, Any] = {name: getattr(full, name)[:, :1].copy() for name in ("patched", "clean", "corrupted")}
    one["patched"][:, :, 0] = np.nan
    some = replace(full, **ear, **one)
    assert np.isnan(some.to_frame()[["effect", "p", "p_adjusted", "normalised"]].iloc[0]).all()
    assert "largest effect at block 1" in repr(some)
    nothing = replace(some, corrupted=np.full_like(some.corrupted, np.nan))
    assert not nothing.gap().clear
    assert "no pair was measured in both runs" in repr(nothing)
    with pytest.raises(InputError, match="no best cell"):
        nothing.best()
    for found, told in ((some, "in all of which"), (nothing, "in 0 of which")):
        assert told in found.figure().layout.title.text
        assert found.plot().axes


def test_a_grid_that_was_not_heard_says_so() -> None:
    assert "Not measured on sound" in result(4.0).figure().layout.title.text


def test_a_narrow_grids_caption_stays_in_its_figure() -> None:
    found = result(4.0)
    figure = replace(found, columns=found.columns[:1], patched=found.patched[..., :1]).plot()
    assert figure._supxlabel is not None
    FigureCanvasAgg(figure).draw()
    box = figure._supxlabel.get_window_extent()
    assert (box.x0, box.x1) == (pytest.approx(max(box.x0, 0)), pytest.approx(min(box.x1, figure.bbox.width)))


def test_an_unknown_codebook_is_refused() -> None:
    with pytest.raises(InputError, match="codebook=7: this grid has 0, 1, total"):
        result(4.0).effect(7)
