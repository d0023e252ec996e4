"""What queries, keys and values are read from: one `Source` made of three inputs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cqs.backend import namespace_of
from cqs.errors import DTypeError
from cqs.kernels import KeyChunk
from cqs.problem import DTYPES
from cqs.schedule import Group, HeadBlock
from cqs.sources.arrays import ArrayInput
from cqs.types import Array, DType

__all__ = ["ArraySource", "Input", "InputSource", "ShapeInput", "Source"]


@runtime_checkable
class Input(Protocol):
    """An array of shape `(*B, heads, tokens, width)`, of which parts can be read, from any thread.

    Give one to `cqs.attention` to read from what it does not know. To run on other processes it must be picklable.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape: `(*B, H, T, D)` for queries, `(*B, G, S, D)` for keys, `(*B, G, S, E)` for values."""

    @property
    def dtype(self) -> DType:
        """Its type: float16, bfloat16, float32 or float64, in native byte order."""

    @property
    def is_staged(self) -> bool:
        """Whether reading copies into memory, which is counted, and done ahead; if not, it gives a view."""

    @property
    def read_bytes(self) -> int:
        """The most bytes that one `read` holds beyond what it returns, such as a chunk that is decompressed."""

    def read(self, lead: tuple[int | slice, ...] | None, start: int, stop: int) -> Array:
        """Return tokens of some heads.

        Parameters
        ----------
        lead : tuple of int or slice, or None
            Index of the heads in the leading axes, `(*B, heads)`; None for all of them.
        start, stop : int
            The tokens `start` to `stop - 1`.

        Returns
        -------
        array, `(*, stop - start, width)`
            Where `*` is what `lead` leaves of the leading axes. It is not changed, and not kept.

        Raises
        ------
        SourceError
            If it cannot be read, or is not what it was when the call began.
        """

    def close(self) -> None:
        """Let go of files; nothing can be read any more. Called once, however the call ends."""


@dataclass(frozen=True, slots=True)
class ShapeInput:
    """The shape and type of an array that is not there, for planning.

    Parameters
    ----------
    shape : tuple of int
        Its shape.
    dtype : str
        Its type.
    is_staged : bool
        Whether it would be on disk.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    is_staged: bool = False
    read_bytes: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            remedy = "by name, as in `dtype='float16'`"
            raise DTypeError.of("dtype", f"be one of {', '.join(DTYPES)}", repr(self.dtype), remedy)

    def read(self, lead: tuple[int | slice, ...] | None, start: int, stop: int) -> Array:
        """Refuse: there is nothing to read."""
        raise TypeError("a shape has no data")

    def close(self) -> None:
        """Do nothing."""


class Source(Protocol):
    """Where a worker reads the groups of tokens that its task names."""

    def queries(self, group: Group, heads: HeadBlock | None = None) -> Array:
        """Return the queries of a group, `(*B, H, t, D)`, or those of a block of heads, `(h, t, D)`."""

    def keys(self, group: Group, heads: HeadBlock | None = None) -> KeyChunk:
        """Return the keys and values of a group, `(*B, G, s, D)` and `(*B, G, s, E)`, or those of a block of heads."""


@dataclass(frozen=True, slots=True, eq=False)
class InputSource:
    """Three inputs: queries, keys, values."""

    q: Input
    k: Input
    v: Input

    def queries(self, group: Group, heads: HeadBlock | None = None) -> Array:
        """Return the group's queries."""
        return self.q.read(None if heads is None else heads.of_queries, group.start, group.stop)

    def keys(self, group: Group, heads: HeadBlock | None = None) -> KeyChunk:
        """Return the group's keys and values."""
        lead = None if heads is None else heads.of_keys
        return KeyChunk(self.k.read(lead, group.start, group.stop), self.v.read(lead, group.start, group.stop))

    @property
    def is_staged(self) -> bool:
        """Whether anything is copied into memory when it is read."""
        return any(x.is_staged for x in (self.q, self.k, self.v))

    @property
    def read_bytes(self) -> int:
        """What reading may hold beyond what it returns."""
        return max(x.read_bytes for x in (self.q, self.k, self.v))

    def close(self) -> None:
        """Let go of files."""
        for x in (self.q, self.k, self.v):
            x.close()


class ArraySource(InputSource):
    """Arrays in memory. Groups are views of them: nothing is copied."""

    def __init__(self, q: Array, k: Array, v: Array) -> None:
        namespace_of(q=q, k=k, v=v)  # refuses what is no array, and arrays that do not belong together
        super().__init__(ArrayInput(q), ArrayInput(k), ArrayInput(v))
