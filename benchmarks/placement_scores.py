"""Score the rules of `placement_rules.py` on finished sweeps, and write the scores as tables. No model is opened.

The choices of the rules and the change of every clip are stored with the documentation (`store`), so that models can be
swept one by one, and the tables written again without the sweeps.

A rule's score is the span at its place as a share of the span at the best place, on held-out halves of the clips
(`brute_force.py`). Intervals resample prompts. The same resamples are used for all rules and concepts, so differences
between rules are paired. A rule that names no place, or a place where too many clips fail, scores 0, and so do all
rules in a resample in which even the best place has no effect. Concepts in which the effect of the best place is not
reliable are left out of all means.

Evidence that is often taken for a sign of where to steer (`EVIDENCE`) names blocks in the same way, as a comparison.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from brute_force import DRAWS as DRAWS
from brute_force import HALVINGS, Truth, failure_of, prompted_table, steered_table
from jaxtyping import Float
from pages import rounded

from analysis.resampling import COVERAGE, interval_of
from analysis.sweep.concept_measures import unit_of_change
from audiolens.files.atomic import put
from audiolens.files.integrity import read_json, sealed_json

SETTING, CHOICES, EVIDENCE_FILE, DONE = "setting.json", "rules.json", "evidence.json", "done.json"
RULES: Mapping[str, str] = {
    "alignment": "alignment", "middle": "middle block", "equal_damage": "equal damage",
    "constancy": "constant or changing", "confirmed": "confirmed",
}  # fmt: skip
EVIDENCE: Mapping[str, str] = {
    "middle": "middle block", "norm": "largest norm", "probe": "highest probe score",
    "patching": "largest patching effect", "attribution": "largest attributed effect",
}  # fmt: skip
"""What else can name a block, which is then tried with every strategy. Only the middle block, one-to-one, is a rule."""
WAYS = ("one-to-one", "one-to-all")
AIM_SHARE, AIM_LOW = 0.9, 0.8
NOTHING = "Not measured yet.\n"


def label(model: str) -> str:
    """The name of a model's folder of results."""
    return Path(model).name if Path(model).is_dir() else model.replace("/", "-")


@dataclass(frozen=True, eq=False)
class Scored:
    """The scores of all rules on one concept of one model.

    Attributes:
        places: the place that each rule names, or why it names none.
        scores: the score of each rule.
        draws: the scores on resamples of the prompts.
        evidence, evidence_draws: the same for the places of each kind of evidence and strategy; NaN if there are none.
        best_draws: the best place's span on these resamples.
        costs: decoder steps of each rule, relative to the full sweep.
        random: the mean score of all places.
        best: the place with the widest span.
        best_span, words_span: the widest span, and the span with words, in words.
    """

    model: str
    concept: str
    places: Mapping[str, str]
    scores: Float[np.ndarray, " rule"]
    draws: Float[np.ndarray, "draw rule"]
    evidence: Float[np.ndarray, " kind"]
    evidence_draws: Float[np.ndarray, "draw kind"]
    best_draws: Float[np.ndarray, " draw"]
    n_prompts: int
    costs: Mapping[str, float]
    random: float
    best: str
    best_span: str
    words_span: str

    @property
    def determined(self) -> bool:
        """Whether the best place has an effect whose interval is above 0."""
        return len(self.best_draws) > 0 and interval_of(self.best_draws, self.n_prompts).low > 0

    def ends(self, at: int) -> tuple[float, float]:
        """The interval of a rule's score."""
        found = interval_of(self.draws[:, at], self.n_prompts)
        return found.low, found.high


def gathered(out: Path) -> dict[str, dict[str, Any]]:
    """The sweeps in a folder: the setting of every model, and per finished concept all that the scores depend on."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(out.glob(f"*/*/{DONE}")):
        mine, folder, concept = file.parent, file.parents[1], file.parent.name
        measured, failed = _read(file)["measure"], failure_of(concept)
        chosen = _read(mine / CHOICES)
        model = found.setdefault(folder.name, {"setting": _read(folder / SETTING), "concepts": {}})
        model["concepts"][concept] = {
            "measure": measured,
            **{key: chosen[key] for key in ("choices", "left_out", "costs", "sweep_row_steps")},
            "blocks": _read(mine / EVIDENCE_FILE)["blocks"] if (mine / EVIDENCE_FILE).is_file() else {},
            "steered": Truth.of(steered_table(mine, concept), measured, failed).facts(),
            "words": Truth.of(prompted_table(mine, concept), measured, failed).facts(),
        }
    return found


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """What `store` wrote."""
    return {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}


def joined(before: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Earlier and new sweeps. A model's earlier concepts are dropped if their sweeps had another setting."""
    found = {**before, **fresh}
    for name in before.keys() & fresh.keys():
        if before[name]["setting"] == fresh[name]["setting"]:
            found[name] = {**fresh[name], "concepts": {**before[name]["concepts"], **fresh[name]["concepts"]}}
    return dict(sorted(found.items()))


