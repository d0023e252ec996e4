"""Pictures of quorums. Needs matplotlib: `pip install "cqs-attention[plot]"`. Functions return Axes and show none."""

from typing import Any

from cqs.errors import BackendError
from cqs.quorum import CyclicQuorumSet

__all__ = ["ownership_matrix"]

_MOST_LABELLED = 31  # workers; beyond it numbers in the tiles would be too small to read


def ownership_matrix(quorums: CyclicQuorumSet, worker: int | None = None, ax: Any = None) -> Any:
    """Draw who owns which tile: rows are query groups, columns key groups, colours workers.

    Parameters
    ----------
    quorums : CyclicQuorumSet
        Of W workers; tiles are numbered by owner for W <= 31.
    worker : int, optional
        Draw only this worker's tiles in colour, and frame the groups that it holds.
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
    plt = _pyplot()
    W, matrix = quorums.modulus, quorums.ownership()
    ax = plt.figure(figsize=(4.2, 4.2), layout="constrained").add_subplot() if ax is None else ax
    shades = plt.colormaps["viridis"].resampled(W)(range(W))
    picture = shades[matrix]
    if worker is not None:
        picture[matrix != worker] = (0.93, 0.93, 0.93, 1.0)
        for group in quorums.quorum(worker):
            ax.axhspan(group - 0.5, group + 0.5, fill=False, edgecolor="0.6", lw=0.8)
            ax.axvspan(group - 0.5, group + 0.5, fill=False, edgecolor="0.6", lw=0.8)
    ax.imshow(picture)
    if W <= _MOST_LABELLED:
        for (g, h), owner in _entries(matrix):
            if worker is None or owner == worker:
                is_dark = picture[g, h, :3].mean() < 0.55
                ax.text(h, g, owner, ha="center", va="center", size=8, color="white" if is_dark else "black")
        ax.set_xticks(range(W))
        ax.set_yticks(range(W))
    subject = "Owner of each tile" if worker is None else f"Tiles of worker {worker}"
    ax.set(xlabel="key group", ylabel="query group", title=f"{subject}, W = {W}, base {set(quorums.base)}")
    return ax


def _entries(matrix: Any) -> list[tuple[tuple[int, int], int]]:
    return [((g, h), int(owner)) for g, row in enumerate(matrix) for h, owner in enumerate(row)]


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        remedy = "pip install 'cqs-attention[plot]'"
        raise BackendError.of("cqs.plot", "find matplotlib", "none installed", remedy) from None
    return plt
