"""Claims hold where their numbers say so, pages say what is stored, and the README quotes only what holds in most."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import concepts
import numpy as np
import pandas as pd
import pytest
import selectivity
import torch
from conftest import benchmark_script
from plants import tables as planted
from replication import estimates, further, measuring, page
from replication.claims import CLAIMS, TOPICS
from replication.estimates import Estimate, changes, quotient, steered
from replication.page import Measured
from replication.sizes import Sizes

from analysis.pooling import pooled
from audiolens import prompts
from audiolens.directions.samples import Samples
from audiolens.errors import InputError

ROOT = Path(__file__).parents[2]
_QUOTED = re.compile(r"docs/claims\.md#([\w-]+)")
_ROW = re.compile(r'^\| <a id="([\w-]+)"></a>[^|]*\|[^|]*\| (?:(\d+) of (\d+)|–) \|', re.MULTILINE)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimates, "DRAWS", 60)
    monkeypatch.setattr(further, "_AGAIN", 20)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return benchmark_script("claims")


def model_of(numbers: Mapping[str, Estimate], prefix: bool = False) -> Measured:
    sizes = {"seconds": 5.0, "test": 16, "test_seeds": 3, "controls": 49}
    facts = {"name": "planted", "weights": "0123456789abcdef", "blocks": 8, "width": 192, "prefix": prefix}
    return Measured(facts, {"studies": sizes}, numbers)


def fast(value: float, low: float, high: float, failed: float = 0.0) -> Measured:
    return model_of({"effect/tempo/fast": Estimate(value, low, high, stderr=0.1, failed=failed)})


def misquoted(readme: str, claims: str) -> list[str]:
    """The claims that a page quotes, by a link to their row, although they do not hold in most of the models."""
    held = {name: (int(a or 0), int(b or 0)) for name, a, b in _ROW.findall(claims)}
    return [
        name for name in _QUOTED.findall(readme)
        if name not in CLAIMS or (held and not (held.get(name, (0, 0))[1] > 1 and 2 * held[name][0] > held[name][1]))
    ]  # fmt: skip


def test_the_readme_quotes_only_claims_that_hold_in_most_models() -> None:
    assert not misquoted((ROOT / "README.md").read_text("utf-8"), (ROOT / "docs/claims.md").read_text("utf-8"))


def test_a_quotation_is_refused_unless_most_models_bear_it_out() -> None:
    models = {"etude": fast(0.7, 0.4, 1.0), "etude-2": fast(0.5, 0.2, 0.9), "etude-3": fast(0.1, -0.2, 0.4)}
    text = page.page(models)
    assert dict((name, (a, b)) for name, a, b in _ROW.findall(text))["tempo-fast"] == ("2", "3")
    quoting = "[faster](docs/claims.md#tempo-fast)"
    assert misquoted(quoting, text) == []
    assert misquoted(quoting, page.page({**models, "etude": fast(0.1, -0.2, 0.4)})) == ["tempo-fast"]
    assert misquoted(quoting, page.page({"etude": models["etude"]})) == ["tempo-fast"]
    assert misquoted(quoting.replace("fast", "slow"), text) == ["tempo-slow"]
    assert misquoted("[louder](docs/claims.md#volume)", "nothing measured") == ["volume"]


def test_the_pages_say_what_is_stored(script: ModuleType) -> None:
    found = script.stored()
    for path, (mark, written) in script.PAGES.items():
        text = path.read_text("utf-8")
        assert f"<!-- {mark}:begin -->\n{written(found)}<!-- {mark}:end -->" in text, path.name


def test_a_row_counts_pools_and_spreads_over_the_models_that_were_measured() -> None:
    values = {"etude-2": 0.7, "etude-3": 0.5, "etude-plain": 0.9}
    models = {name: fast(value, 0.2, 1.2) for name, value in values.items()}
    row = page.rows({**models, "etude-deep": model_of({})}, TOPICS[0])[0]
    assert (row.claim.id, row.holding, len(row.known), row.in_most) == ("tempo-fast", 3, 3, True)
    both = pooled(np.log1p([*values.values()]), [0.1] * 3)
    assert row.pooled is not None
    assert row.pooled == both
    assert row.between_seeds == pytest.approx(np.std(np.log1p([0.7, 0.5]), ddof=1))
    cells = row.cells([*models, "etude-deep"])
    assert cells[:2] == ["3 of 3", "✓ +70% [+20%, +120%]"]
    assert cells[4] == "–"
    assert cells[5].startswith(f"{math.expm1(both.value):+.0%} [{math.expm1(both.low):+.0%}")
    text = page.page(models)
    assert "Not yet measured: etude, etude-melody, etude-deep." in text
    for block in text.split("\n\n"):
        assert len({line.count("|") for line in block.splitlines() if line.startswith("|")}) <= 1


MOVES = {"effect/tempo/fast": Estimate(0.5, 0.1, 0.9), "effect/tempo/slow": Estimate(-0.1, -0.3, 0.1)}
"""Steering that makes clips faster, but not slower."""


@pytest.mark.parametrize(
    ("claim", "numbers", "holds"),
    [
        ("tempo-fast", {"effect/tempo/fast": Estimate(0.5, 0.1, 0.9, failed=0.05)}, True),
        ("tempo-fast", {"effect/tempo/fast": Estimate(0.5, 0.1, 0.9, failed=0.2)}, False),
        ("tempo-slow", {"effect/tempo/slow": Estimate(0.5, 0.1, 0.9)}, False),
        ("tempo-slow", {"effect/tempo/slow": Estimate(math.nan)}, False),
        ("call-organ-organ", {"called/organ": Estimate(0.1, note="is rejected")}, False),
        ("call-organ-organ-words", {"called/organ": Estimate(0.1, note="is rejected")}, False),
        ("tempo-fast-loudness", {**MOVES, "shared/tempo/fast/loudness": Estimate(-0.9, unit="dB")}, True),
        ("tempo-slow-loudness", {**MOVES, "shared/tempo/slow/loudness": Estimate(-0.9, unit="dB")}, False),
        ("tempo-fast-pitch", {**MOVES, "shared/tempo/fast/pitch": Estimate(-0.2)}, False),
        ("tempo-fast-words", {**MOVES, "over-words/tempo/fast": Estimate(0.1)}, True),
        ("tempo-slow-words", {**MOVES, "over-words/tempo/slow": Estimate(0.1)}, False),
        ("codes-tempo", {**MOVES, "span/own/tempo": Estimate(0.3, 0.1, 0.5)}, False),
        ("codes-tempo", {**MOVES, "span/own/tempo": Estimate(-0.3, -0.5, -0.1)}, True),
        ("prompts-tempo", {"prompts-25/tempo": Estimate(0.8), "prompts-more/tempo": Estimate(0.9)}, False),
        ("placed-most", {"placed/tempo": Estimate(0.95), "placed/timbre": Estimate(0.5)}, False),
        ("block-timbre", {"best-block/timbre": Estimate(1.0, unit="depth")}, False),
        ("paper-falls-tempo", {"paper-falls/fast": Estimate(2.0), "paper-falls/slow": Estimate(math.nan)}, True),
        ("paper-falls-tempo", {"paper-falls/fast": Estimate(1.25), "paper-falls/slow": Estimate(2.0)}, False),
    ],
)
def test_a_claim_holds_when_it_says_so(claim: str, numbers: dict[str, Estimate], holds: bool) -> None:
    found = CLAIMS[claim].verdict(numbers)
    assert found is not None
    assert found.holds is holds
    assert CLAIMS[claim].verdict({}) is None


@pytest.mark.parametrize(
    ("p", "rivals", "low", "holds"),
    [(0.04, 0, 0.1, True), (0.06, 0, 0.1, False), (0.04, 1, 0.1, False), (0.04, 0, -0.1, False)],
)
def test_beyond_controls_needs_rank_no_rival_and_an_effect(p: float, rivals: int, low: float, holds: bool) -> None:
    numbers = {
        "controls/tempo/fast": Estimate(p, unit="p"), "rivals/tempo/fast": Estimate(float(rivals)),
        "effect/tempo/fast": Estimate(0.5, low, 0.9),
    }  # fmt: skip
    found = CLAIMS["tempo-fast-controls"].verdict(numbers)
    assert found is not None
    assert found.holds is holds


def clips(values: list[float], failed: int = 0) -> pd.DataFrame:
    n = len(values)
    rows = {"prompt": [f"tune {at // 2}" for at in range(n)], "seed": range(n), "brightness": values}
    return pd.DataFrame({**rows, "failed": [at < failed for at in range(n)]})


def test_effects_are_medians_of_pairs_and_a_failed_clip_has_none() -> None:
    before = clips([100.0, 200.0, 100.0, 100.0])
    found = steered(clips([200.0, 400.0, 150.0, 300.0], failed=1).iloc[::-1], before, "brightness")
    assert found.value == pytest.approx(0.75)
    assert found.failed == 0.25
    assert found.low <= found.value <= found.high
    assert 0 < found.stderr < 1
    asked = clips([110.0, 220.0, 110.0, 110.0])
    apart = changes(asked, before, "brightness").minus(changes(before, before, "brightness"), sign=-1.0)
    assert apart.value == pytest.approx(1 / 1.1 - 1)
    assert quotient(np.array([2.0, 4.0]), np.array([1.0, 2.0]), np.array(["a", "b"])).value == pytest.approx(2.0)
    assert math.isnan(steered(before, clips([math.nan] * 4), "brightness").value)


def test_a_direction_from_few_prompts_is_as_noisy_as_its_number_says() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(400) < 200
    values = 4 * torch.randn(1, 400, 64, generator=rng) + torch.where(labels[:, None], 1.0, -1.0)
    few, more = measuring.enough(Samples(values, labels, (0,), tuple(map(str, range(400)))), 0)
    # The difference of means is (2, ..., 2) plus noise of variance 16 x 2 / n per component.
    share = [1 / math.sqrt(1 + 32 / n / 4) for n in (25, 100)]
    assert (few, more) == pytest.approx((share[0] * share[1], share[1] ** 2), abs=0.03)
    small = Samples(values[:, 180:220], labels[180:220], (0,), ("",) * 40)
    assert math.isnan(measuring.enough(small, 0)[1])


def test_names_and_sizes_are_read_or_refused(script: ModuleType) -> None:
    assert script.named("etude, etude-2=runs/x") == {"etude": "etude", "etude-2": "runs/x"}
    assert script.sized(Sizes(), "test=8,doses=0.5:1") == Sizes(test=8, doses=(0.5, 1.0))
    for wrong in ("tset=8", "test", "test=many"):
        with pytest.raises(script.typer.BadParameter, match="sizes"):
            script.sized(Sizes(), wrong)
    with pytest.raises(script.typer.BadParameter, match="models"):
        script.named("etude,etude=x")
    assert sum(Sizes().clips(8, False).values()) < 18_000 < sum(Sizes.full().clips(8, False).values())


@pytest.fixture(scope="module")
def study() -> Any:
    """A study with known effects: one-to-all moves tempo twice as far, and every control does nothing."""
    return replace(planted.study(), directions=planted.sampled(60))


def test_a_study_gives_its_effects_and_what_they_are_compared_with(study: Any) -> None:
    numbers = measuring.of_study(study)
    fast, slow = study.outcomes
    for outcome in (fast, slow):
        found = numbers[f"effect/tempo/{outcome.pole}"]
        assert (found.value, found.failed) == (pytest.approx(outcome.effect), outcome.failed)
        assert numbers[f"words/tempo/{outcome.pole}"].value == pytest.approx(outcome.prompted)
        assert numbers[f"controls/tempo/{outcome.pole}"].value == outcome.p_corrected
    for outcome, sign in ((fast, 1), (slow, -1)):
        here = study.clips[(study.clips["kind"] == "steered") & (study.clips["strength"] == outcome.strength)]
        here = here[here["split"] == "test"].set_index(["prompt", "seed"])["tempo_ioi"]
        asked = study.clips[study.clips["pole"] == outcome.pole]
        asked = asked[asked["kind"] == "prompted"].set_index(["prompt", "seed"])["tempo_ioi"]
        naive = np.median([sign * math.log(here[key] / asked[key]) for key in here.index])
        assert numbers[f"over-words/tempo/{outcome.pole}"].value == pytest.approx(math.expm1(naive))
    # Between the poles, the chosen strategy spans exp(.8), and the other half as much at the same strength.
    (other,) = study.alternatives
    sign = 1 if study.choice.strategy == "one-to-all" else -1
    apart = sign * 0.8 * (1 - 0.5 * other.strength / study.choice.strength)
    assert numbers["strategies/tempo"].scaled == pytest.approx(apart, abs=0.1)
    assert numbers["place/tempo"].note == f"{study.choice.strategy} {study.choice.layer}"
    assert CLAIMS["prompts-tempo"].verdict(numbers) is not None


def test_the_best_block_and_the_share_of_a_place_come_from_a_sweep(study: Any) -> None:
    tried = study.clips[study.clips["split"] == "development"].reset_index(drop=True)
    best = f"{study.choice.strategy} {study.choice.layer}"
    numbers = further.of_truth(further.Truth.of(tried, "tempo_ioi"), "tempo", best, "one-to-one 7", 8)
    assert numbers["best-block/tempo"].value == pytest.approx(study.choice.layer / 7)
    assert numbers["best-block/tempo"].stderr >= 1 / 7 / math.sqrt(12)
    assert numbers["placed/tempo"].value > 0.8 > 0.5 > numbers["middle/tempo"].value


def test_the_papers_protocol_is_told_with_the_strength_at_which_quality_falls(study: Any) -> None:
    lost = study.side_effects.copy()
    steered_there = (lost["kind"] == "steered") & (lost["strength"] == study.choice.strength)
    lost.loc[steered_there, "failed"] = 0.5
    numbers = further.of_paper(replace(study, side_effects=lost), 8)
    assert numbers["paper-falls/fast"].value == study.choice.strength
    assert math.isnan(numbers["paper-falls/slow"].value)
    assert numbers["paper-source/tempo"].value == pytest.approx(study.choice.layer / 7)
    assert numbers["paper-median/fast"].value == study.outcomes[0].median
    timbre = {f"paper-{kind}/{pole}": Estimate(1.0) for kind in ("median", "falls") for pole in ("bright", "dark")}
    timbre |= {f"paper/{pole}": Estimate(1.0) for pole in ("bright", "dark")} | {"paper-source/timbre": Estimate(0.2)}
    text = page.paper({"etude-melody": model_of({**numbers, **timbre}, prefix=True)})
    assert f"| fast | 176.0 BPM | {study.outcomes[0].median:,.1f} BPM | +30.1% |" in text
    here = f"{study.choice.strength:g}"
    assert numbers[f"paper-dose/fast/{here}"] == numbers["paper/fast"]
    assert f"| {here} | {page.shown(numbers['paper/fast'])} | {page.shown(numbers['paper/slow'])} | – | – |" in text


def heard(todo: list[Any], factor: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clips of conditions with a known effect on tempo, and their scores: steering doubles the drift of other seeds."""
    table = planted.heard(todo, factor, prompts=prompts.load("tempo").test[:6], seeds=2, noise=0.02)
    table = table.assign(ltas_centroid=table["brightness"])
    drift = {"baseline": 0.0, "other seeds": 0.1}
    scored = table[["condition", "prompt", "seed"]].assign(
        nats=[2 + drift.get(name, 0.2) for name in table["condition"]],
        instrument=["organ" if "organ" in name else "bells" for name in table["condition"]],
    )
    return table, scored


