"""The English sets: matched pairs differ only in wording the concept, and neutral prompts do not mention it."""

import re
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import prompt_sets
import pytest

from analysis.study import prompts_of
from audiolens import prompts
from audiolens.errors import InputError
from audiolens.etude.training import recipes
from audiolens.prompts import leakage

CONCEPTS = prompts.concepts("english")
MOST_LEAKAGE = 0.02
"""The largest share of a set's pairs whose wordings name another concept."""
HINTS = {
    "tempo": "lively energetic driving energy ballad downtempo uptempo accelerando lazy frantic calm",
    "timbre": "warm harsh gloomy cheerful shrill deep high-pitched low-pitched sunny night-time",
    "mode": "happy sad cheerful joyful mournful melancholy gloomy merry",
    "loudness": "volume amplified whispered gentle shouted decibels intense",
    "density": "minimal minimalist minimalism overcrowded many-voiced stripped-down",
    "register": "treble high-pitched low-pitched piccolo contrabassoon",
    "reverb": "echo reverberation spacious anechoic ambience",
    "distortion": "overdrive fuzzbox undistorted hi-fi gain",
    "vocals": "singing lyrics vocals instrumental crooning wordless",
    "drums": "percussion drummer drums beatless drumming congas",
    "piano": "piano pianist pianos keyboard keys",
    "guitar": "guitar guitars guitarist strumming six-string",
    "strings": "violin violins cello fiddle strings viola violinist",
    "electronic": "electronic acoustic synthesizer synth unplugged digital",
    "mood": "happy sad cheerful gloomy sunny melancholy joyful tearful",
    "energy": "energetic calm relaxing relaxed lively vigorous sleepy",
}
"""Words that lean to one pole, or name it. Neutral prompts have none, and frames few (see `FRAMED`)."""
FRAMED = {
    "vocals": {"singing", "lyrics", "vocals"},
    "drums": {"percussion", "drummer", "drums"},
    "distortion": {"overdrive", "gain"},
    "reverb": {"ambience", "echo", "reverberation"},
    "loudness": {"volume", "amplified", "decibels"},
}
"""Words that a frame may have, because both wordings are about them: "with vocals" and "without vocals"."""
NAMES = {"tempo": ["tempo", "bpm", "speed", "pace", "pulse"], "timbre": ["timbre", "tone", "treble", "bass-heavy"]}
"""Words of both poles that name the concept; no neutral prompt holds one."""
COMMON = frozenset((
    "a", "all", "an", "and", "any", "as", "at", "both", "by", "down", "for", "from", "full", "her", "his", "how",
    "in", "into", "it", "its", "made", "no", "not", "now", "of", "off", "on", "one", "out", "over", "own", "part",
    "parts", "play", "played", "playing", "plays", "she", "the", "them", "then", "theme", "their", "this", "through",
    "to", "tune", "two", "up", "very", "when", "while", "with", "without", "your", "first", "four", "second", "three",
    "end", "take", "use", "lines", "set",
))  # fmt: skip
"""Words without a topic, which can stand in one pole only by chance."""


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
    one_sided = prompts.load(concept, "english").balance().one_sided
    return {word for side in one_sided for word in side} - COMMON


@cache
def named(concept: str) -> set[str]:
    """Words that name a pole: in 4% of one pole's prompts and in none of the other's, or asking for it. "others" is no
    concept of its own."""
    sets, found = prompts.load(concept, "english"), set()
    asked = (sets.positive_words, sets.negative_words)
    for pole, shares, adjectives in zip(sets.poles, sets.balance().one_sided, asked, strict=True):
        if pole != "others":
            found |= {word for word, share in shares.items() if share >= 0.04} - COMMON | {*adjectives}
    return found


@pytest.mark.parametrize("concept", CONCEPTS)
def test_a_hundred_pairs_a_concept_and_forty_neutral_prompts_a_split(concept: str) -> None:
    sets = prompts.load(concept, "english")
    assert (len(sets.positive), len(sets.negative), sets.matched) == (100, 100, True)
    assert (len(sets.development), len(sets.test)) == (40, 40)
    assert sets.vocabulary == "english"
    if concept in prompts.concepts("etude"):
        assert sets.poles == prompts.load(concept, "etude").poles


