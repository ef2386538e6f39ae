"""A listening test is blind and level-matched, and its analysis recovers what synthetic listeners prefer."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from command_line import Run
from plants import listening as people
from pyloudnorm import Meter
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from analysis import listening_test
from analysis.listening_test import figures, levels
from analysis.listening_test.agreement import alpha
from analysis.listening_test.design import KEY, RESPONSES, read_key
from analysis.listening_test.intervals import Draws, mean_of
from analysis.study import Study
from audiolens.errors import AudioLensWarning, DamagedError, InputError
from audiolens.files.integrity import sealed_json

TRUTH = {("concept", "positive"): 0.85, ("concept", "negative"): 0.2, ("quality", "positive"): 0.5,
         ("quality", "negative"): 0.25}  # fmt: skip


@pytest.fixture(scope="module")
def study() -> Study:
    return people.study()


@pytest.fixture(scope="module")
def folder(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test with pairs and no responses."""
    return listening_test.write(study, tmp_path_factory.mktemp("pairs") / "test")


@pytest.fixture
def own(folder: Path) -> Any:
    """The same test, without the responses that another test put there."""
    shutil.rmtree(folder / RESPONSES)
    (folder / RESPONSES).mkdir()
    return folder


def sounds(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    return {path.stem: soundfile.read(path) for path in (folder / "page" / "sounds").glob("*.wav")}


def test_no_name_size_or_text_of_the_page_says_which_clip_is_which(folder: Path, study: Study) -> None:
    key, page = read_key(folder), folder / "page"
    assert len(key.trials) == 16 + 3
    assert not (page / KEY).exists()
    files = [path for path in page.rglob("*") if path.is_file()]
    clips = [path for path in files if path.parent.name == "sounds" and path.stem != "volume"]
    assert {path.stem for path in clips} == {name for one in key.trials for name in one.clips}
    assert len({path.stat().st_size for path in clips}) == 1
    assert len({path.read_bytes() for path in clips}) == len(clips) == 2 * 19
    html = (page / "index.html").read_text("utf-8").replace("Which clip is faster?", "")
    secrets = {*study.clips["prompt"], study.concept, *study.poles, study.model, "steered", "positive", "negative"}
    assert not [text for text in secrets if text in html]
    shown = json.loads(html.partition('id="test">')[2].partition("</script>")[0])
    assert [{**one, "trial": "", "clips": len(one["clips"])} for one in shown["trials"]] == 19 * [
        {"trial": "", "clips": 2, "open": None}
    ]
    # The order on the page is random or alphabetical, and each listener gets another one.
    assert all(one["clips"] == sorted(one["clips"]) for one in shown["trials"])
    assert [key.trials[place].prompt for place in range(19)] != sorted(one.prompt for one in key.trials)


def test_clips_of_a_trial_are_equally_loud_and_none_is_clipped(folder: Path) -> None:
    found = sounds(folder)
    loud = {name: Meter(rate).integrated_loudness(samples) for name, (samples, rate) in found.items()}
    apart = [np.ptp([loud[name] for name in one.clips]) for one in read_key(folder).trials]
    assert max(apart) < 0.05
    assert max(np.abs(samples).max() for samples, _ in found.values()) <= levels.PEAK + 2e-4
    assert max(loud.values()) < levels.TARGET_LUFS + 0.05


def test_the_right_answer_of_a_check_is_faster_and_brighter(folder: Path) -> None:
    """Measured in the spectrum: the centroid of the faster clip is twice as high."""
    found = sounds(folder)
    for one in read_key(folder).trials:
        if one.right:
            names = {role: name for name, role in one.clips.items()}
            assert one.right == {"concept": names["right"]}
            centroids = []
            for role in ("right", "wrong"):
                samples, rate = found[names[role]]
                power = np.abs(np.fft.rfft(samples)) ** 2
                centroids.append((power * np.fft.rfftfreq(len(samples), 1 / rate)).sum() / power.sum())
            assert 1.8 < centroids[0] / centroids[1] < 2.2


def test_a_concept_without_an_obvious_answer_is_checked_by_its_quality(study: Study, tmp_path: Path) -> None:
    own_concept = replace(study, concept="warmth", poles=("warm", "cold"))
    folder = listening_test.write(own_concept, tmp_path / "test", pairs=2, checks=1)
    key, found = read_key(folder), sounds(folder)
    assert key.questions["concept"] == "Which clip sounds more warm?"
    (check,) = [one for one in key.trials if one.right]
    names = {role: name for name, role in check.clips.items()}
    assert check.right == {"quality": names["right"]}
    # Between its tones, the clean clip is quieter than the one under noise.
    quietest = {role: np.abs(found[name][0]).reshape(40, -1).max(1).min() for role, name in names.items()}
    assert quietest["right"] < 0.3 * quietest["wrong"]
    with pytest.raises(InputError, match="also ask for quality"):
        listening_test.write(own_concept, tmp_path / "other", pairs=2, questions=["concept"])


def test_thirty_listeners_of_known_bias_are_recovered_within_their_intervals(own: Path) -> None:

    def prefers(question: str, first: str, *_: str) -> float:
        return TRUTH[question, first]

    def opposite(question: str, first: str, *_: str) -> float:
        return 1 - TRUTH[question, first]

    for number in range(33):
        careless = number >= 30
        # The careless also answer the other way round, which would be seen if their answers counted.
        answered = people.chooser(opposite if careless else prefers, number, careless=careless)
        people.send(own, people.response(own, f"listener {number}", answered))
    found = listening_test.read(own, n_bootstrap=120)
    assert isinstance(found, listening_test.Preference)
    table = found.to_frame()
    assert list(table["answers"]) == 4 * [30 * 8]
    assert list(table["listeners"]) == 4 * [30]
    for row, truth in zip(table.to_dict("records"), TRUTH.values(), strict=True):
        assert row["low"] <= truth <= row["high"], row
        assert row["high"] - row["low"] > row["listener_high"] - row["listener_low"]
    assert list((table["low"] > 0.5) | (table["high"] < 0.5)) == [True, True, False, True]
    assert set(found.listeners.loc[~found.listeners["used"], "listener"]) == {f"listener {n}" for n in (30, 31, 32)}
    assert "30 of 33 listeners" in repr(found)
    # With only two comparisons per question, Bradley-Terry strengths are the logits of the shares.
    concept = found.scale[found.scale["question"] == "concept"].set_index("condition")
    wins = found.answers[found.answers["question"] == "concept"].groupby("clip")["value"].sum()
    for clip, k in wins.items():
        assert concept.loc[clip, "strength"] == pytest.approx(np.log((k + 0.5) / (240 - k + 0.5)), abs=1e-6)
        assert concept.loc[clip, "low"] < concept.loc[clip, "strength"] < concept.loc[clip, "high"]
    assert 0.1 < found.agreement["concept"] < 0.6
    assert abs(found.agreement["quality"]) < 0.1


def test_strengths_of_three_conditions_are_those_of_logistic_regression(study: Study, tmp_path: Path) -> None:
    folder = listening_test.write(study, tmp_path / "test", pairs=24, against="both", questions=["concept"], checks=0)
    strength = {"positive": 1.2, "unsteered": 0.0, "negative": -0.7}
    prefers: people.Prefers = lambda _, one, two, __: 1 / (1 + np.exp(strength[two] - strength[one]))  # noqa: E731
    for number in range(12):
        people.send(folder, people.response(folder, str(number), people.chooser(prefers, number)))
    found: Any = listening_test.read(folder, n_bootstrap=100)
    order = ["steered to fast", "unsteered", "steered to slow"]
    rows, y, weights = [], [], []
    for (one, two), group in found.answers.groupby(["clip", "against"])["value"]:
        row = np.zeros(3)
        row[order.index(one)], row[order.index(two)] = 1, -1
        for chosen, n in ((1, group.sum()), (0, len(group) - group.sum())):
            rows.append(row[[0, 2]])
            y.append(chosen)
            weights.append(n + 0.5)
    fit = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-10).fit(rows, y, sample_weight=weights)
    scale = found.scale.set_index("condition")["strength"]
    np.testing.assert_allclose(scale[[order[0], order[2]]], fit.coef_[0], atol=2e-4)
    assert scale["unsteered"] == 0
    ends = found.scale.set_index("condition")[["low", "high"]]
    assert all(ends.loc[name, "low"] < strength[role] < ends.loc[name, "high"]
               for name, role in ((order[0], "positive"), (order[2], "negative")))  # fmt: skip


