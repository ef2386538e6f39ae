"""Attention maps equal eager attention, beat scores recover planted lags, and ablation equals a head set to zero."""

import dataclasses
from typing import Any

import numpy as np
import plants
import pytest
import torch

import audiolens as al
from analysis import attention
from audiolens.errors import InputError, SiteError
from audiolens.model.timeline import delay

PROMPTS = ["fast piano", "slow dark guitar music", "calm fast song", "a calm song", "loud jazz"]
FRAMES = 15


@pytest.fixture(scope="module")
def eager(lens: Any, codes: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The outputs of the same model under eager attention, its weights among them."""
    folder = tmp_path_factory.mktemp("eager")
    lens.model.save_pretrained(folder)
    model = type(lens.model).from_pretrained(folder, attn_implementation="eager").eval()
    inputs = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    with torch.no_grad():
        return model(**inputs, decoder_input_ids=columns.flatten(0, 1), output_attentions=True)


@pytest.fixture(scope="module")
def text(lens: Any, codes: torch.Tensor) -> attention.TextAttention:
    return attention.to_text(lens, PROMPTS, codes, batch_size=2)


def test_weights_on_words_are_those_of_eager_attention(text: Any, eager: Any):
    for layer in range(3):
        expected = eager.cross_attentions[layer].numpy()
        for row, tokens in enumerate(text.tokens):
            found = text.weights[layer, :, row, :, : len(tokens)]
            np.testing.assert_allclose(found, expected[row, :, :FRAMES, : len(tokens)], atol=1e-5)
            assert np.isnan(text.weights[layer, :, row, :, len(tokens) :]).all()
    fast = text.word("fast")
    np.testing.assert_allclose(fast[1, 2, 2], eager.cross_attentions[1][2, 2, :FRAMES, 1], atol=1e-5)
    assert np.isnan(fast[:, :, 1]).all()
    both = text.word(["calm", "fast"])
    np.testing.assert_allclose(both[:, :, 2], text.word("calm")[:, :, 2] + fast[:, :, 2], atol=1e-6)


def test_a_head_that_looks_nowhere_in_particular_has_a_share_of_one(lens: Any, codes: torch.Tensor):
    blind = plants.deaf(lens)
    with torch.no_grad():
        blind.model.decoder.model.decoder.layers[1].encoder_attn.q_proj.weight[12:24] = 0
    found = attention.to_text(blind, PROMPTS, codes)
    assert found.listens("fast").value[1, 1] == pytest.approx(1, abs=1e-5)
    assert found.selective()[1, 1] == pytest.approx(0, abs=1e-5)
    assert found.selective().argmin() == 5


def test_no_head_is_named_where_none_looks_back_by_the_beat(lens: Any, codes: torch.Tensor):
    found = attention.by_lag(lens, PROMPTS, codes, beat_seconds=[0.12, 0.16, 0.2, 0.24, 0.12], n_permutations=99)
    assert not found.periodic.any()
    assert "0 of 12 heads attend at multiples of the beat" in repr(found)
    assert f"lowest p = {found.p.min():.3g}" in repr(found)
    assert "block" not in repr(found)


def test_the_most_important_head_of_noise_is_said_to_be_no_clearer_than_chance():
    rng = np.random.default_rng(0)
    changes = rng.normal(size=(3, 4, 20, 1))
    facts: Any = {"site": "attn.z", "factor": 0.0, "layers": (0, 1, 2), "heads": (0, 1, 2, 3), "window": None}
    prompts = tuple(f"prompt {row}" for row in range(20))
    silent = attention.HeadAblation(changes=changes, intact=np.zeros((20, 1)), prompts=prompts, **facts)
    assert "no head clear of chance; lowest at block" in repr(silent)
    planted = changes.copy()
    planted[1, 2] -= 2
    found = attention.HeadAblation(changes=planted, intact=np.zeros((20, 1)), prompts=prompts, **facts)
    assert "lowest at block 1 head 2" in repr(found)
    assert "chance" not in repr(found)
    assert found.to_frame().query("layer == 1 and head == 2")["p"].item() == pytest.approx(0.001)


def test_profiles_are_means_of_eager_attention_along_diagonals(lens: Any, codes: torch.Tensor, eager: Any):
    found = attention.by_lag(lens, PROMPTS, codes, beat_seconds=[0.12, 0.16, 0.2, 0.24, 0.12], n_permutations=9)
    assert found.profiles.shape == (3, 4, 5, 8)
    for layer, head, row, lag in ((0, 0, 0, 0), (1, 3, 2, 4), (2, 1, 4, 7)):
        weights = eager.decoder_attentions[layer][row, head]
        expected = np.mean([float(weights[query, query - lag]) for query in range(7, FRAMES)])
        assert found.profiles[layer, head, row, lag] == pytest.approx(expected, abs=1e-5)


def test_beat_scores_find_a_planted_beat_and_are_blind_to_decay():
    lags = np.arange(61)
    for beat in (7.5, 10.0, 13.3):
        planted = 1 + np.cos(2 * np.pi * lags / beat)
        # sampled between frames a cosine loses a little of its height
        assert attention.beat_score(planted, beat) > 0.9
        assert attention.beat_score(planted, 2 * beat) == pytest.approx(0, abs=0.15)
        assert attention.beat_score(2 - planted, beat) < -0.85
        assert attention.beat_score(100.0 - lags, beat) == pytest.approx(0, abs=1e-9)
    assert np.isnan(attention.beat_score(np.ones(10), 8.0))


def test_heads_that_follow_their_own_clips_beat_stand_out_against_other_clips(
    lens: Any, codes: torch.Tensor, monkeypatch: pytest.MonkeyPatch
):
    """One head's pattern is replaced by one that looks a beat back; all others stay."""
    rng = np.random.default_rng(0)
    frames, rows = 60, 16
    many = torch.randint(0, 32, (rows, 4, frames), generator=torch.Generator().manual_seed(5))
    beats = rng.uniform(5, 12, rows)
    steps = frames + 3
    lag = np.arange(steps)[:, None] - np.arange(steps)[None]
    weights = np.where(lag >= 0, 1.05 + np.cos(2 * np.pi * lag[None] / beats[:, None, None]), 0)
    weights /= weights.sum(-1, keepdims=True)
    pattern = torch.tensor(weights, dtype=torch.float32)[:, None].expand(-1, 4, -1, -1)
    edit = al.Replace(pattern, site="attn.pattern", layers=[1], heads=[2])
    plain = lens.run_with_cache

    def edited(prompts: Any, given: Any, **asked: Any) -> Any:
        return plain(prompts, given, interventions=edit, **asked)

    monkeypatch.setattr(lens, "run_with_cache", edited)
    found = attention.by_lag(
        lens, (PROMPTS * 4)[:rows], many, beat_seconds=beats / 25, n_permutations=299, batch_size=16
    )
    assert np.unravel_index(found.p.argmin(), found.p.shape) == (1, 2)
    assert found.p[1, 2] <= 0.05
    assert (np.delete(found.p.ravel(), 6) > 0.1).all()
    assert found.means.value[1, 2] > 0.5
    assert found.control[1, 2] < 0.3
    assert "block 1 head 2" in repr(found)
    assert found.periodic[1, 2]


@pytest.mark.parametrize(
    ("beats", "longest", "remedy"),
    [
        # 15 frames at 25 a second: lags to 0.28 s.
        ([30.0, 40.0, 30.0, 40.0, 30.0], None, r"fastest beat lasts 30 s\): give longer clips"),
        ([0.24, 0.28, 0.28, 0.3, 0.3], None, r"fastest beat lasts 0.24 s\): give longest_seconds=0.36"),
        ([0.12, 0.16, 0.2, 0.2, 0.2], 0.12, "give longest_seconds=0.2"),
    ],
)
def test_beats_that_no_lag_reaches_are_refused(
    lens: Any, codes: torch.Tensor, beats: list[float], longest: float | None, remedy: str
):
    with pytest.raises(InputError, match=remedy):
        attention.by_lag(lens, PROMPTS, codes, beat_seconds=beats, longest_seconds=longest)


def test_the_lags_that_a_refusal_names_are_enough(lens: Any, codes: torch.Tensor):
    beats = [0.24, 0.28, 0.28, 0.3, 0.3]
    found = attention.by_lag(
        lens, PROMPTS, codes, beat_seconds=beats, longest_seconds=0.36, n_permutations=29, layers=[1]
    )
    assert np.isfinite(found.scores).sum(-1).tolist() == [[1, 1, 1, 1]]
    assert "of 4 heads attend at multiples of the beat" in repr(found)


@pytest.mark.parametrize(("site", "module"), [("attn.z", "self_attn"), ("cross_attn.z", "encoder_attn")])
def test_ablation_is_a_head_set_to_zero_by_a_hook(lens: Any, codes: torch.Tensor, site: str, module: str):
    found = attention.ablate(lens, PROMPTS, codes, site=site, heads=[0, 3], batch_size=12)
    inputs = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1]

    def bare() -> np.ndarray:
        with torch.no_grad():
            logits = lens.model(**inputs, decoder_input_ids=columns.flatten(0, 1)).logits.unflatten(0, (-1, 4))
        told = logits.log_softmax(-1)
        aligned = torch.stack([told[:, book, book : book + FRAMES] for book in range(4)], dim=1)
        return aligned.gather(-1, codes[..., None])[..., 0].mean(-1).numpy()

    intact = bare()
    np.testing.assert_allclose(found.intact, intact, rtol=1e-5)
    for layer, place, head in ((0, 0, 0), (2, 1, 3)):
        projection = getattr(lens.model.decoder.model.decoder.layers[layer], module).out_proj

        def silence(_: Any, args: Any, head: int = head) -> Any:
            value = args[0].clone()
            value[..., 12 * head : 12 * (head + 1)] = 0
            return (value,)

        handle = projection.register_forward_pre_hook(silence)
        np.testing.assert_allclose(found.changes[layer, place], bare() - intact, atol=2e-5)
        handle.remove()
    assert np.abs(found.changes).max() > 1e-3


