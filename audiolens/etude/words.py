"""The wording of the newer études: more synonyms, some of which no caption contains, and words for scenes.

It extends the wording of the bundled étude, so that prompts for one can be used with the other. `RICH.held_out` lists
words that are never trained. `senses` states which words mean the same, whether they are trained or not. A text encoder
whose word vectors follow this table can generalise from a trained word to a held-out one, as a text encoder that was
trained on ordinary text can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from audiolens.etude.captions import ADJECTIVES, ENDINGS, NEUTRAL_ADJECTIVES, NOUNS, PHRASES, Grammar, Wording

_MORE_ADJECTIVES: Grammar = {
    "tempo": {
        "low": ("slowish", "plodding", "dawdling", "lento"),
        "high": ("swift", "quicker", "hasty", "presto"),
    },
    "timbre": {"low": ("veiled", "duller", "woolly"), "high": ("crisper", "gleaming", "shimmering")},
    "register": {"low": ("deeper", "bassy"), "high": ("soaring", "shrill")},
    "density": {"low": ("thin", "barer"), "high": ("packed", "denser")},
    "loudness": {"low": ("gentle", "quieter"), "high": ("thunderous", "mighty")},
    "mode": {"minor": ("sorrowful", "sadder"), "major": ("merry", "happier")},
    "instrument": {
        "pluck": ("ukulele", "zither"),
        "organ": ("melodica", "harmonica"),
        "strings": ("viol", "gamba"),
        "bells": ("vibraphone", "handbell"),
    },
}
_MORE_PHRASES: Grammar = {
    "tempo": {"low": ("at a lazy speed", "with slow beats"), "high": ("at a swift speed", "with quick beats")},
    "timbre": {
        "low": ("with a veiled sound", "with dim colours"),
        "high": ("with a gleaming tone", "with shiny colours"),
    },
    "register": {"low": ("on low notes",), "high": ("on high notes",)},
    "density": {"low": ("with sparse notes",), "high": ("with dense notes",)},
    "loudness": {"low": ("at a gentle volume",), "high": ("at a mighty volume",)},
    "mode": {"minor": ("with sorrowful chords",), "major": ("with merry chords",)},
    "instrument": {
        "pluck": ("on the zither",),
        "organ": ("on the melodica",),
        "strings": ("on the viol",),
        "bells": ("on the vibraphone",),
    },
}
HELD_OUT: Grammar = MappingProxyType(
    {
        "tempo": {
            "low": ("slower", "adagio", "languid", "dragging"),
            "high": ("faster", "allegro", "energetic", "speeding"),
        },
        "timbre": {
            "low": ("darker", "mellow", "dusky", "smoky"),
            "high": ("brighter", "radiant", "glassy", "luminous"),
        },
        "register": {"low": ("lower", "cavernous", "rumbling"), "high": ("higher", "piping", "towering")},
        "density": {"low": ("sparser", "minimal", "uncluttered"), "high": ("cluttered", "teeming", "swarming")},
        "loudness": {"low": ("softer", "subdued", "murmured"), "high": ("louder", "blaring", "deafening")},
        "mode": {"minor": ("gloomy", "tearful", "mournfully"), "major": ("joyous", "gleeful", "cheerfully")},
        "instrument": {
            "pluck": ("mandolin", "lute"),
            "organ": ("concertina", "bandoneon"),
            "strings": ("viola", "fiddles"),
            "bells": ("carillon", "celesta"),
        },
    }
)
"""Synonyms that occur in no caption. Some share a stem with a trained word ("faster"), others do not ("allegro")."""
SCENES: Grammar = MappingProxyType(
    {
        "kit": {
            "snare": ("with a snare drum", "for a parade", "at a fairground"),
            "claps": ("with hand claps", "around a campfire", "at a garden party"),
            "brushes": ("with drum brushes", "in a cafe", "in a hotel lobby"),
        },
        "bass": {
            "roots": ("over a plain bass line", "with one bass player"),
            "fifths": ("over a bass line in fifths", "with an alternating bass"),
        },
        "meter": {"3": ("in three", "as a waltz", "at a ball"), "4": ("in four", "as a march", "on a stroll")},
    }
)
"""Settings and instruments that the synthesiser plays, and that name no attribute."""
ALSO: Mapping[str, Sequence[tuple[str, str]]] = MappingProxyType(
    {
        "energetic": (("loudness", "high"),),
        "mellow": (("loudness", "low"),),
        "gloomy": (("timbre", "low"),),
        "languid": (("loudness", "low"),),
        "gentle": (("tempo", "low"),),
        "rumbling": (("loudness", "high"),),
        "shrill": (("timbre", "high"),),
    }
)
"""Second senses of words, as a thesaurus lists them."""
VECTOR_SEED = 31
OWN_SHARE = 0.35
"""The share of the variance of a word's vector that is its own; the rest is shared by all words of the same sense."""


def _joined(grammar: Grammar, more: Grammar) -> Grammar:
    return MappingProxyType(
        {
            concept: {level: (*texts, *more.get(concept, {}).get(level, ())) for level, texts in levels.items()}
            for concept, levels in grammar.items()
        }
    )


RICH = Wording(
    adjectives=_joined(ADJECTIVES, _MORE_ADJECTIVES),
    phrases=_joined(PHRASES, _MORE_PHRASES),
    neutral=(*NEUTRAL_ADJECTIVES, "favourite", "old", "small", "lovely", "strange", "curious"),
    nouns=(*NOUNS, "ditty", "interlude", "sketch", "jingle"),
    endings=(*ENDINGS, "from my town", "by the river", "for my friends", "on the radio"),
    scenes=SCENES,
    held_out=HELD_OUT,
)
"""The wording of the newer études."""


def senses(wording: Wording = RICH) -> dict[str, list[tuple[str, str]]]:
    """The senses (concept, level) of every single word that names one, trained or held out."""
    found: dict[str, list[tuple[str, str]]] = {}
    for grammar in (wording.adjectives, wording.held_out):
        for concept, levels in grammar.items():
            for level, texts in levels.items():
                for word in texts:
                    found.setdefault(word, []).append((concept, level))
    for word, more in ALSO.items():
        if word in found:
            found[word] += more
    return found
