"""The comparison of placement rules runs from start to end, resumes, and scores what was planted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import brute_force
import numpy as np
import pandas as pd
import placement_rules
import placement_scores
import pytest
from typer.testing import CliRunner

import audiolens as al
from analysis.sweep import BASELINE

PLACES = {"one-to-one 0": 0.2, "one-to-one 1": 1.0, "one-to-all 0": 0.5, "one-to-all 1": 0.8}
"""Log change of the measure per unit of strength at every place. At strength 2, all clips at one-to-one 1 fail."""
PROMPTS = [f"tune {at}" for at in range(4)]


def swept(noise: float = 0.05) -> pd.DataFrame:
    """A table like that of a sweep, for four prompts and four seeds."""
    rng, rows = np.random.default_rng(0), []
    clips = [(prompt, seed) for at, prompt in enumerate(PROMPTS) for seed in range(4 * at, 4 * at + 4)]
    for prompt, seed in clips:
        rows.append((BASELINE, None, None, 0.0, prompt, seed, 1000.0, False))
        for place, slope in PLACES.items():
            strategy, layer = place.rsplit(maxsplit=1)
            for strength in (-2.0, -1.0, 1.0, 2.0):
                value = 1000 * np.exp(slope * strength + rng.normal(0, noise))
                lost = place == "one-to-one 1" and abs(strength) == 2
                rows.append((f"{place} {strength}", strategy, int(layer), strength, prompt, seed, value, lost))
    names = ["condition", "strategy", "layer", "strength", "prompt", "seed", "brightness", "failed"]
    return pd.DataFrame(rows, columns=names)


def test_shares_are_those_of_a_naive_loop_over_halves() -> None:
    truth = brute_force.Truth.of(swept(noise=0.5), "brightness")
    names, found, best = list(PLACES), np.zeros(4), 0.0
    for halves in truth.halvings(3, seed=5):
        assert not set(truth.seeds[halves[0]]) & set(truth.seeds[halves[1]])
        spans = [truth.spans(rows) for rows in halves]
        for chosen, read in (spans, spans[::-1]):
            within = chosen.failed <= 0.1
            found += [read.span[chosen.span[within & (chosen.place == name)].idxmax()] for name in names]
            best += read.span[chosen.span[within].idxmax()]
    np.testing.assert_allclose(truth.shares(names, 3, seed=5), found / best)
    assert truth.shares(["one-to-one 9"], 3, seed=5) == 0


def test_the_best_place_scores_100_percent_and_others_their_share() -> None:
    truth = brute_force.Truth.of(swept(), "brightness")
    # one-to-all 1 reaches 2 x 0.8 at strength 2; at one-to-one 1, strength 1 is the largest that does not fail.
    expected = {"one-to-one 0": 0.25, "one-to-one 1": 0.625, "one-to-all 0": 0.625, "one-to-all 1": 1.0}
    found = truth.shares(list(expected), brute_force.HALVINGS)
    np.testing.assert_allclose(found, list(expected.values()), atol=0.04)
    at = truth.places.index("one-to-one 1")
    drawn = [spans[at] / best for spans, best in truth.draws(100)]
    assert np.quantile(drawn, 0.025) < 0.625 < np.quantile(drawn, 0.975) < 0.7


def scored(model: str, scores: dict[str, float], best: float = 1.0) -> placement_scores.Scored:
    own = np.array([scores.get(rule, 0.5) for rule in placement_scores.RULES])
    others = np.array([0.1 * at for at in range(10)])
    rules = placement_scores.RULES
    return placement_scores.Scored(
        model, "timbre", dict.fromkeys(rules, "one-to-one 1"), own, np.tile(own, (20, 1)), others,
        np.tile(others, (20, 1)), np.full(20, best), 4, dict.fromkeys(rules, 0.03), 0.4, "one-to-one 1", "x2.00",
        "x1.50",
    )  # fmt: skip


def test_the_places_of_other_evidence_are_scored_per_model() -> None:
    one, other = scored("a", {}), scored("b", {})
    other.evidence[2:4] = np.nan
    lines = placement_scores.by_evidence({"a": [one], "b": [other, scored("b", {}, best=0.0)]})
    assert "| evidence | a | b | all |" in lines
    # The middle block at all blocks has the second score; nothing names the places of the norm in the other model.
    assert "| middle block, one-to-all | 10% [10%, 10%] | 10% [10%, 10%] | 10% [10%, 10%] |" in lines
    assert "| largest norm, one-to-all | 30% [30%, 30%] | none | 30% [30%, 30%] (1 of 2 concepts) |" in lines
    assert lines[-1] == "| a random place | 40% | 40% | 40% |"


def test_the_rule_is_chosen_on_some_models_and_reported_on_the_others() -> None:
    found = {
        "a": [scored("a", {"equal_damage": 0.95, "constancy": 0.9})],
        "b": [scored("b", {"equal_damage": 0.85, "constancy": 0.86}), scored("b", {"constancy": 9.0}, best=0.0)],
        "c": [scored("c", {"constancy": 1.0, "equal_damage": 0.7, "middle": 0.6, "alignment": 0.75})],
    }
    text = "\n".join(placement_scores.together(found, ["a", "b"]))
    assert "Chosen on a and b (highest mean score over 2 concepts): **equal damage**" in text
    row = next(line for line in text.splitlines() if line.startswith("| equal damage"))
    assert row == (
        "| equal damage | 90% [90%, 90%] | 70% [70%, 70%] | +10% [+10%, +10%] | -5% [-5%, -5%] | 0 of 1 | 0 of 1 "
        "| 3.0% (3.0%) |"
    )
    assert "b (1 of 2 concepts)" in text
    unfinished = "\n".join(placement_scores.together(found, ["a", "d"]))
    assert "No rule is chosen yet, because d has no finished sweep" in unfinished


def test_stored_sweeps_score_as_before_and_grow_by_concept(tmp_path: Path) -> None:
    truth = brute_force.Truth.of(swept(noise=0.5), "brightness")
    facts = {
        "measure": "brightness", "choices": {"middle": "one-to-one 1"}, "left_out": {"alignment": "no words"},
        "costs": {"middle": 3}, "sweep_row_steps": 100, "blocks": {"norm": 0}, "steered": truth.facts(),
        "words": truth.facts(),
    }  # fmt: skip
    one: dict[str, Any] = {"setting": {"every": 1}, "concepts": {"timbre": facts}}
    placement_scores.store({"a": one}, tmp_path)
    before = placement_scores.stored(tmp_path)
    kept = placement_scores.scored("a", "timbre", before["a"]["concepts"]["timbre"], 10)
    names = ["", "one-to-one 1", "", "", ""]
    np.testing.assert_allclose(kept.scores, truth.shares(names, brute_force.HALVINGS), rtol=1e-4)
    assert kept.places["alignment"] == "none: no words"
    assert kept.costs == {"middle": 0.03}
    more = {"setting": {"every": 1}, "concepts": {"tempo": facts}}
    assert placement_scores.joined(before, {"a": more})["a"]["concepts"].keys() == {"timbre", "tempo"}
    other = {"setting": {"every": 2}, "concepts": {"tempo": facts}}
    assert placement_scores.joined(before, {"a": other})["a"]["concepts"].keys() == {"tempo"}
    assert placement_scores.joined(before, {"b": other}).keys() == {"a", "b"}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"READ": 2, "READ_SECONDS": 0.4, "PLACE_SECONDS": 0.4, "CONFIRM": 2}.items():
        monkeypatch.setattr(placement_rules, name, value)
    monkeypatch.setattr("analysis.placement.experiment.SCREEN_SECONDS", 0.4)
    monkeypatch.setattr(placement_scores, "DRAWS", 10)


def test_it_runs_from_start_to_end_and_resumes(
    small: None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: Any) -> str:
        found = CliRunner().invoke(placement_rules.app, list(map(str, arguments)))
        assert found.exit_code == 0, (found.output, found.exception)
        return found.output

    size = ("--prompts", 2, "--seeds", 2, "--seconds", 0.4)
    told = run("cost", checkpoint, *size)
    parts = "sweep 148, doubled strengths up to 52, words 12, confirmed up to 70"
    assert f"at most 282 clips of 0.4 s per concept ({parts})" in told
    asked = ("run", checkpoint, "--out", tmp_path, "--concepts", "timbre", "--jobs", 0, *size)
    # A run that is stopped after the rules goes on from there.
    play = brute_force.sweep.play
    monkeypatch.setattr(brute_force.sweep, "play", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert CliRunner().invoke(placement_rules.app, list(map(str, asked))).exit_code != 0
    (model,) = tmp_path.iterdir()
    choices = json.loads((model / "timbre" / "rules.json").read_text())
    assert choices["choices"]["middle"] == "one-to-one 1"
    evidence = json.loads((model / "timbre" / "evidence.json").read_text())
    assert evidence["blocks"].keys() | evidence["left_out"].keys() == set(placement_scores.EVIDENCE)
    directions = al.Directions.load(model / "timbre" / "directions.safetensors")
    assert evidence["blocks"]["norm"] == int(directions.norms.argmax())
    assert evidence["blocks"]["middle"] == 1
    assert choices["choices"]["equal_damage"] in {
        f"{way} {at}" for way in ("one-to-one", "one-to-all") for at in range(3)
    }
    assert "unsteered clips already fail" in choices["left_out"]["confirmed"]
    assert choices["costs"]["middle"] < choices["costs"]["constancy"] < choices["costs"]["equal_damage"]
    monkeypatch.setattr(brute_force.sweep, "play", play)
    monkeypatch.setattr("analysis.placement.place", lambda *_, **__: pytest.fail("the rules ran again"))
    run(*asked)
    assert len(brute_force.steered_table(model / "timbre", "timbre")) >= 148
    monkeypatch.setattr("audiolens.lens.AudioLens.generate", lambda *_, **__: pytest.fail("a clip was generated"))
    assert "finished before" in run(*asked)
    page = tmp_path / "page.md"
    page.write_text("<!-- rules:begin -->\n<!-- rules:end -->")
    monkeypatch.setattr(placement_rules, "PAGE", page)
    monkeypatch.setattr(placement_rules, "STORED", tmp_path / "stored")
    text = run("report", "--out", tmp_path, "--chosen-on", model.name, "--draws", 10)
    assert f"**{model.name}** (3 blocks; 2 prompts x 2 seeds x 0.4 s):" in text
    assert "| timbre | undetermined" in text
    assert "| highest probe score, one-to-all |" in text
    assert (tmp_path / "placement-rules.md").read_text() in text
    # What was stored gives the same tables without the sweeps.
    run("report", "--out", tmp_path, "--chosen-on", model.name, "--draws", 10, "--update")
    assert run("report", "--out", tmp_path / "none", "--chosen-on", model.name, "--draws", 10) == text
    assert page.read_text() == f"<!-- rules:begin -->\n{text.rstrip()}\n<!-- rules:end -->"
    other = CliRunner().invoke(placement_rules.app, [*map(str, asked), "--every", "2"])
    assert other.exit_code == 2
    assert "states another setting" in " ".join(other.output.replace("│", " ").split())
