"""Write a listening test: choose clips, match their levels, name them at random, and write the page and the key."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

from analysis.listening_test import clips, levels, page
from analysis.listening_test.clips import Item
from analysis.listening_test.design import (
    COMPARED,
    CONCEPT,
    KEY,
    NEEDED,
    PAGE,
    QUALITY,
    RATED,
    RESPONSES,
    SOUNDS,
    Against,
    Key,
    Mode,
    Trial,
    unused,
)
from analysis.listening_test.levels import Sound
from analysis.store import folder as folders
from analysis.study.result import Study
from analysis.study.sentences import WORDS
from audiolens.characters import refuse_control
from audiolens.checks import checked_amount, checked_count, checked_text, listed, shown
from audiolens.door import guarded
from audiolens.errors import AudioLensWarning, InputError, InputTypeError
from audiolens.files.atomic import as_path
from audiolens.model.tokens import callers_level
from audiolens.sound import soundfiles

PAIRS, CHECKS, ANCHOR_HZ = 16, 3, 3500.0
MOST_PAIRS, MOST_CHECKS, MOST_LISTENERS, MOST_CONSENT = 400, 20, 10_000, 20_000
LONGEST_CODE = 40
QUESTIONS = (CONCEPT, QUALITY)
_LEAST_REMOVED = 0.01
"""The smallest share of a clip's energy that an anchor should lack."""
_RANDOM = secrets.SystemRandom()


