"""A study's settings are written as TOML and read back as they were, and any of them can be set by name."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Run, run  # noqa: F401
from plants import tables as planted

from analysis.study import Settings, Study, config, load_arguments
from audiolens import prompts
from audiolens.errors import InputError
from audiolens.model.provenance import prompts_hash


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings.full(codes="own", seed=3),
        Settings(top_k=None, measured_by={"tempo": "tempo"}, substitutes=('a "b" ü\\n', "none")),
        Settings(
            seconds=np.float32(4.3),
            seed=np.int64(1),
            top_k=np.int32(9),
            verify=np.bool_(True),
            doses=[Fraction(1, 2), np.array(1.0)],
            strengths={"one-to-one": [np.float32(0.3)]},
            position=[0.5, 1.5],
        ),
    ],
)
def test_settings_are_read_as_they_were_written(settings: Settings, tmp_path: Path) -> None:
    study = replace(planted_study(), settings=settings, model='a "model"')
    path = tmp_path / config.FILE
    path.write_text(config.text_of(study), "utf-8")
    found = config.read(path)
    assert (found.concept, found.model) == ("tempo", 'a "model"')
    assert asdict(Settings(**found.settings)) == asdict(settings)
    assert repr(Settings(**found.settings)) == repr(settings)


def planted_study(sets: prompts.PromptSet | None = None, neutral: Mapping[str, str] | None = None) -> Study:
    """A planted study that records the prompts of a set, by default the bundled ones."""
    found, sets = planted.study(), sets or prompts.load("tempo")
    meta = replace(
        found.directions.meta, n_prompts=(24, 24), prompts=prompts_hash(sets.positive[:24], sets.negative[:24])
    )
    clips = found.clips.assign(prompt=found.clips["prompt"].replace(neutral or {}))
    return replace(found, directions=replace(found.directions, meta=meta), clips=clips)


def test_a_concept_is_named_only_if_its_name_gives_the_same_prompts() -> None:
    bundled = prompts.load("tempo")
    english = prompts.load("tempo", "english")
    for sets, neutral, named in (
        (bundled, {}, True),
        # Its neutral prompts are those of étude.
        (english, {}, False),
        (bundled.opposite, {}, False),
        (replace(bundled, positive=bundled.positive[1:], negative=bundled.negative[1:]), {}, False),
        (bundled, {bundled.test[0]: "my own prompt"}, False),
    ):
        text = config.text_of(planted_study(sets, neutral))
        assert ('concept = "tempo"' in text) is named
        assert 'model = "planted"' in text


def test_settings_that_no_clip_can_be_generated_with_are_refused_when_they_are_made() -> None:
    refused: tuple[tuple[dict[str, Any], str], ...] = (
        ({"temperature": float("inf")}, "temperature=inf"), ({"temperature": -1.0}, "temperature=-1"),
        ({"top_k": -1}, "top_k=-1"), ({"guidance_scale": 0.5}, "guidance_scale=0.5"),
        ({"branch": "null", "guidance_scale": 1.0}, "needs guidance"),
    )  # fmt: skip
    for wrong, words in refused:
        with pytest.raises(InputError, match=words):
            Settings(**wrong)
    assert Settings(branch="both", guidance_scale=1.0).guidance_scale == 1


def test_python_repeats_a_study_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / config.FILE
    path.write_text(config.text_of(replace(planted_study(), settings=Settings(poles=24, top_k=None))), "utf-8")
    assert load_arguments(path, seed=2) == {
        "concept": "tempo", "others": [], "settings": Settings(poles=24, top_k=None, seed=2),
    }  # fmt: skip
    path.write_text("others = 'timbre, density'")
    assert load_arguments(path) == {"others": ["timbre", "density"], "settings": Settings()}
    with pytest.raises(InputError, match="unknown 'pole'.*Did you mean 'poles'"):
        load_arguments(path, pole=3)


def test_settings_are_assigned_by_name() -> None:
    found = config.assigned(
        [
            "poles=24",
            "place_by = scan",
            'codes="own"',
            "doses=[0.5, 1]",
            "strengths={one-to-all = [0.5]}",
            "verify=true",
        ]
    )
    settings = Settings(**found)
    assert (settings.poles, settings.place_by, settings.codes, settings.verify) == (24, "scan", "own", True)
    assert settings.doses == (0.5, 1)
    assert settings.strengths == {"one-to-all": (0.5,)}
    for text, words in (("poles", "expected NAME=VALUE"), ("pole=3", "Did you mean 'poles'"), ("=3", "NAME=VALUE")):
        with pytest.raises(InputError, match=words):
            config.assigned([text])
    # A text of several lines is not one value.
    assert config.assigned(["seconds=4\nseed = 3"]) == {"seconds": "4\nseed = 3"}
    with pytest.raises(InputError, match="given twice"):
        config.assigned(["seed=1", "seed=2"])


def test_a_wrong_file_is_refused_in_one_line(run: Run, tmp_path: Path) -> None:  # noqa: F811
    for text, words in (
        ("concept = 3", "concept is 3"), ("settings = 3", "expected a table"), ("concept = ", "not TOML"),
        ("concpt = 'tempo'", "Did you mean 'concept'"), ("[settings]\npolse = 3", "Did you mean 'poles'"),
        ("concept = 'tempo'\n[settings]\nseed = 100", "seed"), ("[settings]\nseed = 'x'", "seed"),
        ("[settings]\nseed = 1", "name what to study"), ("seed = 1", "seed is above the table"),
        ("[settings]\nmodel = 'etude'", "model is in the table"), ("[setings]\nseed = 1", "Did you mean 'settings'"),
        ("[settings]\nverify = 'no'", "own.toml: verify='no'"),
    ):  # fmt: skip
        (tmp_path / "own.toml").write_text(text)
        code, out, error = run("study", "--config", "own.toml")
        assert (code, out) == (2, "")
        assert words in error
        assert error.count("\n") == 1


def test_a_given_option_changes_one_setting_of_a_file_alone(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def opened(model: Any) -> None:
        asked.append((model.model, model.revision))

    def ran(lens: Any, concept: Any, out: Any, *, settings: Settings, **_: Any) -> None:
        asked.append((concept, asdict(settings)))
        raise InputError("far enough")

    monkeypatch.setattr("analysis.commands.study.open_lens", opened)
    monkeypatch.setattr("analysis.commands.early.check_model", lambda _: None)
    monkeypatch.setattr("analysis.workers.share_cores", lambda _: None)
    monkeypatch.setattr("analysis.study.run", ran)
    settings = {"seed": 3, "poles": 24, "engine": "exact", "batch_size": 8}
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in settings.items()]
    top = 'concept = "timbre"\nmodel = "facebook/musicgen-small"\nrevision = "v1"\n\n[settings]\n'
    (tmp_path / "own.toml").write_text(top + "\n".join(lines))
    hub = "facebook/musicgen-small"
    for options, changes, model, concept in (
        ((), {}, (hub, "v1"), "timbre"),
        (("--revision", "v2"), {}, (hub, "v2"), "timbre"),
        (("--model", "etude"), {}, ("etude", None), "timbre"),
        (("--model", hub), {}, (hub, "v1"), "timbre"),
        (("tempo",), {}, (hub, "v1"), "tempo"),
        (("--seed", 4, "--set", "poles=12"), {"seed": 4, "poles": 12}, (hub, "v1"), "timbre"),
        # Also if the option has its default.
        (("--engine", "auto", "--batch-size", "auto"), {"engine": "auto", "batch_size": 64}, (hub, "v1"), "timbre"),
    ):
        asked.clear()
        _, _, error = run("study", *options, "--config", "own.toml")
        assert "far enough" in error, error
        assert asked == [model, (concept, asdict(Settings(**{**settings, **changes})))]


def test_sizes_and_settings_are_not_given_twice(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "own.toml").write_text("concept = 'tempo'")
    for options, words in (
        (("--config", "own.toml", "--full"), "--full and --config exclude each other"),
        (("tempo", "--set", "seed=1", "--seed", 2), "--set seed and an option (seed) were both given"),
    ):
        code, out, error = run("study", *options)
        assert (code, out) == (2, "")
        assert words in error
