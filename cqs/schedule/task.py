"""The values a plan is made of: groups of tokens, tiles, strips and tasks. They hold integers, never arrays."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Group", "Strip", "Task", "Tile", "group", "key_groups"]


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

    A strip is what one kernel call computes and what one `Partial` answers for.
    """

    query: Group
    keys: tuple[Group, ...]

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles, in increasing order of their keys."""
        return (Tile(self.query, key) for key in self.keys)


@dataclass(frozen=True, slots=True)
class Task:
    """All the tiles that one worker owns. It needs nothing but its own groups, and may be run again at will.

    The paper this comes from calls a task a responsibility, and the groups it holds a material list.
    """

    index: int
    strips: tuple[Strip, ...]

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
        return key_groups(self.strips)


def key_groups(strips: Iterable[Strip]) -> tuple[Group, ...]:
    """Return the key groups of some strips, each once, in token order."""
    return tuple(sorted({key for strip in strips for key in strip.keys}, key=lambda key: key.start))
