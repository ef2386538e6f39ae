"""`python -m hostile.drive --calls 10000 --seed 0`: call every public name validly, then make n wrong calls."""

import argparse
import faulthandler
import json
import math
import os
import sys
import time
from collections import Counter
from pathlib import Path

import beartype  # noqa: F401 (before nnsight, which puts a method on `object` that it cannot hash)

from hostile.drive import judged
from hostile.drive.run import MISSING, UNKNOWN, Trial, arguments_of, baseline, driven, lacking, perform, slow, trials
from hostile.drive.world import PROMPTS, World

READ_EVERY = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="drive")
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names that contain this")
    parser.add_argument("--quick", action="store_true", help="no valid calls first, nothing slow, no limit on time")
    parser.add_argument("--report", type=Path, help="a JSON file of all that went wrong")
    asked = parser.parse_args()
    if asked.report:
        asked.report = asked.report.resolve()
    world, found = World(), []
    public = [name for name in driven() if asked.only in name.path and not (asked.quick and slow(name))]
    todo = [trial for trial in trials(world, asked.seed) if trial.name in set(public)][: asked.calls]
    # Some wrong arguments are valid file names: run in a temporary folder, so that files are written there.
    (world.folder / "here" / "now").mkdir(parents=True)
    os.chdir(world.folder / "here" / "now")
    guard = judged.Guard(world.lens, PROMPTS[:1], world.codes[:1])
    counts: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for name in () if asked.quick else public:
        if needed := lacking(world, name):
            note(found, f"{name.path}()", judged.Outcome("no valid call", f"needs {needed}"))
            continue
        came = judged.outcome(lambda name=name: perform(world, name, baseline(world, name)))
        if came.kind != "worked":
            note(found, f"{name.path}()", judged.Outcome(f"valid call: {came.kind}", came.told, came.where))
    first = "" if asked.quick else ", each by a valid call"
    print(f"{len(public)} public names{first}; then {len(todo)} wrong calls", flush=True)
    judged.bound_memory()
    start = time.monotonic()
    for place, trial in enumerate(todo):
        if asked.report:
            asked.report.with_suffix(".now").write_text(str(trial))
        came = one(world, trial, math.inf if asked.quick else judged.SLOW_SECONDS)
        broken = guard.broken(read=not came.fine or place % READ_EVERY == 0)
        if broken:
            came = judged.Outcome(broken, came.told, came.where)
            guard = judged.Guard(world.lens, PROMPTS[:1], world.codes[:1])
        counts[came.kind] += 1
        spent[trial.name.path] += came.seconds
        if not came.fine:
            note(found, str(trial), came)
    seconds = time.monotonic() - start
    print(f"{sum(counts.values())} calls in {seconds:.0f} s: {dict(counts.most_common())}; {len(found)} went wrong")
    print("slowest:", ", ".join(f"{path} {taken:.0f} s" for path, taken in spent.most_common(12)))
    if asked.report:
        asked.report.write_text(json.dumps([[trial, vars(came)] for trial, came in found], indent=1))
    return int(bool(found))


def note(found: list[tuple[str, judged.Outcome]], call: str, came: judged.Outcome) -> None:
    found.append((call, came))
    print(f"{came.kind}: {call} at {came.where}: {came.told[:200]!r}", flush=True)


def one(world: World, trial: Trial, slow: float) -> judged.Outcome:
    faulthandler.dump_traceback_later(180, exit=True)
    try:
        arguments = arguments_of(world, trial)
        return judged.outcome(
            lambda: perform(world, trial.name, arguments),
            by_python=trial.value in (MISSING, UNKNOWN),
            given=world.lens.model if trial.value == "a model" else None,
            slow=slow,
        )
    finally:
        faulthandler.cancel_dump_traceback_later()
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


if __name__ == "__main__":
    sys.exit(main())
