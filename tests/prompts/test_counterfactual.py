"""Matched prompts from captions: what is exchanged, what is kept, and why a caption is rejected."""

from pathlib import Path
from typing import Any

import pytest

from audiolens import prompts
from audiolens.errors import InputError, PromptError
from audiolens.prompts.counterfactual import GOES_WITH
from audiolens.prompts.leakage import bundled

TEMPO = ("fast", "slow")
MUSICCAPS = (
    "ytid,start_s,aspect_list,caption\n"
    "a,30,\"['fast tempo', 'bass guitar']\",\"A fast reggae song, with a bass guitar.\"\n"
    "b,10,\"['slow tempo', 'sad']\",A slow piano piece\n"
    "c,0,\"['drums']\",Nothing but drums\n"
)


def made(caption: str, words: Any = TEMPO, **options: Any) -> tuple[str, str]:
    found = prompts.counterfactuals([caption], words, **options)
    return found.sets.positive[0], found.sets.negative[0]


def reason(caption: str, words: Any = TEMPO, **options: Any) -> tuple[str, str]:
    """Why a caption is rejected; the second caption makes a pair, so that the call succeeds."""
    second = f"a {words[0] if isinstance(words[0], str) else words[0][0]} march past the harbour"
    found = prompts.counterfactuals([caption, second], words, **options)
    assert len(found.sources) == 1, found.sets
    assert (found.rejected[0].line, found.rejected[0].caption) == (1, caption)
    return found.rejected[0].reason, found.rejected[0].detail


@pytest.mark.parametrize(
    ("caption", "positive", "negative"),
    [
        ("a fast song with drums", "a fast song with drums", "a slow song with drums"),
        ("A slow song", "A fast song", "A slow song"),
        ("Fast drums, FAST bass", "Fast drums, FAST bass", "Slow drums, SLOW bass"),
        ("the drums are played slowly", "the drums are played fast", "the drums are played slowly"),
        ("it becomes faster and faster", "it becomes faster and faster", "it becomes slower and slower"),
        ("the slowest of waltzes", "the fastest of waltzes", "the slowest of waltzes"),
        ("breakfast music, fast and light", "breakfast music, fast and light", "breakfast music, slow and light"),
        ("No vocals. A fast beat", "No vocals. A fast beat", "No vocals. A slow beat"),
    ],
)
def test_only_the_words_are_exchanged(caption: str, positive: str, negative: str) -> None:
    assert made(caption) == (positive, negative)


@pytest.mark.parametrize(
    ("caption", "words", "other"),
    [
        ("a calm tune", ("energetic", "calm"), "an energetic tune"),
        ("An energetic tune", ("energetic", "calm"), "A calm tune"),
        ("an energetic, an energetic tune", ("energetic", "calm"), "a calm, a calm tune"),
        ("a slow tune", ("up-tempo", "slow"), "an up-tempo tune"),
        ("a calmer tune", ("energetic", "calm"), "a more energetic tune"),
        ("an even more energetic tune", ("energetic", "calm"), "an even calmer tune"),
        ("a sad tune, sadder than any, sadly sung", ("happy", "sad"), "a happy tune, happier than any, happily sung"),
        ("a dull tone", ("euphoric", "dull"), "a euphoric tone"),
        ("a solo chorus", ("unison", "solo"), "a unison chorus"),
        # The note, not the article.
        ("the prelude in A minor", ("Ionian", "minor"), "the prelude in A Ionian"),
        ("A minor tune. A minor song", ("Ionian", "minor"), "An Ionian tune. An Ionian song"),
        ("played very gently, a gentle tune", ("simple", "gentle"), "played very simply, a simple tune"),
    ],
)  # fmt: skip
def test_articles_capitals_and_inflections_agree(caption: str, words: Any, other: str) -> None:
    assert {*made(caption, words, avoid=[])} == {caption, other}


def test_nouns_have_plurals_and_possessives() -> None:
    options: dict[str, Any] = {"kind": "noun", "avoid": []}
    assert (
        made("two guitars and the guitar's hum", ("guitar", "organ"), **options)[1] == "two organs and the organ's hum"
    )
    assert made("an organ solo", ("guitar", "organ"), **options) == ("a guitar solo", "an organ solo")
    assert made("several harpsichords play", ("celesta", "harpsichord"), **options)[0] == "several celestas play"
    assert made("the flutes play", ("brass", "flute"), **options)[0] == "the brasses play"
    assert reason("the guitarist plays", ("guitar", "organ"), **options) == ("inside another word", "guitarist")


