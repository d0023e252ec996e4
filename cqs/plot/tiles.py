"""A picture of any plan: its tiles as rectangles of tokens."""

from typing import Any

import numpy as np

from cqs.plot.style import EMPTY, MOST_LABELLED, axes, ink_on, pyplot, worker_colours
from cqs.schedule import Plan

__all__ = ["tile_map"]

_MOST_NUMBERED = 400  # tiles


def tile_map(plan: Plan, worker: int | None = None, ax: Any = None) -> Any:
    """Draw the tiles of a plan where they lie in the score matrix, coloured by task; what nobody computes is grey.

    Parameters
    ----------
    plan : Plan
        With any mask and strategy; where tasks are cut by heads, too, those of the first block of heads. Its tiles are
        numbered by task if they are at most 400.
    worker : int, optional
        Draw only this task's tiles in colour.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure. Axes count tokens, with query 0 at the top.

    Returns
    -------
    matplotlib.axes.Axes
    """
    ax = axes(ax, 4.2, 4.4)
    T, S = plan.problem.n_queries, plan.problem.n_keys
    shades = worker_colours(plan.workers)
    placed = {
        (tile.query.start, tile.query.stop, tile.key.start, tile.key.stop): i
        for i in (range(plan.workers) if worker is None else (worker,))
        for tile in plan.task(i).tiles
    }
    corners = np.array([[(k0, q0), (k1, q0), (k1, q1), (k0, q1)] for q0, q1, k0, k1 in placed]).reshape(-1, 4, 2)
    colours = shades[list(placed.values())] if placed else np.empty((0, 4))
    is_few = plan.workers <= MOST_LABELLED and len(placed) <= _MOST_NUMBERED
    edge = {"edgecolor": "white", "linewidth": 0.6} if is_few else {"edgecolor": "face", "linewidth": 1.0}
    ax.add_collection(pyplot().matplotlib.collections.PolyCollection(corners, facecolors=colours, **edge))
    if is_few:
        for (q0, q1, k0, k1), index in placed.items():
            style = {"size": 8 if plan.workers <= 15 else 5, "color": ink_on(shades[index])}
            ax.text((k0 + k1) / 2, (q0 + q1) / 2, index, ha="center", va="center", **style)
    ax.set_facecolor(EMPTY)
    subject = f"Tiles of {plan.workers} tasks" if worker is None else f"Tiles of task {worker} of {plan.workers}"
    ax.set(xlim=(0, S), ylim=(T, 0), aspect="equal", xlabel="key", ylabel="query")
    ax.set_title(f"{subject}, {type(plan.problem.mask).__name__}")
    return ax
