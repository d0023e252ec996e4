"""Into what a call of the compiled kernel is cut: blocks of rows, heads that are computed together, and their tables.

All follows from shapes and from what the mask hides. So bits are the same on any number of threads, and for whole calls
that hide nothing, such as those of a model's layers, one cut is made for all of one shape.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from cqs.kernels.blocks import columns_seen, row_blocks
from cqs.kernels.numba_rounds import Alone, Round, rounds_of
from cqs.kernels.numba_tables import BlockTables, Tables, heads_together
from cqs.kernels.region import Region
from cqs.masks.mask import Integers
from cqs.once import once
from cqs.schedule import MOST_ITEMS, CallShape, NumbaBlock

__all__ = ["Cut", "cut_of"]

_WEIGHING = 50  # multiplications that take as long as what is done to a score
_MOST_KEYS = 1 << 22  # of a piece, which are counted in float32
_TABLES_A_THREAD = 8  # of what a mask hides, or fewer
_SMALL_ROWS = 16  # of strips that may share a block with others: no more than fill a vector
_SMALL_SPLIT_ROWS = 160  # likewise, if AMX multiplies, for which each block splits its keys anew
_MOST_REMEMBERED = 128  # blocks in a table that is remembered: 10 KiB


@dataclass(frozen=True, eq=False)
class Cut:
    """How one call is cut.

    Parameters
    ----------
    shape : CallShape
        Its sizes.
    region : Region
        Its rows and columns.
    sizes : tuple of int
        Keys of each chunk.
    block : NumbaBlock
        How large blocks are.
    is_split : bool
        Whether AMX multiplies.
    most_work : int
        Multiplications that a thread does without looking whether it is to stop.
    """

    shape: CallShape
    region: Region
    sizes: tuple[int, ...]
    block: NumbaBlock
    is_split: bool
    most_work: int

    @once
    def blocks(self) -> list[range]:
        """The blocks that the rows are cut into."""
        small = _SMALL_SPLIT_ROWS if self.is_split else _SMALL_ROWS
        return row_blocks(self.region, self.block.rows, self.block.rows, small)

    @once
    def heads(self) -> Integers:
        """The heads that are computed together, their queries side by side, `(n, 4)`, as of `heads_together`."""
        return heads_together(self.shape, self.block.lanes // max(map(len, self.blocks))).reshape(-1, 4)

    @once
    def most_scores(self) -> int:
        """How many scores a thread computes without looking whether it is to stop."""
        return max(self.most_work // (self.shape.width + self.shape.value_width + _WEIGHING), 1)

    @once
    def tables(self) -> BlockTables:
        """Which keys blocks see."""
        most_keys = min(max(self.most_scores // self.block.lanes, 1), _MOST_KEYS)
        return BlockTables(self.region, self.sizes, most_keys, self.block.table_bytes)

    def rounds(self, n_threads: int) -> Iterator[Round | Alone]:
        """Yield all that is to be computed, where a mask hides something what takes longest first.

        In which rounds does not matter to the result.
        """
        made = self._remembered if self.is_whole and len(self.blocks) <= _MOST_REMEMBERED else self._of_each(n_threads)
        for table in made:
            if isinstance(table, range):
                yield from (Alone(self.heads[n : n + 1], table) for n in range(len(self.heads)))
            else:
                yield from rounds_of(self.heads, table)

    @property
    def is_whole(self) -> bool:
        """Whether all queries see all keys."""
        return _is_whole(self.region)

    @once
    def _remembered(self) -> list[Tables | range]:
        return list(self._of_each(1))

    def _of_each(self, n_threads: int) -> Iterator[Tables | range]:
        for blocks in self._together(n_threads):
            yield from self.tables.of(blocks)

    def _together(self, n_threads: int) -> list[list[range]]:
        """Return the blocks of each table: of a mask's, which take a while to make, only so many that others begin."""
        most = max(MOST_ITEMS // max(len(self.heads), len(self.sizes)), 1)
        if n_threads == 1 or not self.region.is_masked:
            return [self.blocks[n : n + most] for n in range(0, len(self.blocks), most)]
        sizes = [len(rows) * sum(map(len, columns_seen(self.region, rows))) for rows in self.blocks]
        share = sum(sizes) // (_TABLES_A_THREAD * n_threads)
        found: list[tuple[int, list[range]]] = []
        for rows, size in zip(self.blocks, sizes, strict=True):
            before, blocks = found[-1] if found else (share + 1, [])
            if before + size <= share and len(blocks) < most:
                found[-1] = before + size, [*blocks, rows]
            else:
                found.append((size, [rows]))
        return [blocks for _, blocks in sorted(found, key=lambda pair: -pair[0])]


def cut_of(
    shape: CallShape, region: Region, sizes: tuple[int, ...], block: NumbaBlock, is_split: bool, most_work: int
) -> Cut:
    """Return a cut, see there; one that is remembered, if all queries see all keys and scores are not changed.

    Tasks of a plan that cuts the keys, of which each is cut otherwise, are not: they would only take memory.
    """
    if not _is_whole(region):
        return Cut(shape, region, sizes, block, is_split, most_work)
    return _cut_of(shape, region.queries, region.keys, sizes, block, is_split, most_work)


def _is_whole(region: Region) -> bool:
    is_one = len(region.queries) == len(region.keys) == 1 and region.queries[0].start == region.keys[0].start == 0
    return is_one and not region.foreign and region.scores is None and region.mask.hides_nothing


@lru_cache(maxsize=16)
def _cut_of(
    shape: CallShape,
    queries: tuple[range, ...],
    keys: tuple[range, ...],
    sizes: tuple[int, ...],
    block: NumbaBlock,
    is_split: bool,
    most_work: int,
) -> Cut:
    return Cut(shape, Region(queries, keys), sizes, block, is_split, most_work)
