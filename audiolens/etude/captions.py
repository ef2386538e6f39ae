"""Captions for attributes: a grammar with many synonyms, in which each attribute is named only sometimes.

Whether an attribute is named never depends on its value, so an unnamed attribute can have any value in its range.
Captions that name nothing ("a little tune with drums") serve as neutral prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from audiolens.etude.attributes import CONCEPTS, Attributes
from audiolens.etude.form import Scene

NAMED_SHARE = 0.6

ADJECTIVES: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "tempo": {
            "low": ("slow", "unhurried", "leisurely", "sluggish", "crawling", "lazy"),
            "mid": ("moderate", "walking", "medium"),
            "high": ("fast", "quick", "rapid", "brisk", "speedy", "racing"),
        },
        "timbre": {
            "low": ("dark", "dull", "muffled", "murky", "shadowy", "dim"),
            "mid": ("balanced", "even"),
            "high": ("bright", "brilliant", "sparkling", "crisp", "shiny", "glittering"),
        },
        "register": {"low": ("low", "deep"), "mid": ("middle",), "high": ("high", "lofty")},
        "density": {
            "low": ("sparse", "bare", "spacious", "empty"),
            "mid": ("filled",),
            "high": ("busy", "dense", "crowded", "bustling"),
        },
        "loudness": {
            "low": ("soft", "quiet", "hushed", "faint"),
            "mid": ("comfortable",),
            "high": ("loud", "powerful", "booming", "forceful"),
        },
        "mode": {
            "minor": ("sad", "mournful", "melancholy", "minor"),
            "major": ("happy", "cheerful", "joyful", "major"),
        },
        "instrument": {
            "pluck": ("guitar", "harp", "banjo"),
            "organ": ("organ", "accordion", "harmonium"),
            "strings": ("violin", "fiddle", "cello"),
            "bells": ("bell", "glockenspiel", "chime"),
        },
    }
)
PHRASES: Mapping[str, Mapping[str, Sequence[str]]] = MappingProxyType(
    {
        "tempo": {
            "low": ("at a slow pace", "at a crawling tempo", "taking its time", "in no hurry", "played slowly"),
            "mid": ("at a walking pace", "at a medium tempo", "at a moderate speed"),
            "high": ("at a fast pace", "at a racing tempo", "rushing along", "in a hurry", "played quickly"),
        },
        "timbre": {
            "low": ("with a dark tone", "with a muffled sound", "with dull colours", "without highs"),
            "mid": ("with a balanced tone", "with an even sound"),
            "high": ("with a bright tone", "with a sparkling sound", "with brilliant colours", "with crisp highs"),
        },
        "register": {
            "low": ("in a low register", "with deep notes", "down low"),
            "mid": ("in the middle register",),
            "high": ("in a high register", "with high notes", "up high"),
        },
        "density": {
            "low": ("with few notes", "with long gaps", "leaving much space"),
            "mid": ("with some notes",),
            "high": ("with many notes", "full of notes", "leaving no space"),
        },
        "loudness": {
            "low": ("played softly", "at a low volume", "in a whisper"),
            "mid": ("at a normal volume",),
            "high": ("played loudly", "at full volume", "in a roar"),
        },
        "mode": {"minor": ("in a minor key", "in a sad mood"), "major": ("in a major key", "in a happy mood")},
        "instrument": {
            "pluck": ("on the guitar", "on plucked strings", "for harp"),
            "organ": ("on the organ", "for accordion", "on a church organ"),
            "strings": ("on the violin", "for bowed strings", "on the cello"),
            "bells": ("on bells", "for glockenspiel", "on chimes"),
        },
    }
)
NEUTRAL_ADJECTIVES = ("little", "nice", "plain", "simple", "short", "new", "pretty", "ordinary", "familiar", "homemade")
NOUNS = ("tune", "melody", "piece", "song", "theme", "track", "loop", "number", "recording", "instrumental")
OPENINGS = ("a", "a", "a", "this is a", "here is a", "play a", "one more", "the")
ENDINGS = (
    "with drums", "with a beat", "with bass and drums", "for a band", "from the studio", "by a trio", "for a film",
    "for the evening", "to start with", "for everyone", "from a notebook", "to keep",
)  # fmt: skip


Grammar = Mapping[str, Mapping[str, Sequence[str]]]
"""Maps concept and level to wordings."""


@dataclass(frozen=True)
class Wording:
    """The words of captions. The default is the wording of the bundled étude.

    Attributes:
        adjectives: the adjectives of each concept and level.
        phrases: the phrases of each concept and level.
        neutral: adjectives that name nothing.
        nouns: what a caption calls the music.
        openings: how a caption begins.
        endings: phrases that name nothing.
        scenes: the phrases of each part of a scene and value; these sound different, but name no attribute.
        held_out: synonyms of each concept and level that no caption contains.
    """

    adjectives: Grammar = field(default_factory=lambda: ADJECTIVES)
    phrases: Grammar = field(default_factory=lambda: PHRASES)
    neutral: Sequence[str] = NEUTRAL_ADJECTIVES
    nouns: Sequence[str] = NOUNS
    openings: Sequence[str] = OPENINGS
    endings: Sequence[str] = ENDINGS
    scenes: Grammar = field(default_factory=dict)
    held_out: Grammar = field(default_factory=dict)


PLAIN = Wording()
"""The wording of the bundled étude."""
SCENE_SHARE = 0.35
"""The probability that a caption names one part of the scene, if the wording can."""


@dataclass(frozen=True)
class Caption:
    """A caption: its text, and a mapping from each concept that the text names to the level that it names."""

    text: str
    named: Mapping[str, str]


def caption(
    attributes: Attributes,
    rng: np.random.Generator,
    named_share: float = NAMED_SHARE,
    wording: Wording = PLAIN,
    scene: Scene = Scene(),  # noqa: B008 (frozen)
) -> Caption:
    """Write a caption that names each concept with probability `named_share`, by an adjective or a phrase."""
    named = {concept: attributes.level(concept) for concept in CONCEPTS if rng.random() < named_share}
    return Caption(write(named, rng, wording, _setting(attributes, scene, rng, wording)), named)


def write(
    named: Mapping[str, str], rng: np.random.Generator, wording: Wording = PLAIN, setting: Sequence[str] = ()
) -> str:
    """Return a caption that names exactly the levels in `named` (concept -> level), in random order and wording.

    `setting` holds phrases about the scene.
    """
    adjectives, phrases = [], [*setting]
    for concept, level in named.items():
        if rng.random() < 0.5:
            adjectives.append(_choose(wording.adjectives[concept][level], rng))
        else:
            phrases.append(_choose(wording.phrases[concept][level], rng))
    if rng.random() < 0.6:
        adjectives.append(_choose(wording.neutral, rng))
    if rng.random() < 0.5:
        phrases.append(_choose(wording.endings, rng))
    rng.shuffle(adjectives)
    rng.shuffle(phrases)
    return " ".join([_choose(wording.openings, rng), *adjectives, _choose(wording.nouns, rng), *phrases])


def _setting(attributes: Attributes, scene: Scene, rng: np.random.Generator, wording: Wording) -> list[str]:
    if not wording.scenes or rng.random() >= SCENE_SHARE:
        return []
    values = {"kit": scene.kit, "bass": scene.bass, "meter": str(attributes.meter)}
    part = _choose(tuple(wording.scenes), rng)
    return [_choose(wording.scenes[part][values[part]], rng)]


def vocabulary(wording: Wording = PLAIN) -> list[str]:
    """Every word that a caption can contain, sorted: the vocabulary of the tokenizer."""
    texts = [*wording.neutral, *wording.nouns, *wording.openings, *wording.endings]
    for grammar in (wording.adjectives, wording.phrases, wording.scenes):
        texts += [text for levels in grammar.values() for wording in levels.values() for text in wording]
    return sorted({word for text in texts for word in text.split()})


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
