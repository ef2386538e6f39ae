"""Measure how the prompts of the two poles differ in length and vocabulary, regardless of their meaning."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audiolens.checks import shown
from audiolens.door import guarded
from audiolens.ranking import auc


@guarded
@dataclass(frozen=True)
class Balance:
    """How well prompt length or a single word predicts the pole of a prompt.

    Attributes:
        words: the mean number of words per prompt, for the positive and the negative pole.
        length_auc: the probability that a positive prompt has more words than a negative one (ties count half); 0.5
            means that length is balanced.
        one_sided: for each pole, the words that never occur in the other pole, most common first, each with the
            fraction of that pole's prompts that contain it. The concept's own words belong in this list; any other word
            is a confound.
        leaks: one sentence for each property that predicts the pole by itself; empty if there are none.

    These figures do not show whether the prompts mean what they should, or whether other concepts are balanced.
    """

    words: tuple[float, float]
    length_auc: float
    one_sided: tuple[dict[str, float], dict[str, float]]
    leaks: tuple[str, ...]

    def __repr__(self) -> str:
        verdict = "; ".join(self.leaks) or "nothing gives the pole away by itself"
        return f"Balance({self.words[0]:.1f} against {self.words[1]:.1f} words; {verdict})"


def measure(positive: Sequence[str], negative: Sequence[str], leak: float = 0.9) -> Balance:
    """Measure how the prompts of two poles differ in length and vocabulary.

    A word is a leak if it occurs in at least a fraction `leak` of one pole's prompts and in none of the other pole's.
    Prompt length is a leak if its AUC is at least `leak` in either direction.
    """
    sides = [[words_of(text) for text in prompts] for prompts in (positive, negative)]
    lengths = [[len(words) for words in side] for side in sides]
    counts = [Counter(word for words in side for word in set(words)) for side in sides]
    one_sided = tuple(
        {word: count / len(side) for word, count in mine.most_common() if word not in theirs}
        for side, mine, theirs in zip(sides, counts, reversed(counts), strict=True)
    )
    length_auc = float(auc(np.array(lengths[0]), np.array(lengths[1])))
    leaks = [
        f"{shown(word)} occurs in {share:.0%} of the {pole} prompts and in no others"
        for pole, shares in zip(("positive", "negative"), one_sided, strict=True)
        for word, share in shares.items()
        if share >= leak and min(len(positive), len(negative)) > 1
    ]
    if max(length_auc, 1 - length_auc) >= leak:
        leaks.append(f"length alone separates the poles (AUC {max(length_auc, 1 - length_auc):.2f})")
    means = (sum(lengths[0]) / len(lengths[0]), sum(lengths[1]) / len(lengths[1]))
    return Balance(means, length_auc, (one_sided[0], one_sided[1]), tuple(leaks))


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case. A compound with hyphens is one word."""
    return re.findall(r"[\w'-]+", text.lower())
