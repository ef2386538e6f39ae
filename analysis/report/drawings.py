"""Draw all figures of a study with their captions, as images and, where useful, also as interactive figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from analysis.figures import plots, spectrograms
from analysis.figures.canvas import DOUBLE, SINGLE, canvas, in_column
from analysis.figures.captions import heat, screen_heat
from analysis.figures.finding import finding
from analysis.figures.literal import literally
from analysis.figures.style import name_of, styled
from analysis.report import screens, vector
from analysis.report.tables import by_prompt, directions
from analysis.resampling import COVERAGE
from analysis.statistics import LEVEL
from analysis.sweep import plots as sweep_plots
from analysis.wording import clips_of, counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.patching import PatchingResult
    from analysis.report.writer import PageSound
    from analysis.study.result import Study
    from analysis.study.settings import Settings
    from analysis.study.where import WordWeights


@dataclass(frozen=True)
class Drawing:
    """A figure in the column width of a paper, without a caption in it.

    Attributes:
        name, title, caption: the name of its file, its title on the page, and its caption.
        figure: the figure for print.
        tables: the names of the tables with its numbers.
        screen: its interactive version, if the page shows one.
        narrow: the figure in one column, if the page shows it instead on narrow screens.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    tables: tuple[str, ...] = ()
    screen: go.Figure | None = None
    narrow: Figure | None = None

    @cached_property
    def svg(self) -> bytes:
        """The figure for print as SVG: its file, and what the page shows if it has no interactive version."""
        return vector.file_of(self.figure, "svg", self.name)

    def file(self, kind: str) -> bytes:
        """Return the figure for print as a file of this kind."""
        return self.svg if kind == "svg" else vector.file_of(self.figure, kind, self.name)


def drawings(study: Study, shown: Sequence[PageSound]) -> list[Drawing]:
    """Return every figure of a study. `shown` are the sounds whose spectrograms are drawn, those on the page."""
    with in_column(DOUBLE):
        return [*_responses(study), *_places(study), *_insides(study), *_pictures(study, shown)]


def in_both(draw: Callable[[], Figure]) -> dict[str, Any]:
    """Draw a figure in two columns and in one, as arguments of `Drawing`. It is called within `in_column(DOUBLE)`."""
    with in_column(SINGLE):
        narrow = draw()
    return {"figure": draw(), "narrow": narrow}


def the_finding(study: Study) -> Drawing:
    """Draw the figure at the top of a study's page."""
    settings = study.settings
    outcomes = [one.as_dict() for one in study.outcomes]
    prompts, controls = by_prompt(study), study.controls
    steered = prompts[prompts["kind"] == "steered"]
    named = zip(study.words, study.outcomes, strict=True)
    names = [f"{word} ({one.strength:+g})".replace("-", "−") for word, one in named]
    return Drawing(
        "finding",
        "The finding",
        f"Change in {name_of(study.measure)} on {counted(settings.test, 'neutral test prompt')}, with which nothing "
        f"was chosen. Dots are prompts (median over {counted(settings.test_seeds, 'seed')}), large markers are medians "
        f"over all clips with {COVERAGE} intervals over prompts, and green bars are prompts that ask for the pole "
        "instead. The rows below show control directions of the same length at the same place: their mean change on "
        "some of the clips, and as a ring that of this direction on the same clips.",
        **in_both(lambda: finding(outcomes, steered, controls, study.measure, names)),
        tables=("by_prompt", "outcome", "controls"),
    )


def _responses(study: Study) -> list[Drawing]:
    settings, name = study.settings, name_of(study.measure)
    return [
        the_finding(study),
        Drawing(
            "dose_response",
            "Dose-response",
            f"Change in {name} on {clips_of(settings.test, settings.test_seeds, 'neutral test prompt')}, relative to "
            f"the unsteered clip of the same prompt and seed (median, with {COVERAGE} interval over prompts). Crosses "
            "and diamonds show control directions of the same length at the same place, on fewer of these clips. Green "
            "lines show clips with the same seeds whose prompts ask for the pole. Hollow markers, and bars above the "
            "dotted line, mean that more than a tenth of the clips failed, that is, were no longer music. Failed "
            "clips count as no change.",
            **in_both(lambda: plots.dose_response(study.response, study.measure, study.poles)),
            tables=("dose_response",),
        ),
        Drawing(
            "cross_effects",
            "What else changed",
            f"Change in other measures of the same clips (median and {COVERAGE} interval over prompts). Fainter "
            "markers are smaller strengths. If a direction changes only its own measure, the others stay at 0.",
            **in_both(lambda: sweep_plots.cross_effects(study.cross)),
            tables=("cross_effects",),
        ),
    ]


