"""Pictures of how memory and time grow with the number of tokens, from figures that somebody measured or computed."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

from cqs.plot.style import KINDS, axes
from cqs.units import format_bytes, format_count, format_seconds

__all__ = ["memory_against_tokens", "time_against_tokens"]

# name -> (numbers of tokens, values), in step
Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def memory_against_tokens(series: Series, limit: float | None = None, ax: Any = None) -> Any:
    """Draw bytes against tokens, both logarithmic.

    Parameters
    ----------
    series : dict of str to (tokens, bytes)
        One line for each name.
    limit : float, optional
        Bytes that there are, as a dashed line.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Examples
    --------
    >>> import matplotlib; matplotlib.use("agg")
    >>> ax = memory_against_tokens({"scores": ([1e3, 1e4], [4e6, 4e8])}, limit=2**30)
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'memory')
    """
    ax = _draw(series, "memory", format_bytes, ax, base=2)
    if limit is not None:
        ax.axhline(limit, color="black", lw=1.0, ls="--", label=f"limit {format_bytes(limit)}")
        ax.legend()
    return ax


def time_against_tokens(series: Series, ax: Any = None) -> Any:
    """Draw seconds against tokens, both logarithmic; see `memory_against_tokens`.

    Parameters
    ----------
    series : dict of str to (tokens, seconds)
        One line for each name.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes
    """
    return _draw(series, "time", format_seconds, ax, base=10)


def _draw(series: Series, what: str, write: Callable[[float], str], ax: Any, base: int) -> Any:
    ax = axes(ax, 5.6, 3.4)
    for (name, (n_tokens, values)), colour, marker in zip(series.items(), cycle(KINDS), cycle("osD^vPX"), strict=False):
        ax.plot(n_tokens, values, color=colour, marker=marker, ms=5, lw=1.5, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=base)
    ax.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}" if n < 1e6 else format_count(n))
    ax.yaxis.set_major_formatter(lambda value, _: write(value))
    ax.set(xlabel="tokens", ylabel=what)
    ax.grid(color="0.9", lw=0.6)
    ax.legend()
    return ax
