"""Divide a site into the cells of a patching grid.

In each cell, one run takes the other run's values at one part of the site. `Grid.of` turns a site and a `by` into
cells. It raises an error before the model runs if the model lacks the site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from audiolens.checks import one_or_listed, shown, whole_number
from audiolens.errors import InputError, SiteError
from audiolens.model.sites import Site, checked_heads, checked_names, layers_once, named
from audiolens.model.spans import Real, Span

if TYPE_CHECKING:
    from audiolens import AudioLens
    from audiolens.model.families.family import Family
    from audiolens.model.timeline import Timeline

By = Literal["seconds", "head", "component", "token"]
Mode = Literal["denoising", "noising"]
WINDOWS = 8
"""The default number of windows in a grid by seconds."""
TEXT_STATES = "hook_text_states"
BEGIN = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_cross": 2, "hook_resid_post": 3}
"""Sites of the residual stream, each mapped to how many of its block's three parts come before it."""
WRITES = {"hook_attn_out": 1, "hook_cross_attn_out": 2, "hook_mlp_out": 3}
"""Sites of the outputs that a block's parts add to the stream, each mapped to its part's number, counted from 1."""
EMBEDDINGS = ("hook_embed", "hook_pos_embed")
INSIDE = (
    "ln1.hook_normalized",
    *(f"{group}.hook_{name}" for group in ("attn", "cross_attn") for name in ("q", "k", "v", "pattern", "z", "result")),
    "mlp.hook_pre", "mlp.hook_post",
)  # fmt: skip
"""Sites inside a part of a block that a patch can change."""
_DEFAULTS: dict[str, tuple[str, ...]] = {
    "seconds": ("resid_post",),
    "head": ("cross_attn.z",),
    "component": ("attn_out", "cross_attn_out", "mlp_out", "resid_post"),
    "token": ("cross_attn.k", "cross_attn.v"),
}

_SOUND_DEFAULTS = {**_DEFAULTS, "seconds": ("cross_attn_out",), "component": ("attn_out", "cross_attn_out", "mlp_out")}
"""Default sites of a grid with a `Sound` metric, in which both runs read the codes that they generate.

The residual stream encodes those codes, so patching it at any block, even the first, changes the clip regardless of the
text. The stream is therefore left out.
"""


@dataclass(frozen=True)
class Cell:
    """One patch: the sites `hooks` of a layer take the other run's values at steps `start` to `stop` (exclusive).

    `at` is the cell's row and column in the grid. `head` is the patched head, or `None` for all heads. `token` is the
    column in the table of each pair's tokens, or `None` for all tokens.
    """

    at: tuple[int, int]
    hooks: tuple[str, ...]
    layer: int | None
    start: int
    stop: int
    head: int | None = None
    token: int | None = None

    @property
    def part(self) -> int:
        """The part of the block in which the patch is made: 1 (self-attention), 2 (cross-attention) or 3 (MLP)."""
        hook = self.hooks[0]
        if hook.startswith("cross_attn."):
            return 2
        return 3 if hook.startswith("mlp.") else 1

    @property
    def enters(self) -> int:
        """The first block that a patched row runs through, entirely or in part."""
        if self.layer is None:
            return 0
        return self.layer + (self.hooks[0] in ("hook_mlp_out", "hook_resid_post"))

    @property
    def inside(self) -> bool:
        """Whether the patch is inside a part of the block, rather than in the stream or in the output added to it."""
        return self.layer is not None and self.hooks[0] not in (*BEGIN, *WRITES)


@dataclass(frozen=True)
class Grid:
    """The cells of a grid, its axis labels, and its sites under the names that the caller used."""

    by: By
    sites: tuple[str, ...]
    layers: tuple[int | None, ...]
    columns: tuple[str, ...]
    spans: tuple[Span, ...] | None
    cells: tuple[Cell, ...]

    @property
    def hooks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(hook for cell in self.cells for hook in cell.hooks))

    @classmethod
    def of(
        cls,
        lens: AudioLens,
        site: str | Sequence[str] | None,
        by: By,
        *,
        steps: int,
        timeline: Timeline,
        layers: int | Sequence[int] | None,
        windows: int | Sequence[Span],
        seconds: Span | None,
        heads: Sequence[int] | None,
        tokens: tuple[str, ...],
        on_sound: bool = False,
    ) -> Grid:
        """Return the grid over the first `steps` steps. Later steps cannot change the score and are never patched.

        If `site` is `None`, default sites are used. They depend on whether the grid is on codes or on sound
        (`on_sound`).

        Raises:
            InputError: (or a subclass) if the model lacks the site, or `by` cannot divide it.
        """
        names, found = _sites(lens, site, by, layers, on_sound)
        if by == "component":
            columns = tuple(site.name if site.layer is not None else site.short for site in map(named, names))
        elif by == "head":
            listed = range(lens.config.n_heads) if heads is None else checked_heads(heads, lens.config.n_heads)
            columns = tuple(str(head) for head in listed)
        else:
            columns = tokens
        first, stop = (0, steps) if seconds is None else timeline.select(seconds)
        spans = _windows(windows, timeline, steps) if by == "seconds" else None
        if spans is not None:
            columns = tuple(f"{a:.2f}-{b:.2f}" for _, _, (a, b) in spans)
        depths = tuple(dict.fromkeys(one.layer for group in found for one in group))
        cells = []
        for row, layer in enumerate(depths):
            for column, name in enumerate(columns):
                hooks = tuple(p.hook for p in found[column if by == "component" else 0] if p.layer == layer)
                if not hooks:
                    continue
                start, end = (first, stop) if spans is None else spans[column][:2]
                head = int(name) if by == "head" else None
                token = column if by == "token" else None
                cells.append(Cell((row, column), hooks, layer, start, min(end, steps), head, token))
        return cls(
            by, names, depths, columns, None if spans is None else tuple(span for *_, span in spans), tuple(cells)
        )


