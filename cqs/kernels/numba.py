"""The fast kernel for NumPy arrays where Numba is installed: compiled loops, on threads of its own.

Rows are cut into blocks as by the NumPy kernel, and each block of each head is computed by one thread, so the result is
bitwise the same on any number of threads. What a thread does with a block is in `cqs.kernels.compiled.loops`: scores
never leave the core's caches, keys and values are read where they are, and Python is not needed.
"""

import itertools
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import e, log2
from types import ModuleType
from typing import NamedTuple, Self

import numpy as np

from cqs import partial
from cqs.backend import Workspace, compute_threads, raise_if_stopped
from cqs.kernels import numpy_threads
from cqs.kernels.blocks import columns_seen, row_blocks
from cqs.kernels.contract import KeyChunk, Request
from cqs.kernels.numba_tables import KINDS, BlockTables, Tables, places
from cqs.kernels.numpy_threads import Unit
from cqs.kernels.numpy_unit import Floats
from cqs.kernels.region import Region
from cqs.masks.mask import Integers
from cqs.once import once
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, NumbaBlock, careful_bytes, even_cuts, numba_block
from cqs.types import Array, Namespace

__all__ = ["attend", "merge_into", "missing", "refusal"]

_MOST_WORK = 1 << 33  # multiplications that a thread does without looking whether it is to stop: a tenth of a second
_PARTS_A_THREAD = 8
_SMALL_ROWS = 16  # fewer than fill a vector are computed with those of other strips
_INSTALL = "pip install 'cqs-attention[numba]'"


def missing() -> str | None:
    """Return what is lacking to run compiled loops, with the remedy; None if there is all. Loads nothing."""
    if find_spec("numba") is None:
        return f"numba is not installed: {_INSTALL}"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "Numba's compiler is off (NUMBA_DISABLE_JIT)"
    return None


@cache
def _loops() -> ModuleType | None:
    """Return the compiled functions; None, with a warning, where Numba is broken."""
    try:
        loops = import_module("cqs.kernels.compiled.loops")
    except Exception as error:  # such as a version that does not know this NumPy, or no place to keep what is compiled
        _warn(error)
        return None
    return loops


def _warn(error: Exception) -> None:
    what = f"Numba cannot be used ({error}), so the NumPy kernel computes: {_INSTALL} -U, or kernel='numpy'"
    warnings.warn(what, RuntimeWarning, stacklevel=2)


def refusal(request: Request) -> str | None:
    """Return why this kernel cannot be taken for arrays of NumPy, and what would help; None if it can."""
    return missing()


def attend(
    q: Floats,
    chunks: Sequence[KeyChunk],
    *,
    scale: float,
    region: Region | None = None,
    threads: int = 1,
    block_bytes: int = BLOCK_BYTES,
) -> Partial:
    """Compute attention over NumPy arrays of any strides, read-only or not, on `threads` threads.

    Calls in float64, or whose scores are changed, are left to the NumPy kernel. Beyond the result, each thread holds at
    most 16 MiB with the blocks that are the default, and less with smaller. See `cqs.kernels.Attend` for the arguments.
    """
    is_changed = region is not None and region.scores is not None
    if DTYPES[dtype_name(q)][1] != "float32" or is_changed or _loops() is None:
        return numpy_threads.attend(q, chunks, scale=scale, region=region, threads=threads, block_bytes=block_bytes)
    call = _Call.of(q, chunks, scale, region, block_bytes)
    arrays = (q, *itertools.chain(*chunks))
    if scale == 0 or q.shape[-1] == 0 or not all(array.dtype.isnative for array in arrays):
        return call.plain.computed(threads)
    return call.computed(threads)


def merge_into(xp: Namespace, totals: Sequence[Partial], parts: Sequence[Partial]) -> None:
    """Merge each part into the total beside it, in place, as `cqs.partial.merge_into` does, but for the last bits."""
    arrays = [array for partial in (*totals, *parts) for array in (partial.out, partial.lse)]
    if not all(_is_mergeable(array) for array in arrays) or _loops() is None:
        partial.merge_into(xp, totals, parts)
        return
    merge_rows = import_module("cqs.kernels.compiled.merging").merge_rows
    for total, part in zip(totals, parts, strict=True):
        for batch in np.ndindex(*total.out.shape[:-3]):
            merge_rows(total.out[batch], total.lse[batch], part.out[batch], part.lse[batch])


