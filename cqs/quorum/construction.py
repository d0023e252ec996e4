"""What a construction is: parameters, the elements that follow from them, and the steps that prove it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from cqs.quorum.proof import Step

__all__ = ["KINDS", "Construction", "Listed", "registered"]

KINDS: dict[str, type["Construction"]] = {}  # every construction by its `kind`
C = TypeVar("C", bound="type[Construction]")


def registered(cls: C) -> C:
    """Enter a construction in `KINDS`, for certificates to be read by."""
    KINDS[cls.kind] = cls
    return cls


class Construction(Protocol):
    """How a difference cover is made: a frozen value of integers, tuples of integers, and other constructions."""

    kind: ClassVar[str]  # its name in JSON

    @property
    def modulus(self) -> int:
        """W."""

    def elements(self) -> tuple[int, ...]:
        """Return the elements in increasing order, computed from the parameters."""

    def steps(self) -> Iterator[Step]:
        """Yield the steps that show it, each to be checked with SymPy or plain integers before the next is made."""


@registered
@dataclass(frozen=True, slots=True)
class Listed:
    """A base that is stated as it is, found by search or by someone: its differences speak for themselves.

    Parameters
    ----------
    modulus : int
        W.
    base : tuple of int
        The elements, in increasing order.
    """

    kind: ClassVar[str] = "listed"

    modulus: int
    base: tuple[int, ...]

    def elements(self) -> tuple[int, ...]:
        """Return the elements."""
        return self.base

    def steps(self) -> Iterator[Step]:
        """Yield no step: the identity that every certificate ends with is all there is."""
        return iter(())

    def __str__(self) -> str:
        return f"listed, {len(self.base)} elements"
