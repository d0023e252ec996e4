"""Checks of plain arguments that several layers make."""

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from cqs.errors import CQSError, OptionError

__all__ = ["check_listener", "described", "of_arrays", "takes", "true_or_false", "whole_number"]


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


def true_or_false(name: str, value: object, remedy: str) -> bool:
    """Return an argument as a bool, if it is one; 1 and "yes" are none.

    >>> true_or_false("is_causal", True, "")
    True
    """
    if not isinstance(value, bool | np.bool_):
        raise OptionError.of(name, "be True or False", repr(value), remedy)
    return bool(value)


def check_listener(name: str, value: object) -> None:
    """Refuse what is to be told of events, if it is neither None nor a function."""
    if value is not None and not callable(value):
        remedy = f"as in `{name}=events.append`, or leave it out"
        raise OptionError.of(name, "be a function of one `cqs.events.Event`", repr(value), remedy)


def described(function: Callable[..., Any]) -> str:
    """Return a function's name and parameters, for a message.

    >>> described(lambda q_idx, k_idx: True)
    '<lambda>(q_idx, k_idx)'
    """
    return f"{getattr(function, '__name__', repr(function))}{inspect.signature(function)}"


@contextmanager
def of_arrays(name: str, rule: str) -> Iterator[None]:
    """Say what a caller's function is given, if it fails as one does that takes its arguments for numbers.

    Raises
    ------
    OptionError
        In place of a `TypeError` or `ValueError`, or of a `RuntimeError` about the truth of an array, as of torch.
    """
    try:
        yield
    except CQSError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "oolean value" not in str(error):
            raise  # memory that is used up, say, which is answered elsewhere
        remedy = "its arguments are arrays: use &, |, ~ and `where`, in place of `and`, `or`, `not` and `if`"
        raise OptionError.of(name, rule, f"{type(error).__name__}: {error}", remedy) from error


def takes(function: Callable[..., Any], n: int) -> bool:
    """Whether a function can be called with n positional arguments; True for one that does not say.

    >>> takes(lambda a, b: a, 2), takes(lambda a, b: a, 5), takes(max, 5)
    (True, False, True)
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # as of many functions that are written in C
        return True
    try:
        signature.bind(*range(n))
    except TypeError:
        return False
    return True
