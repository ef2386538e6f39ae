"""The English sets: matched pairs differ only in wording the concept, and neutral prompts do not mention it."""

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.study import prompts_of
from audiolens import prompts
from audiolens.errors import InputError
from audiolens.etude.training import recipes

CONCEPTS = ("tempo", "timbre")
HINTS = {
    "tempo": [
        "lively",
        "energetic",
        "driving",
        "energy",
        "ballad",
        "downtempo",
        "uptempo",
        "accelerando",
        "lazy",
        "frantic",
        "calm",
    ],
    "timbre": [
        "warm",
        "harsh",
        "gloomy",
        "cheerful",
        "shrill",
        "deep",
        "high-pitched",
        "low-pitched",
        "sunny",
        "night-time",
    ],
}
"""Words that lean to one pole without naming it; no frame holds one."""
NAMES = {"tempo": ["tempo", "bpm", "speed", "pace", "pulse"], "timbre": ["timbre", "tone", "treble", "bass-heavy"]}
"""Words of both poles that name the concept; no neutral prompt holds one."""


def words(text: str) -> list[str]:
    return re.findall(r"[\w'-]+", text.lower())


def split(positive: str, negative: str) -> tuple[str, str, str]:
    """The frame that a pair shares, and what either prompt says where they differ: one run of whole words."""
    a, b = positive.split(), negative.split()
    front = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    back = next(i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y)
    frame = [*a[:front], "*", *a[len(a) - back :]]
    return " ".join(frame), " ".join(a[front : len(a) - back]), " ".join(b[front : len(b) - back])


def pairs(concept: str) -> list[tuple[str, str, str]]:
    sets = prompts.load(concept, "english")
    return [split(*pair) for pair in zip(sets.positive, sets.negative, strict=True)]


def telling(concept: str) -> set[str]:
    """Words that stand in one pole only."""
    return {word for side in prompts.load(concept, "english").balance().one_sided for word in side}


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_hundred_pairs_a_concept_and_forty_neutral_prompts_a_split(concept: str) -> None:
    sets = prompts.load(concept, "english")
    assert (len(sets.positive), len(sets.negative), sets.matched) == (100, 100, True)
    assert min(len(sets.development), len(sets.test)) >= 30
    assert sets.vocabulary == "english"
    assert sets.poles == prompts.load(concept).poles


@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_prompt_repeats_anywhere_not_even_in_other_letters(concept: str) -> None:
    sets = prompts.load(concept, "english")
    texts = [" ".join(words(text)) for side in (sets.positive, sets.negative, sets.development, sets.test)
             for text in side]  # fmt: skip
    assert len(set(texts)) == len(texts)
    frames = [frame for frame, _, _ in pairs(concept)]
    assert len(set(frames)) == len(frames)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_pair_differs_in_one_short_wording(concept: str) -> None:
    for frame, positive, negative in pairs(concept):
        assert len(words(frame)) >= 4, frame
        assert max(len(words(positive)), len(words(negative))) <= 5, (positive, negative)
        assert abs(len(words(positive)) - len(words(negative))) <= 1, (positive, negative)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_the_report_of_imbalance_finds_no_leak_and_equal_lengths(concept: str) -> None:
    balance = prompts.load(concept, "english").balance()
    assert not balance.leaks
    assert abs(balance.words[0] - balance.words[1]) <= 0.1
    assert abs(balance.length_auc - 0.5) <= 0.05


@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_single_word_carries_the_concept(concept: str) -> None:
    balance = prompts.load(concept, "english").balance()
    for shares in balance.one_sided:
        assert max(shares.values()) <= 0.2, max(shares, key=shares.__getitem__)
        assert len(shares) >= 30
    for side in (1, 2):
        wordings = Counter(pair[side].strip(",").lower() for pair in pairs(concept))
        assert len(wordings) >= 40, wordings.most_common(5)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_frames_do_not_hint_at_the_concept_or_name_the_other(concept: str) -> None:
    other = telling(*[name for name in CONCEPTS if name != concept])
    for frame, _, _ in pairs(concept):
        said = set(words(frame))
        assert said.isdisjoint(HINTS[concept]), frame
        assert said.isdisjoint(other), frame


@pytest.mark.parametrize("concept", CONCEPTS)
def test_neutral_prompts_share_no_word_with_a_pole(concept: str) -> None:
    sets = prompts.load(concept, "english")
    asked = {word for text in (*sets.positive_words, *sets.negative_words) for word in words(text)}
    for text in (*sets.development, *sets.test):
        said = set(words(text))
        for name in CONCEPTS:
            assert said.isdisjoint(telling(name) | {*HINTS[name], *NAMES[name]}), text
        assert said.isdisjoint(asked), text


def test_a_neutral_prompt_is_asked_for_a_pole_in_good_english() -> None:
    sets = prompts.load("tempo", "english")
    assert sets.prompted("An indie song", "fast") == "A fast indie song"
    assert sets.prompted("A jazz trio", "fast", word="up-tempo") == "An up-tempo jazz trio"
    assert sets.prompted("Flute and harp duet", "slow") == "Slow Flute and harp duet"
    assert sets.prompted("the old hymn", "slow") == "the slow old hymn"


def knowing(known: bool) -> Any:
    """A lens whose tokenizer knows every word, or does not know "bandoneon"."""

    def tokenizer(texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0 if not known and "bandoneon" in text else 1] for text in texts]}

    tokenizer.unk_token_id = 0  # type: ignore[attr-defined]
    return SimpleNamespace(tokenizer=tokenizer)


def test_a_lens_reads_free_english_where_it_knows_every_word_of_it(lens: Any) -> None:
    assert prompts.load("tempo").vocabulary == "etude"
    assert prompts.load("tempo", lens=knowing(True)).vocabulary == "english"
    assert prompts.load("tempo", lens=knowing(False)).vocabulary == "etude"
    assert prompts.load("tempo", lens=lens).vocabulary == "etude"
    assert prompts.load("tempo", "etude", lens=knowing(True)).vocabulary == "etude"
    # Only étude's grammar has this one.
    assert prompts.load("density", lens=knowing(True)).vocabulary == "etude"
    # The newer études have no unknown token, but spell most English words.
    spelling: Any = SimpleNamespace(tokenizer=recipes.named("etude").reading.tokenizer())
    assert prompts.load("tempo", lens=spelling).vocabulary == "etude"
    assert prompts_of("tempo", knowing(True)).vocabulary == "english"
    with pytest.raises(InputError, match=r"no prompts for concept 'density' in vocabulary 'english'"):
        prompts.load("density", "english")
