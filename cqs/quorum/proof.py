"""Proofs that are checked as they are read: steps, each a claim in words and a computation that decides it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from cqs.errors import CertificateError

__all__ = ["Step", "check_all"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a proof.

    Parameters
    ----------
    claim : str
        What holds, in words.
    latex : str
        The same as a formula, without dollar signs; may be empty.
    check : function
        Computes whether it holds, from the numbers in the claim alone. A step without one does not hold.
    """

    claim: str
    latex: str = ""
    check: Callable[[], bool] = field(default=lambda: False, repr=False, compare=False)

    def __str__(self) -> str:
        return self.claim


def check_all(steps: Iterable[Step]) -> None:
    """Check steps in order, each made when it is reached.

    Raises
    ------
    CertificateError
        Naming the first that does not hold.
    """
    for number, step in enumerate(steps, start=1):
        if not step.check():
            raise CertificateError(f"step {number} of the proof does not hold: {step.claim}")
