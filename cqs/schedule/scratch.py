"""What a kernel holds while it computes, and the sizes of its blocks, which that follows from. Integers only."""

from math import isqrt
from typing import NamedTuple

from cqs.schedule.call_shape import CallShape
from cqs.schedule.gemm_blocks import SCORE_COPIES, gemm_bytes
from cqs.schedule.grain import BLOCK_BYTES
from cqs.schedule.task import largest_cut

__all__ = [
    "BACKWARD_LANES",
    "BACKWARD_SHARES",
    "LEAST_SPLIT_LANES",
    "LEAST_UNITS",
    "MERGE_BLOCK",
    "MOST_ITEMS",
    "MOST_NUMBA_KEYS",
    "PANEL",
    "TILE_KEYS",
    "TILE_WIDTH",
    "NumbaBlock",
    "UnitShape",
    "backward_bytes",
    "blockwise_block",
    "careful_bytes",
    "joined_keys",
    "mask_bytes",
    "numba_block",
    "numpy_rows",
    "numpy_unit",
    "scratch_bytes",
]

_MOST_ROWS, _MOST_COLUMNS, _LEAST_MASKED_ROWS = 512, 4096, 128
LEAST_UNITS = 8  # that work is cut into if there is enough of it for several threads
_ROWS_IN_ALL, _COLUMNS_IN_ALL = 1024, 4096  # most rows, and rows or columns, of all heads of a unit's block
PANEL, TILE_KEYS = 64, 96  # of the compiled kernel: queries side by side, keys of a tile
MOST_NUMBA_KEYS = 5 * TILE_KEYS  # that are read for one panel after the other
BACKWARD_LANES = 256  # queries that the compiled backward pass computes together
BACKWARD_SHARES = 4  # that it deals work out in, if key heads are fewer
_LONGEST_VECTOR = 16  # numbers
TILE_WIDTH = 32  # numbers of 16 bits that a register for tiles is as wide as
LEAST_SPLIT_LANES = 64  # queries that are worth splitting keys into numbers of 16 bits
_TABLE_COPIES = 3  # of what is said about rows: while it is found, and as it is handed on
_HEAD_BYTES, _PLACE_BYTES, _ITEM_BYTES = 100, 100, 128  # of the compiled kernel's tables, while they are made
_TOKEN_BYTES = 16  # of a row, if scores are changed: its token number, twice while they are put together
_UNIT_BYTES = 256  # of a unit of the NumPy kernel, as a Python object
MOST_ITEMS = 2048  # blocks of heads in one table
_MASK_COLUMNS = 128  # that a mask is evaluated for at a time
_MASK_PAIRS = 1 << 16  # likewise, of one that is known only pair by pair: as many as masks take together
_VECTORS = 20  # numbers a row: sums, maxima, divisors, and what their logarithms and merging blocks take
_HALF, _JOINED_BLOCKS, _CUDNN_WORKSPACE = 2, 32, 1 << 20  # bytes of a number, blocks, bytes: see `cqs.kernels.cudnn`
MERGE_BLOCK = 1 << 18  # elements that a CPU merges at a time: they fit a core's cache