def test_readings_are_compared_at_one_place_with_words_and_other_seeds() -> None:
    place = selectivity.Place("one-to-one", 3, 1.0)
    read = {"shared": planted.directions(), "own": planted.directions(seed=1)}
    todo = selectivity.baselines()
    for concept in ("tempo", "timbre"):
        todo += selectivity.conditions(prompts.load(concept), read, place)
    sizes = {"words": 0.4, "shared": 0.4, "own": 0.2}

    def factor(labels: dict[str, Any]) -> float:
        size = sizes.get(labels["way"], 0.0) if labels["concept"] == "tempo" else 0.0
        return math.exp(size * np.sign(labels["strength"]))

    numbers = measuring.of_readings(*heard(todo, factor))
    assert numbers["shared/tempo/slow/tempo_ioi"].value == pytest.approx(math.expm1(-0.4), abs=0.03)
    assert numbers["shared/timbre/dark/tempo_ioi"].value == pytest.approx(0.0, abs=0.03)
    assert numbers["span/own/tempo"].value == pytest.approx(math.expm1(-0.4), abs=0.03)
    assert numbers["shared/tempo/fast/drift"].value == pytest.approx(2.0)
    assert numbers["shared/tempo/fast/instruments"].value == 0.0
    effects = {"effect/tempo/fast": Estimate(0.5, 0.2, 0.9), "effect/tempo/slow": Estimate(-0.3, -0.5, -0.1)}
    judged = {name: CLAIMS[name].verdict({**effects, **numbers}) for name in ("codes-tempo", "tempo-fast-drift")}
    assert [one is not None and one.holds for one in judged.values()] == [True, False]


