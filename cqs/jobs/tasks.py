"""Which tasks a call of `cqs.work` is to compute."""

from collections.abc import Iterable, Sequence

from cqs.checks import whole_number
from cqs.errors import OptionError

__all__ = ["chosen_tasks"]


def chosen_tasks(tasks: slice | Iterable[int] | None, n_tasks: int) -> Sequence[int]:
    """Return the tasks that a `tasks=` argument means, in increasing order, each once.

    Raises
    ------
    OptionError
        If it is something else, or there is no such task.

    >>> list(chosen_tasks(slice(1, None, 3), 7)), chosen_tasks([5, 0, 5], 7)
    ([1, 4], [0, 5])
    """
    everything = range(n_tasks)
    if tasks is None:
        return everything
    remedy = "tasks count from 0, and every n-th from the i-th is i::n"
    if isinstance(tasks, slice):
        try:
            return sorted(everything[tasks])
        except (TypeError, ValueError) as error:
            raise OptionError.of("tasks", "be a slice of whole numbers", f"{tasks}, {error}", remedy) from None
    if not isinstance(tasks, Iterable) or isinstance(tasks, str | bytes) or getattr(tasks, "ndim", 1) == 0:
        raise OptionError.of("tasks", "be a slice, or task numbers", repr(tasks), remedy)
    chosen = sorted({whole_number("tasks", i, 0, remedy) for i in tasks})
    if chosen and chosen[-1] >= n_tasks:
        raise OptionError.of("tasks", f"be among 0..{n_tasks - 1}", chosen[-1], remedy)
    return chosen
