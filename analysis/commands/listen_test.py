"""The command `audiolens listen-test`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analysis.commands import early
from analysis.commands.common import Json, as_facts, print_result, print_table, rows_of, say, to_json, write_result
from audiolens.checks import checked_amount, checked_count, shown
from audiolens.errors import InputError

_SHOWN = {
    "pairs": ("question", "clip", "against", "share", "low", "high", "answers", "listeners", "prompts"),
    "mushra": ("condition", "mean", "low", "high", "difference", "difference_low", "difference_high", "median"),
}
_OPTIONS = {"against": "--against", "questions": "--ask", "checks": "--checks", "anchor_hz": "--anchor-hz"}
_MAKING = "only writing a test needs it; --read analyses one"


def listen_test(
    study: Annotated[Path | None, typer.Argument(help="Folder of a finished study whose clips people compare.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="New folder for the test or, with --read, for the tables and the figure."),
    ] = None,
    read: Annotated[
        Path | None, typer.Option("--read", metavar="FOLDER", help="Analyse the responses in a test's folder.")
    ] = None,
    mode: Annotated[
        Literal["pairs", "mushra"] | None,
        typer.Option(
            help="pairs: which of two clips? mushra: rate several clips, with hidden reference and anchor "
            "[default: pairs]."
        ),
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(help="Number of comparisons: two per prompt. A rating trial counts as two [default: 16]."),
    ] = None,
    against: Annotated[
        Literal["unsteered", "opposite", "both"] | None,
        typer.Option(
            help="What pairs compare steered clips with: unsteered ones, those of the opposite pole, or both "
            "[default: unsteered]."
        ),
    ] = None,
    ask: Annotated[
        str | None,
        typer.Option(
            help="What pairs ask: concept (which is faster?), quality (which sounds better?), or both "
            "[default: concept,quality]."
        ),
    ] = None,
    checks: Annotated[
        int | None,
        typer.Option(help="Number of attention checks among pairs, with an obvious answer [default: 3]."),
    ] = None,
    anchor_hz: Annotated[
        float | None, typer.Option(help="With --mode mushra: cutoff of the low-passed anchor [default: 3500].")
    ] = None,
    consent: Annotated[
        Path | None, typer.Option(help="Text file with the consent text [default: a template to fill in].")
    ] = None,
    listeners: Annotated[
        Path | None, typer.Option(help="Text file with one code per invited listener [default: anybody may answer].")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Where the study's model is [default: as the study names it]."),
    ] = None,
    most_failed: Annotated[
        int | None,
        typer.Option(help="With --read: how many attention checks of pairs a listener may fail [default: 0]."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a blind listening test of a study's clips as a static page, or analyse the responses to one.

    The folder contains page/ (open page/index.html, or put page/ on any web host), responses/ (for the files that
    listeners send back) and a key, which says which clip is which: do not publish the key. Clips have random names,
    matched loudness and random order. Needs audiolens[listening].

    Examples:

        audiolens listen-test runs/tempo -o tempo-test

        audiolens listen-test --read tempo-test
    """
    if (study is None) == (read is None):
        raise InputError("give the folder of a study and -o FOLDER to write a test, or --read FOLDER to analyse one.")
    own = {"against": against, "questions": ask, "checks": checks, "anchor_hz": anchor_hz}
    if read is not None:
        given = {
            "--mode": mode, "--pairs": pairs, **{_OPTIONS[name]: value for name, value in own.items()},
            "--consent": consent, "--listeners": listeners, "--model": model,
        }  # fmt: skip
        if name := next((name for name, value in given.items() if value is not None), None):
            raise InputError(f"{name} {given[name]}: {_MAKING}.")
        _analyse(read, out, most_failed, as_json)
        return
    assert study is not None
    if most_failed is not None:
        raise InputError(f"--most-failed {most_failed} goes with --read FOLDER: it says whose responses are left out.")
    mode = mode or "pairs"
    _check_mode(mode, own)
    if out is None:
        raise InputError("-o FOLDER is missing: give the name of a new folder for the test.")
    questions = None if ask is None else [name.strip() for name in ask.split(",")]
    for name in questions or ():
        early.check_choice("--ask", name, ("concept", "quality"))
    if pairs is not None:
        checked_count("--pairs", pairs, 1, 400)
    if checks is not None:
        checked_count("--checks", checks, 0, 20)
    if anchor_hz is not None:
        checked_amount("--anchor-hz", anchor_hz, above=0)
    early.check_folder(out)
    options: dict[str, Any] = {
        **({} if pairs is None else {"pairs": pairs}),
        "consent": None if consent is None else _text(consent),
        "listeners": () if listeners is None else [one.strip() for one in _text(listeners).split("\n") if one.strip()],
    }
    _check_study(study)
    from analysis.listening_test import levels

    levels.refuse_missing()
    from analysis import listening_test
    from analysis.listening_test.design import KEY, PAGE, RESPONSES, read_key

    listening_test.write(
        study, out, mode=mode, against=against, questions=questions, checks=checks, anchor_hz=anchor_hz, model=model,
        **options,
    )  # fmt: skip
    trials = read_key(out).trials
    facts = {
        "page": str(out / PAGE / "index.html"), "key": str(out / KEY), "responses": str(out / RESPONSES),
        "trials": len(trials), "checks": sum(bool(one.right) for one in trials),
    }  # fmt: skip
    if as_json:
        say(to_json(facts))
        return
    say(
        f"{facts['page']}: {facts['trials']} trials, {facts['checks']} of them attention checks. Publish the folder "
        f"{out / PAGE} alone.\n{facts['key']} says which clip is which: keep it to yourself.\nPut the files that "
        f"listeners send back into {facts['responses']}, then run: audiolens listen-test --read {out}"
    )


