"""Weights of rows whose log-sum-exp is known, block by block: what gradients and maps are made of. Any library."""

from collections.abc import Callable, Sequence

import numpy as np

from cqs.backend import Workspace, is_numpy
from cqs.kernels.reference import weighted_sum
from cqs.kernels.region import Hidden, Region
from cqs.masks.mask import Booleans
from cqs.types import Array, DType, Namespace

__all__ = ["Blocks", "set_hidden", "unseeing"]


def unseeing(xp: Namespace, lse: Array) -> Array:
    """Return log-sum-exps, and in place of -inf, of a row that sees nothing, inf: so that it has no weights."""
    return xp.where(lse == -xp.inf, xp.full_like(lse, xp.inf), lse)


def set_hidden(xp: Namespace, block: Array, hidden: Sequence[Hidden], value: float) -> None:
    """Set what is hidden of a block to a number, in place."""
    for window, pairs in hidden:
        part = block[window]
        block[window] = value if pairs is True else xp.where(xp.asarray(pairs, device=part.device), value, part)


class Blocks:
    """Blocks of scores, which NumPy can write where others have been."""

    def __init__(self, xp: Namespace, space: Workspace) -> None:
        self._xp, self._space, self._is_numpy = xp, space, is_numpy(xp)

    def product(self, name: str, a: Array, b: Array) -> Array:
        """Return `a @ b`; with NumPy in the buffer of that name."""
        if not self._is_numpy:
            return a @ b
        return np.matmul(a, b, out=self._space.buffer(name, (a.shape[0], b.shape[1]), a.dtype))

    def weighted(self, name: str, weights: Array, values: Array, visible: Callable[[], Booleans]) -> Array:
        """Return `weighted_sum`; with NumPy in the buffer of that name, if all values are finite."""
        if self._is_numpy and np.isfinite(values).all():
            return self.product(name, weights, values)
        return weighted_sum(self._xp, weights, values, visible)

    def joined(self, name: str, arrays: Sequence[Array], places: Sequence[tuple[int, range]], dtype: DType) -> Array:
        """Put rows of arrays below each other, as a type: a view where they are so, or with NumPy in a buffer."""
        parts = [arrays[n][part.start : part.stop, :] for n, part in places]
        if len(parts) == 1:
            return self._xp.astype(parts[0], dtype, copy=False)
        if not self._is_numpy:
            return self._xp.concat([self._xp.astype(part, dtype, copy=False) for part in parts], axis=0)
        shape = sum(len(part) for part in parts), parts[0].shape[1]
        return np.concatenate(parts, axis=0, out=self._space.buffer(name, shape, np.dtype(dtype)))

    def weights(
        self, scores: Array, lse: Array, region: Region, rows: range, pieces: Sequence[range]
    ) -> tuple[Array, list[Hidden]]:
        """Turn scaled scores of a block into weights, given log-sum-exps of its rows, `(rows, 1)`, as of `unseeing`.

        With NumPy in place. Return what is hidden of them, too.
        """
        xp = self._xp
        region.change(xp, scores, rows, pieces)
        hidden = list(region.hidden(rows, pieces))
        set_hidden(xp, scores, hidden, -xp.inf)
        scores -= lse
        found = np.exp(scores, out=scores) if self._is_numpy else xp.exp(scores)
        set_hidden(xp, found, hidden, 0.0)  # which is not 0 there if a log-sum-exp is not finite
        return found, hidden
