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
    keys: dict[int, Group] = {}
    for strip in strips:
        more = keys | {key.start: key for key in strip.keys}
        if together and not _is_worth(together, strip, sum(map(len, more.values()))):
            yield _bundle(together, keys)
            together, more = [], {key.start: key for key in strip.keys}
        together.append(strip)
        keys = more
    if together:
        yield _bundle(together, keys)


def _is_worth(together: list[Strip], strip: Strip, n_columns: int) -> bool:
    if max(len(together[0].query), len(strip.query)) > SMALL_ROWS or n_columns > _MOST_COLUMNS:
        return False
    strips = [*together, strip]
    n_rows = sum(len(s.query) for s in strips)
    n_owned = sum(len(s.query) * sum(map(len, s.keys)) for s in strips)
    return n_rows <= MOST_BUNDLED_ROWS and n_owned >= _LEAST_SHARE * n_rows * n_columns


def _bundle(strips: list[Strip], keys: dict[int, Group]) -> Bundle:
    columns = tuple(keys[start] for start in sorted(keys))
    foreign = frozenset(
        (i, j)
        for i, own in enumerate({key.start for key in strip.keys} for strip in strips)
        for j, key in enumerate(columns)
        if key.start not in own
    )
    return Bundle(tuple(strips), columns, foreign)
