"""The settings of a study, such as its numbers of prompts, seeds, strengths and controls, and its sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis import sweep
from analysis.store.settings_file import python_numbers
from analysis.sweep.concept_measures import FEWEST_PROMPTS, measure_of, refuse_too_few
from audiolens import measure
from audiolens.checks import MOST_JOBS, checked_amount, checked_count, checked_flags, shown
from audiolens.directions.pole_reader import CodesSource, Position
from audiolens.directions.strategies import Strategy, described
from audiolens.door import checked_kinds, guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.groups import takes
from audiolens.interventions import Branch, checked_branch
from audiolens.measure import beats
from audiolens.measure.rhythm import FASTEST_BPM, FEWEST_ONSETS
from audiolens.model import text
from audiolens.model.timeline import longest_seconds
from audiolens.prompts import PromptSet
from audiolens.tracing.engines import Engine, checked_engine
from audiolens.tracing.recording import refuse_prefix
from audiolens.tracing.sampling import Sampling, checked_settings

if TYPE_CHECKING:
    from audiolens import AudioLens

TEST_SEED = 1_000_000
"""The first seed of test clips. Development clips use seeds from 0, so that no clip is in both splits."""
SEEDS_APART = 10_000
"""Offset between the seeds of two repetitions. A repetition uses fewer seeds, so repetitions share no seeds."""
DRAWS_APART = 1_000
"""Offset between the seeds of two repetitions' control directions."""
REPETITIONS = TEST_SEED // SEEDS_APART
"""Number of values of `Settings.seed`. With more repetitions, development seeds would reach the test seeds."""
OTHER_POLES = 24
"""Maximum number of prompts per pole from which another concept's direction is read.

About this many prompts make a direction stable (`Evidence.stable_at`).
"""
LEAST_SECONDS = FEWEST_ONSETS * 60 / FASTEST_BPM
"""Length of the shortest clip that can have four onsets. Any shorter clip would count as failed."""
_COUNTS = (
    "poles", "development", "development_seeds", "test", "test_seeds", "n_random", "n_shuffled", "control_seeds",
    "most_blocks", "pairs", "shown", "batch_size",
)  # fmt: skip
_FEW_ONSETS = f" (a clip of fewer than {FEWEST_ONSETS} onsets counts as failed)"
_Grid = Mapping[Strategy, tuple[float, ...]]
_SCANNED: _Grid = {"one-to-one": (1.0, 2.0), "one-to-all": (0.25,)}
_AT_PLACE: _Grid = {
    "one-to-one": (0.5, 1.0, 2.0),
    "one-to-all": (0.125, 0.25, 0.5),
    "all-to-all": (0.125, 0.25, 0.5),
}
_FULL_SCANNED: _Grid = {"one-to-one": (1.0, 2.0), "one-to-all": (0.125, 0.25, 0.5)}
_FULL_AT_PLACE: _Grid = {
    "one-to-one": (0.5, 1.0, 1.5, 2.0),
    "one-to-all": (0.125, 0.25, 0.375, 0.5),
    "all-to-all": (0.125, 0.25, 0.375, 0.5),
}
OWN_IS_LONGER = 2.0
"""Approximate length of a direction computed on each prompt's own codes, divided by that of a direction computed on
shared codes.

A direction computed on own codes also contains properties of the music, so it is longer and its strengths are smaller.
"""