def _places(study: Study) -> list[Drawing]:
    settings, found = study.settings, study.where
    listed = [_evidence(study)]
    if found is not None and found.windows is not None:
        listed.append(
            Drawing(
                "patching_windows",
                "Patching the residual stream, by block and time window",
                f"How far the log-likelihood of music from “{study.poles[0]}” prompts recovers when the residual "
                "stream of their run replaces that of the matched prompt's run, at one block and in one time window. A "
                f"patch transfers every difference between the runs. {_pairs(found.windows)}",
                found.windows.plot(caption=False),
                ("patching_windows",),
                screens.slid(found.windows.figure()),
            )
        )
    if found is not None and found.components is not None:
        listed.append(
            Drawing(
                "patching_components",
                "Patching the components of each block",
                "How far the same log-likelihood recovers when only the output of self-attention, of cross-attention "
                "or of the MLP is replaced, over the whole clip. The grid shows where the text enters, and which "
                f"components pass it on. {_pairs(found.components)}",
                found.components.plot(caption=False),
                ("patching_components",),
                screens.slid(found.components.figure()),
            )
        )
    if found is not None and found.heads is not None:
        listed.append(
            Drawing(
                "patching_heads",
                "Patching single heads",
                "How far the same log-likelihood recovers when only the output of one head is replaced, among the "
                f"heads that read the text, over the whole clip. {_pairs(found.heads)}",
                found.heads.plot(caption=False),
                ("patching_heads",),
                screens.slid(found.heads.figure()),
            )
        )
    if found is not None and found.words is not None:
        listed.append(_words(found.words))
    scanned = study.scan
    if "stage" in scanned:
        scanned = scanned[scanned["stage"] == "scan"]
    if len(scanned):
        choice = study.choice
        chosen = None if choice.layer is None else {"strategy": choice.strategy, "layer": choice.layer}
        remark = "Place and strength were chosen from" if study.placement is None else "The place was not chosen from"
        listed.append(
            Drawing(
                "scan",
                "Where steering works",
                f"Change in {name_of(study.measure)} on "
                f"{clips_of(settings.development, settings.development_seeds, 'development prompt')}, by block, for "
                f"both signs. {remark} these clips; the results above are from other prompts. Hollow markers mean that "
                "more than a tenth of the clips failed.",
                **in_both(lambda: plots.layers(scanned[scanned["strategy"].notna()], study.measure, chosen=chosen)),
                tables=("scan",),
            )
        )
    return listed


def _evidence(study: Study) -> Drawing:
    placed = study.placement
    if placed is not None:
        figure, screen, named = placed.plot(caption=False), placed.figure(), ("placement", "layer_attribution")
        caption = (
            "The place was chosen by alignment. Alignment is the cosine between two effects on the next codes: that of "
            "adding the direction at a place, and that of the concept's words. A black ring marks the chosen place, "
            "and grey shows what random directions reach. The other kinds of evidence have their own units. Norm is "
            "the length of the direction relative to the residual stream. Probe is how well the poles are separated in "
            "held-out clips. Patching is how much likelier the positive pole's music becomes when the residual stream "
            "of its run replaces the other run's. Attribution is an estimate of this effect from gradients. None of "
            f"the evidence uses steered clips. Bars are {COVERAGE} intervals."
        )
        screen = screens.bare(screen, "alignment")
    else:
        found = study.layer_evidence(placed=False)
        # Each panel already has its name above it.
        figure, named = found.plot(caption=False), ("layer_attribution",)
        screen = screens.bare(found.figure()).update_layout(showlegend=False)
        caption = (
            "Each kind of evidence has its own unit and comes from prompts alone, without steering. Norm is the "
            "length of the direction relative to the residual stream. Separation is the held-out AUC of the poles "
            "along the direction. Patching is how much likelier the music of one prompt becomes when activations of "
            f"its run replace those of the other prompt's run. Bars are {COVERAGE} intervals over prompts. The kinds "
            "measure different things and can peak at different blocks."
        )
    return Drawing("layer_attribution", "Every kind of evidence, block by block", caption, figure, named, screen)


def _words(words: WordWeights) -> Drawing:
    names = [f"{token} ●" if apart else token for token, apart in zip(words.tokens, words.differs, strict=True)]
    values = words.relative.mean(-1).T
    apart = np.flatnonzero(words.differs)
    most = ""
    if len(apart):
        word, block = np.unravel_index(int(values[:, apart].T.argmax()), (len(apart), len(words.layers)))
        most = (
            f" Of these, “{words.tokens[apart[word]]}” receives most ({values[block, apart[word]]:.1f} in block "
            f"{words.layers[block]})."
        )
    caption = (
        "Attention to each word of the positive pole's prompts, relative to uniform attention (1), as the mean over "
        f"heads, steps and prompts. The words marked ● are not in the matched prompts.{most} Attention does not show "
        "that a word is used."
    )
    return Drawing(
        "attention_words", "Attention to words", caption, _words_paper(values, names, words.layers),
        ("attention_words",), _words_screen(values, names, words.layers),
    )  # fmt: skip


