"""Which keys a query sees: rules that answer for whole rectangles, combined by `&`, `|` and `~`."""

from typing import Any

from cqs.errors import OptionError
from cqs.masks.algebra import And, Not, Or
from cqs.masks.bands import Causal, NoMask, PrefixLM, Sinks, SlidingWindow
from cqs.masks.documents import Documents
from cqs.masks.mask import Coverage, Mask
from cqs.masks.padding import KeyLengths
from cqs.masks.per_head import Dense, Predicate

__all__ = [
    "And",
    "Causal",
    "Coverage",
    "Dense",
    "Documents",
    "KeyLengths",
    "Mask",
    "NoMask",
    "Not",
    "Or",
    "Predicate",
    "PrefixLM",
    "Sinks",
    "SlidingWindow",
    "mask_from_dict",
]

_KINDS: dict[str, type[Mask]] = {
    cls.__name__: cls for cls in (NoMask, Causal, SlidingWindow, PrefixLM, Sinks, Documents, KeyLengths, And, Or, Not)
}


def mask_from_dict(values: dict[str, Any]) -> Mask:
    """Read what `Mask.to_dict` wrote."""
    fields = dict(values)
    kind = fields.pop("kind", None)
    if kind not in _KINDS:
        raise OptionError.of("mask", f"be one of {', '.join(_KINDS)}", repr(kind), "was it written by a newer cqs?")
    return _KINDS[kind](**{name: mask_from_dict(v) if isinstance(v, dict) else v for name, v in fields.items()})
