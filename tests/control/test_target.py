"""Clips are steered to a value in musical units, and a calibration turns such values into strengths."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import audiolens as al
from audiolens.control import target
from audiolens.directions.calibration import Calibration, normal_place
from audiolens.errors import InputError, InputTypeError, SiteError

SECONDS, LAYER = 3.0, 4
PROMPTS = ["a little tune", "some music", "a calm piece", "a short song"]


@pytest.fixture(scope="module")
def etude() -> Any:
    return al.AudioLens.from_pretrained("etude")


@pytest.fixture(scope="module")
def timbre(etude: Any) -> al.Directions:
    sets = al.prompts.load("timbre", lens=etude)
    return al.difference_in_means(
        etude, sets.positive[:8], sets.negative[:8], codes="shared", neutral=sets.development[:8], seconds=SECONDS,
        layers=[LAYER], label="timbre", progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calibrated(etude: Any, timbre: al.Directions) -> al.Directions:
    return timbre.calibrate(
        etude, "brightness", strengths=[-1.0, 0.5, 1.0], prompts=PROMPTS[:3], seeds=1, seconds=SECONDS, progress=False
    )


def test_every_row_gets_the_strength_that_reaches_the_target(etude: Any, timbre: al.Directions) -> None:
    found = al.steer_to(
        etude,
        timbre,
        PROMPTS,
        "brightness",
        "1.2 kHz",
        seeds=[0, 1, 2, 3],
        seconds=SECONDS,
        max_clips=8,
        progress=False,
    )
    assert found.target == 1200
    assert found.reached.sum() >= 2
    assert found.tried.groupby("row").size().max() <= 8
    assert found.n_clips == len(found.tried)
    # The clips are what their strengths give, and their values are what the measure says.
    again = etude.generate(
        PROMPTS, SECONDS, seeds=[0, 1, 2, 3],
        interventions=al.steer(timbre, layer=LAYER, strength=found.strengths.tolist()),
    )  # fmt: skip
    assert (again.codes == found.clips.codes).float().mean() > 0.9
    values = al.measure.brightness(found.clips)
    np.testing.assert_allclose(values, found.measured)
    np.testing.assert_array_equal(found.reached, np.abs(values / 1200 - 1) <= 0.05)
    assert [bool(reason) for reason in found.reasons] == [not reached for reached in found.reached]
    assert list(found.to_frame().clips) == list(found.tried.groupby("row").size())
    # Every row begins with its unsteered clip, and nothing is generated for a row that has reached the target.
    assert (found.tried.groupby("row").strength.first() == 0).all()
    near = (found.tried.measured / 1200 - 1).abs() <= 0.05
    assert near.groupby(found.tried.row).sum().le(1).all()


def test_what_cannot_be_reached_is_said(etude: Any, timbre: al.Directions) -> None:
    found = al.steer_to(
        etude,
        timbre,
        PROMPTS[:2],
        "brightness",
        9000,
        seeds=[0, 1],
        seconds=SECONDS,
        limits=(-0.1, 0.1),
        progress=False,
    )
    assert not found.reached.any()
    assert all("brightness is still" in reason for reason in found.reasons)
    assert found.clips.codes.shape[0] == 2
    assert found.clips.settings["steered_to"]["strengths"] == found.strengths.tolist()
    assert found.tried.strength.abs().max() <= 0.1


def test_a_calibration_is_the_median_of_its_clips(etude: Any, timbre: al.Directions, calibrated: al.Directions) -> None:
    one = calibrated.calibration
    assert one is not None
    assert one.place == {"strategy": "one-to-one", "layer": LAYER}
    assert (one.measured_in, one.clips, one.strengths) == ("Hz", 3, (-1.0, 0.0, 0.5, 1.0))
    clips = [
        etude.generate(PROMPTS[:3], SECONDS, seeds=0, interventions=al.steer(timbre, layer=LAYER, strength=strength))
        for strength in one.strengths
    ]
    medians = [np.median(al.measure.brightness(clip)) for clip in clips]
    assert medians == sorted(medians)
    np.testing.assert_allclose(one.values, medians)


def test_a_strength_in_a_musical_unit_is_that_of_the_calibration(
    etude: Any, calibrated: al.Directions, tmp_path: Path
) -> None:
    opened = al.Directions.load(calibrated.save(tmp_path / "timbre.safetensors"), etude)
    assert opened.calibration is not None
    assert repr(opened.calibration) == repr(calibrated.calibration)
    middle = (opened.calibration.values[1] + opened.calibration.values[2]) / 2
    for text in (f"{middle} Hz", f"{middle / 1000}kHz"):
        (step,) = al.steer(opened, strength=text, seconds=(0, 1))
        assert step.strength == pytest.approx(0.25)
        assert step.seconds == (0, 1)
    # What is computed from directions is not calibrated.
    for other in (2 * opened, opened.unit(), -opened, opened.at([LAYER])):
        assert other.calibration is None
    with pytest.raises(InputError, match="the calibration was measured with other vectors"):
        replace(opened, vectors=-opened.vectors)


def test_a_calibration_of_the_measure_gives_the_place_and_the_first_strength(
    etude: Any, calibrated: al.Directions
) -> None:
    assert calibrated.calibration is not None
    found = al.steer_to(
        etude, calibrated, PROMPTS[:2], "brightness", 1200.0, seconds=SECONDS, max_clips=2, progress=False
    )
    second = found.tried[found.tried.strength != 0]
    first = found.tried[found.tried.strength == 0].set_index("row").measured
    for _, one in second.iterrows():
        wanted = calibrated.calibration.at(0) * 1200 / first[one.row]
        low, high = calibrated.calibration.range
        assert one.strength == pytest.approx(calibrated.calibration.strength(min(max(wanted, low), high)))


CURVE: dict[str, Any] = {
    "measure": "tempo", "measured_in": "BPM", "strengths": (-1.0, 0.0, 1.0), "values": (80.0, 100.0, 100.0),
    "low": (None, 1.0, 2.0), "high": (None, 1.0, 2.0), "failed": (0.0, 0.0, 0.0),
    "place": {"strategy": "one-to-one", "layer": LAYER}, "clips": 4, "seconds": 5.0, "guidance_scale": 3.0,
}  # fmt: skip


def test_of_several_strengths_the_smallest_is_taken() -> None:
    one = Calibration(**CURVE)
    assert one.strength(100) == 0
    assert one.strength("90 BPM") == -0.5
    assert one.at(-0.5) == 90
    flat = Calibration(**{**CURVE, "strengths": (-1.0, 1.0, 2.0), "values": (100.0, 100.0, 80.0)})
    assert flat.strength(100) == 0
    assert flat.range == (80, 100)


PLACES: dict[str, tuple[dict[str, Any], bool]] = {
    "nothing": ({}, True),
    "the same block": ({"layer": LAYER}, True),
    "the same block from the end": ({"layer": LAYER - 8, "branch": "both"}, True),
    "another name": ({"layers": [LAYER]}, True),
    "another strategy": ({"strategy": "one-to-all", "layer": LAYER}, False),
    "another branch": ({"branch": "cond"}, False),
    "a part of the clip": ({"seconds": (0, 1)}, False),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_calibration_holds_only_for_its_own_place(calibrated: al.Directions, name: str) -> None:
    stated, holds = PLACES[name]
    place, known = target.checked_place(calibrated, "brightness", stated, None)
    assert (known is not None) == holds
    assert place["layer"] == LAYER
    assert place["strategy"] == stated.get("strategy", "one-to-one")
    assert place["branch"] == stated.get("branch", "both")
    assert target.checked_place(calibrated, "tempo", stated, None)[1] is None


def test_every_place_survives_its_file(etude: Any, timbre: al.Directions, tmp_path: Path) -> None:
    for place in (
        {"layers": LAYER},
        {"layer": np.int64(LAYER)},
        {"layer": LAYER - 8},
        {"layer": LAYER, "band": [2, 4]},
    ):
        whole = normal_place(
            {"strategy": "one-to-band" if "band" in place else "one-to-one", **place}, timbre.layers, 8
        )
        known = Calibration(**{**CURVE, "place": whole | {"branch": "cond"}})
        opened = al.Directions.load(replace(timbre, calibration=known).save(tmp_path / "d.safetensors"))
        assert opened.calibration is not None
        assert opened.calibration.place == known.place
        assert al.steer(opened, strength="90 BPM")


def refused(etude: Any, d: al.Directions) -> dict[str, tuple[Callable[[], Any], type, str]]:
    known = replace(d, calibration=Calibration(**CURVE))

    def to(measure: Any = "tempo", target: Any = 120, **options: Any) -> Any:
        return al.steer_to(etude, d, "a tune", measure, target, progress=False, **options)

    foreign = replace(d, meta=replace(d.meta, weights="0" * 64))

    return {
        "unit": (lambda: to(target="2 kHz"), InputError, "expected the unit BPM"),
        "no unit": (lambda: to(target="120"), InputError, "expected the unit BPM"),
        "no number": (lambda: to(target="fast"), InputError, "expected a number with its unit, such as '120 BPM'"),
        "too fast": (lambda: to(target=900), InputError, "tempo takes values from 40 to 240 BPM"),
        "nan": (lambda: to(target=float("nan")), InputError, "finite"),
        "measure": (lambda: to("temp"), InputError, "Did you mean 'tempo'"),
        "circle": (lambda: to("pitch_class", 3), InputError, "circle"),
        "budget": (lambda: to(max_clips=0), InputError, "max_clips"),
        "tolerance": (lambda: to(tolerance=0), InputError, "tolerance"),
        "unit limits": (lambda: to(unit="residual"), InputError, "needs limits="),
        "clamp": (lambda: to(operator="clamp"), InputError, "only 'add'"),
        "calibrated clamp": (lambda: d.calibrate(etude, "tempo", operator="clamp"), InputError, "only 'add'"),
        "calibrated circle": (lambda: d.calibrate(etude, "pitch_class"), InputError, "circle"),
        "limits": (lambda: to(limits=(1, 2)), InputError, "limits"),
        "foreign": (lambda: al.steer_to(etude, foreign, "a tune", "tempo", 120), InputError, "weights|model"),
        "nobody": (lambda: al.steer_to(etude, d, [], "tempo", 120), InputError, "at least one prompt"),
        "strength": (lambda: to(strength=1.0), InputError, "takes no strength="),
        "rows": (lambda: to(rows=[0]), InputError, "takes no rows="),
        "schedule": (lambda: d.calibrate(etude, "tempo", schedule=[1.0]), InputError, "calibrate takes no schedule="),
        "layer": (lambda: to(layer=1), SiteError, "no direction at layer 1"),
        "not calibrated": (lambda: al.steer(d, strength="120 BPM"), InputTypeError, "not calibrated"),
        "out of reach": (lambda: al.steer(known, strength="140 BPM"), InputError, "between 80 BPM and 100 BPM"),
        "other unit": (lambda: al.steer(known, strength="1000 Hz"), InputError, "expected the unit BPM"),
        "other place": (lambda: al.steer(known, layer=2, strength="90 BPM"), InputError, "calibrated with layer=4"),
        "two concepts": (lambda: al.steer([known, known], strength="90 BPM"), InputError, "2 concepts"),
        "shape": (lambda: Calibration(**{**CURVE, "values": (1.0, 2.0)}), InputError, "one value for each"),
        "order": (lambda: Calibration(**{**CURVE, "values": (1.0, 3.0, 2.0)}), InputError, "rise or fall"),
        "nowhere": (lambda: replace(d, calibration="120 BPM"), InputTypeError, "expected Calibration"),  # pyright: ignore
        "unnamed": (lambda: (d * 2).calibrate(etude, "tempo"), InputError, "give prompts="),
        "unknown": (lambda: d.calibrate(etude, "temp"), InputError, "Did you mean 'tempo'"),
        "few": (lambda: d.calibrate(etude, "tempo", strengths=[0.5]), InputError, "at least two besides 0"),
    }  # fmt: skip


def test_wrong_targets_are_refused_in_one_line(etude: Any, timbre: al.Directions) -> None:
    for name, (call, kind, told) in refused(etude, timbre).items():
        with pytest.raises(kind, match=told) as caught:
            call()
        assert "\n" not in str(caught.value), name


def test_a_damaged_calibration_is_refused(calibrated: al.Directions, tmp_path: Path) -> None:

    from audiolens.model import provenance

    tensors = {"vectors": calibrated.vectors, "residual_norms": calibrated.residual_norms}
    facts = {
        "meta": calibrated.meta.as_dict(), "layers": list(calibrated.layers), "norms": calibrated.norms.tolist(),
        "residual_norms": calibrated.residual_norms.tolist(),
    }  # fmt: skip
    assert calibrated.calibration is not None
    for wrong in ({}, {**calibrated.calibration.as_dict(), "values": [1.0, 3.0, 2.0, 4.0]}, "120 BPM"):
        path = provenance.write(tmp_path / "wrong.safetensors", tensors, {**facts, "calibration": wrong})
        with pytest.raises(InputError, match="wrong.safetensors"):
            al.Directions.load(path)
