"""Write étude's prompt sets from its caption grammar: `python -m audiolens.etude.training.prompt_sets`.

A pair is one sentence frame (an opening, neutral words and sometimes one word for another attribute), filled once for
each pole. Both poles fill it with an adjective, or both with a phrase. So the poles differ only in the concept's words,
and any other attribute is named equally often on both sides. All synonyms of a pole occur about equally often.
The files are the same on every machine, because they use one seed and only `random.random`, whose stream is fixed.
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from audiolens.etude.attributes import INSTRUMENTS
from audiolens.etude.captions import ADJECTIVES, ENDINGS, NEUTRAL_ADJECTIVES, NOUNS, OPENINGS, PHRASES
from audiolens.files.atomic import put
from audiolens.prompts.sets import toml_text

T = TypeVar("T")
PAIRS = 100
NEUTRAL = 40
SEED = 20250
FOLDER = Path(__file__).parents[2] / "prompts" / "data" / "etude"


@dataclass(frozen=True)
class CaptionContrast:
    """Two poles in the grammar: their attribute, the levels on each side, and their names."""

    attribute: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    poles: tuple[str, str]

    def wordings(self, grammar: Mapping[str, Mapping[str, Sequence[str]]]) -> tuple[list[str], list[str]]:
        """The wordings on each side; if a side covers several levels, their wordings alternate."""
        words = grammar[self.attribute]
        sides = [_in_turn([words[level] for level in levels]) for levels in (self.positive, self.negative)]
        return sides[0], sides[1]

    def telling(self) -> frozenset[str]:
        """Words that occur on one side only, and therefore name a pole."""
        adjectives, phrases = self.wordings(ADJECTIVES), self.wordings(PHRASES)
        sides = [{word for text in adjectives[i] + phrases[i] for word in text.split()} for i in (0, 1)]
        return frozenset(sides[0] ^ sides[1]) - neutral_words()


CONTRASTS: Mapping[str, CaptionContrast] = MappingProxyType(
    {
        "tempo": CaptionContrast("tempo", ("high",), ("low",), ("fast", "slow")),
        "timbre": CaptionContrast("timbre", ("high",), ("low",), ("bright", "dark")),
        "register": CaptionContrast("register", ("high",), ("low",), ("high", "low")),
        "density": CaptionContrast("density", ("high",), ("low",), ("busy", "sparse")),
        "loudness": CaptionContrast("loudness", ("high",), ("low",), ("loud", "soft")),
        "mode": CaptionContrast("mode", ("major",), ("minor",), ("major", "minor")),
        **{
            name: CaptionContrast("instrument", (name,), tuple(o for o in INSTRUMENTS if o != name), (name, "others"))
            for name in INSTRUMENTS
        },
    }
)
"""The contrast for each concept. An instrument is contrasted with all other instruments in turn."""


def neutral_words() -> frozenset[str]:
    """The words of captions that do not name an attribute."""
    texts = (*NEUTRAL_ADJECTIVES, *NOUNS, *OPENINGS, *ENDINGS)
    return frozenset(word for text in texts for word in text.split())


def pairs(concept: str, count: int = PAIRS) -> list[tuple[str, str]]:
    """Matched (positive, negative) prompts for a concept, all different."""
    contrast = CONTRASTS[concept]
    rng = random.Random(f"{SEED} {concept}")
    adjectives, phrases = contrast.wordings(ADJECTIVES), contrast.wordings(PHRASES)
    # The share of adjectives matches their share of the wordings, so that synonyms occur about equally often.
    n_adjectives = round(count * len(adjectives[0]) / (len(adjectives[0]) + len(phrases[0])))
    n_phrases = count - n_adjectives
    wordings = [*_wordings(adjectives, n_adjectives), *_wordings(phrases, n_phrases)]
    forms = ["adjective"] * n_adjectives + ["phrase"] * n_phrases
    asides = _shuffled(_asides(contrast), rng)
    # About one pair in three also names another attribute, whose levels occur equally often.
    others: list[tuple[str, str] | None] = [*asides, *[None] * count][:count]
    plan = list(zip(_shuffled(list(zip(forms, wordings, strict=True)), rng), _shuffled(others, rng), strict=True))
    made: list[tuple[str, str]] = []
    seen: set[str] = set()
    for (form, (positive, negative)), other in plan:
        while True:
            frame = _frame(form, other, rng)
            pair = (frame.replace("*", positive), frame.replace("*", negative))
            if seen.isdisjoint(pair):
                break
        seen.update(pair)
        made.append(pair)
    return made


def neutral(count: int) -> list[str]:
    """Prompts that do not name an attribute, and that differ in more than their opening."""
    rng = random.Random(f"{SEED} neutral")
    made: dict[tuple[str, ...], str] = {}
    while len(made) < count:
        adjective, noun = _optional(NEUTRAL_ADJECTIVES, 0.7, rng), _pick(NOUNS, rng)
        key = (*adjective, noun, *_optional(ENDINGS, 0.6, rng))
        if len(key) > 1 and key not in made:
            made[key] = " ".join([_pick(OPENINGS, rng), *key])
    return list(made.values())


def render(concept: str) -> str:
    """The TOML text of a concept's poles."""
    contrast = CONTRASTS[concept]
    made = pairs(concept)
    words = contrast.wordings(ADJECTIVES)
    # The plainest adjective is the pole's own name, if that is an adjective.
    ordered = [
        sorted(side, key=lambda word, pole=pole: word != pole) for side, pole in zip(words, contrast.poles, strict=True)
    ]
    return toml_text(
        {
            "concept": concept,
            "poles": contrast.poles,
            "positive_words": ordered[0],
            "negative_words": ordered[1],
            "positive": [positive for positive, _ in made],
            "negative": [negative for _, negative in made],
        }
    )