def test_one_call_is_told_for_measures_and_for_instruments_and_a_rejected_place_is_not_steered() -> None:
    todo, places = [concepts.baseline()], {}
    for concept, rejected in (("tempo", ""), ("organ", ""), ("mode", "is rejected")):
        places[concept] = concepts.Place(concept, "one-to-one 3", "one-to-one", 3, 0.5, 1.0, 1.0, rejected, 64, "")
        todo += concepts.conditions(prompts.load(concept), places[concept], planted.directions())
    assert {one.name.split()[0] for one in todo if "mode" in one.name} == {"words"}

    def factor(labels: dict[str, Any]) -> float:
        return 2.0 if (labels["way"], labels["pole"]) == ("steering", "fast") else 1.0

    table, scored = heard(todo, factor)
    scored["instrument"] = ["organ" if "organ organ" in name else "bells" for name in scored["condition"]]
    numbers = further.of_calls(table.assign(onset_rate=1.0), scored)
    assert numbers["called/tempo/fast"].value == pytest.approx(1.0, abs=0.05)
    assert numbers["called-over-words/tempo/fast"].value == pytest.approx(1.0, abs=0.05)
    assert (numbers["called/organ/organ"].value, numbers["called/organ/others"].value) == (1.0, 0.0)
    assert "called/mode/major" not in numbers
    told = {"called/mode": Estimate(0.2), **numbers}
    found = CLAIMS["call-mode-major"].verdict(told)
    assert found is not None
    assert (found.holds, found.instead) == (False, "rejected")


