"""What queries, keys and values are read from: one `Source` made of three inputs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from cqs.kernels import KeyChunk
from cqs.schedule import Group, HeadBlock
from cqs.sources.arrays import ArrayInput
from cqs.types import Array, DType

__all__ = ["ArraySource", "Input", "InputSource", "ShapeInput", "Source"]


@runtime_checkable
class Input(Protocol):
    """An array of shape `(*B, heads, tokens, width)`, of which parts can be read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> DType:
        """Its type."""

    @property
    def is_staged(self) -> bool:
        """Whether reading copies into memory; if not, it gives a view."""

    @property
    def read_bytes(self) -> int:
        """What reading may hold beyond what it returns."""

    def read(self, lead: tuple[int | slice, ...] | None, start: int, stop: int) -> Array:
        """Return some tokens of the heads that `lead` indexes in the leading axes, or of all: `(*, tokens, width)`."""

    def close(self) -> None:
        """Let go of files; nothing can be read any more."""


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
        super().__init__(ArrayInput(q), ArrayInput(k), ArrayInput(v))
