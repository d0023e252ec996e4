"""`cupy.RawKernel` and `cupy.RawModule`: CUDA C++ is not compiled, but looked up among emulations in Python."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fake_cupy.array import ndarray
from fake_cupy.machine import KERNELS, CUDARuntimeError, now
from fake_cupy.memory import MemoryPointer

_SIZES = {"float": 4, "double": 8, "int": 4, "unsigned": 4, "long long": 8, "int64_t": 8, "uint64_t": 8, "size_t": 8}
_SIZES |= {"int32_t": 4, "uint32_t": 4, "bool": 1, "unsigned int": 4, "unsigned long long": 8, "__half": 2, "half": 2}


def kernel(name: str, writes: Sequence[int] | None = None, launch: bool = False) -> Callable[[Any], Any]:
    """Register the emulation of a CUDA kernel.

    It gets the arguments of the launch, with arrays of NumPy for those of CuPy, and with `launch`, as keywords, `grid`,
    `block` and `shared_mem`. `writes` are the positions of the arrays that it writes to; all of them if left out, which
    forbids two streams to read one array. An argument that is an address is turned into an array by `view_at`.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        function.writes, function.wants_launch = writes, launch  # type: ignore[attr-defined]
        KERNELS[name] = function
        return function

    return register


def view_at(
    address: Any,
    shape: tuple[int, ...],
    dtype: Any,
    strides: tuple[int, ...] | None = None,
    *,
    writes: bool = False,
    uses: list[Any] | None = None,
) -> np.ndarray:
    """View device memory by address, inside one live block of the current device.

    Called by the emulation of a kernel, it tells the machine that the kernel reads or writes these bytes.
    """
    machine, address, dtype = now(), int(address), np.dtype(dtype)
    if 0 in shape:
        return np.empty(shape, dtype)
    block = machine.find_on_device(address)
    machine.check_device(block.device)
    try:
        view = np.ndarray(shape, dtype, block.buffer, address - block.base, strides)
    except (TypeError, ValueError) as error:
        detail = f"{shape} of {dtype} with strides {strides} at {address:#x} reach beyond their block"
        raise CUDARuntimeError(700, detail) from error
    if uses is not None:
        uses.append((block, view, writes))
    else:
        lane, name = getattr(machine._local, "running", (machine.current_lane(), "a view by address"))
        machine.note(lane, name, [(block, view, writes)])
    return view


