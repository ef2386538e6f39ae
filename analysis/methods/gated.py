"""Steer along the difference in means only while the music lacks the pole (self-monitored steering)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.methods.reading import Reading, Steering
from audiolens.control.gating import gate
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.steering import steered_blocks
from audiolens.interventions import Intervention

if TYPE_CHECKING:
    from audiolens import AudioLens


def gated(lens: AudioLens, reading: Reading) -> Steering:
    """Steer as the difference in means does, through a gate with the default levels (`al.gate`).

    The gate's probe is the difference in means over the poles' own clips. It must be read before the first change, and
    is read at the first block that the place changes.
    """
    place, directions = reading.place, reading.directions
    first = min(steered_blocks(reading.along(directions)(1.0)))
    probe = reading.kept(
        "gated", difference_in_means, lens, *reading.poles, site=directions.meta.site, layers=[first], codes="own",
        keep_samples=True, label=directions.meta.label, progress=False,
    )  # fmt: skip

    def steering(dose: float) -> Sequence[Intervention]:
        return gate(
            directions, probe, strength=dose * place.strength, strategy=place.strategy, layer=place.layer,
            probe_layer=first,
        )  # fmt: skip

    return steering
