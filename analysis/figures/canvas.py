"""Where a figure on paper is drawn: in one of its own, or in the place of axes that the caller has.

Every result's `.plot` takes `ax` and `caption` (`drawable`), and every drawing asks for its figure here (`canvas`) and
puts its caption beneath through `captioned`. A figure of one panel is drawn into the axes themselves; one of several
takes their place in the caller's figure, and leaves of them what they have around it, such as a title.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
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


def drawable(plot: Callable[..., Any]) -> Callable[..., Any]:
    """A result's `.plot` that also takes the caller's axes, and draws without its caption if asked to.

    It returns the figure that was drawn in: with `ax` the caller's own.

    Raises:
        InputTypeError, InputError: if `ax` is none, or was placed by hand where the figure has several panels.
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
            # A plot within a plot is drawn where that one is.
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
    """A new figure of this size in inches, or the place of the caller's axes."""
    from matplotlib.figure import Figure

    ax = _ASKED.get().ax
    return Figure(figsize=figsize, layout=layout) if ax is None else _Inside(ax)  # pyright: ignore[reportArgumentType]


def wants_caption() -> bool:
    """Whether the figure that is being drawn is to have its caption."""
    return _ASKED.get().caption


def _checked(ax: Any) -> Axes:
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise InputTypeError(f"ax={type(ax).__name__}: expected one matplotlib Axes, such as plt.subplots() gives.")
    return ax


class _Inside:
    """The caller's axes, asked for what a drawing asks of its figure."""

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        self.single = False

    @cached_property
    def place(self) -> Any:
        """A figure within the figure, in the place of the axes."""
        spec = self.ax.get_subplotspec()
        if spec is None:
            raise InputError("ax was placed by hand, and this figure has several panels: give axes of plt.subplots().")
        self.ax.set_axis_off()
        return self.ax.figure.add_subfigure(spec)

    @property
    def axes(self) -> list[Axes]:
        return [self.ax] if self.single else self.place.axes

    def add_subplot(self, *where: Any, **options: Any) -> Any:
        self.single = not where and not options
        return self.ax if self.single else self.place.add_subplot(*where, **options)

    def subplots(self, rows: int = 1, columns: int = 1, *, squeeze: bool = True, **options: Any) -> Any:
        self.single = rows == columns == 1
        if not self.single:
            return self.place.subplots(rows, columns, squeeze=squeeze, **options)
        import numpy as np

        return self.ax if squeeze else np.array([[self.ax]])

    def colorbar(self, image: Any, **options: Any) -> Any:
        return self.ax.figure.colorbar(image, **options)

    def legend(self, *args: Any, loc: str, **options: Any) -> Any:
        if self.single:
            return self.ax.legend(*args, **options)
        return self.place.legend(*args, loc=loc, **options)

    def suptitle(self, text: str, **options: Any) -> Any:
        if not self.single:
            return self.place.suptitle(text, **options)
        beneath = self.ax._left_title  # pyright: ignore[reportAttributeAccessIssue]
        if not beneath.get_text():
            return self.ax.set_title(text, **options)
        beneath.set_text(f"{text}\n{beneath.get_text()}")
        return beneath

    def supxlabel(self, text: str, **options: Any) -> Any:
        if not self.single:
            return self.place.supxlabel(text, **options)
        style = {name: value for name, value in options.items() if name in ("fontsize", "color", "ha")}
        # Under the labels, however long they are.
        whole = self.ax.get_tightbbox()
        depth = (self.ax.get_window_extent().y0 - whole.y0) * 72 / self.ax.figure.dpi if whole is not None else 0
        below = {"xycoords": "axes fraction", "xytext": (0, -depth - 4), "textcoords": "offset points", "va": "top"}
        return self.ax.annotate(text, (0, 0), annotation_clip=False, **{**below, **style})

    def get_figwidth(self) -> float:
        """In inches, of the place; texts are wrapped to it."""
        return max(1.0, self.ax.get_window_extent().width / self.ax.figure.dpi)

    def get_figheight(self) -> float:
        return self.ax.get_window_extent().height / self.ax.figure.dpi

    def set_figheight(self, height: float) -> None:
        """The caller's figure has the height that it has."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.place, name)
