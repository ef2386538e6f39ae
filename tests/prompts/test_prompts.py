"""The prompt sets are as documented: matched, balanced, within the vocabulary, and neutral where stated."""

import json
from collections import Counter
from pathlib import Path

import pytest

from audiolens import prompts
from audiolens.errors import InputError, PromptError
from audiolens.etude.captions import ADJECTIVES, PHRASES, vocabulary
from audiolens.etude.training import prompt_sets

CONCEPTS = prompts.concepts()


def wordings(concept: str) -> tuple[list[str], list[str]]:
    """Every wording of either pole, longest first, so that a phrase is found before a word in it."""
    contrast = prompt_sets.CONTRASTS[concept]
    grammar = [grammar[contrast.attribute] for grammar in (ADJECTIVES, PHRASES)]
    sides = [
        [text for words in grammar for level in levels for text in words[level]]
        for levels in (contrast.positive, contrast.negative)
    ]
    return sorted(sides[0], key=len, reverse=True), sorted(sides[1], key=len, reverse=True)


def blanked(text: str, side: list[str]) -> list[str]:
    """The sentence with one wording cut out, for every wording it holds."""
    padded = f" {text} "
    return [padded.replace(f" {wording} ", " * ", 1) for wording in side if f" {wording} " in padded]


def test_tempo_and_timbre_and_the_grammars_other_attributes_have_sets() -> None:
    assert {"tempo", "timbre", "register", "density", "loudness", "mode"} <= set(CONCEPTS)
    assert prompts.load("tempo").poles == ("fast", "slow")
    assert prompts.load("timbre").poles == ("bright", "dark")


@pytest.mark.parametrize("concept", CONCEPTS)
def test_files_equal_what_the_grammar_gives(concept: str) -> None:
    assert (prompt_sets.FOLDER / f"{concept}.toml").read_text("utf-8") == prompt_sets.render(concept)
    assert (prompt_sets.FOLDER / "neutral.toml").read_text("utf-8") == prompt_sets.render_neutral()


@pytest.mark.parametrize("concept", CONCEPTS)
def test_pairs_differ_in_one_wording_of_the_concept_only(concept: str) -> None:
    sets, sides = prompts.load(concept), wordings(concept)
    assert len(sets.positive) == len(sets.negative) == 100
    for positive, negative in zip(sets.positive, sets.negative, strict=True):
        assert set(blanked(positive, sides[0])) & set(blanked(negative, sides[1])), (positive, negative)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_every_synonym_of_a_pole_is_used_about_equally_often(concept: str) -> None:
    sets = prompts.load(concept)
    for texts, side in zip((sets.positive, sets.negative), wordings(concept), strict=True):
        counts = [sum(f" {wording} " in f" {text} " for text in texts) for wording in side]
        assert min(counts) >= 100 // len(side) - 3, dict(zip(side, counts, strict=True))


@pytest.mark.parametrize("concept", CONCEPTS)
def test_other_attributes_are_named_on_both_sides_alike(concept: str) -> None:
    sets, contrast = prompts.load(concept), prompt_sets.CONTRASTS[concept]
    for attribute, levels in ADJECTIVES.items():
        if attribute == contrast.attribute:
            continue
        named = Counter()
        for texts, side in ((sets.positive, 1), (sets.negative, -1)):
            for level, words in levels.items():
                told = [w for w in (*words, *PHRASES[attribute][level]) if contrast.telling().isdisjoint(w.split())]
                named[level] += side * sum(any(f" {word} " in f" {text} " for word in told) for text in texts)
        assert set(named.values()) == {0}, attribute


@pytest.mark.parametrize("concept", CONCEPTS)
def test_words_are_etudes_and_no_prompt_repeats(concept: str) -> None:
    sets = prompts.load(concept)
    texts = [*sets.positive, *sets.negative, *sets.development, *sets.test]
    assert {word for text in texts for word in text.split()} <= set(vocabulary())
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_neutral_prompts_name_no_concept(concept: str) -> None:
    sets = prompts.load(concept)
    told = {word for other in prompt_sets.CONTRASTS.values() for word in other.telling()}
    assert min(len(sets.development), len(sets.test)) >= 30
    for text in (*sets.development, *sets.test):
        assert told.isdisjoint(text.split()), text


def test_neutral_prompts_differ_in_more_than_their_opening() -> None:
    sets = prompts.load("tempo")
    bodies = [
        next(text.removeprefix(f"{opening} ") for opening in sorted(set(prompt_sets.OPENINGS), key=len, reverse=True)
             if text.startswith(f"{opening} "))
        for text in (*sets.development, *sets.test)
    ]  # fmt: skip
    assert len(set(bodies)) == len(bodies)


