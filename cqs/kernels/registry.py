"""The table of kernels, and what each refuses. Read by `kernel="auto"` and by the tests."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from cqs.backend import is_cupy, is_numpy
from cqs.errors import OptionError
from cqs.kernels import blockwise, cudnn, gemm, numba, numpy_threads, reference
from cqs.kernels.contract import Attend, Request
from cqs.partial import Merge, merge_into
from cqs.types import Namespace

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
    library : str
        Whose arrays it takes.
    takes : function
        Of a namespace, whether it takes its arrays.
    refusal : function
        Of a `Request` with such arrays, why the kernel cannot do it, in a few words; None if it can.
    merge : function
        What the Tiler merges its results by; see `cqs.partial.merge_into`.
    """

    name: str
    attend: Attend
    library: str = "any array-API library"
    takes: Callable[[Namespace], bool] = lambda xp: True
    refusal: Callable[[Request], str | None] = lambda request: None
    merge: Merge = merge_into


# what cuDNN has no mask for goes to the other kernel for GPUs
cudnn_attend = partial(cudnn.attend, other=gemm.attend)

# in order of preference for kernel="auto"
_TABLE = (
    Kernel("numba", numba.attend, "NumPy", is_numpy, numba.refusal, numba.merge_into),  # compiled, of float32
    Kernel("numpy", numpy_threads.attend, "NumPy", is_numpy),  # threads, BLAS
    Kernel("cudnn", cudnn_attend, "CuPy", is_cupy, cudnn.refusal),  # of float16 and bfloat16
    Kernel("gemm", gemm.attend, "CuPy", is_cupy, gemm.refusal),  # every mask and score
    Kernel("blockwise", blockwise.attend),  # never a T x S array
    Kernel("reference", reference.attend),  # the formula, for reading
)


class _Kernels(dict[str, Kernel]):
    """The table by name."""

    def __missing__(self, name: object) -> NoReturn:
        raise _unknown(name)


def _unknown(name: object) -> OptionError:
    rule = f"be auto or one of {', '.join(kernel.name for kernel in _TABLE)}"
    return OptionError.of("kernel", rule, repr(name), "'auto' picks the fastest")


KERNELS = _Kernels({kernel.name: kernel for kernel in _TABLE})


def choose_kernel(name: str, request: Request) -> tuple[Kernel, tuple[tuple[str, str], ...]]:
    """Return the kernel of that name, or for "auto" the first of the table that can do what is asked.

    Returns
    -------
    Kernel
        The one to take.
    tuple of (str, str)
        Those that take such arrays and come before it in the table, and why they cannot do it; none for a kernel that
        was asked for by name.

    Raises
    ------
    OptionError
        If there is no such kernel, or it cannot do what is asked.
    """
    if name == "auto":
        passed_over: list[tuple[str, str]] = []
        for kernel in (kernel for kernel in _TABLE if kernel.takes(request.xp)):
            refusal = kernel.refusal(request)
            if refusal is None:
                return kernel, tuple(passed_over)
            passed_over.append((kernel.name, refusal))
    if not isinstance(name, str) or name not in KERNELS:
        raise _unknown(name)
    kernel = KERNELS[name]
    if not kernel.takes(request.xp):
        library = request.xp.__name__.removeprefix("array_api_compat.")
        rule = f"take arrays of {library}"
        raise OptionError.of("kernel", rule, f"{name!r}, which takes {kernel.library}", "use kernel='auto'")
    refusal = kernel.refusal(request)
    if refusal is not None:
        raise OptionError.of("kernel", "be able to do what is asked", f"{name!r}: {refusal}", "use kernel='auto'")
    return kernel, ()
