"""The table of étude's abilities, on planted clips with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from audiolens.errors import InputError
from audiolens.etude.attributes import INSTRUMENTS
from audiolens.etude.training import evaluate

MEASURES = [name for names in evaluate.MEASURED_BY.values() for name in names]
N = 30


@pytest.fixture
def planted() -> evaluate.Abilities:
    """Tempo told wholly apart, timbre the wrong way round, the rest at random; each instrument its own cepstrum."""
    rng = np.random.default_rng(0)

    def clips(concept: str, level: str, n: int = N) -> pd.DataFrame:
        frame = pd.DataFrame({name: rng.uniform(1, 2, n) for name in MEASURES})
        frame["concept"], frame["level"], frame["caption"] = concept, level, [f"{level} {i}" for i in range(n)]
        place = INSTRUMENTS.index(level) if level in INSTRUMENTS else rng.integers(len(INSTRUMENTS))
        frame["mfcc"] = pd.Series([np.eye(len(INSTRUMENTS))[place] + 0.1 * rng.standard_normal(4) for _ in range(n)])
        return frame

    named = [clips(concept, level) for concept, levels in evaluate.POLES.items() for level in levels]
    named += [clips("instrument", instrument) for instrument in INSTRUMENTS]
    played = pd.concat([*named, clips("neutral", "")], ignore_index=True)
    played.loc[(played.concept == "tempo") & (played.level == "high"), ["tempo", "tempo_ioi"]] += 5.0
    played.loc[(played.concept == "timbre") & (played.level == "high"), "brightness"] -= 5.0
    reference = pd.concat([clips("", instrument) for instrument in INSTRUMENTS], ignore_index=True)
    reference = reference.sample(frac=1, random_state=0, ignore_index=True)
    reference["label_instrument"] = reference.level
    for concept, (low, high) in evaluate.POLES.items():
        reference[f"label_{concept}"] = rng.choice([low, "mid", high], len(reference))
    return evaluate.Abilities(played, reference)


def test_the_area_is_what_was_planted(planted: evaluate.Abilities) -> None:
    table = planted.to_frame().set_index("measure")
    assert table.auc["tempo"] == table.auc["tempo_ioi"] == 1.0
    assert table.auc["brightness"] == 0.0
    named = planted.clips[planted.clips.concept == "mode"]
    assert table.auc["mode"] == pytest.approx(roc_auc_score(named.level == "major", named["mode"]))
    assert table.high_median["tempo"] - table.low_median["tempo"] == pytest.approx(5.0, abs=0.5)


def test_the_ceiling_is_read_from_the_poles_of_the_reference(planted: evaluate.Abilities) -> None:
    poles = planted.reference[planted.reference.label_loudness.isin(evaluate.POLES["loudness"])]
    expected = roc_auc_score(poles.label_loudness == "high", poles.loudness)
    row = planted.to_frame().set_index("measure").loc["loudness"]
    assert row.ceiling == pytest.approx(expected)
    assert row.difference == pytest.approx(row.auc - expected)


def test_a_clip_without_a_number_counts_half(planted: evaluate.Abilities) -> None:
    fast = planted.clips.index[(planted.clips.concept == "tempo") & (planted.clips.level == "high")]
    planted.clips.loc[fast[: N // 2], "tempo"] = np.nan
    assert planted.to_frame().set_index("measure").auc["tempo"] == pytest.approx(0.75)


def test_instruments_are_told_by_a_classifier_that_never_saw_them(planted: evaluate.Abilities) -> None:
    row = planted.to_frame().set_index("concept").loc["instrument"]
    assert row.auc > 0.95
    assert row.ceiling > 0.95
    planted.clips["mfcc"] = pd.Series([np.zeros(4)] * len(planted.clips))
    assert planted.to_frame().set_index("concept").auc["instrument"] == pytest.approx(0.5)


def test_neutral_clips_are_placed_in_the_reference(planted: evaluate.Abilities) -> None:
    neutral = planted.clips.concept == "neutral"
    planted.clips.loc[neutral, "loudness"] = 10.0
    placed = planted.neutral().set_index("measure")
    assert placed.share_above_reference["loudness"] == 1.0
    assert placed.relative_spread["loudness"] == 0.0
    assert placed.relative_spread["pitch"] == pytest.approx(1.0, abs=0.3)


def test_leaks_are_areas_of_every_measure_between_the_poles_of_every_concept(planted: evaluate.Abilities) -> None:
    timbre = planted.clips.concept == "timbre"
    planted.clips.loc[timbre & (planted.clips.level == "high"), "loudness"] += 5.0
    table = planted.leaks().set_index("concept")
    assert list(table.columns) == MEASURES
    assert table.loudness["timbre"] == 1.0
    named = planted.clips[planted.clips.concept == "mode"]
    assert table.pitch["mode"] == pytest.approx(roc_auc_score(named.level == "major", named.pitch))


def test_synonyms_are_compared_with_trained_words_and_each_with_the_opposite_pole(planted: evaluate.Abilities) -> None:
    unseen = planted.clips[planted.clips.concept != "neutral"].reset_index(drop=True)
    unseen["word"] = [f"{level}-{index % 2}" for index, level in enumerate(unseen.level)]
    slow = (unseen.concept == "tempo") & (unseen.word == "low-0")
    unseen.loc[slow, ["tempo", "tempo_ioi"]] += 9.0
    table = replace(planted, unseen=unseen).synonyms().set_index("measure")
    trained = planted.to_frame().set_index("measure")
    assert table.trained.equals(trained.auc.rename("trained"))
    assert table.ceiling.equals(trained.ceiling)
    # half of the words for slow are played faster than all words for fast
    assert table.held_out["tempo"] == 0.5
    words = dict(part.rsplit(" ", 1) for part in table.by_word["tempo"].split(", "))
    assert words == {"low-0": "0.00", "low-1": "1.00", "high-0": "0.50", "high-1": "0.50"}
    assert table.held_out["classifier"] > 0.95


def test_without_held_out_synonyms_there_is_no_table_of_them(planted: evaluate.Abilities) -> None:
    with pytest.raises(InputError, match="no clips of held-out synonyms"):
        planted.synonyms()


def test_acceptance_is_by_the_limits_of_each_criterion(planted: evaluate.Abilities) -> None:
    table = planted.acceptance().set_index("criterion")
    assert bool(table.met["AUC, tempo by tempo"])
    assert not table.met["AUC, timbre by brightness"]
    ceiling = planted.to_frame().set_index("measure").ceiling["pitch"]
    assert table.needed["AUC, register by pitch"] == f"at least {ceiling - 0.05:.3f}"
    neutral = planted.clips.index[planted.clips.concept == "neutral"]
    middle = planted.reference.loudness.median()
    for above, met in ((0.5, True), (0.6, False)):
        count = round(above * N)
        planted.clips.loc[neutral, "loudness"] = [middle + 1] * count + [middle - 1] * (N - count)
        assert (
            bool(planted.acceptance().set_index("criterion").met["neutral captions, loudness above the median"]) == met
        )
