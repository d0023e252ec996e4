"""NumPy's functions as operations on a device: unwrap the arrays, put the call on the stream, wrap what comes out."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fake_cupy.machine import now

COMPARISONS = frozenset(["allclose", "array_equal", "array_equiv"])  # NumPy answers with a bool, CuPy with an array
WRITTEN = {"copyto": (0,), "put": (0,), "putmask": (0,), "place": (0,), "fill_diagonal": (0,), "put_along_axis": (0,)}


def call(name: str, function: Callable[..., Any], args: Any, kwargs: Any, written: Sequence[int] = ()) -> Any:
    """Run a function of NumPy on the current stream; `written` are the positions of arguments that it writes to."""
    machine, lane = now(), now().current_lane()
    arrays: list[Any] = []
    plain, named = _unwrap(args, arrays), _unwrap(kwargs, arrays)
    _refuse_small_floats(name, arrays)
    outs = [args[i] for i in (*written, *WRITTEN.get(name, ()), *range(_n_inputs(function), len(args)))]
    outs += _flat(kwargs.get("out"))
    for array in arrays:
        machine.check_device(array.data.device_id if array.size else None)
    uses = [(_block(a), a._view, any(a is out for out in outs)) for a in arrays if a.size]

    def work() -> Any:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            return function(*plain, **named)

    with machine.lock:
        result = machine.submit(lane, name, uses, work)
        return _wrap(result, arrays, lambda new: machine.note(lane, name, [(_block(new), new._view, True)]), name)


def view(name: str, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run a function that gives a view where it can: then nothing happens on the device."""
    arrays: list[Any] = []
    plain, named = _unwrap(args, arrays), _unwrap(kwargs, arrays)
    if len(arrays) == 1:
        found = function(*plain, **named)
        if all(x.size == 0 or np.shares_memory(x, arrays[0]._view, max_work=1) for x in _flat(found)):
            return _wrap(found, arrays, None, name)
    return call(name, function, args, kwargs)


def operate(name: str, arrays: tuple[Any, ...]) -> Any:
    """Run an operator of Python."""
    for other in arrays[1:]:
        if not isinstance(other, _ndarray() | np.ndarray | np.generic | int | float | complex):
            return NotImplemented
    is_in_place = name[2] == "i" and name not in ("__invert__",)
    return call(name.strip("_"), _operator(name), arrays, {}, written=(0,) if is_in_place else ())


def _operator(name: str) -> Callable[..., Any]:
    def run(first: np.ndarray, *others: Any) -> Any:
        result = getattr(first, name)(*others)
        if result is NotImplemented:
            raise TypeError(f"unsupported operands for {name}")
        return result

    return run


def array(
    obj: Any,
    dtype: Any = None,
    copy: Any = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    blocking: bool = False,
) -> Any:
    """`cupy.array`: a copy on the current device.

    NumPy arrays are copied by the current stream, at its time: from a copy in pinned memory, but from the array itself
    if that is pinned already.
    """
    if isinstance(obj, _ndarray()):
        now().check_device(obj.data.device_id if obj.size else None)
        is_kept = not copy and (dtype is None or np.dtype(dtype) == obj.dtype)
        order_kept = order in "KA" or obj.flags[f"{order}_CONTIGUOUS"]
        if is_kept and order_kept and ndmin <= obj.ndim:
            return obj
        return call("array", np.array, (obj, dtype), {"order": order, "ndmin": ndmin})
    if isinstance(obj, list | tuple) and _holds_arrays(obj):
        return call("array", np.array, (obj, dtype), {"ndmin": ndmin})
    host = np.array(obj, dtype=dtype, copy=None, ndmin=ndmin)
    if host.dtype.kind in "OUSM":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    is_fortran = order == "F" or (order in "KA" and host.flags.fnc)
    new = _ndarray()(host.shape, host.dtype, order="F" if is_fortran else "C")
    if host.ndim == 0:
        new.fill(host[()])
        return new
    host = np.asarray(host, order="F" if is_fortran else "C")
    machine = now()
    machine.copy(new.data.ptr, host.ctypes.data, new.nbytes, 1, machine.current_lane())
    if blocking:
        machine.synchronize([machine.current_lane()])
    return new


def asarray(obj: Any, dtype: Any = None, order: str | None = None, *, blocking: bool = False) -> Any:
    return array(obj, dtype, copy=False, order=order or "K", blocking=blocking)


