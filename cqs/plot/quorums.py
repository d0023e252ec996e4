"""Pictures of difference covers and of the quorums and owners that follow from them."""

from math import cos, pi, sin
from typing import Any

import numpy as np

from cqs.plot.style import EMPTY, KINDS, MOST_LABELLED, axes, ink_on, pyplot, worker_colours
from cqs.quorum import CyclicQuorumSet, DifferenceCover

__all__ = ["difference_table", "ownership_matrix", "quorum_circle"]

_MOST_CHORDS = 7  # groups; beyond it chords are too many to tell apart, and are thin and without labels
_LEAST_AREA = 9.0  # of a worker's tile, in points squared
_MOST_DIFFERENCES = 24  # elements of a cover whose table of differences is written out


def ownership_matrix(quorums: CyclicQuorumSet, worker: int | None = None, ax: Any = None) -> Any:
    """Draw who owns which tile: rows are query groups, columns key groups, colours workers.

    Parameters
    ----------
    quorums : CyclicQuorumSet
        Of W workers; tiles are numbered by owner for W <= 31.
    worker : int, optional
        Draw only this worker's tiles in colour, and frame the groups that it holds. For W > 31 tiles are drawn larger
        than they are, and groups as bands.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    BackendError
        If matplotlib is not installed.
    """
    W, matrix = quorums.modulus, quorums.ownership()
    ax = axes(ax, 4.2, 4.4)
    picture = worker_colours(W)[matrix]
    if worker is not None:
        picture[matrix != worker] = EMPTY
        frame = {"fill": False, "edgecolor": "0.6", "lw": 0.8} if W <= MOST_LABELLED else {"color": "0.82", "lw": 0}
        for group in quorums.quorum(worker):
            for span in (ax.axhspan, ax.axvspan):
                span(group - 0.5, group + 0.5, zorder=1, **frame)
        if W > MOST_LABELLED:  # a tile is less than a dot then
            rows, columns = np.nonzero(matrix == worker)
            ax.scatter(columns, rows, s=_LEAST_AREA, marker="s", lw=0, color=picture[rows[0], columns[0]], zorder=2)
    ax.imshow(picture, interpolation="nearest", zorder=0)
    if W <= MOST_LABELLED:
        for g, h in np.ndindex(W, W):
            if worker is None or matrix[g, h] == worker:
                style = {"size": 8 if W <= 15 else 5, "color": ink_on(picture[g, h])}
                ax.text(h, g, int(matrix[g, h]), ha="center", va="center", **style)
        ax.set_xticks(range(W))
        ax.set_yticks(range(W))
        ax.tick_params(labelsize=10 if W <= 15 else 6)
    subject = "Owner of each tile" if worker is None else f"Tiles of worker {worker}"
    ax.set(xlabel="key group", ylabel="query group", title=f"{subject}, W = {W}{_of_base(quorums.base)}")
    return ax