def test_a_stage_is_kept_and_refuses_the_numbers_of_other_weights(lens: Any, melody_lens: Any, tmp_path: Path) -> None:
    model = measuring.Model("etude", lens, tmp_path, Sizes(), tell=lambda _: None)
    made = []

    def make() -> tuple[dict[str, Estimate], str]:
        made.append(1)
        return {"effect/tempo/fast": Estimate(0.5, math.nan, 0.9)}, "more"

    for _ in range(2):
        numbers, more = model.kept("studies", ("test",), make)
        assert (more, numbers["effect/tempo/fast"].high) == ("more", 0.9)
        assert math.isnan(numbers["effect/tempo/fast"].low)
    assert len(made) == 1
    replace(model, sizes=Sizes(controls=19)).kept("studies", ("test",), make)
    assert len(made) == 1
    replace(model, sizes=Sizes(test=8)).kept("studies", ("test",), make)
    assert len(made) == 2
    with pytest.raises(InputError, match="numbers of another model that was named 'etude'"):
        replace(model, lens=melody_lens).kept("studies", ("test",), make)


def test_numbers_are_stored_with_few_digits_and_read_back(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "STORED", tmp_path)
    script.store({"etude": fast(1 / 3, 0.1, 0.9)})
    found = script.stored()["etude"].numbers["effect/tempo/fast"]
    assert (found.value, found.low, found.unit) == (0.333333, 0.1, "ratio")
