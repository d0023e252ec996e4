"""The table of kernels, and what each refuses. Read by `kernel="auto"` and by the tests."""

from collections.abc import Callable
from dataclasses import dataclass

from cqs.backend import is_numpy
from cqs.errors import OptionError
from cqs.kernels import blockwise, numpy_threads, reference
from cqs.kernels.contract import Attend, Request

__all__ = ["KERNELS", "Kernel", "choose_kernel"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the table.

    Parameters
    ----------
    name : str
        As in `kernel=`.
    attend : function
        The kernel.
    refusal : function
        Of a `Request`, why the kernel cannot do it, in a few words; None if it can.
    """

    name: str
    attend: Attend
    refusal: Callable[[Request], str | None]


def _takes_all(request: Request) -> None:
    return None


def _takes_numpy(request: Request) -> str | None:
    return None if is_numpy(request.xp) else "takes NumPy arrays"


# in order of preference for kernel="auto"
_TABLE = (
    Kernel("numpy", numpy_threads.attend, _takes_numpy),  # threads, BLAS
    Kernel("blockwise", blockwise.attend, _takes_all),  # never a T x S array
    Kernel("reference", reference.attend, _takes_all),  # the formula, for reading
)
KERNELS = {kernel.name: kernel for kernel in _TABLE}


def choose_kernel(name: str, request: Request) -> tuple[Kernel, tuple[tuple[str, str], ...]]:
    """Return the kernel of that name, or for "auto" the first of the table that can do what is asked.

    Returns
    -------
    Kernel
        The one to take.
    tuple of (str, str)
        Those that come before it in the table, and why they cannot; nothing for a kernel that was asked for by name.

    Raises
    ------
    OptionError
        If there is no such kernel, or it cannot do what is asked.
    """
    if name == "auto":
        passed_over: list[tuple[str, str]] = []
        for kernel in _TABLE:
            refusal = kernel.refusal(request)
            if refusal is None:
                return kernel, tuple(passed_over)
            passed_over.append((kernel.name, refusal))
    if not isinstance(name, str) or name not in KERNELS:
        raise OptionError.of(
            "kernel", f"be auto or one of {', '.join(KERNELS)}", repr(name), "'auto' picks the fastest"
        )
    refusal = KERNELS[name].refusal(request)
    if refusal is not None:
        rule = f"be able to do what is asked of arrays of {request.xp.__name__.removeprefix('array_api_compat.')}"
        raise OptionError.of("kernel", rule, f"{name!r}, which {refusal}", "use kernel='auto'")
    return KERNELS[name], ()
