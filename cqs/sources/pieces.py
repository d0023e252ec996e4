"""A slice of a chunked array, cut along the borders of chunks: what is read or written at a time."""

from collections.abc import Iterator, Sequence
from itertools import product

__all__ = ["bounds_of", "grown", "pieces"]

Slices = tuple[slice, ...]


def bounds_of(shape: tuple[int, ...], lead: tuple[int | slice, ...] | None, start: int, stop: int) -> tuple[range, ...]:
    """Return what tokens `start` to `stop - 1` of some heads, or of all, are along each axis.

    >>> bounds_of((2, 8, 100, 4), (1, slice(0, 3)), 10, 20)
    (range(1, 2), range(0, 3), range(10, 20), range(0, 4))
    """
    index = (slice(None),) * (len(shape) - 2) if lead is None else lead
    heads = (range(n)[i] if isinstance(i, slice) else range(i, i + 1) for i, n in zip(index, shape[:-2], strict=True))
    return (*heads, range(start, stop), range(shape[-1]))


def grown(chunk: Sequence[int], shape: Sequence[int], most: int) -> tuple[int, ...]:
    """Return a box of whole chunks with at most `most` elements, or of one chunk; it grows from the last axis.

    >>> grown((1, 100, 64), (8, 10_000, 64), 1 << 15)
    (1, 500, 64)
    """
    box, size = list(chunk), 1
    for n in chunk:
        size *= n
    for axis in reversed(range(len(box))):
        times = min(most // max(size, 1), -(-shape[axis] // max(box[axis], 1)))
        if times > 1:
            box[axis] *= times
            size *= times
    return tuple(box)


def pieces(bounds: tuple[range, ...], box: Sequence[int]) -> Iterator[tuple[Slices, Slices]]:
    """Cut a slice at multiples of a box; yield where each piece is in the array, and where in the slice."""
    for cuts in product(*(_cuts(axis, size) for axis, size in zip(bounds, box, strict=True))):
        yield (
            tuple(slice(cut.start, cut.stop) for cut in cuts),
            tuple(slice(c.start - b.start, c.stop - b.start) for c, b in zip(cuts, bounds, strict=True)),
        )


def _cuts(axis: range, size: int) -> list[range]:
    first = axis.start - axis.start % size
    return [range(max(at, axis.start), min(at + size, axis.stop)) for at in range(first, axis.stop, size)]
