"""What a patching grid is made of: cells, each a place in the model whose values one run takes from another.

`Grid.of` turns a site and a `by` into cells, and refuses what the model does not have before it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from audiolens.checks import one_or_listed, whole_number
from audiolens.errors import InputError, SiteError
from audiolens.model.sites import Site, checked_heads, checked_names, layers_once, named
from audiolens.model.timeline import Real, Span, Timeline, clip_timeline

if TYPE_CHECKING:
    from audiolens import AudioLens

By = Literal["seconds", "head", "component", "token"]
WINDOWS = 8
"""Of a grid by seconds, where none are named."""
TEXT_STATES = "hook_text_states"
BEGIN = {"hook_resid_pre": 0, "hook_resid_mid": 1, "hook_resid_cross": 2, "hook_resid_post": 3}
"""Sites that are the residual stream itself, by how many of a block's three parts it has behind it there."""
WRITES = {"hook_attn_out": 1, "hook_cross_attn_out": 2, "hook_mlp_out": 3}
"""Sites that a part of the block adds to the stream, by the same count."""
EMBEDDINGS = ("hook_embed", "hook_pos_embed")
TEXT_SIDE = (TEXT_STATES, "cross_attn.hook_k", "cross_attn.hook_v", "cross_attn.hook_pattern")
"""Sites with one place a token of the text."""
_DEFAULTS: dict[str, tuple[str, ...]] = {
    "seconds": ("resid_post",),
    "head": ("cross_attn.z",),
    "component": ("attn_out", "cross_attn_out", "mlp_out", "resid_post"),
    "token": ("cross_attn.k", "cross_attn.v"),
}

_HEARD = {**_DEFAULTS, "seconds": ("cross_attn_out",), "component": ("attn_out", "cross_attn_out", "mlp_out")}
"""By ear both runs play their own codes, and the stream carries all of them: patched at any block, the first too, it
moves the clip, whatever the text does there. Heard is therefore what a block takes from the text."""


