"""What the backward pass reads: the inputs of attention, its output, and the gradient of that."""

from dataclasses import dataclass

from cqs.backend import dtype_of, namespace_of
from cqs.backward.kernel import QueryRows
from cqs.kernels import KeyChunk
from cqs.problem import AttentionProblem
from cqs.schedule import Group, HeadBlock
from cqs.sources import Input, InputSource
from cqs.types import Array, DType

__all__ = ["GradientSource", "delta_of"]


def delta_of(dout: Array, out: Array, dtype: DType) -> Array:
    """Return the dot products of outputs and their gradients, `(*, T)` of two `(*, T, E)`, as a type."""
    xp = namespace_of(dout=dout)
    delta: Array = xp.sum(xp.astype(dout, dtype, copy=False) * xp.astype(out, dtype, copy=False), axis=-1)
    return delta


@dataclass(frozen=True, slots=True, eq=False)
class GradientSource:
    """The inputs of attention, and what came of them.

    Parameters
    ----------
    problem : AttentionProblem
        What was computed.
    inputs : InputSource
        Queries, keys and values.
    out, dout : Input, `(*B, H, T, E)`
        The output, and its gradient.
    lse : Input, `(*B, H, T, 1)`
        The log-sum-exp, of the type that sums are kept in.
    """

    problem: AttentionProblem
    inputs: InputSource
    out: Input
    dout: Input
    lse: Input

    def rows(self, group: Group, heads: HeadBlock | None = None) -> QueryRows:
        """Return what is known of some queries; the products of output and gradient are made here."""
        lead = None if heads is None else heads.of_queries
        q, out, dout, lse = (
            x.read(lead, group.start, group.stop) for x in (self.inputs.q, self.out, self.dout, self.lse)
        )
        xp = namespace_of(dout=dout)
        dtype = dtype_of(xp, self.problem.accumulator_dtype)
        return QueryRows(q, dout, lse[..., 0], delta_of(dout, out, dtype))

    def keys(self, group: Group, heads: HeadBlock | None = None) -> KeyChunk:
        """Return some keys and values."""
        return self.inputs.keys(group, heads)
