"""Arrays in memory: as inputs, and as what the result is written to."""

from dataclasses import dataclass, field
from math import prod

import numpy as np
from array_api_compat import is_cupy_array

from cqs.backend import dtype_of, is_writeable, may_overlap, namespace_of, overlaps_itself
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.problem import AttentionProblem, dtype_name
from cqs.sources.sink import steps
from cqs.types import Array, DType

__all__ = ["ArrayInput", "ArraySink", "allocate_out", "check_out", "refuse_overlap"]


@dataclass(frozen=True, slots=True, eq=False)
class ArrayInput:
    """An array in memory, of any array library. Parts of it are views."""

    array: Array

    is_staged: bool = field(default=False, init=False)
    read_bytes: int = field(default=0, init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> DType:
        """Its type."""
        return self.array.dtype

    def read(self, lead: tuple[int | slice, ...] | None, start: int, stop: int) -> Array:
        """Return a view of some tokens of some heads, or of all."""
        return self.array[(*((...,) if lead is None else lead), slice(start, stop), slice(None))]

    def close(self) -> None:
        """Do nothing: the array is the caller's."""


@dataclass(slots=True, eq=False)
class ArraySink:
    """An array in memory that rows are written to. Rounded, if it is of a narrower type than they.

    Parameters
    ----------
    array : array `(*B, H, T, E)`
        Where they go.
    is_new : bool
        Whether nobody else has it. Then `write` puts rows that are all there are in its place, if they can be.
    """

    array: Array
    is_new: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def dtype(self) -> DType:
        """Its type."""
        return self.array.dtype

    def write(self, lead: tuple[int | slice, ...] | None, start: int, stop: int, rows: Array) -> None:
        """Write some rows of some heads, or of all.

        If need be, they are converted: a little at a time, or by CuPy as it copies, in one launch and without a copy.
        """
        if self.is_new and lead is None and _can_replace(self.array, rows):
            self.array = rows
            return
        heads = (...,) if lead is None else lead
        if rows.dtype == self.array.dtype or is_cupy_array(self.array):
            self.array[(*heads, slice(start, stop), slice(None))] = rows
            return
        xp = namespace_of(rows=rows)
        for first, last in steps(start, stop, prod(rows.shape[:-2]) * rows.shape[-1]):
            part = rows[..., first - start : last - start, :]
            self.array[(*heads, slice(first, last), slice(None))] = xp.astype(part, self.array.dtype)

    def finish(self) -> Array:
        """Return the array."""
        return self.array

    def abandon(self) -> None:
        """Do nothing: what the array holds is undefined."""


def _can_replace(array: Array, rows: Array) -> bool:
    """Whether rows may take the place of an array: both are NumPy's and alike, and their memory is theirs alone."""
    if not (isinstance(rows, np.ndarray) and isinstance(array, np.ndarray)):
        return False
    whole = rows if rows.base is None else rows.base
    is_own = isinstance(whole, np.ndarray) and whole.flags.owndata and whole.nbytes == rows.nbytes
    is_alike = rows.shape == array.shape and rows.dtype == array.dtype and rows.strides == array.strides
    return is_own and is_alike and rows.flags.writeable


def check_out(out: Array, problem: AttentionProblem, **inputs: Array) -> None:
    """Refuse an `out` that the result cannot be written to, before anything is computed.

    Raises
    ------
    ShapeError, DTypeError, OptionError, BackendError
        If `out` has another shape than the result, a type other than the inputs' or the accumulators',
        is read-only, shares memory with itself or an input, or is of another library or on another device.
    """
    namespace_of(**inputs, out=out)
    if tuple(out.shape) != problem.out_shape:
        raise ShapeError.of("out", f"have the result's shape {problem.out_shape}", tuple(out.shape), "reallocate it")
    allowed = sorted({problem.dtype, problem.accumulator_dtype})
    if dtype_name(out) not in allowed:
        raise DTypeError.of("out", f"be of type {' or '.join(allowed)}", dtype_name(out), "reallocate it")
    if not is_writeable(out):
        raise OptionError.of("out", "be writeable", "a read-only array", "copy it first")
    if overlaps_itself(out):
        raise OptionError.of(
            "out", "have each element in a place of its own", "overlapping strides", "allocate another"
        )
    refuse_overlap(out, **inputs)


def refuse_overlap(out: Array, **read: Array) -> None:
    """Refuse an `out` that shares memory with something that is read meanwhile.

    Raises
    ------
    OptionError
        With the name of what it shares memory with.
    """
    for name, array in read.items():
        if may_overlap(out, array):
            rule = f"share no memory with `{name}`, which is still read while `out` is written"
            raise OptionError.of("out", rule, "an overlapping array", "allocate another")


def allocate_out(problem: AttentionProblem, like: Array) -> Array:
    """Return an array for the result, of the type, library and device of `like`."""
    xp = namespace_of(like=like)
    return xp.empty(problem.out_shape, dtype=dtype_of(xp, problem.dtype), device=like.device)
