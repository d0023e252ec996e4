"""Strips that are small are computed together: a few large matrix products in place of many small ones."""

from collections.abc import Iterator, Sequence

from cqs.schedule.task import Strip, key_groups

__all__ = ["bundles"]

# Together strips may have this many rows and columns; and of the rectangle that they span they must own this share.
_MOST_ROWS, _MOST_COLUMNS, _LEAST_SHARE = 512, 1024, 0.75
_SMALL = 128  # rows; a strip with more fills a matrix product by itself


def bundles(strips: Sequence[Strip]) -> Iterator[tuple[Strip, ...]]:
    """Cut a task's strips into runs that are worth computing in one piece; usually each by itself.

    The rectangle that a bundle spans has tiles that the task does not own. They are at most a quarter of it; their scores
    are computed and thrown away, which for groups of a few dozen tokens costs less than one matrix product a strip.
    """
    bundle: tuple[Strip, ...] = ()
    for strip in strips:
        if bundle and not _fits((*bundle, strip)):
            yield bundle
            bundle = ()
        bundle = (*bundle, strip)
    if bundle:
        yield bundle


def _fits(strips: tuple[Strip, ...]) -> bool:
    if any(len(strip.query) > _SMALL for strip in strips):
        return False
    rows = sum(len(strip.query) for strip in strips)
    columns = sum(len(key) for key in key_groups(strips))
    owned = sum(len(strip.query) * len(key) for strip in strips for key in strip.keys)
    return rows <= _MOST_ROWS and columns <= _MOST_COLUMNS and owned >= _LEAST_SHARE * rows * columns
