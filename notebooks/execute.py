"""Run the notebooks from top to bottom, each in a kernel of its own, and save them with what they show.

    python notebooks/execute.py             # all of them, in place (`make notebooks`)
    python notebooks/execute.py 1_first_look

A cell that fails stops it, and nothing of that notebook is saved. The notebooks' tests run them the same way.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
import opening
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
LONGEST_CELL_SECONDS = 1800
"""Far more than any cell takes: on a machine that is busy with other things, patience is all that it needs."""
QUIET = {"PYTHONWARNINGS": "ignore:IProgress not found", "TRANSFORMERS_VERBOSITY": "error"}
"""Remarks of libraries on the machine that runs them would stand in the outputs for everyone."""


def notebooks() -> list[Path]:
    """All of them, in the order in which they are read."""
    return sorted(FOLDER.glob("*.ipynb"))


def executed(path: Path, env: Mapping[str, str] | None = None) -> Any:
    """The notebook with its outputs, of a fresh kernel that works in an empty folder; the file is left alone."""
    return run(nbformat.read(path, as_version=4), env)


def run(notebook: Any, env: Mapping[str, str] | None = None) -> Any:
    """Run a notebook's cells, and return it with their outputs.

    `env` is the kernel's whole environment (default: this process's own), but for what keeps libraries `QUIET`.

    Raises:
        nbclient.exceptions.CellExecutionError: for a cell that fails, with its traceback.
    """
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LONGEST_CELL_SECONDS,
            startup_timeout=LONGEST_CELL_SECONDS,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env={**(os.environ if env is None else env), **QUIET})
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="such as 1_first_look (default: all)")
    names = parser.parse_args().names
    unknown = sorted({*names} - {path.stem for path in notebooks()})
    if unknown:
        parser.error(f"no notebook {unknown[0]!r}: there are {', '.join(path.stem for path in notebooks())}")
    for path in notebooks():
        if names and path.stem not in names:
            continue
        started = time.perf_counter()
        notebook = nbformat.read(path, as_version=4)
        opening.open_with(notebook, path.stem, opening.repository())
        nbformat.write(run(notebook), path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size / 1e6:.2f} MB", flush=True)


if __name__ == "__main__":
    main()
