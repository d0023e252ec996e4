"""`cupy.ndarray`: an array of NumPy over memory of a device, which NumPy itself does not get to see."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fake_cupy import functions
from fake_cupy.devices import Device
from fake_cupy.machine import now
from fake_cupy.memory import Memory, MemoryPointer, UnownedMemory, alloc
from fake_cupy.streams import get_current_stream


class Flags:
    """What CuPy tells of an array: less than NumPy does, and nothing about writing."""

    def __init__(self, c_contiguous: bool, f_contiguous: bool, owndata: bool) -> None:
        self.c_contiguous, self.f_contiguous, self.owndata = c_contiguous, f_contiguous, owndata
        self.fnc, self.forc = f_contiguous and not c_contiguous, f_contiguous or c_contiguous

    def __getitem__(self, name: str) -> bool:
        names = {"C_CONTIGUOUS": self.c_contiguous, "F_CONTIGUOUS": self.f_contiguous, "OWNDATA": self.owndata}
        return names[name]


class ndarray:  # noqa: N801
    """An array on a device. `_view` is its NumPy array, `data` points to its first element and keeps its memory."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    data: MemoryPointer
    base: "ndarray | None"
    _view: np.ndarray

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: tuple[int, ...] | None = None,
        order: str = "C",
    ) -> None:
        shape, dtype = (shape,) if isinstance(shape, int | np.integer) else tuple(map(int, shape)), np.dtype(dtype)
        n_bytes = dtype.itemsize * int(np.prod(shape, dtype=object))
        self.base = None
        if n_bytes == 0:
            self.data, self._view = memptr or MemoryPointer(Memory(0), 0), np.empty(shape, dtype)
            return
        self.data = alloc(n_bytes) if memptr is None else memptr
        block = now().find_on_device(self.data.ptr)
        at = self.data.ptr - block.base
        self._view = np.ndarray(shape, dtype, block.buffer, at, strides, order=None if strides else order)

    @classmethod
    def _of(cls, view: np.ndarray, owner: "ndarray") -> "ndarray":
        """Make an array that shares memory with another."""
        array = cls.__new__(cls)
        array._view, array.base = view, owner if owner.base is None else owner.base
        offset = view.ctypes.data - owner.data.mem.ptr if view.size else 0
        array.data = MemoryPointer(owner.data.mem, offset)
        return array

    @classmethod
    def _borrowed(cls, view: np.ndarray, owner: Any) -> "ndarray":
        """Make an array of memory that another library keeps."""
        if view.size == 0:
            with Device(owner.__dlpack_device__()[1]):
                return cls(view.shape, view.dtype)
        low, high = np.lib.array_utils.byte_bounds(view)
        memory = UnownedMemory(low, high - low, owner)
        return cls(view.shape, view.dtype, MemoryPointer(memory, view.ctypes.data - low), view.strides)

    # ------------------------------------------------------------------------------------ what it is
    shape = property(lambda self: self._view.shape)
    strides = property(lambda self: self._view.strides)
    dtype = property(lambda self: self._view.dtype)
    itemsize = property(lambda self: self._view.itemsize)
    nbytes = property(lambda self: self._view.nbytes)
    size = property(lambda self: self._view.size)
    ndim = property(lambda self: self._view.ndim)
    T = property(lambda self: ndarray._of(self._view.T, self))
    mT = property(lambda self: ndarray._of(self._view.mT, self))  # noqa: N815
    real = property(lambda self: functions.view("real", lambda a: a.real, (self,), {}))
    imag = property(lambda self: functions.view("imag", lambda a: a.imag, (self,), {}))

    @property
    def flags(self) -> Flags:
        return Flags(self._view.flags.c_contiguous, self._view.flags.f_contiguous, self.base is None)

    @property
    def device(self) -> Device:
        return Device(self.data.device_id)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "descr": self.dtype.descr,
            "version": 3,
            "strides": None if self.flags.c_contiguous else self.strides,
            "data": (self.data.ptr, False),
            "stream": get_current_stream().ptr or 1,
        }

    def __len__(self) -> int:
        return len(self._view)

    def __repr__(self) -> str:
        return repr(self.get())

    def __str__(self) -> str:
        return str(self.get())

    # ------------------------------------------------------------------------------------ to and from the host
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.data.device_id

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        if dl_device is not None and tuple(dl_device) == (1, 0):
            return self.get().__dlpack__()
        raise BufferError("the fake CuPy has no memory of a device to hand to another library")

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        stream, source = stream or get_current_stream(), self
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
            if self.dtype != out.dtype:
                raise TypeError(f"{out.dtype} array cannot be obtained from {self.dtype} array")
            if self.shape != out.shape:
                raise ValueError(f"Shape mismatch. Expected shape: {self.shape}, actual shape: {out.shape}")
            if not (out.flags.c_contiguous or out.flags.f_contiguous):
                raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
            order = "C" if out.flags.c_contiguous else "F"
        elif self.size == 0:
            return np.ndarray(self.shape, self.dtype)
        with self.device:
            order = ("F" if self.flags.f_contiguous else "C") if order == "A" else order
            if not (self.flags.c_contiguous if order == "C" else self.flags.f_contiguous):
                with stream:
                    source = functions.call("copy", np.array, (self,), {"order": order})
            out = np.empty(self.shape, self.dtype, order) if out is None else out
            source.data.copy_to_host_async(out.ctypes.data, self.nbytes, stream)
            if blocking:
                stream.synchronize()
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if self.dtype != arr.dtype:
            raise TypeError(f"{arr.dtype} array cannot be set to {self.dtype} array")
        if self.shape != arr.shape:
            raise ValueError(f"Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}")
        if not self.flags.forc:
            raise RuntimeError("Cannot set to non-contiguous array")
        arr = np.ascontiguousarray(arr) if self.flags.c_contiguous else np.asfortranarray(arr)
        stream = stream or get_current_stream()
        with self.device:
            self.data.copy_from_host_async(arr.ctypes.data, self.nbytes, stream)

    def item(self) -> Any:
        return self.get().item()

    def tolist(self) -> Any:
        return self.get().tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return self.get().tobytes(order)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    # ------------------------------------------------------------------------------------ on the device
    def __getitem__(self, index: Any) -> "ndarray":
        return functions.view("getitem", _item, (self, _on_device(index)), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        target = self
        if not _holds_arrays(index):  # then only this part is touched
            target, index = ndarray._of(_item(self._view, index), self), ...
        functions.call("setitem", _set_item, (target, _on_device(index), value), {}, written=(0,))

    def __iter__(self) -> Iterator["ndarray"]:
        return (self[i] for i in range(len(self)))

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        kwargs |= {} if out is None else {"out": out[0]}
        return functions.call(ufunc.__name__, getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return functions.call(func.__name__, func, args, kwargs)

    def fill(self, value: Any) -> None:
        functions.call("fill", lambda a, v: a.fill(v), (self, value), {}, written=(0,))

    def sort(self, axis: int = -1, kind: Any = None) -> None:
        functions.call("sort", lambda a: a.sort(axis), (self,), {}, written=(0,))

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> "ndarray":
        if not copy and self.dtype == np.dtype(dtype):
            return self
        return functions.call("astype", lambda a: a.astype(dtype, order), (self,), {})

    def copy(self, order: str = "C") -> "ndarray":
        return functions.call("copy", np.array, (self,), {"order": order})

    def view(self, dtype: Any = None, array_class: Any = None) -> "ndarray":
        return ndarray._of(self._view.view(self.dtype if dtype is None else dtype), self)

    def __copy__(self) -> "ndarray":
        return self.copy()

    def __deepcopy__(self, memo: Any) -> "ndarray":
        with self.device:
            return self.copy()


def _item(array: np.ndarray, index: Any) -> np.ndarray:
    found = array[index]
    if isinstance(found, np.generic):  # CuPy has no scalars: it gives a view of no dimensions
        found = array[(*index, ...) if isinstance(index, tuple) else (index, ...)]
    return found


def _set_item(array: np.ndarray, index: Any, value: Any) -> None:
    array[index] = value


def _holds_arrays(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    plain = [part is None or part is ... or isinstance(part, int | np.integer | slice) for part in parts]
    return not all(plain) or any(isinstance(part, bool) for part in parts)


def _on_device(index: Any) -> Any:
    """Send an index that is an array of NumPy to the device, as CuPy does."""
    if isinstance(index, tuple):
        return tuple(map(_on_device, index))
    return functions.array(index) if isinstance(index, np.ndarray) and index.ndim else index


BINARY = "add sub mul truediv floordiv mod pow matmul and or xor lshift rshift"
OTHER = "lt le eq ne gt ge neg pos abs invert"
METHODS = """
    sum max min mean prod any all argmax argmin cumsum cumprod clip round std var dot trace take repeat argsort nonzero
    conj flatten conjugate searchsorted compress choose
"""
VIEW_METHODS = "reshape ravel transpose swapaxes squeeze diagonal"


def _add_methods() -> None:
    def operator(name: str) -> Any:
        return lambda *arrays: functions.operate(name, arrays)

    def method(name: str, run: Any) -> Any:
        return lambda self, *args, **kwargs: run(
            name, lambda a, *x, **k: getattr(a, name)(*x, **k), (self, *args), kwargs
        )

    for name in (*BINARY.split(), *OTHER.split()):
        setattr(ndarray, f"__{name}__", operator(f"__{name}__"))
    for name in BINARY.split():
        setattr(ndarray, f"__r{name}__", operator(f"__r{name}__"))
        setattr(ndarray, f"__i{name}__", operator(f"__i{name}__"))
    for name in METHODS.split():
        setattr(ndarray, name, method(name, functions.call))
    for name in VIEW_METHODS.split():
        setattr(ndarray, name, method(name, functions.view))


_add_methods()
