"""The logit lens agrees with the hidden states of bare transformers, and at the last block with the model's output."""

from pathlib import Path
from typing import Any

import numpy as np
import plants
import pytest
import soundfile
import torch

from analysis import logit_lens
from audiolens.errors import InputError, SiteError
from audiolens.model.timeline import delay

PROMPTS = plants.CLEAN
FRAMES = 15


@pytest.fixture(scope="module")
def result(lens: Any, codes: torch.Tensor) -> logit_lens.LogitLensResult:
    return logit_lens.read(lens, PROMPTS, codes, batch_size=2)


@pytest.fixture(scope="module")
def naive(lens: Any, codes: torch.Tensor) -> list[torch.Tensor]:
    """Logits "row codebook step vocab" after each block, from transformers' own hidden states."""
    inputs = lens.tokenizer(PROMPTS, padding=True, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    with torch.no_grad():
        out = lens.model(**inputs, decoder_input_ids=columns.flatten(0, 1), output_hidden_states=True)
        decoder = lens.model.decoder
        # transformers gives the last block's states behind the final norm
        normed = [decoder.model.decoder.layer_norm(h) for h in out.decoder_hidden_states[1:-1]]
        states = [*normed, out.decoder_hidden_states[-1]]
        return [torch.stack([head(state) for head in decoder.lm_heads], dim=1) for state in states]


def test_rank_probability_and_divergence_are_those_of_a_loop(result: Any, naive: Any, codes: torch.Tensor):
    for layer, row, book, frame in ((0, 0, 0, 0), (1, 3, 2, 7), (2, 4, 3, 14), (0, 2, 1, 14)):
        told = naive[layer][row, book, frame + book].log_softmax(-1)
        final = naive[-1][row, book, frame + book].log_softmax(-1)
        code = int(codes[row, book, frame])
        order = told.argsort(descending=True).tolist()
        assert result.ranks[layer, row, book, frame] == order.index(code) + 1
        assert result.probabilities[layer, row, book, frame] == pytest.approx(float(told[code].exp()), rel=1e-3)
        kl = torch.nn.functional.kl_div(told, final, log_target=True, reduction="sum")
        assert result.divergences[layer, row, book, frame] == pytest.approx(float(kl), rel=1e-3, abs=1e-5)
        assert result.agrees[layer, row, book, frame] == (told.argmax() == final.argmax())
        other = int(codes[(row + 1) % 5, book, frame])
        assert result.control_ranks[layer, row, book, frame] == order.index(other) + 1


def test_the_last_block_is_the_model_itself(result: Any, lens: Any, codes: torch.Tensor):
    logits, cache = lens.run_with_cache(PROMPTS, codes, sites="resid_post")
    assert torch.equal(cache.logit_lens()[-1], logits)
    assert (result.divergences[-1] == 0).all()
    assert result.agrees[-1].all()
    heard = logit_lens.listen(lens, PROMPTS, codes, layers=[2])
    expected = torch.stack([logits[:, book, book : book + FRAMES].argmax(-1) for book in range(4)], dim=1)
    assert torch.equal(heard[2].codes, expected)


def test_what_a_block_would_play_is_its_likeliest_codes_decoded(lens: Any, naive: Any, codes: torch.Tensor):
    heard = logit_lens.listen(lens, PROMPTS, codes, batch_size=2)
    assert list(heard.clips) == [0, 1, 2]
    expected = torch.stack([naive[0][:, book, book : book + FRAMES].argmax(-1) for book in range(4)], dim=1)
    assert torch.equal(heard[0].codes, expected)
    assert torch.equal(heard[0].audio, lens.decode_codes(expected))
    assert torch.equal(heard.given.codes, codes)
    with pytest.raises(InputError, match="block 7 was not read"):
        heard[7]


def test_drawn_codes_follow_their_seeds_and_share_their_noise(lens: Any, codes: torch.Tensor):
    first = logit_lens.listen(lens, PROMPTS, codes, seeds=[1, 2, 3, 4, 5], layers=[0, 2], top_k=4)
    again = logit_lens.listen(lens, PROMPTS, codes, seeds=[6, 7, 3, 8, 9], layers=[2], top_k=4)
    assert torch.equal(first[2].codes[2], again[2].codes[2])
    assert not torch.equal(first[2].codes[0], again[2].codes[0])
    assert not torch.equal(first[2].codes, logit_lens.listen(lens, PROMPTS, codes, layers=[2])[2].codes)
    logits = lens.run_with_cache(PROMPTS, codes)[0][:, 1, 1 : 1 + FRAMES]
    best = logits.topk(4).indices
    assert (best == first[2].codes[:, 1, :, None]).any(-1).all()
    assert torch.equal(
        logit_lens.listen(lens, PROMPTS, codes, seeds=0, temperature=0.0, layers=[0])[0].codes,
        logit_lens.listen(lens, PROMPTS, codes, layers=[0])[0].codes,
    )


def test_clips_are_saved_a_folder_a_block(lens: Any, codes: torch.Tensor, tmp_path: Path):
    heard = logit_lens.listen(lens, PROMPTS[:2], codes[:2], layers=[1])
    heard.save(tmp_path / "heard")
    assert sorted(path.name for path in (tmp_path / "heard").iterdir()) == ["block01", "given"]
    clips = sorted((tmp_path / "heard" / "block01").glob("*.wav"))
    sound, rate = soundfile.read(clips[0])
    assert rate == 16000
    assert len(sound) == heard[1].audio.shape[-1]


def test_a_family_with_a_prefix_is_read_behind_it(melody_lens: Any, codes: torch.Tensor):
    found = logit_lens.read(melody_lens, PROMPTS, codes)
    assert found.ranks.shape == (3, 5, 4, FRAMES)
    logits = melody_lens.run_with_cache(PROMPTS, codes)[0]
    told = logits[3, 1, 5 + 1].log_softmax(-1)[codes[3, 1, 5]]
    assert found.probabilities[-1, 3, 1, 5] == pytest.approx(float(told.exp()), rel=1e-4)


def test_tables_and_figures_name_what_they_show(result: Any, lens: Any, codes: torch.Tensor):
    table = result.to_frame()
    assert len(table) == 3 * 4
    one = table[(table["layer"] == 1) & (table["codebook"] == 2)].iloc[0]
    assert one["probability"] == pytest.approx(result.probabilities[1, :, 2].mean())
    assert one["rank"] == pytest.approx(np.exp(np.log(result.ranks[1, :, 2]).mean()))
    assert one["kl_low"] <= one["kl"] <= one["kl_high"]
    assert len(result.over_time()) == 3 * 4 * FRAMES
    panels = result.plot().axes
    assert [axes.get_xlabel() for axes in panels] == ["block"] * 3
    assert "nats" in panels[2].get_ylabel()
    drawn = result.figure().data
    assert len(drawn) == 12 + 2
    assert [trace.name for trace in drawn[-2:]] == ["code of another clip", "uniform guess"]
    assert list(drawn[-2].y) == pytest.approx(result.to_frame().groupby("layer")["control_rank"].mean())
    assert "after block 0" in repr(result)
    last = result.to_frame().query("layer == 2")["control_rank"]
    assert f"(another row's code: {np.exp(np.log(last).mean()):.1f})" in repr(result)
    heard = logit_lens.listen(lens, PROMPTS[:1], codes[:1], layers=[0])
    assert set(heard.to_frame(["brightness"]).columns) == {"layer", "row", "prompt", "same", "brightness"}
    assert len(heard.plot().axes) == 3
    assert "block" in repr(heard)


def test_bad_input_is_refused(lens: Any, codes: torch.Tensor):
    with pytest.raises(InputError, match="5 rows of codes for 2 prompts"):
        logit_lens.read(lens, PROMPTS[:2], codes)
    with pytest.raises(SiteError, match="layer 9"):
        logit_lens.read(lens, PROMPTS, codes, layers=[9])
    with pytest.raises(InputError, match="2 seeds for 5 rows"):
        logit_lens.listen(lens, PROMPTS, codes, seeds=[1, 2])
