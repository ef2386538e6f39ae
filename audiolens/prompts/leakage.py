"""Measure which other concepts a prompt set names, from its texts alone.

A matched pair shares a frame, and differs in a *wording*. Words in the frame are the same for both poles, so only words
in the wordings can make one concept look like another. A word names a concept if it occurs in one pole of the concept's
set only, in at least 4% of the prompts, or if it is one of the words with which the set asks for a pole.
"""

from collections.abc import Iterable, Mapping
from functools import cache

from audiolens.prompts.balance import words_of
from audiolens.prompts.files import concepts, load
from audiolens.prompts.sets import PromptSet

NAMING = 0.04
"""The smallest share of a pole's prompts that contain a word which names the pole."""
OTHERS = "others"
"""The pole of an instrument's set that consists of any other instruments. It is not a concept, so no word names it."""
_FUNCTION = frozenset((
    "a", "all", "an", "and", "any", "at", "by", "down", "for", "from", "full", "hardly", "in", "into", "kept", "left",
    "little", "many", "most", "no", "not", "of", "off", "on", "one", "out", "over", "own", "the", "through", "to",
    "two", "under", "up", "very", "with", "without",
))  # fmt: skip
"""Words that occur in any wording, such as "with" and "without"."""


def wording(positive: str, negative: str) -> tuple[str, str, str]:
    """Return the frame that two prompts share, with `*` for the rest, and the words of each prompt that differ.

    The frame is the longest beginning and the longest end, in whole words, that the prompts have in common.
    """
    a, b = positive.split(), negative.split()
    most = min(len(a), len(b))
    front = next((i for i in range(most) if a[i] != b[i]), most)
    back = next((i for i in range(most - front) if a[-1 - i] != b[-1 - i]), most - front)
    frame = " ".join([*a[:front], "*", *a[len(a) - back :]])
    return frame, " ".join(a[front : len(a) - back]), " ".join(b[front : len(b) - back])


def naming(sets: PromptSet) -> frozenset[str]:
    """Return the words that name one of the poles of a prompt set."""
    found: set[str] = set()
    asked = (sets.positive_words, sets.negative_words)
    for pole, shares, words in zip(sets.poles, sets.balance().one_sided, asked, strict=True):
        if pole != OTHERS:
            found |= {word for word, share in shares.items() if share >= NAMING and word not in _FUNCTION}
            found |= {word.lower() for word in words}
    return frozenset(found)


def summary(sets: PromptSet) -> dict[str, str]:
    """Return the row of a matched set in a table: its sizes, and how well its texts alone tell the poles apart.

    "words" is the mean number of words of each pole, "wordings" the number of different wordings, and "commonest word"
    the share of prompts with the most common word that only one pole has. "leakage" is the largest of `leakage`.
    """
    balance = sets.balance()
    parts = [wording(*pair) for pair in zip(sets.positive, sets.negative, strict=True)]
    wordings = [len({part[side].strip(",;:").lower() for part in parts}) for side in (1, 2)]
    commonest = [max(shares.values(), default=0.0) for shares in balance.one_sided]
    leaks = leakage(sets)
    most = max(leaks, key=leaks.__getitem__)
    return {
        "concept": sets.concept,
        "poles": ", ".join(sets.poles),
        "pairs": f"{len(parts)}",
        "neutral": f"{len(sets.development)} + {len(sets.test)}",
        "words": f"{balance.words[0]:.1f}, {balance.words[1]:.1f}",
        "length AUC": f"{balance.length_auc:.2f}",
        "wordings": f"{wordings[0]}, {wordings[1]}",
        "commonest word": f"{commonest[0]:.0%}, {commonest[1]:.0%}",
        "leakage": f"{leaks[most]:.0%} ({most})" if leaks[most] else "0%",
    }


@cache
def bundled(vocabulary: str = "english") -> Mapping[str, PromptSet]:
    """Return the bundled sets of a vocabulary, by concept."""
    return {concept: load(concept, vocabulary) for concept in concepts(vocabulary)}


def leakage(sets: PromptSet, others: Iterable[PromptSet] | None = None) -> dict[str, float]:
    """Return the share of a set's pairs in which a wording names another concept, for every other concept.

    `others` are the sets of the other concepts; by default all bundled ones of the same vocabulary. The set must be
    matched. These shares do not show a leak in words that no bundled set uses.
    """
    compared = bundled(sets.vocabulary).values() if others is None else others
    said = [
        set(words_of(f"{a} {b}"))
        for _, a, b in (wording(*pair) for pair in zip(sets.positive, sets.negative, strict=True))
    ]
    named = {other.concept: naming(other) for other in compared if other.concept != sets.concept}
    return {concept: sum(not names.isdisjoint(words) for words in said) / len(said) for concept, names in named.items()}
