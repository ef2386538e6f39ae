"""Say in plain sentences what a study found, and what its controls did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from analysis.statistics import MOST_FAILED
from analysis.study.test_result import Outcome
from analysis.wording import change, counted

_BPM = ("tempo_ioi", "tempo", "tempo_beat_this")
WORDS: Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, str]]] = {
    ("fast", "slow"): (_BPM, ("faster", "slower")),
    ("bright", "dark"): (("brightness", "ltas_centroid", "rolloff"), ("brighter", "darker")),
    ("busy", "sparse"): (("onset_rate",), ("busier", "sparser")),
    ("high", "low"): (("pitch",), ("higher", "lower")),
}
"""What steering does towards the positive and the negative pole, by these poles, and the measures that show it.

By another measure, such as the brightness of "fast" clips, nothing was found to be faster.
"""


def words_of(poles: Sequence[str], measured: str) -> tuple[str, str]:
    """Return what steering does towards either pole, such as "faster" and "slower"."""
    high, low = poles
    measures, words = WORDS.get((high, low), ((), ("", "")))
    return words if measured in measures else (f"more {high}", f"more {low}")


def headline(outcomes: Sequence[Outcome], words: Sequence[str], quantity: str) -> str:
    """State the effects in one sentence without statistics, and whether controls did as much.

    `words` are those of `words_of`, and `quantity` names the measure. Effects that the study supports come first.
    Those that were compared with enough controls and are not supported had an equal among them (`verdict` counts them).
    """
    named = [*zip(outcomes, words, strict=True)]
    found = [pair for pair in named if pair[0].towards]
    if not found:
        return f"Steering did not reliably make the music {' or '.join(words)}."
    held = [pair for pair in found if pair[0].claimable or not _compared(pair[0])]
    weak = [pair for pair in found if pair not in held]
    missed = [word for one, word in named if not one.towards]
    lead = f"Steering made the music {' or '.join(_change(*pair, quantity) for pair in held or weak)}"
    if weak:
        other = f"the change to {weak[0][1]} ({change(weak[0][0].effect)}) was no larger than that of some controls"
        lead += f"; {other}" if held else ", but so did some control directions"
    return f"{lead}, {'but' if held else 'and'} not reliably {missed[0]}." if missed else f"{lead}."


def verdict(outcomes: Sequence[Outcome]) -> str:
    """State in words whether control directions did as much as the direction of the concept."""
    towards = sorted((one for one in outcomes if one.towards), key=lambda one: not one.claimable)
    sentences = [
        f"Towards {one.pole}, {one.failed:.0%} of the clips failed, which is too many for a claim."
        for one in outcomes
        if np.isfinite(one.failed) and one.failed > MOST_FAILED
    ]
    told = [_did(one) for one in towards]
    if len(told) == 2 and len({*told}) == 1:
        sentences.append(f"{told[0]} towards either pole.")
    else:
        sentences += [f"{text} towards {one.pole}." for text, one in zip(told, towards, strict=True)]
    if not towards:
        sentences.append("There is no reliable effect to compare with control directions.")
    elif any(np.isnan(one.p_controls) and one.n_controls for one in towards):
        sentences.append("Without that comparison, the study supports no claim.")
    elif any(not one.testable for one in towards):
        sentences.append("With so few controls, the study supports no claim.")
    elif all(one.claimable for one in towards):
        sentences.append("The study supports the effect." if len(towards) == 1 else "The study supports both effects.")
    elif towards[0].claimable:
        sentences.append(f"The study supports only the effect towards {towards[0].pole}.")
    else:
        sentences.append("The study supports no claim.")
    return " ".join(sentences)


def _compared(one: Outcome) -> bool:
    """Return whether enough controls were run and measured to support an effect."""
    return one.testable and bool(np.isfinite(one.p_controls))


def _change(one: Outcome, word: str, quantity: str) -> str:
    if any(word in words for _, words in WORDS.values()):
        share = abs(one.effect)
        return f"{share:.0%} {word}" if share >= 0.005 else f"less than 1% {word}"
    return f"{word} ({quantity} {change(one.effect)})"


def _did(one: Outcome) -> str:
    """Say how many controls of each kind had at least as large an effect on the same clips."""
    kinds = (
        (one.p_random, one.n_random, "random direction", "random directions"),
        (one.p_shuffled, one.n_shuffled, "balanced shuffle", "balanced shuffles"),
        (one.p_other, one.n_other, "direction of another concept", "directions of other concepts"),
    )
    if not any(n for _, n, _, _ in kinds):
        return "No control was run"
    # p is (1 + k) / (n + 1) if k of n controls did at least as much, and NaN if this could not be counted.
    counts = [(round(p * (n + 1)) - 1, n, name, several) for p, n, name, several in kinds if n and np.isfinite(p)]
    if not counts:
        return "The controls could not be compared"
    some = [f"{k} of {counted(n, name, several)}" for k, n, name, several in counts if k]
    parts = some or [f"no {name} of {n}" for _, n, name, _ in counts]
    joined = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"{joined[0].upper()}{joined[1:]} did as much"
