"""The sizes of one kernel call, from which follows what it holds. Integers only."""

from dataclasses import dataclass
from math import prod

from cqs.problem import DTYPES, AttentionProblem
from cqs.schedule.sizes import TaskSizes

__all__ = ["LEAST_ROWS", "SHARED_FLOPS", "CallShape", "effort"]

SHARED_FLOPS = 500_000_000  # less work, a few milliseconds, is not worth another thread
LEAST_ROWS = 16  # of queries that share keys: to read the keys takes as long as to compute with so many


def effort(kv_heads: int, rows: int, n_keys: int, width: int) -> int:
    """Return the multiplications and additions of some rows of each key head, at least what reading keys amounts to."""
    return 2 * kv_heads * max(rows, LEAST_ROWS) * n_keys * width


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
    is_bundled : bool
        Whether strips share calls, of which some then have fewer rows.
    n_chunks : int
        Arrays that keys come in.
    is_evaluated : bool
        Whether the mask is known only pair by pair.
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
    is_bundled: bool = False
    n_chunks: int = 1
    is_evaluated: bool = False

    @classmethod
    def of(cls, p: AttentionProblem, kv_heads: int | None, sizes: TaskSizes) -> "CallShape":
        """Return the sizes of the largest calls of tasks, for `kv_heads` as of a Grain."""
        return cls(
            batch=prod(p.batch) if kv_heads is None else 1,
            kv_heads=p.n_kv_heads if kv_heads is None else kv_heads,
            shared=p.n_heads // p.n_kv_heads,
            n_queries=sizes.call_rows,
            n_keys=sizes.call_keys,
            width=p.width,
            value_width=p.value_width,
            itemsize=DTYPES[p.accumulator_dtype][0],
            is_gathered=sizes.key_groups > 1 or p.dtype != p.accumulator_dtype,
            is_masked=not p.mask.hides_nothing,
            is_bundled=sizes.is_bundled,
            n_chunks=max(sizes.key_groups, 1),
            is_evaluated=not p.mask.has_edges,
        )

    @property
    def n_heads(self) -> int:
        """Query heads of all batch entries."""
        return self.batch * self.kv_heads * self.shared

    @property
    def is_shared(self) -> bool:
        """Whether it is work enough for several threads."""
        rows, width = self.shared * self.n_queries, self.width + self.value_width
        return effort(self.batch * self.kv_heads, rows, self.n_keys, width) > SHARED_FLOPS

    @property
    def widest_bytes(self) -> int:
        """Bytes of the widest row of queries, keys or values, in the type of scores."""
        return max(self.width, self.value_width) * self.itemsize