@pytest.mark.parametrize(
    ("caption", "why", "detail"),
    [
        ("a medium song", "absent", ""),
        ("music for breakfast television", "inside another word", "breakfast"),
        ("a fast-paced song", "inside another word", "fast-paced"),
        ("it slowed, then a fast part came", "inside another word", "slowed"),
        ("a fast part and a slow part", "both poles", "fast slow"),
        ("it is not fast", "negated", "not ... fast"),
        ("it isn't a very fast song", "negated", "isn't ... fast"),
        ("music without the fast drums", "negated", "without ... fast"),
        ("a less fast song", "negated", "less ... fast"),
        ("Fast!", "nothing else", ""),
        ("fast " + "very " * 60 + "long", "too long", "62 words"),
        ("a fast presto", "other concept", "presto"),
        ("a fast song at 120bpm", "other concept", "bpm"),
        ("a fast, energetic song", "other concept", "energetic"),
    ],
)
def test_captions_are_rejected_with_the_reason(caption: str, why: str, detail: str) -> None:
    assert reason(caption) == (why, detail)


def test_a_negation_counts_only_near_and_in_the_same_clause() -> None:
    assert made("not a march, a fast song")[1] == "not a march, a slow song"
    assert made("nobody can say that this is not what he meant by fast")[1].endswith("meant by slow")


def test_duplicates_of_captions_and_of_pairs_are_rejected() -> None:
    found = prompts.counterfactuals(["A fast song", "a fast song!", "a slow  song", "a slow dance"], TEMPO)
    assert [(one.line, one.reason, one.detail) for one in found.rejected] == [
        (2, "duplicate", "of line 1"),
        (3, "duplicate", "of line 1"),
    ]
    assert found.sources == ("fast", "slow")
    assert found.sets.negative == ("A slow song", "a slow dance")


def test_synonyms_are_exchanged_for_the_word_at_the_same_place() -> None:
    words = (["fast", "quick", "in a hurry"], ["slow", "leisurely"])
    captions = ["a fast song", "a quick waltz", "a leisurely polka", "played in a hurry on a banjo", "a leisurely one"]
    found = prompts.counterfactuals(captions, words)
    assert found.sets.positive == ("a fast song", "a quick waltz", "a quick polka", captions[3], "a quick one")
    assert found.sets.negative == ("a slow song", "a leisurely waltz", "a leisurely polka", "played slow on a banjo",
                                   "a leisurely one")  # fmt: skip
    assert found.sets.positive_words == ("fast", "quick")
    # "quickly" has no counterpart, because "leisurely" has no adverb.
    assert reason("played quickly by two", words) == ("inside another word", "quickly")


def test_the_concept_and_what_to_avoid_follow_from_the_words() -> None:
    found = prompts.counterfactuals(["a fast song"], TEMPO)
    assert (found.sets.concept, found.sets.poles) == ("tempo", TEMPO)
    assert {"presto", "leisurely", "energetic", "busy"} <= {*found.avoided}
    assert {*TEMPO}.isdisjoint(found.avoided)
    assert prompts.counterfactuals(["a round song"], ("round", "square")).sets.concept == "round-square"
    assert prompts.counterfactuals(["a round song"], ("round", "square")).avoided == ()
    assert reason("a piano piece by a pianist", ("piano", "guitar"), kind="noun") == ("other concept", "pianist")
    assert reason("a fast reverberant song", avoid=["reverb", "mellow"]) == ("other concept", "reverberant")
    assert reason("a fast Mellow song", avoid=["reverb", "mellow"]) == ("other concept", "mellow")
    assert made("a fast, energetic song", avoid=[])[1] == "a slow, energetic song"
    assert {*GOES_WITH} | {name for names in GOES_WITH.values() for name in names} <= {*bundled()}


def test_a_number_of_pairs_is_half_from_either_pole() -> None:
    captions = [f"a fast {noun}" for noun in ("waltz", "polka", "jig", "reel")] + ["a slow song", "a slow air"]
    found = prompts.counterfactuals(captions, TEMPO, n_pairs=3)
    assert found.sources == ("fast", "fast", "slow")
    assert [(one.line, one.reason) for one in found.rejected] == [
        (3, "not needed"),
        (4, "not needed"),
        (6, "not needed"),
    ]
    assert prompts.counterfactuals(captions, TEMPO, n_pairs=5).sources == ("fast",) * 3 + ("slow",) * 2
    assert prompts.counterfactuals(captions[:4], TEMPO, n_pairs=3).sources == ("fast",) * 3
    assert prompts.counterfactuals(captions[3:], TEMPO, n_pairs=2).sources == ("fast", "slow")
    assert len(prompts.counterfactuals(captions, TEMPO, n_pairs=99).sources) == 6


