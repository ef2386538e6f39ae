"""What is measured of directions: their table by layer, the test of their length, and their calibration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from torch import Tensor

from audiolens.checks import checked_seed
from audiolens.directions.evidence import Evidence
from audiolens.directions.permutation import N_SHUFFLES, PermutationTest, permutation_test
from audiolens.directions.samples import Samples
from audiolens.door import guarded
from audiolens.errors import InputError

if TYPE_CHECKING:
    from audiolens.lens import AudioLens


@guarded
class Described:
    """The methods of `Directions` that return numbers about them."""

    if TYPE_CHECKING:
        layers: tuple[int, ...]
        residual_norms: Tensor
        evidence: Evidence | None
        samples: Samples | None

        @property
        def norms(self) -> Tensor: ...

    def to_frame(self) -> Any:
        """Return a pandas DataFrame with one row per layer: norms in the model's units, and the evidence, if any."""
        import pandas as pd

        columns: dict[str, Any] = {
            "layer": self.layers,
            "norm": self.norms.numpy(),
            "residual_norm": self.residual_norms.numpy(),
        }
        if self.evidence is not None:
            columns |= self.evidence.columns()
            # This column contains whole numbers, and missing values where there are too few prompts.
            columns["stable_at"] = pd.array(self.evidence.stable_at().numpy(), dtype="Int64")
        return pd.DataFrame(columns)

    def permutation_test(self, n_shuffles: int = N_SHUFFLES, seed: int = 0) -> PermutationTest:
        """Test whether the difference in means is longer than it would be under shuffled labels.

        The p-values control the family-wise error rate over layers.

        The test uses the samples (`keep_samples=True`), so no model runs. The difference in means is tested even if
        another estimator made the vectors.

        Raises:
            InputError: if no samples were stored.
        """
        return permutation_test(self._samples("permutation_test"), n_shuffles, checked_seed(seed))

    def calibrate(
        self,
        lens: AudioLens,
        measure: str,
        *,
        strengths: Sequence[float] | None = None,
        prompts: Sequence[str] | None = None,
        seeds: int = 2,
        seconds: float = 5.0,
        guidance_scale: float = 3.0,
        batch_size: int = 32,
        progress: bool = True,
        **steering: Any,
    ) -> Self:
        """Measure which strength gives which value of a measure, and return the directions with this `calibration`.

        Clips of all prompts and seeds are generated at every strength. The calibration is the median of the measure
        over clips that did not fail, made monotone. `steer(d, strength="120 BPM")` then steers at the place of the
        calibration. This strength sets the median: single clips differ, and `steer_to` finds a strength for each.

        Args:
            lens: the model that the directions were read from.
            measure: a measure, as in `measure.MEASURES`.
            strengths: strengths besides 0 (default: eight, from -2 to 2 divided by the number of steered blocks; for
                "heads", there is no default).
            prompts: neutral prompts (default: the development prompts of the concept that the directions are named
                after).
            seeds: the number of seeds per prompt.
            seconds, guidance_scale, batch_size: as in `lens.generate`.
            steering: where to steer, as in `steer`: `strategy`, `layer`, `layers`, `band`, `heads`, `unit`, `branch`,
                `operator`.

        Raises:
            InputError: if the measure is unknown, the place is invalid, there are no prompts, or too many clips fail or
                cannot be measured.
        """
        from audiolens.directions import calibrating

        directions: Any = self
        found = calibrating.calibrate(
            directions, lens, measure, strengths=strengths, prompts=prompts, seeds=seeds, seconds=seconds,
            guidance_scale=guidance_scale, batch_size=batch_size, progress=progress, steering=steering,
        )  # fmt: skip
        return cast(Self, found)

    def _samples(self, wanted_by: str) -> Samples:
        if self.samples is None:
            raise InputError(f"{wanted_by} needs one vector per prompt: read the directions with keep_samples=True.")
        return self.samples
