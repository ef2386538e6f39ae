"""The claims: what each says, how it is measured, and when it counts as holding on a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from replication import verdicts as v
from replication.measuring import ENOUGH
from replication.sizes import MAIN, SCANNED
from replication.verdicts import Numbers, Verdict, every_pole

MEASURE_NAMES: Mapping[str, str] = {
    "tempo_ioi": "tempo", "brightness": "brightness", "ltas_centroid": "the long-term-average centroid",
    "pitch": "pitch", "pulse_clarity": "pulse clarity", "loudness": "loudness",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A claim about steering.

    Attributes:
        id: the name by which pages refer to it.
        sentence: what it says.
        judge: decides on a model's numbers; raises `KeyError` if they were not measured.
        prefix_only: whether it applies only to models whose text stands in the decoder's own sequence.
    """

    id: str
    sentence: str
    judge: Callable[[Numbers], Verdict]
    prefix_only: bool = False

    def verdict(self, numbers: Numbers) -> Verdict | None:
        """The verdict on a model, or `None` if the model was not measured for it."""
        try:
            return self.judge(numbers)
        except KeyError:
            return None


@dataclass(frozen=True)
class Topic:
    """Claims that are measured in the same way, and that count as holding under the same condition."""

    title: str
    measured: str
    when: str
    claims: tuple[Claim, ...]


_MOVES = "The effect in the first table holds"
_NARROWER = "The effect in the first table holds towards either pole, and the span is at most 10% narrower."
_TOWARDS = "The interval excludes 0 in that direction, and at most 10% of the clips fail."
_POLES = [(f"{concept}-{pole}", f"{concept}/{pole}", pole, sign) for concept, pole, sign in every_pole(MAIN)]
_CALLED = [
    (f"call-{concept}-{pole}", f"{concept}/{pole}", f"{concept} towards {pole}") for concept, pole, _ in every_pole()
]
_POSITIONS = {"first": "at the first step", "last": "at the last step", "eos": "at the text's last token"}

