"""Arrays as kernels see them: a first element, a few counts, and as many steps."""

import itertools
from collections.abc import Iterator

import numpy as np

from cqs.types import Array

__all__ = ["stacks", "step_of", "steps_of"]


def stacks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Cut arrays `(*L, rows, width)`, with the same axes L, into views `(n, rows, width)` that together are all.

    There are few of them, with large n: cuBLAS and our kernels go along one axis in equal steps.
    """
    views = _merged(arrays)
    lead = views[0].shape[:-2]
    longest = lead.index(max(lead))
    for index in np.ndindex(*lead[:longest], *lead[longest + 1 :]):
        place = (*index[:longest], slice(None), *index[longest:])
        yield tuple(view[place] for view in views)


def step_of(array: Array, axis: int) -> int:
    """Return how many elements apart the entries along an axis are."""
    return int(array.strides[axis] // array.itemsize)


def steps_of(array: Array, n_axes: int) -> tuple[int, ...]:
    """Return how many elements apart the entries along each of the first axes are."""
    return tuple(step_of(array, axis) for axis in range(n_axes))


def _merged(arrays: tuple[Array, ...]) -> list[Array]:
    """View arrays `(*L, rows, width)` with as few axes L as all of them allow, but one."""
    lead = arrays[0].shape[:-2]
    kept = [axis for axis, n in enumerate(lead) if n > 1]
    place = tuple(slice(None) if n > 1 else 0 for n in lead)
    views = [array[place] for array in arrays]
    sizes = [lead[axis] for axis in kept[:1]] or [1]
    for before, axis in itertools.pairwise(kept):
        follows = all(array.strides[before] == array.strides[axis] * array.shape[axis] for array in arrays)
        sizes[-1:] = [sizes[-1] * lead[axis]] if follows else [sizes[-1], lead[axis]]
    return [view.reshape(*sizes, *view.shape[-2:]) for view in views]
