"""Draw the figure in `docs/concepts.md` from the lens's timeline: `python docs/draw.py`.

`PYTHONPATH=tests python docs/draw.py runs` also takes the README's pictures of the pages of studies, from a folder that
`make study` wrote. It needs Chromium, as the tests of these pages do.
"""

import io
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from audiolens.model.timeline import Timeline, delay, delays_of

FRAMES, CODEBOOKS, RATE = 6, 4, 25.0
WIDTH, TOP, BELOW, BELOW_WIDTH = 960, 1_300, 4_000, 640
"""Pixels: the width of a page, what is shown of it, what is shown below that, and how wide."""
SETTLES = 3_000
"""Milliseconds until the interactive figures are drawn."""
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#5A5A5A"


def delays(path: Path) -> None:
    """Draw six frames of four codebooks as the decoder's columns, and what each step reads and predicts."""
    timeline = Timeline(FRAMES, RATE, delays_of(CODEBOOKS, 1))
    frames = torch.arange(FRAMES).expand(1, CODEBOOKS, FRAMES)
    columns = delay(frames, timeline.delays, pad=-1)[0]
    figure = Figure(figsize=(7.4, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for codebook, row in enumerate(columns.tolist()):
        for column, frame in enumerate(row):
            empty = frame < 0
            axes.add_patch(
                Rectangle(
                    (column - 0.5, codebook - 0.5), 1, 1, linewidth=0.8, edgecolor="white",
                    facecolor="#EDEDED" if empty else BLUE, alpha=1.0 if empty else 0.25 + 0.6 * frame / FRAMES,
                    hatch="//" if empty else None,
                )
            )  # fmt: skip
            shade = "white" if frame > 3 else "black"
            text = "start" if column == 0 else "" if empty else f"{frame}"
            axes.text(column, codebook, text, ha="center", va="center", fontsize=8, color=shade)
    for step in range(timeline.steps):
        tail = step > timeline.last
        axes.annotate(
            "", (step + 0.85, 3.85), (step + 0.15, 3.85),
            arrowprops={"arrowstyle": "->", "color": ORANGE if tail else GREY, "linewidth": 1.2,
                        "linestyle": "--" if tail else "-"},
        )  # fmt: skip
        name = f"step {step}" + ("\n(tail)" if tail else "\nlast" if step == timeline.last else "")
        axes.text(step + 0.5, 4.0, name, ha="center", va="top", fontsize=7.5, color="black")
    axes.set_xlim(-0.6, columns.shape[1] - 0.4)
    axes.set_ylim(4.6, -0.6)
    axes.set_xticks(range(columns.shape[1]))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("column that the decoder reads and predicts (numbers: frame of the codec)")
    axes.set_yticks(range(CODEBOOKS), [f"codebook {codebook}" for codebook in range(CODEBOOKS)])
    axes.grid(False)
    for side in ("left", "right", "bottom", "top"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    figure.savefig(path, dpi=160)


def pages(runs: Path, docs: Path) -> None:
    """Take pictures of the beginning of both studies' pages, and of what follows on the page of tempo."""
    from chromium import launched
    from PIL import Image

    def shown(browser: Any, concept: str) -> Image.Image:
        page = browser.new_page(viewport={"width": WIDTH, "height": TOP}, color_scheme="light")
        page.goto((runs / concept / "index.html").resolve().as_uri())
        page.wait_for_timeout(SETTLES)
        return Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")

    with launched() as browser:
        for concept, name in (("tempo", "report"), ("timbre", "report-timbre")):
            picture = shown(browser, concept)
            picture.crop((0, 0, WIDTH, TOP)).save(docs / f"{name}.png", optimize=True)
            if concept == "tempo":
                rest = picture.crop((0, TOP, WIDTH, min(picture.height, TOP + BELOW)))
                small = rest.resize((BELOW_WIDTH, round(rest.height * BELOW_WIDTH / WIDTH)), Image.Resampling.LANCZOS)
                small.quantize(128).save(docs / "report-below.png", optimize=True)


if __name__ == "__main__":
    here = Path(__file__).parent
    delays(here / "delays.png")
    if len(sys.argv) > 1:
        pages(Path(sys.argv[1]), here)
