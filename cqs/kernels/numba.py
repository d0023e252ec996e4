"""The fast kernel for NumPy arrays where Numba is installed: the NumPy kernel, with its inner loops compiled.

Work is cut and shared among threads as there. What differs is what a thread does with a block of rows: it hands whole
blocks of columns to `cqs.kernels.numba_loops`, where scores never leave the core's cache, and Python is not needed.
"""

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import inf
from types import ModuleType
from typing import NamedTuple

import numpy as np

from cqs.backend import Workspace, blas_libraries, raise_if_stopped
from cqs.kernels import numpy_threads
from cqs.kernels.blocks import in_chunks, split_scale
from cqs.kernels.contract import KeyChunk, Request
from cqs.kernels.numpy_threads import Call, Unit, UnitKeys, is_blasable
from cqs.kernels.numpy_unit import Floats
from cqs.kernels.region import Region
from cqs.masks.mask import Booleans, Integers
from cqs.once import Few, once
from cqs.partial import Partial
from cqs.problem import DTYPES, dtype_name
from cqs.schedule import BLOCK_BYTES, LEAST_IN_PLACE, UnitShape, careful_bytes, even_cuts, numba_tile, numpy_unit

__all__ = ["attend", "missing", "refusal"]

_MOST_KEPT = 512  # steps that are remembered
_FAST_IF_SMALL, _SMALL_PRODUCT = ("SkylakeX", "Cooperlake", "SapphireRapids"), 1_000_000  # OpenBLAS's names
_WIDEST_SMALL = 128  # values; wider ones are as fast uncut
_INSTALL = "pip install 'cqs-attention[numba]'"


def missing() -> str | None:
    """Return what is lacking to run compiled loops, with the remedy; None if there is all. Loads nothing."""
    for name in ("numba", "scipy"):
        if find_spec(name) is None:
            return f"{name} is not installed: {_INSTALL}"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "Numba's compiler is off (NUMBA_DISABLE_JIT)"
    return None


@cache
def _loops() -> ModuleType | None:
    """Return the compiled functions; None, with a warning, where Numba or SciPy is broken."""
    try:
        loops = import_module("cqs.kernels.numba_loops")
    except Exception as error:  # such as a version that does not know this NumPy, or no place to keep what is compiled
        _warn(error)
        return None
    return loops


@cache
def _largest_product() -> int:
    """Return to how many multiplications products of weights and values are cut; 0 if they are not.

    OpenBLAS has kernels for small products, which copy nothing, and are the faster ones where there is AVX-512.
    """
    is_fast = any(lib.name == "openblas" and lib.architecture in _FAST_IF_SMALL for lib in blas_libraries())
    return _SMALL_PRODUCT * is_fast


def _warn(error: Exception) -> None:
    what = f"Numba or SciPy cannot be used ({error}), so the NumPy kernel computes: {_INSTALL} -U, or kernel='numpy'"
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
    return _CompiledCall.of(q, chunks, scale, region, block_bytes).computed(threads)


class _Step(NamedTuple):
    """What one call of the loops computes, of any heads: blocks of rows, and columns of each.

    Parameters
    ----------
    rows, columns : list
        Rows of each block, and its columns.
    blocks, pieces : array
        The same for `cqs.kernels.numba_loops.attend`.
    begins, ends : bool
        Whether these are the blocks' first columns, and their last.
    """

    rows: list[range]
    columns: list[list[range]]
    blocks: Integers
    pieces: Integers
    begins: bool
    ends: bool


