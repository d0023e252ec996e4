"""Tabu search, by weights, for a difference cover of a given size: one element is swapped at a time."""

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from operator import index
from time import perf_counter

import numpy as np

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.cover import DifferenceCover
from cqs.quorum.starts import completed, moved_at_random, starts
from cqs.quorum.walks import Integers, Walks

__all__ = ["search"]

LARGEST_MODULUS = 10_000
PATIENCE = 100  # moves without a new best after which a walk starts anew
MOST_WALKS = 64  # side by side, of which each has tables of some W numbers
REPORT_SECONDS = 0.5


def search(
    W: int,
    size: int,
    seconds: float = 30.0,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
    start: DifferenceCover | Iterable[int] | None = None,
) -> DifferenceCover | None:
    """Search for a difference cover of Z_W with a given number of elements, by tabu search with weights.

    Parameters
    ----------
    W : int
        The modulus, 1 to 10,000.
    size : int
        The number m of elements, from `size_lower_bound(W)` to W.
    seconds : float
        When to give up, by the clock; more than 0, and infinity is allowed.
    seed : int
        At least 0. The sequence of moves depends on W, size, start and seed only, and on NumPy's generator, which a new
        version may change; `seconds` cuts it off.
    progress : function, optional
        Called with (uncovered, seconds gone), where `uncovered` is the least number of residues left uncovered so far,
        d and -d counted once: whenever that falls, and about twice a second.
    start : DifferenceCover or iterable of int, optional
        What every walk starts from, any number of residues; too many are taken away and too few are added to, greedily.
        A cover of another modulus is multiplied by a random unit and shifted at random, in its own modulus, for each
        walk. By default walks start in turn from Singer's sets, moved so, and from m // 2 random residues.

    Returns
    -------
    DifferenceCover or None
        The first cover that a walk comes to, moved so that it contains 0; None if time was up before, which says
        nothing about whether there is one.

    Raises
    ------
    QuorumError
        If an argument is out of its range, before anything is allocated.

    Notes
    -----
    The distance of two elements is the lesser of d and W - d, d their difference. Each distance 1..W//2 has a weight, 1
    at first. A move takes out the element that bares the least weight, then puts in the residue that covers the
    most; what has been inside, or outside, for longest goes first among equals, and what came or left at the last move
    does neither at this one. Then each distance that is uncovered weighs 1 more, so that no local minimum stays one.
    A walk starts anew after 100 moves without a new best. 4 to 64 walks go on side by side, fewer for larger W.

    The weights are those of Morris, "The breakout method for escaping from local minima", AAAI (1993); with set
    covering, ties and tabus as here they are in Gao, Yao, Weise and Li, "An efficient local search heuristic with row
    weighting for the unicost set covering problem", European J. Operational Research 246 (2015) 750-761. The sets of
    Singer reach each residue of a smaller modulus once, so as integers they repeat few distances.

    A move is O(m^2 + m U + W) for U uncovered distances: some 3 us at W = 160, 75 us at W = 1040 and 2 ms at
    W = 10,000. An exception, such as that of Ctrl-C or one that `progress` raises, passes through and leaves nothing
    behind: neither files nor threads nor anything global is used.

    Examples
    --------
    >>> cover = search(31, 6)
    >>> cover.size, cover.is_perfect
    (6, True)
    """
    W, size = _checked(W, size)
    seed = whole_number("seed", seed, 0, "leave it out for seed 0", QuorumError)
    # Not a number is not more than 0 either
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise QuorumError.of("seconds", "be a number greater than 0", repr(seconds), "leave it out for 30 seconds")
    if not (progress is None or callable(progress)):
        rule = "be a function of (uncovered, seconds gone)"
        raise QuorumError.of("progress", rule, repr(progress), "leave it out for silence")
    rng = np.random.default_rng((W, size, seed))
    begin, reported, best = perf_counter(), 0.0, W
    for walks in _walk(W, size, _starts(W, size, start, rng), rng):
        left, gone = walks.n_uncovered, perf_counter() - begin
        n = int(left.argmin())
        if progress is not None and (left[n] < best or gone - reported >= REPORT_SECONDS):
            best, reported = min(best, int(left[n])), gone
            progress(best, gone)
        if left[n] == 0:
            found = walks.elements[n]
            return DifferenceCover.of(W, (found - found.min()).tolist())
        if gone >= seconds:
            return None
    raise AssertionError("the walks do not end")


def _checked(W: int, size: int) -> tuple[int, int]:
    """Return modulus and size as ints, if a cover of that size may exist and searching for it is not hopeless."""
    W = whole_number("W", W, 1, "W is the number of workers", QuorumError)
    if W > LARGEST_MODULUS:
        rule = f"be at most {LARGEST_MODULUS}, beyond which a start alone takes seconds"
        raise QuorumError.of("W", rule, W, f"construct a cover by `difference_cover({W})`")
    least = size_lower_bound(W)
    size = whole_number("size", size, 1, f"m is the number of elements, {least} to {W} for W = {W}", QuorumError)
    if size < least:
        rule = f"be at least {least}: no cover of Z_{W} has fewer than {least} elements, by counting differences"
        raise QuorumError.of("size", rule, size, f"search for {least} or more")
    if size > W:
        rule = f"be at most {W}: Z_{W} has no more than {W} elements"
        raise QuorumError.of("size", rule, size, f"search for {W} or fewer")
    return W, size


def _starts(
    W: int, size: int, start: DifferenceCover | Iterable[int] | None, rng: "np.random.Generator"
) -> Iterator[Integers]:
    """Yield what walks start from, before it has the right size."""
    if start is None:
        return starts(W, size, rng)
    if isinstance(start, DifferenceCover) and start.modulus != W:
        return (moved_at_random(start, rng) for _ in repeat(None))
    try:
        residues = {index(x) % W for x in (start.base if isinstance(start, DifferenceCover) else start)}
    except TypeError:
        rule = "be a difference cover, or whole numbers"
        raise QuorumError.of("start", rule, repr(start), "leave it out for sets of Singer and random ones") from None
    return repeat(np.array(sorted(residues), dtype=np.int64))


def _walk(W: int, size: int, starts: Iterator[Integers], rng: "np.random.Generator") -> Iterator[Walks]:
    """Walk from one start after the other; yields the state after each start and after each move of all walks."""
    walks = Walks(W, size, min(max(2**15 // W, 4), MOST_WALKS), rng)
    best = walks.n_uncovered
    last_gain = np.full(len(best), -PATIENCE)
    while True:
        for n in np.flatnonzero(walks.n_moves - last_gain >= PATIENCE):
            walks.begin(int(n), completed(W, size, next(starts), rng))
            best[n], last_gain[n] = W, walks.n_moves
            yield walks
        walks.move()
        left = walks.n_uncovered
        last_gain[left < best] = walks.n_moves
        np.minimum(best, left, out=best)
        yield walks