def ascontiguousarray(obj: Any, dtype: Any = None) -> Any:
    return array(obj, dtype, copy=False, order="C", ndmin=1)


def asfortranarray(obj: Any, dtype: Any = None) -> Any:
    return array(obj, dtype, copy=False, order="F", ndmin=1)


def asnumpy(a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True) -> np.ndarray:
    if isinstance(a, _ndarray()):
        return a.get(stream=stream, order=order, out=out, blocking=blocking)
    return np.asarray(a, order=order)


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> Any:
    """`cupy.from_dlpack`: a view of another library's memory of the device, which has to lie in the machine's.

    The capsule is NumPy's, of the host's memory that stands for the device's; what the array says of its device counts.
    """
    if isinstance(array, _ndarray()):
        return array.view()
    kind, number = array.__dlpack_device__()
    if kind != 2:
        raise TypeError("CPU arrays cannot be directly imported to CuPy.")
    machine, before = now(), now().device
    machine.device = number
    try:
        capsule = array.__dlpack__(stream=machine.current_lane().ptr or 1, max_version=(1, 0), copy=copy)
    finally:
        machine.device = before
    return _ndarray()._borrowed(np.from_dlpack(_Exported(capsule)), array)


class _Exported:
    """A capsule, as NumPy wants to be given it."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._capsule


def empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    return _ndarray()(shape, dtype, order=order)


def empty_like(prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> Any:
    order = ("F" if prototype.flags.fnc else "C") if order in "KA" else order
    return empty(prototype.shape if shape is None else shape, dtype or prototype.dtype, order)


def get_array_module(*args: Any) -> Any:
    import cupy

    return cupy if any(isinstance(a, _ndarray()) for a in args) else np


def _ndarray() -> type:
    from fake_cupy.array import ndarray

    return ndarray


def _holds_arrays(items: Any) -> bool:
    return any(_holds_arrays(x) if isinstance(x, list | tuple) else isinstance(x, _ndarray()) for x in items)


def _flat(items: Any) -> list[Any]:
    return [] if items is None else list(items) if isinstance(items, tuple | list) else [items]


def _block(array: Any) -> Any:
    return now().find_on_device(array.data.ptr)


def _n_inputs(function: Any) -> int:
    """Return how many arguments are inputs, where further ones are outputs: for the functions that are ufuncs."""
    return function.nin if isinstance(function, np.ufunc) else 1 << 30


def _unwrap(value: Any, arrays: list[Any]) -> Any:
    """Replace arrays by NumPy's views of them, which are appended to a list; refuse arrays of the host."""
    if isinstance(value, _ndarray()):
        arrays.append(value)
        return value._view
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError(f"Unsupported type {type(value)}")
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_unwrap(x, arrays) for x in value)
    if isinstance(value, dict):
        return {key: _unwrap(x, arrays) for key, x in value.items()}
    return value


def _wrap(value: Any, arrays: list[Any], note: Callable[[Any], None] | None, name: str) -> Any:
    """Make arrays of the device of all arrays of NumPy: the same array, a view, or a new one."""
    if isinstance(value, tuple | list):
        items = [_wrap(x, arrays, note, name) for x in value]
        return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
    if isinstance(value, bool) and name in COMPARISONS:
        value = np.bool_(value)
    if not isinstance(value, np.ndarray | np.generic):
        return value
    for known in arrays:
        if value is known._view:
            return known
    for known in arrays:
        if isinstance(value, np.ndarray) and value.size and np.may_share_memory(value, known._view):
            return _ndarray()._of(value, known)
        if note is None and value.size == 0:
            return _ndarray()._of(value, known)
    value = np.asarray(value)
    new = _ndarray()(value.shape, value.dtype, order="F" if value.flags.fnc else "C")
    new._view[...] = value
    if new.size and note is not None:
        note(new)
    return new


def _refuse_small_floats(name: str, arrays: list[Any]) -> None:
    if name in ("matmul", "rmatmul", "imatmul"):
        for a in arrays:
            if a.ndim > 2 and a.dtype.name in ("float16", "bfloat16"):
                raise NotImplementedError(
                    f"matmul of {a.dtype} in {a.ndim} dimensions: CuPy fails, or computes in float32"
                )