@dataclass(frozen=True, eq=False)
class _CompiledCall(Call):
    """A call of the NumPy kernel whose blocks of rows are computed by the loops, small ones several at a time."""

    @once
    def largest(self) -> UnitShape:
        return numpy_unit(self.shape, self.block_bytes, self.most_rows_of_block, is_compiled=True)

    @once
    def are_keys_joined(self) -> bool:
        return len(self.chunks) > 1 and not self._are_keys_in_place and self.fit_joined

    @once
    def _are_keys_in_place(self) -> bool:
        """Whether BLAS can read all keys and values where they are, and is not slow because they are few to a chunk."""
        if len(self.chunks) > 1 and min(self.sizes) < LEAST_IN_PLACE:
            return False
        arrays = (array for chunk in self.chunks for array in chunk)
        return all(array.dtype == self.dtype and is_blasable(array) for array in arrays)

    @once
    def _flat(self) -> tuple[Floats, Floats]:
        """The result with one axis of heads, of all batch entries."""
        (*_, T, E), (out, lse) = self.result.out.shape, (self.result.out, self.result.lse)
        return out.reshape(-1, T, E), lse.reshape(-1, T)

    @once
    def _plain(self) -> Call:
        same = {field.name: getattr(self, field.name) for field in fields(Call)}
        return Call(**same | {"block_bytes": careful_bytes(self.block_bytes)})

    @once
    def _found(self) -> Few[_Step]:
        return Few(_MOST_KEPT)

    def parts(self, n_units: int, n_threads: int) -> list[list[range]]:
        """Cut the blocks into those of each unit."""
        return super().parts(n_units, n_threads) if self.are_keys_joined else list(self._groups(self.blocks))

    def run(self, unit: Unit, work: Workspace) -> None:
        """Compute one unit in the buffers of one thread."""
        keys, arrays = UnitKeys.of(self, unit, work), self.arrays_of(unit)
        for group in self._groups(unit.blocks):
            is_finite = self._attend_group(group, keys, arrays[0], work)
            for block in itertools.compress(group, ~is_finite):
                self._attend_carefully(block, keys, arrays, work)

    def _groups(self, blocks: Sequence[range]) -> Iterator[list[range]]:
        """Put blocks together for which Python is called once: small ones, one below the other."""
        streams = not (self._are_keys_in_place or self.are_keys_joined)
        most_flags = self.block_bytes // 4 if self.region.is_masked else inf
        group: list[range] = []
        n_rows = n_flags = 0.0
        for block in blocks:
            n_columns = sum(len(piece) for pieces in self.columns(block) for piece in pieces)
            is_long = streams or n_columns > self.largest.columns
            n_rows, n_flags = n_rows + len(block), n_flags + len(block) * n_columns
            if group and (is_long or n_rows > self.most_rows_of_block or n_flags > most_flags):
                yield group
                group, n_rows, n_flags = [], len(block), len(block) * n_columns
            group.append(block)
            if is_long:
                n_rows = inf  # nothing below it
        if group:
            yield group

    def _attend_group(self, group: list[range], keys: UnitKeys, q: Floats, work: Workspace) -> Booleans:
        """Compute a group's rows of a unit's queries `(g, r, T, D)`; return for which blocks the result counts."""
        q, unit = q[:, :, group[0].start : group[-1].stop], keys.unit
        (g, r, t, D), E, is_finite = q.shape, self.result.out.shape[-1], np.ones(len(group), bool)
        sums = work.buffer("out", (g, r * t, E), self.dtype, self.most_rows * E)
        tops, totals = (work.buffer(name, (g, r * t), self.dtype, self.most_rows) for name in ("top", "total"))
        tile = work.buffer(
            "scores", (min(numba_tile(self.block_bytes), self.most_rows * self.largest.columns),), self.dtype
        )
        stack = work.buffer("stack", (r * t * D,), self.dtype, self.most_rows * D)
        loops = _loops()
        assert loops is not None  # or another kernel would compute
        scaled, for_scores = self.scaled(q, work), np.float32(split_scale(self.scale)[1])
        G, shared = self.heads
        batch = int(np.ravel_multi_index(unit.batch, self.q.shape[:-3])) if unit.batch else 0
        head = (batch * G + unit.kv_heads.start) * shared + unit.heads_per_kv.start
        place = np.array([head, shared, group[0].start], np.int64)
        by_address = loops.by_address()
        for step in self._found.get((group[0], len(group)), lambda: list(self._steps(group))):
            raise_if_stopped()  # a unit may take a minute
            loops.attend(
                scaled, for_scores, self._places(keys, step), step.blocks, step.pieces, self._hidden(step, work),
                tile, stack, sums, tops, totals, *self._flat, place, step.begins, step.ends, is_finite,
                _largest_product() if E <= _WIDEST_SMALL else 0, by_address,
            )  # fmt: skip
        return is_finite

    def _steps(self, group: list[range]) -> Iterator[_Step]:
        """Yield the group with all its columns, or its single block with part of them at a time."""
        n_steps = max(len(self.columns(group[0])), 1)
        for n in range(n_steps):
            columns = [list(itertools.chain(*self.columns(rows)[n : n + 1])) for rows in group]
            blocks: list[tuple[int, ...]] = []
            pieces: list[tuple[int, int, int]] = []
            n_flags = 0
            for rows, own in zip(group, columns, strict=True):
                hidden, n_before = self.region.hidden_columns(rows, own), len(pieces)
                pieces += self._pieces(own)
                place = (rows.start - group[0].start, rows.stop - group[0].start, n_before, len(pieces))
                blocks.append((*place, n_flags, hidden.start, len(hidden)))
                n_flags += len(rows) * len(hidden)
            tables = np.array(blocks, np.int64), np.array(pieces, np.int64).reshape(-1, 3)
            yield _Step(group, columns, *tables, n == 0, n == n_steps - 1)

    def _pieces(self, columns: Sequence[range]) -> list[tuple[int, int, int]]:
        """Say where the keys of columns are: chunk, first key in it, number of keys."""
        if self._are_keys_in_place:
            return [(chunk, part.start, len(part)) for chunk, part in in_chunks(columns, self.sizes)]
        if self.are_keys_joined:
            return [(0, part.start, len(part)) for part in columns]
        return [(0, 0, sum(map(len, columns)))] if columns else []

    def _places(self, keys: UnitKeys, step: _Step) -> Integers:
        """Say where the keys and values of a unit are, and copy them there if need be."""
        if self._are_keys_in_place:
            arrays = keys.views()
        elif self.are_keys_joined:
            arrays = [(keys.joined["k"], keys.joined["v"])]
        else:
            (columns,) = step.columns
            arrays = [(keys.take("k", columns)[0], keys.take("v", columns)[0])] if columns else []
        return np.array([_place(k) + _place(v) for k, v in arrays], np.int64).reshape(-1, 6)

    def _hidden(self, step: _Step, work: Workspace) -> Booleans:
        """Return which scores count for nothing, as the step's blocks say where."""
        n_flags = step.blocks[-1, 4] + len(step.rows[-1]) * step.blocks[-1, 6]
        flags: Booleans = work.buffer("hidden", (int(n_flags),), np.dtype(bool))
        flags[...] = False
        for rows, columns, block in zip(step.rows, step.columns, step.blocks.tolist(), strict=True):
            *_, place, first, n_hidden = block
            if n_hidden:
                own = flags[place : place + len(rows) * n_hidden].reshape(len(rows), n_hidden)
                for (_, some_rows, some), hidden in self.region.hidden(rows, columns):
                    own[some_rows, some.start - first : some.stop - first] = hidden
        return flags

    def _attend_carefully(self, block: range, keys: UnitKeys, arrays: Sequence[Floats], work: Workspace) -> None:
        """Compute a block of rows by the NumPy kernel, where values are not finite, or their sums overflow.

        What is hidden must not take part there with weight 0. Head by head, so that blocks are no larger than its own.
        """
        for cut in even_cuts(len(block), self._plain.largest.rows):
            rows = block[cut.start : cut.stop]
            for g, r in itertools.product(*map(range, arrays[0].shape[:2])):
                own = [x[g : g + 1, r : r + 1, rows.start : rows.stop] for x in arrays]
                with np.errstate(all="ignore"):
                    self._plain.attend(rows, keys.of_head(g, self._plain), own, work)


def _place(matrices: Floats) -> tuple[int, int, int]:
    """Return the address of matrices `(g, rows, width)`, elements from row to row, and bytes from one to the next."""
    head, row, element = matrices.strides
    return matrices.__array_interface__["data"][0], row // element, head