@guarded
@takes("sampling", Sampling)
@dataclass(frozen=True)
class Settings:
    """Sizes and sampling of a study. The defaults take two to six minutes on two cores with the bundled model.

    Attributes:
        poles: number of prompts per pole from which directions are read.
        reading_seconds: length of the clips on which directions are read and the place is chosen.
        position: position in the clip or text at which directions are read, as in `difference_in_means`.
        codes: the clips on which the model runs while the poles are read: "shared" (the same clips of the development
            prompts for both poles) or "own" (each prompt's own clip).
        development, development_seeds: number of neutral prompts, and of seeds per prompt, for choosing place and
            strength.
        test, test_seeds: number of neutral prompts, and of seeds per prompt, for the reported results.
        place_by: how the place is chosen. "evidence" uses `analysis.placement`, without steering. "scan" takes the
            block at which steering has the largest effect on development prompts.
        verify: whether to scan the blocks even if the place is chosen from evidence, to see what the evidence missed.
        strengths: strengths to try at every block of a scan, per strategy, in units of the difference in means.
        strengths_at_place: strengths to try at the place that the evidence selects, per strategy. The default strengths
            of both settings are for shared codes. With `codes="own"`, they are divided by `OWN_IS_LONGER`.
        doses: multiples of the chosen strength to report on test prompts. They must include 1.
        n_random, n_shuffled: numbers of random directions and of balanced shuffles. A claim needs 19 of each, and
            enough controls in total that the corrected p-values of both poles can reach .05. If another concept is also
            a control (`study.run(others=)`), 19 of each are enough for one study.
        control_seeds: number of seeds per test prompt for which controls are run. The effect of steering over the same
            (prompt, seed) pairs is ranked among the controls' effects.
        most_blocks: maximum number of blocks to scan. If the model has more blocks, evenly spaced ones are scanned.
        pairs: number of matched prompt pairs to patch activations between. 0 skips patching.
        measured: the measure of the concept (default: its entry in `analysis.sweep.concept_measures.MEASURED`).
        measured_by: a mapping from concepts to the measures that replace their defaults in `MEASURED`.
        frechet: whether to compute the Fréchet distance between steered and unsteered clips, which needs many clips.
        seconds, guidance_scale, temperature, top_k: length and sampling of every clip.
        branch: the guidance branch to steer.
        shown: number of (prompt, seed) pairs whose clips are saved as audio, starting with the first prompt.
        seed: number of the repetition, 0 to `REPETITIONS` - 1. No two repetitions share a clip or a control direction.
        batch_size, n_jobs, engine: as in `sweep.play`. `n_jobs` and `engine` change only the running time.
        substitutes: deviations from a published protocol, one sentence each. The report repeats them.
        sampling: a `Sampling` that replaces guidance_scale, temperature, top_k and, if it sets a length, seconds. It
            can only be given when the settings are created.
    """

    poles: int = 48
    position: Position = "mean"
    codes: CodesSource = "shared"
    reading_seconds: float = 2.0
    development: int = 8
    development_seeds: int = 3
    test: int = 8
    test_seeds: int = 4
    place_by: Literal["evidence", "scan"] = "evidence"
    verify: bool = False
    strengths: Mapping[Strategy, tuple[float, ...]] = field(default_factory=lambda: _SCANNED)
    strengths_at_place: Mapping[Strategy, tuple[float, ...]] = field(default_factory=lambda: _AT_PLACE)
    doses: tuple[float, ...] = (0.5, 1.0)
    n_random: int = 19
    n_shuffled: int = 19
    control_seeds: int = 1
    most_blocks: int = 12
    pairs: int = 16
    measured: str | None = None
    measured_by: Mapping[str, str] = field(default_factory=dict)
    frechet: bool = False
    seconds: float = 5.0
    guidance_scale: float = 3.0
    temperature: float = 1.0
    top_k: int | None = 250
    branch: Branch = "both"
    shown: int = 3
    seed: int = 0
    batch_size: int = 64
    n_jobs: int | None = None
    engine: Engine = "auto"
    substitutes: tuple[str, ...] = ()
    sampling: InitVar[Sampling | None] = field(default=None, kw_only=True)

    @classmethod
    def full(cls, **changes: Any) -> Settings:
        """Return settings with more controls and enough prompts for narrow intervals.

        A study with these settings takes hours. Its 198 controls are enough to correct for both poles of four concepts
        (Holm).
        """
        sizes: dict[str, Any] = {"poles": 100, "development": 16, "test": 24, "n_random": 99,
                                 "n_shuffled": 99, "pairs": 64, "frechet": True}  # fmt: skip
        sizes |= {"strengths": _FULL_SCANNED, "strengths_at_place": _FULL_AT_PLACE}
        return cls(**{**sizes, **changes})

    @classmethod
    def paper(cls, lens: AudioLens, **changes: Any) -> Settings:
        """Return settings for the protocol of Facchiano et al. (2025, arXiv 2504.04479), with full controls.

        Directions are read from 100 prompts per pole at the text's last token. One block's direction is added at every
        block (one-to-all), in both guidance branches, at strength 1.25, and results are reported for strengths up to 2.
        Every block is tried as the source. `substitutes` lists the deviations from the paper, both in general and those
        specific to this model. A study with these settings takes a long time.
        """
        other = ["The prompts are audiolens's own, one hundred per pole."]
        lacking = beats.lacking()
        if lacking is not None:
            other.append(f"Tempo is measured from the intervals between onsets (librosa), not by Beat This: {lacking}")
        other.append(
            "Quality is measured by the share of failed clips and by the Fréchet distance in the features of the "
            "model's own codec, not by FAD, whose 512 features would need more than 2,560 clips per condition."
        )
        position: Position = "eos"
        if not lens.config.has_prefix:
            position = "last"
            other.insert(
                0, "Directions are read at the clip's last step, because the text is not part of the decoder sequence."
            )
        protocol: dict[str, Any] = {
            "position": position,
            "codes": "own",
            "place_by": "scan",
            "strengths": {"one-to-all": (1.25,)},
            "doses": (0.4, 0.8, 1.0, 1.6),
            "branch": "both",
            "most_blocks": lens.config.n_layers,
            "measured_by": {"tempo": "tempo_beat_this"} if lacking is None else {},
            "substitutes": tuple(other),
        }
        return cls.full(**{**protocol, **changes})

    @property
    def drawing(self) -> dict[str, Any]:
        """The sampling settings of the clips, as arguments of `lens.generate`."""
        return {name: getattr(self, name) for name in ("guidance_scale", "temperature", "top_k")}

    @property
    def first_draw(self) -> int:
        """The seed of the first control direction."""
        return self.seed * DRAWS_APART

    @property
    def first_pair(self) -> int:
        """The seed of the first patched pair of prompts."""
        return self.seed * SEEDS_APART

    def reading_seeds(self, sets: PromptSet) -> range:
        """Return the seeds of the clips from which directions are read.

        The i-th prompt of each pole uses the i-th seed. With shared codes, the i-th clip uses the i-th seed.
        """
        first = self.seed * SEEDS_APART
        return range(first, first + min(self.poles, max(len(sets.positive), len(sets.negative))))

    def development_clips(self, sets: PromptSet) -> list[sweep.PromptSeed]:
        """Return the (prompt, seed) pairs from which place and strength are chosen."""
        prompts = sets.development[: self.development]
        return sweep.clips(prompts, self.development_seeds, self.seed * SEEDS_APART)

    def test_clips(self, sets: PromptSet) -> list[sweep.PromptSeed]:
        """Return the (prompt, seed) pairs from which the reported results come."""
        return sweep.clips(sets.test[: self.test], self.test_seeds, TEST_SEED + self.seed * SEEDS_APART)

    def __post_init__(self, sampling: Sampling | None) -> None:  # noqa: ARG002 - its values arrive as the other fields
        checked_flags(verify=self.verify, frechet=self.frechet)
        if self.codes == "own":
            for name, defaults in (
                ("strengths", (_SCANNED, _FULL_SCANNED)), ("strengths_at_place", (_AT_PLACE, _FULL_AT_PLACE)),
            ):  # fmt: skip
                given = getattr(self, name)
                if any(given is default for default in defaults):
                    smaller = {key: tuple(one / OWN_IS_LONGER for one in amounts) for key, amounts in given.items()}
                    object.__setattr__(self, name, smaller)
        for name in _COUNTS:
            object.__setattr__(self, name, checked_count(name, getattr(self, name), 0))
        if self.n_jobs is not None:
            object.__setattr__(self, "n_jobs", checked_count("n_jobs", self.n_jobs, 0, MOST_JOBS))
        for strategy, amounts in (*self.strengths.items(), *self.strengths_at_place.items()):
            if not amounts or not all(map(_is_positive, amounts)):
                raise InputError(f"strengths of {strategy}: {shown(list(amounts))}; expected finite numbers above 0.")
            if described(strategy).changes in ("band", "heads"):
                raise InputError(
                    f"strengths of {strategy}: a study compares single blocks with each other. Give strengths of "
                    "'one-to-one', 'one-to-all' or 'all-to-all', and use sweep.run for others."
                )
        if not self.strengths:
            raise InputError("strengths is empty: expected a strategy with at least one strength.")
        if 1.0 not in self.doses or not all(map(_is_positive, self.doses)):
            raise InputError(f"doses={shown(self.doses)}: expected finite numbers above 0, including 1.0.")
        if self.place_by not in ("evidence", "scan"):
            raise InputError(f"place_by={shown(self.place_by)}: expected 'evidence' or 'scan'.")
        checked_engine(self.engine)
        if self.codes not in ("own", "shared"):
            raise InputError(f"codes={shown(self.codes)}: expected 'own' or 'shared'.")
        checked_kinds(self)
        checked_settings(self.guidance_scale, self.temperature, self.top_k)
        if self.branch == "null":
            checked_branch(self.branch, self.guidance_scale > 1)
        for one in fields(self):
            object.__setattr__(self, one.name, python_numbers(getattr(self, one.name)))

    def blocks(self, n_layers: int) -> list[int]:
        """Return the blocks to scan."""
        n_layers = checked_count("n_layers", n_layers)
        return np.unique(np.linspace(0, n_layers - 1, min(self.most_blocks, n_layers)).round().astype(int)).tolist()

    def control_clips(self, sets: PromptSet) -> list[sweep.PromptSeed]:
        """Return the test clips on which controls are run: those with the first seeds of every test prompt."""
        clips = self.test_clips(sets)
        return [clip for first in range(0, len(clips), self.test_seeds)
                for clip in clips[first : first + self.control_seeds]]  # fmt: skip

    def clips(self, n_layers: int, sets: PromptSet | None = None, others: Sequence[PromptSet] = ()) -> dict[str, int]:
        """Return the number of clips that each stage generates.

        Without `sets`, the number for directions is an upper bound. With few prompts, there are fewer distinct shuffles
        than `n_shuffled`, and therefore fewer clips for controls.
        """
        development = self.development * self.development_seeds
        by_strategy = {name: 2 * len(set(amounts)) for name, amounts in self.strengths.items()}
        # The strategy of the chosen place is compared with every other strategy.
        strategies = max(1, len(self.strengths))
        scanned = sum(by_strategy.values()) * len(self.blocks(n_layers))
        conditions = 1 + 2 * len(set(self.doses)) * strategies + 4
        controls = 1 + 2 * (self.n_random + self.n_shuffled + len(others))
        # These positions come before any sound, so no clip is generated.
        generated = self.position not in ("first", "eos")
        pairs = [(sets, self.poles), *((one, self.other_poles) for one in others)]
        lengths = [
            [min(most, len(side)) for side in (() if one is None else (one.positive, one.negative))] or [most] * 2
            for one, most in pairs
        ]
        # With shared codes, each clip is read with one prompt of each pole.
        read = sum(max(one) if self.codes == "shared" else sum(one) for one in lengths)
        counts = {"reading directions": read * generated}
        if self.scans:
            counts["scanning blocks"] = development * (1 + scanned)
        if self.place_by == "evidence":
            tried = {2 * len(set(amounts)) for amounts in self.strengths_at_place.values()}
            counts["choosing a strength"] = development * (1 + max(tried) * strategies)
        return {
            **counts,
            "dose-response": self.test * self.test_seeds * conditions,
            "controls": self.test * self.control_seeds * controls,
        }

    @property
    def other_poles(self) -> int:
        """Number of prompts per pole from which another concept's direction is read."""
        return min(self.poles, OTHER_POLES)

    @property
    def scans(self) -> bool:
        """Whether the study scans blocks."""
        return self.verify or self.place_by == "scan"

    def measure_of(self, concept: str) -> str:
        """Return the measure of a concept.

        Raises:
            InputError: if the concept has no measure, or if its measure has no true zero, because ratios would be
                meaningless.
        """
        return measure_of(concept, self.measured, self.measured_by)

    def measures_of(self, concept: str) -> tuple[str, ...]:
        """Return all measures to compute for a concept's clips."""
        # In a study of several concepts, each concept's clips are also measured by the other concepts' measures.
        further = {self.measure_of(concept), *self.measured_by.values()} - {*measure.MEASURES}
        return (*measure.MEASURES, *sorted(further))

    def check(self, lens: AudioLens, sets: PromptSet) -> None:
        """Raise `InputError` at once for settings that would otherwise fail only after minutes."""
        refuse_too_few(sets)
        measure.refuse_lacking(self.measures_of(sets.concept))
        for name in ("development", "test"):
            wanted, there = getattr(self, name), len(getattr(sets, name))
            if not 1 <= wanted <= there:
                raise InputError(
                    f"{name}={wanted} prompts: expected at least 1, and {shown(sets.concept)} has {there}."
                )
        for pole in sets.poles:
            # This raises an error if a pole has no word, because the prompted references need one.
            sets.prompted(sets.test[0], pole)
        high, low = (sets.words(pole)[0] for pole in sets.poles)
        if text.read_alike(high, low, lens.tokenizer):
            raise InputError(
                f"{shown(sets.concept)}: the model does not know {shown(high)} or {shown(low)}, so it reads them alike "
                "and no prompt can ask for a pole: give words that it knows (--words, PromptSet.completed)."
            )
        for name in ("poles", "development_seeds", "test_seeds", "most_blocks", "batch_size"):
            least = FEWEST_PROMPTS if name == "poles" else 1
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}: expected at least {least}.")
        if self.pairs < 0:
            raise InputError(f"pairs={self.pairs}: expected at least 0.")
        if not 1 <= self.control_seeds <= self.test_seeds:
            raise InputError(f"control_seeds={self.control_seeds}: expected 1 to test_seeds={self.test_seeds}.")
        if self.n_random < 1:
            raise InputError("n_random=0: an effect needs a control to compare with; expected at least 1.")
        if self.position == "eos":
            refuse_prefix(lens.config, "position='eos'", "Use 'first' or 'last'.")
        asked = [sets.prompted(prompt, pole) for prompt in sets.test for pole in sets.poles]
        read = [*sets.positive, *sets.negative, *sets.development, *asked]
        _, tokens = text.checked(read, lens.model, lens.tokenizer)
        config = lens.config
        longest = longest_seconds(config, config.prefix(max(tokens)))
        for name, least, why in (("seconds", LEAST_SECONDS, _FEW_ONSETS), ("reading_seconds", 0.5, "")):
            if not least <= getattr(self, name) <= longest:
                given = getattr(self, name)
                raise InputError(f"{name}={given}: expected {least:g} to {longest:g} for this model{why}.")
        if not 0 <= self.seed < REPETITIONS:
            raise InputError(f"seed={self.seed}: expected 0 to {REPETITIONS - 1}, one per repetition.")
        for what, count, most in (
            ("poles", self.poles, SEEDS_APART),
            ("development x development_seeds", self.development * self.development_seeds, SEEDS_APART),
            ("test x test_seeds", self.test * self.test_seeds, SEEDS_APART),
            ("n_random", self.n_random, DRAWS_APART),
            ("n_shuffled", self.n_shuffled, DRAWS_APART),
        ):
            if count > most:
                raise InputError(f"{what}={count}: expected at most {most}, so that repetitions do not overlap.")


def settings_or_default(settings: Any) -> Settings:
    """Return the given settings, or the defaults for `None`.

    Raises:
        InputTypeError: if the value is anything else. Without this check, `False` or an empty dict would be treated as
            `None`.
    """
    if settings is None:
        return Settings()
    if not isinstance(settings, Settings):
        raise InputTypeError(f"settings={shown(settings)}: expected study.Settings.")
    return settings


def _is_positive(value: Any) -> bool:
    try:
        return checked_amount("", value, above=0) > 0
    except InputError:
        return False
