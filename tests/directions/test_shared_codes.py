"""Over shared codes the music cancels between the poles, exactly, and the text is all that is left."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plants.text_direction import text_along_one_direction
from torch.nn.functional import cosine_similarity

import audiolens as al
from audiolens.directions.pole_reader import PoleReader
from audiolens.directions.shared_codes import FEWEST_CLIPS, SharedClips
from audiolens.errors import InputError, InputTypeError, PromptError
from audiolens.model.provenance import prompts_hash
from audiolens.model.timeline import delay

FAST = ["a fast song", "fast piano", "the fast jazz with drums", "fast guitar and drums", "a bright fast song"]
SLOW = [prompt.replace("fast", "slow") for prompt in FAST]
NEUTRAL = ["a song", "piano", "the jazz with drums"]
QUIET = {"seconds": 0.6, "progress": False}


def shared(lens: Any, high: Any = FAST, low: Any = SLOW, **options: Any) -> al.Directions:
    return al.difference_in_means(lens, high, low, **{"codes": "shared", "neutral": NEUTRAL, **QUIET, **options})


# Which clips are read


@pytest.mark.parametrize(("n", "m"), [(1, 1), (5, 5), (5, 2), (1, 7), (30, 25), (100, 99), (16, 15), (64, 100)])
def test_every_clip_weighs_the_same_in_both_poles_and_every_prompt_in_its_own(n: int, m: int) -> None:
    clips = SharedClips.of(NEUTRAL, (n, m))
    for pole, size in enumerate((n, m)):
        over = [clips.read_by(pole, place) for place in range(size)]
        assert {len(one) for one in over} == {clips.each[pole]}
        counts = np.bincount(np.concatenate(over), minlength=clips.count)
        assert len(counts) == clips.count
        assert np.ptp(counts) == 0
    assert clips.count >= min(FEWEST_CLIPS, max(n, m))
    if n == m:
        assert clips.each == (1, 1)
        assert clips.count == n
    # Never as costly as reading every prompt over every clip.
    assert sum(size * each for size, each in zip((n, m), clips.each, strict=True)) <= max(12 * (n + m), 2 * n * m)
    assert clips.prompts == [NEUTRAL[clip % 3] for clip in range(clips.count)]


# Oracles


@pytest.mark.parametrize("sizes", [(5, 5), (5, 2), (2, 5), (1, 3)])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_a_part_of_the_activations_that_depends_on_the_music_alone_cancels(
    lens: Any, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], batch_size: int
) -> None:
    """Activations that are a text part plus a music part, where each pole's own music depends on its text."""
    words = {prompt: torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(i)) for i, prompt in
             enumerate((*FAST, *SLOW))}  # fmt: skip

    def read_over(reader: PoleReader, rows: list[int], codes: torch.Tensor | None) -> Any:
        texts = torch.cat([words[str(reader.prompts[row])] for row in rows], dim=1)
        if codes is None:
            music = 50 * torch.tensor([[[float(row < len(reader.positive))] for row in rows]])
        else:
            music = codes.double().mean((1, 2)).float()[None, :, None] * torch.linspace(1, 9, 6)
        values = texts + music
        return values, values.norm(dim=-1)

    monkeypatch.setattr(PoleReader, "_read_over", read_over)
    high, low = FAST[: sizes[0]], SLOW[: sizes[1]]
    text = [torch.cat([words[prompt] for prompt in side], dim=1).mean(1) for side in (high, low)]
    found = shared(lens, high, low, layers=[0, 1], batch_size=batch_size)
    torch.testing.assert_close(found.vectors, text[0] - text[1], rtol=1e-5, atol=1e-4)
    own = al.difference_in_means(lens, high, low, layers=[0, 1], batch_size=batch_size, **QUIET)
    assert float((own.vectors - (text[0] - text[1])).abs().min()) > 40


def test_shared_reading_finds_a_planted_direction_that_the_poles_own_music_hides(checkpoint: Path) -> None:
    """The text reaches the stream in block 1 alone, along one direction; the music also differs between the poles."""
    lens, direction = text_along_one_direction(checkpoint, factor=20.0)
    along = {
        name: abs(float(cosine_similarity(found[1], direction, dim=0)))
        for name, found in (("shared", shared(lens)), ("own", al.difference_in_means(lens, FAST, SLOW, **QUIET)))
    }
    assert along["shared"] > 0.9999
    assert along["own"] < 0.99
    # What comes before the text is the same for both poles.
    assert float(shared(lens).norms[0]) < 1e-5


