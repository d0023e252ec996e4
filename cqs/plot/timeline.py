"""A picture of a run: what happened when, and on which lane."""

from collections.abc import Iterable
from typing import Any, Protocol

from cqs.plot.style import KINDS, axes, ink_on, pyplot
from cqs.units import format_seconds

__all__ = ["Span", "timeline"]

_HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "--")  # kinds are told apart without colours, too
_NARROWER = 0.7  # how high a bar is in comparison with the one that it lies in
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
        Anything with `lane`, `name`, `kind`, `start` and `stop`, in any order, such as what `cqs.attention` gives to
        `on_event`. Times count from the earliest start; lanes come in the order of their first span, kinds likewise, in
        the colours and hatches of a palette of seven. What lies within another span of its lane is a narrower bar upon
        it. Names are written where there is room, but not below others.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure, the higher the more lanes there are.

    Returns
    -------
    matplotlib.axes.Axes
    """
    placed = _placed(spans)
    lanes = list(dict.fromkeys(str(span.lane) for span, _, _ in placed))
    kinds = list(dict.fromkeys(str(span.kind) for span, _, _ in placed))
    zero = min((span.start for span, _, _ in placed), default=0.0)
    end = max((span.stop for span, _, _ in placed), default=zero) - zero
    ax = axes(ax, 8.0, 1.3 + 0.4 * max(len(lanes), 1))
    for number, kind in enumerate(kinds):
        of_kind = [each for each in placed if str(each[0].kind) == kind]
        colour, hatch = KINDS[number % len(KINDS)], _HATCHES[number % len(KINDS)]
        ax.barh(
            [lanes.index(str(span.lane)) for span, _, _ in of_kind],
            [span.stop - span.start for span, _, _ in of_kind],
            left=[span.start - zero for span, _, _ in of_kind],
            height=[0.85 * _NARROWER**depth for _, depth, _ in of_kind],
            **{"label": kind, "facecolor": colour, "hatch": hatch, "edgecolor": "white", "lw": 0.5},
        )
        for span, _, is_leaf in of_kind:
            if is_leaf and span.stop - span.start >= _LEAST_NAMED * end:
                _write_name(
                    ax, str(span.name), (span.start + span.stop) / 2 - zero, lanes.index(str(span.lane)), colour
                )
    if kinds:
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=min(len(kinds), 4), frameon=False, fontsize=8)
    ax.set_yticks(range(len(lanes)), lanes)
    ax.set(xlim=(0, end or 1.0), ylim=(max(len(lanes), 1) - 0.5, -0.5), xlabel="time since the first start")
    ax.xaxis.set_major_formatter(lambda seconds, _: format_seconds(seconds) if seconds else "0")
    return ax


def _placed(spans: Iterable[Span]) -> list[tuple[Span, int, bool]]:
    """Return spans in order of their start, with how many of their lane they lie in, and whether none lies in them."""
    ordered = sorted(spans, key=lambda span: (span.start, -span.stop))
    depths, leaves = [0] * len(ordered), [True] * len(ordered)
    open_spans: dict[str, list[int]] = {}
    for number, span in enumerate(ordered):
        around = open_spans.setdefault(str(span.lane), [])
        while around and ordered[around[-1]].stop < span.stop:  # ended before, or only overlapping
            around.pop()
        depths[number] = len(around)
        if around:
            leaves[around[-1]] = False
        around.append(number)
    return list(zip(ordered, depths, leaves, strict=True))


def _write_name(ax: Any, name: str, x: float, row: int, colour: str) -> None:
    ink = ink_on(pyplot().matplotlib.colors.to_rgb(colour))
    back = {"boxstyle": "square,pad=0.1", "facecolor": colour, "edgecolor": "none"}
    ax.text(x, row, name, ha="center", va="center", size=7, color=ink, bbox=back)
