"""PromptSet: prompts for the two poles of a concept, neutral prompts, and the words that ask for each pole."""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from audiolens.characters import refuse_control
from audiolens.checks import checked_text, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, PromptError, nearest, shortened
from audiolens.files.atomic import as_path, written
from audiolens.prompts.balance import Balance, measure
from audiolens.prompts.inflection import article, cased

KEYS = (
    "concept", "poles", "positive", "negative", "development", "test", "positive_words", "negative_words", "nouns",
)  # fmt: skip
"""The keys of a file of prompts."""
_LISTS = ("poles", "positive", "negative", "development", "test", "positive_words", "negative_words", "nouns")


@guarded
@dataclass(frozen=True)
class PromptSet:
    """Prompts for one concept.

    Attributes:
        concept: the name of the concept, such as `"tempo"`.
        poles: the names of the positive and the negative pole, such as `("fast", "slow")`.
        positive, negative: prompts that ask for each pole. In the bundled sets `positive[i]` and `negative[i]` are the
            same sentence, with only the concept's words exchanged; in your own sets the numbers of prompts can differ.
        development, test: disjoint neutral prompts, without any word of the concept. Layer and strength are chosen on
            the first, and results are reported on the second. A set without neutral prompts has empty lists.
        positive_words, negative_words: adjectives that ask for each pole, the plainest first (see `prompted`).
        nouns: nouns before which these adjectives can be inserted.
        vocabulary: the vocabulary of the prompts: `"etude"`, `"english"`, or `"own"` for a set read from a file.
    """

    concept: str
    poles: tuple[str, str]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    development: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    positive_words: tuple[str, ...] = ()
    negative_words: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()
    vocabulary: str = "own"

    def __post_init__(self) -> None:
        if not isinstance(self.concept, str) or not self.concept.strip():
            raise InputTypeError(f"concept={shown(self.concept)}: expected a name.")
        refuse_control("concept", self.concept)
        checked_text("vocabulary", self.vocabulary)
        for name in _LISTS:
            object.__setattr__(self, name, _texts(name, getattr(self, name)))
        if len(self.poles) != 2 or self.poles[0] == self.poles[1]:
            raise InputError(f"poles={self.poles}: expected two different names, the positive pole first.")
        for pole, prompts in zip(self.poles, (self.positive, self.negative), strict=True):
            if not prompts:
                raise PromptError(f"{self.concept}: no prompt for the pole {shown(pole)}: a contrast needs both poles.")
        _refuse_shared(self.concept, "both poles", self.positive, self.negative)
        _refuse_shared(self.concept, "development and test", self.development, self.test)
        neutral, poles = self.development + self.test, self.positive + self.negative
        _refuse_shared(self.concept, "neutral and pole prompts", neutral, poles)

    @property
    def matched(self) -> bool:
        """Whether the poles have the same number of prompts; if so, the i-th prompts of both poles are paired."""
        return len(self.positive) == len(self.negative)

    @property
    def opposite(self) -> "PromptSet":
        """Return the set with its poles exchanged."""
        return PromptSet(
            concept=self.concept,
            poles=(self.poles[1], self.poles[0]),
            positive=self.negative,
            negative=self.positive,
            development=self.development,
            test=self.test,
            positive_words=self.negative_words,
            negative_words=self.positive_words,
            nouns=self.nouns,
            vocabulary=self.vocabulary,
        )

    def words(self, pole: str) -> tuple[str, ...]:
        """Return the adjectives of a pole, which is given by its name or as `"positive"` or `"negative"`."""
        sides = (self.positive_words, self.negative_words)
        by_pole = dict(zip((*self.poles, "positive", "negative"), sides * 2, strict=True))
        if pole not in by_pole:
            near = nearest(str(pole), by_pole)
            raise InputError(f"unknown pole {shown(pole)} of {self.concept}.{near} It has: {shortened(by_pole)}.")
        return by_pole[pole]

    def prompted(self, prompt: str, pole: str, word: str | None = None) -> str:
        """Rewrite a neutral prompt to ask for a pole: "a little tune with drums" -> "a little fast tune with drums".

        Steering is compared with prompts that were rewritten in this way. `word` defaults to the pole's plainest
        adjective. The word is inserted before the first of the set's nouns in the prompt. If the prompt contains none
        of the nouns, the word is inserted after the article or at the start ("An indie song" -> "A fast indie song",
        "Folk music" -> "Fast Folk music").
        """
        words = self.words(pole)
        if word is None:
            if not words:
                raise PromptError(f"{self.concept}: this set has no words for {shown(pole)}. Give one with word=...")
            word = words[0]
        spoken = prompt.split()
        if not spoken:
            raise PromptError("an empty prompt cannot be rewritten to ask for a pole: give a neutral prompt.")
        bare = [token.strip(".,;:!?").lower() for token in spoken]
        index = next((i for i, token in enumerate(bare) if token in self.nouns), None)
        if index is None:
            index = 1 if bare[0] in ("a", "an", "the") else 0
        if index == 0 and spoken[0][0].isupper():
            word = word[0].upper() + word[1:]
        # étude's grammar has no "an".
        if index == 1 and bare[0] in ("a", "an") and self.vocabulary != "etude":
            spoken[0] = cased(article(word), spoken[0][0])
        return " ".join([*spoken[:index], word, *spoken[index:]])

    def completed(self, neutral: "PromptSet", words: tuple[str, str] | None = None) -> "PromptSet":
        """Return the set with what a study needs: neutral prompts and nouns from another set, and words for its poles.

        Only missing parts are added. The words for the poles are `words` or, by default, the names of the poles.
        Neutral prompts that contain one of these words or belong to a pole are left out.
        """
        asked = words or self.poles
        sides = [own or (word,) for own, word in zip((self.positive_words, self.negative_words), asked, strict=True)]
        taken = {word.lower() for side in sides for word in side}
        own = {*self.positive, *self.negative}

        def usable(prompts: Sequence[str]) -> tuple[str, ...]:
            bare = {prompt: {token.strip(".,;:!?").lower() for token in prompt.split()} for prompt in prompts}
            return tuple(prompt for prompt in prompts if prompt not in own and not bare[prompt] & taken)

        developed, tested = set(self.development), set(self.test)
        return replace(
            self,
            development=self.development or usable([p for p in neutral.development if p not in tested]),
            test=self.test or usable([p for p in neutral.test if p not in developed]),
            positive_words=sides[0],
            negative_words=sides[1],
            nouns=self.nouns or neutral.nouns,
        )

    def balance(self) -> Balance:
        """Return how well prompt length or single words predict the pole."""
        return measure(self.positive, self.negative)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the set, without its vocabulary, to a TOML or JSON file for `from_file`, and return the path.

        Raises:
            InputError: if the file's name does not end in .toml or .json, or if it cannot be written.
        """
        target = as_path(path)
        fields = {key: value for key in KEYS if (value := getattr(self, key))}
        renderers = {".toml": toml_text, ".json": lambda fields: json.dumps(fields, indent=1, ensure_ascii=False)}
        render = renderers.get(target.suffix.lower())
        if render is None:
            raise InputError(f"{target}: expected the name of a .toml or .json file.")
        with written(target) as aside:
            aside.write_text(render(fields), "utf-8")
        return target

    def __repr__(self) -> str:
        neutral = f"{len(self.development)} development, {len(self.test)} test"
        return (
            f"PromptSet({self.concept}: {len(self.positive)} {self.poles[0]}, {len(self.negative)} {self.poles[1]}, "
            f"{neutral}; vocabulary {self.vocabulary})"
        )


def toml_text(fields: Mapping[str, str | Sequence[str]]) -> str:
    """Return TOML text, with one prompt per line."""
    lines = []
    for key, value in fields.items():
        if isinstance(value, str):
            lines.append(f"{key} = {_quoted(value)}")
        elif sum(map(len, value)) < 80:
            lines.append(f"{key} = [{', '.join(map(_quoted, value))}]")
        else:
            lines += [f"{key} = [", *(f"    {_quoted(item)}," for item in value), "]"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    # TOML and JSON escape text alike, except that TOML has no surrogate pairs.
    return json.dumps(text, ensure_ascii=False)


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InputTypeError(f"{name}: expected a list of strings, got {type(values).__name__}.")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise InputTypeError(f"{name}[{index}] is {type(value).__name__}: expected text.")
        if not value.strip():
            raise PromptError(f"{name}[{index}] is empty.")
    texts = tuple(" ".join(value.split()) for value in values)
    for index, text in enumerate(texts):
        refuse_control(f"{name}[{index}]", text)
    if len(set(texts)) != len(texts):
        counts = Counter(texts)
        repeated = next(text for text in texts if counts[text] > 1)
        raise PromptError(f"{name} contains {shown(repeated)} more than once: keep each once, or it would count twice.")
    return texts


def _refuse_shared(concept: str, where: str, a: Sequence[str], b: Sequence[str]) -> None:
    shared = sorted(set(a) & set(b))
    if shared:
        raise PromptError(
            f"{concept}: {len(shared)} prompts are in {where}, such as {shown(shared[0])}: keep each in one."
        )
