"""What queries, keys and values are read from, and what the result is written to."""

from dataclasses import dataclass
from typing import Protocol

from cqs.backend import dtype_of, is_writeable, may_overlap, namespace_of, overlaps_itself
from cqs.errors import DTypeError, OptionError, ShapeError
from cqs.kernels import KeyChunk
from cqs.problem import AttentionProblem, dtype_name
from cqs.schedule import Group
from cqs.types import Array

__all__ = ["ArraySource", "Source", "allocate_out", "check_out"]


class Source(Protocol):
    """Where a worker reads the groups of tokens that its task names."""

    def queries(self, group: Group) -> Array:
        """Return the queries of a group, `(*B, H, t, D)`."""

    def keys(self, group: Group) -> KeyChunk:
        """Return the keys and values of a group, `(*B, G, s, D)` and `(*B, G, s, E)`."""


@dataclass(frozen=True, slots=True, eq=False)
class ArraySource:
    """Arrays in memory. Groups are views of them: nothing is copied."""

    q: Array
    k: Array
    v: Array

    def queries(self, group: Group) -> Array:
        """Return a view of the group's queries."""
        return self.q[..., group.start : group.stop, :]

    def keys(self, group: Group) -> KeyChunk:
        """Return views of the group's keys and values."""
        tokens = slice(group.start, group.stop)
        return KeyChunk(self.k[..., tokens, :], self.v[..., tokens, :])


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
    for name, array in inputs.items():
        if may_overlap(out, array):
            rule = f"share no memory with `{name}`, which is still read while `out` is written"
            raise OptionError.of("out", rule, "an overlapping array", "allocate another")


def allocate_out(problem: AttentionProblem, like: Array) -> Array:
    """Return an array for the result, of the type, library and device of `like`."""
    xp = namespace_of(like=like)
    return xp.empty(problem.out_shape, dtype=dtype_of(xp, problem.dtype), device=like.device)