def test_intervals_cover_when_listeners_and_prompts_differ() -> None:
    """Resampling listeners alone is not enough if prompts differ: the interval for both must still cover."""
    rng, covered = np.random.default_rng(0), np.zeros(2)
    for trial in range(200):
        effect = rng.normal(0, 1.0, 20)[:, None] + rng.normal(0, 1.0, 8)
        values = 3.0 + effect + rng.normal(size=(20, 8))
        found = mean_of(values, np.ones_like(values), Draws.of(20, 8, 200, 0.95, trial))
        covered += [found["low"] <= 3.0 <= found["high"], found["listener_low"] <= 3.0 <= found["listener_high"]]
    assert 0.92 <= covered[0] / 200 <= 1
    assert covered[1] / 200 < 0.85


def test_answers_that_do_not_differ_still_have_an_interval() -> None:
    """Four unanimous listeners and prompts show no more than four answers would (scipy's exact binomial interval)."""
    draws = Draws.of(4, 4, 100, 0.95, 0)
    three_of_four = np.tile([1.0, 1.0, 1.0, 0.0], (4, 1))
    for chosen in (np.ones((4, 4)), np.zeros((4, 4)), three_of_four):
        found = mean_of(chosen, np.ones((4, 4)), draws)
        exact = binomtest(int(chosen[0].sum()), 4).proportion_ci()
        assert (found["listener_low"], found["listener_high"]) == pytest.approx((exact.low, exact.high))
        if np.ptp(chosen) == 0:
            assert (found["low"], found["high"]) == pytest.approx((exact.low, exact.high))
        else:
            assert found["low"] < found["high"]
    rated = mean_of(np.full((4, 4), 75.0), np.ones((4, 4)), draws, (0.0, 100.0))
    exact = binomtest(3, 4).proportion_ci()
    assert (rated["low"], rated["high"]) == pytest.approx((100 * exact.low, 100 * exact.high))


def test_unanimous_answers_have_no_interval_of_strength_and_no_alpha(study: Study, tmp_path: Path) -> None:
    folder = listening_test.write(study, tmp_path / "test", pairs=7, against="opposite", checks=0)

    def never(question: str, *_: str) -> float:
        return float(question == "concept")

    def once(question: str, _first: str, _second: str, prompt: str) -> float:
        return 1.0 if question == "concept" else float(prompt == read_key(folder).trials[0].prompt)

    for number in range(4):
        people.send(folder, people.response(folder, str(number), people.chooser(never if number else once)))
    found: Any = listening_test.read(folder, n_bootstrap=100)
    table: Any = found.table.set_index("question")
    scale: Any = found.scale.set_index(["question", "condition"])
    assert table.loc["concept", "low"] == pytest.approx(0.025**0.25)
    assert "100% [40, 100] (alpha undefined)" in repr(found)
    unanimous, almost = (scale.loc[name, "steered to fast"] for name in ("concept", "quality"))
    # Half an answer makes the strength finite, and its interval would only say how large half an answer is.
    assert unanimous["strength"] == pytest.approx(np.log(28.5 / 0.5))
    assert np.isnan([unanimous["low"], unanimous["high"]]).all()
    assert "all answers to one side" in unanimous["note"]
    # Draws without the only answer for this clip set no lower limit.
    assert almost["low"] == -np.inf < almost["strength"] < almost["high"] < np.inf
    assert almost["note"].startswith("open")
    assert list(scale.loc["concept", "steered to slow"][["low", "high"]]) == [0, 0]


def test_agreement_is_krippendorffs_published_example() -> None:
    """Krippendorff 2011, section C and E: nominal .743, interval .849."""
    lines = ("1 2 3 3 2 1 4 1 2 . . .", "1 2 3 3 2 2 4 1 2 5 . 3", ". 3 3 3 2 3 4 2 2 5 1 .", "1 2 3 3 2 4 4 1 2 5 1 .")
    values = np.array([[float("nan") if one == "." else float(one) for one in line.split()] for line in lines])
    assert round(alpha(values), 3) == 0.743
    assert round(alpha(values, "interval"), 3) == 0.849
    # Nothing differs, so nothing can be said, also where 97.3 is no exact number.
    assert np.isnan([alpha(np.ones((3, 4))), alpha(np.full((7, 9), 97.3), "interval")]).all()


