"""What the pictures have in common: Axes, colours, and the sizes at which labels can still be read."""

from typing import Any

import numpy as np

from cqs.errors import BackendError

__all__ = ["EMPTY", "KINDS", "MOST_LABELLED", "axes", "ink_on", "pyplot", "worker_colours"]

MOST_LABELLED = 31  # workers; beyond it numbers in the tiles would be too small to read
EMPTY = (0.93, 0.93, 0.93, 1.0)  # what belongs to nobody, or to somebody else
# M. Okabe and K. Ito, Color Universal Design (2008), without black
KINDS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def pyplot() -> Any:
    """Return `matplotlib.pyplot`.

    Raises
    ------
    BackendError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        remedy = "pip install 'cqs-attention[plot]'"
        raise BackendError.of("cqs.plot", "find matplotlib", "none installed", remedy) from None
    return plt


def axes(ax: Any, width: float, height: float) -> Any:
    """Return `ax`, or the Axes of a new figure of that size in inches."""
    plt = pyplot()
    return plt.figure(figsize=(width, height), layout="constrained").add_subplot() if ax is None else ax


def worker_colours(W: int) -> Any:
    """Return one colour for each worker, `(W, 4)`: viridis but for its palest end, which is lost on white."""
    return pyplot().colormaps["viridis"](np.linspace(0.0, 0.95, W))


def ink_on(colour: Any) -> str:
    """Return black or white, whichever is read more easily on a colour."""
    red, green, blue = colour[:3]
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else "black"