@guarded
def write(
    study: Study | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    mode: Mode = "pairs",
    pairs: int = PAIRS,
    against: Against | None = None,
    questions: Sequence[str] | None = None,
    checks: int | None = None,
    anchor_hz: float | None = None,
    consent: str | None = None,
    listeners: Sequence[str] = (),
    model: str | None = None,
) -> Path:
    """Write a listening test of a study's clips into a new folder, and return the folder.

    The folder contains `page/`, which can be opened from disk or put on any web host; `responses/`, for the files that
    listeners send back; and the key, which says which clip is which and must not be published. The page's files have
    random names, no file or text of it says how a clip was made, and every trial is presented in random order.

    Args:
        study: a `Study`, or the folder of a finished one. From a folder, clips that the study did not keep as sound
            are decoded from their codes, which opens the model.
        mode: "pairs" asks which of two clips is faster (brighter, ...) and which sounds better. "mushra" asks for a
            rating of several clips per trial, with an open and a hidden reference (the unsteered clip) and a low-passed
            anchor, after ITU-R BS.1534-3. Its clips differ from the reference in more than quality, so it is like
            MUSHRA, not MUSHRA.
        pairs: number of comparisons, two per prompt and seed (one per pole), or as many as `against` has. A rating
            trial takes both poles, so it counts as two.
        against: for pairs, what steered clips are compared with: "unsteered" (the default), the clip steered to the
            "opposite" pole, or "both".
        questions: for pairs, "concept" and "quality" (the default), or one of them. Ratings are always of quality.
        checks: for pairs, the number of attention checks, by default 3. These are pairs with an obvious answer to one
            question: a clip played at twice the speed of the other (faster, and also brighter, higher and busier), or,
            where that says nothing about the concept, one under noise.
        anchor_hz: for ratings, the cutoff of the anchor in hertz, by default 3500.
        consent: the consent text, with empty lines between paragraphs; `None` writes a template to fill in.
        listeners: codes of those who are invited. The page then asks for the code, and `read` accepts no other.
        model: for the folder of a study, where its model is, if it is not where the study says.

    Raises:
        InputError: if the folder exists and is not empty, if the study has too few clips with sound, if all of them are
            silent, if an argument is out of range or goes with the other mode, or if a package of
            `audiolens[listening]` is missing.
    """
    levels.refuse_missing()
    given = {"against": against, "questions": questions, "checks": checks, "anchor_hz": anchor_hz}
    _check_mode(mode, given)
    against = "unsteered" if against is None else against
    questions = QUESTIONS if questions is None else questions
    checks = CHECKS if checks is None else checks
    anchor_hz = ANCHOR_HZ if anchor_hz is None else anchor_hz
    wanted = _checked(mode, pairs, against, questions, checks, anchor_hz, consent, listeners)
    folders.check(folder, overwrite=None)
    if isinstance(study, Study):
        if model is not None:
            raise InputError(f"model={shown(model)} goes with the folder of a study: a Study holds sounds, not codes.")
        found, items = study, clips.items_of(study, wanted)
        if len(items) < wanted:
            raise InputError(
                f"{pairs} pairs need {wanted} prompts x seeds, and this study kept the sound of {len(items)}: ask for "
                "fewer pairs, or give the study's folder, from whose codes further clips are decoded."
            )
    elif isinstance(study, str | os.PathLike):
        found, items = clips.items_in(as_path(study), wanted, model)
    else:
        raise InputTypeError(f"study={shown(study)}: expected a Study, or the folder of a finished one.")
    asked = _questions(found, mode, questions, checks)
    sounds: dict[str, Sound] = {}
    if mode == "pairs":
        trials, left_out = _pairs(items, COMPARED[against], pairs, found.sample_rate, sounds)
        trials += _checks(items, checks, CONCEPT if CONCEPT in asked and tuple(found.poles) in WORDS else QUALITY,
                          found.sample_rate, sounds)  # fmt: skip
    else:
        trials, left_out = _ratings(items, anchor_hz, found.sample_rate, sounds)
    if left_out:
        warnings.warn(
            f"{left_out} comparisons were left out, because one of their clips is silent.",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    if not any(not one.right for one in trials):
        raise InputError("every comparison has a silent clip, so there is nothing to listen to.")
    _RANDOM.shuffle(trials)
    key = Key(
        test=secrets.token_hex(8), mode=mode, concept=found.concept, poles=found.poles, model=found.model,
        strength=float(found.choice.strength), questions=asked, trials=tuple(trials), listeners=tuple(listeners),
        left_out=left_out,
    )  # fmt: skip
    with folders.fresh(folder, overwrite=None) as work:
        for name in (PAGE, f"{PAGE}/{SOUNDS}", RESPONSES):
            (work / name).mkdir()
        sounds[page.VOLUME] = _volume(found.sample_rate)
        # Files written one after another would show by their times which clips belong together.
        for name in _RANDOM.sample([*sounds], len(sounds)):
            soundfiles.write(work / PAGE / SOUNDS / f"{name}.wav", levels.dithered(sounds[name]), found.sample_rate)
        (work / PAGE / "index.html").write_text(page.render(key, consent), "utf-8")
        (work / KEY).write_bytes(key.as_bytes())
    return Path(folder)


def _check_mode(mode: str, given: Mapping[str, object]) -> None:
    if mode not in get_args(Mode):
        raise InputError(f"mode={shown(mode)}: expected one of {', '.join(get_args(Mode))}.")
    if name := unused(mode, given):
        other, why = NEEDED[name]
        raise InputError(f"{name}={shown(given[name])} goes with mode={other!r}, not {mode!r}: {why}.")


def _checked(
    mode: str, pairs: int, against: str, questions: Sequence[str], checks: int, anchor_hz: float, consent: str | None,
    listeners: Sequence[str],
) -> int:  # fmt: skip
    """Check the arguments, and return the number of prompts x seeds that they need."""
    if against not in get_args(Against):
        raise InputError(f"against={shown(against)}: expected one of {', '.join(get_args(Against))}.")
    checked_count("pairs", pairs, 1, MOST_PAIRS)
    checked_count("checks", checks, 0, MOST_CHECKS)
    checked_amount("anchor_hz", anchor_hz, above=0)
    chosen = listed("questions", questions)
    if not chosen or len({*map(str, chosen)}) < len(chosen) or any(one not in QUESTIONS for one in chosen):
        raise InputError(f"questions={shown(chosen)}: expected concept, quality, or both.")
    if consent is not None and len(checked_text("consent", consent)) > MOST_CONSENT:
        raise InputError(f"consent has {len(consent):,} characters: expected at most {MOST_CONSENT:,}.")
    codes = listed("listeners", listeners)
    for code in codes:
        if not isinstance(code, str) or not 0 < len(code.strip()) == len(code) <= LONGEST_CODE:
            raise InputError(f"listeners: {shown(code)}: expected codes of 1 to {LONGEST_CODE} characters.")
        refuse_control("listeners", code)
    if len({*codes}) < len(codes) or len(codes) > MOST_LISTENERS:
        raise InputError(f"listeners: expected at most {MOST_LISTENERS:,} codes, each once.")
    return -(-pairs // (2 if mode == "mushra" else len(COMPARED[against])))  # pyright: ignore[reportArgumentType]


def _questions(study: Study, mode: str, questions: Sequence[str], checks: int) -> dict[str, str]:
    if mode == "mushra":
        return {QUALITY: "How good does each clip sound, compared with the reference?"}
    high, low = study.poles
    known = (high, low) in WORDS
    if checks and not known and QUALITY not in questions:
        raise InputError(
            f"an attention check needs an obvious answer, and {shown(study.concept)} has none: also ask for quality, "
            "or give checks=0."
        )
    more = f"is {WORDS[high, low][1][0]}" if known else f"sounds more {high}"
    texts = {CONCEPT: f"Which clip {more}?", QUALITY: "Which clip sounds better?"}
    return {name: texts[name] for name in QUESTIONS if name in questions}


def _pairs(
    items: Sequence[Item], compared: Sequence[tuple[str, str]], pairs: int, rate: int, sounds: dict[str, Sound]
) -> tuple[list[Trial], int]:
    todo = [(item, roles) for item in items for roles in compared][:pairs]
    trials: list[Trial] = []
    for item, roles in todo:
        if found := levels.matched([item.sounds[role] for role in roles], rate):
            trials.append(_trial(item, dict(zip(roles, found, strict=True)), sounds))
    return trials, len(todo) - len(trials)


def _checks(items: Sequence[Item], count: int, question: str, rate: int, sounds: dict[str, Sound]) -> list[Trial]:
    """Return attention checks, whose clips are unsteered ones that were obviously changed."""
    audible = [one for one in items if levels.matched([one.sounds["unsteered"]], rate)]
    trials: list[Trial] = []
    for number in range(count if audible else 0):
        item = audible[number % len(audible)]
        plain = item.sounds["unsteered"]
        made = levels.much_and_little(plain) if question == CONCEPT else levels.clean_and_noisy(plain, number)
        if found := levels.matched(made, rate):
            trial = _trial(item, dict(zip(("right", "wrong"), found, strict=True)), sounds)
            names = {role: name for name, role in trial.clips.items()}
            trials.append(Trial(**{**vars(trial), "right": {question: names["right"]}}))
    return trials


def _ratings(items: Sequence[Item], anchor_hz: float, rate: int, sounds: dict[str, Sound]) -> tuple[list[Trial], int]:
    if anchor_hz >= rate / 2:
        raise InputError(f"anchor_hz={anchor_hz:g}: expected less than {rate / 2:g}, half the clips' sample rate.")
    trials: list[Trial] = []
    removed: list[float] = []
    for item in items:
        plain = item.sounds["unsteered"]
        anchor = levels.low_passed(plain, rate, anchor_hz)
        made = (plain, item.sounds["positive"], item.sounds["negative"], anchor)
        if found := levels.matched(made, rate):
            removed.append(levels.removed_share(plain, anchor))
            trial = _trial(item, dict(zip(RATED, found, strict=True)), sounds)
            name = _named(found[0], sounds)
            trials.append(Trial(**{**vars(trial), "open": name}))
    if removed and sorted(removed)[len(removed) // 2] < _LEAST_REMOVED:
        warnings.warn(
            f"an anchor below {anchor_hz:g} Hz lacks only {sorted(removed)[len(removed) // 2]:.2%} of a clip's energy, "
            "so it can sound like the reference: give a lower anchor_hz (--anchor-hz).",
            AudioLensWarning,
            stacklevel=callers_level(),
        )
    return trials, len(items) - len(trials)


def _trial(item: Item, made: dict[str, Sound], sounds: dict[str, Sound]) -> Trial:
    """Return a trial, with its clips under random names in `sounds`, listed in random order."""
    roles = _RANDOM.sample([*made], len(made))
    names = {_named(made[role], sounds): role for role in roles}
    return Trial(secrets.token_hex(6), names, item.prompt, int(item.seed), None, {})


def _named(sound: Sound, sounds: dict[str, Sound]) -> str:
    name = secrets.token_hex(6)
    sounds[name] = sound
    return name


def _volume(rate: int) -> Sound:
    found = levels.matched([levels.pink_noise(3.0, rate)], rate)
    assert found is not None
    return found[0]
