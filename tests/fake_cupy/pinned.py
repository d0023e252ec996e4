"""`cupy.cuda.pinned_memory`: page-locked memory of the host, which copies read and write at their own time."""

import ctypes
import weakref
from typing import Any

import numpy as np

from fake_cupy.machine import now
from fake_cupy.memory import _free


class PinnedMemory:
    """Pinned memory; freed, and overwritten, when nobody refers to it or to an array over it."""

    def __init__(self, size: int, flags: int = 0) -> None:
        self.size, self.ptr = size, 0
        if size:
            block = now().add_block(size, None)
            self.ptr = block.base
            weakref.finalize(self, _free, now(), block, lambda: None).atexit = False

    def __int__(self) -> int:
        return self.ptr


class PinnedMemoryPointer:
    """A place in pinned memory, which `np.frombuffer` and `memoryview` accept.

    A class of Python can offer a buffer only from 3.12 on, so each pointer is an array of `ctypes` as well.
    """

    mem: PinnedMemory
    ptr: int

    def __new__(cls, mem: PinnedMemory, offset: int) -> "PinnedMemoryPointer":
        size = mem.size - offset
        kind = type("PinnedMemoryPointer", (PinnedMemoryPointer, ctypes.c_byte * size), {"__init__": _do_nothing})
        pointer = kind.from_address(mem.ptr + offset) if size else object.__new__(PinnedMemoryPointer)
        pointer.mem, pointer.ptr = mem, mem.ptr + offset
        return pointer

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> "PinnedMemoryPointer":
        return PinnedMemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __sub__(self, offset: int) -> "PinnedMemoryPointer":
        return self + -offset

    def size(self) -> int:
        return self.mem.size - (self.ptr - self.mem.ptr)


def _do_nothing(*args: object) -> None:
    """Leave the memory that `from_address` found as it is."""


class PinnedMemoryPool:
    """The pool of pinned memory, which rounds sizes up to powers of two, as CuPy's does; it keeps nothing here."""

    def __init__(self, allocator: Any = None) -> None:
        self.allocator = allocator

    def malloc(self, size: int) -> PinnedMemoryPointer:
        return PinnedMemoryPointer(PinnedMemory(max(512, 1 << (size - 1).bit_length()) if size else 0), 0)

    def free_all_blocks(self) -> None:
        pass

    def n_free_blocks(self) -> int:
        return 0


def alloc_pinned_memory(size: int) -> PinnedMemoryPointer:
    """Allocate from the current pool of pinned memory."""
    return now().pinned_allocator(size)


def set_pinned_memory_allocator(allocator: Any = None) -> None:
    now().pinned_allocator = allocator or (lambda size: PinnedMemoryPointer(PinnedMemory(size), 0))


def is_memory_pinned(address: int) -> bool:
    block = now().find(address)
    return block is not None and block.device is None


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    """`cupyx.empty_pinned`: a NumPy array over pinned memory."""
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else tuple(shape)
    n_bytes = dtype.itemsize * int(np.prod(shape))
    if n_bytes == 0:
        return np.empty(shape, dtype, order)
    return np.ndarray(shape, dtype, alloc_pinned_memory(n_bytes), order=order)


def zeros_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    array = empty_pinned(shape, dtype, order)
    array.fill(0)
    return array
