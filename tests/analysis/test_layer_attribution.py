"""Evidence in any form is assigned to the right layers and keeps its unit."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from plants import tables as planted

from analysis import layer_attribution, probing
from audiolens.errors import InputError, InputTypeError


@pytest.fixture(scope="module")
def found() -> layer_attribution.LayerAttribution:
    probe = pd.DataFrame({"layer": [2, 0, 1], "score": [0.9, 0.5, 0.7], "low": [0.8, 0.4, 0.6], "high": [1, 0.6, 0.8]})
    return layer_attribution.gather(
        probe=probe,
        patching=pd.Series([3.0, -7.0], index=[4, 5]),
        attribution=[0.0, 1.0, 2.0],
        norm=planted.directions(),
        steering=None,
        other=pd.DataFrame({"layer": [1], "beats": [4.0], "name": ["x"]}),
        units={"other": "beats"},
    )


def test_values_stand_at_their_layers(found: layer_attribution.LayerAttribution):
    assert [one.name for one in found.evidence] == ["probe", "patching", "attribution", "norm", "other"]
    assert found["probe"].layers == (0, 1, 2)
    np.testing.assert_allclose(found["probe"].high, [0.6, 0.8, 1.0])
    assert (found["patching"].layers, found["patching"].peak) == ((4, 5), 5)
    directions = planted.directions()
    np.testing.assert_allclose(found["norm"].values, directions.norms / directions.residual_norms)
    assert found["other"].unit == "beats"
    table = found.to_frame()
    assert table.loc[(table["evidence"] == "patching") & (table["layer"] == 5), "share"].item() == -1
    assert "not tested against chance" in repr(found)
    assert "patching -7 at block 5" in repr(found)


@pytest.mark.parametrize(("labels", "unit"), [(["a", "b"] * 20, "balanced accuracy"), (np.arange(40) / 40, "R²")])
def test_a_probe_says_which_score_it_is(labels: Any, unit: str):
    values = np.random.default_rng(0).normal(size=(3, 40, 4))
    probe = probing.probe(None, values, labels, n_shuffles=2, n_bootstrap=0)
    for given in (probe, probe.to_frame()):
        found = layer_attribution.gather(probe=given)["probe"]
        assert (found.unit, found.layers) == (unit, (0, 1, 2))
        np.testing.assert_allclose(found.values, probe.scores)
    drawn = layer_attribution.gather(probe=probe).plot().axes[0]
    assert drawn.get_ylabel().replace("\n", " ") == unit


@pytest.mark.parametrize("normalised", [False, True])
def test_every_kind_is_drawn_with_its_unit(found: layer_attribution.LayerAttribution, normalised: bool):
    panels = found.plot(normalised).axes
    assert len(panels) == (1 if normalised else 5)
    assert panels[-1].get_xlabel() == "block"
    if normalised:
        heights = np.concatenate([drawn[0].get_ydata() for drawn in panels[0].containers])
        assert np.abs(heights).max() == pytest.approx(1)
    else:
        assert [axes.get_ylabel().replace("\n", " ") for axes in panels][:2] == [
            "score (balanced accuracy or R²)",
            "nats",
        ]
    values, rings = (found.figure(normalised).data[start::2] for start in (0, 1))
    assert len(values) == len(rings) == 5
    for line, ring, one in zip(values, rings, found.evidence, strict=True):
        assert ring.marker.symbol == "circle-open"
        assert (*ring.x, *ring.y) == (one.peak, line.y[one.layers.index(one.peak)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "no evidence"),
        ({"probe": pd.DataFrame({"layer": [0, 0], "score": [1, 2]})}, "several rows for layer 0"),
        ({"probe": pd.DataFrame({"block": [0], "score": [1]})}, "has no 'layer'"),
        ({"probe": pd.DataFrame({"layer": [0], "a": [1], "b": [2]})}, "any of \\['a', 'b'\\] could be the value"),
        ({"probe": [[1.0]]}, "one number per layer"),
        ({"probe": [np.nan]}, "no finite value"),
    ],
)
def test_evidence_that_says_nothing_is_refused(given: dict, message: str):
    with pytest.raises(InputError, match=message):
        layer_attribution.gather(**given)
    with pytest.raises(InputTypeError, match="expected a frame"):
        layer_attribution.gather(probe="high")