@pytest.mark.parametrize("sizes", [(5, 5), (4, 2)])
def test_shared_directions_equal_a_naive_loop_over_bare_transformers(lens: Any, sizes: tuple[int, int]) -> None:
    """One clip and one prompt at a time: block 0's output is the second of transformers' own hidden states."""
    high, low = FAST[: sizes[0]], SLOW[: sizes[1]]
    frames, means = 15, []
    clips = [lens.generate([NEUTRAL[clip % 3]], 0.6, seeds=[clip], decode=False).codes[0] for clip in range(max(sizes))]
    for side in (high, low):
        rows = []
        for place, prompt in enumerate(side):
            each = max(sizes) // len(side)
            for clip in clips[place * each : (place + 1) * each]:
                columns = delay(clip[None], lens.config.delays, 32)[0, :, :-1]
                inputs = lens.tokenizer([prompt], return_tensors="pt")
                with torch.no_grad():
                    out = lens.model(**inputs, decoder_input_ids=columns, output_hidden_states=True)
                rows.append(torch.stack([state[0, :frames].mean(0) for state in out.decoder_hidden_states[1:3]]))
        means.append(torch.stack(rows).mean(0))
    for batch_size in (1, 3, 32):
        read = shared(lens, high, low, layers=[0, 1], batch_size=batch_size)
        torch.testing.assert_close(read.vectors, means[0] - means[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("position", "steps"), [("last", slice(14, 15)), ((0.2, 0.4), slice(5, 10))])
def test_positions_and_seeds_are_those_of_the_shared_clips(lens: Any, position: Any, steps: slice) -> None:
    seeds = [7, 3, 11, 2, 5]
    prompts = [NEUTRAL[clip % 3] for clip in range(5)]
    codes = lens.generate(prompts, 0.6, seeds=seeds, decode=False, guidance_scale=2.0).codes
    high, low = (
        lens.run_with_cache(side, codes)[1].stack("resid_post")[:, :, steps].mean((1, 2)) for side in (FAST, SLOW)
    )
    read = shared(lens, position=position, seeds=seeds, guidance_scale=2.0)
    torch.testing.assert_close(read.vectors, high - low, rtol=1e-3, atol=1e-4)


def test_batch_size_does_not_change_the_direction_or_its_evidence(lens: Any) -> None:
    for low in (SLOW, SLOW[:2]):
        one, many = (shared(lens, low=low, batch_size=size, keep_samples=True) for size in (2, 64))
        torch.testing.assert_close(one.vectors, many.vectors, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.residual_norms, many.residual_norms, rtol=1e-4, atol=0)
        assert one.samples is not None
        assert many.samples is not None
        torch.testing.assert_close(one.samples.values, many.samples.values, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(one.samples.difference(), one.vectors, rtol=1e-3, atol=1e-4)


def test_the_neutral_prompts_are_played_once(lens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Any] = []
    generate = type(lens).generate
    monkeypatch.setattr(type(lens), "generate", lambda self, prompts, *args, **kw: (
        played.extend(prompts), generate(self, prompts, *args, **kw))[1])  # fmt: skip
    shared(lens, batch_size=2)
    assert played == [NEUTRAL[clip % 3] for clip in range(5)]


def test_where_the_text_alone_is_read_nothing_is_played_and_the_readings_agree(
    lens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = al.difference_in_means(lens, FAST, SLOW, position="first", progress=False)
    monkeypatch.setattr(type(lens), "generate", lambda *_, **__: pytest.fail("a clip was played"))
    for neutral in (None, NEUTRAL):
        read = shared(lens, position="first", neutral=neutral)
        assert torch.equal(read.vectors, own.vectors)
        assert (read.meta.source, read.meta.neutral, read.meta.seeds) == ("start", "", ())


def test_both_branches_give_half_of_the_conditional_ones_direction(lens: Any) -> None:
    cond, both = shared(lens), shared(lens, branch="both")
    torch.testing.assert_close(both.vectors, cond.vectors / 2, rtol=1e-3, atol=1e-4)


def test_melody_is_read_over_shared_codes_too(melody_lens: Any) -> None:
    read = shared(melody_lens)
    codes = melody_lens.generate([NEUTRAL[clip % 3] for clip in range(5)], 0.6, seeds=list(range(5))).codes
    given = al.difference_in_means(melody_lens, FAST, SLOW, codes=codes, progress=False)
    torch.testing.assert_close(read.vectors, given.vectors, rtol=1e-3, atol=1e-4)


# Estimators


def test_a_pole_is_centred_on_neutral_prompts_over_their_own_clips(lens: Any) -> None:
    found = al.estimate(lens, FAST[:3], method="mean_centred", neutral=NEUTRAL, codes="shared", **QUIET)
    codes = lens.generate(NEUTRAL, 0.6, seeds=[0, 1, 2]).codes
    given = al.difference_in_means(lens, FAST[:3], NEUTRAL, codes=codes, progress=False)
    torch.testing.assert_close(found.vectors, given.vectors, rtol=1e-3, atol=1e-4)
    assert (found.meta.estimator, found.meta.source) == ("mean-centred", "shared codes")


@pytest.mark.parametrize("method", ["principal_component", "probe"])
def test_estimators_keep_the_reading_of_their_samples(lens: Any, method: Any) -> None:
    read = shared(lens, keep_samples=True)
    found = al.estimate(samples=read.samples, method=method)
    assert (found.meta.source, found.meta.neutral, found.meta.seeds) == (
        "shared codes",
        read.meta.neutral,
        (0, 1, 2, 3, 4),
    )


# Provenance


def test_a_file_states_what_both_poles_were_read_over(lens: Any, tmp_path: Path) -> None:
    own = al.difference_in_means(lens, FAST, SLOW, codes="own", **QUIET)
    read = shared(lens, seeds=[4, 5, 6, 7, 8], label="tempo")
    loaded = al.Directions.load(read.save(tmp_path / "shared.safetensors"), lens=lens)
    assert loaded.meta == read.meta
    assert loaded.meta.source == "shared codes"
    assert loaded.meta.seeds == (4, 5, 6, 7, 8)
    assert loaded.meta.neutral == prompts_hash(NEUTRAL) != prompts_hash(NEUTRAL[:2])
    assert loaded.meta.seconds == 0.6
    assert "over shared codes" in repr(loaded)
    assert (own.meta.source, own.meta.neutral, own.meta.seeds) == ("generation", "", (0, 1, 2, 3, 4))
    assert "shared" not in repr(own)
    # Only the seeds that were used: 4 and 2 prompts share 4 clips.
    assert shared(lens, FAST[:4], SLOW[:2]).meta.seeds == (0, 1, 2, 3)


def test_directions_of_different_readings_are_not_mixed_silently(lens: Any) -> None:
    own, read = al.difference_in_means(lens, FAST, SLOW, **QUIET), shared(lens)
    for mixed in (own + read, read - own, own.orthogonal_to(read), read.orthogonal_to(own), (own + read) + own):
        assert mixed.meta.source == "generation, shared codes"
        assert "over generation, shared codes" in repr(mixed)
    assert (read + 2 * read).meta.source == (-read).meta.source == "shared codes"
    assert (own + own).meta.source == "generation"


# Bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codes": "share"}, InputError, r"codes='share': expected 'own', 'shared', or a tensor"),
        ({"neutral": None}, InputError, r"give neutral=sets\.development, or codes='own'"),
        ({"neutral": []}, InputError, "no neutral prompts were given"),
        ({"neutral": "a song"}, InputTypeError, "neutral: expected a list of prompts"),
        ({"neutral": ["a song", 3]}, PromptError, "neutral: prompt 1 is int"),
        ({"neutral": ["a song " * 600]}, PromptError, "neutral: prompt 0 has .* shorten it"),
        ({"codes": "own"}, InputError, "give codes='shared' as well"),
        ({"codes": None}, InputError, "give codes='shared' as well"),
        ({"codes": torch.zeros(5, 4, 12, dtype=torch.long)}, InputError, "give codes='shared' as well"),
        ({"audio": (torch.zeros(5, 1, 16000), 16000)}, InputError, "codes and audio were both given"),
        ({"branch": "null"}, InputError, "branch='null' does not see the text"),
        ({"seeds": [1, 2]}, InputError, "2 seeds for 5 prompts"),
        ({"seconds": 0}, InputError, "seconds=0"),
        ({"position": (0.2, 2.0)}, InputError, "ends after the clips"),
        ({"codes": ["shared", "own"], "neutral": None}, InputTypeError, "row codebook frame"),
    ],
)
def test_bad_input_is_refused_before_anything_is_played(
    lens: Any, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], error: Any, message: str
) -> None:
    for name in ("generate", "run_with_cache"):
        monkeypatch.setattr(type(lens), name, lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        shared(lens, **options)


def test_poles_that_the_model_reads_alike_are_refused(lens: Any) -> None:
    with pytest.raises(PromptError, match="reads both poles alike"):
        shared(lens, ["a zig song"], ["a zag song"])
