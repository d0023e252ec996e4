"""What a checker answers, and the decorator that makes one."""

import functools
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from checks.forms import Form, WrongFormError

__all__ = ["Verdict", "exercise"]


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether an answer is right, and what there is to learn from it."""

    is_right: bool
    text: str

    def __repr__(self) -> str:
        return textwrap.fill(self.text, width=120, break_long_words=False)


def exercise(hint: str, right: str, form: Form) -> Callable[[Callable[..., str | None]], Callable[..., Verdict]]:
    """Make a checker of a function that says what is wrong with an answer, or None if nothing is.

    Parameters
    ----------
    hint : str
        Shown while the answer is still `...`.
    right : str
        Shown for a right answer: why it is right, or what it leads to.
    form : Form
        What kind of answer is expected; the function gets what it reads, and no answer of another form.
    """

    def decorate(fault_of: Callable[..., str | None]) -> Callable[..., Verdict]:
        @functools.wraps(fault_of)
        def check(*answer: Any) -> Verdict:
            if any(part is ... for part in answer):
                text = f"Not answered yet. Put your answer in place of the three dots. Hint: {hint}"
                return Verdict(False, text)
            try:
                fault = fault_of(*map(form.read, answer))
            except WrongFormError as wrong:
                fault = f"The exercise wants {form.wants}, {wrong}."
            except Exception as error:  # whatever a reader may write
                reason = str(error).removesuffix(".")
                fault = f"The exercise wants {form.wants}. Yours raised {type(error).__name__}: {reason}."
            return Verdict(True, f"Right. {right}") if fault is None else Verdict(False, f"Not yet. {fault}")

        return check

    return decorate