def test_files_of_captions_are_read_by_column_or_by_line(tmp_path: Path) -> None:
    (tmp_path / "caps.csv").write_text(MUSICCAPS)
    found = prompts.counterfactuals(tmp_path / "caps.csv", TEMPO, avoid=[])
    assert found.sets.negative == ("A slow reggae song, with a bass guitar.", "A slow piano piece")
    assert [(one.line, one.reason) for one in found.rejected] == [(4, "absent")]
    aspects = prompts.counterfactuals(tmp_path / "caps.csv", TEMPO, column="aspect_list", avoid=[])
    assert aspects.sets.positive == ("fast tempo, bass guitar", "fast tempo, sad")
    (tmp_path / "caps.txt").write_text("\na fast song\n\na slow air\n")
    lines = prompts.counterfactuals(tmp_path / "caps.txt", TEMPO)
    assert lines.sets.positive == ("a fast song", "a fast air")
    (tmp_path / "one.csv").write_text("text\na fast song\n")
    assert prompts.counterfactuals(tmp_path / "one.csv", TEMPO).sets.positive == ("a fast song",)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "", {}, "a.csv is empty"),
        ("a.csv", "caption\n", {}, "there are no captions"),
        ("a.txt", " \n", {}, "there are no captions"),
        ("a.csv", "caption,x\na medium song,1\n", {}, "1 captions and the words 'fast' and 'slow'. Rejected: 1 absent"),
        ("a.csv", "caption,x\na fast song,1\n", {"column": "captoin"}, r"no column 'captoin'. Did you mean 'caption'"),
        ("a.csv", "text,x\na fast song,1\n", {}, r"no column 'caption'.* Columns: text, x"),
        ("a.csv", "caption,caption\na fast song,1\n", {}, "has the column 'caption' twice"),
        ("a.csv", "x,y\n\"['fast', 3]\",1\n", {"column": "x"}, "line 2 has a list that contains something other than"),
        ("a.txt", "a fast song", {"column": "caption"}, r"only a .csv file has columns"),
        ("a.tsv", "a fast song", {}, r"expected a .csv file"),
    ],
)
def test_bad_files_are_refused_in_a_line(tmp_path: Path, name: str, content: str, options: Any, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        prompts.counterfactuals(tmp_path / name, TEMPO, **options)


@pytest.mark.parametrize(
    ("words", "options", "message"),
    [
        (("fast", "Fast"), {}, "'fast' was given twice"),
        ((["fast", "quick"], ["slow", "quick"]), {}, "'quick' was given twice"),
        (("fast",), {}, "expected two words"),
        ("fast", {}, "expected two words"),
        (("fast", []), {}, "at least one word"),
        (("fast", "slow."), {}, "without punctuation"),
        (("fast", 3), {}, "words"),
        (TEMPO, {"kind": "verb"}, "expected one of adjective, noun"),
        (TEMPO, {"avoid": ["two words"]}, "'two words': expected the name of a bundled concept"),
        (TEMPO, {"n_pairs": 0}, "n_pairs=0"),
        (TEMPO, {"most_words": 0}, "most_words=0"),
        (TEMPO, {"column": "caption"}, "captions is a list"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(words: Any, options: Any, message: str) -> None:
    with pytest.raises((InputError, TypeError), match=message):
        prompts.counterfactuals(["a fast song"], words, **options)


def test_no_captions_at_all_are_an_error() -> None:
    with pytest.raises(PromptError, match="there are no captions"):
        prompts.counterfactuals([], TEMPO)


def test_the_summary_and_the_table_count_what_was_done() -> None:
    found = prompts.counterfactuals(["a fast song", "a slow air", "a medium song", "Fast!"], TEMPO)
    assert repr(found) == (
        "Counterfactuals(tempo: 2 pairs from 4 captions (1 fast, 1 slow); rejected: 1 absent, 1 nothing else)"
    )
    table = found.to_frame()
    assert list(table.columns) == ["line", "reason", "detail", "caption"]
    assert table.to_dict("records")[0] == {"line": 3, "reason": "absent", "detail": "", "caption": "a medium song"}


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_made_set_is_saved_and_loaded(tmp_path: Path, ending: str) -> None:
    found = prompts.counterfactuals(['a fast "café" song', "a slow \\ air \U0001f3b5"], TEMPO)
    path = found.sets.save(tmp_path / f"tempo.{ending}")
    with pytest.warns(UserWarning, match="occurs in 100% of the (positive|negative) prompts"):
        loaded = prompts.load(str(path))
    assert loaded == found.sets
    with pytest.raises(InputError, match=r"expected the name of a .toml or .json file"):
        found.sets.save(tmp_path / "tempo.txt")
