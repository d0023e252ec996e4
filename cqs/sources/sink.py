"""What the result is written to, row by row, each row once."""

from typing import Protocol, runtime_checkable

from cqs.types import Array, DType

__all__ = ["Sink"]


@runtime_checkable
class Sink(Protocol):
    """A place for an array `(*B, H, T, E)`, which is filled by rows and looks finished only when it is."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> DType:
        """Its type."""

    def write(self, lead: tuple[int | slice, ...] | None, start: int, stop: int, rows: Array) -> None:
        """Write rows `start` to `stop - 1` of the heads that `lead` indexes in the leading axes, or of all."""

    def finish(self) -> Array:
        """Mark the array as complete, and return it or a view of it."""

    def abandon(self) -> None:
        """Leave nothing that looks finished."""