def checked_by(by: Any) -> None:
    """Raise `InputError` if `by` is not a kind of column."""
    if by not in get_args(By):
        raise InputError(f"by={shown(by)}: expected one of {', '.join(map(repr, get_args(By)))}.")


def checked_mode(mode: Any) -> None:
    """Raise `InputError` if `mode` is not a patching mode."""
    if mode not in get_args(Mode):
        raise InputError(f"mode={shown(mode)}: expected {' or '.join(map(repr, get_args(Mode)))}.")


def needs_tokens(lens: AudioLens, hooks: Sequence[str]) -> bool:
    """Return whether any of these sites has one position per text token.

    If so, both prompts of a pair need the same number of tokens.

    If the text is a prefix in the decoder's own sequence, every attention pattern has text positions, because its keys
    include the text.
    """
    forms = [lens.traced_model.family.form(hook) for hook in hooks]
    return any(form.on_text or (form.square and lens.config.has_prefix) for form in forms)


def needs_equal_lengths(
    lens: AudioLens, site: str | Sequence[str] | None, by: By, seconds: Real, on_sound: bool = False
) -> bool:
    """Return whether a grid over clips of `seconds` requires both prompts of a pair to have the same number of tokens.

    Raises:
        InputError: (or a subclass) if the model lacks the site, `by` cannot divide it, or the clip is too short.
    """
    from audiolens.model.timeline import clip_timeline

    _, found = _sites(lens, site, by, None, on_sound)
    timeline = clip_timeline(seconds, lens.config)
    if by == "seconds" and not on_sound:
        _windows(WINDOWS, timeline, timeline.steps)
    shifted = on_sound and lens.config.has_prefix
    return shifted or needs_tokens(lens, [one.hook for group in found for one in group])


def _sites(
    lens: AudioLens, site: str | Sequence[str] | None, by: By, layers: int | Sequence[int] | None, on_sound: bool
) -> tuple[tuple[str, ...], list[list[Site]]]:
    """Return the names of the sites (given or default), and the sites themselves as one list per component column."""
    checked_by(by)
    if by == "token" and lens.config.has_prefix:
        raise SiteError(
            f"by='token' needs cross-attention, and {lens.config.family} has none. Its text comes before the audio "
            "steps, in the decoder's own sequence: use by='component' or by='seconds'."
        )
    asked = _default(by, lens, on_sound) if site is None else checked_names("site", site)
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    layers = None if layers is None else layers_once(layers)
    groups = [(name,) for name in names] if by == "component" else [names]
    found = [list(lens.traced_model.family.find(lens.config, group, layers)) for group in groups]
    _refuse_mixed(by, found, lens.traced_model.family)
    return names, found


def _default(by: By, lens: AudioLens, on_sound: bool) -> tuple[str, ...]:
    names = (_SOUND_DEFAULTS if on_sound else _DEFAULTS)[by]
    if not lens.config.has_prefix:
        return names
    # In these families the self-attention reads the text.
    alone = {"cross_attn_out": "attn_out", "cross_attn.z": "attn.z"}
    return tuple(dict.fromkeys(alone.get(name, name) for name in names))


def _refuse_mixed(by: str, found: Sequence[Sequence[Site]], family: Family) -> None:
    hooks = [list(dict.fromkeys(one.hook for one in group)) for group in found]
    for group in hooks:
        parts = {Cell((0, 0), (hook,), 0, 0, 1).part if "." in hook else hook for hook in group}
        if len(parts) > 1:
            raise InputError(
                f"site={group}: sites patched together must be in one part of a block, such as 'cross_attn.k' and "
                "'cross_attn.v'. Use by='component' to give each site its own column."
            )
        forms = [family.form(hook) for hook in group]
        if by == "token" and not all("token" in form.axes for form in forms):
            raise InputError(
                f"site={group} has no token axis: by='token' takes 'cross_attn.k', 'cross_attn.v' (or both), or "
                "'hook_text_states'."
            )
        if by == "head" and not all("head" in form.axes for form in forms):
            raise InputError(
                f"site={group} has no heads: by='head' takes attn.* or cross_attn.* q, k, v, z, pattern or result."
            )
        if by == "seconds" and not all(form.timed for form in forms):
            raise InputError(f"site={group} applies to the whole clip and has no time axis: use by='token'.")


def _windows(windows: int | Sequence[Span], timeline: Timeline, steps: int) -> list[tuple[int, int, Span]]:
    """Return the (start, stop, seconds) of each window.

    If `windows` is a number, all steps up to the last scored one are divided into that many windows.
    """
    rate = timeline.frame_rate
    given = one_or_listed("windows", windows)
    try:
        windows = given if isinstance(given, list) else whole_number(given)
    except TypeError:
        windows = 0
    if not windows:
        raise InputError(f"windows={shown(given)}: expected a number of windows, or a list of (from, to) in seconds.")
    if isinstance(windows, int):
        if not 1 <= windows <= steps:
            raise InputError(f"windows={windows}: there are {steps} steps to divide; give 1 to {steps}.")
        bounds = np.linspace(0, steps, windows + 1).round().astype(int).tolist()
        return [(a, b, (a / rate, b / rate)) for a, b in pairwise(bounds)]
    found: list[tuple[int, int, Span]] = []
    for window in windows:
        a, b = timeline.select(window)
        ends: tuple[Real, Real] = (float(window[0]), float(window[1]))
        found.append((a, b, ends))
    return found