def render_neutral() -> str:
    """The TOML text of the neutral prompts shared by all concepts, and of the nouns of the grammar."""
    made = neutral(2 * NEUTRAL)
    return toml_text({"nouns": NOUNS, "development": made[:NEUTRAL], "test": made[NEUTRAL:]})


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for concept in CONTRASTS:
        put(FOLDER / f"{concept}.toml", render(concept).encode("utf-8"))
    put(FOLDER / "neutral.toml", render_neutral().encode("utf-8"))


def _frame(form: str, other: tuple[str, str] | None, rng: random.Random) -> str:
    """A sentence with `*` in place of the concept's wording; `other` is the (form, wording) of another attribute."""
    adjectives = ["*"] if form == "adjective" else []
    phrases = ["*"] if form == "phrase" else []
    if other is not None:
        (adjectives if other[0] == "adjective" else phrases).append(other[1])
    adjectives += _optional(NEUTRAL_ADJECTIVES, 0.6, rng)
    phrases += _optional(ENDINGS, 0.5, rng)
    return " ".join([_pick(OPENINGS, rng), *_shuffled(adjectives, rng), _pick(NOUNS, rng), *_shuffled(phrases, rng)])


def _asides(contrast: CaptionContrast) -> list[tuple[str, str]]:
    """One adjective and one phrase for every level of every other attribute, without words that name a pole."""
    telling = contrast.telling()
    found = []
    for attribute in ADJECTIVES:
        if attribute == contrast.attribute:
            continue
        for level in ADJECTIVES[attribute]:
            for form, grammar in (("adjective", ADJECTIVES), ("phrase", PHRASES)):
                clear = [text for text in grammar[attribute][level] if telling.isdisjoint(text.split())]
                found.append((form, clear[len(found) % len(clear)]))
    return found


def _wordings(sides: tuple[list[str], list[str]], count: int) -> Iterator[tuple[str, str]]:
    """Pairs that use every wording about equally often. In a long list, each is paired with every wording of the other
    side."""
    positive, negative = sides
    for k in range(count):
        yield positive[k % len(positive)], negative[(k + k // len(negative)) % len(negative)]


def _in_turn(lists: Sequence[Sequence[str]]) -> list[str]:
    longest = max(len(items) for items in lists)
    return [items[i] for i in range(longest) for items in lists if i < len(items)]


def _pick(options: Sequence[str], rng: random.Random) -> str:
    return options[int(rng.random() * len(options))]


def _optional(options: Sequence[str], share: float, rng: random.Random) -> list[str]:
    return [_pick(options, rng)] if rng.random() < share else []


def _shuffled(items: Iterable[T], rng: random.Random) -> list[T]:
    keyed = [(rng.random(), index, item) for index, item in enumerate(items)]
    return [item for _, _, item in sorted(keyed, key=lambda entry: entry[:2])]


if __name__ == "__main__":
    main()
