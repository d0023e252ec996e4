"""Checks of plain arguments that several layers make."""

import operator

from cqs.errors import CQSError, OptionError

__all__ = ["whole_number"]


def whole_number(name: str, value: object, least: int, remedy: str, error: type[CQSError] = OptionError) -> int:
    """Return an argument as an int, if it is a whole number of at least `least`; True and 3.0 are none.

    >>> whole_number("workers", 7, 1, "")
    7
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise error.of(name, f"be a whole number of at least {least}", repr(value), remedy)
    return number
