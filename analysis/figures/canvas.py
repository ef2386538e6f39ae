"""Draw a matplotlib figure on a new canvas, or into axes given by the caller.

Every result's `.plot` takes `ax` and `caption`, which `drawable` adds. Drawing code gets its figure from `canvas` and
adds the caption below it with `captioned`. A figure with one panel is drawn into the caller's axes. A figure with
several panels replaces these axes within the caller's figure and keeps their title.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any

from audiolens.checks import checked_flags
from audiolens.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class _Asked:
    ax: Axes | None = None
    caption: bool = True


_ALONE = _Asked()
_ASKED = ContextVar("_ASKED", default=_ALONE)
SINGLE, DOUBLE = 3.35, 6.9
"""Widths of one and of two columns of a paper in inches (85 and 175 mm)."""
_NATURAL_SINGLE = 4.7
"""Widest figure in inches that is drawn in one column."""
_COLUMN: ContextVar[float | None] = ContextVar("_COLUMN", default=None)


@contextmanager
def in_column(width: float) -> Iterator[None]:
    """Draw figures at most this wide, `SINGLE` or `DOUBLE` inches. Small figures take one column."""
    before = _COLUMN.set(width)
    try:
        yield
    finally:
        _COLUMN.reset(before)


def is_narrow() -> bool:
    """Return whether figures with several panels have to fit in one column."""
    return _COLUMN.get() == SINGLE


def drawable(plot: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options `ax` (the caller's axes) and `caption` (whether to draw the caption) to a result's `.plot`.

    The method returns the figure into which it drew. If `ax` is given, this is the caller's figure.

    Raises:
        InputTypeError: if `ax` is not an Axes.
        InputError: if the figure has several panels and `ax` has no subplot position.
    """
    signature = inspect.signature(plot)
    further = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in (("ax", None), ("caption", True))
    ]

    @wraps(plot)
    def drawn(self: Any, *args: Any, ax: Any = None, caption: bool = True, **options: Any) -> Any:
        checked_flags(caption=caption)
        if ax is None and caption:
            # A plot called by another plot draws into the same axes.
            return plot(self, *args, **options)
        before = _ASKED.set(_Asked(None if ax is None else _checked(ax), bool(caption)))
        try:
            figure = plot(self, *args, **options)
        finally:
            _ASKED.reset(before)
        return figure if ax is None else ax.figure

    drawn.__signature__ = signature.replace(  # pyright: ignore[reportAttributeAccessIssue]
        parameters=[*signature.parameters.values(), *further]
    )
    return drawn


def canvas(figsize: tuple[float, float], layout: str | None = "constrained") -> Any:
    """Return a new figure of the given size in inches, or an adapter that draws into the caller's axes."""
    from matplotlib.figure import Figure

    ax, widest = _ASKED.get().ax, _COLUMN.get()
    if ax is not None:
        return _Inside(ax)
    if widest is not None:
        width = SINGLE if figsize[0] <= _NATURAL_SINGLE else widest
        # Text does not shrink with the width, so the height shrinks less.
        figsize = (width, figsize[1] * min(1.0, width / figsize[0]) ** 0.5)
    return Figure(figsize=figsize, layout=layout)  # pyright: ignore[reportArgumentType]


def wants_caption() -> bool:
    """Return whether the current figure is drawn with its caption."""
    return _ASKED.get().caption


def _checked(ax: Any) -> Axes:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise InputTypeError(f"ax={type(ax).__name__}: expected one matplotlib Axes, as plt.subplots() returns.")
    return ax


class _Inside:
    """Adapter through which drawing code uses the caller's axes like a figure."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.single = False

    @cached_property
    def subfigure(self) -> Any:
        """A subfigure at the position of the caller's axes."""
        spec = self.ax.get_subplotspec()
        if spec is None:
            raise InputError("ax has no subplot position, and this figure has several panels: use plt.subplots().")
        self.ax.set_axis_off()
        return self.ax.figure.add_subfigure(spec)

    @property
    def axes(self) -> list[Axes]:
        return [self.ax] if self.single else self.subfigure.axes

    def add_subplot(self, *where: Any, **options: Any) -> Any:
        self.single = not where and not options
        return self.ax if self.single else self.subfigure.add_subplot(*where, **options)

    def subplots(self, rows: int = 1, columns: int = 1, *, squeeze: bool = True, **options: Any) -> Any:
        self.single = rows == columns == 1
        if not self.single:
            return self.subfigure.subplots(rows, columns, squeeze=squeeze, **options)
        import numpy as np

        return self.ax if squeeze else np.array([[self.ax]])

    def colorbar(self, image: Any, **options: Any) -> Any:
        return self.ax.figure.colorbar(image, **options)

    def legend(self, *args: Any, loc: str, **options: Any) -> Any:
        if self.single:
            return self.ax.legend(*args, **options)
        return self.subfigure.legend(*args, loc=loc, **options)

    def suptitle(self, text: str, **options: Any) -> Any:
        if not self.single:
            return self.subfigure.suptitle(text, **options)
        beneath = self.ax._left_title  # pyright: ignore[reportAttributeAccessIssue]
        if not beneath.get_text():
            return self.ax.set_title(text, **options)
        beneath.set_text(f"{text}\n{beneath.get_text()}")
        return beneath

    def supxlabel(self, text: str, **options: Any) -> Any:
        if not self.single:
            return self.subfigure.supxlabel(text, **options)
        style = {name: value for name, value in options.items() if name in ("fontsize", "color", "ha")}
        # Place the text below the tick labels, regardless of their length.
        whole = self.ax.get_tightbbox()
        depth = (self.ax.get_window_extent().y0 - whole.y0) * 72 / self.ax.figure.dpi if whole is not None else 0
        below = {"xycoords": "axes fraction", "xytext": (0, -depth - 4), "textcoords": "offset points", "va": "top"}
        return self.ax.annotate(text, (0, 0), annotation_clip=False, **{**below, **style})

    def get_figwidth(self) -> float:
        """Return the width in inches to which text is wrapped."""
        return max(1.0, self.ax.get_window_extent().width / self.ax.figure.dpi)

    def get_figheight(self) -> float:
        return self.ax.get_window_extent().height / self.ax.figure.dpi

    def set_figheight(self, height: float) -> None:
        """Do nothing, because the caller's figure keeps its height."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.subfigure, name)
