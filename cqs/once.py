"""What is computed once: properties, and a few lists."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, Self, TypeVar, overload

__all__ = ["Few", "once"]

Value = TypeVar("Value")


class once(Generic[Value]):  # noqa: N801  # a decorator
    """A property that is computed when it is first asked for, and kept in the object, which has a `__dict__`.

    Unlike `functools.cached_property` before Python 3.12, it holds no lock for all objects of a class meanwhile. A mask
    may be a user's function, and what that waits for may be another call of attention. Threads that ask at the same
    time may each compute the value, and all get the same one.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Value: ...

    def __get__(self, instance: object | None, owner: type) -> Self | Value:
        if instance is None:
            return self
        value: Value = instance.__dict__.setdefault(self._name, self._function(instance))
        return value


class Few(Generic[Value]):
    """Remembers lists, as long as they have at most so many items together, each list itself counted as one more."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._found: dict[Hashable, list[Value]] = {}

    def get(self, key: Hashable, make: Callable[[], list[Value]]) -> list[Value]:
        """Return the list that is remembered for the key, or make it."""
        found = self._found.get(key)
        if found is None:
            found = make()
            if len(found) < self._left:
                self._left -= len(found) + 1
                self._found[key] = found
        return found
