"""Whole numbers that may differ between batch entries: one for all, or nested tuples that broadcast to the batch."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from cqs.errors import OptionError, ShapeError
from cqs.masks.mask import Mask

__all__ = ["Aligned", "Entries", "check_broadcast", "entries", "entry", "most", "shape_of"]

Entries: TypeAlias = int | Sequence[Any]  # given as nested sequences, kept as tuples, as deep as there are axes


def entries(name: str, values: object, checked: Callable[[str, object], int]) -> Entries:
    """Return a number, a nested sequence or an integer array as what it is made of, each number checked.

    >>> entries("offset", [[1, 2], [3, 4]], lambda name, value: value)
    ((1, 2), (3, 4))
    """
    if hasattr(values, "tolist"):  # an array of most libraries
        try:
            values = values.tolist()
        except TypeError:  # of JAX, inside a function that it traces
            rule, remedy = "be numbers that are known", "give them as NumPy's, or a traced array of bool as the mask"
            raise OptionError.of(name, rule, type(values).__name__, remedy) from None
    if not isinstance(values, Iterable) or isinstance(values, str) or getattr(values, "ndim", 1) == 0:
        return checked(name, values)
    parts = tuple(entries(f"{name}[{i}]", value, checked) for i, value in enumerate(values))
    if len(shapes := sorted({shape_of(part) for part in parts})) > 1:
        remedy = "give one number for each batch entry"
        raise ShapeError.of(name, "have rows of one length", f"rows of shape {shapes[0]} and {shapes[-1]}", remedy)
    return parts


def shape_of(values: Entries) -> tuple[int, ...]:
    """Return the axes of nested tuples; a number has none.

    >>> shape_of(((1, 2, 3), (4, 5, 6)))
    (2, 3)
    """
    return () if isinstance(values, int) else (len(values), *(shape_of(values[0]) if values else ()))


def entry(values: Entries, index: tuple[int, ...]) -> int:
    """Return the number of one batch entry; the last axes of the index count, and axes of length 1 stand for all.

    >>> entry(((1, 2),), (5, 3, 1))
    2
    """
    for i in index[len(index) - len(shape_of(values)) :]:
        assert not isinstance(values, int)
        values = values[i if len(values) > 1 else 0]
    assert isinstance(values, int)
    return values


def most(values: Entries) -> int:
    """Return the largest of the numbers; 0 if there are none.

    >>> most(((1, 2), (5, 3))), most(7), most(())
    (5, 7, 0)
    """
    return values if isinstance(values, int) else max(map(most, values), default=0)


def check_broadcast(name: str, values: Entries, batch: tuple[int, ...]) -> None:
    """Refuse numbers that do not broadcast to the batch dimensions, with a `ShapeError`."""
    shape = shape_of(values)
    if len(shape) > len(batch) or any(n not in (1, m) for n, m in zip(shape[::-1], batch[::-1], strict=False)):
        rule = f"broadcast to the batch dimensions, *B = {batch}"
        raise ShapeError.of(name, rule, f"shape {shape}", "give one number for all, or one for each batch entry")


class Aligned(Mask):
    """What masks have in common whose `offset`, from a query to its own key, may differ between batch entries."""

    offset: Entries

    @property
    def lead(self) -> tuple[int, ...]:
        """None, or the batch entries that have offsets of their own."""
        return () if isinstance(self.offset, int) else (*shape_of(self.offset), 1)

    @property
    def is_shared(self) -> bool:
        """Whether there is one offset."""
        return isinstance(self.offset, int)

    @property
    def own(self) -> int:
        """The one offset."""
        assert isinstance(self.offset, int), "ask the mask `at` a batch entry"
        return self.offset

    def at(self, index: tuple[int, ...]) -> Mask:
        """Return the mask of one batch entry."""
        if isinstance(self.offset, int):
            return self
        own: Mask = replace(self, offset=entry(self.offset, index[:-1]))  # type: ignore[type-var]  # both are dataclasses
        return own

    def bind(self, batch: tuple[int, ...], n_heads: int, n_queries: int, n_keys: int) -> Mask:
        """Refuse offsets that do not broadcast to the batch dimensions."""
        check_broadcast("offset", self.offset, batch)
        return self
