"""`audiolens study --paper` follows the paper's protocol, on a MusicGen Melody with random weights.

Random weights make no music, so the tests check what is read, where it is added, and what the folder records.
"""

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHROMA, write_model
from melodies import bare_forward

import audiolens as al
from analysis import cli, study
from analysis.study import study_set
from analysis.study.settings import Settings
from audiolens import prompts
from audiolens.errors import InputError
from audiolens.measure import beats

SIZES = {
    "poles": 6,
    "development": 2,
    "development_seeds": 1,
    "test": 2,
    "test_seeds": 1,
    "n_random": 1,
    "n_shuffled": 1,
    "shown": 1,
    "pairs": 2,
    "frechet": False,
    "n_jobs": 0,
    "engine": "exact",
    "batch_size": 32,
}
LAYERS = range(3)


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny MusicGen Melody whose tokenizer knows every word of the English sets."""
    sets = [prompts.load(concept, "english") for concept in ("tempo", "timbre")]
    texts = [text for one in sets for side in (one.positive, one.negative, one.development, one.test) for text in side]
    words = {word for text in texts for word in re.findall(r"\w+|[^\w\s]+", text)}
    asked = {word for one in sets for word in (*one.positive_words, *one.negative_words, "An", "an", "Fast", "Slow")}
    return write_model(tmp_path_factory.mktemp("paper"), melody=True, words=sorted(words | asked))


@pytest.fixture(scope="module")
def made(english: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder that the command wrote, and what every steered batch was generated with."""
    calls: list[dict[str, Any]] = []
    generate, paper = al.AudioLens.generate, Settings.paper

    def watched(lens: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("interventions"):
            calls.append(options)
        return generate(lens, *arguments, **options)

    out = tmp_path_factory.mktemp("studies") / "tempo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(al.AudioLens, "generate", watched)
        patch.setattr(Settings, "paper", lambda lens, **changes: paper(lens, **{**changes, **SIZES}))
        words = ["study", "tempo", "--model", str(english), "--paper", "--out", str(out), "--seconds", "1"]
        patch.setattr(sys, "argv", ["audiolens", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 0
    return out, calls


@pytest.fixture(scope="module")
def facts(made: tuple[Path, list[dict[str, Any]]]) -> dict[str, Any]:
    return json.loads((made[0] / "summary.json").read_text("utf-8"))


def test_directions_are_the_difference_of_the_texts_last_hidden_states(made: Any, english: Path) -> None:
    lens = al.AudioLens.from_pretrained(english)
    read = al.Directions.load(made[0] / "directions.safetensors", lens=lens)
    assert (read.meta.position, read.meta.source, read.meta.branch) == ("eos", "start", "cond")
    sets, means = prompts.load("tempo", "english"), []
    for side in (sets.positive[:6], sets.negative[:6]):
        states = []
        for prompt in side:
            place = CHROMA + len(lens.tokenizer(prompt)["input_ids"]) - 1
            hidden = bare_forward(lens, [prompt], torch.zeros(1, 4, 1, dtype=torch.long)).hidden_states
            # transformers gives the last block's after the final norm.
            states.append(torch.stack([hidden[layer + 1][0, place] for layer in LAYERS[:-1]]))
        means.append(torch.stack(states).mean(0))
    torch.testing.assert_close(read.vectors[:-1], means[0] - means[1], rtol=1e-3, atol=1e-4)


def test_every_steered_row_gets_one_blocks_vector_at_every_block_in_both_branches(made: Any, facts: Any) -> None:
    out, calls = made
    read = al.Directions.load(out / "directions.safetensors")
    table = pd.read_parquet(out / "clips.parquet")
    controls = table["kind"].isin(["random", "balanced", "other"])
    asked = (("development", ~controls), ("test", ~controls), ("test", controls))
    for call, (split, kinds) in zip(calls, asked, strict=True):
        rows = table[(table["split"] == split) & (table["kind"] != "baseline") & kinds].reset_index(drop=True)
        assert list(rows["asked"]) == list(call["prompts"])
        steps = call["interventions"]
        assert {(type(step), step.site, step.branch, step.prefix, step.seconds) for step in steps} == {
            (al.Add, f"blocks.{layer}.hook_resid_post", "both", False, None) for layer in LAYERS
        }
        assert call["guidance_scale"] == 3.0
        assert set(rows.loc[rows["kind"] != "prompted", "strategy"].dropna()) == {"one-to-all"}
        mine = rows[rows["kind"] == "steered"]
        for row, (source, strength) in zip(mine.index, mine[["layer", "strength"]].to_numpy(), strict=True):
            for layer in LAYERS:
                mine_here = [one for one in steps if one.site == f"blocks.{layer}.hook_resid_post" and row in one.rows]
                (step,) = mine_here
                expected = strength * read[int(source)]
                torch.testing.assert_close(step.vector[list(step.rows).index(row)], expected)
        if split == "development":
            assert {(layer, strength) for layer, strength in mine[["layer", "strength"]].to_numpy()} == {
                (layer, sign * 1.25) for layer in LAYERS for sign in (-1, 1)
            }
    chosen = facts["choice"]
    assert (chosen["strategy"], chosen["strength"]) == ("one-to-all", 1.25)


def test_prompts_are_english_and_neutral(made: Any) -> None:
    table = pd.read_parquet(made[0] / "clips.parquet")
    sets = prompts.load("tempo", "english")
    assert set(table["prompt"]) == {*sets.development[:2], *sets.test[:2]}


def test_the_folder_is_whole_and_names_what_is_not_the_papers(made: Any, facts: Any) -> None:
    out, _ = made
    table = pd.read_parquet(out / "clips.parquet")
    counts = Settings(
        **{**SIZES, "position": "eos", "strengths": {"one-to-all": (1.25,)}, "doses": (0.4, 0.8, 1.0, 1.6)}
    ).clips(3, others=[prompts.load("timbre", "english")])
    assert counts["reading directions"] == 0
    # The sweep of the controls generates the baseline of two test clips again; the table has it once.
    assert len(table) == sum(counts.values()) - 2
    assert facts["settings"]["others"] == ["timbre"]
    assert len(list((out / "audio").glob("*.wav"))) == 1 + 8 + 2
    steered = table[(table["split"] == "test") & (table["kind"] == "steered")]
    assert sorted({abs(strength) for strength in steered["strength"]}) == [0.5, 1.0, 1.25, 2.0]
    assert {"dose_response.svg", "scan.svg", "pca.svg"} <= {file.name for file in (out / "figures").iterdir()}
    page = (out / "index.html").read_text("utf-8")
    assert "the activation at the last token of its text" in page
    assert "--paper" in page
    for part in ("Beat This", "FAD", "own, one hundred per pole"):
        assert part in page.replace("&#39;", "'")
        assert any(part in sentence for sentence in facts["settings"]["substitutes"])
    assert not any("Directions are read" in sentence for sentence in facts["settings"]["substitutes"])


def test_the_preset_is_the_protocol_and_changes_stand_over_it(melody_lens: Any, lens: Any) -> None:
    paper = Settings.paper(melody_lens, seconds=10.0)
    assert (paper.poles, paper.position, paper.branch, paper.seconds) == (100, "eos", "both", 10.0)
    assert dict(paper.strengths) == {"one-to-all": (1.25,)}
    assert paper.blocks(3) == list(range(3))
    assert (paper.n_random, paper.n_shuffled) == (99, 99)
    other = Settings.paper(lens)
    assert other.position == "last"
    assert other.substitutes[0].startswith("Directions are read at the clip's last step")
    assert other.substitutes[1:] == paper.substitutes


def test_what_a_model_cannot_do_is_refused_before_it_runs(
    lens: Any, english: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(al.AudioLens, "generate", lambda *_, **__: pytest.fail("the model ran"))
    with pytest.raises(InputError, match="position='eos'.*cross-attention.*Use 'first' or 'last'"):
        study.run(lens, "tempo", settings=Settings(position="eos"))
    melody = al.AudioLens.from_pretrained(english)
    sets = prompts.load("tempo", "english")
    most = max(len(melody.tokenizer(text)["input_ids"]) for text in (*sets.positive, *sets.negative))
    longest = (128 - CHROMA - most - 3) / 25
    with pytest.raises(InputError, match=rf"seconds=4.7: expected 1 to {longest:g}"):
        study.run(melody, "tempo", settings=Settings(seconds=4.7))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["audiolens", "study", "tempo", "--paper", "--full"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "give only one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


class Tracker:
    """Stands for Beat This, which has to fetch its weights: a beat every 0.4 s."""

    def __init__(self, **_: Any) -> None: ...

    def __call__(self, signal: Any, sr: int) -> tuple[Any, Any]:
        return np.arange(0.0, len(signal) / sr, 0.4), None


def test_beat_this_hears_the_tempo_where_it_is_there(
    english: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package: Any = types.ModuleType("beat_this.inference")
    package.Audio2Beats = Tracker
    monkeypatch.setitem(sys.modules, "beat_this", types.ModuleType("beat_this"))
    monkeypatch.setitem(sys.modules, "beat_this.inference", package)
    beats._tracker.cache_clear()
    lens = al.AudioLens.from_pretrained(english)

    settings = Settings.paper(lens, **{**SIZES, "pairs": 0, "seconds": 2.0})
    try:
        both = study_set.run(lens, ["tempo", "timbre"], tmp_path, settings=settings, progress=False)
    finally:
        beats._tracker.cache_clear()

    found, other = both.studies
    assert found.measure == "tempo_beat_this"
    assert "tempo_beat_this" in other.clips
    assert settings.measure_of("timbre") == "brightness"
    assert not any("Beat This" in sentence for sentence in settings.substitutes)
    heard = pd.read_parquet(tmp_path / "tempo" / "clips.parquet")["tempo_beat_this"].dropna()
    np.testing.assert_allclose(heard, 150)


def test_without_it_the_substitute_is_named_with_the_reason(english: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "beat_this", None)
    beats._tracker.cache_clear()
    settings = Settings.paper(al.AudioLens.from_pretrained(english))
    assert settings.measure_of("tempo") == "tempo_ioi"
    assert any(re.search(r"not by Beat This: .*pip install 'audiolens\[beats\]'", one) for one in settings.substitutes)
