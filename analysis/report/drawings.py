"""Drawings: every figure of a study, with its caption, as a picture and, where that helps, alive on screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from analysis.figures import plots, spectrograms
from analysis.figures.style import name_of
from analysis.report import screens
from analysis.statistics import LEVEL
from analysis.study import where
from analysis.sweep import plots as sweep_plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.patching import PatchingResult
    from analysis.report.writer import Sound
    from analysis.study.result import Study


@dataclass(frozen=True)
class Drawing:
    """A figure with the sentence under it, the tables that hold its numbers, and how it looks alive, if it does."""

    name: str
    title: str
    caption: str
    figure: Figure
    tables: tuple[str, ...] = ()
    screen: go.Figure | None = None


def drawings(study: Study, kept: Sequence[Sound]) -> list[Drawing]:
    """Every figure of a study."""
    return [*_responses(study), *_places(study), *_insides(study), *_pictures(study, kept)]


def _responses(study: Study) -> list[Drawing]:
    settings, name = study.settings, name_of(study.measure)
    return [
        Drawing(
            "dose_response",
            "Dose and response",
            f"Change of {name} on {settings.test} neutral test prompts x {settings.test_seeds} seeds, each clip beside "
            "the unsteered one of the same prompt and seed: median, and 95% interval over prompts. Crosses: "
            "directions without meaning, of the same length at the same place. Green lines: the same seeds, asked for "
            "in words. Hollow markers, and bars above the dotted line: more than a tenth of the clips were no music "
            "any more; these count as no change.",
            plots.dose_response(study.response, study.measure, study.poles),
            ("dose_response",),
        ),
        Drawing(
            "cross_effects",
            "What else changed",
            "The same clips in other measures (median and 95% interval over prompts; fainter: smaller strengths). "
            "A direction that moved one thing only would leave the others at 0.",
            sweep_plots.cross_effects(study.cross),
            ("cross_effects",),
        ),
    ]


def _places(study: Study) -> list[Drawing]:
    settings, found = study.settings, study.where
    listed = [_evidence(study)]
    if found is not None and found.windows is not None:
        listed.append(
            Drawing(
                "patching_windows",
                "Patching the stream, block by block and window by window",
                f"What comes back of the music that “{study.poles[0]}” prompts play when the stream of their run is "
                "put into the run of the matched prompt, at one block and in one window of time. A patch carries "
                f"everything in which the runs differ. {_pairs(found.windows)}",
                found.windows.plot(),
                ("patching_windows",),
                screens.slid(found.windows.figure()),
            )
        )
    if found is not None and found.components is not None:
        listed.append(
            Drawing(
                "patching_components",
                "Patching what each part of a block adds",
                "The same over the whole clip, for the outputs of attention, cross-attention and MLP apart: where the "
                f"text comes in, and what passes it on. {_pairs(found.components)}",
                found.components.plot(),
                ("patching_components",),
                screens.slid(found.components.figure()),
            )
        )
    scanned = study.scan
    if "stage" in scanned:
        scanned = scanned[scanned["stage"] == "scan"]
    if len(scanned):
        choice = study.choice
        chosen = None if choice.layer is None else {"strategy": choice.strategy, "layer": choice.layer}
        told = "Place and strength were chosen here" if study.placement is None else "The place was chosen without this"
        listed.append(
            Drawing(
                "scan",
                "Where steering works",
                f"Change of {name_of(study.measure)} on {settings.development} development prompts x "
                f"{settings.development_seeds} seeds, by block, for both signs. {told}; what is reported above is from "
                "other prompts. Hollow markers: more than a tenth of the clips failed.",
                plots.layers(scanned[scanned["strategy"].notna()], study.measure, chosen=chosen),
                ("scan",),
            )
        )
    return listed


def _evidence(study: Study) -> Drawing:
    placed = study.placement
    if placed is not None:
        figure, screen, named = placed.plot(), placed.figure(), ("placement", "layer_attribution")
        told = (
            "Alignment decided: the cosine of what the direction, added there, does to the next codes with what the "
            "concept's words do; a black ring marks the place, grey is what random directions reach there. The others "
            "stand beside it, each in its own unit. Norm: the direction's length beside the stream's. Probe: how well "
            "the poles are told apart in held-out clips. Patching: how much likelier the positive pole's music becomes "
            "when the stream of its run is put into the other's; attribution: the same, from gradients. None comes "
            "from a clip that was steered. Bars: 95% intervals."
        )
        screen = screens.bare(screen, "alignment")
    else:
        found = where.evidence(study.directions, study.where, None)
        # A panel has its name above it already.
        figure, named = found.plot(), ("layer_attribution",)
        screen = screens.bare(found.figure()).update_layout(showlegend=False)
        told = (
            "Each in its own unit, from prompts alone, without steering. Norm: the length of the direction as a share "
            "of the stream it is added to. Told apart: held-out AUC of the poles along it. Patching: how much likelier "
            "the music of one prompt becomes when activations of its run are put into the run of the other. Bars: 95% "
            "intervals over prompts. Kinds may peak apart and all be right."
        )
    return Drawing("layer_attribution", "Every kind of evidence, block by block", told, figure, named, screen)


def _insides(study: Study) -> list[Drawing]:
    return [
        Drawing(
            "pca",
            "The two poles in every block",
            f"Each point is a prompt: {_read_at(study.settings.position)}, on the first two principal components of "
            f"its block. Move the slider from block to block; it opens at block {_opening(study)}, "
            f"{'where the poles lie furthest apart' if study.choice.layer is None else 'the one that was chosen'}. "
            "Silhouette: 1 far apart, 0 mixed.",
            study.components.plot(),
            ("pca_points", "pca"),
            screens.slid(screens.opened(study.components.figure(), _opening(study))),
        ),
        Drawing(
            "cosines",
            "The direction from block to block",
            "Cosine of the directions read at two blocks; a star where random directions do not reach. What one block "
            "writes stays in the stream for the next to pass on, so neighbours agree in part for that reason alone.",
            study.cosines.plot(),
            ("cosines",),
            study.cosines.figure(),
        ),
        Drawing(
            "norms",
            "How long the direction is",
            "Length of the difference of means at each block, and as a share of the residual stream it is added to.",
            plots.norms(study.directions.to_frame()),
            ("directions",),
        ),
    ]


def _pictures(study: Study, kept: Sequence[Sound]) -> list[Drawing]:
    pairs = {sound.pair: [other for other in kept if other.pair == sound.pair] for sound in kept}
    if not pairs:
        return []
    grid = [[sound.samples for sound in row if not sound.label.startswith("asked")] for row in pairs.values()]
    columns = [sound.label for sound in next(iter(pairs.values())) if not sound.label.startswith("asked")]
    rows = [f"{row[0].prompt}\nseed {row[0].seed}" for row in pairs.values()]
    figure = spectrograms.paired(grid, study.sample_rate, rows, columns)
    caption = "Mel spectrograms of the clips that can be heard: each row is one prompt and seed."
    return [Drawing("spectrograms", "The clips as pictures", caption, figure)]


def _pairs(grid: PatchingResult) -> str:
    """What the small print of a grid says, for the caption."""
    slider = " The slider goes from codebook to codebook." if len(grid.names) > 1 else ""
    return (
        f"Mean over {len(grid.clean)} pairs of prompts, over the first {grid.scored[1]:g} s; dots: adjusted p at most "
        f"{LEVEL:g} in the whole grid.{slider}"
    )


def _opening(study: Study) -> int:
    """The block that the direction is applied at or read at, or else the one where the poles lie furthest apart."""
    found = study.components
    return found.layers[int(found.silhouettes.argmax())] if study.choice.layer is None else study.choice.layer


def _read_at(position: Any) -> str:
    """What a direction was read from, in words."""
    names = {
        "mean": "its mean activation while a clip is generated",
        "first": "the activation at the start token, before any sound",
        "last": "the activation at the last step of the clip generated",
        "eos": "the activation at the last token of its text",
    }
    return names.get(position) or "its mean activation over {:g} to {:g} s of the clip generated".format(*position)
