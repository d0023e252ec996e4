"""The errors this library raises, all of them a `CQSError`.

Every message says four things: which argument, what rule it broke, the value it had, and the way out.
"""

import inspect
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Self

__all__ = [
    "BackendError",
    "BudgetError",
    "CQSError",
    "CertificateError",
    "DTypeError",
    "OptionError",
    "QuorumError",
    "ShapeError",
    "SinkError",
    "SourceError",
    "TileError",
    "refuse_unknown",
]


_MOST_LETTERS = 300  # of a value in a message; of more the middle is left out


class CQSError(Exception):
    """Base of every error that cqs raises on purpose."""

    @classmethod
    def of(cls, argument: str, rule: str, got: object, remedy: str) -> Self:
        """Compose the message: argument, rule, value, remedy.

        >>> str(CQSError.of("workers", "be at least 1", 0, "leave it out to let cqs choose"))
        '`workers` must be at least 1, got 0; leave it out to let cqs choose'
        """
        value = str(got)
        if len(value) > _MOST_LETTERS:
            value = f"{value[: _MOST_LETTERS // 2]} ... {value[-_MOST_LETTERS // 2 :]}"
        return cls(f"`{argument}` must {rule}, got {value}; {remedy}")


class ShapeError(CQSError, ValueError):
    """An array has the wrong number of axes, or axes that do not fit the others."""


class DTypeError(CQSError, TypeError):
    """An array has a data type that attention is not defined for, or that differs from the others'."""


class OptionError(CQSError, ValueError):
    """An option has a value, or a name, that does not exist or does not fit the others."""


class QuorumError(CQSError, ValueError):
    """A set of residues is not a difference cover, or no cover is known for the modulus."""


class CertificateError(CQSError, ValueError):
    """A step of a proof does not hold."""


class BackendError(CQSError, RuntimeError):
    """Arrays of different libraries or devices, or a library that is missing."""


class BudgetError(CQSError, ValueError):
    """No way to run the problem holds as little memory as was allowed."""


class SourceError(CQSError, OSError):
    """What queries, keys or values are read from is damaged, or changed while it was read."""


class SinkError(CQSError, OSError):
    """The output could not be written; nothing that looks finished is left."""


class TileError(CQSError, RuntimeError):
    """A tile of the score matrix reached the Tiler twice, or never, or belongs to another plan."""


# What other libraries call the same thing, or what has no meaning here
_ELSEWHERE = {
    "attn_mask": "it is called `mask` here",
    "causal": "it is called `is_causal` here",
    "dropout": "leave it out, as attention here is exact",
    "dropout_p": "leave it out, as attention here is exact",
    "enable_gqa": "leave it out, as grouped heads follow from the shapes",
    "num_workers": "it is called `workers` here",
    "sm_scale": "it is called `scale` here",
    "softmax_scale": "it is called `scale` here",
}


def refuse_unknown(function: Callable[..., Any], unknown: Mapping[str, object]) -> None:
    """Refuse options that a function does not have, and name the one that was probably meant."""
    import difflib  # not needed to import cqs

    for name in unknown:
        known = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        value = unknown[name]
        near = difflib.get_close_matches(name, known, n=1)
        meant = _ELSEWHERE.get(name) or (f"is `{near[0]}` meant?" if near else "")
        if name == "attn_mask" and "float" in str(getattr(value, "dtype", "")):
            meant = "numbers that are added to scores are called `bias` here"
        remedy = f"{meant}{' ' if meant.endswith('?') else '. '}" if meant else ""
        rule, got = f"be an option of `{function.__name__}`", reprlib.repr(value)
        raise OptionError.of(name, rule, got, f"{remedy}Options are {', '.join(known)}")
