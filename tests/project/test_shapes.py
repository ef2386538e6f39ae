"""The tests check every shape that the code states, and leave a function that states none as it is."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from audiolens.measure.clips import Clip
from audiolens.model import text
from audiolens.sound import codec, soundfiles


def test_a_wrong_shape_is_an_error_in_arguments_fields_and_results() -> None:
    with pytest.raises(TypeCheckError, match="the parameters of audiolens.sound.soundfiles.compressed"):
        soundfiles.compressed(np.zeros(5), 16_000)
    with pytest.raises(TypeCheckError, match="samples"):
        Clip(np.zeros((2, 5)), 16_000)
    # Each field alone has a right shape.
    with pytest.raises(TypeCheckError, match="token"):
        text.Text(torch.zeros(2, 3).long(), torch.zeros(2, 4).long(), torch.zeros(2, 3, 5))
    model: Any = SimpleNamespace(
        audio_encoder=SimpleNamespace(decode=lambda *_, **__: SimpleNamespace(audio_values=torch.zeros(1, 8)))
    )
    with pytest.raises(TypeCheckError, match="the return value of audiolens.sound.codec.decode"):
        codec.decode(torch.zeros(1, 4, 3).long(), model, SimpleNamespace(channels=1))  # type: ignore[arg-type]


def test_what_states_no_shape_is_called_as_it_is() -> None:
    assert hasattr(soundfiles.compressed, "__wrapped__")
    assert not hasattr(text.checked_prompts, "__wrapped__")
    assert hasattr(Clip.__init__, "__wrapped__")
