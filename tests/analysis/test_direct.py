"""Direct logit attribution splits the logits of bare transformers into parts that add up, for any direction."""

from typing import Any

import numpy as np
import plants
import pytest
import torch

from analysis import attribution
from audiolens.errors import InputError
from audiolens.model.timeline import delay

CLEAN, CORRUPTED = plants.CLEAN, plants.CORRUPTED
FRAMES = 15


def bare(lens: Any, prompts: list[str], codes: torch.Tensor) -> torch.Tensor:
    """transformers' own logits, each codebook on its own frames."""
    inputs = lens.tokenizer(prompts, padding=True, return_tensors="pt")
    columns = delay(codes, lens.config.delays, 32)[..., :-1]
    with torch.no_grad():
        logits = lens.model(**inputs, decoder_input_ids=columns.flatten(0, 1)).logits.unflatten(0, (-1, 4))
    return torch.stack([logits[:, book, book : book + FRAMES] for book in range(4)], dim=1)


def test_along_the_codes_parts_add_up_to_their_logits(lens: Any, codes: torch.Tensor):
    found = attribution.direct(lens, CLEAN, codes, batch_size=2)
    logits = bare(lens, CLEAN, codes)
    expected = (logits.gather(-1, codes[..., None])[..., 0] - logits.mean(-1)).mean(-1)
    np.testing.assert_allclose(found.totals, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.values.sum(0), expected, rtol=1e-3, atol=1e-4)


def test_along_the_difference_parts_add_up_to_its_length(lens: Any, codes: torch.Tensor):
    found = attribution.direct(lens, CLEAN, codes, corrupted=CORRUPTED)
    difference = bare(lens, CLEAN, codes) - bare(lens, CORRUPTED, codes)
    np.testing.assert_allclose(found.values.sum(0), difference.norm(dim=-1).mean(-1), rtol=1e-3)
    heads = attribution.direct(lens, CLEAN, codes, corrupted=CORRUPTED, heads=True)
    apart = [place for place, label in enumerate(heads.labels) if label.startswith("1_cross_attn_h")]
    whole = found.values[found.labels.index("1_cross_attn_out")]
    np.testing.assert_allclose(heads.values[apart].sum(0), whole, rtol=1e-3, atol=1e-5)


def test_each_part_is_its_own_way_through_the_final_norm(lens: Any, codes: torch.Tensor, vector: torch.Tensor):
    found = attribution.direct(lens, CLEAN, codes, direction=vector, seconds=(0.2, 0.24))
    _, cache = lens.run_with_cache(CLEAN, codes, sites=["resid_post", "mlp_out"])
    norm, heads = lens.model.decoder.model.decoder.layer_norm, lens.model.decoder.lm_heads
    row, book, step = 3, 2, 5 + 2
    part, stream = cache["mlp_out", 1][row, step], cache["resid_post", 2][row, step]

    def through(value: torch.Tensor) -> torch.Tensor:
        centred = (value - value.mean()) * norm.weight
        return (centred @ heads[book].weight.T).detach()

    along = through(vector)
    expected = through(part) @ (along / along.norm()) / (stream.var(unbiased=False) + norm.eps).sqrt()
    assert found.values[found.labels.index("1_mlp_out"), row, book] == pytest.approx(float(expected), rel=1e-3)
    np.testing.assert_allclose(found.values.sum(0), found.totals, rtol=1e-3, atol=1e-4)


def test_a_family_with_a_prefix_adds_up_too(melody_lens: Any, codes: torch.Tensor):
    found = attribution.direct(melody_lens, CLEAN, codes, heads=True)
    np.testing.assert_allclose(found.values.sum(0), found.totals, rtol=1e-3, atol=1e-4)
    assert not [label for label in found.labels if "cross" in label]


def test_tables_and_figures_name_what_they_show(lens: Any, codes: torch.Tensor):
    found = attribution.direct(lens, CLEAN, codes, corrupted=CORRUPTED)
    table = found.to_frame()
    assert len(table) == len(found.labels) * 4
    assert set(table["layer"]) == {-1, 0, 1, 2}
    axes = found.plot().axes
    assert axes[0].get_xlabel() == "codebook"
    assert "logits" in axes[1].get_ylabel()
    assert found.figure().data
    assert "along the difference" in repr(found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"corrupted": CORRUPTED, "direction": torch.ones(48)}, "both given"),
        ({"direction": torch.ones(3)}, "expected 48 finite numbers"),
        ({"direction": torch.zeros(48)}, "not all 0"),
        ({"corrupted": CLEAN}, "are the same"),
        ({"corrupted": CORRUPTED[:2]}, "5 rows of codes for 2 prompts"),
    ],
)
def test_bad_input_is_refused(lens: Any, codes: torch.Tensor, asked: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        attribution.direct(lens, CLEAN, codes, **asked)
