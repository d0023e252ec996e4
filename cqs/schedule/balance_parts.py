"""Parts of tiles, by their keys, where whole tiles do not come out even. Integers only."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cqs.masks import Mask
from cqs.quorum import CyclicQuorumSet
from cqs.schedule.balance import even_load, largest_load
from cqs.schedule.balance_flow import shared
from cqs.schedule.balance_search import Search
from cqs.schedule.task import Group, Tile, even_cuts

__all__ = ["Assignment", "even_parts"]

_Matrix = npt.NDArray[np.integer[Any]]

_MOST_PARTS = 32  # of a tile
_CUTS_AT_ONCE = 64  # at which a mask is counted, to find where a share ends
_MOST_UNITS = 10_000  # parts of tiles, if all are cut; a search among more takes seconds


@dataclass(frozen=True, slots=True)
class Assignment:
    """Who owns what: whole tiles, by a matrix of owners, -1 where nobody has all, and parts of other tiles."""

    groups: Sequence[Group]
    owners: _Matrix
    parts: dict[int, list[Tile]]

    def tiles(self, i: int) -> list[Tile]:
        """Return the tiles and parts of worker i, in increasing order of query, then of key. O(W^2)."""
        whole = np.argwhere(self.owners == i).tolist()
        return _aligned([*(Tile(self.groups[g], self.groups[h]) for g, h in whole), *self.parts.get(i, ())])


def even_parts(
    quorums: CyclicQuorumSet, mask: Mask, groups: Sequence[Group], weights: _Matrix, owners: _Matrix
) -> Assignment:
    """Cut tiles by their keys, and give the parts to holders of the tile, such that loads are within 1.05 of the mean.

    Parameters
    ----------
    quorums : CyclicQuorumSet
        Who holds which of the W groups.
    mask : Mask
        What the work is counted by.
    groups : sequence of Group
        The W groups of tokens.
    weights, owners : (W, W) integer array
        The work of each tile, and the one owner that it has so far; -1 for none.

    Returns
    -------
    Assignment
        Which gives each worker at most 2 m^2 tiles and parts, for quorums of m groups. Of whole tiles, as they are, if
        these are even, or parts no better.

    Notes
    -----
    `cqs.schedule.balance_flow.shared` says how much of a tile each holder is to have, or that no assignment is even,
    of whole tiles or of parts. Shared tiles are cut where shares end, and into 32 parts of equally many keys; moves and
    swaps of parts take care of what does not come out. Where that fails, every tile is cut, if that makes 10,000 parts
    at most. O(W^2) counts, or so many more as there are parts.
    """
    n_workers, even = quorums.modulus, even_load(weights)
    least, best = largest_load(owners, weights), Assignment(groups, owners, {})
    mean = -(-int(weights.sum()) // n_workers)
    for limit, cuts_all in (((mean + even) // 2, False), (even, False), (even, True)):
        n_units = np.count_nonzero(weights) * min(len(groups[0]), _MOST_PARTS) if cuts_all else 0
        if least <= even or n_units > _MOST_UNITS:
            break
        shares = shared(quorums, weights, owners, limit)
        if shares is None:
            continue
        given = owners.copy()
        for tile, share in shares.items():
            given[tile] = next(iter(share))
        cut = {tile: share for tile, share in shares.items() if len(share) > 1}
        if cuts_all:
            whole = {(g, h): {int(given[g, h]): int(weights[g, h])} for g, h in np.argwhere(weights).tolist()}
            cut = whole | cut
        for tile in cut:
            given[tile] = -1
        units = [
            _Unit(groups[g], groups[h], part, quorums.holders(g, h), work, i)
            for (g, h), share in cut.items()
            for part, work, i in _dealt(mask, groups[g], groups[h], share)
        ]
        fixed = [int(weights[given == i].sum()) for i in range(n_workers)]
        search = Search([u.weight for u in units], [u.holders for u in units], fixed, [u.owner for u in units])
        assignment = Assignment(groups, *_joined(units, search.down_to(even), given))
        most = max(len(assignment.tiles(i)) for i in range(n_workers))
        if max(search.loads) < least and most <= 2 * len(quorums.base) ** 2:
            least, best = max(search.loads), assignment
    return best


class _Unit(NamedTuple):
    query: Group
    key: Group
    part: range  # the tokens of the key group
    holders: tuple[int, ...]
    weight: int
    owner: int


def _dealt(mask: Mask, query: Group, key: Group, share: dict[int, int]) -> Iterator[tuple[range, int, int]]:
    """Yield the parts of a tile: keys, visible pairs, and an owner, whose parts add up to about its share."""
    tokens, owners = key.tokens, list(share)
    borders = [_border(mask, query, tokens, work) for work in accumulate(share.values())][:-1]
    edges = {cut.start for cut in even_cuts(len(tokens), -(-len(tokens) // _MOST_PARTS))}
    cuts = sorted({*edges, *borders, len(tokens)})
    counts = mask.counts_before(query.tokens, tokens, tokens.start + np.array(cuts))
    for (start, stop), work in zip(pairwise(cuts), np.diff(counts).tolist(), strict=True):
        if work:
            yield tokens[start:stop], work, owners[bisect_right(borders, start)]


def _border(mask: Mask, query: Group, keys: range, work: int) -> int:
    """Return the number of keys, from the first, that have so much work, or one key more."""
    least, most = 0, len(keys)
    while least < most:
        cuts = np.unique(np.linspace(least, most - 1, _CUTS_AT_ONCE).astype(np.int64))
        n = int(np.searchsorted(mask.counts_before(query.tokens, keys, keys.start + cuts), work))
        least = int(cuts[n - 1]) + 1 if n > 0 else least
        most = int(cuts[n]) if n < len(cuts) else most
    return most


def _joined(units: Sequence[_Unit], owners: Sequence[int], given: _Matrix) -> tuple[_Matrix, dict[int, list[Tile]]]:
    """Return the owners of whole tiles, and the parts of others that each worker owns; neighbours are one."""
    parts: dict[int, list[Tile]] = {}
    by_tile = groupby(zip(units, owners, strict=True), key=lambda owned: (owned[0].query, owned[0].key))
    for (query, key), of_tile in by_tile:
        runs = [(i, [unit.part for unit, _ in run]) for i, run in groupby(of_tile, key=lambda owned: owned[1])]
        if len(runs) == 1:
            given[query.index, key.index] = runs[0][0]
            continue
        for i, run in runs:
            parts.setdefault(i, []).append(Tile(query, Group(key.index, run[0].start, run[-1].stop)))
    return given, parts


def _aligned(tiles: Sequence[Tile]) -> list[Tile]:
    """Cut the tiles of a worker where others of the same keys are cut, so that no key is in two of its groups."""
    cuts: dict[int, set[int]] = {}
    for tile in tiles:
        cuts.setdefault(tile.key.index, set()).update((tile.key.start, tile.key.stop))
    return sorted(
        (
            Tile(tile.query, Group(tile.key.index, start, stop))
            for tile in tiles
            for start, stop in pairwise(sorted(n for n in cuts[tile.key.index] if tile.key.start <= n <= tile.key.stop))
        ),
        key=lambda tile: (tile.query.start, tile.key.start),
    )