@dataclass(frozen=True)
class Cell:
    """One patch: `hooks` of a layer take the other run's values at the steps from `start` to before `stop`.

    `at` is its row and column of the grid. `head` is the one head patched (`None`: all); `token` the column of a table
    that holds each pair's token (`None`: all tokens).
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
        """The part of the block in which the patch is made: 1 self-attention, 2 cross-attention, 3 MLP."""
        hook = self.hooks[0]
        if hook.startswith("cross_attn."):
            return 2
        return 3 if hook.startswith("mlp.") else 1

    @property
    def enters(self) -> int:
        """The first block that a patched row runs through, if only in part."""
        if self.layer is None:
            return 0
        return self.layer + (self.hooks[0] in ("hook_mlp_out", "hook_resid_post"))

    @property
    def inside(self) -> bool:
        """Whether the patch is made within a part, and not in the stream or in what the part adds to it."""
        return self.layer is not None and self.hooks[0] not in (*BEGIN, *WRITES)


@dataclass(frozen=True)
class Grid:
    """The cells of one grid, its axes in words, and the sites as they were asked for."""

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
        heard: bool = False,
    ) -> Grid:
        """The cells over so many `steps`; later ones cannot change what is scored, and are left out of a patch.

        Without a site, those of a grid on codes, or of one that is `heard`.

        Raises:
            InputError: (or a subclass) for a site that the model lacks, or one that `by` cannot divide.
        """
        names, found = _sites(lens, site, by, layers, heard)
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
        depths = tuple(dict.fromkeys(place.layer for places_ in found for place in places_))
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
    """Raise for columns that no grid has."""
    if by not in get_args(By):
        raise InputError(f"by={by!r}: expected one of {', '.join(map(repr, get_args(By)))}.")


def needs_tokens(lens: AudioLens, hooks: Sequence[str]) -> bool:
    """Whether any of these sites has a place a token, so that both prompts must have equally many.

    Where the text stands before the steps, every pattern has: its keys begin there.
    """
    patterns = lens.config.has_prefix and any(hook.endswith("pattern") for hook in hooks)
    return patterns or any(hook in TEXT_SIDE for hook in hooks)


def needs_equal_lengths(
    lens: AudioLens, site: str | Sequence[str] | None, by: By, seconds: Real, heard: bool = False
) -> bool:
    """Whether a grid over clips of `seconds` takes only pairs whose prompts have equally many tokens.

    Raises:
        InputError: (or a subclass) for a site that the model lacks, one that `by` cannot divide, or a clip too short.
    """
    _, found = _sites(lens, site, by, None, heard)
    timeline = clip_timeline(seconds, lens.config)
    if by == "seconds" and not heard:
        _windows(WINDOWS, timeline, timeline.steps)
    shifted = heard and lens.config.has_prefix
    return shifted or needs_tokens(lens, [place.hook for group in found for place in group])


def _sites(
    lens: AudioLens, site: str | Sequence[str] | None, by: By, layers: int | Sequence[int] | None, heard: bool
) -> tuple[tuple[str, ...], list[list[Site]]]:
    """The sites as they were asked for, or those of the default, and their places: a list a column of components."""
    checked_by(by)
    if by == "token" and lens.config.has_prefix:
        raise SiteError(
            f"by='token': {lens.config.family} has no cross-attention: its text stands before the audio steps, in the "
            "decoder's own sequence. Use by='component' or by='seconds'."
        )
    asked = _default(by, lens, heard) if site is None else checked_names("site", site)
    names = (asked,) if isinstance(asked, str) else tuple(asked)
    layers = None if layers is None else layers_once(layers)
    groups = [(name,) for name in names] if by == "component" else [names]
    found = [list(lens.traced_model.family.find(lens.config, group, layers)) for group in groups]
    _refuse_mixed(by, found)
    return names, found


def _default(by: By, lens: AudioLens, heard: bool) -> tuple[str, ...]:
    names = (_HEARD if heard else _DEFAULTS)[by]
    if not lens.config.has_prefix:
        return names
    # Here the self-attention is what takes from the text.
    alone = {"cross_attn_out": "attn_out", "cross_attn.z": "attn.z"}
    return tuple(dict.fromkeys(alone.get(name, name) for name in names))


def _refuse_mixed(by: str, found: Sequence[Sequence[Site]]) -> None:
    hooks = [list(dict.fromkeys(place.hook for place in group)) for group in found]
    for group in hooks:
        parts = {Cell((0, 0), (hook,), 0, 0, 1).part if "." in hook else hook for hook in group}
        if len(parts) > 1:
            raise InputError(
                f"site={group}: sites patched together must lie in one part of a block, such as 'cross_attn.k' and "
                "'cross_attn.v'. Use by='component' for a column each."
            )
        if by == "token" and not all(hook in (TEXT_STATES, "cross_attn.hook_k", "cross_attn.hook_v") for hook in group):
            raise InputError(
                f"site={group} has no place a token: by='token' takes 'cross_attn.k', 'cross_attn.v' (or both), or "
                "'hook_text_states'."
            )
        if by == "head" and not all("attn.hook_" in hook for hook in group):
            raise InputError(
                f"site={group} has no heads: by='head' takes attn.* or cross_attn.* q, k, v, z, pattern or result."
            )
        if by == "seconds" and any(hook in TEXT_SIDE and not hook.endswith("pattern") for hook in group):
            raise InputError(f"site={group} stands for the whole clip and has no seconds: use by='token'.")


def _windows(windows: int | Sequence[Span], timeline: Timeline, steps: int) -> list[tuple[int, int, Span]]:
    """(start, stop, seconds) of each window. A number divides all steps up to the last that is scored."""
    rate = timeline.frame_rate
    given = one_or_listed("windows", windows)
    try:
        windows = given if isinstance(given, list) else whole_number(given)
    except TypeError:
        windows = 0
    if not windows:
        raise InputError(f"windows={given!r}: expected a number of windows, or a list of (from, to) in seconds.")
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
