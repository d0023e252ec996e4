"""Tabu search for a difference cover of a given size: one element is swapped at a time, for whatever is best."""

from collections.abc import Callable, Iterator
from itertools import count
from time import perf_counter
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from cqs.checks import whole_number
from cqs.errors import QuorumError
from cqs.quorum.bounds import size_lower_bound
from cqs.quorum.cover import DifferenceCover

__all__ = ["search"]

LARGEST_MODULUS = 4096  # tables of 2 W^2 bytes, and some 10 ms for a move
RETURN_TENURE = 3  # moves for which an element that left may not return: this many to twice as many
STAY_TENURE = 2  # moves for which an element that came may not leave, likewise
PATIENCE = 2000  # moves without a new best after which a walk starts anew elsewhere
REPORT_SECONDS = 0.5

FORBIDDEN = 4 * LARGEST_MODULUS  # more than a count of distances to which W is added

Counts: TypeAlias = NDArray[np.int16]
Residues: TypeAlias = NDArray[np.int64]


def search(
    W: int,
    size: int,
    seconds: float = 30.0,
    seed: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> DifferenceCover | None:
    """Search for a difference cover of Z_W with a given number of elements, by tabu search.

    Parameters
    ----------
    W : int
        The modulus, 1 to 4096.
    size : int
        The number m of elements, from `size_lower_bound(W)` to W.
    seconds : float
        When to give up, by the clock; more than 0, and infinity is allowed.
    seed : int
        At least 0. The sequence of moves depends on W, size and seed only, and on NumPy's generator, which a new
        version may change; `seconds` cuts it off.
    progress : function, optional
        Called with (uncovered, seconds gone), where `uncovered` is the least number of residues left uncovered so far,
        d and -d counted once: whenever that falls, and about twice a second.

    Returns
    -------
    DifferenceCover or None
        The first cover that the walk comes to, moved so that it contains 0; None if time was up before, which says
        nothing about whether there is one.

    Raises
    ------
    QuorumError
        If an argument is out of its range, before anything is allocated.

    Notes
    -----
    From m random residues on, each move swaps an element for a residue outside, such that the fewest residues stay
    uncovered, over all m(W - m) swaps, ties broken at random. For a few moves an element that left may not return and
    one that came may not leave, unless that beats the best so far; this is what carries the walk out of a local
    minimum. It starts anew after 2000 moves without a new best. See Glover, "Tabu search", ORSA J. Computing 1 (1989)
    and 2 (1990).

    Near a cover a move takes O(W^2) additions, under 0.1 ms at W = 160; the tables are 2 W^2 bytes. An exception, such
    as that of Ctrl-C or one that `progress` raises, passes through and leaves nothing behind: neither files nor threads
    nor anything global is used.

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

    start, reported, best = perf_counter(), 0.0, W
    for state in _walks(W, size, np.random.default_rng((W, size, seed))):
        gone = perf_counter() - start
        if progress is not None and (state.n_uncovered < best or gone - reported >= REPORT_SECONDS):
            best, reported = min(best, state.n_uncovered), gone
            progress(best, gone)
        if state.n_uncovered == 0:
            return DifferenceCover.of(W, (state.elements - state.elements.min()).tolist())
        if gone >= seconds:
            return None
    raise AssertionError("the walks do not end")


def _checked(W: int, size: int) -> tuple[int, int]:
    """Return modulus and size as ints, if a cover of that size may exist and the tables for it are of sane length."""
    W = whole_number("W", W, 1, "W is the number of workers", QuorumError)
    if W > LARGEST_MODULUS:
        rule = f"be at most {LARGEST_MODULUS}, for a search has tables of W^2 numbers"
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


class _Differences:
    """A set of residues that changes by one at a time, the distances in it, and what each swap would do to them.

    The distance of two residues is the lesser of d and W - d, d their difference: a set is a cover if it has a pair at
    each distance d = 1..W//2.

    Attributes
    ----------
    elements : (m,)
        The set, in no order.
    distances : (W + 1, W)
        Of x and r. A view of 2W numbers, of which each row has W.
    n_near, is_near : (W//2 + 1, W)
        How many elements are at distance d of r, and whether any is, as 0 or 1.
    n_pairs : (W//2 + 1,)
        How many pairs of elements are at distance d; -1 for d = 0, of which no element is the cause.
    """

    def __init__(self, W: int, elements: Residues) -> None:
        self.residues = np.arange(W)
        ring = np.tile(np.minimum(self.residues, W - self.residues), 2)
        self.distances = np.lib.stride_tricks.sliding_window_view(ring, W)[::-1]
        self.n_near = np.zeros((W // 2 + 1, W), dtype=np.int16)
        self.is_near = np.zeros((W // 2 + 1, W), dtype=np.int16)
        self.n_pairs = np.zeros(W // 2 + 1, dtype=np.int16)
        self.n_pairs[0] = -1
        self.elements = elements
        for x in elements:
            self._enter(x)

    def _enter(self, x: int) -> None:
        self.n_pairs += self.n_near[:, x]
        at = self.distances[x], self.residues
        self.n_near[at] += 1
        self.is_near[at] = 1

    def _leave(self, x: int) -> None:
        at = self.distances[x], self.residues
        self.n_near[at] -= 1
        self.is_near[at] = self.n_near[at] > 0
        self.n_pairs -= self.n_near[:, x]

    def swap(self, i: int, r: int) -> None:
        """Put r in the place of element i."""
        self._leave(self.elements[i])
        self._enter(r)
        self.elements[i] = r

    @property
    def n_uncovered(self) -> int:
        """How many distances no pair has."""
        return int(np.count_nonzero(self.n_pairs == 0))

    def uncovered_after(self) -> Counts:
        """Count the distances that no pair has once r is in the place of element i; `FORBIDDEN` if r is inside. (m, W).

        Without element i a distance is bare if each pair that has it has element i. Then r covers it if an element is
        at this distance of r, unless that is element i and no other.
        """
        is_bare = self.n_pairs == self.n_near[:, self.elements].T  # (m, W//2 + 1)
        regained = np.empty((len(is_bare), len(self.residues)), dtype=np.int16)
        # Few distances are bare, and BLAS would start threads: sums of rows are faster than a product of matrices
        for row, bare in zip(regained, is_bare, strict=True):
            np.add.reduce(self.is_near.take(bare.nonzero()[0], axis=0), axis=0, out=row)
        own = self.distances[self.elements]  # (m, W)
        regained -= np.take_along_axis(is_bare, own, axis=1) & (self.n_near[own, self.residues] == 1)
        left: Counts = is_bare.sum(axis=1, keepdims=True, dtype=np.int16) - regained
        left[:, self.elements] = FORBIDDEN
        return left


def _walks(W: int, size: int, rng: "np.random.Generator") -> Iterator[_Differences]:
    """Walk from one random set after the other; yields the state at the start of each walk and after each move."""
    while True:
        yield from _walk(_Differences(W, rng.permutation(W)[:size]), rng)


def _walk(state: _Differences, rng: "np.random.Generator") -> Iterator[_Differences]:
    """Make the best move that is not tabu, until there was no new best for long."""
    W, m = len(state.residues), len(state.elements)
    may_return, may_leave = np.zeros(W, dtype=np.int64), np.zeros((m, 1), dtype=np.int64)  # the moves from which on
    best, last_gain = state.n_uncovered, 0
    yield state
    for move in count(1):
        left = state.uncovered_after()
        is_tabu = (may_return > move) | (may_leave > move)
        # Worse than any other move, and still better than none
        left[is_tabu & (left >= best)] += W
        ties = np.flatnonzero(left == left.min())
        i, r = divmod(int(ties[rng.integers(ties.size)]), W)
        may_return[state.elements[i]] = move + 1 + RETURN_TENURE + rng.integers(RETURN_TENURE + 1)
        may_leave[i] = move + 1 + STAY_TENURE + rng.integers(STAY_TENURE + 1)
        state.swap(i, r)
        if state.n_uncovered < best:
            best, last_gain = state.n_uncovered, move
        yield state
        if move - last_gain >= PATIENCE:
            return