def numpy_rows(n_queries: int, widest_bytes: int, block_bytes: int, n_seen: int | None = None) -> int:
    """Return the most rows of a block of scores of the NumPy kernel, for one head.

    Parameters
    ----------
    n_queries : int
        Rows of the call.
    widest_bytes : int
        Bytes of the widest row of queries, keys or values.
    block_bytes : int
        Of a block of float32 scores; queries, keys, values and sums of a block take no more each.
    n_seen : int, optional
        For a masked call how many columns a block of rows sees. On an edge of the mask about half of a block is
        wasted, so there rows are few.
    """
    area, most = block_bytes // 4, max(block_bytes // widest_bytes, 16)
    rows = min(_MOST_ROWS, isqrt(area // 2), most, n_queries)
    if n_seen is not None:
        rows = min(rows, max(min(n_queries // 16, n_seen // 4), _LEAST_MASKED_ROWS))
    return rows


class NumbaBlock(NamedTuple):
    """What the compiled kernel takes at a time.

    Parameters
    ----------
    rows : int
        Queries of a block, of each of its heads.
    lanes : int
        The most queries of all heads that are computed together.
    keys : int
        That are read for one block after the other, and copied if they cannot be read where they are.
    table_bytes : int
        Of what is said about single rows at a time, such as which keys they see.
    """

    rows: int
    lanes: int
    keys: int
    table_bytes: int


def numba_block(call: CallShape, block_bytes: int) -> NumbaBlock:
    """Return how large blocks of the compiled kernel are: its queries, keys, values and sums fit a core's own cache."""
    lanes = _most_lanes(call, block_bytes)
    rows, keys = min(lanes, call.n_queries), min(lanes, MOST_NUMBA_KEYS, call.n_keys)
    if call.is_shared:  # leave something for every thread
        share = call.n_heads * call.n_queries // LEAST_UNITS
        rows = min(rows, max(share // PANEL * PANEL, PANEL))
    return NumbaBlock(rows, min(lanes, rows * call.shared), keys, min(block_bytes, BLOCK_BYTES) // 8)


def _most_lanes(call: CallShape, block_bytes: int) -> int:
    return max(min(_MOST_ROWS, block_bytes // (8 * call.widest_bytes)), _LONGEST_VECTOR)


def backward_bytes(n_keys: int, width: int, value_width: int) -> int:
    """Bound the room of the compiled backward pass: see `room_sizes` in `cqs.kernels.compiled.backward`.

    Parameters
    ----------
    n_keys : int
        Of a call, for one head of which there are sums.
    width, value_width : int
        D and E.
    """
    wide = sum(-(-n // _LONGEST_VECTOR) * _LONGEST_VECTOR for n in (width, value_width))
    tiles, lanes = 3 * TILE_KEYS * PANEL, 2 * BACKWARD_LANES + 3 * PANEL
    of_changes = PANEL * (1 + TILE_KEYS) + _LONGEST_VECTOR**2
    return 4 * ((4 * BACKWARD_LANES + MOST_NUMBA_KEYS + n_keys) * wide + tiles + lanes + of_changes)


def careful_bytes(block_bytes: int) -> int:
    """Return how large blocks are of what the compiled kernel leaves to NumPy."""
    return min(block_bytes, BLOCK_BYTES) // 4


class UnitShape(NamedTuple):
    """What one thread of the NumPy kernel takes at a time: query heads of some key heads, rows, columns of a block."""

    kv_heads: int
    shared: int
    rows: int
    columns: int


def numpy_unit(call: CallShape, block_bytes: int, rows: int) -> UnitShape:
    """Return the largest units that the NumPy kernel cuts a call into: by rows, then by heads.

    Small blocks take several heads at once, but not so many that too few units are left to share out.

    Parameters
    ----------
    call : CallShape
        Its sizes.
    block_bytes : int
        As of `numpy_rows`.
    rows : int
        Of the tallest block, at least 1.
    """
    most = max(block_bytes // call.widest_bytes, 16)
    columns = min(block_bytes // 4 // rows, _MOST_COLUMNS, most)
    columns = min(columns, call.n_keys) if call.is_masked else largest_cut(call.n_keys, columns)
    heads = min(block_bytes // 4 // (rows * columns), block_bytes // (max(rows, columns) * call.widest_bytes))
    heads = min(heads, _ROWS_IN_ALL // rows, _COLUMNS_IN_ALL // max(rows, columns))
    if call.is_shared:
        heads = min(heads, call.n_heads * call.n_queries // rows // LEAST_UNITS)
    heads = max(heads, 1)
    kv_heads = largest_cut(call.kv_heads, max(heads // call.shared, 1))
    return UnitShape(kv_heads, largest_cut(call.shared, heads), rows, columns)


def joined_keys(widest_bytes: int, block_bytes: int) -> int:
    """Return how many keys of a unit's heads the NumPy kernel copies side by side at once, and not for each block."""
    return block_bytes // widest_bytes


def scratch_bytes(kernel: str, call: CallShape, block_bytes: int = BLOCK_BYTES, has_scores: bool = False) -> int:
    """Return an upper bound of what a kernel call holds beyond its arguments and its result, on each of its threads.

    Parameters
    ----------
    kernel : str
        Its name in `cqs.kernels.KERNELS`.
    call : CallShape
        Its sizes.
    block_bytes : int
        As of `Grain`.
    has_scores : bool
        Whether scores are changed before the mask. What a `score_mod` allocates is taken to be six blocks.
    """
    if 0 in (call.n_queries, call.n_keys, call.n_heads):
        return 0
    if kernel in ("numba", "numpy"):
        is_compiled = kernel == "numba" and call.itemsize == 4
        compiled = _numba(call, block_bytes, has_scores) if is_compiled else 0
        is_numpy = not is_compiled or has_scores  # which may be a `score_mod`, and that is NumPy's in either
        return max(compiled, _numpy(call, block_bytes, has_scores) if is_numpy else 0)
    if kernel == "gemm":
        return gemm_bytes(call, block_bytes, has_scores)
    if kernel == "cudnn":
        return _cudnn(call, block_bytes)
    return _reference(call, has_scores) if kernel == "reference" else _blockwise(call, block_bytes, has_scores)


def _cudnn(call: CallShape, block_bytes: int) -> int:
    """Bound what `cqs.kernels.cudnn.attend` says: joined chunks, and a part, or the rest by the gemm kernel."""
    rows, n_kv, wide = call.n_heads * call.n_queries, call.batch * call.kv_heads, call.itemsize
    keys = n_kv * call.n_keys * (call.width + call.value_width) * _HALF
    joined = min(_JOINED_BLOCKS * block_bytes, keys) if call.is_gathered else 0
    result = rows * (call.value_width + 1) * wide
    copies = rows * call.width * _HALF + keys
    rest = gemm_bytes(call, block_bytes) if call.is_masked or call.is_bundled else 0
    return joined + result + max(copies + _CUDNN_WORKSPACE, rest)


class _Most(NamedTuple):
    """The most that a thread takes at a time in any call of at most some sizes; smaller calls may take more heads."""

    rows: int  # of one head
    columns: int
    rows_in_all: int
    keys_in_all: int
    copied_keys: int  # by those that are gathered

    @classmethod
    def of(cls, call: CallShape, block_bytes: int) -> "_Most":
        most = max(block_bytes // call.widest_bytes, 16)
        rows = numpy_rows(call.n_queries, call.widest_bytes, block_bytes)
        least_rows = min(_LEAST_MASKED_ROWS, rows) if call.is_masked else rows
        tallest = [largest_cut(n, least_rows) for n in (call.n_queries, max(call.n_queries - 1, 1))]
        widest = block_bytes // 4 // (1 if call.is_bundled else min(tallest))
        columns = min(widest, _MOST_COLUMNS, most, call.n_keys)
        rows_in_all = max(min(call.n_heads * rows, _ROWS_IN_ALL, most), rows)
        keys_in_all = copied_keys = max(min(call.kv_heads * columns, _COLUMNS_IN_ALL, most), columns)
        if call.is_bundled:
            together = min(call.kv_heads * call.n_keys, joined_keys(call.widest_bytes, block_bytes))
            copied_keys = max(keys_in_all, together)
        return cls(rows, columns, rows_in_all, keys_in_all, copied_keys * call.is_gathered)


def _numpy(call: CallShape, block_bytes: int, has_scores: bool) -> int:
    """Bound what a thread of the NumPy kernel holds."""
    most, a = _Most.of(call, block_bytes), call.itemsize
    block = min(call.n_heads * most.rows * most.columns, block_bytes // 4)
    n_units = call.n_heads * -(-call.n_queries // most.rows)
    bytes_held = (
        block * a + most.rows_in_all * (call.width + 3 * call.value_width + _VECTORS) * a + _UNIT_BYTES * n_units
    )
    bytes_held += most.copied_keys * (call.width + call.value_width) * a
    bytes_held += _carefully(call, most.keys_in_all, block)
    bytes_held += mask_bytes(call, most.rows)
    return bytes_held + SCORE_COPIES * block * a * has_scores


def _numba(call: CallShape, block_bytes: int, has_scores: bool) -> int:
    """Bound what a thread of the compiled kernel holds, or what it leaves to NumPy, letting go of its room."""
    most, a, n_heads = _most_lanes(call, block_bytes), call.itemsize, call.n_heads
    lanes = -(-min(most, call.shared * call.n_queries) // PANEL) * PANEL
    width, value_width = (-(-n // TILE_WIDTH) * TILE_WIDTH for n in (call.width, call.value_width))
    keys = min(most, MOST_NUMBA_KEYS, call.n_keys)
    room = lanes * (width + 2 * value_width + 3) + PANEL * (2 * max(width, value_width) + 2 * TILE_KEYS + 5)
    room += keys * (width + value_width) + _LONGEST_VECTOR**2 + 12 * _LONGEST_VECTOR
    if most >= LEAST_SPLIT_LANES:  # pieces of numbers, in case that the processor multiplies these
        room += lanes * width // 2 + 3 * (keys + TILE_WIDTH) // 2 * (width + value_width)
        room += PANEL * (5 * TILE_KEYS + value_width + 3)
    room *= a
    tables = _HEAD_BYTES * n_heads + _PLACE_BYTES * call.batch * (1 + 2 * call.n_chunks)
    tables += _ITEM_BYTES * min(n_heads * call.n_queries, MOST_ITEMS)
    tables += _TOKEN_BYTES * call.n_queries * has_scores
    if call.is_masked or call.is_bundled:
        rows = min(most, call.n_queries)  # a smaller call, which is not shared, may have taller blocks
        tables += _TABLE_COPIES * (min(block_bytes, BLOCK_BYTES) // 8) + mask_bytes(call, rows)
    return tables + max(room, _numpy(call, careful_bytes(block_bytes), has_scores))


def mask_bytes(call: CallShape, rows: int) -> int:
    """Bound what a mask takes that is evaluated for a block of rows: two ends of int64 and more for each pair."""
    if not call.is_masked:
        return 0
    pairs = rows * min(_MASK_COLUMNS, call.n_keys)
    return 24 * (max(pairs, min(call.n_queries * call.n_keys, _MASK_PAIRS)) if call.is_evaluated else pairs)


def _carefully(call: CallShape, n_keys: int, block: int) -> int:
    """Bound what else is held where values are not finite: copies of them without, and which scores count."""
    return n_keys * call.value_width * (call.itemsize + 2) + 2 * block


def _blockwise(call: CallShape, block_bytes: int, has_scores: bool) -> int:
    rows, columns = blockwise_block(block_bytes)
    rows, columns = min(rows, call.n_queries), min(columns, call.n_keys)
    block = call.n_heads * rows * columns * call.itemsize
    queries = 2 * call.n_heads * rows * (call.width + 2 * call.value_width + _VECTORS) * call.itemsize
    keys = 2 * call.batch * call.kv_heads * columns * (call.width + 2 * call.value_width) * call.itemsize
    mask = 3 * rows * columns * call.is_masked
    mask += max(mask_bytes(call, rows), rows * columns * 24 * call.is_masked)
    return (5 + SCORE_COPIES * has_scores) * block + queries + keys + mask


def blockwise_block(block_bytes: int) -> tuple[int, int]:
    """Return the most rows and columns of a block of scores of the blockwise kernel."""
    rows = isqrt(block_bytes // 8)
    return rows, 2 * rows


def _reference(call: CallShape, has_scores: bool) -> int:
    scores = call.n_heads * call.n_queries * call.n_keys * call.itemsize
    queries = 2 * call.n_heads * call.n_queries * (call.width + 2 * call.value_width + _VECTORS) * call.itemsize
    keys = 3 * call.batch * call.kv_heads * call.n_keys * (call.width + call.value_width) * call.itemsize
    mask = call.n_queries * call.n_keys * 27 * call.is_masked
    return (6 + SCORE_COPIES * has_scores) * scores + queries + keys + mask
