"""How much is measured on each model, and how many clips that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.study.settings import Settings
from audiolens.prompts import concepts

MAIN = ("tempo", "timbre")
"""The concepts that are studied in full, with controls."""
SCANNED = ("tempo", "timbre", "density", "register", "loudness")
"""The concepts for which every place is tried. The others have no measure whose span could be compared."""
READ_SECONDS = 2.0
PAPER_DOSES = (0.1, 0.2, 0.4, 0.8, 1.0, 1.6)
"""Multiples of the paper's strength of 1.25. A small model may tolerate less than the paper's."""
SCREENED = 160
"""Clips of one placement's screen: 96 to 224 in `docs/placement.md`."""
PLACED = 48 + 8
"""Short clips from which a placement reads its directions, and on which it compares places."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of everything that is measured. The defaults take about an hour of processor time per model.

    Attributes:
        seconds: length of every clip, the same for all models.
        poles: prompts per pole from which directions are read.
        development, development_seeds: neutral prompts, and (an even number of) seeds per prompt, on which places and
            strengths are chosen.
        test, test_seeds: neutral prompts and seeds per prompt for results.
        controls: random directions, and as many balanced shuffles.
        doses: multiples of the chosen strength; they include 1.
        call_seeds: seeds per test prompt for the concepts that are steered by one call.
        called: the concepts that are steered by one call.
        labelled: labelled clips from which the classifier of instruments is fitted.
    """

    seconds: float = 5.0
    poles: int = 100
    development: int = 8
    development_seeds: int = 2
    test: int = 16
    test_seeds: int = 3
    controls: int = 49
    doses: tuple[float, ...] = (1.0,)
    call_seeds: int = 2
    called: tuple[str, ...] = concepts("etude")
    labelled: int = 240

    @classmethod
    def full(cls, **changes: Any) -> Sizes:
        """Sizes for narrow intervals and small p-values. They take hours per model."""
        sizes: dict[str, Any] = {"development": 16, "development_seeds": 4, "test": 24, "test_seeds": 4,
                                 "controls": 199, "doses": (0.5, 1.0), "call_seeds": 4}  # fmt: skip
        return cls(**{**sizes, **changes})

    def settings(self, **changes: Any) -> Settings:
        """The settings of a study that chooses its place by steering at every block."""
        return Settings(**{**self._studied, "place_by": "scan", **changes})

    def paper(self, lens: Any) -> Settings:
        """The settings of a study by the paper's protocol, which has no controls."""
        few = {"n_random": 1, "n_shuffled": 0, "doses": PAPER_DOSES, "frechet": False}
        return Settings.paper(lens, **self._studied | few)

    @property
    def _studied(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds, "poles": self.poles, "development": self.development,
            "development_seeds": self.development_seeds, "test": self.test, "test_seeds": self.test_seeds,
            "n_random": self.controls, "n_shuffled": self.controls, "doses": self.doses, "pairs": 0, "shown": 1,
        }  # fmt: skip

    def only(self, names: Sequence[str]) -> dict[str, Any]:
        """Some of the sizes, as JSON can hold them."""
        found = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def clips(self, n_layers: int, has_prefix: bool) -> Mapping[str, float]:
        """The number of clips of `seconds` that each stage generates. Shorter clips count in proportion."""
        short = READ_SECONDS / self.seconds
        others = len(concepts("etude")) - 1
        study = self.settings()
        of_study = study.clips(n_layers)
        # `Settings.clips` counts the controls of a study without other concepts.
        of_study["controls"] += 2 * self.test * others
        of_study["reading directions"] = round((self.poles + others * study.other_poles) * short)
        places = len(study.blocks(n_layers))
        scanned = self.development * self.development_seeds * (1 + places * sum(2 * len(of) for of in
                  study.strengths.values()))  # fmt: skip
        ways = 4 + has_prefix
        found = {
            "studies": len(MAIN) * sum(of_study.values()),
            "readings": self.test * self.test_seeds * (2 + 2 * len(MAIN) * (1 + ways))
            + len(MAIN) * self.poles * short * ways,
            "one-call": len(self.called) * (PLACED * short + SCREENED)
            + self.test * self.call_seeds * (1 + 4 * len(self.called)),
            "placement": scanned * len([one for one in SCANNED if one not in MAIN and one in self.called]),
        }
        if has_prefix:
            tried = self.development * self.development_seeds * (1 + 2 * n_layers)
            tested = self.test * self.test_seeds * (1 + 2 * len(PAPER_DOSES) + 4)
            found["paper"] = len(MAIN) * (tried + tested + 3 * self.test)
        return found