@pytest.mark.parametrize("concept", CONCEPTS)
def test_prompted_puts_the_poles_word_before_the_noun(concept: str) -> None:
    sets = prompts.load(concept)
    for pole, words in zip(sets.poles, (sets.positive_words, sets.negative_words), strict=True):
        assert sets.words(pole) == words
        asked = sets.prompted("a little tune with drums", pole)
        assert asked == f"a little {words[0]} tune with drums"
        assert set(asked.split()) <= set(vocabulary())
    assert sets.prompted("the piano", "positive", word="brisk") == "the brisk piano"
    assert sets.prompted("drums", "positive", word="brisk") == "brisk drums"
    with pytest.raises(InputError, match=r"unknown pole 'sideways'.*It has"):
        sets.prompted("a tune", "sideways")


def test_the_poles_own_name_is_the_plainest_word() -> None:
    assert [prompts.load(concept).positive_words[0] for concept in ("tempo", "timbre", "mode")] == [
        "fast",
        "bright",
        "major",
    ]


def test_opposite_exchanges_the_poles() -> None:
    sets = prompts.load("tempo")
    assert sets.opposite.poles == ("slow", "fast")
    assert sets.opposite.positive == sets.negative
    assert sets.opposite.opposite == sets


def test_bundled_sets_leak_their_pole_through_nothing_but_their_words() -> None:
    for concept in CONCEPTS:
        assert not prompts.load(concept).balance().leaks


def test_unknown_concept_and_vocabulary_name_the_nearest() -> None:
    with pytest.raises(InputError, match="Did you mean 'tempo'"):
        prompts.load("temppo")
    with pytest.raises(InputError, match="Vocabularies: english, etude"):
        prompts.load("tempo", vocabulary="klingon")


def test_own_sets_load_alike_from_csv_json_toml_and_lines(tmp_path: Path) -> None:
    fast, slow = ["a fast, light jig", "presto", "hurry up"], ["a slow jig", "largo molto", "no rush"]
    rows = [f'"{a}","{b}"' for a, b in zip(fast, slow, strict=True)]
    (tmp_path / "pace.csv").write_text("fast,slow\n" + "\n".join(rows), "utf-8-sig")
    fields = {"poles": ["fast", "slow"], "positive": fast, "negative": slow}
    (tmp_path / "pace.json").write_text(json.dumps(fields))
    (tmp_path / "pace.toml").write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in fields.items()))
    (tmp_path / "fast.txt").write_text("\n".join(fast))
    (tmp_path / "slow.txt").write_text("\n".join(slow))
    loaded = [prompts.from_file(tmp_path / f"pace.{kind}") for kind in ("csv", "json", "toml")]
    loaded.append(prompts.from_files(tmp_path / "fast.txt", tmp_path / "slow.txt", concept="pace"))
    for sets in loaded:
        assert (sets.concept, sets.poles) == ("pace", ("fast", "slow"))
        assert (list(sets.positive), list(sets.negative)) == (fast, slow)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"fast\nquick\n", "expected the names of two poles"),
        ("a.csv", b"fast,slow\nquick,\n", "no negative prompts"),
        ("a.csv", b"fast,slow\nquick, one,slow\n", r"line 2 has 3 cells"),
        ("a.csv", b"fast,slow\none,two\nthree,\n", r"line 3 has a prompt for 'fast' only"),
        ("a.csv", b"fast,slow\none,two\n\n , three\nfour,five\n", r"line 4 has a prompt for 'slow' only"),
        ("a.csv", b"fast,slow\none,two\nthree\n", r"line 3 has 1 cells, expected 2"),
        ("a.csv", b'fast,slow\none,"two\nthree,four\n', r"line 2: unexpected end of data"),
        ("a.csv", b"fast,slow\nsame,same\n", "both poles"),
        ("a.csv", b"fast,slow\none,two\none,three\n", "more than once"),
        ("a.csv", "fast,slow\nvite à fond,lent\n".encode("latin-1"), "not UTF-8"),
        ("a.json", b"[1]", "expected an object"),
        ("a.json", b"{", "not JSON"),
        ("a.json", b'{"positive": ["x"], "negative": [3]}', r"negative\[0\] is int"),
        ("a.json", b'{"positive": ["x"], "negative": ["  "]}', r"negative\[0\] is empty"),
        ("a.json", b'{"positiv": ["x"], "negative": ["y"]}', "Did you mean 'positive'"),
        ("a.json", b'{"positive": ["x"], "negative": ["y"], "positive": ["z"]}', "contains the key 'positive' twice"),
        ("a.json", b'{"positive": ["x"], "negative": ["y"], "concept": 3}', "concept=3: expected a name"),
        ("a.json", b'{"positive": 3, "negative": ["y"]}', "positive: expected a list of strings"),
        ("a.toml", b"positive = [", "not TOML"),
        ("a.xlsx", b"", r"expected a \.csv"),
    ],
)
def test_broken_files_are_refused_with_their_name_and_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((InputError, TypeError), match=message) as caught:
        prompts.from_file(tmp_path / name)
    assert name in str(caught.value)


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        prompts.from_file(tmp_path / "none.csv")


