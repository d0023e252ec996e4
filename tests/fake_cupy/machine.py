"""The machine that the fake CuPy runs on: its devices, their memory, and copies between addresses."""

import ctypes
import threading
from collections import ChainMap, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from fake_cupy.ordering import Block, Lane, Timeline

UNIT = 512  # what CuPy and cudaMalloc round allocations up to
GRAVES, LARGEST_GRAVE = 256, 1 << 20  # freed blocks that keep their addresses, so that later uses are recognised
KERNELS: dict[str, Callable[..., Any]] = {}

ERRORS = {
    1: ("cudaErrorInvalidValue", "invalid argument"),
    2: ("cudaErrorMemoryAllocation", "out of memory"),
    35: ("cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"),
    100: ("cudaErrorNoDevice", "no CUDA-capable device is detected"),
    101: ("cudaErrorInvalidDevice", "invalid device ordinal"),
    400: ("cudaErrorInvalidResourceHandle", "invalid resource handle"),
    600: ("cudaErrorNotReady", "device not ready"),
    700: ("cudaErrorIllegalAddress", "an illegal memory access was encountered"),
    999: ("cudaErrorUnknown", "unknown error"),
}


class CUDARuntimeError(RuntimeError):
    """As CuPy's, with a detail that CUDA does not give."""

    def __init__(self, status: int, detail: str = "") -> None:
        self.status = status
        name, text = ERRORS[status]
        super().__init__(f"{name}: {text}" + (f" ({detail})" if detail else ""))