def test_the_planted_head_is_the_only_one_that_costs_anything(lens: Any, codes: torch.Tensor):
    found = attention.ablate(plants.head_plant(plants.copied(lens), 1, 2).lens, PROMPTS, codes, site="cross_attn.z")
    cost = np.abs(found.changes).max((2, 3))
    assert cost[1, 2] > 1e-3
    cost[1, 2] = 0
    assert cost.max() < 1e-6


def test_a_family_with_a_prefix_hears_its_text_there(melody_lens: Any, codes: torch.Tensor):
    found = attention.to_text(melody_lens, PROMPTS, codes)
    _, cache = melody_lens.run_with_cache(PROMPTS[1:2], codes[1:2], sites="attn.pattern")
    # seven chroma frames, four words and the end token, then the steps
    np.testing.assert_allclose(found.weights[2, 1, 1, 4, :5], cache["attn.pattern", 2][0, 1, 4, 7:12], atol=1e-5)
    assert (np.nansum(found.weights, axis=-1) < 1).all()
    lags = attention.by_lag(melody_lens, PROMPTS, codes, beat_seconds=[0.12, 0.2, 0.2, 0.2, 0.2], n_permutations=9)
    weights = cache["attn.pattern", 1][0, 2]
    expected = np.mean([float(weights[query, 12 + query - 3]) for query in range(7, FRAMES)])
    assert lags.profiles[1, 2, 1, 3] == pytest.approx(expected, abs=1e-5)
    assert attention.ablate(melody_lens, PROMPTS, codes, layers=[1], heads=[0]).changes.shape == (1, 1, 5, 4)
    with pytest.raises(SiteError, match="no cross-attention"):
        attention.ablate(melody_lens, PROMPTS, codes, site="cross_attn.z")


