"""A picture of where attention goes: a map of `cqs.attention_map`, for one head."""

from typing import Any

import numpy as np

from cqs.errors import ShapeError
from cqs.plot.style import EMPTY, axes, pyplot
from cqs.types import Array

__all__ = ["attention_heatmap"]

_DECADES = 4  # below the largest weight that have colours of their own


def attention_heatmap(found: Array, n_queries: int, n_keys: int, ax: Any = None) -> Any:
    """Draw a map as an image, on a logarithmic scale; what is 0, as under a mask, is grey.

    Parameters
    ----------
    found : array, `(rows, columns)`
        A map of one head, with bins of equal sizes.
    n_queries, n_keys : int
        T and S, which the axes count.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure. Query 0 is at the top.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ShapeError
        If it is not a map of one head.
    """
    weights = np.asarray(found, np.float64)
    if weights.ndim != 2 or 0 in weights.shape:
        remedy = "take one head, as in `found[0]`"
        raise ShapeError.of("found", "have two axes, queries and keys", f"shape {weights.shape}", remedy)
    ax = axes(ax, 4.6, 4.2)
    plt = pyplot()
    most = weights.max() if weights.max() > 0 else 1.0
    colours = plt.colormaps["viridis"].with_extremes(bad=EMPTY)
    image = ax.imshow(
        np.ma.masked_less_equal(weights, 0), norm=plt.matplotlib.colors.LogNorm(most / 10**_DECADES, most, clip=True),
        cmap=colours, extent=(0, n_keys, n_queries, 0), aspect="auto", interpolation="nearest",
    )  # fmt: skip
    ax.figure.colorbar(image, ax=ax, label="weight of a bin of keys")
    ax.set(xlabel="key", ylabel="query", title="Attention")
    return ax