def _check_mode(mode: str, own: Mapping[str, object]) -> None:
    from analysis.listening_test.design import NEEDED, unused

    if name := unused(mode, own):
        other, why = NEEDED[name]
        raise InputError(f"{_OPTIONS[name]} {own[name]} goes with --mode {other}, not {mode}: {why}.")


def _analyse(folder: Path, out: Path | None, most_failed: int | None, as_json: bool) -> None:
    from analysis.listening_test import levels
    from analysis.listening_test.design import NO_CHECKS, read_key

    if most_failed is not None:
        checked_count("--most-failed", most_failed, 0)
    early.check_folder(out)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder.")
    mode = read_key(folder).mode
    if mode == "mushra" and most_failed is not None:
        raise InputError(f"--most-failed {most_failed} goes with a test of pairs: {NO_CHECKS}.")
    levels.refuse_missing()
    from analysis import listening_test
    from analysis.spreadsheets import write_csv
    from analysis.store import folder as folders

    found: Any = listening_test.read(folder, most_failed=most_failed or 0)
    for one in found.refused:
        say(f"audiolens: {one.file} was not used: {one.reason}", err=True)
    if out is not None:
        with folders.fresh(out, overwrite=None) as work:
            write_result(found, work, "listening")
            for name, table in _tables(found).items():
                write_csv(table, work / f"{name}.csv")
    if as_json:
        facts = {name: getattr(found, name) for name in ("concept", "model", "strength", "left_out")}
        tables = {name: rows_of(table) for name, table in _tables(found).items()}
        say(to_json({**as_facts(found), **facts, **tables}))
        return
    print_result(found, False, _SHOWN[mode])
    if mode == "pairs":
        print_table([{**row, **{name: _strength(row[name]) for name in ("strength", "low", "high")}}
                     for row in found.scale.to_dict("records")])  # fmt: skip


def _tables(found: Any) -> dict[str, Any]:
    """Return the tables of a result other than its first one, by the names of their files."""
    import pandas as pd

    refused = pd.DataFrame([vars(one) for one in found.refused], columns=["file", "reason"])
    both = {"listeners": found.listeners, "refused": refused}
    if isinstance(found.agreement, float):
        return {"agreement": pd.DataFrame({"alpha": [found.agreement]}), "ratings": found.ratings, **both}
    agreement = pd.DataFrame({"question": [*found.agreement], "alpha": [*found.agreement.values()]})
    return {"scale": found.scale, "agreement": agreement, "answers": found.answers, **both}


def _strength(value: float) -> str:
    if math.isnan(value):
        return "none"
    return f"{value:+.2f}" if math.isfinite(value) else "open"


def _check_study(study: Path) -> None:
    from analysis.store.folder import is_study

    if not study.is_dir():
        raise InputError(f"{study}: no such folder.")
    if not is_study(study):
        raise InputError(f"{study} contains no finished study: run audiolens study first.")


def _text(path: Path) -> str:
    from audiolens.files.bounded import read_text

    found = read_text(path, 2**20)
    if not found.strip():
        raise InputError(f"{path} is empty: expected text, shown as it is ({shown(found[:20])}).")
    return found
