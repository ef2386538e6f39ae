"""Regular English forms of a word: articles, capitals, comparatives, adverbs and plurals."""

import re
from typing import Literal

Kind = Literal["adjective", "noun"]
Form = Literal["base", "comparative", "superlative", "adverb", "plural"]

_IRREGULAR: dict[str, dict[Form, str]] = {
    "good": {"comparative": "better", "superlative": "best", "adverb": "well"},
    "bad": {"comparative": "worse", "superlative": "worst", "adverb": "badly"},
    "fast": {"adverb": "fast"},
    "hard": {"adverb": "hard"},
    "high": {"adverb": "high"},
    "low": {"adverb": "low"},
}
_VOWEL_SOUND = ("hour", "honest", "honour", "honor", "heir", "8")
_CONSONANT_SOUND = re.compile(r"(eu|ewe|one(?![a-z])|once|ubiquit|ukulele|unanim|uni(?!n|m)|us[aeiu]|ut[aeio])")
"""Words that begin with a vowel letter and a consonant sound, as "a unison" does; "an unintended" is no such word."""


def article(word: str) -> str:
    """Return "a" or "an", as the sound of the next word asks for."""
    lower = word.lower()
    if lower.startswith(_VOWEL_SOUND):
        return "an"
    return "an" if lower[:1] in tuple("aeiou") and not _CONSONANT_SOUND.match(lower) else "a"


def cased(word: str, like: str) -> str:
    """Return a word in the case of another one: "SLOW" like "FAST", "Slow" like "Fast", and else unchanged."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


def forms(word: str, kind: Kind) -> dict[Form, str]:
    """Return the forms of a word by name. A phrase, or a word with a hyphen, has only one form.

    An adjective has a comparative and a superlative ("slower", or "more energetic" if it is long) and an adverb. A noun
    has a plural. The rules are those of regular words, with a few exceptions that are common in captions.
    """
    found: dict[Form, str] = {"base": word}
    if not word.isalpha():
        return found
    if kind == "noun":
        return {**found, "plural": _plural(word)}
    short = _is_short(word)
    found["comparative"] = f"{_stem(word)}er" if short else f"more {word}"
    found["superlative"] = f"{_stem(word)}est" if short else f"most {word}"
    if not word.endswith("ly"):
        found["adverb"] = _adverb(word)
    return {**found, **_IRREGULAR.get(word.lower(), {})}


def _syllables(word: str) -> int:
    spoken = re.sub(r"(?<![aeiouyl])e$", "", word.lower())
    return len(re.findall(r"[aeiouy]+", spoken))


def _is_short(word: str) -> bool:
    """Whether an adjective is compared with endings: one syllable ("slow"), or two that end in y, ow or le ("busy")."""
    count = _syllables(word)
    return count == 1 or (count == 2 and word.endswith(("y", "ow", "le")) and not word.endswith("ly"))


def _stem(word: str) -> str:
    if word.endswith("e"):
        return word[:-1]
    if re.search(r"[^aeiou]y$", word) and _syllables(word) > 1:
        return f"{word[:-1]}i"
    # One vowel and one consonant at the end of a single syllable: "sadder", but "slower" and "louder".
    doubled = _syllables(word) == 1 and re.search(r"(?<![aeiou])[aeiou][^aeiouwxy]$", word)
    return f"{word}{word[-1]}" if doubled else word


def _adverb(word: str) -> str:
    if word.endswith("ic"):
        return f"{word}ally"
    if re.search(r"[^aeiou]le$", word):
        return f"{word[:-1]}y"
    if word.endswith("ll"):
        return f"{word}y"
    if re.search(r"[^aeiou]y$", word) and _syllables(word) > 1:
        return f"{word[:-1]}ily"
    return f"{word}ly"


def _plural(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return f"{word}es"
    return f"{word[:-1]}ies" if re.search(r"[^aeiou]y$", word) else f"{word}s"
