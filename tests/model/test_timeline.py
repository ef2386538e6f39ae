"""Steps, frames and seconds agree, and the codebook delay matches transformers, applied and undone."""

import pytest
import torch

from audiolens.errors import InputError
from audiolens.model.timeline import Timeline, delay, delays_of, undelay


@pytest.mark.parametrize("name", ["lens", "stereo_lens"])
@pytest.mark.parametrize("frames", [3, 4, 17])
def test_the_delay_is_transformers_own(request, name, frames):
    lens = request.getfixturevalue(name)
    books, delays = lens.config.n_codebooks, lens.config.delays
    codes = torch.randint(0, 32, (2, books, frames))
    columns = delay(codes, delays, 32)
    start = torch.full((2, books, 1), 32)
    _, pattern = lens.model.decoder.build_delay_pattern_mask(
        torch.cat([start, codes], -1).flatten(0, 1), pad_token_id=32, max_length=columns.shape[-1]
    )
    assert torch.equal(columns.flatten(0, 1), pattern)
    assert torch.equal(undelay(columns, delays, frames), codes)


def test_stereo_codebooks_are_delayed_in_pairs():
    assert delays_of(4, 1) == (0, 1, 2, 3)
    assert delays_of(8, 2) == (0, 0, 1, 1, 2, 2, 3, 3)


def test_seconds_select_the_steps_that_compute_their_frames():
    timeline = Timeline(100, 25.0, (0, 1, 2, 3))
    assert (timeline.steps, timeline.last, timeline.seconds) == (103, 99, 4.0)
    assert timeline.select(None) == (0, 103)
    assert timeline.select((0, 1)) == (0, 25)
    assert timeline.select((1.02, 1.98)) == (26, 50)
    assert timeline.select((3, 4)) == (75, 100)


@pytest.mark.parametrize("span", [(0, 5), (1, 1), (2, 1), (-1, 1), (float("nan"), 1), (0.52, 0.53)])
def test_spans_outside_the_clip_are_refused(span):
    with pytest.raises(InputError):
        Timeline(100, 25.0, (0, 1, 2, 3)).select(span)
