"""A clip longer than the model's positions is generated in windows, and all times count from the clip's beginning."""

from typing import Any

import pytest
import torch

import audiolens as al
from audiolens.errors import ActivationOverflow, AudioLensWarning, InputError

P = ["fast song", "slow calm piano"]
RATE, FRAMES, WINDOW, OVERLAP = 25, 44, 20, 8
STARTS = (0, 12, 24)
"""The first frames of the windows [0, 20), [12, 32) and [24, 44)."""
CUT = {"window": WINDOW / RATE, "overlap": OVERLAP / RATE}
SITE = "blocks.1.hook_resid_post"


def generated(lens: Any, frames: int = FRAMES, **given: Any) -> Any:
    return lens.generate(P, frames / RATE, **{"seeds": [1, 2], "decode": False, **given})


def test_a_window_that_covers_the_clip_changes_nothing(lens: Any, codes: torch.Tensor) -> None:
    given = {"frames": WINDOW, "sites": "resid_post", "audio_prompt": codes[:2, :, :5]}
    plain, cut = generated(lens, **given), generated(lens, **given, **CUT)
    assert torch.equal(plain.codes, cut.codes)
    assert torch.equal(plain.cache[SITE], cut.cache[SITE])
    assert plain.settings == cut.settings


@pytest.mark.parametrize(("family", "engine"), [("lens", "exact"), ("melody_lens", "fast")])
def test_every_step_of_a_clip_has_the_noise_that_it_has_without_windows(
    request: pytest.FixtureRequest, family: str, engine: Any, codes: torch.Tensor
) -> None:
    """At a high temperature the noise alone determines the codes, also those of the tails inside the clip."""
    given = {"temperature": 1e6, "top_k": None, "engine": engine, "guidance_scale": 1.0}
    for start in (None, codes[:2, :, :5]) if family == "lens" else (None,):
        plain, cut = (
            generated(request.getfixturevalue(family), audio_prompt=start, **given, **windows).codes
            for windows in ({}, CUT)
        )
        assert torch.equal(plain, cut)