class Machine(Timeline):
    """Some devices, each with `memory` bytes; `eager` runs copies at once, otherwise as late as is legal."""

    def __init__(self, n_devices: int, memory: int, eager: bool) -> None:
        super().__init__(eager)
        self.n_devices, self.memory = n_devices, memory
        self.driver = 13000  # the newest CUDA that the driver runs; 0 if there is no driver
        self.kernels: ChainMap[str, Callable[..., Any]] = ChainMap({}, KERNELS)
        self.used, self.reserved = [0] * n_devices, [0] * n_devices
        self._peak_used, self._peak_reserved = [0] * n_devices, [0] * n_devices
        self.n_launched: dict[str, int] = {}
        self._blocks: dict[int, Block] = {}  # by address; changed in one step, as finalizers may come in between
        self._graveyard: deque[Block] = deque(maxlen=GRAVES)
        self._local = threading.local()

    # ------------------------------------------------------------------------------------ this thread's device
    @property
    def device(self) -> int:
        return getattr(self._local, "device", 0)

    @device.setter
    def device(self, number: int) -> None:
        if not 0 <= number < self.n_devices:
            raise CUDARuntimeError(101)
        self._local.device = number

    @property
    def streams(self) -> dict[int, list[Any]]:
        """The stack of current streams of each device, in this thread."""
        if not hasattr(self._local, "streams"):
            self._local.streams = {}
        return self._local.streams

    def current_lane(self) -> Lane:
        stack = self.streams.get(self.device)
        return self.lane(self.device, stack[-1].ptr if stack else 0)

    # ------------------------------------------------------------------------------------ memory
    def peak_bytes(self, device: int = 0) -> int:
        """Return the most bytes that were in use on a device at one time, each array rounded up to 512 bytes."""
        return self._peak_used[device]

    def peak_reserved_bytes(self, device: int = 0) -> int:
        """Return the most bytes that pools, and arrays outside of them, had taken from a device at one time."""
        return self._peak_reserved[device]

    def reset_peaks(self) -> None:
        self._peak_used, self._peak_reserved = list(self.used), list(self.reserved)

    def reserve(self, device: int, size: int) -> None:
        """Take memory from a device, as cudaMalloc does."""
        with self.lock:
            if self.reserved[device] + size > self.memory:
                raise CUDARuntimeError(2)
            self.reserved[device] += size
            self._peak_reserved[device] = max(self._peak_reserved[device], self.reserved[device])

    def unreserve(self, device: int, size: int) -> None:
        with self.lock:
            self.reserved[device] -= size

    def add_block(self, size: int, device: int | None, history: list[Any] | None = None) -> Block:
        """Make a block of memory full of NaN; on a device, it belongs to the current stream."""
        raw = np.empty(size + UNIT, np.uint8)
        start = -raw.ctypes.data % UNIT
        lane = None if device is None else self.current_lane()
        block = Block(raw[start : start + size], device, lane, list(history or ()))
        block.poison()
        with self.lock:
            self._blocks[block.base] = block
            if device is not None:
                self.used[device] += size
                self._peak_used[device] = max(self._peak_used[device], self.used[device])
        return block

    def drop_block(self, block: Block) -> None:
        """Free a block: called by finalizers, so in any thread and at any time."""
        with self.lock:
            del self._blocks[block.base]
            if block.device is not None:
                self.used[block.device] -= block.size
            self.free(block)
            if block.size <= LARGEST_GRAVE:
                self._graveyard.append(block)

    def find(self, address: int, size: int = 1) -> Block | None:
        """Return the block that holds the bytes, or None if none does: the memory is pageable memory of the host."""
        with self.lock:
            for block in list(self._blocks.values()):
                if block.base <= address < block.base + block.size:
                    if address + size > block.base + block.size:
                        raise CUDARuntimeError(700, f"{size} bytes at {address:#x} reach beyond their block")
                    return block
            if any(b.base <= address < b.base + b.size for b in list(self._graveyard)):
                raise CUDARuntimeError(700, f"use after free of memory at {address:#x}")
        return None

    def find_on_device(self, address: int, size: int = 1) -> Block:
        block = self.find(address, size)
        if block is None or block.device is None:
            raise CUDARuntimeError(700, f"{address:#x} is in no live memory of a device")
        return block

    def check_device(self, device: int | None) -> None:
        """Refuse memory of another device than the current one, as CuPy does where there is no peer access."""
        if device is not None and device != self.device:
            text = (
                f"The device where the array resides ({device}) is different from the current device ({self.device})."
            )
            raise ValueError(f"{text} Peer access is unavailable between these devices.")

    # ------------------------------------------------------------------------------------ copies
    def copy(self, target: int, source: int, size: int, kind: int, lane: Lane, waits: bool = False) -> None:
        """Copy bytes from address to address on a stream, as cudaMemcpyAsync does (`waits`: cudaMemcpy).

        Pageable memory is read before the call returns, and written before it returns.
        """
        if size == 0:
            return
        to, of = self.find(target, size), self.find(source, size)
        ends = ["H" if block is None or block.device is None else "D" for block in (of, to)]
        if kind != 4 and kind != {"HH": 0, "HD": 1, "DH": 2, "DD": 3}["".join(ends)]:
            raise CUDARuntimeError(1, f"a copy {ends[0]} to {ends[1]} is not of kind {kind}")
        if ends == ["D", "D"] and to.device != of.device:
            raise AssertionError(f"traffic between devices: from {of.device} to {to.device}")
        read, write = (_bytes_at(block, at, size) for block, at in ((of, source), (to, target)))
        if of is None:
            read = read.copy()
        accesses = [(b, view, b is to) for b, view in ((of, read), (to, write)) if b is not None]
        what = f"copy of {size} bytes {ends[0]} to {ends[1]}"
        self.submit(lane, what, accesses, lambda: np.copyto(write, read), later=to is not None)
        if to is None or (waits and of is not None):
            self.synchronize([lane])
        elif waits:
            self.run(lane)


def _bytes_at(block: Block | None, address: int, size: int) -> np.ndarray:
    if block is None:
        return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)
    return block.buffer[address - block.base :][:size]


_machines: list[Machine] = []


def now() -> Machine:
    """Return the machine that is installed."""
    if not _machines:
        raise RuntimeError("the fake CuPy is not installed any more")
    return _machines[-1]