Change = Callable[[dict[str, Any]], object]
REFUSED: dict[str, tuple[Change, str]] = {
    "another test": (lambda one: one.update(test="0" * 16), "answers another test"),
    "another format": (lambda one: one.update(format="x"), "format 'x'"),
    "no consent": (lambda one: one.update(consent=False), "no consent"),
    "a listener with control characters": (lambda one: one.update(listener="a\x1b[2J"), "not allowed"),
    "a listener without end": (lambda one: one.update(listener="a" * 100_000), "1 to 64 characters"),
    "no listener": (lambda one: one.pop("listener"), "lacks"),
    "a number as listener": (lambda one: one.update(listener=7), "expected text"),
    "half of the trials": (lambda one: one.update(answers=one["answers"][:9]), "9 of 19 trials"),
    "a trial twice": (lambda one: one["answers"].append(one["answers"][0]), "expected each trial once"),
    "an unknown clip": (lambda one: one["answers"][0]["answers"].update(concept="../key"), "not in the trial"),
    "an unknown question": (lambda one: one["answers"][0]["answers"].update(x="y"), "other questions"),
    "no answer": (lambda one: one["answers"][0]["answers"].clear(), "other questions"),
    "an endless time": (lambda one: one["answers"][0].update(seconds=float("inf")), "endless time"),
    "a list instead of text": (lambda one: one["answers"][0].update(order=[["a"]]), "expected text"),
    "a text too long": (lambda one: one.update(started="x" * 200_000), "characters"),
    "a file too large": (lambda one: one.update(more=["x" * 1000] * 3000), "too large"),
}  # fmt: skip


def test_what_does_not_belong_to_the_test_is_refused_and_the_rest_is_used(own: Path) -> None:
    answered = people.chooser(lambda *_: 0.5)
    good = people.response(own, "good", answered)
    people.send(own, good)
    people.send(own, good, "good again")
    people.send(own, people.response(own, "two", answered), "two a")
    people.send(own, people.response(own, "two", people.chooser(lambda *_: 0.5, 1)), "two b")
    for name, (change, _) in REFUSED.items():
        bad = json.loads(json.dumps(good))
        change(bad)
        people.send(own, bad, name)
    place = own / RESPONSES
    (place / "nested.json").write_text("[" * 100_000)
    (place / "text.json").write_bytes(b"\xff\xfe no JSON")
    (place / "twice.json").write_text('{"test": 1, "test": 2}')
    (place / "folder").mkdir()
    (place / "link.json").symlink_to(place / "good.json")
    found = listening_test.read(own, n_bootstrap=20)
    reasons = {one.file: one.reason for one in found.refused}
    assert list(found.listeners["listener"]) == ["good"]
    assert reasons["good.json"] == "it repeats good again.json, and counts once." or "good again.json" in reasons
    assert "several different responses" in reasons["two a.json"]
    assert reasons.keys() >= {"two b.json", "nested.json", "text.json", "twice.json", "folder", "link.json"}
    for name, (_, message) in REFUSED.items():
        assert message in reasons[f"{name}.json"], name
    assert all(len(reason) < 400 and "\n" not in reason and "\x1b" not in reason for reason in reasons.values())


def test_only_invited_listeners_count_and_a_changed_key_is_refused(study: Study, tmp_path: Path) -> None:
    folder = listening_test.write(study, tmp_path / "test", pairs=2, checks=0, listeners=["ann", "ben"])
    assert 'id="code"' in (folder / "page" / "index.html").read_text("utf-8")
    assert "ann" not in (folder / "page" / "index.html").read_text("utf-8")
    for name in ("ann", "eve"):
        people.send(folder, people.response(folder, name, people.chooser(lambda *_: 1)))
    found: Any = listening_test.read(folder, n_bootstrap=20)
    assert list(found.listeners["listener"]) == ["ann"]
    assert [one.reason for one in found.refused] == ["listener 'eve' was not invited to this test."]
    # One listener has no interval over listeners.
    assert found.table["low"].isna().all()
    path = folder / KEY
    whole = json.loads(path.read_text())
    path.write_text(path.read_text().replace('"positive"', '"negative"'))
    with pytest.raises(DamagedError, match="not what was written"):
        listening_test.read(folder)
    del whole["sha256"]
    for change in (
        lambda one: one.update(trials=[]),
        lambda one: one.update(mode="abx"),
        lambda one: one["trials"][0].update(clips={"a": "positive", "b": "positive"}),
        lambda one: one["trials"][0].update(right={"no question": "a"}),
        lambda one: one["trials"].append(one["trials"][0]),
    ):
        changed = json.loads(json.dumps(whole))
        change(changed)
        path.write_bytes(sealed_json(changed))
        with pytest.raises(DamagedError, match="its trials are not those of a listening test"):
            listening_test.read(folder)


