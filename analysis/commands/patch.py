"""The command `audiolens patch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.commands import early
from analysis.commands.common import (
    ETUDE,
    Json,
    ModelOptions,
    as_facts,
    is_prompt_file,
    open_lens,
    opens_model,
    print_result,
    prompt_set,
    say,
    to_json,
    write_result,
)
from analysis.commands.sizes import Sizes

if TYPE_CHECKING:
    from analysis.patching import Sound

_SHOWN = ("layer", "seconds", "head", "component", "token", "effect", "low", "high", "normalised", "p_adjusted")
_HEARD_PAIRS, _HEARD_SECONDS = 8, 5.0
"""Number of pairs, and clip length in seconds, of the grid measured on sound. It can show large effects within minutes.
"""


@opens_model
def patch(
    concept: Annotated[
        str, typer.Argument(help="A bundled concept or a file of prompts; its matched prompts are the pairs.")
    ],
    model: ModelOptions = ETUDE,
    by: Annotated[str, typer.Option(help="Columns of the grid: seconds, head, component or token.")] = "seconds",
    site: Annotated[
        str | None, typer.Option(help="Site to patch, such as resid_post [default: depends on --by].")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Number of pairs, each of a clean and a corrupted prompt.")] = 64,
    mode: Annotated[str, typer.Option(help="denoising (for sufficiency) or noising (for necessity).")] = "denoising",
    seconds: Annotated[float, typer.Option(help="Length of the scored start of the clean continuation.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of the clips, intervals and p-values.")] = 0,
    sound: Annotated[
        str | None,
        typer.Option(
            help=f"Measure for a second, coarse grid of patched sound ({_HEARD_PAIRS} pairs) [default: the concept's]."
        ),
    ] = None,
    no_sound: Annotated[bool, typer.Option("--no-sound", help="Do not generate patched clips.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder for the table and the figure (PNG, SVG, HTML).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Patch clean activations into the corrupted run, cell by cell, to find where the prompt takes effect.

    The metric is the log-likelihood of the clean prompt's music, in nats. The gap in this metric between the two
    prompts is printed first, with its interval. If the interval includes 0, there is no effect to localise.

    A second, coarse grid measures the sound of patched clips. It is computed if --sound names a measure. For the
    bundled concepts tempo, timbre, density and register, it is also computed without --sound, except with --by token
    or head. The grid uses few pairs, and the output states how many.

    Examples:

        audiolens patch tempo

        audiolens patch tempo --by head --pairs 32 -o tempo-heads

        audiolens patch timbre --by component --sound loudness

        audiolens patch tempo --no-sound --json
    """
    from analysis.patching.grid import checked_by, checked_mode, needs_equal_lengths
    from analysis.store import folder
    from audiolens.checks import MOST_SEED, checked_count
    from audiolens.errors import InputError

    checked_count("--pairs", pairs, 2)
    checked_count("--seed", seed, 0, MOST_SEED)
    if sound is not None and no_sound:
        raise InputError("--sound and --no-sound were both given: give only one.")
    checked_by(by)
    checked_mode(mode)
    early.check_measures("--sound", sound)
    early.check_length(seconds)
    early.check_matched(concept)
    early.check_folder(out)
    early.check_model(model)
    if (sizes := Sizes.stated(model)) is not None:
        sizes.check(site=site, seconds=seconds)
    from analysis import patching

    ear = None if no_sound else _ear(concept, by, sound, pairs, seed)
    lens = open_lens(model)
    sets = prompt_set(concept, lens)
    asked: dict[str, Any] = {"by": by, "site": site}
    alike = needs_equal_lengths(lens, **asked, seconds=seconds)
    if ear is not None:
        alike |= needs_equal_lengths(lens, **asked, seconds=ear.seconds, on_sound=True)
    found = patching.pairs(lens, sets, pairs, seconds=seconds, first_seed=seed, same_length=alike)
    given = lens, found.clean, found.corrupted
    metric = patching.LogLikelihood((0.0, seconds))
    asked["mode"] = mode
    if as_json:
        # JSON output has no progress bar, so print the estimated time.
        say(repr(patching.plan(*given, found.codes, metric, **asked)), err=True)
        if ear is not None:
            say(repr(patching.plan(*given, None, ear, windows=1, **asked)), err=True)
    result = patching.patch(*given, found.codes, metric, sound=ear, seed=seed, progress=not as_json, **asked)
    if out is not None:
        with folder.fresh(out, overwrite=None) as work:
            write_result(result, work, "patching")
            if result.sound is not None:
                write_result(result.sound, work, "by-ear")
    if as_json:
        say(to_json({**as_facts(result), "sound": None if result.sound is None else as_facts(result.sound)}))
        return
    print_result(result, False, _SHOWN, codebook="total")
    if result.sound is not None:
        say()
        print_result(result.sound, False, _SHOWN)


def _ear(concept: str, by: str, measured: str | None, pairs: int, seed: int) -> Sound | None:
    """Return the settings of the grid on sound, with the given or default measure; `None` if there is no measure."""
    from analysis.patching import Sound
    from analysis.sweep.concept_measures import MEASURED

    # A grid by token or by head has many columns and generates hundreds of clips, so it is computed only on request.
    name = measured or (None if is_prompt_file(concept) or by in ("token", "head") else MEASURED.get(concept))
    if name is None:
        return None
    return Sound(name, seconds=_HEARD_SECONDS, pairs=min(pairs, _HEARD_PAIRS), first_seed=seed)
