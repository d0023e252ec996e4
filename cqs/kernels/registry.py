"""The table of kernels: what each is for, and which arrays it takes. Read by `kernel="auto"` and by the tests."""

from collections.abc import Callable
from dataclasses import dataclass

from cqs.backend import is_numpy
from cqs.errors import OptionError
from cqs.kernels import blockwise, numpy_threads, reference
from cqs.kernels.contract import Attend
from cqs.types import Namespace

__all__ = ["KERNELS", "Kernel", "choose_kernel"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One row of the table."""

    name: str
    attend: Attend
    takes: Callable[[Namespace], bool]
    arrays: str


def _any(xp: Namespace) -> bool:
    return True


# in order of preference for kernel="auto"
_TABLE = (
    Kernel("numpy", numpy_threads.attend, is_numpy, "NumPy"),  # threads, BLAS
    Kernel("blockwise", blockwise.attend, _any, "any array-API library"),  # never a T x S array
    Kernel("reference", reference.attend, _any, "any array-API library"),  # the formula, for reading
)
KERNELS = {kernel.name: kernel for kernel in _TABLE}


def choose_kernel(name: str, xp: Namespace) -> Kernel:
    """Return the kernel of that name, or for "auto" the first of the table that takes arrays of the namespace.

    Raises
    ------
    OptionError
        If there is no such kernel, or it does not take these arrays.
    """
    if name == "auto":
        return next(kernel for kernel in _TABLE if kernel.takes(xp))
    if not isinstance(name, str) or name not in KERNELS:
        raise OptionError.of(
            "kernel", f"be auto or one of {', '.join(KERNELS)}", repr(name), "'auto' picks the fastest"
        )
    kernel = KERNELS[name]
    if not kernel.takes(xp):
        library = xp.__name__.removeprefix("array_api_compat.")
        rule = f"take arrays of {library}"
        raise OptionError.of("kernel", rule, f"{name!r}, which takes {kernel.arrays}", "use kernel='auto'")
    return kernel