def test_ratings_recover_means_and_screen_listeners(study: Study, tmp_path: Path) -> None:
    folder = listening_test.write(study, tmp_path / "test", mode="mushra", anchor_hz=400)
    key = read_key(folder)
    assert len(key.trials) == 8
    for one in key.trials:
        assert sorted(one.clips.values()) == ["anchor", "negative", "positive", "reference"]
        assert one.open not in one.clips
    means = {"reference": 97.0, "positive": 70.0, "negative": 55.0, "anchor": 30.0}
    for number in range(15):
        people.send(folder, people.response(folder, f"good {number}", people.rater(means, number)))
    deaf = {**means, "reference": 60.0}
    fond = {**means, "anchor": 97.0}
    for number, other in enumerate((deaf, fond)):
        people.send(folder, people.response(folder, f"bad {number}", people.rater(other)))
    found: Any = listening_test.read(folder, n_bootstrap=300)
    assert isinstance(found, listening_test.Ratings)
    assert "with the 90% interval" in figures._words(replace(found, confidence=0.9), "mean rating")
    assert not found.listeners.set_index("listener").loc[["bad 0", "bad 1"], "used"].any()
    table = found.table.set_index("condition")
    for label, role in (("steered to fast", "positive"), ("steered to slow", "negative"), ("anchor", "anchor")):
        row = table.loc[label]
        assert row["low"] <= means[role] <= row["high"]
        assert row["difference"] == pytest.approx(row["mean"] - table.loc["hidden reference", "mean"])
        assert row["difference_high"] < 0
    assert found.agreement > 0.8
    assert found.plot() is not None
    assert found.figure() is not None
    with pytest.raises(InputError, match="most_failed=1 goes with a test of pairs"):
        listening_test.read(folder, most_failed=1)
    bad = people.response(folder, "nan", people.rater(means))
    bad["answers"][0]["ratings"] = dict.fromkeys(bad["answers"][0]["ratings"], float("nan"))
    people.send(folder, bad)
    assert "outside 0 to 100" in listening_test.read(folder, n_bootstrap=20).refused[-1].reason


def test_an_anchor_lacks_what_is_above_its_cutoff() -> None:
    noise = np.random.default_rng(0).normal(size=(1, 32_000)).astype(np.float32)
    low = levels.low_passed(noise, 16_000, 3500.0)
    hertz = np.fft.rfftfreq(32_000, 1 / 16_000)
    ratio = np.abs(np.fft.rfft(low[0])) ** 2 / np.abs(np.fft.rfft(noise[0])) ** 2
    assert np.median(ratio[hertz > 5000]) < 1e-3
    assert abs(np.median(ratio[hertz < 2500]) - 1) < 1e-2
    assert abs(levels.removed_share(noise, low) - (1 - 3500 / 8000)) < 0.03


