"""A sample of `make fuzz`: cases of the quick loaders, and tests that faults are detected."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ALL = """
import sys
from itertools import islice
from pathlib import Path
from hostile.fuzz import corpus, driver, watch
from hostile.fuzz.loaders import LOADERS

root = Path(sys.argv[1])
corpus.quiet()
chosen = [one for one in LOADERS if one.quick and one.share >= 20]
driver.made(root, chosen)
benches = driver.benches(root, root / "worker", chosen)
watch.install()
total = driver.Tally()
for loader, number in islice(driver.numbers(chosen, 0, 1), 600):
    counts, faults = driver.counted(benches[loader.name], 1, number)
    total.add(loader.name, counts)
    total.faults += faults
corpus.tidy()
print(total.cases, *total.faults, sep="\\n")
"""


def script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / name) for name in (".", "tests", "benchmarks"))
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_slice_of_cases_breaks_no_promise(tmp_path: Path) -> None:
    """Runs in its own process, because the watch limits memory and audits file access permanently."""
    ran = script(_ALL, str(tmp_path))
    assert ran.stdout.splitlines() == ["600"], ran.stdout + ran.stderr[-2000:]


_FAULTS = {
    "raise KeyError('x')": "foreign",
    "raise AudioLensError('x' * 9)": "",
    "time.sleep(9)": "slow",
    "open('ran', 'w')": "touched ran",
    "(folder.parents[1] / 'canary' / 'x').write_text('changed')": "touched canary",
    "os.system('true')": "touched",
    "pickle.loads(pickle.dumps(Path('x')))": "touched",
    "np.ones(2**28)": "memory",
    "RESULT = {'all': 'other'}": "altered",
}
_EACH = """
import json, os, pickle, sys, time
from pathlib import Path
from hostile.fuzz import watch
import numpy as np
from audiolens.errors import AudioLensError
from hostile.fuzz.cases import Case, prepare, run
from hostile.fuzz.loaders import Loader

os.chdir(sys.argv[1])


def read(folder):
    names = {**globals(), "folder": folder, "RESULT": {"all": "true"}}
    if (folder / "bad").exists():
        exec((folder / "bad").read_text(), names)
    return names["RESULT"]


Path("whole/one").mkdir(parents=True)
Path("whole/one/x").write_bytes(b"x")
bench = prepare(Loader("own", print, read, 1, sealed=True), Path("whole"), Path("work").absolute())
watch.install()
for body in json.loads(sys.argv[2]):
    faults = run(bench, Case({"bad": body.encode()}, "", False)).faults
    print(*dict.fromkeys(one.partition(":")[0] for one in faults))
"""


def test_every_kind_of_fault_is_seen(tmp_path: Path) -> None:
    ran = script(_EACH, str(tmp_path), json.dumps(list(_FAULTS)))
    found = dict(zip(_FAULTS, ran.stdout.splitlines(), strict=True))
    # A busy machine may make what is large slow as well.
    seen = {body: set(kinds.split()) - ({"slow"} - set(_FAULTS[body].split())) for body, kinds in found.items()}
    assert seen == {body: set(kinds.split()) for body, kinds in _FAULTS.items()}
