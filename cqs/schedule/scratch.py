"""What a kernel holds while it computes, and the sizes of its blocks, which that follows from. Integers only."""

from dataclasses import dataclass
from math import isqrt, prod

from cqs.problem import DTYPES, AttentionProblem
from cqs.schedule.grain import BLOCK_BYTES

__all__ = ["CallShape", "blockwise_block", "numpy_block", "numpy_heads", "scratch_bytes"]

_MOST_ROWS, _MOST_COLUMNS, _LEAST_MASKED_ROWS = 512, 4096, 128
_MASK_COLUMNS = 128  # that a mask is evaluated for at a time
_VECTORS = 10  # numbers a row: sums, maxima, divisors
_SCORE_COPIES = 4  # blocks that changing scores takes, beyond the block itself


@dataclass(frozen=True, slots=True)
class CallShape:
    """The sizes of one kernel call.

    Parameters
    ----------
    batch : int
        Batch entries.
    kv_heads, shared : int
        Key heads, and query heads that share each.
    n_queries, n_keys : int
        Rows and columns.
    width, value_width : int
        D and E.
    itemsize : int
        Bytes of a score.
    is_gathered : bool
        Whether keys and values are copied for a block: from several groups, or to another type.
    is_masked : bool
        Whether a mask hides anything.
    """

    batch: int
    kv_heads: int
    shared: int
    n_queries: int
    n_keys: int
    width: int
    value_width: int
    itemsize: int
    is_gathered: bool
    is_masked: bool

    @classmethod
    def of(
        cls, problem: AttentionProblem, kv_heads: int | None, n_queries: int, n_keys: int, n_groups: int
    ) -> "CallShape":
        """Return the sizes of a call with so many rows, columns and groups of columns, for `kv_heads` as of a Grain."""
        p = problem
        return cls(
            batch=prod(p.batch) if kv_heads is None else 1,
            kv_heads=p.n_kv_heads if kv_heads is None else kv_heads,
            shared=p.n_heads // p.n_kv_heads,
            n_queries=n_queries,
            n_keys=n_keys,
            width=p.width,
            value_width=p.value_width,
            itemsize=DTYPES[p.accumulator_dtype][0],
            is_gathered=n_groups > 1 or p.dtype != p.accumulator_dtype,
            is_masked=not p.mask.hides_nothing,
        )

    @property
    def n_heads(self) -> int:
        """Query heads of all batch entries."""
        return self.batch * self.kv_heads * self.shared

    @property
    def widest_bytes(self) -> int:
        """Bytes of the widest row of queries, keys or values, in the type of scores."""
        return max(self.width, self.value_width) * self.itemsize


def numpy_block(n_queries: int, widest_bytes: int, block_bytes: int, n_seen: int | None = None) -> tuple[int, int]:
    """Return the most rows and columns of a block of scores of the NumPy kernel, for one head.

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
    return rows, min(area // max(rows, 1), _MOST_COLUMNS, most)


def numpy_heads(n_rows: int, n_columns: int, widest_bytes: int, block_bytes: int) -> int:
    """Return how many query heads the NumPy kernel takes into a block of so many rows and columns."""
    return max(min(block_bytes // 4 // (n_rows * n_columns), block_bytes // (max(n_rows, n_columns) * widest_bytes)), 1)


def scratch_bytes(
    kernel: str, call: CallShape, threads: int, block_bytes: int = BLOCK_BYTES, has_scores: bool = False
) -> int:
    """Return an upper bound of what a kernel call holds beyond its arguments and its result, on all its threads.

    Parameters
    ----------
    kernel : str
        Its name in `cqs.kernels.KERNELS`.
    call : CallShape
        Its sizes.
    threads : int
        How many threads it computes on.
    block_bytes : int
        As of `Grain`.
    has_scores : bool
        Whether scores are changed before the mask. What a `score_mod` allocates is taken to be four blocks.
    """
    if 0 in (call.n_queries, call.n_keys, call.n_heads):
        return 0
    if kernel == "numpy":
        return threads * _numpy(call, block_bytes, has_scores)
    return _reference(call, has_scores) if kernel == "reference" else _blockwise(call, block_bytes, has_scores)


def _numpy(call: CallShape, block_bytes: int, has_scores: bool) -> int:
    a, least = call.itemsize, min(_LEAST_MASKED_ROWS, call.n_queries)
    rows, columns = numpy_block(call.n_queries, call.widest_bytes, block_bytes)
    narrow = min(block_bytes // 4 // least, _MOST_COLUMNS, max(block_bytes // call.widest_bytes, 16))
    columns = min(narrow if call.is_masked else columns, call.n_keys)
    heads = min(numpy_heads(least if call.is_masked else rows, columns, call.widest_bytes, block_bytes), call.n_heads)
    kv_heads = min(max(heads // call.shared, 1), call.kv_heads)
    heads = max(min(heads, kv_heads * call.shared), 1)
    block = min(heads * rows * columns, max(block_bytes // 4, rows * min(columns, 16)))
    rows_in_all = min(heads * rows, max(block_bytes // call.widest_bytes, rows))
    keys_in_all = min(kv_heads * columns, max(block_bytes // call.widest_bytes, columns))
    bytes_held = block * a + rows_in_all * (call.width + 2 * call.value_width + _VECTORS) * a
    bytes_held += keys_in_all * (call.width + call.value_width) * a * call.is_gathered
    # where values are not finite: copies of them without, and which scores count
    bytes_held += keys_in_all * call.value_width * (a + 2) + 2 * block
    bytes_held += rows * min(_MASK_COLUMNS, columns) * 24 * call.is_masked
    return bytes_held + _SCORE_COPIES * block * a * has_scores


def _blockwise(call: CallShape, block_bytes: int, has_scores: bool) -> int:
    rows, columns = blockwise_block(block_bytes)
    rows, columns = min(rows, call.n_queries), min(columns, call.n_keys)
    block = call.n_heads * rows * columns * call.itemsize
    queries = 2 * call.n_heads * rows * (call.width + 2 * call.value_width + _VECTORS) * call.itemsize
    keys = 2 * call.batch * call.kv_heads * columns * (call.width + 2 * call.value_width) * call.itemsize
    mask = 3 * rows * columns * call.is_masked + rows * columns * 24 * call.is_masked
    return (5 + _SCORE_COPIES * has_scores) * block + queries + keys + mask


def blockwise_block(block_bytes: int) -> tuple[int, int]:
    """Return the most rows and columns of a block of scores of the blockwise kernel."""
    rows = isqrt(block_bytes // 8)
    return rows, 2 * rows


def _reference(call: CallShape, has_scores: bool) -> int:
    scores = call.n_heads * call.n_queries * call.n_keys * call.itemsize
    queries = 2 * call.n_heads * call.n_queries * (call.width + 2 * call.value_width + _VECTORS) * call.itemsize
    keys = 3 * call.batch * call.kv_heads * call.n_keys * (call.width + call.value_width) * call.itemsize
    mask = call.n_queries * call.n_keys * 27 * call.is_masked
    return (6 + _SCORE_COPIES * has_scores) * scores + queries + keys + mask