def test_silent_clips_are_left_out_and_counted(study: Study, tmp_path: Path) -> None:
    first = next(iter(study.sounds))
    silent = {**study.sounds, first: 0 * study.sounds[first]}
    with pytest.warns(AudioLensWarning, match="2 comparisons were left out"):
        folder = listening_test.write(replace(study, sounds=silent), tmp_path / "test", pairs=6)
    key = read_key(folder)
    assert (key.left_out, sum(not one.right for one in key.trials)) == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": 60}, "60 pairs need 30 prompts x seeds, and this study kept the sound of 8"),
        ({"mode": "abx"}, "mode='abx'"),
        ({"against": "all"}, "against='all'"),
        ({"questions": ["loudness"]}, "expected concept, quality, or both"),
        ({"questions": []}, "expected concept, quality, or both"),
        ({"mode": "mushra", "anchor_hz": 8000}, "expected less than 8000"),
        ({"anchor_hz": 400.0}, "anchor_hz=400.0 goes with mode='mushra', not 'pairs': pairs have no anchor"),
        ({"mode": "mushra", "against": "both"}, "against='both' goes with mode='pairs', not 'mushra'"),
        ({"mode": "mushra", "questions": ["quality"]}, "ratings are always of quality"),
        ({"mode": "mushra", "checks": 0}, "checks=0 goes with mode='pairs'"),
        ({"model": "etude"}, "model='etude' goes with the folder of a study"),
        ({"listeners": ["a", "a"]}, "each once"),
        ({"listeners": ["a\x1b"]}, "not allowed"),
        ({"consent": "x" * 30_000}, "at most 20,000"),
    ],
)
def test_a_test_that_cannot_be_made_is_refused(
    study: Study, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        listening_test.write(study, tmp_path / "test", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--read test --mode pairs", "--mode pairs: only writing a test needs it"),
        ("--read test --pairs 16", "--pairs 16: only writing"),
        ("--read test --against both", "--against both: only writing"),
        ("--read test --ask quality", "--ask quality: only writing"),
        ("--read test --checks 0", "--checks 0: only writing"),
        ("--read test --anchor-hz 400", "--anchor-hz 400.0: only writing"),
        ("study -o out --most-failed 0", "--most-failed 0 goes with --read FOLDER"),
        ("study -o out --anchor-hz 400", "--anchor-hz 400.0 goes with --mode mushra, not pairs: pairs have no anchor"),
        ("study -o out --mode mushra --ask quality", "--ask quality goes with --mode pairs, not mushra: ratings are"),
        ("study -o out --mode mushra --checks 0", "--checks 0 goes with --mode pairs, not mushra: ratings are"),
        ("study -o out --mode mushra --against both", "--against both goes with --mode pairs, not mushra: ratings"),
    ],
)
def test_an_option_that_would_change_nothing_is_refused(run: Run, tmp_path: Path, options: str, message: str) -> None:
    """Neither folder exists, and the line is about the option: it is refused before anything is read."""
    code, _, err = run("listen-test", *options.split())
    assert (code, err.count("\n")) == (2, 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_whole_result_to_files_and_json(own: Path, run: Run, tmp_path: Path) -> None:
    for name, chance in (("one", 1.0), ("two", 0.5)):
        people.send(own, people.response(own, name, people.chooser(lambda *_, chance=chance: chance)))
    (own / RESPONSES / "text.json").write_text("none")
    code, out, err = run("listen-test", "--read", own, "-o", "found")
    assert (code, err.count("\n")) == (0, 1)
    assert "text.json was not used" in err
    assert "steered to fast" in out
    place = tmp_path / "found"
    assert {path.name for path in place.iterdir()} >= {"listening.csv", "listening.png"}
    found: Any = listening_test.read(own)
    code, out, _ = run("listen-test", "--read", own, "--json")
    facts = json.loads(out)
    assert (facts["model"], facts["left_out"]) == (found.model, 0)
    alphas = pd.DataFrame({"question": [*found.agreement], "alpha": [*found.agreement.values()]})
    refused = pd.DataFrame({"file": ["text.json"], "reason": [found.refused[0].reason]})
    for name, file, table in (
        ("rows", "listening", found.table), ("scale", "scale", found.scale), ("agreement", "agreement", alphas),
        ("answers", "answers", found.answers), ("listeners", "listeners", found.listeners),
        ("refused", "refused", refused),
    ):  # fmt: skip
        # JSON has no infinity, which an open end of a strength is.
        finite = table.replace([np.inf, -np.inf], np.nan)
        shown = pd.DataFrame(facts[name], columns=table.columns).fillna(np.nan)
        pd.testing.assert_frame_equal(shown, finite, check_dtype=False)
        stored = pd.read_csv(
            place / f"{file}.csv", keep_default_na=False, na_values={"low": "", "high": "", "alpha": ""}
        )
        pd.testing.assert_frame_equal(stored, table, check_dtype=False)
