"""Make matched prompts from captions, by exchanging the words for one pole of a concept with those for the other.

A caption that names one pole becomes a pair: "a fast bossa nova" and "a slow bossa nova". Its other words stay as they
are, except for the article before an exchanged word. A caption from which no such pair can be made is rejected with a
reason, never repaired.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from audiolens.characters import refuse_control
from audiolens.checks import checked_count, checked_text, in_order, shown
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError, PromptError, nearest
from audiolens.prompts.balance import words_of
from audiolens.prompts.captions import read_captions
from audiolens.prompts.inflection import Kind, article, cased, forms
from audiolens.prompts.leakage import bundled, naming
from audiolens.prompts.sets import PromptSet

if TYPE_CHECKING:
    import pandas as pd

Words = str | Sequence[str]
Reason = Literal[
    "absent", "inside another word", "both poles", "negated", "nothing else", "too long", "other concept", "duplicate",
    "not needed",
]  # fmt: skip
MOST_WORDS = 60
"""The largest number of words in a caption by default: three or four sentences."""
GOES_WITH: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tempo": ("energy", "density"),
        "timbre": ("mood", "register"),
        "mode": ("mood",),
        "mood": ("mode", "energy", "tempo"),
        "energy": ("tempo", "loudness", "density", "mood"),
        "loudness": ("energy", "distortion"),
        "density": ("energy", "tempo"),
        "register": ("timbre",),
        "distortion": ("loudness", "energy"),
        "reverb": ("density",),
        "electronic": ("distortion",),
    }
)
"""For a bundled concept, the concepts whose words often go with its own: what is fast is often energetic."""
_MORE_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "tempo": (
            "bpm", "presto", "vivace", "allegro", "adagio", "largo", "uptempo", "downtempo", "upbeat", "ballad",
        ),
    }
)  # fmt: skip
"""Words of a concept that are too rare in its bundled set to name it, but common in captions."""
_NEGATIONS = frozenset((
    "no", "not", "never", "without", "neither", "nor", "hardly", "barely", "scarcely", "less", "least", "non",
    "cannot", "lacks", "lacking", "nothing",
))  # fmt: skip
_REACH = 3
"""A negation counts if it is among so many words before the word, in the same clause."""
_CLAUSE = re.compile(r"[,.;:!?()]|\bbut\b")
_SENTENCE = re.compile(r"(^|[.!?:]\s+)[\"'(]*$")
"""What precedes the first word of a sentence. Elsewhere, a capital A is the note, not the article."""


@guarded
@dataclass(frozen=True)
class Rejected:
    """A caption from which no pair was made.

    Attributes:
        line: its line in the file, or its number in the list, counting from 1.
        caption: its text.
        reason: "absent" (no word of either pole), "inside another word" ("breakfast", "fast-paced", "slowed"), "both
            poles", "negated" ("not fast"), "nothing else" (the caption is the word alone), "too long", "other concept"
            (another word that goes with one pole would stay), "duplicate" (of an earlier caption or pair), or "not
            needed" (there are already `n_pairs`).
        detail: the word at fault, if there is one.
    """

    line: int
    caption: str
    reason: Reason
    detail: str = ""


@guarded
@dataclass(frozen=True)
class Counterfactuals:
    """Matched prompts made from captions.

    Attributes:
        sets: the pairs, as a prompt set without neutral prompts. `sets.save(path)` writes them.
        sources: for each pair, the name of the pole that its caption asked for. The other prompt of the pair was made.
        rejected: the captions that were not used, in order.
        avoided: the words that a caption could not contain besides those that are exchanged.

    A made prompt differs from a caption that somebody wrote: "a slow punk anthem" is unusual. If most captions are from
    one pole, the other pole consists of such prompts, and the direction includes this difference; `sources` shows it.
    """

    sets: PromptSet
    sources: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    avoided: tuple[str, ...]

    def to_frame(self) -> "pd.DataFrame":
        """Return the rejected captions as a table with the columns line, reason, detail and caption."""
        import pandas as pd

        rows = [(one.line, one.reason, one.detail, one.caption) for one in self.rejected]
        return pd.DataFrame(rows, columns=["line", "reason", "detail", "caption"])

    def __repr__(self) -> str:
        poles = Counter(self.sources)
        written = ", ".join(f"{poles[pole]} {pole}" for pole in self.sets.poles)
        why = _counted(self.rejected)
        total = len(self.sources) + len(self.rejected)
        return (
            f"Counterfactuals({self.sets.concept}: {len(self.sources)} pairs from {total} captions ({written}); "
            f"rejected: {why or 'none'})"
        )


@guarded
def counterfactuals(
    captions: str | os.PathLike[str] | Sequence[str],
    words: tuple[Words, Words],
    *,
    column: str | None = None,
    concept: str | None = None,
    kind: Kind = "adjective",
    avoid: Sequence[str] | None = None,
    most_words: int = MOST_WORDS,
    n_pairs: int | None = None,
) -> Counterfactuals:
    """Make matched prompts from captions: each names one pole, and its counterpart the other.

    Args:
        captions: a list of captions, a CSV file, or a text file with one caption per line.
        words: the words for the positive and for the negative pole, such as `("fast", "slow")`, or two lists of
            synonyms. Each word is exchanged with the word at the same place of the other list (a shorter list starts
            again). Upper case and "a" or "an" are kept right. With several synonyms, no single word is the concept.
        column: the column of the CSV file, by default "caption" or the only column.
        concept: the name of the set, by default that of the bundled concept in free English which the words name, or
            else "fast-slow". The poles are named after the first word on each side.
        kind: "adjective", to exchange also comparatives, superlatives and adverbs ("faster", "slowly"), or "noun", to
            exchange also plurals.
        avoid: names of bundled concepts, or words. A caption with any of these words is rejected, because the word
            would go with one pole only. By default, these are the words of the bundled concepts that the given words
            name ("presto" beside "fast", "pianist" beside "piano"), and of the concepts that often go with them
            (`GOES_WITH`). An empty list avoids nothing.
        most_words: the largest number of words in a caption.
        n_pairs: the largest number of pairs, from captions of both poles in equal numbers if there are enough. By
            default, all pairs.

    Raises:
        InputError: if the words are the same, or the file, the column or a name does not exist.
        PromptError: if there are no captions, or no pair can be made; the message states the reasons.
    """
    sides = _sides(words)
    concept = None if concept is None else checked_text("concept", concept)
    most_words = checked_count("most_words", most_words)
    n_pairs = None if n_pairs is None else checked_count("n_pairs", n_pairs)
    if kind not in get_args(Kind):
        raise InputError(f"kind={shown(kind)}: expected one of {', '.join(get_args(Kind))}.")
    named = _concept(concept, sides)
    avoided = _avoided(avoid, named, sides)
    exchange = _Exchange(sides, kind, avoided, most_words)
    numbered = read_captions(captions, column)
    pairs, rejected = _made(exchange, numbered)
    if n_pairs is not None:
        pairs, surplus = _chosen(pairs, n_pairs)
        rejected += [Rejected(pair.line, pair.caption, "not needed") for pair in surplus]
    if not pairs:
        raise PromptError(
            f"no pair could be made from {len(numbered):,} captions and the words {shown(sides[0][0])} and "
            f"{shown(sides[1][0])}. Rejected: {_counted(rejected)}."
        )
    poles = (sides[0][0], sides[1][0])
    sets = PromptSet(
        concept=named,
        poles=poles,
        positive=tuple(pair.texts[0] for pair in pairs),
        negative=tuple(pair.texts[1] for pair in pairs),
        # A word with a space cannot be inserted before a noun.
        positive_words=tuple(word for word in sides[0] if " " not in word),
        negative_words=tuple(word for word in sides[1] if " " not in word),
    )
    rejected.sort(key=lambda one: one.line)
    return Counterfactuals(sets, tuple(poles[pair.source] for pair in pairs), tuple(rejected), tuple(sorted(avoided)))


@dataclass(frozen=True)
class _Pair:
    line: int
    caption: str
    source: int
    texts: tuple[str, str]


class _Exchange:
    """Exchanges the words of two poles in one caption, or states why it cannot."""

    def __init__(self, sides: Sequence[Sequence[str]], kind: Kind, avoided: frozenset[str], most_words: int) -> None:
        self.bases = tuple(word.lower() for side in sides for word in side if word.isalpha())
        self.avoided, self.most_words = avoided, most_words
        self.other: dict[str, tuple[int, str]] = {}
        for pole, (mine, theirs) in enumerate((sides, sides[::-1])):
            for place, word in enumerate(mine):
                own, counterpart = forms(word, kind), forms(theirs[place % len(theirs)], kind)
                for form, text in own.items():
                    # A form that the counterpart lacks ("slowly", for "up-tempo") is treated as another word.
                    if form in counterpart:
                        self.other.setdefault(text.lower(), (pole, counterpart[form]))
        longest_first = sorted(self.other, key=len, reverse=True)
        choices = "|".join(re.escape(text).replace(r"\ ", r"\s+") for text in longest_first)
        self.pattern = re.compile(rf"(?:\b(?P<article>an?)(?P<gap>\s+))?(?<![\w'-])(?P<word>{choices})(?![\w-])", re.I)

    def reason(self, caption: str) -> tuple[Reason, str] | None:
        """Return why no pair can be made from a caption, with the word at fault; `None` if one can be made."""
        found = list(self.pattern.finditer(caption))
        rest = words_of(self.pattern.sub(" ", caption))
        related = next((word for word in rest if self._is_related(word)), "")
        if not found:
            inside = related or next((word for word in rest if any(base in word for base in self.bases)), "")
            return ("inside another word", inside) if inside else ("absent", "")
        if related:
            return "inside another word", related
        if len({self._pole(match) for match in found}) > 1:
            return "both poles", " ".join(match["word"].lower() for match in found)
        negation = next((word for match in found if (word := _negation(caption[: match.start("word")]))), "")
        if negation:
            return "negated", f"{negation} ... {found[0]['word'].lower()}"
        if not rest:
            return "nothing else", ""
        if (length := len(words_of(caption))) > self.most_words:
            return "too long", f"{length} words"
        other = next((word for word in (*rest, *_unnumbered(rest)) if word in self.avoided), "")
        return ("other concept", other) if other else None

    def pair(self, caption: str) -> tuple[int, tuple[str, str]]:
        """Return the pole of a caption, and its texts for both poles, of which one is the caption itself."""
        pole = self._pole(next(self.pattern.finditer(caption)))
        made = self.pattern.sub(self._exchanged, caption)
        return pole, (caption, made) if pole == 0 else (made, caption)

    def _pole(self, match: re.Match[str]) -> int:
        return self.other[_plain(match["word"])][0]

    def _exchanged(self, match: re.Match[str]) -> str:
        word = cased(self.other[_plain(match["word"])][1], match["word"])
        if match["article"] is None or (
            match["article"] == "A" and not _SENTENCE.search(match.string[: match.start()])
        ):
            return f"{match[0][: -len(match['word'])]}{word}"
        return f"{cased(article(word), match['article'][:1])}{match['gap']}{word}"

    def _is_related(self, word: str) -> bool:
        """Whether a word is a compound or another form of one of the words: "fast-paced", "slowed", not "belfast"."""
        return any(word.startswith(base) or base in word.split("-") for base in self.bases)


def _made(exchange: _Exchange, numbered: Sequence[tuple[int, str]]) -> tuple[list[_Pair], list[Rejected]]:
    pairs: list[_Pair] = []
    rejected: list[Rejected] = []
    seen: dict[str, int] = {}
    for line, caption in numbered:
        refuse_control(f"the caption in line {line}", caption)
        reason = exchange.reason(caption)
        if reason is not None:
            rejected.append(Rejected(line, caption, *reason))
            continue
        source, texts = exchange.pair(caption)
        keys = [" ".join(words_of(text)) for text in texts]
        earlier = next((seen[key] for key in keys if key in seen), None)
        if earlier is not None:
            rejected.append(Rejected(line, caption, "duplicate", f"of line {earlier}"))
            continue
        seen |= dict.fromkeys(keys, line)
        pairs.append(_Pair(line, caption, source, texts))
    return pairs, rejected


def _chosen(pairs: list[_Pair], count: int) -> tuple[list[_Pair], list[_Pair]]:
    """Return the first pairs, half of them from captions of each pole as far as possible, and the remaining ones."""
    by_pole = [[pair for pair in pairs if pair.source == pole] for pole in (0, 1)]
    fewer = min(map(len, by_pole))
    first = min(len(by_pole[0]), max(count - count // 2, count - len(by_pole[1]))) if fewer else len(by_pole[0])
    taken = {pair.line for pair in (*by_pole[0][:first][:count], *by_pole[1][: max(0, count - first)])}
    return [pair for pair in pairs if pair.line in taken], [pair for pair in pairs if pair.line not in taken]


def _sides(words: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if isinstance(words, str) or not isinstance(words, Sequence) or len(words) != 2:
        raise InputError(f"words={shown(words)}: expected two words, or two lists of words, the positive pole first.")
    sides = [(side,) if isinstance(side, str) else in_order("words", side, "words") for side in words]
    for side in sides:
        if not side:
            raise InputError("words: expected at least one word for each pole.")
        for word in side:
            if not isinstance(word, str):
                raise InputTypeError(f"words: {shown(word)} is {type(word).__name__}: expected text.")
            if not re.fullmatch(r"\w[\w'-]*(\s+[\w'-]+)*", word.strip()):
                raise InputError(f"words: {shown(word)}: expected a word or a phrase of letters, without punctuation.")
    plain = [tuple(" ".join(word.split()) for word in side) for side in sides]
    repeated = [word for word, count in Counter(word.lower() for side in plain for word in side).items() if count > 1]
    if repeated:
        raise InputError(f"words: {shown(repeated[0])} was given twice: give each word once, for one pole.")
    return plain[0], plain[1]


def _concept(given: str | None, sides: Sequence[Sequence[str]]) -> str:
    """Return the name of the set: the one given, that of the bundled concept that the words name, or their own."""
    if given is not None:
        return given
    first = {side[0].lower() for side in sides}
    known = (name for name, sets in bundled().items() if first <= naming(sets))
    return next(known, "-".join(side[0].lower().replace(" ", "_") for side in sides))


def _avoided(avoid: Sequence[str] | None, concept: str, sides: Sequence[Sequence[str]]) -> frozenset[str]:
    known, given = bundled(), {word.lower() for side in sides for word in side}
    if avoid is None:
        own = [name for name, sets in known.items() if name == concept or not given.isdisjoint(naming(sets))]
        avoid = [*own, *(other for name in own for other in GOES_WITH.get(name, ()))]
    found: set[str] = set()
    for name in in_order("avoid", avoid, "concepts or words"):
        if not isinstance(name, str) or not re.fullmatch(r"[\w'-]+", name):
            near = nearest(str(name), known)
            raise InputError(f"avoid: {shown(name)}: expected the name of a bundled concept, or a word.{near}")
        found |= {*naming(known[name]), *_MORE_WORDS.get(name, ())} if name in known else {name.lower()}
    return frozenset(found - given)


def _negation(before: str) -> str:
    """Return the negation among the last words before a word, or an empty text."""
    clause = _CLAUSE.split(before.lower())[-1]
    near = [word for word in words_of(clause) if word not in ("a", "an", "the")][-_REACH:]
    return next((word for word in near if word in _NEGATIONS or word.endswith(("n't", "n’t"))), "")


def _unnumbered(words: Sequence[str]) -> Iterator[str]:
    """Yield the letters after a number: "bpm" for "120bpm"."""
    yield from (found[1] for word in words if (found := re.fullmatch(r"\d+([a-z]+)", word)))


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _counted(rejected: Sequence[Rejected]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in Counter(one.reason for one in rejected).most_common())