def _is_mergeable(array: Array) -> bool:
    """Whether an array is one of NumPy's, `(*B, H, T)` or with rows of adjacent numbers `(*B, H, T, E)`, of float32."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        return False
    return array.flags.aligned and array.ndim > 1 and array.strides[-1] == array.itemsize


class _Heads(NamedTuple):
    """Query heads that share a key head, or some of them: batch entry, key head, the first of them and how many."""

    batch: int
    kv_head: int
    first: int
    n: int


class _Part(NamedTuple):
    """What a thread takes at a time: some blocks of rows, of some heads each; and the multiplications that takes."""

    heads: Sequence[_Heads]
    blocks: Sequence[range]
    size: int


@dataclass(frozen=True, eq=False)
class _Call:
    """The arguments of one `attend`, and where its result goes."""

    q: Floats
    chunks: Sequence[KeyChunk]
    scale: float
    plain: numpy_threads.Call  # the same call of the NumPy kernel, in smaller blocks
    block_bytes: int

    @classmethod
    def of(cls, q: Floats, chunks: Sequence[KeyChunk], scale: float, region: Region | None, block_bytes: int) -> Self:
        """Allocate the result."""
        plain = numpy_threads.Call.of(q, chunks, scale, region, careful_bytes(block_bytes))
        return cls(q, chunks, scale, plain, block_bytes)

    def computed(self, threads: int) -> Partial:
        """Compute the result."""
        result, n_threads = self.plain.result, threads if self.plain.shape.is_shared else 1
        if sum(self.plain.sizes) == 0:
            return Partial.empty(np, result.out.shape, result.out.dtype)
        if self.q.size > 0:
            with compute_threads() as pool:
                pool.share(self.parts(n_threads), self.run, n_threads)
        return result

    @once
    def block(self) -> NumbaBlock:
        """How large blocks are."""
        return numba_block(self.plain.shape, self.block_bytes)

    @once
    def blocks(self) -> list[range]:
        """The blocks that the rows are cut into."""
        return row_blocks(self.plain.region, self.block.rows, self.block.rows, _SMALL_ROWS)

    @once
    def heads(self) -> list[_Heads]:
        """The heads that are computed together, their queries side by side."""
        shape, tallest = self.plain.shape, max(map(len, self.blocks))
        cuts = even_cuts(shape.shared, max(self.block.lanes // tallest, 1))
        kv_heads = itertools.product(range(shape.batch), range(shape.kv_heads))
        return [_Heads(b, g, g * shape.shared + cut.start, len(cut)) for b, g in kv_heads for cut in cuts]

    def parts(self, n_threads: int) -> list[_Part]:
        """Cut the work into what a thread takes at a time, the largest first. Where does not matter to the result."""
        shape, n_heads = self.plain.shape, len(self.heads)
        width = shape.n_heads * (shape.width + shape.value_width)
        if n_threads == 1 and shape.n_queries * shape.n_keys * width <= _MOST_WORK:
            return [_Part(self.heads, self.blocks, 0)]
        sizes = [len(rows) * sum(map(len, columns_seen(self.plain.region, rows))) * width for rows in self.blocks]
        most = _MOST_WORK if n_threads == 1 else min(_MOST_WORK, sum(sizes) // (_PARTS_A_THREAD * n_threads))
        parts: list[_Part] = []
        for rows, size in zip(self.blocks, sizes, strict=True):
            if parts and parts[-1].size + size <= most:  # of all heads, too
                _, before, so_far = parts.pop()
                parts.append(_Part(self.heads, [*before, rows], so_far + size))
                continue
            n_parts = min(max(-(-size // max(most, 1)), 1), n_heads)
            own = max(size // n_parts, most * (n_parts > 1))
            cuts = even_cuts(n_heads, -(-n_heads // n_parts))
            parts += [_Part(self.heads[cut.start : cut.stop], [rows], own) for cut in cuts]
        return sorted(parts, key=lambda part: -part.size)

    @once
    def arrays(self) -> tuple[Integers, Integers]:
        """Where queries are, and keys and values."""
        queries = places(self.q, KINDS[dtype_name(self.q)])
        chunks = [[places(array, KINDS[dtype_name(array)]) for array in chunk] for chunk in self.chunks]
        return queries, np.ascontiguousarray(np.array(chunks).transpose(2, 0, 1, 3))

    @once
    def tables(self) -> BlockTables:
        """Which keys blocks see."""
        plain = self.plain
        width = self.block.lanes * (plain.shape.width + plain.shape.value_width)
        return BlockTables(plain.region, plain.sizes, max(_MOST_WORK // width, 1), self.block.table_bytes)

    def run(self, part: _Part, work: Workspace) -> None:
        """Compute some blocks of rows of some heads in the buffers of one thread."""
        for table in self.tables.of(part.blocks):
            if isinstance(table, range):
                for heads in part.heads:
                    for step in self.tables.steps(table):
                        self._attend([heads], step, work)
            else:
                self._attend(part.heads, table, work)

    def _attend(self, heads: Sequence[_Heads], table: Tables, work: Workspace) -> None:
        raise_if_stopped()
        loops, out = _loops(), self.plain.result.out
        *_, T, E = out.shape
        assert loops is not None  # or another kernel would compute
        items = np.array([(*own, n) for own in heads for n in range(len(table.blocks))], np.int64)
        is_finite = np.ones(len(items), bool)
        sizes = loops.room_sizes(self.block.lanes, self.block.keys, self.q.shape[-1], E)
        room = tuple(work.buffer(f"numba {n}", (size,), out.dtype) for n, size in enumerate(sizes))
        loops.attend(
            *self.arrays, np.float32(self.scale * log2(e)), items, table.blocks, table.pieces, table.bounds,
            table.hidden, room, self.block.keys, out.reshape(-1, T, E), self.plain.result.lse.reshape(-1, T),
            table.begins, table.ends, is_finite,
        )  # fmt: skip
        if not is_finite.all():
            del room
            work.clear()
            for *own, block in items[~is_finite].tolist():
                self._attend_carefully(_Heads(*own), range(*table.blocks[block, :2].tolist()), work)
            work.clear()

    def _attend_carefully(self, heads: _Heads, rows: range, work: Workspace) -> None:
        """Compute a block by the NumPy kernel, where values are not finite, or their sums overflow.

        What is hidden must not take part there with weight 0. Head by head, so that blocks are no larger than its own.
        """
        plain, batch = self.plain, np.unravel_index(heads.batch, self.q.shape[:-3]) if self.q.ndim > 3 else ()
        first = heads.first - heads.kv_head * plain.shape.shared
        for cut in even_cuts(len(rows), plain.largest.rows):
            for r in range(first, first + heads.n):
                kv_head = slice(heads.kv_head, heads.kv_head + 1)
                plain.run(Unit(tuple(map(int, batch)), kv_head, slice(r, r + 1), [rows[cut.start : cut.stop]]), work)