def test_tables_and_figures_name_what_they_show(text: Any, lens: Any, codes: torch.Tensor):
    table = text.to_frame()
    assert {"fast", "guitar", "</s>"} <= set(table["token"])
    one = table[(table["layer"] == 1) & (table["head"] == 2) & (table["token"] == "fast")].iloc[0]
    assert one["rows"] == 2
    assert one["weight"] == pytest.approx(np.nanmean(text.word("fast")[1, 2]))
    assert one["uniform"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    panels = text.plot(row=1, heads=[(0, 1), (2, 3)]).axes
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["slow", "dark", "guitar", "music", "</s>"]
    assert len(text.figure().data) == 12
    lags = attention.by_lag(lens, PROMPTS, codes, beat_seconds=[0.12, 0.16, 0.2, np.nan, 0.12], n_permutations=9)
    assert np.isnan(lags.scores[:, :, 3]).all()
    assert list(lags.to_frame().columns) == [
        "layer",
        "head",
        "score",
        "low",
        "high",
        "control",
        "control_high",
        "p",
        "periodic",
    ]
    assert [axes.get_xlabel() for axes in lags.plot().axes[:2]] == ["head", "lag [beats]"]
    assert lags.figure().data
    silenced = attention.ablate(lens, PROMPTS, codes, layers=[0], heads=[1])
    assert len(silenced.to_frame()) == 4
    assert "nats per code" in silenced.plot().axes[1].get_ylabel()
    assert silenced.figure().data
    assert "block 0 head 1" in repr(silenced)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lens, codes: attention.to_text(lens, [None] * 5, codes), "a prompt is None"),
        (lambda lens, codes: attention.to_text(lens, PROMPTS[:2], codes), "5 rows of codes for 2 prompts"),
        (lambda lens, codes: attention.by_lag(lens, PROMPTS, codes, beat_seconds=[0.5] * 5), "have different beats"),
        (lambda lens, codes: attention.by_lag(lens, PROMPTS, codes, beat_seconds=[0.5]), "expected 5 positive"),
        (lambda lens, codes: attention.by_lag(lens, PROMPTS, codes, longest_seconds=9), "longest_seconds=9"),
        (lambda lens, codes: attention.ablate(lens, PROMPTS, codes, site="mlp_out"), "site with heads and steps"),
        (lambda lens, codes: attention.ablate(lens, PROMPTS, codes, site="cross_attn.v"), "site with heads and steps"),
        (lambda lens, codes: attention.ablate(lens, PROMPTS, codes, heads=[7]), "heads=\\[7\\]"),
    ],
)
def test_bad_input_is_refused(lens: Any, codes: torch.Tensor, ask: Any, message: str):
    with pytest.raises(InputError, match=message):
        ask(lens, codes)


