"""Certificates: all that is needed to believe a difference cover, and a way to check it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Self

from cqs.errors import CertificateError
from cqs.quorum.construction import KINDS, Construction
from cqs.quorum.hall import hall_steps
from cqs.quorum.proof import Step, check_all

__all__ = ["Certificate"]

_FORMAT = "cqs.certificate/1"


@dataclass(frozen=True, slots=True)
class Certificate:
    """The claim that a base is a difference cover of Z_W, and the construction that it comes from.

    Parameters
    ----------
    modulus : int
        W.
    base : tuple of int
        The elements, in increasing order.
    construction : Construction
        What they follow from, with its parameters.

    Notes
    -----
    Every certificate ends with the Hall identity, which proves the cover by itself; the steps before say why there is
    such a cover. All are checked by SymPy or by plain integers, from the numbers in the certificate alone.

    Examples
    --------
    >>> from cqs.quorum import singer
    >>> for step in singer(2).certificate.steps():
    ...     print("*", step)
    * p = 2 is prime; q = p^1 = 2
    * f = x^3 + x + 1 is monic of degree 3e = 3 and irreducible over GF(2), so GF(2)[x]/f is a field of 2^3 elements
    * x has order 2^3 - 1 in GF(2)[x]/f: it generates all non-zero elements
    * Tr(x^i) = x^i + x^(iq) + x^(iq^2) is 0 for each i of the 3 elements
    * they are all q + 1 = 3 points of the line Tr = 0 in the plane of W = 7 points
    * two lines meet in one point, so every non-zero residue is a difference in exactly one way (Singer)
    * the base is {1, 2, 4}, the 3 elements of that
    * theta(x) theta(1/x) = 2 + (1 + x + ... + x^6) modulo x^7 - 1: a perfect cover of Z_7
    """

    modulus: int
    base: tuple[int, ...]
    construction: Construction

    def steps(self) -> tuple[Step, ...]:
        """Return the steps of the proof."""
        return tuple(self._steps())

    def verify(self) -> None:
        """Check every step; W = 10^5 takes about a second.

        Raises
        ------
        CertificateError
            Naming the first step that does not hold.
        """
        try:
            check_all(self._steps())
        except (ArithmeticError, IndexError, TypeError, ValueError) as error:
            if isinstance(error, CertificateError):
                raise
            raise CertificateError(f"the proof cannot be followed: {type(error).__name__}: {error}") from error

    def _steps(self) -> Iterator[Step]:
        yield from self.construction.steps()
        yield Step(
            f"the base is {{{_short(self.base)}}}, the {len(self.base)} elements of that",
            rf"D = \{{{_short(self.base)}\}}",
            lambda: self.construction.modulus == self.modulus and self.construction.elements() == self.base,
        )
        yield from hall_steps(self.modulus, self.base)

    def latex(self) -> str:
        """Return the proof as a LaTeX `enumerate`."""
        items = [rf"  \item {_latex_text(s.claim)}" + (f": ${s.latex}$" if s.latex else "") for s in self._steps()]
        return "\n".join([r"\begin{enumerate}", *items, r"\end{enumerate}"])

    def _repr_html_(self) -> str:
        from html import escape

        items = "".join(f"<li>{escape(s.claim)}{f'<br>${s.latex}$' if s.latex else ''}</li>" for s in self._steps())
        return f"<b>{len(self.base)} elements cover Z<sub>{self.modulus}</sub></b><ol>{items}</ol>"

    def to_json(self) -> str:
        """Write the certificate as JSON."""
        values = {"format": _FORMAT, "modulus": self.modulus, "base": self.base}
        return json.dumps(values | {"construction": _to_dict(self.construction)})

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote, without checking the proof.

        Raises
        ------
        CertificateError
            If it is no certificate.
        """
        try:
            values = json.loads(text)
            if values["format"] != _FORMAT:
                raise ValueError(f"the format {values['format']!r}")
            return cls(_read(values["modulus"]), _read(values["base"]), _read(values["construction"]))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            rule, got = f"be a certificate in the format {_FORMAT}", f"{type(error).__name__}: {error}"
            raise CertificateError.of("text", rule, got, "was it written by `to_json` of another cqs?") from None


def _to_dict(construction: Construction) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": construction.kind}
    for field in fields(construction):  # type: ignore[arg-type]  # they are all dataclasses
        value = getattr(construction, field.name)
        values[field.name] = value if isinstance(value, int | tuple) else _to_dict(value)
    return values


def _read(value: Any) -> Any:
    """Read an integer, a tuple of integers, or a construction."""
    if isinstance(value, dict):
        cls = KINDS[value["kind"]]
        return cls(**{name: _read(part) for name, part in value.items() if name != "kind"})
    if isinstance(value, list):
        value = tuple(value)
    if not all(type(number) is int for number in (value if isinstance(value, tuple) else (value,))):
        raise TypeError(f"{value!r} is not made of whole numbers")
    return value


def _short(base: tuple[int, ...]) -> str:
    shown = base if len(base) <= 12 else (*base[:5], "...", *base[-2:])
    return ", ".join(map(str, shown))


def _latex_text(text: str) -> str:
    """Write plain text so that LaTeX takes every sign as itself."""
    special = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"} | {c: "\\" + c for c in "&%$#_{}"}
    return "".join(special.get(c, c) for c in text)
