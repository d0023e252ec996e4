"""How a kernel walks over its region: for some rows, the blocks of columns that they see. Integers only.

Small runs of keys are packed into blocks of full size, because a matrix product of a few dozen columns costs nearly
as much as one of a few hundred. Columns that no row sees are left out.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

from cqs.kernels.region import Region
from cqs.schedule import SMALL_ROWS, even_cuts, worth_one_piece

__all__ = ["column_blocks", "columns_seen", "in_chunks", "row_blocks", "split_scale"]


def split_scale(scale: float) -> tuple[float, float]:
    """Return what to multiply the queries by, and what the scores.

    Scaling the queries costs less; but an extreme scale could push them out of range, where scores are still within.
    """
    return (scale, 1.0) if 2.0**-20 <= abs(scale) <= 2.0**20 else (1.0, scale)


def row_blocks(region: Region, most: int, most_masked: int, small: int = SMALL_ROWS) -> list[range]:
    """Cut the rows of a region into blocks; rows that see other keys than those before begin a new one.

    A block has at most `most` rows, or `most_masked` where the mask hides something. Strips of at most `small` rows may
    share a block, see `worth_one_piece`.
    """
    heights = list(map(len, region.queries))
    if not region.foreign:
        cuts = [0, len(heights)]
    elif min(heights) > small:
        cuts = list(range(len(heights) + 1))
    else:
        sizes = {j: len(keys) for j, keys in enumerate(region.keys)}
        own = [{j: size for j, size in sizes.items() if (i, j) not in region.foreign} for i in range(len(heights))]
        cuts = [0, *(piece.stop for piece in worth_one_piece(heights, own, small))]
    starts, is_masked = list(accumulate(heights, initial=0)), region.is_masked
    blocks = []
    for run in (range(starts[first], starts[stop]) for first, stop in pairwise(cuts)):
        cuts_of_run = even_cuts(len(run), most_masked if is_masked and region.hides_from(run) else most)
        blocks += [run[cut.start : cut.stop] for cut in cuts_of_run]
    return blocks


def column_blocks(region: Region, rows: range, width: int) -> list[list[range]]:
    """Return the columns that `rows` see, as blocks of at most `width`; each is a list of ranges of columns."""
    pieces = columns_seen(region, rows)
    starts = list(accumulate((len(piece) for piece in pieces), initial=0))  # in the packed columns
    return [
        [
            piece[max(cut.start - start, 0) : cut.stop - start]
            for start, piece in zip(starts, pieces, strict=False)
            if start < cut.stop and cut.start < start + len(piece)
        ]
        for cut in even_cuts(starts[-1], width)
    ]


def in_chunks(pieces: Sequence[range], sizes: Sequence[int]) -> list[tuple[int, range]]:
    """Say where columns are in arrays of the given sizes that stand side by side: (array, range within it)."""
    found = []
    for piece in pieces:
        first = 0
        for number, size in enumerate(sizes):
            start, stop = max(piece.start - first, 0), min(piece.stop - first, size)
            if start < stop:
                found.append((number, range(start, stop)))
            first += size
    return found


def columns_seen(region: Region, rows: range) -> list[range]:
    """Return the columns that some of the rows see, or a little more, as increasing ranges with gaps between them."""
    joined: list[range] = []
    for piece in region.seen(rows):
        if joined and joined[-1].stop == piece.start:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined
