"""Strips that are small are computed together: a few large matrix products in place of many small ones."""

from collections.abc import Iterable, Iterator

from cqs.schedule.task import Bundle, Group, Strip

__all__ = ["MOST_BUNDLED_ROWS", "SMALL_ROWS", "bundled"]

SMALL_ROWS = 128  # rows; a strip with more fills a matrix product by itself
# Together strips may have so many rows and columns; and of the rectangle that they span they must own this share.
MOST_BUNDLED_ROWS, _MOST_COLUMNS, _LEAST_SHARE = 512, 1024, 0.75


def bundled(strips: Iterable[Strip]) -> Iterator[Bundle]:
    """Cut a task's strips into runs that are worth computing in one piece; usually each by itself.

    The rectangle that a bundle spans may have tiles that the task does not own. They are at most a quarter of it; their
    scores are computed and thrown away, which for groups of a few dozen tokens costs less than a product a strip.
    """
    together: list[Strip] = []
    keys: dict[int, Group] = {}  # of all strips together, and how many rows and columns these span and own
    n_rows = n_columns = n_owned = 0
    for strip in strips:
        height, own = len(strip.query), {key.start: key for key in strip.keys}
        width = sum(map(len, strip.keys))
        columns = n_columns + sum(len(key) for start, key in own.items() if start not in keys)
        rows, owned = n_rows + height, n_owned + height * width
        is_small = bool(together) and max(len(together[0].query), height) <= SMALL_ROWS
        fits = is_small and rows <= MOST_BUNDLED_ROWS and columns <= _MOST_COLUMNS
        if fits and owned >= _LEAST_SHARE * rows * columns:
            together.append(strip)
            keys |= own
            n_rows, n_columns, n_owned = rows, columns, owned
            continue
        if together:
            yield _bundle(together, keys)
        together, keys = [strip], own
        n_rows, n_columns, n_owned = height, width, height * width
    if together:
        yield _bundle(together, keys)


def _bundle(strips: list[Strip], keys: dict[int, Group]) -> Bundle:
    columns = tuple(keys[start] for start in sorted(keys))
    foreign = frozenset(
        (i, j)
        for i, own in enumerate({key.start for key in strip.keys} for strip in strips)
        for j, key in enumerate(columns)
        if key.start not in own
    )
    return Bundle(tuple(strips), columns, foreign)
