"""Walks from one set of m residues to the next, side by side: the weighted moves of `search`, which know no clock."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Integers", "Walks"]

TENURE = 1  # moves for which an element that came must stay, and one that left may not return

NEVER = np.iinfo(np.int64).max

Integers: TypeAlias = NDArray[np.int64]
Weights: TypeAlias = NDArray[np.float64]


class Walks:
    """Some sets of m residues modulo W, each of which swaps one element at each move.

    The distance of two residues is the lesser of d and W - d, d their difference: a set is a cover if it has a pair at
    each distance d = 1..W//2. Sets are side by side, N of them, so that a call of NumPy works for all of them.

    Attributes
    ----------
    elements : (N, m)
        The sets, each in no order.
    n_pairs : (N, W//2 + 1)
        How many pairs of elements are at distance d; never 0 at d = 0, so that it counts as covered.
    weights : (N, W//2 + 1)
        One more than the number of moves after which the walk had no pair at distance d; 0 at d = 0.
    cells : (N, m, m)
        Of each two elements, where in `n_pairs` and `weights`, seen as one row, their distance is.
    stays_until : (N, m)
        The move until which an element may not leave.
    out_until : (N, W)
        The move until which a residue may not come: `NEVER` for those inside.
    changed : (N, W)
        The move at which a residue last came or left; in random order before the first.
    """

    def __init__(self, W: int, size: int, n_walks: int, rng: "np.random.Generator") -> None:
        self.rng, self.n_moves = rng, 0
        self.rows = np.arange(n_walks)
        self.first_cells = self.rows * (W // 2 + 1)
        ring = np.minimum(np.arange(W), W - np.arange(W))
        self.ring = np.concatenate([ring, ring])  # the distance of a and b is at a - b, and so at a - b + W
        self.elements = np.zeros((n_walks, size), dtype=np.int64)
        self.cells = np.zeros((n_walks, size, size), dtype=np.int64)
        self.n_pairs = np.zeros((n_walks, W // 2 + 1), dtype=np.int64)
        self.weights = np.ones((n_walks, W // 2 + 1))
        self.stays_until = np.zeros((n_walks, size), dtype=np.int64)
        self.out_until = np.zeros((n_walks, W), dtype=np.int64)
        self.changed = np.zeros((n_walks, W), dtype=np.int64)

    @property
    def n_uncovered(self) -> Integers:
        """How many distances no pair of each set has. (N,)."""
        n_uncovered: Integers = np.count_nonzero(self.n_pairs == 0, axis=1)
        return n_uncovered

    def begin(self, n: int, elements: Integers) -> None:
        """Let walk n go on from other elements, (m,), without memory of where it was."""
        distances = self.ring[elements[:, None] - elements]
        self.elements[n], self.cells[n] = elements, distances + self.first_cells[n]
        self.n_pairs[n] = np.bincount(distances[np.triu_indices(len(elements), 1)], minlength=self.n_pairs.shape[1])
        self.n_pairs[n, 0] = len(elements)
        self.weights[n] = 1
        self.weights[n, 0] = 0
        self.stays_until[n] = self.out_until[n] = 0
        self.out_until[n, elements] = NEVER
        self.changed[n] = -self.rng.permutation(self.changed.shape[1])

    def move(self) -> None:
        """Swap an element of each set: out goes what bares the least weight, in comes what covers the most.

        Ties go to what has been where it is for longest. Then all distances that are left uncovered weigh 1 more.
        """
        self.n_moves += 1
        leaving = (self.losses() + self._freshness(self.elements)).argmin(axis=1)  # (N,)
        self._leave(leaving)
        entering = (self.gains(leaving) - self._freshness()).argmax(axis=1)  # (N,)
        self._enter(leaving, entering)
        self.weights += self.n_pairs == 0

    def losses(self) -> Weights:
        """Sum the weights of the distances of which each element has the only pair; infinite if it must stay. (N, m).

        Where two pairs are at the same distance, and x is in both, this distance is left out of account.
        """
        is_bared = self.n_pairs.ravel().take(self.cells) == 1
        losses: Weights = np.einsum("nij,nij->ni", is_bared, self.weights.ravel().take(self.cells))
        losses[self.stays_until >= self.n_moves] = np.inf
        return losses

    def gains(self, left_out: Integers) -> Weights:
        """Sum the weights of the pairs at uncovered distances that each residue makes; -infinity if barred. (N, W).

        Of each set element number `left_out`, (N,), does not count. Two pairs at the same distance count twice.
        """
        N, W = self.out_until.shape
        m = self.elements.shape[1]
        n, d = np.nonzero(self.n_pairs == 0)  # U uncovered distances, of all walks
        weights = np.repeat(self.weights[n, d], m).reshape(-1, m)  # (U, m)
        weights[np.arange(len(n)), left_out[n]] = 0
        above = self.elements[n] + d[:, None]
        above -= W * (above >= W)
        below = self.elements[n] - d[:, None]
        below += W * (below < 0)
        at = np.concatenate([above, below]) + np.concatenate([n, n])[:, None] * W  # (2U, m)
        both = np.concatenate([weights, weights])
        gains: Weights = np.bincount(at.ravel(), both.ravel(), N * W).reshape(N, W).astype(np.float64, copy=False)
        gains[self.out_until >= self.n_moves] = -np.inf
        return gains

    def _freshness(self, residues: Integers | None = None) -> Weights:
        """Order residues by when they changed, the latest highest: numbers that differ by less than a weight."""
        changed = self.changed if residues is None else np.take_along_axis(self.changed, residues, axis=1)
        return changed / (self.n_moves + self.changed.shape[1])

    def _leave(self, i: Integers) -> None:
        x = self.elements[self.rows, i]
        np.subtract.at(self.n_pairs.ravel(), self.cells[self.rows, i].ravel(), 1)
        self.out_until[self.rows, x] = self.n_moves + TENURE
        self.changed[self.rows, x] = self.n_moves

    def _enter(self, i: Integers, x: Integers) -> None:
        self.elements[self.rows, i] = x
        cells = self.ring[x[:, None] - self.elements] + self.first_cells[:, None]  # (N, m)
        self.cells[self.rows, i] = self.cells[self.rows, :, i] = cells
        np.add.at(self.n_pairs.ravel(), cells.ravel(), 1)
        self.stays_until[self.rows, i] = self.n_moves + TENURE
        self.out_until[self.rows, x] = NEVER
        self.changed[self.rows, x] = self.n_moves