TOPICS: tuple[Topic, ...] = (
    Topic(
        "Steering tempo and timbre",
        "Median change from the unsteered clip of the same prompt and seed, on neutral test prompts, at a place and "
        "strength that were chosen on development prompts. A failed clip counts as no change. The measures are the "
        "interval between accents (`tempo_ioi`) and the spectral centroid (`brightness`).",
        _TOWARDS,
        tuple(
            Claim(name, f"Steering towards {pole} moves the measure that way.",
                  partial(v.towards, f"effect/{key}", sign))
            for name, key, pole, sign in _POLES
        ),
    ),
    Topic(
        "Steering compared with controls",
        "Rank of the mean change among those of random directions, balanced shuffles and the directions of the nine "
        "other concepts, with the same norm at the same place. p is corrected for all four poles (Holm).",
        f"{_MOVES}, p is at most .05, and no other concept's direction has as large an effect.",
        tuple(
            Claim(f"{name}-controls", f"No control moves clips as far towards {pole}.",
                  partial(v.beyond_controls, key))
            for name, key, pole, _ in _POLES
        ),
    ),
    Topic(
        "Steering compared with words",
        "Median change from the clip of the same seed whose prompt names the pole, with the sign of the pole.",
        f"{_MOVES}, and the median is at least 0.",
        tuple(
            Claim(f"{name}-words", f"Steering moves clips at least as far towards {pole} as asking.",
                  partial(v.as_far_as_words, key))
            for name, key, pole, _ in _POLES
        ),
    ),
    Topic(
        "Every concept by one call",
        "As in the first table, but at the place and strength of `placement.place`, which are not chosen by the effect "
        "of steered clips. For an instrument, the change in the share of clips that a classifier takes for it.",
        f"{_TOWARDS} A concept whose placement is rejected does not hold.",
        (
            *(
                Claim(name, f"One call steers {pole}.", partial(v.by_one_call, key)) for name, key, pole in _CALLED
            ),
            Claim("call-all", "All of the above.", v.every_call),
        ),
    ),
    Topic(
        "One call compared with words",
        "Median (for an instrument, mean) change from the clip of the same seed whose prompt names the pole, with the "
        "sign of the pole.",
        "The claim above holds, and the number is at least 0.",
        tuple(
            Claim(f"{name}-words", f"One call steers {pole} as far as asking.",
                  partial(v.called_as_far, key))
            for name, key, pole in _CALLED
        ),
    ),
    Topic(
        "Clips that fail by one call",
        "The share of failed clips, averaged over all poles.",
        "At most 5%.",
        (Claim("call-failed", "Few clips fail when every concept is steered by one call.",
               partial(v.at_most, "called-failed", 0.05)),),
    ),
    Topic(
        "Side effects",
        "Median change of another measure, on the clips of the first table.",
        f"{_MOVES}, and the median of the other measure changes by at most 10% (1 dB for loudness).",
        tuple(
            Claim(f"{concept}-{pole}-{measure.replace('_', '-')}",
                  f"Steering towards {pole} leaves {MEASURE_NAMES[measure]} alone.",
                  partial(v.unchanged, f"{concept}/{pole}", measure))
            for concept, pole, _ in every_pole(MAIN)
            for measure in v.NEXT_TO[concept]
        ),
    ),
    Topic(
        "Mix of instruments",
        "Total variation distance between the classified instruments of steered and unsteered clips.",
        f"{_MOVES}, and the distance is at most 10%, or at most that of clips that were generated with other seeds.",
        tuple(
            Claim(f"{name}-instruments", f"Steering towards {pole} leaves the mix of instruments alone.",
                  partial(v.unmixed, key))
            for name, key, pole, _ in _POLES
        ),
    ),
    Topic(
        "Drift",
        "Mean absolute difference in nats per code under the unsteered model, in multiples of that between two seeds "
        "of one prompt.",
        f"{_MOVES}, and drift is at most 1.",
        tuple(
            Claim(f"{name}-drift", f"Steering towards {pole} changes the likelihood no more than another seed.",
                  partial(v.as_likely, key))
            for name, key, pole, _ in _POLES
        ),
    ),
    Topic(
        "Directions from shared and own codes",
        "Span between the poles with a direction read over shared codes, relative to that with one read over each "
        "prompt's own clip, at the same place and norm.",
        _NARROWER,
        tuple(
            Claim(f"codes-{concept}", f"Shared codes steer {concept} as far as own codes.",
                  partial(v.shared_as_far, concept))
            for concept in MAIN
        ),
    ),
    Topic(
        "Side effects with shared and own codes",
        "Mean absolute change of the other measures (1 dB counts as 10%), in multiples of that with own codes.",
        f"{_MOVES}, and the number is below 1.",
        tuple(
            Claim(f"codes-{concept}-{pole}", f"Towards {pole}, side effects are smaller with shared codes.",
                  partial(v.less_aside, concept, pole))
            for concept, pole, _ in every_pole(MAIN)
        ),
    ),
    Topic(
        "Positions",
        "Span between the poles, relative to that of the direction averaged over the clip, at the same place and norm. "
        "The place was chosen for the averaged direction, which favours it.",
        _NARROWER,
        tuple(
            Claim(f"position-{way}-{concept}",
                  f"A direction read {where} steers {concept} as far as one averaged over the clip.",
                  partial(v.as_far_as_the_mean, way, concept), prefix_only=way == "eos")
            for way, where in _POSITIONS.items()
            for concept in MAIN
        ),
    ),
    Topic(
        "Strategies",
        "Span between the poles with one block's vector added at every block (one-to-all), relative to one-to-one. "
        "Place and strength of each were chosen on development prompts.",
        "The interval lies above 0.",
        tuple(
            Claim(f"all-{concept}", f"One-to-all steers {concept} further than one-to-one.",
                  partial(v.towards, f"strategies/{concept}", 1))
            for concept in MAIN
        ),
    ),
    Topic(
        "Number of prompts",
        f"Cosine similarity of a direction from {ENOUGH} prompts per pole with one from half of all prompts, at the "
        "chosen block. The two have no prompt in common.",
        "A direction from the other half of the prompts gains at most .05.",
        tuple(
            Claim(f"prompts-{concept}", f"{ENOUGH} prompts per pole are enough for {concept}.",
                  partial(v.settled, concept))
            for concept in MAIN
        ),
    ),
    Topic(
        "Placement",
        "Span at the place that `placement.place` chose, as a share of the best place's in a sweep of every place on "
        "development prompts. Strength and best place are chosen on one half of the seeds and compared on the other.",
        f"At least 90%; for most concepts, in at least 80% of the {len(SCANNED)}.",
        (
            *(
                Claim(f"placed-{concept}", f"Placement finds a good place for {concept}.",
                      partial(v.at_least, f"placed/{concept}", v.WELL_PLACED))
                for concept in SCANNED
            ),
            Claim("placed-most", "Placement finds a good place for most concepts.", v.mostly_placed),
        ),
    ),
    Topic(
        "Placement and the middle block",
        "The share in the table above, minus that of the middle block with one-to-one, averaged over the concepts.",
        "Above 0.",
        (Claim("placed-middle", "Placement is better than the middle block.", v.beats_the_middle),),
    ),
    Topic(
        "The best block",
        "The block of the best place, as a share of depth: 0% is the first block, and 100% is the last.",
        "At most 50%.",
        tuple(
            Claim(f"block-{concept}", f"The best block for {concept} lies in the first half of the decoder.",
                  partial(v.at_most, f"best-block/{concept}", 0.5))
            for concept in SCANNED
        ),
    ),
    Topic(
        "The paper's protocol",
        "Read at the text's last token, added one-to-all at strength 1.25, from the best of all blocks.",
        _TOWARDS,
        tuple(
            Claim(f"paper-{pole}", f"The paper's protocol moves clips towards {pole}.",
                  partial(v.towards, f"paper/{pole}", sign), prefix_only=True)
            for _, _, pole, sign in _POLES
        ),
    ),
    Topic(
        "The paper's source block",
        "The source block of that protocol, as a share of depth.",
        "Within 20 percentage points of the paper's.",
        tuple(
            Claim(f"paper-source-{concept}", f"The best source block for {concept} lies at the paper's depth.",
                  partial(v.near_the_papers, concept), prefix_only=True)
            for concept in MAIN
        ),
    ),
    Topic(
        "Where quality falls in the paper's protocol",
        "The smallest tested strength at which more than 10% of the clips fail, or drift exceeds three times that "
        "between two seeds of one prompt. In the paper, FAD climbs steeply past about 1.5.",
        "Above 1.25, and at most 2.",
        tuple(
            Claim(f"paper-falls-{concept}", f"Steering {concept} beyond strength 1.25 costs quality.",
                  partial(v.falls_as_the_papers, concept), prefix_only=True)
            for concept in MAIN
        ),
    ),
)  # fmt: skip
CLAIMS: Mapping[str, Claim] = {claim.id: claim for topic in TOPICS for claim in topic.claims}
"""The claims by id, in the order of the page."""