def test_a_word_that_is_not_there_is_named(text: Any):
    with pytest.raises(InputError, match="no prompt contains the token 'pianos'. Did you mean 'piano'"):
        text.word("pianos")


def test_too_few_prompts_for_a_p_are_said_and_not_called_no_finding(lens: Any, codes: torch.Tensor) -> None:
    """Sign flips of 4 clusters cannot give a p under 1/8, nor 2 clips' beats one under 1/2."""
    prompts = ["fast", "slow", "calm", "dark", "loud"]
    few = attention.ablate(lens, prompts[:4], codes[:4], layers=[1])
    assert few.means.least_p == 1 / 8
    assert "too few prompts or shuffles to test" in repr(few)
    many = attention.ablate(lens, prompts + ["soft"], torch.cat([codes, codes[:1]]), layers=[1])
    assert many.means.least_p == 1 / 32
    assert "too few" not in repr(many)
    two = attention.by_lag(lens, prompts[:2], codes[:2], beat_seconds=[0.12, 0.16], layers=[1])
    assert two.least_p == 1 / 2
    assert "too few prompts or shuffles to test: no p could be below 0.5" in repr(two)
    five = attention.by_lag(lens, prompts, codes, beat_seconds=[0.12, 0.13, 0.14, 0.15, 0.16], layers=[1])
    assert five.least_p == 1 / 120
    assert "too few" not in repr(five)
    shuffled_little = dataclasses.replace(five, n_permutations=9)
    assert shuffled_little.least_p == 1 / 10
    assert "too few prompts to test" in repr(attention.to_text(lens, ["fast"], codes[:1]))