def test_the_sets_cover_what_musicians_ask_for() -> None:
    assert {*CONCEPTS} == {*HINTS}
    assert len(CONCEPTS) == 16


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
def test_no_wording_names_another_concept(concept: str) -> None:
    said = [{*words(positive), *words(negative)} for _, positive, negative in pairs(concept)]
    measured = leakage.leakage(prompts.load(concept, "english"))
    for other in CONCEPTS:
        if other != concept:
            leaks = [one & named(other) for one in said if one & named(other)]
            assert len(leaks) / len(said) <= MOST_LEAKAGE, (other, leaks)
            assert measured[other] <= MOST_LEAKAGE


def test_a_leak_is_measured() -> None:
    sets = prompts.PromptSet(
        "mood", ("happy", "sad"), ("a happy fast song", "a glad reel"), ("a sad slow song", "a sorry reel")
    )
    shares = leakage.leakage(sets, [prompts.load("tempo", "english"), prompts.load("reverb", "english")])
    assert shares == {"tempo": 0.5, "reverb": 0.0}


@pytest.mark.parametrize("concept", CONCEPTS)
def test_articles_agree_with_the_next_word(concept: str) -> None:
    sets = prompts.load(concept, "english")
    for text in (*sets.positive, *sets.negative, *sets.development, *sets.test):
        for article, word in re.findall(r"\b(an?) (\w+)", text.lower()):
            vowel = word.startswith(tuple("aeio8")) or (word[0] == "u" and not word.startswith(("uk", "uni", "us")))
            vowel = vowel and not word.startswith(("one", "eu")) or word.startswith(("un", "honest", "hour"))
            assert (article == "an") == (vowel and not word.startswith("unis")), text


@pytest.mark.parametrize("concept", CONCEPTS)
def test_frames_do_not_hint_at_the_concept(concept: str) -> None:
    hints = {*HINTS[concept].split()} - FRAMED.get(concept, set())
    others = telling({"tempo": "timbre", "timbre": "tempo"}[concept]) if concept in NAMES else set()
    for frame, _, _ in pairs(concept):
        assert {*words(frame)}.isdisjoint(hints | others), frame


@pytest.mark.parametrize("concept", CONCEPTS)
def test_neutral_prompts_share_no_word_with_a_pole(concept: str) -> None:
    sets = prompts.load(concept, "english")
    asked = {word for text in (*sets.positive_words, *sets.negative_words) for word in words(text)}
    refused = asked | telling(concept) | {*HINTS[concept].split(), *NAMES.get(concept, ())}
    for text in (*sets.development, *sets.test):
        assert {*words(text)}.isdisjoint(refused), text


@pytest.mark.parametrize("concept", CONCEPTS)
def test_neutral_prompts_differ_in_more_than_their_wording(concept: str) -> None:
    sets = prompts.load(concept, "english")
    topics = [{*words(text)} - COMMON - {"music", "song"} for text in (*sets.development, *sets.test)]
    for index, one in enumerate(topics):
        assert all(len(one & other) <= len(one | other) / 2 for other in topics[:index]), one


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
    assert prompts.load("bells", lens=knowing(True)).vocabulary == "etude"
    # The newer études have no unknown token, but spell most English words.
    spelling: Any = SimpleNamespace(tokenizer=recipes.named("etude").reading.tokenizer())
    assert prompts.load("tempo", lens=spelling).vocabulary == "etude"
    assert prompts_of("tempo", knowing(True)).vocabulary == "english"
    with pytest.raises(InputError, match=r"no prompts for concept 'bells' in vocabulary 'english'"):
        prompts.load("bells", "english")


def test_a_concept_in_free_english_only_is_refused_by_a_model_that_does_not_read_it(lens: Any) -> None:
    assert prompts.load("reverb").vocabulary == "english"
    assert prompts.load("reverb", lens=knowing(True)).vocabulary == "english"
    with pytest.raises(InputError, match=r"'reverb' are in free English, .* étude's words cover: .*tempo"):
        prompts.load("reverb", lens=lens)
    with pytest.raises(InputError, match=r"no prompts for concept 'reverbs'\. Did you mean 'reverb'"):
        prompts.load("reverbs")
    assert set(prompts.concepts(None)) == {*prompts.concepts("etude"), *CONCEPTS}


def test_the_page_states_what_the_texts_give() -> None:
    assert f"<!-- sets:begin -->\n{prompt_sets.table()}<!-- sets:end -->" in prompt_sets.PAGE.read_text("utf-8")
