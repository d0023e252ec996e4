"""The values a plan is made of: groups of tokens, tiles, strips, bundles and tasks. Integers, never arrays."""

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Bundle", "Group", "Strip", "Task", "Tile", "group"]


@dataclass(frozen=True, slots=True)
class Group:
    """A run of consecutive tokens, `start` to `stop - 1`."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> range:
        """The token numbers of the group."""
        return range(self.start, self.stop)


def group(index: int, n_groups: int, n_tokens: int) -> Group:
    """Return one of the `n_groups` groups that cut `n_tokens` tokens as evenly as can be.

    >>> group(0, 7, 10), group(6, 7, 10)
    (Group(index=0, start=0, stop=1), Group(index=6, start=8, stop=10))
    """
    return Group(index, index * n_tokens // n_groups, (index + 1) * n_tokens // n_groups)


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of the score matrix: the queries of one group against the keys of another."""

    query: Group
    key: Group

    def __str__(self) -> str:
        q, k = self.query, self.key
        return f"tile ({q.index}, {k.index}): queries {q.start}..{q.stop - 1}, keys {k.start}..{k.stop - 1}"


@dataclass(frozen=True, slots=True)
class Strip:
    """The tiles that one task owns for one query group: that group against several key groups.

    One `Partial` answers for each strip.
    """

    query: Group
    keys: tuple[Group, ...]

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles, in increasing order of their keys."""
        return (Tile(self.query, key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class Bundle:
    """Strips that one kernel call computes: usually one, but small strips share a call.

    Parameters
    ----------
    strips : tuple of Strip
        Their query groups are the rows of the call.
    keys : tuple of Group
        Every key group of any of them, once, in token order: the columns.
    foreign : frozenset of (int, int)
        Positions (in `strips`, in `keys`) of tiles that are not the task's own, and do not count.
    """

    strips: tuple[Strip, ...]
    keys: tuple[Group, ...]
    foreign: frozenset[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Task:
    """All the tiles that one worker owns. It needs nothing but its own groups, and may be run again at will.

    The paper this comes from calls a task a responsibility, and the groups it holds a material list.
    """

    index: int
    bundles: tuple[Bundle, ...]

    @property
    def strips(self) -> tuple[Strip, ...]:
        """The strips, in increasing order of their queries."""
        return tuple(strip for bundle in self.bundles for strip in bundle.strips)

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles, strip by strip."""
        return (tile for strip in self.strips for tile in strip.tiles)

    @property
    def query_groups(self) -> tuple[Group, ...]:
        """The distinct groups whose queries the task reads."""
        return tuple(strip.query for strip in self.strips)

    @property
    def key_groups(self) -> tuple[Group, ...]:
        """The distinct groups whose keys and values the task reads, in token order."""
        return tuple(sorted({key for bundle in self.bundles for key in bundle.keys}, key=lambda key: key.start))