class RawKernel:
    """A kernel by its name, with the checks of a launch that need no GPU."""

    def __init__(
        self, code: str, name: str, options: tuple[str, ...] = (), backend: str = "nvrtc", **kwargs: Any
    ) -> None:
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.max_dynamic_shared_size_bytes = 48 << 10
        self.max_threads_per_block, self.num_regs, self.local_size_bytes = 1024, 64, 0
        self._parameters = _parameters(code, name)

    def compile(self, log_stream: Any = None) -> None:
        pass

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0, stream: Any = None
    ) -> None:
        machine = now()
        lane = machine.current_lane() if stream is None else stream._lane
        if lane.device != machine.device:
            raise CUDARuntimeError(400, f"{lane} while device {machine.device} is current")
        self._check(grid, block, args, shared_mem)
        emulation = machine.kernels.get(self.name)
        if emulation is None:
            raise NotImplementedError(f"no emulation of kernel {self.name!r}: register one with @fake_cupy.kernel")
        writes = range(len(args)) if emulation.writes is None else emulation.writes
        arrays = [(i, a) for i, a in enumerate(args) if isinstance(a, ndarray) and a.size]
        for _, a in arrays:
            machine.check_device(a.data.device_id)
        uses = [(machine.find_on_device(a.data.ptr), a._view, i in writes) for i, a in arrays]
        plain = [a._view if isinstance(a, ndarray) else a.ptr if isinstance(a, MemoryPointer) else a for a in args]
        shape = {"grid": _three(grid), "block": _three(block), "shared_mem": shared_mem}

        def work() -> None:
            machine._local.running = (lane, self.name)
            try:
                with np.errstate(all="ignore"):
                    emulation(*plain, **(shape if emulation.wants_launch else {}))
            finally:
                del machine._local.running

        machine.n_launched[self.name] = machine.n_launched.get(self.name, 0) + 1
        machine.submit(lane, self.name, uses, work)

    def _check(self, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
        if not (isinstance(grid, tuple) and isinstance(block, tuple)):
            raise TypeError("grid and block must be tuples")
        if not all(isinstance(n, int | np.integer) for n in (*grid, *block)):
            raise TypeError("grid and block must hold integers")
        (_, y, z), threads = _three(grid), int(np.prod(_three(block)))
        if threads > self.max_threads_per_block or max(y, z) > 65535 or _three(grid)[0] >= 1 << 31:
            raise CUDARuntimeError(1, f"grid {grid}, block {block}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            detail = f"{shared_mem} bytes of shared memory; raise max_dynamic_shared_size_bytes first"
            raise CUDARuntimeError(1, detail)
        if self._parameters is not None and len(args) != len(self._parameters):
            raise TypeError(f"{self.name} has {len(self._parameters)} parameters, got {len(args)} arguments")
        for i, arg in enumerate(args):
            self._check_argument(arg, self._parameters[i] if self._parameters else "")

    def _check_argument(self, arg: Any, parameter: str) -> None:
        if isinstance(arg, np.ndarray) and arg.size != 1:
            raise TypeError(f"You are trying to pass a numpy.ndarray of shape {arg.shape} as a kernel parameter.")
        if isinstance(arg, ndarray | MemoryPointer | np.ndarray) or arg is None:
            return
        if not isinstance(arg, bool | int | float | complex | np.generic):
            raise TypeError(f"Unsupported type {type(arg)}")
        size = _SIZES.get(parameter)
        given = np.asarray(arg).dtype  # Python's int and float go as 8 bytes
        is_wrong = size is not None and (given.itemsize < size or (parameter == "float" and given != np.float32))
        if is_wrong or (parameter == "double" and given != np.float64):
            raise TypeError(f"{self.name}: {arg!r} is passed as {given}, but the parameter is {parameter!r}")


class RawModule:
    """Source code with several kernels."""

    def __init__(
        self,
        *,
        code: str | None = None,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: Any = None,
        **kwargs: Any,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if not isinstance(options, tuple):
            raise TypeError(f"Argument 'options' has incorrect type (expected tuple, got {type(options).__name__})")
        self.code, self.options, self.backend = code or "", options, backend
        self.name_expressions = None if name_expressions is None else tuple(name_expressions)

    def get_function(self, name: str) -> RawKernel:
        if self.code and re.search(rf"\b{re.escape(name.split('<')[0])}\b", self.code) is None:
            raise RuntimeError("CUDA_ERROR_NOT_FOUND: named symbol not found")
        return RawKernel(self.code, name, self.options, self.backend)

    def compile(self, log_stream: Any = None) -> None:
        pass


def _three(sizes: tuple[int, ...]) -> tuple[int, int, int]:
    return tuple(max(1, n) for n in (*sizes, 1, 1)[:3])  # type: ignore[return-value]


def _parameters(code: str, name: str) -> list[str] | None:
    """Return the types of a kernel's parameters as far as the source tells; None for templates and macros."""
    code = re.sub(r"//[^\n]*|/\*.*?\*/", " ", code, flags=re.DOTALL)
    found = re.search(rf"__global__[^;{{]*?\b{re.escape(name)}\s*\(([^)]*)\)", code)
    if found is None or "#" in found[1]:
        return None
    words = [re.sub(r"\bconst\b|\b__restrict__\b", " ", part) for part in found[1].split(",") if part.strip()]
    return ["*" if "*" in part else " ".join(part.split()[:-1]) for part in words]