def _words_paper(values: np.ndarray, names: Sequence[str], layers: Sequence[int]) -> Figure:
    with styled():
        figure = canvas((1.6 + 0.4 * len(names), 1.6 + 0.25 * len(layers)))
        axes = figure.add_subplot()
        image = heat(axes, values, x=names, y=layers, signed=False)
        axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axes.set_ylabel("block")
        bar = figure.colorbar(image, ax=axes, label="attention / uniform")
        bar.ax.axhline(1, color="white", linewidth=1.2)
    return figure


@literally
def _words_screen(values: np.ndarray, names: Sequence[str], layers: Sequence[int]) -> go.Figure:
    template = "block %{y}, %{x}: %{z:.2f} times uniform attention<extra></extra>"
    cells = screen_heat(values, names, [str(layer) for layer in layers], "", signed=False, hovertemplate=template)
    figure = go.Figure(cells.update(colorbar_title="attention<br>/ uniform"))
    figure.update_layout(xaxis_type="category", yaxis_type="category", yaxis_title="block", xaxis_title="word")
    return screens.bare(figure)


def _insides(study: Study) -> list[Drawing]:
    return [
        Drawing(
            "pca",
            "The two poles in every block",
            f"Each point is one prompt: {_read_at(study.settings)}, projected onto the block's first two "
            f"principal components. The slider selects the block and opens at block {_opening(study)}, "
            f"{'where the poles are best separated' if study.choice.layer is None else 'the chosen one'}. "
            "A silhouette of 1 means well separated, and 0 means mixed.",
            study.components.plot(caption=False),
            ("pca_points", "pca"),
            screens.slid(screens.opened(study.components.figure(), _opening(study))),
        ),
        Drawing(
            "cosines",
            "The direction from block to block",
            "Cosine similarity between the directions read at two blocks. A star marks values beyond those of random "
            "directions. Neighbouring blocks agree in part because the residual stream carries what one block writes "
            "into the next.",
            study.cosines.plot(caption=False),
            ("cosines",),
            study.cosines.figure(),
        ),
        Drawing(
            "norms",
            "Norm of the direction",
            "Norm of the difference in means at each block, raw and relative to the norm of the residual stream."
            + _longer(study),
            plots.norms(directions(study)),
            ("directions",),
        ),
    ]


def _pictures(study: Study, shown: Sequence[PageSound]) -> list[Drawing]:
    pairs: dict[int, list[PageSound]] = {}
    for sound in shown:
        pairs.setdefault(sound.pair, []).append(sound)
    if not pairs:
        return []
    grid = [[sound.samples for sound in row if not sound.label.startswith("asked")] for row in pairs.values()]
    columns = [sound.label for sound in next(iter(pairs.values())) if not sound.label.startswith("asked")]
    rows = [f"{row[0].prompt}\nseed {row[0].seed}" for row in pairs.values()]
    figure = spectrograms.paired(grid, study.sample_rate, rows, columns)
    caption = "Mel spectrograms of the clips on the page: each row is one prompt and seed."
    return [Drawing("spectrograms", "Spectrograms of the clips", caption, figure)]


def _pairs(grid: PatchingResult) -> str:
    """Describe, for the caption of a patching grid, the prompt pairs, the scored window and the meaning of dots."""
    slider = " The slider selects the codebook." if len(grid.names) > 1 else ""
    return (
        f"Mean over {counted(len(grid.clean), 'pair')} of prompts, scored on the first {grid.scored[1]:g} s. Dots "
        f"mark p at most {LEVEL:g}, adjusted over the whole grid.{slider}"
    )


def _longer(study: Study) -> str:
    """Return a sentence that compares the direction's norm with the norms of directions from shuffled labels."""
    if study.directions.samples is None:
        return ""
    test = study.directions.permutation_test()
    return (
        f" It is {float(test.ratio.min()):.1f} to {float(test.ratio.max()):.1f} times the median norm under "
        f"{test.n_shuffles} shuffles of the poles' labels (smallest p = {float(test.p.min()):.2g}, over all blocks)."
    )


def _opening(study: Study) -> int:
    """Return the block at which the direction is added or read, or else the block with the best separation."""
    found = study.components
    return found.layers[int(found.silhouettes.argmax())] if study.choice.layer is None else study.choice.layer


def _read_at(settings: Settings) -> str:
    """Describe the activation from which a direction was read."""
    position, shared = settings.position, settings.codes == "shared"
    clip = "a clip of a neutral prompt, which it shares with its counterpart" if shared else "the clip it generates"
    names = {
        "mean": f"its mean activation over {clip}",
        "first": "the activation at the start token, before any sound",
        "last": f"the activation at the last step of {clip}",
        "eos": "the activation at the last token of its text",
    }
    return names.get(str(position)) or "its mean activation from {:g} to {:g} s of ".format(*position) + clip
