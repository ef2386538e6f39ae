"""`python -m hostile.fuzz`: run cases for a given time, or repeat one case."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hostile.fuzz import corpus, driver, watch
from hostile.fuzz.cases import case_of, run
from hostile.fuzz.loaders import LOADERS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hostile.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long cases are run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--loader", action="append", help="only this one; may be given several times")
    parser.add_argument("--case", type=int, help="run this case of one loader, and show what came of it")
    given = parser.parse_args()
    known = [loader.name for loader in LOADERS]
    chosen = [loader for loader in LOADERS if given.loader is None or loader.name in given.loader]
    if len(chosen) < len(given.loader or []):
        parser.error(f"--loader {given.loader}: there are {', '.join(map(repr, known))}")
    if given.case is not None:
        if len(chosen) != 1:
            parser.error("--case needs one --loader")
        return again(chosen[0].name, given.seed, given.case)
    started = time.monotonic()
    total = driver.drive(chosen, given.seconds, given.seed, given.workers)
    print(total.table(given.seconds))
    kinds: dict[str, int] = {}
    for fault in total.faults:
        kinds[fault.partition(":")[0]] = kinds.get(fault.partition(":")[0], 0) + 1
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{used.ru_utime + used.ru_stime:,.0f} s of processor time in the workers")
    print(f"{total.n_faults} faults {kinds or ''}; {time.monotonic() - started:,.0f} s in all")
    return 1 if total.n_faults else 0


def again(name: str, seed: int, number: int) -> int:
    """Run one case, and print its traceback."""
    loader = next(one for one in LOADERS if one.name == name)
    corpus.quiet()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=driver.place()) as folder:
        root = Path(folder)
        driver.made(root, [loader])
        bench = driver.benches(root, root / "worker", [loader])[name]
        watch.install()
        case = case_of(bench, seed, number)
        print(case.told)
        seen = run(bench, case)
        if seen.error is not None:
            traceback.print_exception(seen.error, limit=-12)
        print(f"{seen.seconds:.2f} s; read: {repr(seen.result)[:300]}")
        print("\n".join(seen.faults) or "no fault")
    corpus.tidy()
    return 1 if seen.faults else 0


if __name__ == "__main__":
    sys.exit(main())