def test_files_that_are_there_and_cannot_be_read_say_why(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    # Reading a process's memory from its first byte fails, for root too.
    (tmp_path / "broken.csv").symlink_to("/proc/self/mem")
    for name in ("folder.csv", "broken.csv"):
        with pytest.raises(InputError, match=rf"{name} cannot be read: \w+"):
            prompts.from_file(tmp_path / name)


def test_two_files_of_lines_are_refused_like_one(tmp_path: Path) -> None:
    contents = {"fast": b"presto\n", "empty": b"\n \n", "latin": "à fond\n".encode("latin-1"), "same": b"presto\n"}
    for name, content in contents.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    for name, message in (("empty", "no negative prompts"), ("latin", "not UTF-8"), ("same", "both poles"),
                          ("none", "cannot be read")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            prompts.from_files(tmp_path / "fast.txt", tmp_path / f"{name}.txt")


@pytest.mark.parametrize("ends", [b"\n", b"\r\n", b"\r"])
def test_a_csv_pairs_what_stands_in_a_line(tmp_path: Path, ends: bytes) -> None:
    lines = [b"\xef\xbb\xbffast,slow", b'"a fast, light jig",NA', b"", b" , ", b"None,\"a \"\"slow\"\"\nair\"",
             "quick\u2028step,no\x0crush".encode()]  # fmt: skip
    (tmp_path / "pace.csv").write_bytes(ends.join(lines))
    sets = prompts.from_file(tmp_path / "pace.csv")
    assert sets.positive == ("a fast, light jig", "None", "quick step")
    assert sets.negative == ("NA", 'a "slow" air', "no rush")


def test_a_line_that_is_blank_in_one_of_two_files_is_refused(tmp_path: Path) -> None:
    fast, slow = tmp_path / "fast.txt", tmp_path / "slow.txt"
    fast.write_text("presto\n\nvivace\nallegro\n")
    slow.write_text("largo\nlento\n\nadagio\n")
    with pytest.raises(PromptError, match=r"fast.txt: line 2 is blank, but that of .*slow.txt is not"):
        prompts.from_files(fast, slow)
    with pytest.raises(PromptError, match=r"fast.txt: line 2 is blank, but that of .*slow.txt is not"):
        prompts.from_files(slow, fast)


def test_lines_of_two_files_are_pairs_where_both_are_blank_in_the_same_places(tmp_path: Path) -> None:
    fast, slow, more = (tmp_path / f"{name}.txt" for name in ("fast", "slow", "more"))
    fast.write_bytes("presto\n\nquick\u2028step\n \n\n".encode())
    slow.write_bytes(b"\xef\xbb\xbflargo\r\n  \r\nlento")
    more.write_text("adagio\n\ngrave\nlarghetto")
    sets = prompts.from_files(fast, slow)
    assert (sets.positive, sets.negative) == (("presto", "quick step"), ("largo", "lento"))
    # Poles of different sizes are no pairs.
    assert not prompts.from_files(fast, more).matched


def test_a_trivial_leak_is_warned_of(tmp_path: Path) -> None:
    rows = [f"fast {word},{word} for the evening and the night" for word in ("jig", "reel", "polka")]
    (tmp_path / "pace.csv").write_text("fast,slow\n" + "\n".join(rows))
    with pytest.warns(UserWarning, match="The direction will reflect") as caught:
        sets = prompts.from_file(tmp_path / "pace.csv")
    assert {one.filename for one in caught} == {__file__}
    told = " ".join(str(warning.message) for warning in caught)
    assert "'fast' occurs in 100% of the positive prompts" in told
    assert "length alone" in told
    assert sets.balance().length_auc == 0.0


def test_a_one_sided_set_is_refused_when_made() -> None:
    with pytest.raises(PromptError, match="no prompt for the pole 'slow'"):
        prompts.PromptSet(concept="pace", poles=("fast", "slow"), positive=("quick",), negative=())
