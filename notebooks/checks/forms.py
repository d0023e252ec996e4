"""Forms of answers: what an exercise wants, and how an answer of that form is read."""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Form", "WrongFormError", "anything", "function", "number", "two_numbers", "whole_number", "whole_numbers"]


class WrongFormError(Exception):
    """An answer that cannot be looked at; the text goes on after "The exercise wants ..., "."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an exercise wants.

    Parameters
    ----------
    wants : str
        In words, as they follow "The exercise wants".
    read : function
        Returns the answer as the checker takes it, or raises `WrongFormError`.
    """

    wants: str
    read: Callable[[Any], Any]


def whole_number(wants: str = "a whole number", least: int | None = None) -> Form:
    """Read a whole number, which may be a float without decimals, such as a quotient."""

    def read(answer: Any) -> int:
        value = _whole(answer)
        if least is not None and value < least:
            raise WrongFormError(f"and {value} is less")
        return value

    return Form(wants if least is None else f"{wants} of at least {least}", read)


def number(wants: str = "a number") -> Form:
    """Read a number that is finite."""
    return Form(wants, _number)


def two_numbers() -> Form:
    """Read a pair of numbers."""

    def read(answer: Any) -> tuple[float, float]:
        given = _elements(answer)
        if len(given) != 2:
            raise WrongFormError(f"and these are {len(given)}")
        return _number(given[0]), _number(given[1])

    return Form("two numbers, such as (1.0, 0.5)", read)


def whole_numbers(wants: str) -> Form:
    """Read some whole numbers: a set, a tuple, a list."""
    return Form(wants, lambda answer: [_whole(part) for part in _elements(answer)])


def function(wants: str) -> Form:
    """Read a function."""

    def read(answer: Any) -> Any:
        if not callable(answer):
            raise WrongFormError(f"and {_shown(answer)}")
        return answer

    return Form(wants, read)


def anything(wants: str) -> Form:
    """Leave an answer as it is: the checker looks at it itself."""
    return Form(wants, lambda answer: answer)


def _whole(answer: Any) -> int:
    if _is_number(answer):
        try:
            return operator.index(answer)
        except TypeError:
            value = _number(answer)
            if value == math.floor(value):
                return int(value)
    raise WrongFormError(f"and {_shown(answer)}")


def _number(answer: Any) -> float:
    try:
        value = float(answer) if _is_number(answer) else math.nan
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise WrongFormError(f"and {_shown(answer)}")
    return value


def _is_number(answer: Any) -> bool:
    """Whether Python takes it for a number by more than a conversion: texts and truth values are no answers."""
    return not isinstance(answer, str | bytes | bool) and type(answer).__name__ not in ("bool_", "bool")


def _elements(answer: Any) -> list[Any]:
    if isinstance(answer, str | bytes) or not isinstance(answer, Iterable):
        raise WrongFormError(f"and {_shown(answer)}")
    return list(answer)


def _shown(answer: Any) -> str:
    kind = type(answer).__name__
    text = repr(answer)
    text = text if len(text) <= 40 else f"{text[:37]}..."
    return f"{text} is {'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}" if kind not in text else f"{text} is none"
