"""The values a plan is made of: groups of tokens, tiles, strips, bundles and tasks. Integers, never arrays."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cqs.units import plural, shortened

__all__ = [
    "Bundle",
    "Group",
    "HeadBlock",
    "Read",
    "Strip",
    "Task",
    "Tile",
    "even_cuts",
    "group",
    "largest_cut",
    "parts_of",
    "reads",
]


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


def even_cuts(n: int, most: int) -> list[range]:
    """Cut 0..n-1 into the fewest ranges of at most `most`, of sizes that differ by at most 1.

    >>> even_cuts(10, 4)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    parts = -(-n // most)
    return [range(i * n // parts, (i + 1) * n // parts) for i in range(parts)]


def largest_cut(n: int, most: int) -> int:
    """Return the size of the last of `even_cuts`, which none exceeds. O(1).

    >>> largest_cut(10, 4), largest_cut(0, 4)
    (4, 0)
    """
    parts = -(-n // most)
    return -(-n // parts) if parts else 0


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
    """Strips that one kernel call computes; which share a call is decided by `cqs.schedule.bundling`.

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
class HeadBlock:
    """Some heads of one batch entry: key heads, and the query heads that share them.

    Parameters
    ----------
    batch : tuple of int
        The entry, an index into `B`.
    queries, keys : range
        Query heads and key heads.
    """

    batch: tuple[int, ...]
    queries: range
    keys: range

    @property
    def of_queries(self) -> tuple[int | slice, ...]:
        """Index of the query heads in the leading axes, `(*B, H)`, of queries, output and log-sum-exp."""
        return (*self.batch, slice(self.queries.start, self.queries.stop))

    @property
    def of_keys(self) -> tuple[int | slice, ...]:
        """Index of the key heads in the leading axes, `(*B, G)`, of keys and values."""
        return (*self.batch, slice(self.keys.start, self.keys.stop))


@dataclass(frozen=True, slots=True)
class Task:
    """All the tiles that one worker owns. It needs nothing but its own groups, and may be run again at will.

    The paper this comes from calls a task a responsibility, and the groups it holds a material list.
    """

    index: int
    bundles: tuple[Bundle, ...]
    heads: HeadBlock | None = None  # None: all heads of all batch entries

    def __str__(self) -> str:
        heads = "" if self.heads is None else f", heads {self.heads.queries.start}..{self.heads.queries.stop - 1}"
        queries, keys = (
            shortened(", ".join(str(group.index) for group in groups))
            for groups in (self.query_groups, self.key_groups)
        )
        tiles = plural(sum(len(strip.keys) for strip in self.strips), "tile")
        return f"task {self.index}{heads}: {tiles}, of the queries of groups {queries} and the keys of groups {keys}"

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
        found = {(key.start, key.stop): key for bundle in self.bundles for key in bundle.keys}
        return tuple(found[place] for place in sorted(found))


class Read(NamedTuple):
    """One thing that a worker reads: queries, or keys with their values, of a group, for the heads of its task."""

    what: Literal["queries", "keys"]
    group: Group
    heads: HeadBlock | None


def reads(task: Task, most_keys: int | None) -> Iterator[Read]:
    """Yield what a worker reads for a task, in the order in which it wants it.

    Parameters
    ----------
    task : Task
        Of a plan.
    most_keys : int or None
        `Grain.keys`: keys are streamed, so many at a time. None: the task's keys come first, once, and then queries.
    """
    if most_keys is None:
        yield from (Read("keys", key, task.heads) for key in task.key_groups)
    for bundle in task.bundles:
        yield from (Read("queries", strip.query, task.heads) for strip in bundle.strips)
        if most_keys is not None:
            yield from (Read("keys", part, task.heads) for key in bundle.keys for part in parts_of(key, most_keys))


def parts_of(keys: Group, most: int) -> Iterator[Group]:
    """Cut a group into parts of at most `most` tokens."""
    n_parts = -(-len(keys) // most)
    for i in range(n_parts):  # they may be very many: no list of them is made
        start, stop = i * len(keys) // n_parts, (i + 1) * len(keys) // n_parts
        yield Group(keys.index, keys.start + start, keys.start + stop)
