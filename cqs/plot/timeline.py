"""A picture of a run: what happened when, and on which lane."""

from collections.abc import Iterable
from typing import Any, Protocol

from cqs.plot.style import KINDS, axes, ink_on, pyplot
from cqs.units import format_seconds

__all__ = ["Span", "timeline"]

_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--")  # kinds are told apart without colours, too
_LEAST_NAMED = 0.05  # of the width: spans that are shorter have no room for their name


class Span(Protocol):
    """Something that took time: a task, a copy, a merge."""

    @property
    def lane(self) -> str:
        """The thread, stream or device that it ran on."""

    @property
    def name(self) -> str:
        """What it was, to be written into the picture."""

    @property
    def kind(self) -> str:
        """What it is coloured by, such as "compute" or "copy in"."""

    @property
    def start(self) -> float:
        """When it began, in seconds."""

    @property
    def stop(self) -> float:
        """When it ended, in seconds on the same clock."""


def timeline(spans: Iterable[Span], ax: Any = None) -> Any:
    """Draw spans of time as bars, one lane below the other, coloured by kind.

    Parameters
    ----------
    spans : iterable of Span
        Anything with `lane`, `name`, `kind`, `start` and `stop`, in any order. Times count from the earliest start;
        lanes come in the order of their first span, kinds likewise, in the colours and hatches of a palette of seven.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure, the higher the more lanes there are.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ordered = sorted(spans, key=lambda span: (span.start, span.stop))
    lanes = list(dict.fromkeys(span.lane for span in ordered))
    kinds = list(dict.fromkeys(span.kind for span in ordered))
    zero = min((span.start for span in ordered), default=0.0)
    end = max((span.stop for span in ordered), default=zero) - zero
    ax = axes(ax, 8.0, 1.2 + 0.4 * max(len(lanes), 1))
    for span in ordered:
        number, width = kinds.index(span.kind) % len(KINDS), span.stop - span.start
        style = {"facecolor": KINDS[number], "hatch": _HATCHES[number], "edgecolor": "white", "linewidth": 0.5}
        row = lanes.index(span.lane)
        ax.barh(row, width, left=span.start - zero, height=0.8, label=span.kind, **style)
        if end and width / end >= _LEAST_NAMED:
            ink = ink_on(pyplot().matplotlib.colors.to_rgb(KINDS[number]))
            back = {"boxstyle": "square,pad=0.1", "facecolor": KINDS[number], "edgecolor": "none"}
            ax.text(
                span.start - zero + width / 2, row, span.name, ha="center", va="center", size=7, color=ink, bbox=back
            )
    handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if handles:
        style = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "ncols": len(handles), "frameon": False}
        ax.legend([handles[kind] for kind in kinds], kinds, **style)
    ax.set_yticks(range(len(lanes)), lanes)
    ax.set(xlim=(0, end or 1.0), ylim=(max(len(lanes), 1) - 0.5, -0.5), xlabel="time since the first start")
    ax.xaxis.set_major_formatter(lambda seconds, _: format_seconds(seconds) if seconds else "0")
    return ax
