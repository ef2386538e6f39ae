"""The result of a test with pairs: how often each clip was chosen, a common scale, and how far listeners agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.figures.canvas import drawable
from analysis.figures.interactive import interactive
from analysis.listening_test.agreement import alpha, in_words
from analysis.listening_test.design import Key
from analysis.listening_test.intervals import Draws, flat, mean_of, totals
from analysis.listening_test.responses import Refused, Response
from analysis.resampling import CONFIDENCE
from audiolens.door import guarded
from audiolens.errors import InputError

MOST_DRAWS = 300
"""The most draws for the intervals of the scale, each of which fits a model."""
ONE_SIDED = "no finite strength: all answers to one side"
UNVARIED = "no interval: the answers do not differ"
OPEN = "open: resampled answers set no limit"
"""Why a strength has no interval, or one without an end."""
_ORDER = ("positive", "unsteered", "negative")


@guarded
@dataclass(frozen=True, eq=False)
class Preference:
    """How often listeners chose each clip of a pair.

    Attributes:
        table: one row per `question` and comparison. `share` is the share of answers that chose `clip` rather than
            `against`; chance is 0.5. `low` and `high` are the interval for other listeners and other prompts,
            `listener_low` and `listener_high` that for other listeners with the same prompts, and `prompt_low` and
            `prompt_high` that for other prompts with the same listeners. `answers`, `listeners` and `prompts` count. If
            the answers do not differ, the interval is that of Clopper and Pearson for as many answers as there are
            listeners or prompts, whichever is fewer.
        scale: the Bradley-Terry strength of every condition per question, as log odds relative to `relative_to`: a
            clip is chosen over another with the odds exp(difference). Half an answer is added to both sides of every
            comparison, so that `strength` is finite if all answers agree. The intervals are for both, as in `table`. An
            end is infinite if the resampled answers set no limit there. Both ends are NaN if all answers are to one
            side or do not differ. `note` says which.
        agreement: Krippendorff's alpha of the answers to each question (nominal), by question; NaN if all answers are
            the same.
        answers: one row per answer. `value` is 1 if `clip` was chosen, and `first` is the role of the clip on the left.
        listeners: one row per listener: `failed` attention checks of `checks`, whether the answers were `used`, the
            share of answers that chose the left clip (`left`, about 0.5), and the `minutes` taken.
        refused: files that were not used, and why.
        questions: the text of each question.
        concept, model, strength, left_out: from the key. `left_out` comparisons had a silent clip.
        confidence: coverage of the intervals.

    A preference does not show that the steered clips are good music, only how they compare with those next to them.
    The listeners are those who answered, who need not be like others. Clips that were too quiet to compare are not in
    the test. The interval does not cover other concepts, strengths or models.
    """

    table: pd.DataFrame
    scale: pd.DataFrame
    agreement: Mapping[str, float]
    answers: pd.DataFrame
    listeners: pd.DataFrame
    refused: tuple[Refused, ...]
    questions: Mapping[str, str]
    concept: str
    model: str
    strength: float
    left_out: int
    confidence: float = CONFIDENCE

    def to_frame(self) -> pd.DataFrame:
        return self.table

    def by_prompt(self) -> pd.DataFrame:
        """Return the share per question, comparison and prompt, with the number of answers."""
        return self._by("prompt")

    def by_listener(self) -> pd.DataFrame:
        """Return the share per question, comparison and listener, with the number of answers."""
        return self._by("listener")

    @drawable
    def plot(self) -> Any:
        """Draw the shares with their intervals, and those of single prompts (matplotlib figure)."""
        from analysis.listening_test import figures

        return figures.shares_paper(self)

    @interactive
    def figure(self) -> Any:
        """Draw the interactive version of `plot` (plotly figure)."""
        from analysis.listening_test import figures

        return figures.shares_screen(self)

    def _by(self, name: str) -> pd.DataFrame:
        grouped = self.answers.groupby(["question", "clip", "against", name], sort=False)["value"]
        return grouped.agg(share="mean", answers="size").reset_index()

    def __repr__(self) -> str:
        parts = []
        for question, rows in self.table.groupby("question", sort=False):
            shares = [
                f"{row['clip']} rather than {row['against']} in {_percent(row)}" for row in rows.to_dict("records")
            ]
            parts.append(
                f"{self.questions[str(question)]} {', '.join(shares)} ({in_words(self.agreement[str(question)])})"
            )
        used, all_of = int(self.listeners["used"].sum()), len(self.listeners)
        return f"Preference({self.concept} on {self.model!r}, {used} of {all_of} listeners: {'; '.join(parts)})"


def preference(
    key: Key, responses: Sequence[Response], refused: Sequence[Refused], most_failed: int, n_bootstrap: int,
    confidence: float = CONFIDENCE, seed: int = 0,
) -> Preference:  # fmt: skip
    """Analyse the responses to a test with pairs, without those of listeners who failed more than `most_failed` checks.

    Raises:
        InputError: if no listener passed.
    """
    listeners = pd.DataFrame([_listener(key, one, most_failed) for one in responses])
    if not listeners["used"].any():
        raise InputError(
            f"none of {len(listeners)} listeners passed the attention checks (more than {most_failed} failed): see "
            "most_failed (--most-failed)."
        )
    used = [one for one, kept in zip(responses, listeners["used"], strict=True) if kept]
    answers = pd.DataFrame([row for one in used for row in _answers(key, one)])
    names, prompts = [one.listener for one in used], list(dict.fromkeys(answers["prompt"]))
    draws = Draws.of(len(names), len(prompts), n_bootstrap, confidence, seed)
    rows, scales = [], []
    for question in key.questions:
        own = answers[answers["question"] == question]
        counted = {
            (first, second): totals(
                own[(own["clip"] == key.label(first)) & (own["against"] == key.label(second))], names, prompts, "value"
            )
            for first, second in key.compared
        }
        for (first, second), (sums, counts) in counted.items():
            found = mean_of(sums, counts, draws)
            label = {"question": question, "clip": key.label(first), "against": key.label(second)}
            rows.append({**label, "share": found.pop("mean"), **found})
        scales.append(_scale(counted, draws).assign(question=question))
    scale = pd.concat(scales, ignore_index=True)
    scale["condition"] = scale["condition"].map(key.label)
    scale["relative_to"] = scale["relative_to"].map(key.label)
    return Preference(
        table=pd.DataFrame(rows),
        scale=scale[["question", "condition", "relative_to", "strength", "low", "high", "note"]],
        agreement={name: _agreement(answers[answers["question"] == name]) for name in key.questions},
        answers=answers,
        listeners=listeners,
        refused=tuple(refused),
        questions=key.questions,
        concept=key.concept,
        model=key.model,
        strength=key.strength,
        left_out=key.left_out,
        confidence=float(confidence),
    )


def _listener(key: Key, one: Response, most_failed: int) -> dict[str, Any]:
    checks = [
        one.answers[trial.trial][question] == name for trial in key.trials for question, name in trial.right.items()
    ]
    lefts = [
        chosen == one.first[trial.trial]
        for trial in key.trials
        if not trial.right
        for chosen in one.answers[trial.trial].values()
    ]
    failed = len(checks) - sum(checks)
    return {
        "listener": one.listener, "file": one.file, "checks": len(checks), "failed": failed,
        "used": failed <= most_failed, "left": float(np.mean(lefts)), "minutes": one.seconds / 60,
    }  # fmt: skip


def _answers(key: Key, one: Response) -> list[dict[str, Any]]:
    rows = []
    for trial in key.trials:
        if trial.right:
            continue
        roles = next(pair for pair in key.compared if {*pair} == {*trial.clips.values()})
        for question, name in one.answers[trial.trial].items():
            rows.append(
                {
                    "listener": one.listener, "question": question, "trial": trial.trial, "prompt": trial.prompt,
                    "seed": trial.seed, "clip": key.label(roles[0]), "against": key.label(roles[1]),
                    "value": float(trial.clips[name] == roles[0]),
                    "first": key.label(trial.clips[one.first[trial.trial]]),
                }
            )  # fmt: skip
    return rows


def _agreement(own: pd.DataFrame) -> float:
    return alpha(own.pivot(index="listener", columns="trial", values="value").to_numpy(float))


def _scale(counted: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]], draws: Draws) -> pd.DataFrame:
    """Fit the Bradley-Terry model (Bradley and Terry 1952) to the answers of one question, with choix."""
    roles = [role for role in _ORDER if any(role in pair for pair in counted)]
    wins = np.zeros((len(draws.listeners[:MOST_DRAWS]), len(roles), len(roles)))
    own = np.zeros((1, len(roles), len(roles)))
    for (first, second), (sums, counts) in counted.items():
        i, j = roles.index(first), roles.index(second)
        for a, b, chosen in ((i, j, sums), (j, i, counts - sums)):
            own[0, a, b] = chosen.sum()
            wins[:, a, b] = draws.both(chosen)[:MOST_DRAWS]
    base = roles.index("unsteered") if "unsteered" in roles else len(roles) - 1
    compared = (own[0] + own[0].T > 0) / 2
    strengths = _fitted(own[0] + compared, None)
    drawn = [_fitted(one + compared, strengths) for one in wins]
    shifted = np.array([one - one[base] for one in drawn]).reshape(len(drawn), len(roles))
    clusters = min(draws.listeners.shape[1], draws.prompts.shape[1])
    low, high = draws.ends(np.where(_bound(wins, base) == 0, shifted, _bound(wins, base)), clusters, exact=True)
    one_sided, unvaried = _bound(own, base)[0] != 0, flat(low, high)
    unvaried[base] = False
    low, high = (np.where(one_sided | unvaried, np.nan, end) for end in (low, high))
    why = np.select([one_sided, unvaried, np.isinf(low) | np.isinf(high)], [ONE_SIDED, UNVARIED, OPEN], "")
    values = {"condition": roles, "relative_to": roles[base], "strength": strengths - strengths[base]}
    return pd.DataFrame({**values, "low": low, "high": high, "note": why})


def _bound(wins: Float[np.ndarray, "draw role role"], base: int) -> Float[np.ndarray, "draw role"]:
    """Return the strengths that no number of wins limits: inf, -inf, or NaN where nothing was compared; 0 elsewhere.

    Without half answers, a strength relative to the base is finite if a chain of wins leads from the clip to the base,
    and another one back (Ford 1957, "Solution of a ranking problem from binary comparisons").
    """
    chains = (wins > 0) | np.eye(wins.shape[-1], dtype=bool)
    for _ in range(wins.shape[-1] - 2):
        chains = chains | (chains @ chains)
    over, under = chains[:, :, base], chains[:, base, :]
    return np.select([over & under, over, under], [0.0, np.inf, -np.inf], np.nan)


def _fitted(wins: np.ndarray, initial: np.ndarray | None) -> np.ndarray:
    import choix

    return choix.ilsr_pairwise_dense(wins, initial_params=initial)


def _percent(row: Mapping[Any, Any]) -> str:
    share, low, high = (row[name] for name in ("share", "low", "high"))
    interval = f" [{100 * low:.0f}, {100 * high:.0f}]" if np.isfinite(low) else ""
    return f"{share:.0%}{interval}"