def naive(lens: Any, engine: Any, vector: torch.Tensor, **given: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue the end of each window by a call with an audio prompt, with all times counted from the window."""
    made, recorded = None, []
    for first in STARTS:
        edits = steered(lens, vector, first, min(WINDOW, FRAMES - first))
        start = None if made is None else made[..., first:]
        out = generated(lens, WINDOW, interventions=edits, audio_prompt=start, engine=engine, **given)
        made = out.codes if made is None else torch.cat([made[..., :first], out.codes], dim=-1)
        tail = WINDOW if first < STARTS[-1] else None
        recorded.append(out.cache[SITE][:, OVERLAP if first else 0 : tail])
    assert made is not None
    return made, torch.cat(recorded, dim=1)


SPAN, RAMP = range(25, 30), [0.5 + step / 40 for step in range(FRAMES)]


def steered(lens: Any, vector: torch.Tensor, first: int, frames: int) -> list[Any]:
    """Steering in a span of the second and third window, and with a schedule (over the prefix as well, if any)."""
    prefix = {"prefix": True} if lens.config.has_prefix else {}
    edits: list[Any] = [al.Add(vector, layers=0, strength=2.0, schedule=RAMP[first : first + frames], **prefix)]
    inside = [step - first for step in SPAN if first <= step < first + frames]
    if inside:
        edits.append(al.Add(vector, layers=1, strength=9.0, seconds=(inside[0] / RATE, (inside[-1] + 1) / RATE)))
    return edits


@pytest.mark.parametrize("engine", ["exact", "fast"])
@pytest.mark.parametrize("family", ["lens", "melody_lens"])
def test_steered_windows_equal_a_naive_loop_of_continuations(
    request: pytest.FixtureRequest, family: str, engine: Any, vector: torch.Tensor
) -> None:
    lens = request.getfixturevalue(family)
    given = {"temperature": 0.0, "sites": "resid_post", "layers": 1}
    codes, recorded = naive(lens, engine, vector, **given)
    edits = steered(lens, vector, 0, FRAMES)
    out = generated(lens, interventions=edits, engine=engine, **given, **CUT)
    assert torch.equal(out.codes, codes)
    assert out.cache[SITE].shape == (2, FRAMES + 3, 48)
    assert torch.equal(out.cache[SITE], recorded)
    without = generated(lens, interventions=edits[:1], engine=engine, **given, **CUT)
    first = SPAN[0]
    assert torch.equal(out.cache[SITE][:, :first], without.cache[SITE][:, :first])
    added = out.cache[SITE][:, first] - without.cache[SITE][:, first]
    torch.testing.assert_close(added, (9.0 * vector).expand(2, -1), rtol=1e-4, atol=1e-4)


def test_recordings_are_cut_and_reduced_over_the_whole_clip(lens: Any) -> None:
    given = {"sites": "resid_post", "layers": 1, **CUT}
    whole = generated(lens, **given)
    assert whole.settings["window"] == 0.8
    assert whole.settings["overlap"] == 0.32
    part = generated(lens, **given, span=(0.4, 1.4))
    assert part.cache.first_step == 10
    assert torch.equal(part.cache[SITE], whole.cache[SITE][:, 10:35])
    mean = generated(lens, **given, reduce="mean")
    torch.testing.assert_close(mean.cache[SITE], whole.cache[SITE][:, :FRAMES].mean(1), rtol=1e-4, atol=1e-5)
    last = generated(lens, **given, reduce="last")
    assert torch.equal(last.cache[SITE], whole.cache[SITE][:, FRAMES - 1])
    both = generated(lens, **given, exact=True)
    turned = lens.generate(P[::-1], FRAMES / RATE, seeds=[2, 1], decode=False, exact=True, **given)
    assert torch.equal(both.codes, turned.codes.flip(0))


def test_an_overflow_is_named_by_its_time_in_the_clip(lens: Any, vector: torch.Tensor) -> None:
    far = al.Add(vector, layers=0, strength=3e38, seconds=(SPAN[0] / RATE, 1.3))
    for engine in ("exact", "fast"):
        with pytest.raises(ActivationOverflow, match=r"step 25 \(1\.00 s\)"):
            generated(lens, interventions=far, engine=engine, **CUT)


def test_lengths_that_do_not_fit_are_refused(lens: Any, codes: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"frames": 5000}, "makes longer ones with window="),
        ({"overlap": 1.0}, "overlap=1.0 needs window="),
        ({"window": 9.0}, "window=9.0: this model makes clips of"),
        ({**CUT, "overlap": 0.8}, "overlap=0.8: expected 0.12 to 0.76 seconds"),
        ({**CUT, "overlap": 0.04}, "overlap=0.04: expected 0.12 to 0.76 seconds"),
        ({**CUT, "sites": "attn.pattern"}, "relates steps to all earlier steps"),
        ({**CUT, "interventions": al.Scale(0.5, site="attn.pattern", layers=1)}, "relates steps to all earlier"),
        ({**CUT, "interventions": al.Add(torch.ones(48), seconds=(1.0, 2.0))}, "ends after the clip, which lasts 1.76"),
        ({**CUT, "audio_prompt": codes[:2].repeat(1, 1, 2)}, "as long as the first window"),
    ]
    for given, reason in cases:
        with pytest.raises(InputError, match=reason):
            generated(lens, **given)
    monkeypatch.setattr(lens.model.generation_config, "max_length", 15)
    with pytest.warns(AudioLensWarning, match=r"seconds=0.8: .* is set up for clips of up to 0.6 s"):
        generated(lens, **CUT)


def test_the_command_generates_clips_of_minutes_in_windows(run: Any, checkpoint: Any) -> None:
    code, out, err = run("generate", "jazz song", "--model", checkpoint, "--seconds", 1, "--window", 0.6, "-o", "long")
    assert (code, err) == (0, "")
    assert out.count(".wav") == 1
    code, _, err = run("generate", "jazz", "--model", checkpoint, "--seconds", 60, "-o", "short")
    assert (code, err.count("\n")) == (2, 1)
    assert "with window=" in err
