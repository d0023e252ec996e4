"""Pictures of what each worker computes and what it holds."""

from collections.abc import Iterable, Sequence
from math import sqrt
from typing import Any

import numpy as np

from cqs.plot.style import KINDS, MOST_LABELLED, axes, pyplot
from cqs.quorum import CyclicQuorumSet
from cqs.schedule import Plan
from cqs.units import format_count

__all__ = ["load_bars", "subsequence_lengths", "tokens_held"]

_MOST_NUMBERED = 20  # bars
_MOST_WRITTEN = 12  # points whose values are written beside them


def load_bars(loads: Plan | Sequence[float], ax: Any = None) -> Any:
    """Draw the load of each worker as a bar, and a line at their mean.

    Parameters
    ----------
    loads : Plan or sequence of numbers
        One load for each of the W workers; of a plan, its visible (query, key) pairs.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    values = np.array(loads.loads() if isinstance(loads, Plan) else loads, dtype=float)
    ax = axes(ax, 6.0, 2.8)
    mean = values.mean()
    _bars(ax, values)
    ax.axhline(mean, color=KINDS[5], lw=1.2, ls="--", label=f"mean {mean:,.0f}")
    ax.legend(loc="upper right", frameon=False)
    ax.yaxis.set_major_formatter(lambda n, _: format_count(n))
    over = f": largest {values.max() / mean:.3f} times the mean" if mean else ""
    ax.set(xlabel="worker", ylabel="visible pairs", title=f"{len(values)} loads{over}")
    return ax


def tokens_held(quorums: CyclicQuorumSet, n_tokens: int, ax: Any = None) -> Any:
    """Draw how many of `n_tokens` tokens each worker holds, and a line at N / sqrt(W).

    Parameters
    ----------
    quorums : CyclicQuorumSet
        Worker i holds the tokens of the groups `quorums.quorum(i)`.
    n_tokens : int
        N, cut into W groups that differ by one token at most.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    W = quorums.modulus
    held = _held(quorums, n_tokens)
    ax = axes(ax, 6.0, 2.8)
    _bars(ax, held)
    _lower_line(ax, n_tokens / sqrt(W))
    ax.set(xlabel="worker", ylabel="tokens held", title=f"Tokens held by each of {W} workers, N = {n_tokens:,}")
    return ax


def subsequence_lengths(n_tokens: int, moduli: Iterable[int | CyclicQuorumSet], ax: Any = None) -> Any:
    """Draw the most tokens that a worker holds, against the number of workers, and the curve N / sqrt(W).

    Parameters
    ----------
    n_tokens : int
        N.
    moduli : iterable of int or CyclicQuorumSet
        The numbers of workers W, with the smallest cover known, or quorum sets with a base of their own.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure. Both axes are logarithmic.

    Returns
    -------
    matplotlib.axes.Axes
    """
    sets = sorted((CyclicQuorumSet(x) if isinstance(x, int) else x for x in moduli), key=lambda s: s.modulus)
    W = np.array([quorums.modulus for quorums in sets])
    longest = np.array([max(_held(quorums, n_tokens)) for quorums in sets])
    is_perfect = np.array([quorums.cover.is_perfect for quorums in sets])
    ax = axes(ax, 6.0, 3.2)
    curve = np.geomspace(W.min(), max(W.max(), W.min() + 1), 100)
    ax.plot(curve, n_tokens / np.sqrt(curve), color=KINDS[5], lw=1.2, ls="--", label="N / sqrt(W)")
    for chosen, marker, colour, label in (
        (is_perfect, "D", KINDS[0], "perfect cover"),
        (~is_perfect, "o", KINDS[4], ""),
    ):
        if chosen.any():
            style = {"ls": "none", "marker": marker, "ms": 6 if len(W) <= 40 else 3, "color": colour}
            ax.plot(W[chosen], longest[chosen], label=label or "other cover", **style)
    ax.set(xscale="log", yscale="log", xlabel="workers W", ylabel="tokens held")
    ax.yaxis.set_minor_locator(pyplot().matplotlib.ticker.LogLocator(subs=(2, 5)))
    for formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        formatter(lambda n, _: f"{n:,.0f}")
    if len(W) <= _MOST_WRITTEN:
        ax.set_xticks(W, W.tolist())
        ax.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        for x, y in zip(W.tolist(), longest.tolist(), strict=True):
            ax.annotate(f"{y:,}", (x, y), xytext=(0, 7), textcoords="offset points", ha="center", size=9)
        ax.margins(0.08, 0.15)
    ax.set_title(f"Most tokens that a worker holds, N = {n_tokens:,}")
    ax.legend()
    return ax


def _held(quorums: CyclicQuorumSet, n_tokens: int) -> list[int]:
    W = quorums.modulus
    sizes = [(g + 1) * n_tokens // W - g * n_tokens // W for g in range(W)]
    return [sum(sizes[g] for g in quorums.quorum(i)) for i in range(W)]


def _bars(ax: Any, values: Any) -> None:
    W = len(values)
    ax.bar(range(W), values, width=0.8 if W <= MOST_LABELLED else 1.0, color=KINDS[4], edgecolor="white", lw=0.3)
    ax.set(xlim=(-0.7, W - 0.3), ylim=(0, 1.3 * max(max(values, default=0), 1)))
    if W <= _MOST_NUMBERED:
        ax.set_xticks(range(W))


def _lower_line(ax: Any, value: float) -> None:
    number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    ax.axhline(value, color=KINDS[5], lw=1.2, ls="--", label=f"N / sqrt(W) = {number}")
    ax.legend(loc="upper right", frameon=False)