def quorum_circle(
    quorums: CyclicQuorumSet | DifferenceCover, worker: int = 0, other: int | None = None, ax: Any = None
) -> Any:
    """Draw the W groups on a circle, and the quorum of a worker as a polygon: its chords are its differences.

    Turning the polygon by one place gives the next worker's quorum. Each distance around the circle is the length of
    some chord, so each two groups are the ends of a chord of some worker.

    Parameters
    ----------
    quorums : CyclicQuorumSet or DifferenceCover
        Of W groups; groups are numbered for W <= 31, chords for quorums of at most 7 groups.
    worker : int
        Whose quorum is drawn.
    other : int, optional
        A second worker; the groups where both quorums meet are marked with a ring.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    if isinstance(quorums, DifferenceCover):
        quorums = CyclicQuorumSet(quorums.modulus, quorums.base)
    W, held = quorums.modulus, set(quorums.quorum(worker))
    ax = axes(ax, 4.2, 4.4)
    x, y = np.array([_place(g, W) for g in range(W)]).T
    ax.plot(*np.array([_place(g, W) for g in np.linspace(0, W, 200)]).T, color="0.85", lw=1, zorder=0)
    ax.scatter(x, y, s=60 if W <= MOST_LABELLED else 6, color="0.85")
    for i, colour in [(worker, KINDS[0])] + ([] if other is None else [(other, KINDS[1])]):
        groups = quorums.quorum(i)
        _draw_chords(ax, groups, W, colour, is_named=other is None)
        points = np.array([_place(g, W) for g in groups]).T
        ax.scatter(*points, s=90 if W <= MOST_LABELLED else 24, color=colour, zorder=3, label=f"worker {i}")
    if other is not None:
        met = sorted(held & set(quorums.quorum(other)))
        rings = np.array([_place(g, W) for g in met]).T
        label = f"met at {', '.join(map(str, met))}"
        ax.scatter(*rings, s=220, facecolor="none", edgecolor="black", lw=1.5, zorder=4, label=label)
        style = {"ncols": 3, "frameon": False, "handletextpad": 0.1, "columnspacing": 1.0}
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 0.02), fontsize=9, **style)
    for g in range(W) if W <= MOST_LABELLED else sorted(held):
        ax.text(*_place(g, W, radius=1.17), g, ha="center", va="center", size=9 if W <= 15 else 7)
    subject = f"Quorum of worker {worker}" if other is None else f"Quorums of workers {worker} and {other}"
    ax.set(aspect="equal", xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), title=f"{subject}, W = {W}")
    ax.axis("off")
    return ax


def difference_table(cover: DifferenceCover | CyclicQuorumSet, ax: Any = None) -> Any:
    """Draw every difference a - b of a cover, a down and b across, coloured by how many pairs have that difference.

    A perfect cover has each non-zero difference once, so its table is of one colour.

    Parameters
    ----------
    cover : DifferenceCover or CyclicQuorumSet
        Of m elements; differences are written into the table for m <= 24.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    W, base = cover.modulus, np.array(cover.base)
    m = len(base)
    ax = axes(ax, 4.2, 4.4)
    table = (base[:, None] - base[None, :]) % W
    counts = np.bincount(table.ravel(), minlength=W)[table]
    shades = pyplot().matplotlib.colors.to_rgba_array(["#FFFFFF", KINDS[4], KINDS[1], KINDS[5]])
    picture = shades[np.where(table == 0, 0, np.minimum(counts, 3))]
    ax.imshow(picture, interpolation="nearest")
    if m <= _MOST_DIFFERENCES:
        for row, column in np.ndindex(m, m):
            ax.text(column, row, int(table[row, column]), ha="center", va="center", size=10 if m <= 8 else 6)
        ax.set_xticks(range(m), base.tolist(), size=10 if m <= 8 else 6)
        ax.set_yticks(range(m), base.tolist(), size=10 if m <= 8 else 6)
    patch = pyplot().matplotlib.patches.Patch
    seen = sorted(set(np.minimum(counts, 3)[table != 0].tolist()))
    names = {1: "reached once", 2: "twice", 3: "more often"}
    handles = [patch(color=shades[n], label=names[n]) for n in seen]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    ax.set(xlabel="b", ylabel="a", title=f"Differences a - b modulo {W}")
    return ax


def _draw_chords(ax: Any, groups: tuple[int, ...], W: int, colour: str, is_named: bool) -> None:
    is_few = len(groups) <= _MOST_CHORDS
    for number, g in enumerate(groups):
        for h in groups[number + 1 :]:
            (x0, y0), (x1, y1) = _place(g, W), _place(h, W)
            ax.plot([x0, x1], [y0, y1], color=colour, lw=1.4 if is_few else 0.5, alpha=1.0 if is_few else 0.5)
            if is_few and is_named:
                back = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none"}
                d = min(h - g, W - h + g)
                ax.text((x0 + x1) / 2, (y0 + y1) / 2, d, ha="center", va="center", size=9, color=colour, bbox=back)


def _place(g: float, W: int, radius: float = 1.0) -> tuple[float, float]:
    """Return where group g stands: 0 at the top, then clockwise."""
    return radius * sin(2 * pi * g / W), radius * cos(2 * pi * g / W)


def _of_base(base: tuple[int, ...]) -> str:
    return f", base {set(base)}" if len(base) <= 5 else ""
