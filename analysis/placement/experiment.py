"""Add a concept's direction at every candidate place while the model reads given codes, and choose the best place.

A place is a layer and a strategy: for example, one layer's vector added at its own block or at all blocks. `place`
compares two shifts of the next-code predictions: the shift caused by adding the direction at each place, and the shift
caused by naming the concept in the prompt (the *words*). It chooses the place where the two shifts are most similar, so
no steered clips are needed. The result also reports other evidence (probes, patching, attribution, norms, or your own).
This evidence, or another rule (`rules.py`), can decide the choice instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from analysis import layer_attribution
from analysis.placement.capacity import SEEDS_USED, screen
from analysis.placement.choice import chosen
from analysis.placement.confirm import MOST_CLIPS, Measured, checked_confirm, confirmed
from analysis.placement.equal_damage import at_equal_damage
from analysis.placement.other_evidence import Computable, checked_kinds, computed, generated_steps
from analysis.placement.result import Placement
from analysis.placement.rules import ALIGNMENT, CONFIRMED, EQUAL_DAMAGE, RULES, refuse_missing, refuse_names, spread
from analysis.placement.shifts import Candidate, asked_in_words, candidates, checked_strategies, shifts_of
from analysis.resampling import Resampling
from audiolens import prompts as prompt_sets
from audiolens.checks import MOST_SEED, checked_amount, checked_count, checked_flags, in_order, shown
from audiolens.directions.difference_in_means import difference_in_means
from audiolens.directions.directions import Directions
from audiolens.directions.pole_reader import CodesSource
from audiolens.directions.strategies import STRATEGIES, Strategy
from audiolens.door import guarded
from audiolens.errors import InputError, InputTypeError
from audiolens.groups import takes
from audiolens.model.sites import checked_layers
from audiolens.model.tokens import named_once, note_unread
from audiolens.prompts import PromptSet
from audiolens.tracing.sampling import Sampling

if TYPE_CHECKING:
    from audiolens import AudioLens

READ_PROMPTS = 48
"""Number of prompts per pole from which directions are read if the caller gives no directions."""
READ_SECONDS = 2.0
SCREEN_SECONDS = 5.0
"""A clip with fewer than four beats counts as failed. At 50 BPM, four beats take five seconds."""


@guarded
@named_once
@takes("resampling", Resampling)
@takes("sampling", Sampling, keeps="all")
def place(
    lens: AudioLens,
    concept: str | PromptSet,
    directions: Directions | None = None,
    *,
    strategies: Sequence[Strategy] = ("one-to-one", "one-to-all"),
    layers: int | Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    codes: Int[Tensor, "row codebook frame"] | None = None,
    seconds: float = 2.0,
    screen_seconds: float = SCREEN_SECONDS,
    evidence: Mapping[str, Any] | None = None,
    compute: Sequence[Computable] = get_args(Computable),
    by: str = ALIGNMENT,
    confirm: int = 0,
    measured: Measured | None = None,
    n_random: int = 5,
    batch_size: int = 16,
    n_bootstrap: int = 1000,
    seed: int = 0,
    progress: bool = True,
    sampling: Sampling | None = None,
    resampling: Resampling | None = None,  # noqa: ARG001 - its values arrive as the loose arguments
    read_over: CodesSource = "shared",
) -> Placement:
    """Choose where to add a concept's direction, and with which strategy.

    Args:
        lens: the model.
        concept: the name of a bundled prompt set, or your own prompt set.
        directions: directions of that concept, from the negative to the positive pole. By default they are computed as
            differences in means.
        strategies: any of "one-to-one", "one-to-all" and "all-to-all", in order of preference. Of equally good places,
            the one with the first strategy, and then the lowest block, is chosen.
        layers: the layers whose vectors are candidates (default: every layer of the directions).
        prompts: neutral prompts (default: the first eight development prompts of the set).
        codes: codes that the model reads with these prompts, one row per prompt. By default the model generates them
            without steering.
        seconds: length of the generated clips, in seconds.
        screen_seconds: length of the steered clips that are generated at the chosen place to cap its strength (see
            `Placement.capacity`), at most as long as the model allows. With 0, no clips are generated and no cap
            applies.
        evidence: further evidence about each layer, by name, in a form that `layer_attribution.gather` accepts.
        compute: evidence to compute on the same clips: "probe", "patching", "attribution". Evidence that cannot be
            computed (such as a probe with one clip, or attribution between prompts of unequal length) is left out, and
            the result states why.
        by: the rule that decides, or the name of other evidence. "alignment" takes the place with the largest alignment
            (see `Placement`). "equal_damage" takes the place with the largest alignment at the strength that changes
            the predictions as much as the words do. "middle" takes the middle block, one-to-one. "constancy" adds the
            last block's vector at all blocks if the shift of the words is constant over time, and otherwise takes the
            middle block, one-to-one. Other evidence selects the candidate block where its value is largest, and the
            first strategy that uses a single block.
        confirm: with a number n above 0, the place is chosen by generating clips at four fixed places instead: n clips
            per sign at each of them, at a strength that they tolerate, and 2n further clips per sign at the two better
            ones (at most 35n clips, and usually about 20n). The clips have the length of the screen's. `by` has to be
            left at its default.
        measured: the measure with which `confirm` compares places: a name from `audiolens.measure.MEASURES`, or a
            function of the generated clips that returns one number per clip, such as 1 for one of two instruments
            and otherwise 0. The median of a measure's changes counts, and the mean of a function's. By default, it is
            the measure in which studies report effects on the concept.
        n_random: number of random directions of the same lengths to try at the chosen place. They show how large an
            alignment can be by chance.
        batch_size: number of rows in one forward pass.
        n_bootstrap, seed: number of bootstrap resamples of the prompts, and their seed. Clips are generated with the
            seeds `seed`, `seed` + 1, ...
        progress: show a progress bar.
        sampling: a `Sampling` for the clips generated from `prompts`. If it sets a length, that length replaces
            `seconds`.
        resampling: a `Resampling` that replaces `n_bootstrap` and `seed`.
        read_over: the clips over which the poles' prompts are read if no directions are given (`codes` in
            `difference_in_means`). "shared" uses clips of the set's development prompts, or of `prompts` if the set has
            none. "own" uses each prompt's own clip.

    Raises:
        InputError: (or a subclass) if strategies, layers or evidence do not exist; if the directions come from another
            model or are zero at every layer; if a place that the rule names is not a candidate; if unsteered clips
            fail, so that `confirm` cannot compare places; or if the model reads its text as a prefix and the words of
            the two poles have different numbers of tokens.

    The effects of the words and of the direction are measured on the conditional branch, without guidance.
    """
    checked_flags(progress=progress)
    sets = prompt_sets.load(concept, lens=lens) if isinstance(concept, str) else concept
    if not isinstance(sets, PromptSet):
        raise InputTypeError(f"concept={type(concept).__name__}: expected the name of a prompt set, or a PromptSet.")
    checked_strategies(strategies)
    if read_over not in get_args(CodesSource):
        raise InputError(f"read_over={read_over!r}: expected 'own' or 'shared'.")
    checked_kinds(compute)
    confirm, n_random, n_bootstrap, batch_size, seed = (
        checked_count("confirm", confirm, 0, MOST_CLIPS),
        checked_count("n_random", n_random, 0),
        checked_count("n_bootstrap", n_bootstrap, 0),
        checked_count("batch_size", batch_size, 2),
        checked_count("seed", seed, 0, MOST_SEED),
    )
    screen_seconds = _checked_screen(lens, screen_seconds, seed, bool(confirm))
    given: dict[str, Any] = {}
    if evidence:
        refuse_names(list(evidence))
        given = {one.name: one for one in layer_attribution.gather(**evidence).evidence}
    known = {*RULES, "norm", *compute, *given}
    if by not in known:
        raise InputError(f"by={shown(by)}: expected one of {', '.join(sorted(known))}.")
    if by not in RULES and not any(STRATEGIES[name].uses_one_layer for name in strategies):
        raise InputError(f"by={shown(by)} selects one block: give a strategy that uses one, such as one-to-one.")
    if confirm and by != ALIGNMENT:
        raise InputError(f"by={shown(by)} and confirm={confirm}: clips decide with confirm, so leave out one of them.")
    if measured is not None and not confirm:
        raise InputError(f"measured={shown(measured)}: only confirm measures clips, so give it as well.")
    n_layers = lens.config.n_layers
    if layers is None:
        blocks = range(n_layers) if directions is None else directions.layers
    else:
        blocks = checked_layers(layers, n_layers)
    refuse_missing(by, confirm, n_layers, {(name, block) for name in strategies for block in blocks})
    neutral = _neutral(sets, prompts)
    ear = checked_confirm(confirm, measured, sets, neutral) if confirm else None
    poles = asked_in_words(lens, sets, neutral)
    read_from = () if directions is not None else (*sets.positive[:READ_PROMPTS], *sets.negative[:READ_PROMPTS])
    note_unread((*neutral, *poles[0], *poles[1], *read_from), lens.tokenizer)
    if codes is not None and len(codes) != len(neutral):
        raise InputError(f"{len(codes)} rows of codes for {len(neutral)} prompts: give one row per prompt.")
    reading, drawing = 0, 0
    if directions is None:
        # Take the same number of prompts from both poles, so that the pairs are those of the set.
        read = min(READ_PROMPTS, len(sets.positive), len(sets.negative))
        directions = difference_in_means(
            lens, sets.positive[:read], sets.negative[:read], seeds=list(range(read)), batch_size=batch_size,
            seconds=READ_SECONDS, label=sets.concept, progress=progress, codes=read_over,
            neutral=(sets.development or neutral) if read_over == "shared" else None,
        )  # fmt: skip
        # Shared codes cost the same, because half as many clips are generated and each is read twice without guidance.
        reading = generated_steps(lens, 2 * read, READ_SECONDS)
    directions.meta.refuse_other(lens)
    found = candidates(directions, strategies, layers)
    refuse_missing(by, confirm, n_layers, {(one.strategy, one.layer) for one in found})
    if codes is None:
        drawn = list(range(seed, seed + len(neutral)))
        settings = replace(sampling or Sampling(), seconds=seconds)
        codes = lens.generate(neutral, seeds=drawn, sampling=settings, decode=False, batch_size=batch_size).codes
        drawing = generated_steps(lens, len(neutral), seconds)
    # A prefix of another length displaces every step, and a set's own pairs differ from the neutral prompts.
    words_added = bool(sets.positive_words and sets.negative_words) and not lens.config.has_prefix
    shifts = shifts_of(
        lens, neutral, poles, codes, found, batch_size=batch_size, words_added=words_added,
        progress="placing" if progress else None,
    )  # fmt: skip
    damage = None
    if by == EQUAL_DAMAGE:
        damage = at_equal_damage(
            lens, neutral, poles, codes, found, shifts, batch_size=batch_size, words_added=words_added
        )
    other = computed(lens, sets, directions, poles, codes, compute, batch_size=batch_size)
    if by in other.left_out:
        raise InputError(f"by={shown(by)}: {other.left_out[by]}")
    gathered = layer_attribution.gather(units=other.units, norm=directions, **other.found, **given)
    placement = chosen(
        sets, found, shifts, gathered, damage=damage, prompts=neutral, by=by, left_out=other.left_out,
        n_bootstrap=n_bootstrap, seed=seed, spent=(reading, drawing, other.row_steps),
    )  # fmt: skip
    strength = placement.words_strength
    if ear is not None:
        at = [place for place, one in enumerate(found) if (one.strategy, one.layer) in spread(n_layers)]
        fixed, first = [found[place] for place in at], placement.candidates.strength.iloc[at].tolist()
        heard = confirmed(
            lens, fixed, first, neutral, confirm, ear, seconds=screen_seconds or SCREEN_SECONDS, seed=seed,
            batch_size=batch_size, progress=progress, sampling=sampling or Sampling(),
        )  # fmt: skip
        # By itself, this rule compares only its own places with the words.
        compared = shifts.words_steps + (shifts.row_steps - shifts.words_steps) * len(at) // len(found)
        strength = heard.strength
        placement = placement.with_more(
            heard.row_steps, strategy=heard.where.strategy, layer=heard.where.layer, directions=heard.where.directions,
            by=CONFIRMED, certainty=float("nan"), choices={**placement.choices, CONFIRMED: heard.where.name},
            costs={**placement.costs, CONFIRMED: reading + drawing + compared + heard.row_steps},
            capacity=strength, screened=heard.tried, heard=heard.heard, n_heard=heard.n_clips,
        )  # fmt: skip
    where = next(one for one in found if one.name == placement.name)
    if n_random:
        own = [
            Candidate(where.strategy, where.layer, where.directions.random_like(seed + draw))
            for draw in range(n_random)
        ]
        control = shifts_of(lens, neutral, poles, codes, own, batch_size=batch_size)
        placement = placement.with_more(control.row_steps, random=tuple(control.alignment().tolist()))
    if screen_seconds and not placement.rejected:
        capacity = screen(
            lens, where, strength, neutral, seconds=screen_seconds, seed=seed, batch_size=batch_size,
            progress=progress, sampling=sampling or Sampling(),
        )  # fmt: skip
        left_out = {**placement.left_out, **({"screen": capacity.left_out} if capacity.left_out else {})}
        known = placement.capacity if np.isnan(capacity.strength) else capacity.strength
        tried = capacity.tried if placement.screened is None else pd.concat([placement.screened, capacity.tried])
        placement = placement.with_more(
            capacity.row_steps, screened=tried.reset_index(drop=True), capacity=known, left_out=left_out
        )
        strength = strength if np.isnan(capacity.strength) else min(strength, capacity.strength)
    if np.isfinite(strength) and strength > 0:
        far = shifts_of(lens, neutral, poles, codes, [where], batch_size=batch_size, strengths=[strength])
        placement = placement.with_more(far.row_steps, at_strength=float(far.alignment()[0]))
    return placement


def _checked_screen(lens: AudioLens, seconds: Any, seed: int, confirm: bool) -> float:
    """Check the length of steered clips and their seeds, before anything is generated."""
    length = checked_amount("screen_seconds", seconds)
    shortest = max(1, *lens.config.delays) / lens.config.frame_rate
    if length and length < shortest:
        raise InputError(f"screen_seconds={shown(seconds)}: expected 0, or at least {shortest:g} seconds.")
    if (length or confirm) and seed > MOST_SEED - SEEDS_USED:
        raise InputError(f"seed={shown(seed)}: expected at most {MOST_SEED - SEEDS_USED:,} if clips are steered.")
    return length


def _neutral(sets: PromptSet, prompts: Sequence[str] | None) -> list[str]:
    if prompts is None:
        if not sets.development:
            raise InputError(f"{sets.concept}: the set has no neutral prompts; give prompts=[...].")
        return list(sets.development[:8])
    listed = [] if isinstance(prompts, str) else list(in_order("prompts", prompts, "neutral prompts"))
    if not listed:
        raise InputError("prompts: expected a list of at least one neutral prompt.")
    return listed