def store(found: Mapping[str, Any], folder: Path) -> None:
    """Write a file per model."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in found.items():
        put(folder / f"{name}.json", sealed_json(rounded(model), indent=None) + b"\n")


def scored(model: str, concept: str, facts: Mapping[str, Any], draws: int) -> Scored:
    """Score the rules on a concept of a model, by what `gathered` found."""
    measured = facts["measure"]
    truth, words = Truth.of_facts(facts["steered"]), Truth.of_facts(facts["words"])
    names = [facts["choices"].get(rule, "") for rule in RULES]
    blocks = facts["blocks"]
    others = [f"{way} {blocks[kind]}" if kind in blocks else None for kind in EVIDENCE for way in WAYS]

    def shares(spans: Float[np.ndarray, " place"], best: float) -> Float[np.ndarray, " named"]:
        by_place: dict[Any, Any] = {**dict(zip(truth.places, spans, strict=True)), None: np.nan}
        found = np.array([by_place.get(name, 0.0) for name in (*names, *others)])
        return found / best if best > 0 else np.where(np.isnan(found), np.nan, 0.0)

    whole = len(truth.seeds) > 0
    spans, best = truth.held_out(HALVINGS) if whole else (np.zeros(len(truth.places)), 0.0)
    drawn = truth.draws(draws) if whole else []
    told = [_span(one.spans().span.max(), measured) if whole else "none measured" for one in (truth, words)]
    every, draws_of = shares(spans, best), np.array([shares(*one) for one in drawn])
    draws_of = draws_of.reshape(-1, len(every))
    n_rules = len(names)
    return Scored(
        model=model, concept=concept,
        places={rule: name or f"none: {facts['left_out'].get(rule, 'not a candidate')}"
                for rule, name in zip(RULES, names, strict=True)},
        scores=every[:n_rules], draws=draws_of[:, :n_rules],
        evidence=every[n_rules:], evidence_draws=draws_of[:, n_rules:],
        best_draws=np.array([one for _, one in drawn]), n_prompts=len(np.unique(truth.prompts)),
        costs={rule: cost / facts["sweep_row_steps"] for rule, cost in facts["costs"].items()},
        random=float(spans.mean() / best) if best > 0 else float("nan"),
        best=truth.places[int(spans.argmax())] if whole else "none", best_span=told[0], words_span=told[1],
    )  # fmt: skip


def _read(file: Path) -> Any:
    return json.loads(file.read_text("utf-8"))


def _span(span: float, measured: str) -> str:
    unit = unit_of_change(measured)
    return f"x{np.exp(span):.2f}" if unit == "ratio" else f"{span:.2f} {unit}".strip()


def page(gathered: Mapping[str, Any], chosen_on: Sequence[str], draws: int) -> str:
    """All scores as Markdown: the rules on all models together, and a table per model."""
    if not gathered:
        return NOTHING
    found = {
        model: [scored(model, concept, facts, draws) for concept, facts in sorted(of["concepts"].items())]
        for model, of in gathered.items()
    }
    lines = [*together(found, chosen_on), *by_evidence(found)]
    for model, concepts in found.items():
        lines += ["", *of_model(model, concepts, gathered[model]["setting"])]
    return "\n".join(lines) + "\n"


def together(found: Mapping[str, Sequence[Scored]], chosen_on: Sequence[str]) -> list[str]:
    """The rule that is chosen, and its scores and those of all others on the models that did not choose it."""
    first = [one for model in chosen_on for one in found.get(model, []) if one.determined]
    others = [one for model, mine in found.items() if model not in chosen_on for one in mine if one.determined]
    missing = [model for model in chosen_on if model not in found]
    if missing or not first:
        lines = [f"No rule is chosen yet, because {' and '.join(missing or chosen_on)} has no finished sweep."]
    else:
        best = list(RULES.values())[int(np.mean([one.scores for one in first], axis=0).argmax())]
        lines = [f"Chosen on {' and '.join(chosen_on)} (highest mean score over {len(first)} concepts): **{best}**."]
    lines += [
        "",
        f"| rule | mean score on {' and '.join(chosen_on)} | mean score on other models | minus the middle block "
        f"| minus alignment | at least {AIM_SHARE:.0%} | lower bound at least {AIM_LOW:.0%} | cost, mean (largest) |",
        "|---|" + "---|" * 7,
    ]
    for at, (rule, name) in enumerate(RULES.items()):
        costs = [one.costs[rule] for mine in found.values() for one in mine if rule in one.costs]
        cost = f"{np.mean(costs):.1%} ({max(costs):.1%})" if costs else "none"
        apart = [_mean(others, at, less=less) for less in ("middle", "alignment")]
        cells = [_mean(first, at), _mean(others, at), *apart, *_counts(others, at), cost]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    models = ", ".join(f"{model} ({sum(one.determined for one in mine)} of {len(mine)} concepts)"
                       for model, mine in found.items())  # fmt: skip
    lines += [
        "",
        f"Scores are means over models and concepts, with {COVERAGE} intervals over prompts. Differences are those on "
        f"the other models. Counted are the concepts in which the best place has a reliable effect: {models}.",
    ]
    return lines


def by_evidence(found: Mapping[str, Sequence[Scored]]) -> list[str]:
    """The scores of the places that each kind of evidence names, per model and over all of them."""
    cells = {model: [one for one in mine if one.determined] for model, mine in found.items()}
    every = [one for mine in cells.values() for one in mine]
    lines = [
        "",
        "The scores of the middle block, and of the blocks that other evidence names, with both strategies. They are a "
        "comparison: of these, only the middle block one-to-one is one of the rules.",
        "",
        f"| evidence | {' | '.join(cells)} | all |",
        "|---|" + "---|" * (len(cells) + 1),
    ]
    for at, (kind, way) in enumerate((kind, way) for kind in EVIDENCE for way in WAYS):
        told = [_mean_evidence(mine, at) for mine in (*cells.values(), every)]
        lines.append(f"| {EVIDENCE[kind]}, {way} | {' | '.join(told)} |")
    random = [f"{np.mean([one.random for one in mine]):.0%}" if mine else "none" for mine in (*cells.values(), every)]
    return [*lines, f"| a random place | {' | '.join(random)} |"]


def _mean_evidence(cells: Sequence[Scored], at: int) -> str:
    known = [one for one in cells if np.isfinite(one.evidence[at])]
    if not known:
        return "none"
    found = interval_of(
        np.mean([one.evidence_draws[:, at] for one in known], axis=0), min(one.n_prompts for one in known)
    )
    fewer = "" if len(known) == len(cells) else f" ({len(known)} of {len(cells)} concepts)"
    return f"{np.mean([one.evidence[at] for one in known]):.0%} {_interval(found.low, found.high)}{fewer}"


def of_model(model: str, concepts: Sequence[Scored], setting: Mapping[str, Any]) -> list[str]:
    """The scores of all rules on each concept of a model."""
    every, size = (
        setting["every"],
        f"{setting['prompts']} prompts x {setting['seeds']} seeds x {setting['seconds']:g} s",
    )
    thinned = "" if every == 1 else f"; steered is one block in {every}, and those that fixed rules name"
    lines = [
        f"**{model}** ({setting['n_layers']} blocks; {size}{thinned}):",
        "",
        f"| concept | {' | '.join(RULES.values())} | a random place | widest span | span with words |",
        "|---|" + "---|" * (len(RULES) + 3),
    ]
    for one in concepts:
        if one.determined:
            cells = [f"{one.scores[at]:.0%} {_interval(*one.ends(at))} {one.places[rule]}"
                     for at, rule in enumerate(RULES)]  # fmt: skip
            random, best = f"{one.random:.0%}", f"{one.best_span} ({one.best})"
        else:
            cells, random = ["undetermined"] * len(RULES), "undetermined"
            best = f"{one.best_span}, not reliable"
        lines.append(f"| {one.concept} | {' | '.join(cells)} | {random} | {best} | {one.words_span} |")
    whole = [one for one in concepts if one.determined]
    rows = {"mean": [_mean(whole, at) for at in range(len(RULES))],
            "minus the middle block": [_mean(whole, at, less="middle") for at in range(len(RULES))]}  # fmt: skip
    for name, cells in rows.items():
        lines.append(f"| {name} | {' | '.join(cells)} | | | |")
    return lines


def _mean(cells: Sequence[Scored], at: int, less: str | None = None) -> str:
    """The mean score of a rule, or its mean difference from another rule's, with an interval over prompts."""
    if not cells:
        return "none"
    scores, draws = np.mean([one.scores for one in cells], axis=0), np.mean([one.draws for one in cells], axis=0)
    n_prompts = min(one.n_prompts for one in cells)
    if less is None:
        found = interval_of(draws[:, at], n_prompts)
        return f"{scores[at]:.0%} {_interval(found.low, found.high)}"
    other = list(RULES).index(less)
    if at == other:
        return ""
    found = interval_of(draws[:, at] - draws[:, other], n_prompts)
    return f"{scores[at] - scores[other]:+.0%} {_interval(found.low, found.high, '+')}"


def _counts(cells: Sequence[Scored], at: int) -> tuple[str, str]:
    """The number of concepts in which a rule's score, and the lower end of its interval, reach the aims."""
    high = sum(one.scores[at] >= AIM_SHARE for one in cells)
    sure = sum(one.ends(at)[0] >= AIM_LOW for one in cells)
    return f"{high} of {len(cells)}", f"{sure} of {len(cells)}"


def _interval(low: float, high: float, sign: str = "") -> str:
    return f"[{low:{sign}.0%}, {high:{sign}.0%}]"
