"""Write the directions that `audiolens play` brings for étude: `python benchmarks/playground.py` (four CPU minutes).

For every bundled concept: the directions, the place that the evidence chooses, and a strength to start from, as the
playground itself reads them for other models. Concepts with a measure also get a calibration at this place, so that
their sliders can be in its unit. `tests/playground` fails if the files are not those of the bundled étude.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path | None, typer.Option(help="Folder to write [default: the package's own].")] = None,
    prompts: Annotated[int, typer.Option(help="Neutral development prompts of a calibration, with a seed each.")] = 12,
) -> None:
    import audiolens as al
    from analysis.playground import ready
    from analysis.sweep.concept_measures import MEASURED
    from audiolens.errors import InputError

    folder = out or ready.BUNDLED
    lens = al.AudioLens.from_pretrained("etude")
    for concept in al.prompts.concepts("etude"):
        begun = time.process_time()
        found = ready.placed(lens, concept)
        told = found.note or f"{found.place}, strength {found.strength:g}"
        if concept in MEASURED and not found.note:
            neutral = al.prompts.load(concept, lens=lens).development[:prompts]
            options = {"prompts": neutral, "seeds": 1, "progress": False, **found.place}
            try:
                calibrated = found.directions.calibrate(lens, MEASURED[concept], **options)
                found, told = replace(found, directions=calibrated), f"{told}, {calibrated.calibration!r}"
            except InputError as error:
                told = f"{told}; not calibrated: {error}"
        ready.keep(found, folder, concept)
        print(f"{concept}: {told} ({time.process_time() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    typer.run(main)
