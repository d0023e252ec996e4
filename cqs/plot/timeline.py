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
    lanes = list(dict.fromkeys(str(span.lane) for span in ordered))
    kinds = list(dict.fromkeys(str(span.kind) for span in ordered))
    zero = min((span.start for span in ordered), default=0.0)
    end = max((span.stop for span in ordered), default=zero) - zero
    ax = axes(ax, 8.0, 1.2 + 0.4 * max(len(lanes), 1))
    for number, kind in enumerate(kinds):
        of_kind = [span for span in ordered if str(span.kind) == kind]
        colour, hatch = KINDS[number % len(KINDS)], _HATCHES[number % len(KINDS)]
        ax.barh(
            [lanes.index(str(span.lane)) for span in of_kind],
            [span.stop - span.start for span in of_kind],
            left=[span.start - zero for span in of_kind],
            **{"height": 0.8, "label": kind, "facecolor": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.5},
        )
        _write_names(
            ax, [span for span in of_kind if span.stop - span.start >= _LEAST_NAMED * end], lanes, zero, colour
        )
    if kinds:
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=min(len(kinds), 7), frameon=False)
    ax.set_yticks(range(len(lanes)), lanes)
    ax.set(xlim=(0, end or 1.0), ylim=(max(len(lanes), 1) - 0.5, -0.5), xlabel="time since the first start")
    ax.xaxis.set_major_formatter(lambda seconds, _: format_seconds(seconds) if seconds else "0")
    return ax


def _write_names(ax: Any, spans: list[Span], lanes: list[str], zero: float, colour: str) -> None:
    ink = ink_on(pyplot().matplotlib.colors.to_rgb(colour))
    back = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none"}
    for span in spans:
        middle = (span.start + span.stop) / 2 - zero
        style = {"ha": "center", "va": "center", "size": 7, "color": ink, "bbox": back}
        ax.text(middle, lanes.index(str(span.lane)), str(span.name), **style)
